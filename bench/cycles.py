"""Cycles by a model, of processors that aren't at hand.

qemu says how often each instruction of a function is executed, llvm-mca how many cycles a processor takes for
those that follow each other:

    listing = disassemble(program, "hbn_kernel_.*")
    run("qemu-aarch64", *log_options(listing, log), program)
    blocks = blocks_of(listing, counts_of(log.read_text(), listing))
    cycles(blocks, Processor("cortex-a53"))

The model knows no caches and no mispredicted branches, and takes a block for a loop of its own.
"""

import collections
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "cmake"))
from packs.shell import run  # noqa: E402

ITERATIONS = 200  # of each block, by llvm-mca
PAGE = 4096
MOST_IN_RUN = 512  # instructions that qemu translates at once

# Which may be followed by another instruction than the next one in memory, by 64-bit ARM's names and Thumb's.
CONDITIONS = "eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al"
BRANCH = re.compile(rf"(b(\.?({CONDITIONS}))?(\.[nw])?|cbn?z|tbn?z|ret|br|bx|tb[bh])\t|(pop|ldm)\S*\t.*\bpc\}}|ret$")
CALL = re.compile(r"(bl|blr|blx)\t")


class Processor(NamedTuple):
    """As llvm-mca names it. `llvm-mca -mtriple=aarch64 -mcpu=help` lists names and attributes."""

    name: str
    triple: str = "aarch64"
    attributes: str = ""  # such as "+fullfp16"


def arm64(name: str) -> Processor:
    """A 64-bit ARM processor, whichever instructions kernels have: llvm-mca takes no arithmetic of 16 bits else."""
    return Processor(name, "aarch64", "+fullfp16")


class Block(NamedTuple):
    """Instructions that follow each other, and how often they were executed."""

    times: int
    instructions: list[str]


Listing = dict[int, str]
"""Address and text of each instruction."""


def disassemble(
    program: pathlib.Path, functions: str = ".*", tools: str = "aarch64-linux-gnu-", offset: int = 0
) -> Listing:
    """Of functions whose names match, by objdump with the prefix `tools`.

    `offset` is where the program is loaded, if not where it was linked for.
    """
    listing: Listing = {}
    wanted = False
    for line in run(tools + "objdump", "-d", "--no-show-raw-insn", program).splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            wanted = re.fullmatch(functions, match[1]) is not None
        elif wanted and (match := re.match(r" *([0-9a-f]+):\t(.*)$", line)):
            listing[int(match[1], 16) + offset] = re.split(r"//|[@;] ", match[2])[0].strip()
    if not listing:
        sys.exit(f"{program} has no function '{functions}'")
    return listing


def log_options(listing: Listing, log: pathlib.Path, singlestep: bool = True) -> list[str]:
    """qemu's, to log what it executes of a listing to a file.

    Without `singlestep` it is quicker, and logs only where it came by a branch.
    """
    options = ["-d", "exec,nochain", "-dfilter", f"{min(listing):#x}..{max(listing):#x}", "-D", str(log)]
    return ["-singlestep"] * singlestep + options


def counts_of(log: str, listing: Listing, singlestep: bool = True) -> collections.Counter[int]:
    """How often each address was executed, by qemu's log."""
    found = collections.Counter(re.findall(r"^Trace \d+: \S+ \[\w+/(\w+)/", log, re.M))
    starts = collections.Counter({int(address, 16): times for address, times in found.items()})
    if singlestep:
        return starts
    addresses = sorted(listing)
    places = {address: i for i, address in enumerate(addresses)}
    counts: collections.Counter[int] = collections.Counter()
    for start, times in starts.items():
        for address in addresses[places[start] : places[start] + MOST_IN_RUN] if start in places else ():
            if address // PAGE != start // PAGE:
                break
            counts[address] += times
            if BRANCH.match(listing[address] + "\t") or CALL.match(listing[address] + "\t"):
                break
    return counts


