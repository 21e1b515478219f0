"""Compiles candidates' kernels, several at once, each by the generators and a linker in processes of their own.

What was compiled once is found again in the folder, by the text of its command and the generators' contents.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import tables
from .build import Build
from .spaces import Candidate

SYMBOL = "hbn_candidate"
"""Of every kernel: equal kernels are then equal files."""
SECONDS = 60
"""That one may take."""
LEFT_BEHIND = 24 * 3600
"""Seconds after which nobody can be at work on what was begun, however long it waited for its turn."""


class Kernel(NamedTuple):
    """A compiled kernel, or why it could not be compiled."""

    path: pathlib.Path | None
    code: str  # the same for the same instructions
    why: str = ""
    seconds: float = 0


class Compiler:
    """A pool of processes."""

    def __init__(self, build: Build, folder: pathlib.Path, jobs: int):
        """`folder` keeps what is compiled."""
        self.build, self.folder = build, folder
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob("part-*"):  # of a tuner that was killed, or of one that works beside this one
            with contextlib.suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > LEFT_BEHIND:
                    shutil.rmtree(part, ignore_errors=True)
        self.pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self.rows = tables.kernels()
        # For machines that are shared: a command that waits for its turn.
        self.prefix = shlex.split(os.environ.get("HBN_TUNE_COMPILE_WITH", ""))
        self.running: dict[str, concurrent.futures.Future[Kernel]] = {}

    def command(self, kernel: str, dtype: str, candidate: Candidate) -> list[str]:
        """What the generators are told, but where to write."""
        row, halide_target = self.rows[kernel], self.build.halide_targets[self.build.instruction_set]
        settings = [f"{name}={value}" for name, value in candidate.parameters]
        return [
            "-g", row["generator"], "-f", SYMBOL, "-e", "object", f"target={halide_target}", f"dtype={dtype}",
            f"layout={candidate.kernel_layout}", *shlex.split(row["parameters"]),
            *settings,
        ]  # fmt: skip

    def start(self, kernel: str, dtype: str, candidate: Candidate) -> concurrent.futures.Future[Kernel]:
        """Compiles it in the background, unless that was done or is under way."""
        command = self.command(kernel, dtype, candidate)
        key = " ".join(command)
        if key not in self.running:
            self.running[key] = self.pool.submit(self.compile, command)
        return self.running[key]

    def compile(self, command: list[str], seconds: float = SECONDS) -> Kernel:
        """Compiles what the generators are told, unless that was done. Each of the two steps may take so long."""
        name = hashlib.sha256(" ".join([self.build.fingerprint, *command]).encode()).hexdigest()[:20]
        library, code = self.folder / f"{name}.so", self.folder / f"{name}.code"
        if code.exists() and library.exists():
            return Kernel(library, code.read_text())
        begin = time.monotonic()
        try:
            # In a folder of its own: what a tuner that was killed had started may still be at work.
            with tempfile.TemporaryDirectory(prefix="part-", dir=self.folder) as part:
                made, linked = pathlib.Path(part) / f"{SYMBOL}.o", pathlib.Path(part) / f"{SYMBOL}.so"
                run_alone([str(self.build.generators), "-n", SYMBOL, "-o", part, *command], seconds, self.prefix)
                linker = [self.build.compiler, "-shared", "-Wl,-Bsymbolic"]
                run_alone([*linker, "-o", str(linked), str(made)], seconds, self.prefix)
                digest = hashlib.sha256(made.read_bytes()).hexdigest()[:16]
                linked.replace(library)
                made.write_text(digest)
                made.replace(code)  # last: it says that the library is whole
        except subprocess.TimeoutExpired:
            return Kernel(None, "", f"took longer than {seconds} s to compile", time.monotonic() - begin)
        except (subprocess.CalledProcessError, OSError) as error:
            return Kernel(None, "", f"does not compile: {reason(error)}", time.monotonic() - begin)
        return Kernel(library, digest, "", time.monotonic() - begin)

    def finish(self) -> None:
        """Waits for what is under way, and starts nothing more."""
        self.pool.shutdown(cancel_futures=True)


def run_alone(command: list[str], seconds: float, prefix: Sequence[str] = ()) -> None:
    """Runs a command for so long at most, and ends all that it started if it takes longer.

    `prefix` is a command that it waits with for its turn, which takes no time of its own.
    """
    # The first line says that its turn has come. What it writes itself goes nowhere.
    begun = ["sh", "-c", 'echo; exec "$0" "$@" >/dev/null', *command]
    process = subprocess.Popen(
        [*prefix, *begun], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tuner: a candidate must not seem to fail for it
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end_group(process)
        raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kills a program that was started in a session of its own, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def reason(error: Any) -> str:
    """The last line of what a program said."""
    said = (getattr(error, "stderr", None) or "").strip()
    return said.splitlines()[-1][:500] if said else str(error)
