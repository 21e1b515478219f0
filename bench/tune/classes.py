"""Whether what was found at one shape holds for its class of shapes, and with another number of threads.

It is timed again, in fresh workers: at shapes that span the class, and at its own shape with another number of threads.
The default is a contestant there, too: how far its times are from its own tells which measurements count, and how
much slower is slower. The class is narrowed to where nothing is. A model (model.py) says the same each time and knows
no threads: it is asked once at each of these shapes.
"""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .build import Build
from .cells import Cell, Shape
from .measure import Alone, Contestant, Crash, Worker, what_is_wrong
from .result import Class, exact_class, power_of_two_class
from .spaces import DEFAULT, Candidate
from .store import Store
from .tables import tuned

MOST_BYTES = 256 << 20
"""Of a shape's tensors together, unless those of the tuned one have more."""
MOST_BYTES_OF_MODEL = 16 << 20
"""The same by a model, which takes most of a second for each MB, and knows no caches that are to be outgrown."""
PROCESSES, REPEATS, SECONDS = 2, 2, 0.15  # for each contestant; once where a worker is exact
MORE_PROCESSES = 2
"""Where the default's times are too far from its own."""
NOISE = 0.01
"""So far are too far."""
LEAST = 0.98
"""No entry may be slower than that, whatever the noise."""
LEAST_NOISE = 0.005
PLENTY = 1.05
"""So much faster in one process needs no other."""
ROUNDS = 12
"""Of long calls, those before them included."""
DEFAULT_AGAIN = Contestant(0, DEFAULT, None)
NO_TIME = "there was no time"

Sizes = dict[str, int]  # n, c and plane


# ---- shapes


class Probe(NamedTuple):
    """Sizes that stand for a part of a class."""

    sizes: Sizes
    is_inside: bool  # not a corner: it may be sizes' divisors that count


def probes(shapes: Class, sizes: Sizes, most_elements: int) -> list[Probe]:
    """What spans a class: its corners of least and most, and odd sizes inside; without the tuned sizes.

    What has more elements than are allowed gets fewer samples, then channels, then pixels.
    """
    least = {name: interval[0] for name, interval in shapes.items()}
    most = {name: interval[1] for name, interval in shapes.items()}
    odd = {name: _odd(*interval) for name, interval in shapes.items()}
    found = [
        Probe(least, False), Probe(_fitted(most, least, most_elements), False),
        Probe(_fitted(odd, least, most_elements), True),
    ]  # fmt: skip
    return [probe for i, probe in enumerate(found) if probe.sizes not in [sizes, *(p.sizes for p in found[:i])]]


def _odd(low: int, high: int) -> int:
    size = low + (high - low) * 5 // 8
    return size if size % 2 or size == high else size + 1


