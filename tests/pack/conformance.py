"""pack_test.c as a program with a pack."""

import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))
import packs  # noqa: E402
from calls import calls  # noqa: E402
from packs.programs import BOARDS, build_for_board, emulator, problem_of, result_of  # noqa: E402


class Program(NamedTuple):
    """What it tests: a pack's folder and library, and the sizes to call it with."""

    folder: pathlib.Path
    library: pathlib.Path
    target: str
    dtype: str
    layout: str
    sizes: tuple[int, ...]
    fixed: bool  # the pack's sizes
    hook: bool = False
    only_calls: bool = False  # one of each function, and no tests
    large: bool = False  # for boards with more memory than they usually have

    def path(self) -> pathlib.Path:
        """Of the program."""
        return self.folder / ("pack_calls" if self.only_calls else "pack_test")

    def build(self) -> str | None:
        """Compiles it; the problem, or None."""
        target = packs.TARGETS[self.target]
        defines = [f"-DTEST_{axis}={size}" for axis, size in zip("NCHW", self.sizes, strict=True)]
        defines += [f"-DTEST_{self.dtype.upper()}", f"-DTEST_{self.layout.upper()}", f"-DTEST_FIXED={int(self.fixed)}",
                    f"-DTEST_HOOK={int(self.hook)}", *["-DTEST_ONLY_CALLS"] * self.only_calls]
        (self.folder / "pack_calls.h").write_text(calls((self.folder / "hbn.h").read_text()))
        flags = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", *defines]
        if self.target in BOARDS:
            sources = [ROOT / "tests/pack/pack_test.c", ROOT / "tests/pack/board.c"]
            libc = ["-specs=nano.specs", "-specs=nosys.specs", "-u", "_printf_float", "-lm"]
            built = build_for_board(self.target, self.folder, self.path(), sources, [*flags, *libc], self.large)
        else:
            built = result_of(target.tool("gcc"), *target.flags, "-std=c99", "-O1", *flags, f"-I{self.folder}",
                              ROOT / "tests/pack/pack_test.c", self.library, "-lm", *["-static"] * self.only_calls,
                              "-o", self.path())
        return problem_of(built)

    def run(self) -> str | None:
        """Runs it; what it prints where it fails, or None."""
        return problem_of(result_of(*emulator(self.target), self.path()))
