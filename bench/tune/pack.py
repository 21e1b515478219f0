"""The command `hbn-tune pack`: schedule parameters of a pack, for the least code or for the fewest cycles.

Nothing is timed: bytes are those that `make pack` reports, cycles those of bench/cycles.py. A candidate counts when
tests/pack/pack_test.c, which compares with double arithmetic, passes with it. That and the cycles are of tensors of the
pack's planes, but of fewer samples and channels, so that it takes seconds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from . import tables
from .spaces import Candidate, Choice, Space, make_space

ROOT = tables.ROOT
sys.path.insert(0, str(ROOT / "tests" / "pack"))
import cycles  # noqa: E402
import packs  # noqa: E402
from conformance import Program  # noqa: E402
from packs.parameters import allowed  # noqa: E402
from packs.programs import BOARDS, emulator  # noqa: E402
from packs.request import DTYPES, Request  # noqa: E402

AIMS = ["size", "cycles"]
# In place of targets whose programs can't be run here: the same kernels on an operating system.
STAND_INS = {"baremetal-arm64": "linux-arm64", "android-arm64": "linux-arm64"}
ARM64 = cycles.arm64("cortex-a53")
# What cycles are of, by the program's target, unless --cpu says another. Of others there is no model; a Cortex-M4's
# doubles are computed in libgcc.
PROCESSORS = {
    "linux-arm64": ARM64,
    "linux-arm64-fp16": ARM64._replace(name="cortex-a55"),
    "linux-armv7": cycles.Processor("cortex-a57", "armv7a-linux-gnueabihf", "+neon"),
    "baremetal-cortex-m7": cycles.Processor("cortex-m7", "thumbv7em-none-eabihf"),
}

ELEMENTS = 32768  # about so many are computed with
FREE_SIZES = (2, 8, 32, 48)  # in place of those that only the call will know
TEXT_WEIGHT = 0.05  # twice the text is worth 3.5 % fewer cycles
HARMLESS = 0.005  # a setting that gains no more than this is left out
TRIALS = 60  # of a function
PATIENCE = 25  # trials without a better one


class Figures(NamedTuple):
    """Of a function's kernel."""

    text: int
    stack: int
    cycles: float | None  # an element; None where there is no model, or nobody needs to know


class Wrong(Exception):
    """A candidate that can't be made or computes something else; its text says what."""


@dataclasses.dataclass
class Result:
    """What a search knows of a function."""

    function: str
    figures: dict[Candidate, Figures] = dataclasses.field(default_factory=dict)
    failed: dict[Candidate, str] = dataclasses.field(default_factory=dict)
    best: Candidate | None = None

    def default(self) -> Figures | None:
        """The default's figures."""
        return next((figures for candidate, figures in self.figures.items() if not candidate.parameters), None)

    def found(self) -> Figures | None:
        """The best one's figures."""
        return self.figures[self.best] if self.best else None

    def settings(self) -> str:
        """Of the best, as PARAMETERS takes them; nothing where that is the default."""
        parameters = self.best.parameters if self.best else ()
        values = ",".join(f"{name}={value}" for name, value in parameters)
        return f"{self.function}:{values}" if values else ""


@dataclasses.dataclass
class Setting:
    """A pack, and what it is tuned for and with."""

    request: Request
    aim: str
    processor: cycles.Processor | None
    generators: str
    halide_include: str
    folder: pathlib.Path
    trials: int = TRIALS
    seed: int = 1
    jobs: int = 1
    show: Callable[[str], None] = lambda text: None
    is_time: Callable[[], bool] = lambda: True

    def stand_in(self) -> str:
        """The target of programs that are run."""
        return STAND_INS.get(self.request.target_name, self.request.target_name)

    def make(self, folder: pathlib.Path, ops: str, parameters: str, **changed: Any) -> dict[str, packs.Size]:
        """A pack of some functions; `changed` are what it has otherwise than the pack."""
        r = self.request
        same = {"target": r.target_name, "dtype": r.dtype, "layout": r.layout, "shape": r.shape, "threads": r.threads}
        return packs.make(
            **same | changed, ops=ops, parameters=parameters, out=folder, generators=self.generators,
            halide_include=self.halide_include,
        )  # fmt: skip


