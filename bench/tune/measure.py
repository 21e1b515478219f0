"""Talks to tune_worker, the program that checks and times candidates: a line to it, a line of JSON back."""

import base64
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
from .compile import SYMBOL, end_group
from .spaces import Candidate
from .tables import UserError

START_PATIENCE = 600
"""Seconds that the worker may take to start and to make a cell, of a large shape on a slow device."""
PATIENCE = 30
"""Seconds that it may take for any other answer, and a few times what the cell took it, beyond what it is asked to
measure for."""

VARIABLE = "HBN_TUNE_MEASURE_WITH"


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

    is_exact = False
    """Whether it says the same each time: to measure once is enough then, and with one number of threads."""

    def __init__(self, command: list[str]):
        """Starts nothing yet."""
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.cell: Cell | None = None
        self.for_times_alone = False
        self.about: dict[str, Any] = {}
        self.cell_seconds = 0.0  # that it took for the cell
        self.loaded: dict[int, dict[str, Any]] = {}  # the answers to candidates
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
        try:
            return self._ask(line, max(PATIENCE, 5 * self.cell_seconds) + 4 * seconds)
        except Crash as crash:
            try:
                self._start()  # else it was not the line that ended it
            except Crash as again:
                command = shlex.join(self.command)
                raise UserError(
                    f"{command}: {crash}, then, started again: {again}; the same command goes on"
                ) from crash
            raise

    def load(self, contestant: Contestant) -> dict[str, Any]:
        """Makes the contestant's kernel known; {"error": ...} where that fails."""
        if not self.process:
            self._start()
        if not contestant.path:
            return {}
        if contestant.number in self.loaded:
            return self.loaded[contestant.number]
        cell = self.cell
        assert cell
        # Within the line: of what the worker runs on, there may be nothing here but this pipe.
        library = base64.b64encode(contestant.path.read_bytes()).decode()
        answer = self.ask(
            f"candidate {contestant.number} {SYMBOL} {cell.kernel} {cell.dtype} {contestant.candidate.kernel_layout} "
            f"{library}"
        )
        if "error" not in answer:
            self.loaded[contestant.number] = answer
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
            end_group(self.process)
        self.process = None

    def close(self) -> None:
        """Ends the program for good."""
        self.stop()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdin
        os.set_blocking(self.process.stdin.fileno(), False)
        self.loaded, self.text = {}, b""
        if self.cell:
            begin = time.monotonic()
            self.about = self._ask(self.cell.request(self.for_times_alone), START_PATIENCE)
            self.cell_seconds = time.monotonic() - begin

    def _ask(self, line: str, seconds: float) -> dict[str, Any]:
        process = self.process
        assert process and process.stdin and process.stdout  # pipes
        left, answers = memoryview(line.encode() + b"\n"), process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self.text:
            writing = [process.stdin] if left else []
            readable, writable, _ = select.select([answers], writing, [], max(0, deadline - time.monotonic()))
            if writable:
                try:
                    left = left[os.write(process.stdin.fileno(), left) :]
                except BrokenPipeError:  # what ended it is found when its answer is read
                    left = left[:0]
            if readable:
                if not (read := os.read(answers, 1 << 16)):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1)  # for its status
                    self.stop()
                    raise Crash(f"the worker ended with {process.returncode}")
                self.text += read
            elif not writable:
                self.stop()
                raise Crash(f"no answer in {seconds:.0f} s")
        answer, self.text = self.text.split(b"\n", 1)
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError):
            self.stop()
            raise Crash(f"the worker said '{answer.decode(errors='replace')[:200]}'") from None


def what_is_wrong(answer: dict[str, Any]) -> str | None:
    """By the answer to a check; None where results are right."""
    if "error" in answer:
        return str(answer["error"])
    return None if answer["ok"] else f"wrong results: {answer.get('why') or answer.get('worst')}"


class Alone:
    """Holds other programs off while something is measured, on machines where a command can do so.

    The variable names it: it runs the command that it is given alone. `waited` is how long that took, in all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Without the variable it does nothing."""
        self.prefix, self.clock, self.waited = shlex.split(os.environ.get(VARIABLE, "")), clock, 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it, the machine is ours."""
        if not self.prefix:
            yield
            return
        begin = self.clock()
        command = [*self.prefix, "sh", "-c", "echo; read line"]
        try:
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise UserError(f"{VARIABLE}: {self.prefix[0]}: {error.strerror}") from error
        assert holder.stdout
        if not holder.stdout.readline():
            holder.communicate()
            raise UserError(f"{VARIABLE}: '{shlex.join(self.prefix)}' does not run the command that it is given")
        self.waited += self.clock() - begin
        try:
            yield
        finally:
            holder.communicate()
