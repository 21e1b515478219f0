"""What packs cost: bytes of each on boards, and cycles an element on ARM, beside plain C++ loops. No board is needed:
instructions are those that qemu executes, cycles what llvm-mca makes of their loops. Run by `make bench-embedded`."""

import argparse
import datetime
import pathlib
import re
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "cmake"))
import cycles  # noqa: E402
import packs  # noqa: E402
import report  # noqa: E402
from packs.request import Request  # noqa: E402
from tune import pack  # noqa: E402
from tune.spaces import Candidate  # noqa: E402

SIZED_TARGETS = ["baremetal-arm64", "linux-armv7", "baremetal-cortex-m7", "baremetal-cortex-m", "wasm"]
SIZED_OPERATIONS = ["forward_inference", "forward_training", "backward", "forward_folded"]
SIZED_SHAPE = "1,64,56,56"

NAMES = ["cortex-a53", "cortex-a72", "neoverse-n1"]
PROCESSORS = [cycles.arm64(name) for name in NAMES]
COSTS = [("forward_inference", "float32"), ("forward_training", "float32"), ("backward", "float32"),
         ("forward_folded", "float32"), ("forward_inference", "float16"), ("forward_training", "float16"),
         ("backward", "float16"), ("forward_folded", "float16"), ("forward_folded", "int8")]
COST_SHAPE = (1, 4, 32, 64)
TOOLS = "aarch64-linux-gnu-"

# What `make tune-pack` found for packs of SIZED_OPERATIONS and SIZED_SHAPE; an operation that isn't named here has
# nothing better than the default.
TUNED = {
    ("baremetal-arm64", "size"):
        "forward_inference:row_lanes=8 forward_training:lanes=1,row_lanes=8 backward:lanes=1,row_lanes=8 "
        "forward_folded:row_lanes=8",
    ("baremetal-arm64", "cycles"):
        "forward_inference:map_unroll=8 forward_training:lanes=16,map_unroll=4,row_lanes=8 backward:map_unroll=4 "
        "forward_folded:map_unroll=2,row_lanes=64",
    ("baremetal-cortex-m7", "cycles"):
        "forward_inference:map_step=8,optimize=2 forward_training:lanes=2,map_step=8,optimize=2,sum_step=4 "
        "backward:lanes=4,map_step=8,optimize=2 forward_folded:map_step=8,optimize=2",
}
VARIANTS = {
    "hbn": None,
    "g++ -O3 -ffast-math": ["-O3", "-ffast-math"],
    "the same, scalar": ["-O3", "-ffast-math", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"],
}


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

    def blocks(self, operation: str, dtype: str, flags: list[str] | None) -> list[cycles.Block]:
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
        listing = cycles.disassemble(program, function, TOOLS)
        log = folder / "log"
        packs.run("qemu-aarch64", *cycles.log_options(listing, log), program)
        return cycles.blocks_of(listing, cycles.counts_of(log.read_text(), listing))


def size_table(measurer: Measurer) -> list[str]:
    """Text and stack, an operation a row."""
    lines = ["| target | operation | text | stack |", "| --- | --- | --- | --- |"]
    for target in SIZED_TARGETS:
        sizes = measurer.make(target, ",".join(SIZED_OPERATIONS), "float32", SIZED_SHAPE)
        lines += [f"| {target} | {name} | {size.text} | {size.stack} |" for name, size in sizes.items()]
    return lines


def tuned_table(arguments: argparse.Namespace, folder: pathlib.Path) -> list[str]:
    """Text, stack and cycles of each operation by default, and tuned for each aim."""
    lines = ["| target | operation | tuned for | text | stack | cycles | parameters |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for target in dict.fromkeys(target for target, _ in TUNED):
        processor = pack.processor_of(target, None, "cycles")
        for function in SIZED_OPERATIONS:
            for aim in ("", *pack.AIMS):
                request = Request(target, ",".join(SIZED_OPERATIONS), shape=SIZED_SHAPE,
                                  parameters=TUNED.get((target, aim), ""))
                parameters = tuple(sorted(request.schedule().own[function].items()))
                if aim and not parameters:
                    lines.append(f"| {target} | {function} | {aim} | | | | nothing is better |")
                    continue
                # Which compares its results, too.
                setting = pack.Setting(request, "cycles", processor, arguments.generators, arguments.halide_include,
                                       folder)
                figures = pack.Measurer(setting, function).measure(Candidate("nchw", (), parameters))
                text = " ".join(f"{name}={value}" for name, value in parameters)
                lines.append(f"| {target} | {function} | {aim or 'the default'} | {figures.text} | {figures.stack} | "
                             f"{figures.cycles:.2f} | {text} |")
    return lines


def cost_table(measurer: Measurer) -> tuple[list[str], list[str]]:
    """Instructions and cycles an element; and lines of what is met."""
    elements = COST_SHAPE[0] * COST_SHAPE[1] * COST_SHAPE[2] * COST_SHAPE[3]
    header = ["instructions", *NAMES]
    lines = [f"| operation | {' | '.join(header)} |", "| --- |" + " --- |" * len(header)]
    behind_scalar, behind_vector = [], []
    for operation, dtype in COSTS:
        measurer.make("linux-arm64", operation, dtype, ",".join(map(str, COST_SHAPE)))
        figures: dict[str, list[float]] = {}
        for variant, flags in VARIANTS.items():
            blocks = measurer.blocks(operation, dtype, flags)
            # Of the loops: what is executed less than once for 64 elements is left out.
            modelled = (cycles.cycles(blocks, processor, elements / 64) for processor in PROCESSORS)
            figures[variant] = [total / elements for total in (cycles.executed(blocks), *modelled)]
            cells = " | ".join(f"{figure:.2f}" for figure in figures[variant])
            lines.append(f"| {operation} {dtype}, {variant} | {cells} |")
        ours, vector, scalar = figures.values()
        for i, processor in enumerate(PROCESSORS, 1):
            where = f"{operation} {dtype} on {processor.name}"
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
        tuned = tuned_table(arguments, pathlib.Path(folder))
    n, c, h, w = COST_SHAPE
    llvm = re.search(r"LLVM version (\S+)", packs.run("llvm-mca", "--version"))[1]
    qemu = re.search(r"version (\S+)", packs.run("qemu-aarch64", "--version"))[1]
    text = "\n".join([
        "# Packs, measured", "", "`make bench-embedded`", "",
        f"{datetime.date.today().isoformat()}, llvm-mca {llvm}, qemu {qemu}.", "",
        f"## Bytes, float32, NCHW, SHAPE={SIZED_SHAPE}", "",
        "With checks and all that is called; heap and static data are 0.", "", *sizes, "",
        f"## An element, 64-bit ARM, NCHW {n}x{c}x{h}x{w}", "",
        "Instructions are what qemu-aarch64 executed, cycles llvm-mca's for the loops, data in the first cache.", "",
        *(f"    {line}" for line in verdicts), "", *costs, "",
        f"## Tuned, float32, NCHW, SHAPE={SIZED_SHAPE}", "",
        "By `make tune-pack`, for the least text and for the fewest cycles, beside the default. Cycles of an element",
        "are those of a whole call, of as many channels as make 32768 elements: on a Cortex-A53, where the kernels of",
        "linux-arm64 stand for those of baremetal-arm64, and on a Cortex-M7.", "", *tuned, ""])
    (ROOT / "bench/results/embedded.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
