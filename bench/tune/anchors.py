"""Anchors: what Halide's own autoschedulers make of the same algorithms, timed beside the default.

They take the place of schedules/ (see generators/tensor_generator.h), and know the tensors' sizes as estimates. What
they make is right for all sizes, and is checked and timed as any candidate. Which of them can't, and why: README.md.
"""

from __future__ import annotations

import importlib.util
import pathlib
import shlex
import statistics

from . import tables
from .build import Build
from .cells import Cell
from .compile import SYMBOL, Compiler, Kernel
from .measure import Contestant, Crash
from .search import Setting
from .spaces import Candidate
from .store import Store

SCHEDULERS = ("Mullapudi2016", "Li2018", "Adams2019")
COMPILE_SECONDS = 120
"""That one may take; Adams2019 searches for half a minute."""
MEASURE_SECONDS = 0.6
"""For each."""
KERNEL_LAYOUTS = {"nchw": "nchw", "nhwc": "rows"}
"""For tensors of each layout the kernel layout of which the first dimension is dense: the one they make vectors of."""
NUMBER = 10**9
"""Of the first one, for the worker: candidates have lower ones."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS anchors (
    cell INTEGER REFERENCES cells,
    name TEXT,
    ratio REAL,              -- the default's time / its time
    why TEXT,                -- there is none
    UNIQUE (cell, name));
"""


def plugin(scheduler: str) -> pathlib.Path | None:
    """The library that has it: a file of the package halide."""
    package = importlib.util.find_spec("halide")
    folders = (package.submodule_search_locations if package else None) or []
    name = f"libautoschedule_{scheduler.lower()}.so"
    return next((path for folder in folders for path in sorted(pathlib.Path(folder).glob(f"lib*/{name}"))), None)


def command(build: Build, cell: Cell, scheduler: str, library: pathlib.Path) -> list[str]:
    """What the generators are told, but where to write."""
    row, (n, c, h, w) = tables.kernels()[cell.kernel], cell.shape
    # Adams2019 fails where a loop is empty by its estimates. Of an odd plane there is a rest after all whole vectors.
    plane = h * w | 1
    return [
        "-g", row["generator"], "-f", SYMBOL, "-e", "object", "-p", str(library),
        f"target={build.halide_targets[build.instruction_set]}", f"dtype={cell.dtype}",
        f"layout={KERNEL_LAYOUTS[cell.layout]}", *shlex.split(row["parameters"]), f"samples={n}", f"num_features={c}",
        f"plane_size={plane}", f"autoscheduler={scheduler}", f"autoscheduler.parallelism={cell.threads}",
    ]  # fmt: skip


def compile_one(compiler: Compiler, cell: Cell, scheduler: str) -> Kernel:
    """The kernel for a cell's shape by one of them."""
    library = plugin(scheduler)
    if library is None:
        return Kernel(None, "", f"the package halide has no {scheduler}")
    return compiler.compile(command(compiler.build, cell, scheduler, library), COMPILE_SECONDS)


def known(store: Store, cell: int) -> dict[str, tuple[float | None, str]]:
    """Of the cell of this row: ratio, or why there is none, by name."""
    store.connection.executescript(SCHEMA)
    rows = store.rows("SELECT * FROM anchors WHERE cell = ? ORDER BY rowid", cell)
    return {row["name"]: (row["ratio"], row["why"]) for row in rows}


def _keep(store: Store, cell: int, name: str, ratio: float | None, why: str) -> None:
    store.connection.execute("INSERT OR REPLACE INTO anchors VALUES (?, ?, ?, ?)", [cell, name, ratio, why])


def measure(setting: Setting, cell: Cell) -> None:
    """Compiles and times all for a cell, and keeps what comes out. What is known isn't done again."""
    store, build, worker = setting.store, setting.build, setting.worker
    row = store.cell(cell, build.cpu, build.instruction_set, build.fingerprint)["id"]
    todo = [name for name in SCHEDULERS if name not in known(store, row)]
    contestants: dict[str, Contestant] = {}
    for name in todo:
        setting.show(f"compiles by {name}")
        kernel = compile_one(setting.compiler, cell, name)
        if kernel.path is None:
            _keep(store, row, name, None, kernel.why)
        else:
            number = NUMBER + SCHEDULERS.index(name)
            contestants[name] = Contestant(number, Candidate(KERNEL_LAYOUTS[cell.layout]), kernel.path)
    if not contestants:
        return
    worker.use(cell)
    for name in list(contestants):
        why = wrong(setting, contestants[name])
        if why:
            _keep(store, row, name, None, why)
            del contestants[name]
    with setting.alone():
        try:
            answer = worker.measure(MEASURE_SECONDS * (len(contestants) + 1), list(contestants.values()))
        except Crash as crash:
            answer = {"error": f"crashed while it was timed: {crash}"}
    for name, contestant in contestants.items():
        if "error" in answer:
            _keep(store, row, name, None, answer["error"])
        elif contestant.text() in answer["ratios"]:
            _keep(store, row, name, statistics.median(answer["ratios"][contestant.text()]), "")
        else:
            _keep(store, row, name, answer["default"]["median"] / answer["too_slow"][contestant.text()], "")


def wrong(setting: Setting, contestant: Contestant) -> str:
    """Why it can't be compared: nothing where it can. How much scratch memory it takes is no matter here."""
    try:
        answer = setting.worker.check(contestant)
    except Crash as crash:
        return f"crashed: {crash}"
    if "error" in answer:
        return str(answer["error"])
    if not answer["used"]:
        return f"hbn takes {answer['kernel_layout']} for these tensors"
    return f"wrong results: {answer['worst']} of what may be wrong" if not answer["worst"] <= 1 else ""
