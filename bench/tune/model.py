"""Costs by a model, where time can't be measured: what qemu executes of a kernel, times llvm-mca's cycles.

bench/cycles.py is the model. The worker runs under qemu's user mode, which logs what it executes, but for the worker's
own code and its libraries': that leaves candidates. So the default counts by a kernel that is compiled as candidates
are, with no parameters.
"""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import cycles

from . import tables
from .build import Build
from .cells import Cell
from .measure import Contestant, Crash, Worker
from .spaces import DEFAULT, Candidate
from .tables import UserError

TARGET = "arm64"
"""Whose instructions cycles.py follows, and CPUs the table below has."""
MEASURES = ["time", "cycles-model", "instructions"]
CPUS = {
    "cortex-a53": "0x41 0xd03", "cortex-a55": "0x41 0xd05", "cortex-a57": "0x41 0xd07", "cortex-a72": "0x41 0xd08",
    "cortex-a76": "0x41 0xd0b", "neoverse-n1": "0x41 0xd0c",
}  # fmt: skip
"""What llvm-mca has models of, and hbn-info's names of them: implementer and part."""
UNIT = 1e-9
"""Of a cycle or an instruction, where what is kept is seconds: as if of 1 GHz."""
PLAIN = 2 * 10**9
"""The worker's number of the first kernel without parameters: those of candidates and anchors are lower."""
ADDRESSES = 1 << 64
QEMU = re.compile(r"(.*/)?qemu-(?!system)\w+(-static)?")


def measured_by(measure: str, model_cpu: str | None) -> str:
    """As tuned entries name it; nothing for time.

    Raises:
        UserError: where the model's CPU is missing, or there for nothing.
    """
    if (measure == "cycles-model") != (model_cpu is not None):
        raise UserError(f"--measure cycles-model needs --model-cpu, and nothing else has it: of {', '.join(CPUS)}")
    return {"time": "", "cycles-model": f"llvm-mca {model_cpu}", "instructions": "instructions"}[measure]


def check_tools(target: str, remote: Sequence[str], model_cpu: str | None) -> None:
    """Says what is missing."""
    if target != TARGET:
        raise UserError(f"without time, kernels of target {TARGET} alone are measured: --target {TARGET}")
    if not remote or not QEMU.fullmatch(remote[0]):
        raise UserError(
            "without time, kernels are measured by what qemu's user mode executes: --remote must begin with it, for "
            "example --remote 'qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu'"
        )
    if not shutil.which(remote[0]):
        raise UserError(f"{remote[0]} is missing: sudo apt-get install qemu-user")
    if model_cpu:
        try:
            cycles.check(cycles.arm64(model_cpu))
        except SystemExit as missing:
            raise UserError(str(missing)) from missing


def gaps(code: Iterable[list[int]]) -> list[str]:
    """All addresses outside of these ranges, as qemu's -dfilter reads them."""
    found, begin = [], 0
    for first, last in sorted(code):
        if first > begin:
            found.append(f"{begin:#x}..{first - 1:#x}")
        begin = max(begin, last + 1)
    return [*found, f"{begin:#x}..{ADDRESSES - 1:#x}"]