def call_sizes(request: Request) -> tuple[int, int, int, int]:
    """The sizes of tensors that functions are called with: the pack's planes, but fewer channels and samples."""
    n, c, h, w = (size or free for size, free in zip(request.sizes(), FREE_SIZES, strict=True))
    planes = max(ELEMENTS // (h * w), 1)
    if request.layout == "nhwc":  # channels come in vectors
        c = min(c, max(planes, 32))
        return max(min(n, planes // c), 1), c, h, w
    n = min(n, planes)
    return n, max(min(c, planes // n), 1), h, w


class Measurer:
    """Makes packs of one function each and finds out their figures."""

    def __init__(self, setting: Setting, function: str):
        """Starts nothing yet."""
        self.setting, self.function = setting, function
        self.sizes = call_sizes(setting.request)
        shape = zip(self.sizes, setting.request.sizes(), strict=True)
        self.shape = ",".join(str(size) if fixed else "" for size, fixed in shape)
        self.known: dict[str, Figures] = {}  # by what is in the library
        self.lock = threading.Lock()
        self.least_text = sys.maxsize

    def measure(self, candidate: Candidate) -> Figures:
        """Of a candidate; Wrong where it is none."""
        try:
            with tempfile.TemporaryDirectory(dir=self.setting.folder) as folder:
                return self._measure(candidate, pathlib.Path(folder))
        except SystemExit as failure:
            lines = str(failure.code).strip().splitlines()
            raise Wrong(next((line for line in lines if "rror: " in line), lines[-1])) from failure

    def _measure(self, candidate: Candidate, folder: pathlib.Path) -> Figures:
        settings = ",".join(f"{name}={value}" for name, value in candidate.parameters)
        parameters = f"{self.function}:{settings}" if settings else ""
        size = self.setting.make(folder / "pack", self.function, parameters)[self.function]
        library = hashlib.sha256((folder / "pack" / "libhbn.a").read_bytes()).hexdigest()
        with self.lock:
            if library in self.known:
                return self.known[library]
        figures = Figures(size.text, size.stack, None)
        # What is larger than what was found needs no test where just bytes count.
        if self.setting.aim == "cycles" or size.text <= self.least_text:
            figures = figures._replace(cycles=self._test(folder, parameters))
        with self.lock:
            self.known[library] = figures
            self.least_text = min(self.least_text, size.text)
        return figures

    def _test(self, folder: pathlib.Path, parameters: str) -> float | None:
        """Compares results, and returns the cycles of an element where there is a model."""
        target, request = self.setting.stand_in(), self.setting.request
        ops = self.function
        if self.function.startswith("backward"):  # which is given what the forward function saves
            ops = f"{self.function.replace('backward', 'forward_training')},{ops}"
        calls = folder / "calls"
        self.setting.make(calls, ops, parameters, target=target, shape=self.shape)
        program = Program(
            calls, calls / "libhbn.a", target, request.dtype, request.layout, self.sizes, fixed=all(request.sizes()),
            hook=request.parallel(), large=target in BOARDS,
        )  # fmt: skip
        if problem := program.build() or program.run():
            raise Wrong(f"wrong results: {problem.strip().splitlines()[0]}")
        processor = self.setting.processor
        return self._cycles(program._replace(only_calls=True), processor) if processor else None

    def _cycles(self, program: Program, processor: cycles.Processor) -> float:
        if problem := program.build():
            raise Wrong(problem)
        tools = packs.TARGETS[program.target].tools
        symbols = packs.run(tools + "nm", program.library)
        member = symbols.partition(f"\n{self.function}.kernel.o:\n")[2].partition("\n\n")[0]
        names = [re.escape(name) for name in re.findall(r" [TtWw] ([^$]\S*)$", member, re.M)]
        listing = cycles.disassemble(program.path(), "|".join(names), tools)
        log = program.folder / "log"
        first, *others = emulator(program.target)
        packs.run(first, *cycles.log_options(listing, log, singlestep=False), *others, program.path())
        blocks = cycles.blocks_of(listing, cycles.counts_of(log.read_text(), listing, singlestep=False))
        n, c, h, w = self.sizes
        return cycles.cycles(blocks, processor) / (n * c * h * w)


class Search:
    """One function's search."""

    def __init__(self, setting: Setting, function: str):
        """Makes the space of candidates, in which the generator names what has an effect."""
        self.setting, self.function = setting, function
        self.measurer = Measurer(setting, function)
        self.result = Result(function)
        self.space = self._space()
        self.choices = self.space.layouts[setting.request.layout]
        self.turn = 0  # of these
        self.trials = setting.trials
        self.most = 0.0  # of values
        self.last_gain = 0  # how many were tried when the last better one came
        self.pool = concurrent.futures.ThreadPoolExecutor(setting.jobs)

    def _space(self) -> Space:
        request = self.setting.request
        layout, target = request.layout, request.target()
        values = allowed(target, layout)
        everything = " ".join(f"{name}={each[0]}" for name, each in values.items())
        with tempfile.TemporaryDirectory(dir=self.setting.folder) as folder:
            one = request._replace(ops=self.function, parameters=everything)
            compiler = packs.Compiler(one, pathlib.Path(folder), self.setting.generators, self.setting.halide_include)
            compiler.kernel(packs.FUNCTIONS[self.function])
        parameters = [
            tables.Parameter(name, [target.family()], [layout], [0, *each])
            for name, each in values.items()
            if name in compiler.schedule.used
        ]
        return make_space([layout], layout, parameters, [])

    def value(self, figures: Figures) -> float:
        """What is searched for the most of: 1 is the default's."""
        default = self.result.default()
        assert default
        text = default.text / figures.text
        fewer = default.cycles / figures.cycles if default.cycles and figures.cycles else 1.0
        if self.setting.aim == "size":
            return text + 1e-6 * fewer
        return fewer * min(text, 1.0) ** TEXT_WEIGHT

    def run(self) -> None:
        """Searches until the space, the trials, the patience or the time ends."""
        from .search import make_study

        self.study = make_study(self.setting.seed)
        default = self.space.plain()[0]
        try:
            self._measure([default])
            if default in self.result.failed:
                raise SystemExit(f"{self.function}: {self.result.failed[default]}")
            self._measure(self.space.neighbours(default))
            self.choices.sort(key=self._gain, reverse=True)
            while (batch := self._propose()) and self.setting.is_time():
                self._measure(batch)
            simpler = self._simpler() if self.setting.is_time() else []
            self.trials += len(simpler)
            self._measure(simpler)
        finally:
            self.pool.shutdown(cancel_futures=True)

    def _count(self) -> int:
        return len(self.result.figures) + len(self.result.failed)

    def _tried(self, candidate: Candidate) -> bool:
        return candidate in self.result.figures or candidate in self.result.failed

    def _measure(self, candidates: list[Candidate]) -> None:
        """Those that were not tried, several at once, as long as trials are left."""
        left = self.trials - self._count()
        new = [candidate for candidate in dict.fromkeys(candidates) if not self._tried(candidate)][:left]
        futures = {candidate: self.pool.submit(self.measurer.measure, candidate) for candidate in new}
        for candidate, future in futures.items():
            if self.result.default() and not self.setting.is_time() and future.cancel():
                continue
            try:
                self.result.figures[candidate] = future.result()
            except Wrong as wrong:
                self.result.failed[candidate] = str(wrong)
            self._tell(candidate)
            self._choose()
            self._show()

    def _tell(self, candidate: Candidate) -> None:
        import optuna

        self.study.enqueue_trial(self.space.params(candidate))
        trial = self.study.ask()
        self.space.suggest(trial)
        if candidate in self.result.figures:
            self.study.tell(trial, self.value(self.result.figures[candidate]))
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _choose(self) -> None:
        """The best, or a simpler one that is about as good."""
        figures = {c: f for c, f in self.result.figures.items() if self.setting.processor is None or f.cycles}
        if not figures:
            return
        best = max(figures.values(), key=self.value)
        if self.value(best) > self.most:
            self.most, self.last_gain = self.value(best), self._count()
        if self.setting.aim == "size":
            most = (best.cycles or 0) * (1 + HARMLESS)
            close = [c for c, f in figures.items() if f.text == best.text and (f.cycles or 0) <= most]
        else:
            close = [c for c, f in figures.items() if self.value(f) >= self.value(best) * (1 - HARMLESS)]
        self.result.best = min(close, key=lambda c: (len(c.parameters), figures[c].text, -self.value(figures[c])))

    def _gain(self, choice: Choice) -> float:
        """What the default gains most by this choice alone."""
        figures = self.result.figures.items()
        return max(
            (self.value(f) for c, f in figures if [name for name, _ in c.parameters] == [choice.name]), default=0
        )

    def _show(self) -> None:
        best, default = self.result.found(), self.result.default()
        tried = f"{self._count()} of {self.space.size()} tried"
        if best and default:
            tried += f", best {best.text} bytes of {default.text}"
            if best.cycles and default.cycles:
                tried += f", {best.cycles:.2f} cycles of {default.cycles:.2f}"
        self.setting.show(tried)

    def _propose(self) -> list[Candidate]:
        """Some that were not tried; none where there are enough.

        From the best all values of one choice, and of the next where none of them is better; then Optuna's.
        """
        tried = self._count()
        if tried >= self.trials or tried >= self.last_gain + PATIENCE:
            return []
        best = self.result.best or self.space.plain()[0]
        for _ in range(len(self.choices)):
            choice = self.choices[self.turn % len(self.choices)]
            self.turn += 1
            others = tuple(s for s in best.parameters if s[0] != choice.name)
            values = [((choice.name, value),) if value else () for value in choice.values]
            line = [best._replace(parameters=tuple(sorted(others + value))) for value in values]
            if found := [candidate for candidate in line if not self._tried(candidate)]:
                return found
        found = []
        for _ in range(50):  # tries: what was tried is proposed again
            trial = self.study.ask()
            candidate = self.space.suggest(trial)
            self._forget(trial)
            if not self._tried(candidate) and candidate not in found:
                found.append(candidate)
            if len(found) == 2 * self.setting.jobs:
                return found
        return found or [c for c in self.space.everything() if not self._tried(c)][:1]

    def _forget(self, trial: Any) -> None:
        import optuna

        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _simpler(self) -> list[Candidate]:
        """The best with one of its settings left out, where that was not tried."""
        best = self.result.best or Candidate(self.setting.request.layout)
        without = [best._replace(parameters=tuple(s for s in best.parameters if s != left)) for left in best.parameters]
        return [candidate for candidate in without if not self._tried(candidate)]


# ---- the command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="hbn-tune pack", description=__doc__)
    what = top.add_argument_group("the pack, as in `make pack`")
    what.add_argument("--target", choices=[name for name in packs.TARGETS if name != "portable"], required=True)
    what.add_argument("--ops", default="forward_inference", metavar="NAMES", help="separated by commas")
    what.add_argument("--dtype", choices=DTYPES, default="float32")
    what.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw")
    what.add_argument("--shape", default="", metavar="N,C,H,W", help="leave out what only the call will know")
    what.add_argument("--threads", choices=("none", "hook"), default="none")
    how = top.add_argument_group("how")
    how.add_argument("--for", dest="aim", choices=AIMS, default="size", help="the least code (the default), or cycles")
    how.add_argument("--cpu", metavar="NAME", help="as llvm-mca names it (default: of the target, as cortex-a53)")
    how.add_argument("--time-budget", type=float, default=300, metavar="SECONDS", help="for everything (default: 300)")
    how.add_argument("--trials", type=int, default=TRIALS, metavar="N", help=f"of each operation (default: {TRIALS})")
    how.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="at once (default: all processors)"
    )
    how.add_argument("--seed", type=int, default=1, metavar="N", help="of the search (default: 1)")
    files = top.add_argument_group("files")
    files.add_argument("--generators", default=str(ROOT / "build/x86/hbn_generators"), help="default: build/x86's")
    files.add_argument("--halide-include", help="default: that of the Python package halide")
    return top


def processor_of(target: str, name: str | None, aim: str) -> cycles.Processor | None:
    """What cycles are counted of; exits where there is no model."""
    processor = PROCESSORS.get(STAND_INS.get(target, target))
    if processor is None:
        if aim == "cycles" or name:
            known = ", ".join([*PROCESSORS, *STAND_INS])
            sys.exit(f"there are no cycles for TARGET={target}, only for {known}: --for size is for all")
        return None
    processor = processor._replace(name=name or processor.name)
    cycles.check(processor)
    return processor


def halide_include() -> str:
    """Of the package halide."""
    package = importlib.util.find_spec("halide")
    if not package or not package.submodule_search_locations:
        sys.exit(
            "the Python package halide is missing: `make tune-pack` has it, or name its headers by --halide-include"
        )
    return str(pathlib.Path(next(iter(package.submodule_search_locations))) / "include")


def search_all(setting: Setting, say: Callable[[str], None] = lambda text: None) -> tuple[list[Result], bool]:
    """Searches a pack's functions, one after the other. Returns what is known, and whether it was stopped."""
    results: list[Result] = []
    try:
        for function in setting.request.functions():
            if function.operation.has_tensors() and setting.is_time():
                say(function.name())
                search = Search(setting, function.name())
                results.append(search.result)
                search.run()
    except KeyboardInterrupt:
        return results, True
    return results, False


def table(results: list[Result]) -> list[str]:
    """The figures, a line for each function."""
    lines = [["operation", "text", "best", "ratio", "cycles", "best", "ratio", "tried", "parameters"]]
    for result in results:
        default, best = result.default(), result.found()
        if not default or not best:
            continue
        numbers = ["", "", ""]
        if default.cycles and best.cycles:
            numbers = [f"{default.cycles:.2f}", f"{best.cycles:.2f}", f"{default.cycles / best.cycles:.3f}"]
        settings = result.settings().partition(":")[2].replace(",", " ") or "the default"
        tried = str(len(result.figures) + len(result.failed))
        text = [str(default.text), str(best.text), f"{default.text / best.text:.3f}"]
        lines.append([result.function, *text, *numbers, tried, settings])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:-1], widths[1:], strict=True)), line[-1]]
        )
        for line in lines
    ]


