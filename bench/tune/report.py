"""The report of a search: one HTML page that needs nothing but itself."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import io
import json
import math
import pathlib
import re
import shlex
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import jinja2
import machine
import matplotlib
import optuna
from markupsafe import Markup
from matplotlib.figure import Figure

from . import results, tables
from .results import Cell, Results, Trial
from .store import Store

optuna.logging.set_verbosity(optuna.logging.ERROR)
HERE = pathlib.Path(__file__).resolve().parent
NAMES = ["text", "line", "best", "measured", "slow", "failed"]
COLOURS = {name: f"#0000{number:02x}" for number, name in enumerate(NAMES, 1)}
"""What stands in a chart for a colour that the page decides, by light or dark: see _svg(). None is black, which an SVG
leaves out."""
FEWEST_TRIALS = 8
"""That say anything about which settings matter."""
TREES = 16
"""Of the forest that explains the ratios: Optuna's 64 take longer than they are better."""
LOOPS_SECONDS = 60


def write(
    store: pathlib.Path,
    tuned: pathlib.Path,
    page: pathlib.Path,
    generators: pathlib.Path,
    build: pathlib.Path | None = None,
) -> None:
    """Writes the page about what `store` holds; `tuned` is the tuned file, and `generators` prints loops.

    `build` is the build folder, where that is not the generators'.
    """
    cells = results.read_cells(Store(store))
    add_loops(cells, generators, build or generators.parent)
    today = datetime.date.today().isoformat()
    write_page(Results(tuned.stem, machine.describe(), today, cells, results.read_entries(tuned)), page)


def write_page(found: Results, page: pathlib.Path) -> None:
    """The page, all at once."""
    text = render(found)
    page.parent.mkdir(parents=True, exist_ok=True)
    part = page.with_name(page.name + ".part")
    part.write_text(text)
    part.replace(page)


def render(found: Results) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "ratio": lambda value: "" if value is None else f"{value:.3f}",
        "share": lambda value: "" if value is None else f"{value:.2f}",
        "seconds": seconds_text,
        "shape": lambda shape: "x".join(map(str, shape)),
        "range": lambda pair: str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}–{pair[1]}",
        "settings": lambda settings: ", ".join(f"{name}={value}" for name, value in settings.items()) or "defaults",
    }
    with matplotlib.rc_context(STYLE):
        sections = [section(number, cell) for number, cell in enumerate(found.cells)]
        shares = shares_chart(found.cells)
    return environment.get_template("report.html.j2").render(
        found=found, sections=sections, shares=shares, summary=summary(found.cells), anchors=anchor_names(found.cells)
    )