class ModelWorker(Worker):
    """The worker under qemu, whose `measure` says what the model does: the same each time."""

    is_exact = True

    def __init__(self, build: Build, model_cpu: str | None, plain: Callable[[Cell, str], pathlib.Path | None]):
        """`plain` compiles a cell's kernel of a kernel layout without parameters. Without a CPU, instructions count."""
        self.folder = tempfile.TemporaryDirectory(prefix="hbn-tune-")
        self.log = pathlib.Path(self.folder.name) / "log"
        self.build, self.plain = build, plain
        self.processor = cycles.arm64(model_cpu) if model_cpu else None
        self.known: dict[tuple[Any, ...], float] = {}
        qemu, *others = build.worker
        log = ["-d", "exec,nochain", "-dfilter", ",".join(gaps(build.code)), "-D", str(self.log)]
        super().__init__([qemu, *log, *others])

    def close(self) -> None:
        """Ends the program, and removes its log."""
        super().close()
        self.folder.cleanup()

    def _start(self) -> None:
        super()._start()
        code = self._ask("machine", 60)["code"][: len(self.build.code)]
        if code != self.build.code:
            raise UserError(f"{self.command[0]} puts programs elsewhere each time they run: {code}, {self.build.code}")
        # What is kept and shown of times is the model's, too.
        self.about |= {"bound": False}

    def use(self, cell: Cell, for_times_alone: bool = False) -> dict[str, Any]:
        """As by time; `default_seconds` are the model's."""
        about = super().use(cell, for_times_alone)
        if "error" not in about:
            about["default_seconds"] = self.cost(Contestant(0, DEFAULT, None)) * UNIT
        return about

    def measure(self, seconds: float, contestants: list[Contestant], others: Iterable[str] = ()) -> dict[str, Any]:
        """One ratio for each contestant."""
        costs = {contestant.text(): self.cost(contestant) for contestant in contestants}
        default = self.cost(Contestant(0, DEFAULT, None))
        answer: dict[str, Any] = {"ratios": {text: [default / cost] for text, cost in costs.items()}}
        for text, cost in {"default": default, **costs}.items():
            answer[text] = {"fastest": cost * UNIT, "median": cost * UNIT}
        return answer

    def cost(self, contestant: Contestant) -> float:
        """Cycles or instructions of a call.

        Where the engine takes another kernel layout than the contestant's, they are of the kernel without parameters:
        at other shapes of a class it may.
        """
        cell = self.cell
        assert cell
        layout = self._layout(contestant.settings())
        kernel = contestant
        if not contestant.path or contestant.candidate.kernel_layout != layout:
            number = PLAIN + tables.kernel_layouts().index(layout)
            kernel = Contestant(number, Candidate(layout), self.plain(cell, layout))
        key = (cell, kernel.path, *contestant.settings())
        if key not in self.known:
            self.known[key] = self._cost(kernel, contestant.settings())
        return self.known[key]

    def _layout(self, settings: list[str]) -> str:
        """Of the kernel that the engine takes."""
        answer = self.ask(" ".join(["view", *settings]))
        if "error" in answer:
            raise Crash(answer["error"])
        return str(answer["view"]["layout"])

    def _cost(self, kernel: Contestant, settings: list[str]) -> float:
        if not kernel.path:
            raise Crash(f"the kernel of {kernel.candidate.kernel_layout} without parameters does not compile")
        loaded = self.load(kernel)
        if "error" in loaded:
            raise Crash(loaded["error"])
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.log, 0)  # of what was checked
        answer = self.ask(" ".join(["call", str(kernel.number), *settings]))
        if not answer.get("used"):
            raise Crash(answer.get("error") or f"the engine took {answer['kernel_layout']}")
        try:
            return self._cost_of_log(kernel.path, loaded["base"])
        except SystemExit as failed:  # a tool that says why
            raise Crash(str(failed)) from failed

    def _cost_of_log(self, library: pathlib.Path, base: int) -> float:
        listing = cycles.disassemble(library, tools=self.build.objdump.removesuffix("objdump"), offset=base)
        blocks = cycles.blocks_of(listing, cycles.counts_of(self._logged(), listing, singlestep=False))
        if not blocks:
            raise Crash("qemu logged nothing of the kernel")
        return cycles.cycles(blocks, self.processor) if self.processor else cycles.executed(blocks)

    def _logged(self) -> str:
        # qemu goes on where it was, and so leaves a hole in place of what was cut off.
        with self.log.open("rb") as file:
            try:
                begin = os.lseek(file.fileno(), 0, os.SEEK_DATA)
            except OSError:  # there is nothing
                return ""
            return os.pread(file.fileno(), self.log.stat().st_size - begin, begin).lstrip(b"\0").decode()
