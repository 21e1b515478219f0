"""What packs cost: bytes of each on boards, and cycles an element on ARM, beside plain C++ loops. No board is needed:
instructions are those that qemu executes, cycles what llvm-mca makes of their loops. Run by `make bench-embedded`."""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "cmake"))
import packs  # noqa: E402
import report  # noqa: E402

SIZED_TARGETS = ["baremetal-arm64", "linux-armv7", "baremetal-cortex-m7", "baremetal-cortex-m", "wasm"]
SIZED_OPERATIONS = ["forward_inference", "forward_training", "backward", "forward_folded"]
SIZED_SHAPE = "1,64,56,56"

PROCESSORS = ["cortex-a53", "cortex-a72", "neoverse-n1"]
COSTS = [("forward_inference", "float32"), ("forward_training", "float32"), ("backward", "float32"),
         ("forward_folded", "float32"), ("forward_inference", "float16"), ("forward_training", "float16"),
         ("backward", "float16"), ("forward_folded", "float16"), ("forward_folded", "int8")]
COST_SHAPE = (1, 4, 32, 64)
TOOLS = "aarch64-linux-gnu-"
VARIANTS = {
    "hbn": None,
    "g++ -O3 -ffast-math": ["-O3", "-ffast-math"],
    "the same, scalar": ["-O3", "-ffast-math", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"],
}


class Block(NamedTuple):
    """Instructions that follow each other, and how often they were executed."""

    times: int
    instructions: list[str]


class Ratio(NamedTuple):
    """A rival's cycles over hbn's."""

    value: float
    where: str

    def name(self) -> str:
        """As report.Row has it."""
        return self.where


class Measurer:
    """Makes packs and programs in a folder."""

    def __init__(self, arguments: argparse.Namespace, folder: pathlib.Path) -> None:
        """`arguments` are those of packs.make() that are the same for all."""
        self.arguments = arguments
        self.folder = folder

    def make(self, target: str, ops: str, dtype: str, shape: str) -> dict[str, packs.Size]:
        """A pack in `folder`/pack."""
        return packs.make(target=target, ops=ops, dtype=dtype, shape=shape, out=self.folder / "pack",
                          **vars(self.arguments))

    def blocks(self, operation: str, dtype: str, flags: list[str] | None) -> list[Block]:
        """What is executed of an operation: hbn's where flags is None, else plain.cpp compiled with them."""
        folder = self.folder / "cost"
        folder.mkdir(exist_ok=True)
        sources = ROOT / "bench/embedded"
        defines = [f"-DCOST_{axis}={size}" for axis, size in zip("NCHW", COST_SHAPE, strict=True)]
        defines += [f"-DCOST_{operation}", f"-DCOST_{dtype.upper()}", f"-I{self.folder / 'pack'}", f"-I{sources}"]
        program = folder / "program"
        if flags is None:
            function, library = f"hbn_kernel_{operation}", self.folder / "pack" / "libhbn.a"
        else:
            function, library = f"plain_{operation}", folder / "plain.o"
            packs.run(TOOLS + "g++", *flags, *defines, "-c", sources / "plain.cpp", "-o", library)
            defines.append("-DPLAIN")
        packs.run(TOOLS + "gcc", "-O1", "-static", *defines, sources / "cost.c", library, "-lm", "-o", program)
        listing = disassemble(program, function)
        first, last = min(listing), max(listing)
        log = folder / "log"
        packs.run("qemu-aarch64", "-singlestep", "-d", "exec,nochain", "-dfilter", f"{first:#x}..{last:#x}", "-D", log,
                  program)
        addresses = re.findall(r"^Trace \d+: \S+ \[\w+/(\w+)/", log.read_text(), re.M)
        counts = collections.Counter(int(address, 16) for address in addresses)
        return blocks_of(listing, counts)


def disassemble(program: pathlib.Path, function: str) -> dict[int, str]:
    """Address and text of each instruction."""
    text = packs.run(TOOLS + "objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", program)
    return {int(address, 16): instruction.split("//")[0].strip()
            for address, instruction in re.findall(r"^ +(\w+):\t(.*)$", text, re.M)}


def blocks_of(listing: dict[int, str], counts: collections.Counter) -> list[Block]:
    """Neighbours that were executed equally often; a branch ends them."""
    blocks: list[Block] = []
    ended = True
    for address in sorted(listing):
        instruction, times = listing[address], counts[address]
        if times == 0:
            ended = True
            continue
        if ended or blocks[-1].times != times:
            blocks.append(Block(times, []))
        blocks[-1].instructions.append(instruction)
        ended = re.match(r"(b|b\.\w+|cbn?z|tbn?z|ret|br)\t", instruction + "\t") is not None
    return blocks


def cycles(blocks: list[Block], processor: str, elements: int) -> float:
    """Of the loops: what is executed less than once for 64 elements is left out."""
    total = 0.0
    for block in blocks:
        if block.times * 64 < elements:
            continue
        # Where branches go doesn't matter to llvm-mca.
        text = "\n".join(re.sub(r"^(b\.\w+|b|cbn?z|tbn?z)\t(.*?)[0-9a-f]+ <.*>$", r"\1\t\2.", line)
                         for line in block.instructions)
        output = packs.run("llvm-mca", "-mtriple=aarch64", f"-mcpu={processor}", "-mattr=+fullfp16", "-iterations=200",
                     "-instruction-info=0", "-resource-pressure=0", text=text + "\n")
        total += block.times * int(re.search(r"Total Cycles: +(\d+)", output)[1]) / 200
    return total / elements


def size_table(measurer: Measurer) -> list[str]:
    """Text and stack, an operation a row."""
    lines = ["| target | operation | text | stack |", "| --- | --- | --- | --- |"]
    for target in SIZED_TARGETS:
        sizes = measurer.make(target, ",".join(SIZED_OPERATIONS), "float32", SIZED_SHAPE)
        lines += [f"| {target} | {name} | {size.text} | {size.stack} |" for name, size in sizes.items()]
    return lines


def cost_table(measurer: Measurer) -> tuple[list[str], list[str]]:
    """Instructions and cycles an element; and lines of what is met."""
    elements = COST_SHAPE[0] * COST_SHAPE[1] * COST_SHAPE[2] * COST_SHAPE[3]
    header = ["instructions", *PROCESSORS]
    lines = [f"| operation | {' | '.join(header)} |", "| --- |" + " --- |" * len(header)]
    behind_scalar, behind_vector = [], []
    for operation, dtype in COSTS:
        measurer.make("linux-arm64", operation, dtype, ",".join(map(str, COST_SHAPE)))
        figures: dict[str, list[float]] = {}
        for variant, flags in VARIANTS.items():
            blocks = measurer.blocks(operation, dtype, flags)
            executed = sum(block.times * len(block.instructions) for block in blocks) / elements
            figures[variant] = [executed, *(cycles(blocks, processor, elements) for processor in PROCESSORS)]
            cells = " | ".join(f"{figure:.2f}" for figure in figures[variant])
            lines.append(f"| {operation} {dtype}, {variant} | {cells} |")
        ours, vector, scalar = figures.values()
        for i, processor in enumerate(PROCESSORS, 1):
            where = f"{operation} {dtype} on {processor}"
            behind_scalar.append(Ratio(scalar[i] / ours[i], where))
            behind_vector.append(Ratio(vector[i] / ours[i], where))
    aims = [("scalar", behind_scalar, 3), ("vectorized", behind_vector, 1)]
    return lines, [report.worst_line(f"{name} loop's cycles / hbn's", ratios, lambda ratio: ratio.value, least, "")
                   for name, ratios, least in aims]


def main() -> None:
    """Writes bench/results/embedded.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generators", required=True)
    parser.add_argument("--halide-include", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measurer = Measurer(arguments, pathlib.Path(folder))
        sizes = size_table(measurer)
        costs, verdicts = cost_table(measurer)
    n, c, h, w = COST_SHAPE
    text = "\n".join([
        "# Packs, measured", "", "`make bench-embedded`", "", f"## Bytes, float32, NCHW, SHAPE={SIZED_SHAPE}", "",
        "With checks and all that is called; heap and static data are 0.", "", *sizes, "",
        f"## An element, 64-bit ARM, NCHW {n}x{c}x{h}x{w}", "",
        "Instructions are what qemu-aarch64 executed, cycles llvm-mca's for the loops, data in the first cache.", "",
        *(f"    {line}" for line in verdicts), "", *costs, ""])
    (ROOT / "bench/results/embedded.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
