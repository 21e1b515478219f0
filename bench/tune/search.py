"""Searches one cell.

Candidates are proposed by Optuna a batch at a time. While one batch compiles, the batch before it is checked against
the oracle; then, with nothing else running, it is timed beside the default: all of it for a short time, and what
Optuna's pruner doesn't give up for longer, beside the best so far. In the end the best are timed again in fresh
processes, and what counts is the worst of those measurements.
"""

import concurrent.futures
import dataclasses
import json
import math
import pathlib
import random
import re
import sqlite3
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import optuna

from . import classes, tables
from .build import Build
from .cells import Cell
from .compile import Compiler, Kernel
from .measure import Alone, Contestant, Crash, Worker, what_is_wrong
from .spaces import DEFAULT, Candidate, make_space
from .store import FINISHED, Store, candidate_of

optuna.logging.set_verbosity(optuna.logging.ERROR)

BATCH = 4
STARTUP_TRIALS = 10  # before the model guides
STEPS_FROM_BEST = (1, 1, 2, 3)
FEW_DUPLICATES = 5  # in a row that Optuna may propose before any untried candidate is taken
FEW_CANDIDATES = 10000  # which can be gone through
SHORT_SECONDS, LONG_SECONDS, FINAL_SECONDS = 0.12, 0.4, 0.3  # for each contestant
FINAL_PROCESSES, FINAL_REPEATS = 3, 2
FINALISTS = 3
SEARCH_SHARE = 0.75  # of the time or the trials before the best is simplified
HARMLESS = 0.003  # a setting that gains no more than this is left out
AS_DEFAULT = "the default"  # what a candidate may be the same as
LEAST_GAIN = 1.02  # of an entry
BOUNDS = ("bound", "bound:streaming")  # the worker's names of contestants that only move the bytes


@dataclasses.dataclass
class Pending:
    """A candidate on its way."""

    row: int
    candidate: Candidate
    trial: Any  # Optuna's
    kernel: "concurrent.futures.Future[Kernel] | None" = None
    contestant: Contestant | None = None


class Ranked(NamedTuple):
    """A candidate after the last measurements."""

    rank: float
    row: sqlite3.Row
    ratios: list[float]


@dataclasses.dataclass
class Setting:
    """What all searches of a run share."""

    store: Store
    build: Build
    compiler: Compiler
    worker: Worker
    alone: Alone
    show: Callable[[str], None]  # progress
    earlier: Callable[[Cell, str], list[Candidate]] = lambda cell, layout: []  # what the tuned file has for a cell
    seed: int = 1
    least_gain: float = LEAST_GAIN
    most_trials: int = sys.maxsize  # of a cell