def seconds_text(value: float | None) -> str:
    """With a unit that suits."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


# ---- numbers


class Summary(NamedTuple):
    """Over all cells that were searched to the end. Means are geometric."""

    cells: int
    faster: int  # how many have something better than the default
    ratio: float  # mean; the default's time / the tuned one
    most: float
    trials: int
    shares: tuple[float, float] | None  # means, before and after
    anchor: float | None  # mean; the best autoscheduler's time / the tuned one


def summary(cells: list[Cell]) -> Summary:
    """What stands above all."""
    done = [cell for cell in cells if cell.state == "done"]
    shares = [shares for cell in done if (shares := cell.shares())]
    beside = [cell.ratio() / anchor.ratio for cell in done if (anchor := cell.best_anchor()) and anchor.ratio]
    return Summary(
        len(done),
        sum(cell.best is not None for cell in done),
        _mean(cell.ratio() for cell in done) or 1.0,
        max((cell.ratio() for cell in done), default=1.0),
        sum(trial.state != "new" for cell in cells for trial in cell.trials),
        (_mean(before for before, _ in shares) or 0.0, _mean(after for _, after in shares) or 0.0) if shares else None,
        _mean(beside),
    )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.geometric_mean(found) if found else None


def anchor_names(cells: list[Cell]) -> list[str]:
    """All that any cell has, in their order."""
    return list(dict.fromkeys(anchor.name for cell in cells for anchor in cell.anchors))


def importances(trials: list[Trial]) -> dict[str, float]:
    """Which share of the ratios' variance each setting explains, by Optuna's fANOVA; empty for too few trials."""
    timed = [trial for trial in trials if trial.ratio is not None and trial.state in ("measured", "slow")]
    if len(timed) < FEWEST_TRIALS or len({trial.ratio for trial in timed}) == 1:
        return {}
    rows = [{"kernel layout": t.kernel_layout} | {k: str(v) for k, v in t.settings().items()} for t in timed]
    names = dict.fromkeys(name for row in rows for name in row)
    # A trial has the default of what it doesn't set.
    levels = {name: sorted({row.get(name, "default") for row in rows}) for name in names}
    varied = {name: optuna.distributions.CategoricalDistribution(v) for name, v in levels.items() if len(v) > 1}
    if not varied:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial, row in zip(timed, rows, strict=True):
        params = {name: row.get(name, "default") for name in varied}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=dict(varied), value=trial.ratio))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


# ---- loops


def add_loops(cells: list[Cell], generators: pathlib.Path, build: pathlib.Path) -> None:
    """Has the generators print the loops of each cell's default and best, as the build folder has them."""
    described = build / "hbn_targets.json"
    if not generators.exists() or not described.exists():
        return
    targets = json.loads(described.read_text())["instruction_sets"]
    rows, known = tables.kernels(), dict[tuple[str, ...], str]()
    for cell in cells:
        if not cell.best or cell.instruction_set not in targets:
            continue
        row = rows[cell.kernel]
        for name, layout, parameters in (
            ("default", cell.default_layout, {}),
            ("best", cell.best.kernel_layout or cell.default_layout, cell.best.parameters),
        ):
            command = (
                str(generators), "-g", row["generator"], f"target={targets[cell.instruction_set]}",
                f"dtype={cell.dtype}", f"layout={layout}", *shlex.split(row["parameters"]),
                *(f"{key}={value}" for key, value in parameters.items()),
            )  # fmt: skip
            if command not in known:
                known[command] = loops(command)
            cell.loops[name] = known[command]


