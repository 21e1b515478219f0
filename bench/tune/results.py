"""What the tuner found, as plain data: what the report shows."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from typing import Any

from . import anchors
from .cells import Shape
from .store import Store, cell_of


@dataclasses.dataclass
class Trial:
    """A candidate that was tried."""

    kernel_layout: str
    thresholds: dict[str, int | str]
    parameters: dict[str, int]  # these and the thresholds: those that differ from the default
    state: str  # measured, slow (after a short round), same (the code of an earlier one), failed, or new: under way
    ratio: float | None = None  # the default's time / its time
    why: str = ""  # it failed

    def settings(self) -> dict[str, int | str]:
        """Thresholds and parameters, but the threshold that asks for the kernel layout."""
        both = self.thresholds | self.parameters
        return {name: value for name, value in both.items() if name != "layout"}

    def name(self) -> str:
        """For people."""
        settings = [f"{name}={value}" for name, value in self.settings().items()]
        return " ".join([self.kernel_layout or "default", *settings])


@dataclasses.dataclass
class Elsewhere:
    """The best at another shape of its class, or with another number of threads."""

    shape: Shape
    threads: int
    ratio: float | None  # the worst of repeated measurements; 0 where it failed
    why: str = ""  # it failed, or was not measured


@dataclasses.dataclass
class Best(Trial):
    """The candidate that became the result. Its ratio is the worst of `ratios`, of repeated measurements."""

    seconds: float = 0
    default_seconds: float = 0  # in the same rounds
    ratios: list[float] = dataclasses.field(default_factory=list)
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # the class that it is for: n, c and plane
    elsewhere: list[Elsewhere] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Anchor:
    """The same algorithm by one of Halide's autoschedulers."""

    name: str
    ratio: float | None = None  # the default's time / its time
    why: str = ""  # there is none


@dataclasses.dataclass
class Cell:
    """One search."""

    kernel: str
    dtype: str
    layout: str
    shape: Shape
    threads: int
    state: str  # new, searching, final (measured again), done or failed
    why: str = ""  # it failed, or nothing was kept, or not for the whole class of shapes
    cpu: str = ""
    instruction_set: str = ""
    measured_by: str = ""  # where it isn't time: then times are cycles or instructions, as if at 1 GHz
    default_layout: str = ""  # of kernels, that the default takes
    default_seconds: float | None = None
    bound: float | None = None  # the time of moving the compulsory bytes / the default's
    space: int = 0  # number of candidates
    spent: float = 0  # seconds
    best: Best | None = None  # none where nothing is faster than the default
    trials: list[Trial] = dataclasses.field(default_factory=list)  # in the order of their being proposed
    anchors: list[Anchor] = dataclasses.field(default_factory=list)
    loops: dict[str, str] = dataclasses.field(default_factory=dict)  # of `default` and `best`, as Halide prints them

    def name(self) -> str:
        """For people."""
        return f"{self.kernel} {self.dtype} {self.layout} {'x'.join(map(str, self.shape))}"

    def before(self) -> float | None:
        """The default's time, in the rounds of the best where there is one."""
        return self.best.default_seconds if self.best else self.default_seconds

    def after(self) -> float | None:
        """The time of what the cell gets now."""
        return self.best.seconds if self.best else self.default_seconds

    def shares(self) -> tuple[float, float] | None:
        """Of the memory bound, before and after: 1 is the limit."""
        if self.bound is None:
            return None
        return self.bound, self.bound * (statistics.median(self.best.ratios) if self.best else 1)

    def ratio(self) -> float:
        """The default's time / the time of what the cell gets now."""
        return self.best.ratio or 1.0 if self.best else 1.0

    def best_anchor(self) -> Anchor | None:
        """The fastest that there is."""
        found = [anchor for anchor in self.anchors if anchor.ratio]
        return max(found, key=lambda anchor: anchor.ratio or 0, default=None)


@dataclasses.dataclass
class Results:
    """All of a target's."""

    target: str
    machine: dict[str, Any]
    date: str
    cells: list[Cell]
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of schedules/tuned/TARGET.json

    def to_json(self) -> str:
        """All of it."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> Results:
        """The reverse."""
        raw = json.loads(text)
        return Results(**raw | {"cells": [_cell_from(cell) for cell in raw["cells"]]})


def _best_from(raw: dict[str, Any]) -> Best:
    return Best(**raw | {"elsewhere": [Elsewhere(**one | {"shape": tuple(one["shape"])}) for one in raw["elsewhere"]]})


def _cell_from(raw: dict[str, Any]) -> Cell:
    return Cell(
        **raw
        | {
            "shape": tuple(raw["shape"]),
            "best": _best_from(raw["best"]) if raw["best"] else None,
            "trials": [Trial(**trial) for trial in raw["trials"]],
            "anchors": [Anchor(**anchor) for anchor in raw["anchors"]],
        }
    )


def read_cells(store: Store) -> list[Cell]:
    """All cells of a store that belong to its latest build: times of others are not these kernels'."""
    latest = store.rows("SELECT build FROM cells ORDER BY id DESC LIMIT 1")
    rows = store.rows("SELECT * FROM cells WHERE build = ? ORDER BY id", latest[0]["build"]) if latest else []
    return [_cell_of(store, row) for row in rows]


def _cell_of(store: Store, row: Any) -> Cell:
    result = json.loads(row["result"] or "{}")
    best = None
    if result.get("candidate"):
        best = Best(
            result["kernel_layout"], result["thresholds"], result["parameters"], "measured", result["ratio"],
            seconds=result["seconds"], default_seconds=result["default_seconds"], ratios=result["ratios"],
            shapes=result.get("shapes") or {}, elsewhere=[_elsewhere_of(*one) for one in result.get("elsewhere", [])],
        )  # fmt: skip
    return Cell(
        **cell_of(row)._asdict(), state=row["state"], why=row["why"] or "",
        cpu=row["cpu"], instruction_set=row["instruction_set"], measured_by=result.get("measured_by", ""),
        default_layout=row["kernel_layout"] or "", default_seconds=row["default_seconds"],
        bound=result.get("bound"), space=row["space"] or 0, spent=row["spent"] or 0, best=best,
        trials=[_trial_of(candidate) for candidate in store.candidates(row["id"])],
        anchors=[Anchor(name, ratio, why) for name, (ratio, why) in anchors.known(store, row["id"]).items()],
    )  # fmt: skip


def _elsewhere_of(shape: list[int], threads: int, ratio: float | None, noise: float, why: str) -> Elsewhere:
    n, c, h, w = shape
    return Elsewhere((n, c, h, w), threads, ratio, why)


def _trial_of(row: Any) -> Trial:
    return Trial(
        row["kernel_layout"], json.loads(row["thresholds"]), json.loads(row["parameters"]), row["state"], row["ratio"],
        row["why"] or "",
    )  # fmt: skip


def read_entries(path: pathlib.Path) -> list[dict[str, Any]]:
    """The entries of a tuned file; none where there is no file."""
    return list(json.loads(path.read_text())["entries"]) if path.exists() else []