def make_study(seed: int, sampler: Any = None) -> optuna.Study:
    """A study that maximizes ratios. It lives in memory: what it knows is told from the store."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
        sampler = sampler or optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True, constant_liar=True, seed=seed
        )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=BATCH)
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)


class Search:
    """One cell's search."""

    def __init__(self, cell: Cell, setting: Setting):
        """Finds what is known of it; runs nothing."""
        self.cell, self.setting, self.store = cell, setting, setting.store
        build = setting.build
        self.row = self.store.cell(cell, build.cpu, build.instruction_set, build.fingerprint)
        self.seen: set[str] = set()
        self.exhausted = False
        self.random = random.Random(f"{setting.seed} {self.row['id']}")
        self.views: dict[str, str | None] = {}
        self.setup_seconds = 0.0  # of a worker
        self.plain_code: dict[str, str] = {}  # of each layout's kernel without parameters

    # ---- what there is to search

    def prepare(self) -> None:
        """Tells the worker of the cell, and finds out what may be chosen."""
        worker = self.setting.worker
        begin = time.monotonic()
        about = worker.use(self.cell)
        self.setup_seconds = time.monotonic() - begin
        if "error" in about:
            raise Unfit(about["error"])
        checked = worker.check(Contestant(0, DEFAULT, None))
        if not checked.get("ok"):
            raise Unfit(f"the default fails its check: {checked.get('error') or checked}")
        default_layout = checked["kernel_layout"]
        layouts = [
            layout
            for layout in self.setting.build.kernel_layouts(self.cell.kernel, self.cell.dtype)
            if layout == default_layout or self._serves(layout)
        ]
        family = self.setting.build.family
        parameters = [p for p in tables.parameters() if family in p.families]
        self.space = make_space(layouts, default_layout, parameters, tables.thresholds(), self.view)
        self._keep_effective_parameters()
        self._leave_out_refused_values()
        self.store.update(
            "cells", self.row["id"], state="searching", why=None, space=self.space.size(), kernel_layout=default_layout,
            default_seconds=about.get("default_seconds"),
        )  # fmt: skip
        self.study = make_study(self.setting.seed)

    def _serves(self, layout: str) -> bool:
        try:
            answer = self.setting.worker.check(Contestant(0, Candidate(layout), None))
        except Crash:
            return False
        return bool(answer.get("ok")) and answer.get("kernel_layout") == layout

    def view(self, thresholds: dict[str, int | str]) -> str | None:
        """How the engine sees the cell's tensors by these thresholds, if the worker can tell."""
        line = " ".join(["view", *(f"{name}={value}" for name, value in thresholds.items())])
        if line not in self.views:
            answer = self.setting.worker.ask(line)
            self.views[line] = json.dumps(answer["view"], sort_keys=True) if "view" in answer else None
        return self.views[line]

    def _keep_effective_parameters(self) -> None:
        """Leaves out those that the kernel doesn't have: what sums is no choice of one that sums nothing."""
        compile_ = self.setting.compiler.start
        probes = {}
        for layout, choices in self.space.layouts.items():
            probes[layout, ""] = compile_(self.cell.kernel, self.cell.dtype, Candidate(layout))
            for choice in choices:
                if not choice.is_threshold:
                    candidate = Candidate(layout, (), ((choice.name, probe_value(choice.values)),))
                    probes[layout, choice.name] = compile_(self.cell.kernel, self.cell.dtype, candidate)
        for (layout, name), kernel in probes.items():
            self.setting.show("compiles each parameter's first value")
            if not name:
                self.plain_code[layout] = kernel.result().code
            elif not kernel.result().path:
                self.space.layouts[layout] = [c for c in self.space.layouts[layout] if c.name != name]

    def _leave_out_refused_values(self) -> None:
        """Leaves out values that are too few for the kernel: a dtype may allow fewer than the table has for all."""
        compile_ = self.setting.compiler.start
        probes = {}
        for layout, choices in self.space.layouts.items():
            least = sorted((c.name, min(value for value in c.values if value)) for c in choices if not c.is_threshold)
            probes[layout] = compile_(self.cell.kernel, self.cell.dtype, Candidate(layout, (), tuple(least)))
        for layout, kernel in probes.items():
            refused = re.search(r"(\w+)=\S+ .*: allowed are (\d+) to ", kernel.result().why)
            for i, choice in enumerate(self.space.layouts[layout]):
                if refused and choice.name == refused[1]:
                    values = tuple(value for value in choice.values if value == 0 or value >= int(refused[2]))
                    self.space.layouts[layout][i] = choice._replace(values=values)

    # ---- proposals

    def first_candidates(self) -> list[Candidate]:
        """What is tried before the model has anything to go by."""
        plain = self.space.plain()
        found = [*plain, *self.setting.earlier(self.cell, self.space.default_layout), *self._best_of_like_cells()]
        for layout_default in plain:
            choices = {c.name: c for c in self.space.layouts[layout_default.kernel_layout]}
            for candidate in self.space.neighbours(layout_default):
                settings = candidate.parameters
                if not settings or settings[0][1] == probe_value(choices[settings[0][0]].values):
                    found.append(candidate)
        return [c for c in dict.fromkeys(found) if self.space.positions(c) is not None]

    def _best_of_like_cells(self) -> list[Candidate]:
        """The best of other shapes."""
        rows = self.store.rows(
            "SELECT candidates.*, MAX(ratio) FROM candidates JOIN cells ON cells.id = cell WHERE candidates.state = "
            "'measured' AND kernel = ? AND dtype = ? AND layout = ? AND cpu = ? AND instruction_set = ? AND build = ? "
            "AND cells.id != ? GROUP BY cells.id",
            *(self.row[name] for name in ["kernel", "dtype", "layout", "cpu", "instruction_set", "build", "id"]),
        )
        return [candidate_of(row) for row in rows if row["ratio"] > 1]

    def _enqueue(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            if params := self.space.params(candidate):
                self.study.enqueue_trial(params)

    def recover(self) -> list[Pending]:
        """Takes up what earlier runs of the tuner know. Returns what they left unfinished."""
        rows = self.store.candidates(self.row["id"])
        self.seen = {row["key"] for row in rows}
        for row in rows:
            if row["state"] in FINISHED:
                self._enqueue([candidate_of(row)])
                self._tell(self._ask()[0], row)
        pending = []
        for row in rows:
            if row["state"] not in FINISHED:
                self._enqueue([candidate_of(row)])
                pending.append(Pending(row["id"], candidate_of(row), self._ask()[0]))
        self._enqueue([candidate for candidate in self.first_candidates() if candidate.key() not in self.seen])
        return pending

    def _ask(self) -> tuple[Any, Candidate]:
        trial = self.study.ask()
        return trial, self.space.suggest(trial)

    def propose(self, count: int) -> list[Pending]:
        """Up to so many candidates that were not tried."""
        proposed: list[Pending] = []
        duplicates = 0
        count = min(count, self.setting.most_trials - len(self.seen))
        while len(proposed) < count and not self.exhausted:
            if duplicates == FEW_DUPLICATES:
                self._enqueue(self._untried())
                duplicates = 0
            elif len(self.seen) % 2 and not self._has_waiting():
                # Every other candidate is near the best: models of few trials of many choices wander far.
                self._enqueue(self._near_best())
            trial, candidate = self._ask()
            row, is_new = self.store.add_candidate(self.row["id"], candidate)
            self.seen.add(candidate.key())
            if is_new:
                proposed.append(Pending(row["id"], candidate, trial))
                duplicates = 0
            else:
                duplicates += 1
                self._tell(trial, row)
        return proposed

    def _has_waiting(self) -> bool:
        return bool(self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))

    def _near_best(self) -> list[Candidate]:
        """One that was not tried, some steps from the best; none where chance finds none, or there is no best yet."""
        best = self.best()
        if not best:
            return []
        candidate = candidate_of(best)
        for _ in range(self.random.choice(STEPS_FROM_BEST)):
            candidate = self.random.choice(self.space.neighbours(candidate) or [candidate])
        return [candidate] if candidate.key() not in self.seen else []

    def _untried(self) -> list[Candidate]:
        """Any that was not tried; none where there is none left."""
        if self.space.size() > FEW_CANDIDATES:
            return [self.space.random(self.random)]
        untried = [candidate for candidate in self.space.everything() if candidate.key() not in self.seen]
        self.exhausted = not untried
        return [self.random.choice(untried)] if untried else []

    # ---- what becomes of a candidate

    def _tell(self, trial: Any, row: sqlite3.Row) -> None:
        """Tells Optuna what is known of a trial's candidate."""
        state = optuna.trial.TrialState
        if row["ratio"] is not None and row["state"] in ("measured", "same"):
            self.study.tell(trial, row["ratio"])
        elif row["state"] in FINISHED:
            if row["state"] == "failed":
                trial.report(0.0, 0)  # as slow as can be: Optuna stays away from the like
            self.study.tell(trial, state=state.PRUNED)
        else:
            self.study.tell(trial, state=state.FAIL)

    def finish(self, pending: Pending, state: str, **columns: Any) -> None:
        """Keeps what became of a candidate, here and in Optuna's study."""
        self.store.finish_candidate(pending.row, state, **columns)
        self._tell(pending.trial, self.store.candidate(pending.row))

    def compile(self, pending: Pending) -> None:
        """Starts compiling a candidate's kernel, if it has one of its own."""
        if pending.candidate.parameters:
            pending.kernel = self.setting.compiler.start(self.cell.kernel, self.cell.dtype, pending.candidate)

    def compiled(self, pending: Pending) -> bool:
        """Waits for the kernel. Whether the candidate is still worth a look."""
        kernel = pending.kernel.result() if pending.kernel else Kernel(None, "")
        if kernel.why:
            self.finish(pending, "failed", why=kernel.why, compile_seconds=kernel.seconds)
            return False
        own = bool(kernel.code) and kernel.code != self.plain_code[pending.candidate.kernel_layout]
        code, path = (kernel.code, kernel.path) if own else ("", None)
        pending.contestant = Contestant(pending.row, pending.candidate, path)
        effect = self.view(pending.candidate.all_thresholds()) or json.dumps(pending.candidate.all_thresholds())
        self.store.update(
            "candidates", pending.row, code=code, path=str(path or ""), effect=effect, compile_seconds=kernel.seconds
        )
        if not code and self.view(pending.candidate.all_thresholds()) == self.view({}) is not None:
            self.finish(pending, "same", why=AS_DEFAULT, ratio=1.0)
            return False
        for row in self.store.rows(
            "SELECT * FROM candidates WHERE cell = ? AND code = ? AND effect = ? AND kernel_layout = ? AND id < ? "
            "AND state IN ('measured', 'slow')",
            self.row["id"], code, effect, pending.candidate.kernel_layout, pending.row,
        ):  # fmt: skip
            self.finish(pending, "same", why=row["key"], ratio=row["ratio"], worst=row["worst"])
            return False
        return True

    def is_right(self, pending: Pending) -> bool:
        """Compares the candidate's results with the oracle's."""
        contestant, candidate = pending.contestant, pending.candidate
        assert contestant
        try:
            answer = self.setting.worker.check(contestant)
        except Crash as crash:
            answer = {"error": f"crashed: {crash}"}
        why = what_is_wrong(answer)
        if not why and answer["kernel_layout"] != candidate.kernel_layout:
            why = f"the engine took {answer['kernel_layout']}"
        elif not why and contestant.path and not answer["used"]:
            why = "its kernel was not used"
        if why is not None:
            self.finish(pending, "failed", why=why, worst=answer.get("worst"))
            return False
        self.store.update("candidates", pending.row, worst=answer.get("worst"))
        return True

    def best(self) -> sqlite3.Row | None:
        """The fastest so far, which may be the default."""
        rows = self.store.rows(
            "SELECT * FROM candidates WHERE cell = ? AND (state = 'measured' OR why = ?) ORDER BY ratio DESC LIMIT 1",
            self.row["id"], AS_DEFAULT,
        )  # fmt: skip
        return rows[0] if rows else None

    def measure(self, batch: list[Pending]) -> None:
        """Times candidates that passed their check."""
        if not batch:
            return
        with self.setting.alone():
            # What was timed before the tuner was killed is not timed again.
            timed = [pending for pending in batch if self.store.measurements(pending.row, "short")]
            batch = timed + self._time([p for p in batch if p not in timed], "short", SHORT_SECONDS)
            going_on = []
            for pending in batch:
                ratio = self._ratio(pending.row, "short")
                pending.trial.report(ratio, 0)
                if pending.trial.should_prune():
                    self.finish(pending, "slow", ratio=ratio)
                else:
                    going_on.append(pending)
            if not going_on:
                return
            best = self.best()
            rivals = [contestant_of(best)] if best and best["state"] == "measured" else []
            for pending in self._time(going_on, "long", LONG_SECONDS, rivals):
                self.finish(pending, "measured", ratio=self._ratio(pending.row, "long"))
            for rival in rivals:
                self.store.update("candidates", rival.number, ratio=self._ratio(rival.number, "long"))

    def _ratio(self, row: int, stage: str) -> float:
        return statistics.median(m["ratio"] for m in self.store.measurements(row, stage))

    def _time(
        self, batch: list[Pending], stage: str, seconds: float, rivals: list[Contestant] | None = None
    ) -> list[Pending]:
        """Times all of them beside each other, and keeps the times. Returns those that survived."""
        if not batch:
            return []
        contestants = [*(pending.contestant for pending in batch if pending.contestant), *(rivals or [])]
        try:
            answer = self.setting.worker.measure(seconds * (len(contestants) + 1), contestants)
            if "error" in answer:
                raise Crash(answer["error"])
        except Crash as crash:
            if len(batch) > 1 or rivals:  # find out whose fault it is
                return [survivor for pending in batch for survivor in self._time([pending], stage, seconds)]
            self.finish(batch[0], "failed", why=f"crashed while it was timed: {crash}")
            return []
        for contestant in contestants:
            if contestant.text() in answer["ratios"]:
                self.keep(answer, contestant, stage)
        survivors = []
        for pending in batch:
            text = pending.contestant.text() if pending.contestant else ""
            if text in answer.get("too_slow", {}):
                ratio = answer["default"]["median"] / answer["too_slow"][text]
                self.finish(pending, "slow", ratio=ratio, why="too slow to be timed more than once")
            else:
                survivors.append(pending)
        return survivors

    def keep(
        self, answer: dict[str, Any], contestant: Contestant, stage: str, process: int = 0, repeat: int = 0
    ) -> None:
        """Stores what one measurement says of a contestant."""
        ratios = answer["ratios"][contestant.text()]
        bounds = [1 / statistics.median(answer["ratios"][name]) for name in BOUNDS if name in answer["ratios"]]
        self.store.add_measurement(
            contestant.number, stage, process, repeat, seconds=answer[contestant.text()]["median"],
            default_seconds=answer["default"]["median"], ratio=statistics.median(ratios), rounds=len(ratios),
            bound=min(bounds, default=None),
        )  # fmt: skip

    # ---- the search

    def run(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Searches for so long, a batch at least; what is under way then is finished."""
        begin = last = clock()

        def is_time() -> bool:
            return not self.is_over() and (clock() - begin < seconds or not self.seen)

        started = self.recover()
        checking: list[Pending] = []
        while started or checking or is_time():
            for pending in started:
                self.compile(pending)
            right = [pending for pending in checking if self.is_right(pending)]
            checking = [pending for pending in started if self.compiled(pending)]
            self.measure(right)
            self.show()
            self.store.update("cells", self.row["id"], spent=self._spent() + clock() - last)
            last = clock()
            started = []
            if is_time():
                done = max((clock() - begin) / seconds if seconds > 0 else 1, len(self.seen) / self.setting.most_trials)
                if done >= SEARCH_SHARE and not self._has_waiting():
                    self._enqueue(self.simpler())
                started = self.propose(BATCH)

    def is_over(self) -> bool:
        """Whether no more candidates may be tried."""
        return self.exhausted or len(self.seen) >= self.setting.most_trials

    def simpler(self) -> list[Candidate]:
        """The best with each of its settings left out, and with all left out that gain nothing."""
        best = self.best()
        if not best:
            return []
        candidate, known = candidate_of(best), {row["key"]: row for row in self.store.candidates(self.row["id"])}
        found, harmless = [], candidate
        for is_threshold, settings in ((True, candidate.thresholds), (False, candidate.parameters)):
            for name, _ in settings:
                without = leave_out(candidate, name, is_threshold)
                row = known.get(without.key())
                if row is None:
                    found.append(without)
                elif row["ratio"] and row["ratio"] >= best["ratio"] - HARMLESS:
                    harmless = leave_out(harmless, name, is_threshold)
        return found + [harmless] if harmless.key() not in known else found

    def _spent(self) -> float:
        return self.store.cell_row(self.row["id"])["spent"]

    def show(self) -> None:
        """Tells how far it is."""
        best = self.best()
        text = f"best {best['ratio']:.3f} ({best['key']})" if best else "none measured"
        self.setting.show(f"{self.store.tried(self.row['id'])} of {self.space.size()} tried, {text}")

    # ---- the end

    def final_seconds(self) -> float:
        """About how long the last measurements will take: of that many processes, which read the cell anew; and of
        what was found at other shapes of its class."""
        worker, (processes, repeats) = self.setting.worker, self._final_times()
        contestants = repeats * (FINALISTS + 1) + len(BOUNDS)
        # Long calls take longer than what is asked for: there are some rounds at least, and calls before each turn.
        each = max(FINAL_SECONDS, 30 * worker.about.get("default_seconds", 0))
        elsewhere = classes.final_seconds(worker, self.setting.build, self.cell, self.setup_seconds)
        return processes * (0.5 * self.setup_seconds + each * contestants) + elsewhere

    def _final_times(self) -> tuple[int, int]:
        """In how many processes, and how often in each, the last measurements are made."""
        return (1, 1) if self.setting.worker.is_exact else (FINAL_PROCESSES, FINAL_REPEATS)

    def finals(self, rest: Callable[[], Callable[[], float]] = lambda: lambda: math.inf) -> None:
        """Times the best again in fresh processes, and keeps the one whose worst measurement is best.

        It must be no slower than the default with another number of threads, and is for the part of its class where
        it is not. What there is no time for is no part of that: `rest` starts a clock that tells how much is left.
        """
        chosen = self._finalists()
        if not chosen:
            self._keep_result(None)
            return
        worker, (processes, repeats) = self.setting.worker, self._final_times()
        for process in range(processes):
            worker.use(self.cell, for_times_alone=True)
            for repeat in range(repeats):
                left = [
                    row
                    for row in chosen
                    if not self.store.rows(
                        "SELECT id FROM measurements WHERE candidate = ? AND stage = 'final' AND process = ? "
                        "AND repeat = ?", row["id"], process, repeat,
                    )
                ]  # fmt: skip
                contestants = [contestant_of(row) for row in left]
                if not contestants:
                    continue
                self.setting.show(f"times the best {len(chosen)} again: {process + 1} of {processes}")
                with self.setting.alone():
                    try:
                        bounds = BOUNDS if worker.about.get("bound") and repeat == 0 else ()
                        seconds = FINAL_SECONDS * (len(left) + len(bounds) + 1)
                        answer = worker.measure(seconds, contestants, bounds)
                    except Crash as crash:
                        answer = {"error": str(crash)}
                slow = [
                    contestant.text() for contestant in contestants if contestant.text() in answer.get("too_slow", {})
                ]
                if slow or "error" in answer:
                    why = answer.get("error") or f"much slower than before: {', '.join(slow)}"
                    raise Unfit(f"the last measurements failed: {why}")
                for contestant in contestants:
                    self.keep(answer, contestant, "final", process, repeat)
        ranked = []
        for row in chosen:
            ratios = [m["ratio"] for m in self.store.measurements(row["id"], "final")]
            ranked.append(Ranked(min(ratios) - HARMLESS * settings_of(row), row, ratios))
        ranked.sort(key=lambda one: -one.rank)
        found = [self._found(one) for one in ranked if min(one.ratios) >= self.setting.least_gain]
        about, why, seconds_left = worker.about, "", rest()
        for result in found:
            held = classes.of_candidate(
                self.setting, self.row, self.cell, result, about, self.setup_seconds, seconds_left
            )
            if held.shapes:
                self._keep_result(result | held.to_result())
                return
            why = why or held.why
        self._keep_result(None, ranked[0], why)

    def _finalists(self) -> list[sqlite3.Row]:
        """Those that were chosen before the tuner was stopped, or the best now. Simple ones are preferred."""
        kept = self.store.cell_row(self.row["id"])["finalists"]
        if kept is not None:
            return [self.store.candidate(row) for row in json.loads(kept)]
        rows = [row for row in self.store.candidates(self.row["id"]) if row["state"] == "measured"]
        rows = [row for row in rows if row["ratio"] >= self.setting.least_gain and row["kernel_layout"]]
        rows.sort(key=lambda row: HARMLESS * settings_of(row) - row["ratio"])
        chosen = rows[:FINALISTS]
        self.store.update("cells", self.row["id"], state="final", finalists=json.dumps([row["id"] for row in chosen]))
        return chosen

    def _found(self, one: "Ranked") -> dict[str, Any]:
        """The result that it would be."""
        finals = self.store.measurements(one.row["id"], "final")
        candidate = self.smallest(candidate_of(one.row))
        result = {
            "candidate": one.row["id"], "ratio": min(one.ratios), "ratios": one.ratios,
            "default_seconds": statistics.median(m["default_seconds"] for m in finals),
            "seconds": statistics.median(m["seconds"] for m in finals),
            "kernel_layout": candidate.kernel_layout, "thresholds": self.needed_thresholds(candidate),
            "parameters": dict(candidate.parameters), "time": time.time(),
        }  # fmt: skip
        if bounds := [m["bound"] for m in finals if m["bound"]]:
            result["bound"] = statistics.median(bounds)
        return result

    def _keep_result(self, found: dict[str, Any] | None, best: "Ranked | None" = None, why: str = "") -> None:
        """`why`: what was found is not kept."""
        result: dict[str, Any] = found or {"candidate": None, "ratio": 1.0}
        result["measured_by"] = self.setting.build.measured_by
        if bound := result.get("bound"):
            self.store.update("cells", self.row["id"], bound_seconds=bound * result["default_seconds"])
        if best:
            result |= {"best": best.row["id"], "ratios": best.ratios}
        self.store.update("cells", self.row["id"], state="done", result=json.dumps(result), why=why or None)

    def smallest(self, candidate: Candidate) -> Candidate:
        """Without parameters that make no difference to the code."""
        start = self.setting.compiler.start
        code = start(self.cell.kernel, self.cell.dtype, candidate).result().code
        for name, _ in candidate.parameters:
            without = leave_out(candidate, name, False)
            if start(self.cell.kernel, self.cell.dtype, without).result().code == code:
                candidate = without
        return candidate

    def needed_thresholds(self, candidate: Candidate) -> dict[str, int | str]:
        """Without those that make no difference to how tensors are seen; with `layout` where that would be another."""
        needed = candidate.all_thresholds()
        effect = self.view(needed)
        if effect is None:
            return dict(candidate.thresholds) if candidate.kernel_layout == self.space.default_layout else needed
        for name in list(needed):
            without = {other: value for other, value in needed.items() if other != name}
            if self.view(without) == effect:
                needed = without
        return needed


class Unfit(Exception):
    """A cell that can't be tuned, and why."""


def probe_value(values: tuple[int, ...]) -> int:
    """Of a parameter: the value that is tried first, the middle one."""
    return values[(len(values) + 1) // 2] if len(values) > 2 else values[-1]


def leave_out(candidate: Candidate, name: str, is_threshold: bool) -> Candidate:
    """The candidate with one setting as the default has it."""
    if is_threshold:
        return candidate._replace(thresholds=tuple(s for s in candidate.thresholds if s[0] != name))
    return candidate._replace(parameters=tuple(s for s in candidate.parameters if s[0] != name))


def settings_of(row: sqlite3.Row) -> int:
    """How many settings a candidate has."""
    return len(json.loads(row["thresholds"])) + len(json.loads(row["parameters"]))


def contestant_of(row: sqlite3.Row) -> Contestant:
    """A candidate that was compiled."""
    return Contestant(row["id"], candidate_of(row), pathlib.Path(row["path"]) if row["path"] else None)
