"""Makes packs and tests each: on this machine, under qemu's user emulation, and as firmware under its emulation of
whole boards. Run by `make test-pack`."""

import argparse
import pathlib
import re
import struct
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))
import packs  # noqa: E402

CMAKE = pathlib.Path(sys.executable).parent / "cmake"

FORWARD_BACKWARD = ",".join(name for name in packs.FUNCTIONS if "fold" not in name)
ALL = ",".join(packs.FUNCTIONS)
FOLDED = "fold,forward_folded"

EMULATORS = {
    "linux-x86-64": [],
    "portable": [],
    "linux-arm64": ["qemu-aarch64", "-cpu", "cortex-a53", "-L", "/usr/aarch64-linux-gnu"],
    "linux-arm64-fp16": ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"],
    "linux-armv7": ["qemu-arm", "-L", "/usr/arm-linux-gnueabihf"],
    "wasm": [sys.executable, ROOT / "tests" / "pack" / "run_wasm.py"],
}


class Case(NamedTuple):
    """A pack and the sizes to call it with."""

    target: str
    ops: str
    dtype: str
    layout: str
    shape: str  # the pack's
    sizes: tuple[int, int, int, int]
    threads: str = "none"

    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.target, self.dtype, self.layout, self.shape.replace(",", "x") or "any"]
                        + ["threads"] * (self.threads != "none"))


def cases() -> list[Case]:
    """Every dtype and layout, fixed and free, on each processor."""
    every = []
    fixed, odd = (3, 8, 5, 7), (2, 19, 12, 11)
    for target in EMULATORS:
        for layout in ("nchw", "nhwc"):
            every.append(Case(target, ALL, "float32", layout, written(fixed), fixed))
            every.append(Case(target, ALL, "float32", layout, "", odd))
            every.append(Case(target, FORWARD_BACKWARD, "float16", layout, written(odd), odd))
            every.append(Case(target, FORWARD_BACKWARD, "float16", layout, "", odd))
            every.append(Case(target, FOLDED, "int8", layout, written(odd), odd))
            if not packs.TARGETS[target].c_source:
                every.append(Case(target, FORWARD_BACKWARD, "float32", layout, written(odd), odd, "hook"))
        every.append(Case(target, ALL, "float32", "nchw", ",16,,", (5, 16, 30, 40)))
        every.append(Case(target, FORWARD_BACKWARD, "bfloat16", "nchw", "1,3,224,224", (1, 3, 224, 224)))
        every.append(Case(target, FOLDED, "float16", "nchw", written(fixed), fixed))
    return [case for case in every if not packs.TARGETS[case.target].c_source or not re.search("16", case.dtype)]


def written(sizes: tuple[int, ...]) -> str:
    """As SHAPE takes it."""
    return ",".join(map(str, sizes))


# Bytes of text on arm64 that a fixed shape may take.
MOST_TEXT = {"forward_inference": 2048, "forward_training": 6144, "backward": 6144}

