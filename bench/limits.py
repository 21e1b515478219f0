"""Prints what the loops of arithmetic_loops.cpp cost by LLVM's models of processors: a table of bench/README.md.

It reads the loops from the compiled contestant by objdump, and asks llvm-mca. Which processors are known depends on
LLVM's version: Zen 3 from 13, Zen 4 from 16 and Sapphire Rapids from 17 on. Older ones say "unknown" of the first, and
would take the last for a Skylake.
"""

import argparse
import pathlib
import re
import subprocess
import sys
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
# What the table calls them, and what arithmetic_loops.cpp does. Sums subtract (0) or take an fma for it (1), and maps'
# stores are ordinary ones (0).
DTYPES = {"float32": "Float32", "bfloat16": "Bfloat16", "float16": "Float16"}


class Processor(NamedTuple):
    """One of LLVM's models."""

    name: str
    llvm_name: str
    since: int  # LLVM's version
    instruction_set: str  # the one that hbn takes


PROCESSORS = [Processor("Zen 3", "znver3", 13, "avx2"), Processor("Zen 4", "znver4", 16, "avx512"),
              Processor("Golden Cove", "sapphirerapids", 17, "avx512")]


class Loop(NamedTuple):
    """The innermost loop of a function."""

    instructions: list[str]
    bytes: int  # of x, each time around

    def per_line(self) -> float:
        """How many times around make 64 bytes."""
        return 64 / self.bytes


def loops(contestant: pathlib.Path) -> dict[str, Loop]:
    """The loops in a library, by the instruction set and name of their functions."""
    listing = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", str(contestant)], capture_output=True, text=True,
                             check=True).stdout
    found = {}
    for function in listing.split("\n\n"):
        # ... hbn::bench::avx2::(anonymous namespace)::forward_map<hbn::bench::avx2::(anonymous namespace)::Float32>(...
        header = re.match(r"[0-9a-f]+ <.*?hbn::bench::(\w+)::\(anonymous namespace\)::(\w+<.*>)\(hbn::", function)
        if header and (loop := innermost(function)):
            name = re.sub(r"hbn::bench::\w+::\(anonymous namespace\)::|\(hbn::bench::\w+\)", "", header[2])
            found[f"{header[1]} {name}"] = loop
    return found


def innermost(function: str) -> Loop | None:
    """The loop that holds no other one and does the most."""
    lines = re.findall(r"^\s*([0-9a-f]+):\t(.*?)\s*$", function, re.MULTILINE)
    at = {address: i for i, (address, _) in enumerate(lines)}
    bodies = []
    for i, (_, text) in enumerate(lines):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if jump and at.get(jump[1], len(lines)) <= i:
            bodies.append([text for _, text in lines[at[jump[1]]:i + 1]])
    for body in sorted(bodies, key=len):
        steps = [step for text in body if (step := step_of(text))]
        if steps:
            return Loop(body, steps[0])
    return None


def step_of(instruction: str) -> int:
    """What an instruction adds to a place in memory, in bytes; 0 if it doesn't."""
    step = re.match(r"(add|sub)\s+\$0x([0-9a-f]+),%r", instruction)
    if not step:
        return 0
    value = int(step[2], 16)
    signed = value - (1 << 64) if value >> 63 else value
    return signed if step[1] == "add" else -signed


class Cost(NamedTuple):
    """Of 64 bytes of x, by a model."""

    cycles: float
    busiest: list[str]  # the ports that have most to do


def cost(loop: Loop, processor: Processor, llvm_mca: str) -> Cost:
    """What llvm-mca says of a loop, in the steady state."""
    # Its jump has no place in a text without addresses.
    text = "\n".join(instruction.split("#")[0] for instruction in loop.instructions[:-1])
    done = subprocess.run([llvm_mca, f"-mcpu={processor.llvm_name}", "-mtriple=x86_64", "-iterations=200"], input=text,
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"limits: {llvm_mca} on {processor.name}: {done.stderr.strip()}")
    throughput = re.search(r"Block RThroughput: +([0-9.]+)", done.stdout)
    assert throughput, done.stdout
    pressure = pressures(done.stdout)
    most = max(pressure.values())
    return Cost(float(throughput[1]) * loop.per_line(),
                [short(port) for port, value in pressure.items() if value >= 0.95 * most])


def short(port: str) -> str:
    """As AMD and Intel call it: LLVM says Zn4FP2, Zn3FPP2 and SPRPort05."""
    return re.sub(r"^Zn\d", "", re.sub(r"^\w+Port0?", "p", port)).replace("FPP", "FP")


def pressures(output: str) -> dict[str, float]:
    """How long each port works for a time around, from llvm-mca's text."""
    resources = dict(re.findall(r"^\[([0-9.]+)\] +- (\w+)$", output, re.MULTILINE))
    table = re.search(r"Resource pressure per iteration:\n(.*)\n(.*)\n", output)
    assert table, output
    numbers = re.findall(r"\[([0-9.]+)\]", table[1])
    values = [0 if v == "-" else float(v) for v in table[2].split()]
    of_resource: dict[str, float] = {}
    for number, value in zip(numbers, values, strict=True):
        name = resources.get(number) or resources[number.split(".")[0]]
        of_resource[name] = max(of_resource.get(name, 0), value)
    return of_resource


def table(all_loops: dict[str, Loop], llvm_mca: str) -> list[str]:
    """A line for each loop: its instructions and cycles on each processor, sums by whichever way is faster."""
    version = int(re.search(r"LLVM version (\d+)", run_version(llvm_mca))[1])
    processors = [p for p in PROCESSORS if p.since <= version]
    names = " | ".join(f"{p.name}, {p.instruction_set}" for p in processors)
    lines = [f"| 64 bytes of x (LLVM {version}) | {names} |",
             "| --- " * (len(processors) + 1) + "|"]
    for direction in ("forward", "backward"):
        for kind in ("sums", "map"):
            for dtype, name in DTYPES.items():
                lines.append(f"| {direction} {kind} {dtype} | " + " | ".join(
                    entry(all_loops, p, f"{direction}_{kind}", name, llvm_mca) for p in processors) + " |")
    return lines


def entry(all_loops: dict[str, Loop], processor: Processor, function: str, dtype: str, llvm_mca: str) -> str:
    """For example '19 in 4.0 cycles: FP2 FP3'."""
    variants = [f"{function}<{dtype}, {way}>" for way in ((0, 1) if function.endswith("sums") else (0,))]
    costs: list[Any] = []
    for variant in variants:
        loop = all_loops[f"{processor.instruction_set} {variant}"]
        costs.append((cost(loop, processor, llvm_mca), loop))
    best, loop = min(costs, key=lambda pair: pair[0].cycles)
    way = " (fma)" if len(costs) > 1 and costs[1][0].cycles < costs[0][0].cycles else ""
    return f"{len(loop.instructions) * loop.per_line():.1f} in {best.cycles:.1f} cycles{way}: {' '.join(best.busiest)}"


def run_version(llvm_mca: str) -> str:
    """What --version prints."""
    return subprocess.run([llvm_mca, "--version"], capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestant", type=pathlib.Path, metavar="FILE",
                        default=HERE.parent / "build/x86/bench/contestant_arithmetic.so", help="(default: %(default)s)")
    parser.add_argument("--llvm-mca", default="llvm-mca", metavar="COMMAND", help="(default: %(default)s)")
    options = parser.parse_args()
    print("\n".join(table(loops(options.contestant), options.llvm_mca)))


if __name__ == "__main__":
    main()
