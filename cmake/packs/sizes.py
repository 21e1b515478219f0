"""How many bytes each function of a pack takes."""

import pathlib
import re
import sys
from typing import NamedTuple

from packs.shell import run
from packs.targets import Target


class Size(NamedTuple):
    """Of one function, in bytes."""

    text: int
    data: int
    stack: int


def measure(name: str, target: Target, folder: pathlib.Path, objects: list[pathlib.Path], parallel: bool) -> Size:
    """Of a function with all that it calls, linked in the compiler's folder."""
    stack = stack_of_wrapper(folder / f"{name}.su") + stack_of_kernel(
        run(target.tool("objdump"), "-d", folder / f"{name}.kernel.o"))
    callees = {"memcpy", "memset"} | ({"hbn_parallel_for"} if parallel else set())
    if target.is_wasm():
        return Size(link_wasm(name, target, folder, objects, callees), 0, stack)
    linked = folder / f"{name}.linked.o"
    run(target.tool("ld"), "-r", "--gc-sections", f"--entry=hbn_{name}", "-o", linked, *objects)
    text, data, bss = map(int, run(target.tool("size"), linked).splitlines()[1].split()[:3])
    undefined = {line.split()[-1] for line in run(target.tool("nm"), "-u", linked).splitlines()}
    allowed = callees | {"_GLOBAL_OFFSET_TABLE_"}
    if target.halide.startswith("arm-32"):
        # Arithmetic that the processor lacks, in libgcc.
        allowed |= {symbol for symbol in undefined if symbol.startswith("__aeabi_")}
    if undefined - allowed:
        sys.exit(f"{name} needs {', '.join(sorted(undefined - allowed))}")
    return Size(text, data + bss, stack)


def link_wasm(name: str, target: Target, folder: pathlib.Path, objects: list[pathlib.Path], callees: set[str]) -> int:
    """Bytes of code and constants of a whole module, as WebAssembly's linker leaves out nothing sooner."""
    allowed, linked = folder / "allowed", folder / f"{name}.wasm"
    allowed.write_text("\n".join(callees))
    run(target.tool("ld"), "--no-entry", "--gc-sections", f"--export=hbn_{name}",
        f"--allow-undefined-file={allowed}", "-o", linked, *objects)
    sections = run(target.tool("objdump"), "-h", linked)
    return sum(int(size, 16) for size in re.findall(r"^ *\d+ (?:CODE|DATA) +([0-9a-f]{8}) ", sections, re.M))


def stack_of_wrapper(usage: pathlib.Path) -> int:
    """Of the compiler's -fstack-usage, the largest function's."""
    return max(int(line.split("\t")[1]) for line in usage.read_text().splitlines())


def stack_of_kernel(disassembly: str) -> int:
    """What functions take from the stack pointer, added up: they call each other once at most."""
    # WebAssembly's is a global.
    total = sum(map(int, re.findall(r"global\.get\t\d+\n.*i32\.const\t(\d+)\n.*i32\.sub", disassembly)))
    for line in disassembly.splitlines():
        if match := re.search(r"\tsub\t(?:sp, )?sp, (?:sp, )?#(0x[0-9a-f]+|\d+)(, lsl #12)?", line):
            total += int(match[1], 0) << (12 if match[2] else 0)
        elif match := re.search(r"\tsub\w*\tsp, #(\d+)", line):
            total += int(match[1])
        elif match := re.search(r"\t(?:stp|str)\t.*\[sp, #-(\d+)\]!", line):
            total += int(match[1])
        elif match := re.search(r"\tv?push\w*(?:\.w)?\t\{(.*)\}", line):
            total += sum(register_bytes(registers) for registers in match[1].split(","))
    return total


def register_bytes(registers: str) -> int:
    """Of `r4`, or `d8-d15`."""
    numbers = [int(number) for number in re.findall(r"\d+", registers)] or [0]
    return (numbers[-1] - numbers[0] + 1) * (8 if registers.strip().startswith("d") else 4)


def report(sizes: dict[str, Size]) -> str:
    """A table of all functions."""
    lines = ["| operation | text | data | stack | heap |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| hbn_{name} | {size.text} | {size.data} | {size.stack} | 0 |" for name, size in sizes.items()]
    return "\n".join(lines)
