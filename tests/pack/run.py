"""Makes packs and tests each: on this machine, under qemu's user emulation, and on boards, of which it emulates all.
Run by `make test-pack`."""

import argparse
import concurrent.futures
import os
import pathlib
import re
import struct
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))
import packs  # noqa: E402
from conformance import Program  # noqa: E402
from packs.programs import BOARDS, EMULATORS, build_for_board, emulator, problem_of, result_of  # noqa: E402

CMAKE = pathlib.Path(sys.executable).parent / "cmake"


def names(dtype: str, pattern: str = "", activations: str = "") -> str:
    """As OPS takes them: functions for a dtype whose names match, and those of their activations."""
    return ",".join(name for name, function in packs.FUNCTIONS.items() if function.has_dtype(dtype)
                    and re.match(pattern, name) and re.fullmatch(activations or ".*", function.activation.name))


UNFUSED = "forward_inference,forward_training,backward"

# Those whose tools have a C library, for pack_test.c.
TESTED_BOARDS = ("baremetal-cortex-m", "baremetal-cortex-m7")


class Case(NamedTuple):
    """A pack and the sizes to call it with."""

    target: str
    ops: str
    dtype: str
    layout: str
    shape: str  # the pack's
    sizes: tuple[int, int, int, int]
    threads: str = "none"
    parameters: str = ""

    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.target, self.dtype, self.layout, self.shape.replace(",", "x") or "any"]
                        + ["threads"] * (self.threads != "none") + ["parameters"] * bool(self.parameters))


def cases() -> list[Case]:
    """Every dtype and layout, fixed and free. This machine has every function in each case, others in some."""
    every = []
    fixed, odd = (3, 8, 5, 7), (2, 19, 12, 11)
    unfolded, folded = "(?!fold|forward_folded)", "fold|forward_folded"
    for target in EMULATORS:
        few = "" if target == "linux-x86-64" else "identity|relu"
        for layout in ("nchw", "nhwc"):
            all_if_nhwc, all_if_nchw = ("", few) if layout == "nhwc" else (few, "")
            every.append(Case(target, names("float32", "", all_if_nchw), "float32", layout, written(fixed), fixed))
            every.append(Case(target, names("float32", "", few), "float32", layout, "", odd))
            every.append(Case(target, names("float16", unfolded, few), "float16", layout, written(odd), odd))
            every.append(Case(target, names("float16", unfolded, all_if_nhwc), "float16", layout, "", odd))
            every.append(Case(target, names("int8"), "int8", layout, written(odd), odd))
            every.append(Case(target, names("float32", unfolded, few), "float32", layout, written(odd), odd, "hook"))
        every.append(Case(target, names("float32", "", few), "float32", "nchw", ",16,,", (5, 16, 30, 40)))
        large = (1, 3, 224, 224)
        every.append(Case(target, names("bfloat16", unfolded, few), "bfloat16", "nchw", written(large), large))
        every.append(Case(target, names("float16", folded, few), "float16", "nchw", written(fixed), fixed))
    every.append(Case("linux-arm64", names("bfloat16"), "bfloat16", "nhwc", "", odd))
    vectors = "lanes=4 row_lanes=8 map_unroll=4 chain_values=4096 forward_training:lanes=2,row_lanes=64"
    every.append(Case("linux-arm64", UNFUSED, "float32", "nchw", "", (3, 5, 33, 77), parameters=vectors))
    # As hbn-tune calls packs with large planes.
    every.append(Case("linux-x86-64", UNFUSED, "float32", "nchw", ",1,,", (1, 1, 40, 50)))
    every.append(Case("linux-x86-64", UNFUSED, "float32", "nchw", "1,2,40,50", (1, 2, 40, 50)))
    halves = "lanes=16 group_values=2 map_unroll=2 backward:group_values=4"
    every.append(Case("linux-x86-64", UNFUSED, "bfloat16", "nchw", written(odd), odd, parameters=halves))
    pairs = "channel_lanes=2 chain_values=1024"
    every.append(Case("wasm", UNFUSED, "float32", "nhwc", written(odd), odd, parameters=pairs))
    for target in TESTED_BOARDS:
        small = (2, 4, 5, 6)
        every.append(Case(target, names("float32"), "float32", "nchw", written(small), small))
        every.append(Case(target, names("int8"), "int8", "nhwc", "", small))
        steps = "lanes=4 sum_step=2 map_step=4 chain_values=1024 optimize=2 backward:lanes=2,map_step=8"
        every.append(Case(target, UNFUSED, "float32", "nchw", written(small), small, parameters=steps))
        steps = "sum_step=8 map_step=2 optimize=2"
        every.append(Case(target, UNFUSED, "float32", "nhwc", "", small, parameters=steps))
    return [case for case in every if not packs.TARGETS[case.target].c_source
            or (case.dtype in ("float32", "int8") and case.threads == "none")]