FIRMWARE = {
    "baremetal-arm64": (["start_arm64.S"], "arm64.ld", ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a53"]),
    "baremetal-cortex-m": (["start_cortex_m.c"], "cortex_m.ld", ["qemu-system-arm", "-machine", "mps2-an386"]),
    "baremetal-cortex-m7": (["start_cortex_m.c"], "cortex_m.ld", ["qemu-system-arm", "-machine", "mps2-an500"]),
}


class Runner:
    """Counts what fails."""

    def __init__(self, generators: str, halide_include: str, folder: pathlib.Path) -> None:
        self.generators = generators
        self.halide_include = halide_include
        self.folder = folder
        self.passed = 0
        self.failed: list[str] = []

    def check(self, name: str, problem: str | None) -> None:
        """One test's result."""
        print(f"{'FAILED' if problem else 'passed'}  {name}", flush=True)
        if problem:
            self.failed.append(name)
            print(problem)
        else:
            self.passed += 1

    def make(self, target: str, ops: str, dtype: str, layout: str, shape: str, name: str,
             threads: str = "none") -> dict[str, packs.Size]:
        """A pack in a folder of that name."""
        return packs.make(target=target, ops=ops, dtype=dtype, layout=layout, shape=shape, threads=threads,
                          out=self.folder / name, generators=self.generators, halide_include=self.halide_include)

    def run_case(self, case: Case) -> str | None:
        """Builds pack_test.c against the pack and runs it; the problem, or None."""
        folder = self.folder / case.name()
        self.make(case.target, case.ops, case.dtype, case.layout, case.shape, case.name(), case.threads)
        target = packs.TARGETS[case.target]
        library = folder / "libhbn.a"
        if target.as_sources:
            made = run(CMAKE, "-S", folder, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release")
            made = made if made.returncode else run(CMAKE, "--build", folder / "build", "-j")
            if made.returncode:
                return made.stdout + made.stderr
            library = folder / "build" / "libhbn.a"
        fixed = all(case.shape.split(",")) and bool(case.shape)
        defines = [f"-DTEST_{axis}={size}" for axis, size in zip("NCHW", case.sizes)]
        defines += [f"-DHAS_{name.upper()}" for name in case.ops.split(",")]
        defines += [f"-DTEST_{case.dtype.upper()}", f"-DTEST_{case.layout.upper()}", f"-DTEST_FIXED={int(fixed)}",
                    f"-DTEST_HOOK={int(case.threads == 'hook')}"]
        program = folder / "pack_test"
        built = run(target.tool("gcc"), *target.flags, "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror",
                    "-Wno-unused-variable", "-Wno-unused-function", f"-I{folder}", *defines,
                    ROOT / "tests/pack/pack_test.c", library, "-lm", "-o", program)
        if built.returncode:
            return built.stderr
        result = run(*EMULATORS[case.target], program)
        return result.stdout + result.stderr if result.returncode else None

    def firmware_output(self, target_name: str) -> tuple[str | None, str]:
        """What the example prints on a board, or on this computer: problem and text."""
        folder = self.folder / f"firmware-{target_name}"
        self.make(target_name, "forward_inference,forward_training,backward", "float32", "nchw", "2,4,5,6", folder.name)
        target = packs.TARGETS[target_name]
        source = ROOT / "examples/firmware"
        program = folder / "firmware.elf"
        common = [target.tool("gcc"), *target.flags, "-std=c99", "-O1", "-Wall", "-Wextra", f"-I{folder}"]
        if target_name not in FIRMWARE:
            built = run(*common, source / "main.c", source / "stdio_console.c", folder / "libhbn.a", "-o", program)
            command = [program]
        else:
            start, script, emulator = FIRMWARE[target_name]
            built = run(*common, "-nostdlib", "-nostartfiles", "-static", "-Wl,--gc-sections", "-Wl,--build-id=none",
                        "-T", source / script, *[source / name for name in start], source / "main.c",
                        source / "semihosting.c", folder / "libhbn.a", "-lgcc", "-o", program)
            command = [*emulator, "-nographic", "-semihosting-config", "enable=on,target=native", "-kernel", program]
        if built.returncode:
            return built.stderr, ""
        result = run(*command, timeout=60)
        # qemu prints what comes by semihosting as errors.
        output = result.stdout + result.stderr
        return (None if result.returncode == 0 else f"exit status {result.returncode}\n{output}"), output


def run(*command: object, timeout: float = 600) -> subprocess.CompletedProcess:
    """A command's result."""
    return subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False, timeout=timeout,
                          stdin=subprocess.DEVNULL)


def parse_floats(text: str) -> dict[str, list[float]]:
    """What examples/firmware/main.c prints."""
    lines = [line.split() for line in text.splitlines() if re.match(r"\w+ [0-9a-f]{8}", line)]
    return {name: [struct.unpack(">f", bytes.fromhex(word))[0] for word in words] for name, *words in lines}


def difference(board: dict[str, list[float]], computer: dict[str, list[float]]) -> str | None:
    """Where they differ by more than roundoff: the order of additions and fused multiplications differ."""
    if board.keys() != computer.keys() or not board:
        return f"printed {sorted(board)} instead of {sorted(computer)}"
    for name, expected in computer.items():
        largest = max(map(abs, expected))
        # grad_input cancels against grad_output times weight * invstd, 75 at most.
        scale = max(largest, 300.0 if name == "grad_input" else 0)
        for i, (a, b) in enumerate(zip(board[name], expected, strict=True)):
            if not abs(a - b) <= 4 * 2**-24 * scale:
                return f"{name}[{i}] is {a!r} there and {b!r} here"
    return None


def main() -> None:
    """Runs everything; fails if anything does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generators", required=True)
    parser.add_argument("--halide-include", required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--filter", default="", help="only tests whose names match")
    arguments = parser.parse_args()
    runner = Runner(arguments.generators, arguments.halide_include, arguments.folder)

    for case in cases():
        if re.search(arguments.filter, case.name()):
            runner.check(case.name(), runner.run_case(case))

    if re.search(arguments.filter, "sizes"):
        for layout in ("nchw", "nhwc"):
            sizes = runner.make("baremetal-arm64", ",".join(MOST_TEXT), "float32", layout, "1,64,56,56", "sizes")
            for name, most in MOST_TEXT.items():
                text = sizes[name].text
                runner.check(f"{name} {layout} takes {text} bytes, at most {most}", None if text <= most else "too large")

    if re.search(arguments.filter, "firmware"):
        problem, here = runner.firmware_output("linux-x86-64")
        runner.check("firmware on this computer", problem)
        for target in FIRMWARE:
            problem, there = runner.firmware_output(target)
            runner.check(f"firmware of {target}", problem or difference(parse_floats(there), parse_floats(here)))

    print(f"{runner.passed} passed, {len(runner.failed)} failed{': ' if runner.failed else ''}{', '.join(runner.failed)}")
    sys.exit(bool(runner.failed))


if __name__ == "__main__":
    main()