def _fitted(sizes: Sizes, least: Sizes, most_elements: int) -> Sizes:
    sizes = dict(sizes)
    for name in ("n", "c", "plane"):
        others = math.prod(size for other, size in sizes.items() if other != name)
        sizes[name] = max(least[name], min(sizes[name], most_elements // others))
    return sizes


def narrowed(shapes: Class, sizes: Sizes, most_elements: int, holds: Callable[[Sizes], bool]) -> Class:
    """The part of a class that holds, around the tuned sizes.

    A probe that doesn't hold cuts the class where one of its sizes alone, with the others as tuned, doesn't hold
    either; along all of its sizes where none does. The rest is probed again.
    """
    while failed := next((p for p in probes(shapes, sizes, most_elements) if not holds(p.sizes)), None):
        others = [name for name in shapes if failed.sizes[name] != sizes[name]]
        guilty = [name for name in others if not holds(sizes | {name: failed.sizes[name]})] if others[1:] else others
        for name in guilty or others:
            low, high = shapes[name]
            size = sizes[name]
            if failed.is_inside:
                low = high = size
            elif failed.sizes[name] < size:
                low = size
            else:
                high = size
            shapes = shapes | {name: [low, high]}
    return shapes


def shape_of(sizes: Sizes, tuned_shape: Shape) -> Shape:
    """A shape of these sizes, with a plane as the tuned one where it has as many pixels, or nearly square."""
    plane = sizes["plane"]
    h, w = tuned_shape[2:]
    if h * w != plane:
        h = next(h for h in range(math.isqrt(plane), 0, -1) if plane % h == 0)
        w = plane // h
    return sizes["n"], sizes["c"], h, w


def contains(shapes: Class, sizes: Sizes) -> bool:
    """Whether they are of the class."""
    return all(shapes[name][0] <= size <= shapes[name][1] for name, size in sizes.items())


# ---- times


class Timing(NamedTuple):
    """What was measured at a shape with a number of threads."""

    shape: Shape
    threads: int
    ratio: float | None  # the default's time / the entry's, the worst of medians; 0: it fails; None: not measured
    noise: float = 0.0  # how far the default's time was from its own
    why: str = ""  # it fails, or was not measured

    def limit(self) -> float:
        """Below this it is slower than the default."""
        return max(LEAST, 1 - max(LEAST_NOISE, 2 * self.noise))

    def text(self) -> str:
        """For people."""
        name = f"{'x'.join(map(str, self.shape))}, {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{name}: {self.why or f'{self.ratio:.3f}'}"


class AsEntry(Contestant):
    """Thresholds as an entry has them: `layout` is one of them where it is needed."""

    def settings(self) -> list[str]:
        """Its thresholds."""
        return [f"{name}={value}" for name, value in self.candidate.thresholds]


def as_entry(
    number: int, layout: str, thresholds: dict[str, Any], parameters: dict[str, int], path: pathlib.Path | None
) -> AsEntry:
    """The contestant that an entry stands for, of its kernel's layout and file."""
    return AsEntry(number, Candidate(layout, tuple(thresholds.items()), tuple(parameters.items())), path)


Row = dict[str, Any]


class Timer:
    """Times one entry. What it is given as known is not timed again."""

    def __init__(
        self, worker: Worker, alone: Alone, cell: Cell, contestant: Contestant, known: Iterable[Row] = (),
        keep: Callable[[Row], None] = lambda row: None, has_time: Callable[[Cell], bool] = lambda cell: True,
        show: Callable[[str], None] = lambda text: None, checks_all: bool = False,
    ):  # fmt: skip
        """Of a cell, the tuned one. `keep` gets each measurement. `checks_all`: results at its own shape, too."""
        self.worker, self.alone, self.cell, self.contestant = worker, alone, cell, contestant
        self.keep, self.has_time, self.show, self.checks_all = keep, has_time, show, checks_all
        self.processes, self.repeats = (1, 1) if worker.is_exact else (PROCESSES, REPEATS)
        self.rows: dict[tuple[Shape, int], list[Row]] = {}
        for row in known:
            self.rows.setdefault((row["shape"], row["threads"]), []).append(row)
        self.timings: dict[tuple[Shape, int], Timing] = {}

    def time(self, shape: Shape, threads: int) -> Timing:
        """At this shape."""
        key = shape, threads
        if key not in self.timings:
            self.timings[key] = self._time(self.cell._replace(shape=shape, threads=threads))
        return self.timings[key]

    def _time(self, cell: Cell) -> Timing:
        rows, why = self.rows.setdefault((cell.shape, cell.threads), []), ""
        for process in range(self.processes + MORE_PROCESSES):
            if self._are_enough(rows) or why:
                break
            left = [
                i for i in range(self.repeats) if not any((r["process"], r["repeat"]) == (process, i) for r in rows)
            ]
            if left:
                why = self._measure(cell, process, left, rows) if self.has_time(cell) else NO_TIME
        if not self._are_enough(rows) and why:
            return Timing(cell.shape, cell.threads, None, why=why)
        counting = [row for row in rows if row["why"] or _noise(row) <= NOISE] or rows
        worst = min(counting, key=lambda row: row["ratio"])
        noise = max(_noise(row) for row in counting)
        return Timing(cell.shape, cell.threads, worst["ratio"], noise, worst["why"] or "")

    def _are_enough(self, rows: list[Row]) -> bool:
        quiet = [row for row in rows if not row["why"] and _noise(row) <= NOISE]
        is_slow = any(row["ratio"] < LEAST for row in quiet)  # the worst counts
        is_fast = len(quiet) >= self.repeats and min(row["ratio"] for row in quiet) >= PLENTY
        return is_slow or is_fast or any(row["why"] for row in rows) or len(quiet) >= self.processes * self.repeats

    def _measure(self, cell: Cell, process: int, repeats: list[int], rows: list[Row]) -> str:
        """Adds rows. Returns why there can't be any."""
        self.show(f"times it at {cell.shape_name()} with {cell.threads} thread{'s' * (cell.threads > 1)}")
        worker = self.worker
        # The oracle takes longer than the times; at the tuned shape and in the same process it was asked before.
        checks = process == 0 and math.prod(cell.shape) <= math.prod(self.cell.shape)
        checks = checks and (self.checks_all or cell.shape != self.cell.shape)
        try:
            about = worker.use(cell, for_times_alone=not checks)
        except Crash as crash:
            return str(crash)
        if "error" in about:
            return str(about["error"])
        for repeat in repeats:
            why: str | None = None
            found: dict[str, float | None] = {
                "ratio": 0.0,
                "default_ratio": 1.0,
                "seconds": None,
                "default_seconds": None,
            }
            try:
                if checks and repeat == repeats[0]:
                    why = what_is_wrong(worker.check(self.contestant))
                if not why:
                    with self.alone():
                        answer = worker.measure(3 * SECONDS, [DEFAULT_AGAIN, self.contestant])
                    why = answer.get("error")
            except Crash as crash:
                why = f"crashed: {crash}"
            if not why:
                mine, again = self.contestant.text(), DEFAULT_AGAIN.text()
                default = answer["default"]["median"]
                found = {"default_seconds": default, "default_ratio": statistics.median(answer["ratios"][again])}
                if mine in answer["ratios"]:
                    found |= {"ratio": statistics.median(answer["ratios"][mine]), "seconds": answer[mine]["median"]}
                else:
                    seconds = answer["too_slow"][mine]
                    found |= {"ratio": default / seconds, "seconds": seconds}
            row = {"shape": cell.shape, "threads": cell.threads, "process": process, "repeat": repeat, "why": why}
            self.keep(row | found)
            rows.append(row | found)
            if why:
                break
        return ""


def _noise(row: Row) -> float:
    return abs(1 - row["default_ratio"])


def other_threads(worker: Worker, threads: int, processors: int) -> int | None:
    """The number of threads that is tried in addition: entries are for any. None where it makes no difference."""
    return None if worker.is_exact else 1 if threads > 1 else 2 if processors > 1 else None


def most_elements(worker: Worker, cell: Cell, about: dict[str, Any]) -> int:
    """Of a tensor, by what the worker says of the tuned cell's bytes."""
    elements, most_bytes = math.prod(cell.shape), MOST_BYTES_OF_MODEL if worker.is_exact else MOST_BYTES
    return max(elements, elements * most_bytes // max(int(about.get("bytes", 0)), 1))


# ---- the tuner's part


class Held(NamedTuple):
    """What became of a class."""

    shapes: Class | None  # none where the entry is no good
    timings: list[Timing]
    why: str = ""  # the class is not the whole one, or none

    def worst(self) -> float | None:
        """In what is left of the class."""
        inside = [t for t in self.timings if self.shapes and contains(self.shapes, tuned.sizes_of(t.shape))]
        return min((t.ratio for t in inside if t.ratio), default=None)

    def to_result(self) -> dict[str, Any]:
        """For the store: a part of a cell's result."""
        return {"shapes": self.shapes, "worst_in_class": self.worst(), "why": self.why, "elsewhere": self.timings}


def seconds_for(
    worker: Worker, shape: Shape, threads: int, cell: Cell, about: dict[str, Any], setup_seconds: float
) -> float:  # fmt: skip
    """About how long it takes to time the entry there, in one process."""
    larger = math.prod(shape) / math.prod(cell.shape)
    if worker.is_exact:  # the setup has the default's cost; the entry's takes no longer
        return 2 * setup_seconds * max(1, larger)
    call = about.get("default_seconds", 0) * larger * max(1, cell.threads / threads)
    return 0.5 * setup_seconds * larger + REPEATS * max(3 * SECONDS, 3 * ROUNDS * call)


def final_seconds(worker: Worker, build: Build, cell: Cell, setup_seconds: float) -> float:
    """The same for all of a class where nothing is slower. The worker was told of the cell."""
    sizes, about = cell.sizes(), worker.about
    found = probes(power_of_two_class(sizes), sizes, most_elements(worker, cell, about))
    shapes = [shape_of(probe.sizes, cell.shape) for probe in found]
    others = [(shape, cell.threads) for shape in shapes]
    if threads := other_threads(worker, cell.threads, build.threads):
        others.append((cell.shape, threads))
    processes = 1 if worker.is_exact else PROCESSES
    return processes * sum(seconds_for(worker, *other, cell, about, setup_seconds) for other in others)


def hold(timer: Timer, shapes: Class, most_elements: int, threads: int | None) -> Held:
    """Whether an entry may be for this class, and for which part of it. `threads`: the other number of them."""
    cell, timings = timer.cell, timer.timings
    sizes = cell.sizes()
    if threads:
        timing = timer.time(cell.shape, threads)
        if timing.ratio is not None and timing.ratio < timing.limit():
            return Held(None, list(timings.values()), f"no entry, slower at {timing.text()}")

    def holds(other: Sizes) -> bool:
        timing = timer.time(shape_of(other, cell.shape), cell.threads)
        return timing.ratio is not None and timing.ratio >= timing.limit()

    left = narrowed(shapes, sizes, most_elements, holds)
    wrong = [t for t in timings.values() if t.ratio == 0]
    if wrong:
        return Held(None, list(timings.values()), f"no entry, fails at {wrong[0].text()}")
    failed = [t.text() for t in timings.values() if t.why != NO_TIME and (t.ratio is None or t.ratio < t.limit())]
    unknown = [t.text() for t in timings.values() if t.why == NO_TIME]
    why = "not for all of its class: " + "; ".join([*failed, *unknown[:1]]) if left != shapes else ""
    return Held(left, list(timings.values()), why)


def of_candidate(
    setting: Any, row: Any, cell: Cell, found: dict[str, Any], about: dict[str, Any], setup_seconds: float,
    left: Callable[[], float],
) -> Held:  # fmt: skip
    """For which part of its class a search's result holds. `setting` is the search's, `row` and `about` its cell's."""
    store, worker, number = setting.store, setting.worker, found["candidate"]
    path = store.candidate(number)["path"]
    contestant = as_entry(
        number, found["kernel_layout"], found["thresholds"], found["parameters"], pathlib.Path(path) if path else None
    )

    def has_time(other: Cell) -> bool:
        if other.shape == cell.shape:  # or there could be no entry
            return True
        return left() >= seconds_for(worker, other.shape, other.threads, cell, about, setup_seconds)

    def keep_row(measured: Row) -> None:
        store.add_class_measurement(number, **measured)

    timer = Timer(worker, setting.alone, cell, contestant, known(store, number), keep_row, has_time, setting.show)
    threads = other_threads(worker, cell.threads, setting.build.threads)
    return hold(timer, whole_class(store, row, cell), most_elements(worker, cell, about), threads)


def whole_class(store: Store, row: Any, cell: Cell) -> Class:
    """The class to try: that of powers of two, unless another cell of it is tuned for itself."""
    names = ("kernel", "dtype", "layout", "cpu", "instruction_set", "build")
    whole = power_of_two_class(cell.sizes())
    for other in store.rows(
        f"SELECT * FROM cells WHERE id != ? AND state != 'failed' AND {' AND '.join(f'{name} = ?' for name in names)}",
        row["id"], *(row[name] for name in names),
    ):  # fmt: skip
        sizes = tuned.sizes_of([other[name] for name in "nchw"])
        if sizes != cell.sizes() and contains(whole, sizes):
            return exact_class(cell.sizes())
    return whole


def known(store: Store, candidate: int) -> list[Row]:
    """What was measured of a candidate before the tuner was stopped."""
    rows = store.class_measurements(candidate)
    return [dict(row) | {"shape": tuple(row[name] for name in "nchw")} for row in rows]
