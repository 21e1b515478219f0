"""Talks to tune_worker, the program that checks and times candidates: a line to it, a line of JSON back."""

import contextlib
import json
import os
import pathlib
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .cells import Cell
from .spaces import Candidate

PATIENCE = 120
"""Seconds that the worker may take for an answer, beyond those that it is asked to measure for."""


class Crash(Exception):
    """The worker ended, or gave no answer; its text says how."""


class Contestant(NamedTuple):
    """A candidate as the worker knows it: by a number, where it has a kernel of its own."""

    number: int
    candidate: Candidate
    path: pathlib.Path | None

    def id(self) -> str:
        """Of its kernel, `-` for none."""
        return str(self.number) if self.path else "-"

    def settings(self) -> list[str]:
        """Its thresholds."""
        return [f"{name}={value}" for name, value in self.candidate.all_thresholds().items()]

    def text(self) -> str:
        """As `measure` reads it, and names it in its answer."""
        return ":".join([self.id(), *self.settings()])


class Worker:
    """The program, started when it is needed and again after a crash, and told of the cell and kernels again."""

    def __init__(self, command: list[str]):
        """Starts nothing yet."""
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.cell: Cell | None = None
        self.for_times_alone = False
        self.about: dict[str, Any] = {}
        self.loaded: set[int] = set()
        self.text = b""

    def use(self, cell: Cell, for_times_alone: bool = False) -> dict[str, Any]:
        """What follows is about this cell, in a fresh process. Returns what the worker says of it.

        `for_times_alone`: nothing will be checked, which saves most of the time.
        """
        self.cell, self.for_times_alone = cell, for_times_alone
        self.stop()
        self._start()
        return self.about

    def ask(self, line: str, seconds: float = 0) -> dict[str, Any]:
        """The answer to a line, in a running worker."""
        if not self.process:
            self._start()
        return self._ask(line, seconds)

    def load(self, contestant: Contestant) -> dict[str, Any]:
        """Makes the contestant's kernel known; {"error": ...} where that fails."""
        if not self.process:
            self._start()
        if not contestant.path or contestant.number in self.loaded:
            return {}
        cell = self.cell
        assert cell
        answer = self.ask(
            f"candidate {contestant.number} {contestant.path} hbn_candidate {cell.kernel} {cell.dtype} "
            f"{contestant.candidate.kernel_layout}"
        )
        if "error" not in answer:
            self.loaded.add(contestant.number)
        return answer

    def check(self, contestant: Contestant) -> dict[str, Any]:
        """Whether its results are right: {"ok": ...}, or {"error": ...}."""
        answer = self.load(contestant)
        return answer if "error" in answer else self.ask(" ".join(["check", contestant.id(), *contestant.settings()]))

    def measure(self, seconds: float, contestants: list[Contestant], others: Iterable[str] = ()) -> dict[str, Any]:
        """Times them beside the default, and beside `others`, which the worker has by name: the memory bound."""
        for contestant in contestants:
            self.load(contestant)
        names = [*dict.fromkeys(contestant.text() for contestant in contestants), *others]
        return self.ask(" ".join(["measure", f"{seconds:.3f}", *names]), seconds)

    def stop(self) -> None:
        """Ends the program."""
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.loaded, self.text = set(), b""
        if self.cell:
            self.about = self._ask(self.cell.request(self.for_times_alone))

    def _ask(self, line: str, seconds: float = 0) -> dict[str, Any]:
        process = self.process
        assert process and process.stdin and process.stdout  # pipes
        with contextlib.suppress(BrokenPipeError):  # what ended it is found when its answer is read
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
        deadline = time.monotonic() + PATIENCE + 3 * seconds
        while b"\n" not in self.text:
            ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
            read = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if not read:
                self.stop()
                status = process.returncode
                raise Crash(f"the worker ended with {status}" if ready else f"no answer in {PATIENCE} s")
            self.text += read
        answer, self.text = self.text.split(b"\n", 1)
        return json.loads(answer)


class Alone:
    """Holds other programs off while something is measured, on machines where a command can do so.

    HBN_TUNE_MEASURE_WITH names it: it runs the command that it is given alone. `waited` is how long that took, in all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Without the variable it does nothing."""
        self.prefix, self.clock, self.waited = shlex.split(os.environ.get("HBN_TUNE_MEASURE_WITH", "")), clock, 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it, the machine is ours."""
        if not self.prefix:
            yield
            return
        begin = self.clock()
        holder = subprocess.Popen(
            [*self.prefix, "sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout
        holder.stdout.readline()
        self.waited += self.clock() - begin
        try:
            yield
        finally:
            holder.communicate()