def main(arguments: list[str]) -> int:
    """Runs the command."""
    from .progress import Progress

    options = parser().parse_args(arguments)
    request = Request(options.target, options.ops, options.dtype, options.layout, options.shape, options.threads)
    request.check()
    if not pathlib.Path(options.generators).exists():
        sys.exit(f"there is no {options.generators}: `make tune-pack` builds it, or name another by --generators")
    for program in emulator(STAND_INS.get(options.target, options.target))[:1]:
        if not shutil.which(program):
            sys.exit(f"{program} is missing: sudo apt-get install qemu-user qemu-system-arm")
    processor = processor_of(options.target, options.cpu, options.aim)
    progress = Progress(options.time_budget)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            request, options.aim, processor, options.generators, options.halide_include or halide_include(),
            pathlib.Path(folder), max(options.trials, 1), options.seed, max(options.jobs, 1), progress.show,
            lambda: progress.used() < options.time_budget,
        )  # fmt: skip
        try:
            results, stopped = search_all(setting, progress.head)
        finally:
            progress.close()
    what = "bytes of text, cycles an element" + (f" of {processor.name}" if processor else ": there is no model")
    print(f"\nFor {options.aim}; {what}; ratios: the default's / the best's")
    print("\n".join(table(results)))
    for result in results:
        for why in dict.fromkeys(result.failed.values()):
            print(f"{result.function}: left out: {why}")
    settings = " ".join(found for result in results if (found := result.settings()))
    print(f"\n    {request._replace(parameters=settings).command()}")
    if stopped or not setting.is_time():
        print("\nStopped early: another run may find more")
    return 130 if stopped else 0