def written(sizes: tuple[int, ...]) -> str:
    """As SHAPE takes it."""
    return ",".join(map(str, sizes))


# What `make pack` is not for, and what it says.
REFUSALS = [
    ({"ops": "forward_inference_tanh"}, "^OPS: 'forward_inference_tanh' is none of forward_inference, "),
    ({"ops": "fold,forward_folded_silu", "dtype": "int8"}, "^DTYPE=int8 is for .* only, not forward_folded_silu$"),
    ({"ops": "forward_folded_add_relu", "dtype": "int8"}, "^DTYPE=int8 is for .* only, not forward_folded_add_relu$"),
    ({"ops": "backward", "dtype": "int8"}, "^DTYPE=int8 is for .* only, not backward$"),
    ({"ops": "forward_inference", "shape": "1,2,3"}, "^SHAPE is four sizes"),
    ({"ops": "forward_inference", "dtype": "float16", "target": "portable"}, "^DTYPE=float16 is not for TARGET"),
    ({"ops": "forward_inference", "threads": "hook", "target": "portable"}, "^THREADS=hook is not for TARGET"),
    ({"ops": "forward_inference", "parameters": "lanes"}, "^PARAMETERS: 'lanes' is not as in lanes=16, or "),
    ({"ops": "forward_inference", "parameters": "lane=8"}, "^PARAMETERS: lane is unknown for TARGET=linux-x86-64 "
     "LAYOUT=nchw, which has lanes, .*, row_lanes, "),
    ({"ops": "forward_inference", "parameters": "row_lanes=9"}, "^PARAMETERS: row_lanes=9: allowed are 8 16 32 64, "),
    ({"ops": "forward_inference", "parameters": "sum_step=2"}, "^PARAMETERS: sum_step is not for TARGET=linux-x86-64 "),
    ({"ops": "forward_inference", "parameters": "optimize=2"}, "^PARAMETERS: optimize is not for TARGET=linux-x86-64 "),
    ({"ops": "forward_inference", "parameters": "backward:lanes=8"},
     "^PARAMETERS: 'backward' is not one of OPS=forward_inference$"),
    ({"ops": "forward_inference", "parameters": "lanes=8"},
     "^PARAMETERS: lanes has no effect on forward_inference; these have: map_unroll, row_lanes$"),
    ({"ops": "forward_inference,forward_training", "parameters": "forward_inference:lanes=8"},
     "^PARAMETERS: lanes has no effect on forward_inference; these have: row_lanes, map_unroll$"),
    ({"ops": "fold", "parameters": "fold:lanes=8"}, "^PARAMETERS: fold has none$"),
    ({"ops": "forward_training", "parameters": "lanes=64", "dtype": "bfloat16"},
     "^PARAMETERS: forward_training: lanes=64 group_values=8: allowed are 1 to 16 lanes of bfloat16 "),
]