def loops(command: tuple[str, ...]) -> str:
    """What Halide's print_loop_nest() says of a kernel, or why there is nothing."""
    with tempfile.TemporaryDirectory() as folder:
        whole = [*command, "print_loops=true", "-e", "stmt", "-f", "kernel", "-o", folder]
        try:
            done = subprocess.run(whole, capture_output=True, text=True, check=True, timeout=LOOPS_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            return f"The generators could not print the loops: {getattr(error, 'stderr', '') or error}"
    return done.stderr.strip()


def compared(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts, with the lines marked that the other doesn't have."""
    lines = before.splitlines(), after.splitlines()
    marked: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, *ranges in difflib.SequenceMatcher(None, *lines, autojunk=False).get_opcodes():
        for side, (begin, end) in enumerate((ranges[:2], ranges[2:])):
            form = Markup("{}\n") if kind == "equal" else Markup("<mark>{}</mark>\n")
            marked[side].extend(form.format(line) for line in lines[side][begin:end])
    return Markup("").join(marked[0]), Markup("").join(marked[1])


# ---- a cell's section


@dataclasses.dataclass
class Section:
    """What the page shows of a cell, in addition."""

    number: int
    cell: Cell
    history: Markup
    importances: dict[str, float]
    states: Counter[str]
    failures: list[tuple[str, int]]  # why, and how many
    loops: tuple[Markup, Markup] | None


def section(number: int, cell: Cell) -> Section:
    """Of the cell with this number."""
    loops = compared(cell.loops["default"], cell.loops["best"]) if len(cell.loops) == 2 else None
    failures = Counter(trial.why for trial in cell.trials if trial.state == "failed").most_common()
    states = Counter(trial.state for trial in cell.trials)
    return Section(number, cell, history_chart(cell), importances(cell.trials), states, failures, loops)


# ---- charts

STYLE: Any = {
    "svg.fonttype": "none", "path.simplify": False, "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["text"], "text.color": COLOURS["text"], "xtick.color": COLOURS["text"],
    "ytick.color": COLOURS["text"], "figure.facecolor": "none", "axes.facecolor": "none", "legend.frameon": False,
}  # fmt: skip


def history_chart(cell: Cell) -> Markup:
    """Each trial's ratio, and the best so far."""
    timed: dict[str, list[tuple[int, float]]] = {"slow": [], "measured": []}
    best, steps = 0.0, []
    for number, trial in enumerate(cell.trials, 1):
        if trial.ratio is not None and trial.state in timed:
            timed[trial.state].append((number, trial.ratio))
            if trial.state == "measured" and trial.ratio > best:
                best = trial.ratio
                steps.append((number, best))
    if not any(timed.values()):
        return Markup("")
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    axes = figure.subplots()
    _dots(axes, timed["slow"], color=COLOURS["slow"], linewidth=3, label="given up after a short round")
    _dots(axes, timed["measured"], color=COLOURS["measured"], linewidth=4, label="measured")
    lowest = min(ratio for points in timed.values() for _, ratio in points)
    failed = [(number, lowest) for number, trial in enumerate(cell.trials, 1) if trial.state == "failed"]
    _dots(axes, failed, color=COLOURS["failed"], linewidth=3, label="failed")
    if steps:
        steps.append((len(cell.trials), best))
        axes.step(*zip(*steps, strict=True), where="post", color=COLOURS["best"], linewidth=1.5, label="best so far")
    axes.axhline(1, color=COLOURS["line"], linewidth=0.8, linestyle="--")
    axes.set(xlabel="trial", ylabel="default's time / its time", xlim=(0, len(cell.trials) + 1))
    figure.legend(loc="outside upper right", ncols=4, fontsize=8, handlelength=0.6)
    return _svg(figure, f"history of {cell.name()}")


def shares_chart(cells: list[Cell]) -> Markup:
    """Each cell's share of the memory bound before and after."""
    known = [(cell, shares) for cell in cells if (shares := cell.shares())]
    if not known:
        return Markup("")
    figure = Figure(figsize=(10, 0.9 + 0.2 * len(known)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(known))
    before, after = zip(*(shares for _, shares in known), strict=True)
    axes.hlines(rows, before, after, color=COLOURS["line"], linewidth=1.5)
    axes.plot(before, rows, "o", color=COLOURS["slow"], markersize=5, label="default")
    axes.plot(after, rows, "o", color=COLOURS["best"], markersize=5, label="tuned")
    axes.axvline(1, color=COLOURS["line"], linewidth=0.8, linestyle="--")
    axes.set_yticks(rows, [cell.name() for cell, _ in known])
    most = max(1.02, *before, *after)
    axes.set(xlabel="memory bound's time / time", xlim=(0, most * 1.02), ylim=(len(known) - 0.5, -0.5))
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, handlelength=0.6)
    return _svg(figure, "share of the memory bound")


def _dots(axes: Any, points: list[tuple[int, float]], **style: Any) -> None:
    """Lines of no length with round ends, all of them one path: markers would be an element of the page each."""
    if not points:
        return
    xs, ys = ([v for value in values for v in (value, value, math.nan)] for values in zip(*points, strict=True))
    axes.plot(xs, ys, solid_capstyle="round", **style)


def _svg(figure: Figure, label: str) -> Markup:
    """The figure as an element of the page, with the page's colours."""
    text = io.StringIO()
    # Names of parts are hashes with this salt: each figure has its own.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    # A tenth of a point is enough.
    svg = re.sub(r'\b(x|y|d|transform)="[^"]*"', lambda found: _rounded(found[0]), svg)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{label}">'
    return Markup(re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, svg, count=1))


def _rounded(attribute: str) -> str:
    return re.sub(r"\d+\.\d\d+", lambda number: f"{float(number[0]):.1f}", attribute)
