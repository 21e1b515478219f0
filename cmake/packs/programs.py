"""Programs with packs: on this machine, under qemu's user emulation, and on boards, of which it emulates all."""

import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

from packs import table
from packs.targets import TARGETS

EMULATORS: dict[str, list[object]] = {
    "linux-x86-64": [],
    "portable": [],
    "linux-arm64": ["qemu-aarch64", "-cpu", "cortex-a53", "-L", "/usr/aarch64-linux-gnu"],
    "linux-arm64-fp16": ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"],
    "linux-armv7": ["qemu-arm", "-L", "/usr/arm-linux-gnueabihf"],
    "wasm": [sys.executable, table.ROOT / "tests" / "pack" / "run_wasm.py"],
}


SEMIHOSTING = ["-nographic", "-semihosting-config", "enable=on,target=native", "-kernel"]


class Board(NamedTuple):
    """A target without an operating system: files of examples/firmware, and the emulator."""

    start: str
    script: str
    emulator: list[str]
    memory: str = ""  # where it has 16 MB more, for what boards would hardly be given


BOARDS = {
    "baremetal-arm64": Board("start_arm64.S", "arm64.ld",
                             ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a53", *SEMIHOSTING]),
    "baremetal-cortex-m": Board("start_cortex_m.c", "cortex_m.ld",
                                ["qemu-system-arm", "-machine", "mps2-an386", *SEMIHOSTING], "0x21000000"),
    "baremetal-cortex-m7": Board("start_cortex_m.c", "cortex_m.ld",
                                 ["qemu-system-arm", "-machine", "mps2-an500", *SEMIHOSTING], "0x60000000"),
}


def emulator(target_name: str) -> list[str]:
    """The command that runs a program, whose path comes last."""
    words = BOARDS[target_name].emulator if target_name in BOARDS else EMULATORS[target_name]
    return [str(word) for word in words]


def build_for_board(target_name: str, folder: pathlib.Path, program: pathlib.Path, sources: list[pathlib.Path],
                    flags: list[str], large: bool = False) -> subprocess.CompletedProcess[str]:
    """A program with a pack, for a processor of BOARDS; a large one with all of its data in the larger memory."""
    target, board = TARGETS[target_name], BOARDS[target_name]
    firmware = table.ROOT / "examples" / "firmware"
    script = firmware / board.script
    if large:
        text, count = re.subn(r"(RAM .*ORIGIN = ).*", rf"\g<1>{board.memory}, LENGTH = 16M", script.read_text())
        assert count == 1
        script = program.with_name(f"{program.name}.ld")
        script.write_text(text)
        flags = [*flags, f"-DBOARD_HEAP_BYTES={8 << 20}"]
    return result_of(target.tool("gcc"), *target.flags, "-std=c99", "-O1", "-Wall", "-Wextra", f"-I{folder}",
                     "-nostartfiles", "-Wl,--gc-sections", "-Wl,--build-id=none", "-T", script, *sources,
                     firmware / board.start, firmware / "semihosting.c", folder / "libhbn.a", *flags, "-o", program)


def result_of(*command: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """A command's result, whatever that is; one that takes longer than so many seconds failed."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, text=True, capture_output=True, check=False, timeout=timeout,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]} did not end in {timeout:g} s\n")


def problem_of(result: subprocess.CompletedProcess[str]) -> str | None:
    """What a command that failed said, and its exit status: a program that crashes may say nothing. Else None."""
    return f"{result.stdout}{result.stderr}exit status {result.returncode}\n" if result.returncode else None