# Bytes of text on arm64 that a fixed shape may take, with the largest of activations, too.
MOST_TEXT = {"forward_inference": 2048, "forward_training": 6144, "backward": 6144,
             "forward_inference_silu": 2048, "forward_training_add_silu": 6144, "backward_add_silu": 6144}

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
             threads: str = "none", parameters: str = "") -> dict[str, packs.Size]:
        """A pack in a folder of that name."""
        return packs.make(target=target, ops=ops, dtype=dtype, layout=layout, shape=shape, threads=threads,
                          parameters=parameters, out=self.folder / name, generators=self.generators,
                          halide_include=self.halide_include)

    def refusal(self, *, ops: str, target: str = "linux-x86-64", dtype: str = "float32", shape: str = "",
                threads: str = "none", parameters: str = "") -> str:
        """What a request for a pack ends with."""
        try:
            self.make(target, ops, dtype, "nchw", shape, "refused", threads, parameters)
        except SystemExit as exit_:
            return str(exit_.code)
        return "it was made"

    def run_case(self, case: Case) -> str | None:
        """Builds pack_test.c against the pack and runs it; the problem, or None."""
        folder = self.folder / case.name()
        self.make(case.target, case.ops, case.dtype, case.layout, case.shape, case.name(), case.threads,
                  case.parameters)
        target = packs.TARGETS[case.target]
        library = folder / "libhbn.a"
        if target.as_sources:
            made = result_of(CMAKE, "-S", folder, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release")
            made = made if made.returncode else result_of(CMAKE, "--build", folder / "build", "-j")
            if made.returncode:
                return problem_of(made)
            library = folder / "build" / "libhbn.a"
        fixed = all(case.shape.split(",")) and bool(case.shape)
        hook = case.threads == "hook"
        program = Program(folder, library, case.target, case.dtype, case.layout, case.sizes, fixed, hook)
        return program.build() or program.run()

    def firmware_output(self, target_name: str) -> tuple[str | None, str]:
        """What the example prints on a board, or on this computer: problem and text."""
        folder = self.folder / f"firmware-{target_name}"
        self.make(target_name, "forward_inference,forward_training,backward", "float32", "nchw", "2,4,5,6", folder.name)
        target = packs.TARGETS[target_name]
        source = ROOT / "examples/firmware"
        program = folder / "firmware.elf"
        if target_name in BOARDS:
            flags = ["-nostdlib", "-static", "-lgcc"]
            built = build_for_board(target_name, folder, program, [source / "main.c"], flags)
        else:
            built = result_of(target.tool("gcc"), *target.flags, "-std=c99", "-O1", "-Wall", "-Wextra", f"-I{folder}",
                              source / "main.c", source / "stdio_console.c", folder / "libhbn.a", "-o", program)
        if built.returncode:
            return problem_of(built), ""
        result = result_of(*emulator(target_name), program, timeout=60)
        # qemu prints what comes by semihosting as errors.
        return problem_of(result), result.stdout + result.stderr


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

    every = [case.name() for case in cases()]
    assert len(set(every)) == len(every), "cases of one name would share a folder"
    wanted = [case for case in cases() if re.search(arguments.filter, case.name())]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for case, problem in zip(wanted, pool.map(runner.run_case, wanted), strict=True):
            runner.check(case.name(), problem)

    if re.search(arguments.filter, "refusals"):
        for request, text in REFUSALS:
            said = runner.refusal(**request)
            runner.check(f"refusal of {request}", None if re.search(text, said) else said)

    if re.search(arguments.filter, "sizes"):
        for layout in ("nchw", "nhwc"):
            sizes = runner.make("baremetal-arm64", ",".join(MOST_TEXT), "float32", layout, "1,64,56,56", "sizes")
            for name, most in MOST_TEXT.items():
                size = sizes[name].text
                problem = None if size <= most else "too large"
                runner.check(f"{name} {layout} takes {size} bytes, at most {most}", problem)

    if re.search(arguments.filter, "firmware"):
        problem, here = runner.firmware_output("linux-x86-64")
        runner.check("firmware on this computer", problem)
        for target in BOARDS:
            problem, there = runner.firmware_output(target)
            runner.check(f"firmware of {target}", problem or difference(parse_floats(there), parse_floats(here)))

    failed = ": " * bool(runner.failed) + ", ".join(runner.failed)
    print(f"{runner.passed} passed, {len(runner.failed)} failed{failed}")
    sys.exit(bool(runner.failed))


if __name__ == "__main__":
    main()