def blocks_of(listing: Listing, counts: Mapping[int, int]) -> list[Block]:
    """Neighbours that were executed equally often; a branch ends them."""
    blocks: list[Block] = []
    ended = True
    for address in sorted(listing):
        instruction, times = listing[address], counts.get(address, 0)
        if times == 0:
            ended = True
            continue
        if ended or blocks[-1].times != times:
            blocks.append(Block(times, []))
        blocks[-1].instructions.append(instruction)
        ended = BRANCH.match(instruction + "\t") is not None
    return blocks


def executed(blocks: Iterable[Block]) -> int:
    """Instructions, in all."""
    return sum(block.times * len(block.instructions) for block in blocks)


def cycles(blocks: Iterable[Block], processor: Processor, least_times: float = 1) -> float:
    """Of blocks that were executed so often at least, in all."""
    counted = [block for block in blocks if block.times >= least_times]
    if not counted:
        return 0.0
    regions = [f"# LLVM-MCA-BEGIN\n{assembly(block, processor)}\n# LLVM-MCA-END\n" for block in counted]
    attributes = [f"-mattr={processor.attributes}"] if processor.attributes else []
    output = run(
        "llvm-mca",
        f"-mtriple={processor.triple}",
        f"-mcpu={processor.name}",
        *attributes,
        f"-iterations={ITERATIONS}",
        "-instruction-info=0",
        "-resource-pressure=0",
        text="".join(regions),
    )
    totals = [int(total) for total in re.findall(r"^Total Cycles: +(\d+)", output, re.M)]
    return sum(block.times * total for block, total in zip(counted, totals, strict=True)) / ITERATIONS


def assembly(block: Block, processor: Processor) -> str:
    """As llvm-mca reads it. Where branches go doesn't matter to it."""
    lines = [re.sub(r"\b[0-9a-f]+ <.*>$", "target", line) for line in block.instructions]
    return "\n".join(lines_of_thumb(lines) if processor.triple.startswith("thumb") else lines)


# What LLVM's assembler reads otherwise than objdump writes it, or its models have no timing for.
THUMB_SUBSTITUTES = [
    (r"^([a-z]\w*(\.\w\d\d)*)\.[nw]\t", r"\1\t"),
    (r"^(vmov\.f\d\d\t\w+), #\d+$", r"\1, #1.0"),  # a number in eight bits
    (r"^(it[te]*|vcmpe?\.f\d\d)\t.*$", "nop"),
]


def lines_of_thumb(lines: list[str]) -> list[str]:
    """Without conditions, for which the models have no instruction `it`: what is skipped takes its time, too."""
    found = []
    conditional = 0
    for line in lines:
        if match := re.match(r"it([te]*)\t", line):
            conditional = 1 + len(match[1])
        elif conditional:
            conditional -= 1
            line = re.sub(rf"^([a-z]\w*?)({CONDITIONS})\b", r"\1", line)
        for pattern, substitute in THUMB_SUBSTITUTES:
            line = re.sub(pattern, substitute, line)
        found.append(line)
    return found


def check(processor: Processor) -> None:
    """Exits where llvm-mca is missing, or has no model of the processor."""
    if not shutil.which("llvm-mca"):
        sys.exit("llvm-mca is missing: sudo apt-get install llvm")
    command = ["llvm-mca", f"-mtriple={processor.triple}", f"-mcpu={processor.name}", "-iterations=1"]
    probe = "add x0, x0, x1\n" if processor.triple.startswith("aarch64") else "add r0, r0, r1\n"
    done = subprocess.run(command, input=probe, text=True, capture_output=True, check=False)
    if "not a recognized processor" in done.stderr or "Total Cycles" not in done.stdout:
        known = subprocess.run([*command[:2], "-mcpu=help"], input="", text=True, capture_output=True, check=False)
        names = re.findall(r"^  (\S+) +- Select", known.stdout + known.stderr, re.M)
        sys.exit(f"llvm-mca has no model of '{processor.name}': allowed are, where they have one, {' '.join(names)}")
