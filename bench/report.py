"""From raw times to shares of the bound and of the limit, ratios, and whether the project's aims are met."""

import itertools
import math
import pathlib
import statistics
from typing import Any, Callable, Iterable, NamedTuple, Protocol

from grid import Cell, CONTESTANTS, DTYPES, FUSED_OPERATIONS, LAYOUTS, LIMITS, OPERATIONS
import machine as machines

RIVALS = ["torch", "onednn"]
COLOURS = {"hbn": "#1b7837", "torch": "#d6604d", "onednn": "#4393c3"}
NAMES = {"hbn": "hbn", "torch": "PyTorch", "onednn": "oneDNN", "bound": "bound", "unfused": "unfused",
         "loops": "hand-written loops"}
# Less than this, together, may stay in a cache.
BEYOND_CACHE = 24e6
# Smaller tensors live in caches and are measured against call overhead, not memory.
LARGE = 3e6
# What is smaller is a matter of a call's overhead, not of the limit.
LEAST_LIMITED = 64 << 10
# Time divided by the limit: in every cell, and in the median.
MOST_OF_LIMIT, MEDIAN_OF_LIMIT = 1.25, 1.1
# What each element takes, beside loads and stores; 16-bit types are widened before both, and rounded and narrowed after
# the map. See arithmetic_loops.cpp.
ARITHMETIC = {
    "forward_training float32": "convert, subtract, add, fma in float64; map: 2 fmas",
    "forward_training": "subtract, add, fma, and once in 32 values convert and add both sums in float64; map: 2 fmas",
    "forward_inference": "map: 2 fmas",
    "backward float32": "convert twice, subtract, add, fma in float64; map: subtract, 2 fmas, multiply",
    "backward": "subtract, add, fma, and once in 32 values convert and add both sums in float64; "
                "map: subtract, 2 fmas, multiply",
}
# Of a call, in microseconds.
MOST_OVERHEAD = 1.5


def needs_two_sweeps(cell: Cell, threads: int, l3_bytes: int) -> bool:
    """Whether the cell's bound reads everything twice.

    design.md: "In NCHW one channel of a usual layer fits L2, so training's second read comes from cache and the
    same bound holds. Where a channel (or, in NHWC, the whole tensor) does not fit any cache, training forward is
    bound by 2 reads + 1 write and backward by 4 reads + 1 write." Every thread has a channel of its own; in NHWC
    half of L3 is left for what is written.
    """
    if cell.operation == "forward_inference":
        return False
    read = cell.tensor_bytes() * (2 if cell.operation == "backward" else 1)
    if cell.layout == "nchw":
        return read / cell.shape[1] * threads > l3_bytes
    return read > l3_bytes / 2


def sums_everything_first(cell: Cell) -> bool:
    """Whether all of x is read before any of it can be mapped: in NHWC every channel ends at the end.

    From wherever it comes the second time: bound_two_sweeps is measured on tensors of the same size.
    """
    return cell.operation != "forward_inference" and cell.layout == "nhwc"


class Row(NamedTuple):
    """A cell's best times with one number of threads and one size of pages."""

    cell: Cell
    threads: int
    pages: str
    best: dict[str, float]
    bound: float
    two_sweeps: bool
    # What nothing is faster than, memory or arithmetic; None where arithmetic wasn't measured.
    limit: float | None = None
    limited_by: str = ""

    def share(self, contestant: str) -> float | None:
        """bound / time; 1 is the best there is."""
        return self.bound / self.best[contestant] if contestant in self.best else None

    def share_of_limit(self, contestant: str) -> float | None:
        """limit / time."""
        return self.limit / self.best[contestant] if self.limit is not None and contestant in self.best else None

    def ratio(self, rival: str) -> float | None:
        """The rival's time / hbn's; above 1, hbn is faster."""
        return self.best[rival] / self.best["hbn"] if rival in self.best and "hbn" in self.best else None

    def name(self) -> str:
        """The cell's, its threads and its pages."""
        return f"{self.cell.name()} threads={self.threads} pages={self.pages}"


def rows(results: dict[str, Any]) -> list[Row]:
    """Minima over rounds."""
    l3_bytes = results["machine"]["cache_bytes"].get("L3", 0)
    bounds, arithmetic = best_bounds(results["cells"]), best_arithmetic(results["cells"])
    made = []
    for raw in results["cells"]:
        cell = cell_of(raw)
        best = {name: min(times) for name, times in raw["times"].items() if times}
        two_sweeps = needs_two_sweeps(cell, raw["threads"], l3_bytes)
        bound = bounds["bound_two_sweeps" if two_sweeps else "bound", *moved(raw)]
        limit, limited_by = None, ""
        if (computed := arithmetic.get(computed_by(raw))) is not None:
            memory = bounds["bound_two_sweeps" if two_sweeps or sums_everything_first(cell) else "bound", *moved(raw)]
            limit, limited_by = max((memory, "memory"), (computed * cell.tensor_bytes(), "arithmetic"))
        made.append(Row(cell, raw["threads"], pages_of(raw), best, bound, two_sweeps, limit, limited_by))
    return made


def cell_of(raw: dict[str, Any]) -> Cell:
    """The cell that raw times are of."""
    return Cell(raw["operation"], raw["layout"], raw["dtype"], tuple(raw["shape"]))


def pages_of(raw: dict[str, Any]) -> str:
    """The size of its pages. Before there was a choice they had 2 MB."""
    return raw.get("pages", "2m")


def fused_rows(results: dict[str, Any]) -> list[Row]:
    """Minima over rounds, of a run that has no bound."""
    return [Row(cell_of(raw), raw["threads"], pages_of(raw),
                {name: min(times) for name, times in raw["times"].items() if times}, math.nan, False)
            for raw in results["cells"]]


def fused_summary(all_rows: list[Row]) -> list[str]:
    """Each fused operation against batch normalization by hbn, then PyTorch's addition and ReLU."""
    large = [row for row in all_rows if row.cell.tensor_bytes() >= BEYOND_CACHE / 2]
    lines = []
    for operation in FUSED_OPERATIONS:
        for layout in LAYOUTS:
            group = [row for row in large if row.cell[:2] == (operation, layout)]
            for rival, least in (("unfused", 1.6), ("torch", 1.6)):
                title = f"{operation} {layout.upper()}, {NAMES[rival]}'s time / hbn's"
                lines.append(worst_line(title, group, lambda row, rival=rival: row.ratio(rival), least, ""))
    return lines


def fused_markdown(results: dict[str, Any], all_rows: list[Row]) -> str:
    """The summary, and every cell."""
    machine = results["machine"]
    lines = ["# Fused operations, measured", "", "    " + "\n    ".join(fused_summary(all_rows)), "",
             f"- {machine['cpu']}, {machine['threads']} processors; commit {machine['commit']}",
             "- unfused: batch normalization by hbn, then PyTorch's add_ and relu_; backward: PyTorch's "
             "threshold_backward, then hbn's",
             *(f"- {NAMES[name]}: {version}" for name, version in results["versions"].items()),
             *(f"- {note}" for note in notes(results)), "", *fused_digest(all_rows), "",
             "Best times in microseconds.", "",
             "| cell | hbn | unfused | PyTorch | unfused / hbn | PyTorch / hbn |", "| --- " * 6 + "|"]
    for row in all_rows:
        columns = [row.name(), *(f"{row.best[c] * 1e6:.1f}" if c in row.best else "" for c in ("hbn", "unfused", "torch")),
                   *(f"{ratio:.2f}" if (ratio := row.ratio(r)) is not None else "" for r in ("unfused", "torch"))]
        lines.append("| " + " | ".join(columns) + " |")
    return "\n".join(lines) + "\n"


def fused_digest(all_rows: list[Row]) -> list[str]:
    """A line for each operation, layout, number of threads and size of pages: what the README shows."""
    lines = ["| | than unfused: geometric mean (worst) | than PyTorch |", "| --- | --- | --- |"]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in all_rows:
        if row.cell.dtype == "float32":
            groups.setdefault((row.cell.operation, row.cell.layout, row.threads, row.pages), []).append(row)
    for (operation, layout, threads, pages), group in groups.items():
        columns = [f"{operation} {layout.upper()}, {ran_with(threads, pages)}"]
        for rival in ("unfused", "torch"):
            ratios = [ratio for row in group if (ratio := row.ratio(rival)) is not None]
            columns.append(f"{statistics.geometric_mean(ratios):.1f} x ({min(ratios):.2f} x)" if ratios else "")
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def moved(raw: dict[str, Any]) -> tuple[Any, ...]:
    """What decides a bound: the same bytes move whatever the layout, and whichever forward it is."""
    return raw["operation"] == "backward", raw["dtype"], tuple(raw["shape"]), raw["threads"], pages_of(raw)


def best_bounds(raws: list[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
    """The fastest that the same bytes were moved, in any cell: a disturbed bound would flatter everyone."""
    best: dict[tuple[Any, ...], float] = {}
    for raw in raws:
        for name in ("bound", "bound_two_sweeps"):
            key = name, *moved(raw)
            best[key] = min([best.get(key, math.inf), *raw["times"].get(name, [])])
    return best


def computed_by(raw: dict[str, Any]) -> tuple[Any, ...]:
    """What decides how long a byte's arithmetic takes: neither shapes nor layouts nor pages do."""
    return raw["operation"], raw["dtype"], raw["threads"]


def best_arithmetic(raws: list[dict[str, Any]]) -> dict[tuple[Any, ...], float]:
    """The fastest that a byte of x was computed, in any cell."""
    best: dict[tuple[Any, ...], float] = {}
    for raw in raws:
        for seconds in raw["times"].get("arithmetic", []):
            a_byte = seconds / cell_of(raw).tensor_bytes()
            best[computed_by(raw)] = min(best.get(computed_by(raw), math.inf), a_byte)
    return best


def ran_with(threads: int, pages: str) -> str:
    """In words."""
    return f"{threads} thread{'s' if threads > 1 else ''}, {pages[:-1]} {pages[-1].upper()}B pages"


def verdict(met: bool) -> str:
    """The word that begins a line of the summary."""
    return "met    " if met else "NOT MET"


class Named(Protocol):
    """What can be the worst of its kind."""

    def name(self) -> str:
        """As it is printed."""


def worst_line(title: str, rows_of: Iterable[Named], value: Callable[[Any], float | None], least: float,
               unit: str) -> str:
    """Whether every row reaches `least`, and the row that is the farthest from it."""
    valued = [(found, row) for row in rows_of if (found := value(row)) is not None]
    if not valued:
        return f"-        {title}: not measured"
    found, row = min(valued, key=lambda pair: pair[0])
    short = sum(v < least for v, _ in valued)
    return (f"{verdict(found >= least)}  {title} >= {least:.2f}{unit}: worst {found:.2f}, {row.name()}"
            f" ({len(valued) - short} of {len(valued)} cells reach it)")


def mean_line(title: str, values: list[float], least: float) -> str:
    """Whether the geometric mean reaches `least`."""
    if not values:
        return f"-        {title}: not measured"
    mean = statistics.geometric_mean(values)
    return f"{verdict(mean >= least)}  {title} >= {least:.2f}: {mean:.2f} over {len(values)} cells"


def summary(all_rows: list[Row]) -> list[str]:
    """The aims, a line each."""
    return [*bound_lines(all_rows), *limit_lines(all_rows), *rival_lines(all_rows), *overhead_lines(all_rows)]


def bound_lines(all_rows: list[Row]) -> list[str]:
    """hbn against the memory bound, where x has 3 MB or more."""
    large = [row for row in all_rows if row.cell.tensor_bytes() >= LARGE]
    aims = [("forward_inference", dtype, least) for dtype, least in
            (("float32", 0.95), ("bfloat16", 0.9), ("float16", 0.9))]
    aims += [("forward_training", "", 0.9), ("backward", "", 0.9)]
    return [worst_line(f"{operation}{' ' + dtype if dtype else ''}",
                       [r for r in large if r.cell.operation == operation and dtype in ("", r.cell.dtype)],
                       lambda row: row.share("hbn"), least, " of the bound") for operation, dtype, least in aims]


def limited(all_rows: Iterable[Row]) -> list[tuple[float, Row]]:
    """hbn's time divided by the limit, where it is measured and x has more than 64 KB."""
    return [(1 / share, row) for row in all_rows if row.cell.tensor_bytes() > LEAST_LIMITED
            and (share := row.share_of_limit("hbn")) is not None]


def limit_lines(all_rows: list[Row]) -> list[str]:
    """hbn against the limit: everywhere, and by operation, layout and dtype."""
    every = limited(all_rows)
    if not every:
        return ["-        within the limit: arithmetic was not measured"]
    worst, row = max(every, key=lambda pair: pair[0])
    within = sum(times <= MOST_OF_LIMIT for times, _ in every)
    median = statistics.median(times for times, _ in every)
    lines = [f"{verdict(worst <= MOST_OF_LIMIT)}  within {MOST_OF_LIMIT:.2f} of the limit in every cell above 64 KB: "
             f"worst {worst:.2f}, {row.name()} ({within} of {len(every)} cells are)",
             f"{verdict(median <= MEDIAN_OF_LIMIT)}  within {MEDIAN_OF_LIMIT:.2f} of the limit in the median: "
             f"{median:.2f}"]
    for operation, layout, dtype in itertools.product(OPERATIONS, LAYOUTS, DTYPES):
        group = limited(r for r in all_rows if r.cell[:3] == (operation, layout, dtype))
        if group:
            worst, row = max(group, key=lambda pair: pair[0])
            median = statistics.median(times for times, _ in group)
            lines.append(f"{verdict(worst <= MOST_OF_LIMIT and median <= MEDIAN_OF_LIMIT)}    {operation} "
                         f"{layout.upper()} {dtype}: median {median:.2f}, worst {worst:.2f}, {row.cell.shape_name()} "
                         f"threads={row.threads} pages={row.pages}, by {row.limited_by}{beside_loops(group)}")
    return lines


def beside_loops(group: list[tuple[float, Row]]) -> str:
    """How hand-written loops do on the same tensors."""
    ratios = [ratio for _, row in group if (ratio := row.ratio("loops")) is not None]
    return f"; hand-written loops' time / hbn's: median {statistics.median(ratios):.2f}" if ratios else ""


def rival_lines(all_rows: list[Row]) -> list[str]:
    """hbn against PyTorch and oneDNN."""
    def ratios(rival: str, selected: Iterable[Row]) -> list[float]:
        return [ratio for row in selected if (ratio := row.ratio(rival)) is not None]

    headline = [row for row in all_rows if row.cell[:3] == ("forward_training", "nchw", "float32")]
    return [
        worst_line("PyTorch's time / hbn's", all_rows, lambda row: row.ratio("torch"), 1.0, ""),
        mean_line("PyTorch's time / hbn's, geometric mean of float32 NCHW forward_training",
                  ratios("torch", headline), 3.5),
        mean_line("PyTorch's time / hbn's, geometric mean", ratios("torch", all_rows), 1.5),
        worst_line("oneDNN's time / hbn's", all_rows, lambda row: row.ratio("onednn"), 0.97, ""),
        mean_line("oneDNN's time / hbn's, geometric mean", ratios("onednn", all_rows), 1.5),
    ]


def overhead_lines(all_rows: list[Row]) -> list[str]:
    """What a call costs above its arithmetic, when there is next to nothing to do.

    The arithmetic is as long as the shape that is fastest for its size takes for as many elements.
    """
    lines = []
    for row in all_rows:
        if row.cell.shape != (12, 4, 8, 8) or row.cell.dtype != "float32" or row.threads != 1 or "hbn" not in row.best:
            continue
        alike = [r for r in all_rows if r.cell[:3] == row.cell[:3] and (r.threads, r.pages) == (1, row.pages)
                 and "hbn" in r.best]
        arithmetic = math.prod(row.cell.shape) * min(r.best["hbn"] / math.prod(r.cell.shape) for r in alike)
        overhead = (row.best["hbn"] - arithmetic) * 1e6
        lines.append(f"{verdict(overhead <= MOST_OVERHEAD)}  a call, {row.name()}, above its arithmetic <= "
                     f"{MOST_OVERHEAD:.2f} us: {overhead:.2f}; all of it {row.best['hbn'] * 1e6:.2f} us"
                     + "".join(f", {NAMES[r]} {row.best[r] * 1e6:.2f} us" for r in RIVALS if r in row.best))
    lines.append("         no heap allocation in a steady-state call: tests/allocation_test.cpp asserts it")
    return lines


def notes(results: dict[str, Any]) -> list[str]:
    """What was not measured, or went wrong."""
    lines = [f"{NAMES.get(name, name)} is not in this run: {reason}" for name, reason in results["missing"].items()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for raw in results["cells"]:
        for name, reason in raw["unsupported"].items():
            if name not in LIMITS:
                where = f"{raw['operation']} {raw['layout']} {raw['dtype']}"
                reasons.setdefault((name, reason.split(". ")[0]), []).append(where)
        for name, difference in raw["difference_from_hbn"].items():
            if not difference < (1e-4 if raw["dtype"] == "float32" else 0.02):
                lines.append(f"{NAMES[name]} and hbn disagree by {difference:.1e}: {raw['operation']} {raw['layout']} "
                             f"{raw['dtype']} {raw['shape']}")
    for (name, reason), places in reasons.items():
        lines.append(f"{NAMES[name]} does not do {', '.join(sorted(set(places)))}: {reason}")
    return lines + results["errors"]


def markdown(results: dict[str, Any], all_rows: list[Row]) -> str:
    """The summary, what was run, and every cell."""
    machine = results["machine"]
    caches = ", ".join(f"{name} {size >> 10} KB" for name, size in machine["cache_bytes"].items())
    lines = ["# Measured", "", "    " + "\n    ".join(summary(all_rows)), "",
             f"- {machine['cpu']}, {machine['threads']} processors, {caches}; commit {machine['commit']}",
             *(f"- {NAMES.get(name, name)}: {version}" for name, version in results["versions"].items()),
             *(f"- environment{where}: `{' '.join(f'{k}={v}' for k, v in variables.items())}`"
               for where, variables in environments(results)),
             *(f"- {note}" for note in notes(results)), "", *digest(all_rows), "", *arithmetic_table(results),
             "Best times in microseconds. The bound is *italic* where it reads all twice. The limit is the larger of "
             "what memory and arithmetic take, and says which; loops is what hand-written loops take, where memory and "
             "arithmetic add up as they have to. In brackets the shares of the bound and of the limit."]
    for threads, pages, dtype in dict.fromkeys((row.threads, row.pages, row.cell.dtype) for row in all_rows):
        lines += ["", f"## {dtype}, {ran_with(threads, pages)}", "",
                  "| cell | bound | limit | loops | hbn | PyTorch | oneDNN | loops / hbn | PyTorch / hbn | oneDNN / hbn |",
                  "| --- " * 10 + "|"]
        lines += [table_row(row) for row in all_rows
                  if (row.threads, row.pages, row.cell.dtype) == (threads, pages, dtype)]
    return "\n".join(lines) + "\n"


def environments(results: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """What workers got, by the size of their pages: in words, and their variables."""
    recorded = results["environment"]
    if all(isinstance(value, str) for value in recorded.values()):  # before there was a choice of pages
        return [("", recorded)]
    return [(f" on pages of {pages.upper()}B", variables) for pages, variables in recorded.items()]


def arithmetic_table(results: dict[str, Any]) -> list[str]:
    """What the arithmetic of 64 bytes takes, and what it waits for."""
    best = best_arithmetic(results["cells"])
    if not best:
        return []
    threads = sorted({key[2] for key in best})
    core = machines.core(results["machine"]["cpu"])
    ports = f" Ports of {core.name}: {core.ports}." if core else ""
    lines = [f"Arithmetic, in nanoseconds for 64 bytes of x, of all threads together.{ports}", "",
             "| | " + " | ".join(f"{t} thread{'s' if t > 1 else ''}" for t in threads) + " | a value takes |",
             "| --- " * (len(threads) + 2) + "|"]
    for operation, dtype in dict.fromkeys(key[:2] for key in best):
        name = f"{operation} {dtype}"
        columns = [f"{best[key] * 64e9:.2f}" if (key := (operation, dtype, t)) in best else "" for t in threads]
        widened = "" if dtype == "float32" else "widen; "
        narrowed = "" if dtype == "float32" else "; round, narrow"
        columns.append(widened + (ARITHMETIC.get(name) or ARITHMETIC[operation]) + narrowed)
        lines.append(f"| {name} | " + " | ".join(columns) + " |")
    return [*lines, ""]


def digest(all_rows: list[Row]) -> list[str]:
    """A line for each operation, layout, dtype, number of threads and size of pages: what the README shows."""
    lines = ["| | share of the bound: median (worst) | share of the limit | hand-written loops' time / hbn's "
             "| faster than PyTorch: geometric mean (worst) | than oneDNN |", "| --- " * 6 + "|"]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in all_rows:
        groups.setdefault((*row.cell[:3], row.threads, row.pages), []).append(row)
    for (operation, layout, dtype, threads, pages), group in groups.items():
        columns = [f"{operation} {layout.upper()} {dtype}, {ran_with(threads, pages)}",
                   median_and_worst([share for row in group if row.cell.tensor_bytes() >= LARGE
                                     and (share := row.share("hbn")) is not None]),
                   median_and_worst([1 / times for times, _ in limited(group)]),
                   median_and_worst([ratio for _, row in limited(group) if (ratio := row.ratio("loops")) is not None])]
        for rival in RIVALS:
            ratios = [ratio for row in group if (ratio := row.ratio(rival)) is not None]
            columns.append(f"{statistics.geometric_mean(ratios):.1f} x ({min(ratios):.2f} x)" if ratios else "")
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def median_and_worst(shares: list[float]) -> str:
    """As the digest has them."""
    return f"{statistics.median(shares):.2f} ({min(shares):.2f})" if shares else ""


def table_row(row: Row) -> str:
    """One cell of the grid, as a line of a table."""
    bound = f"{row.bound * 1e6:.1f}"
    columns = [f"{row.cell.operation} {row.cell.layout} {row.cell.shape_name()}",
               f"*{bound}*" if row.two_sweeps else bound,
               f"{row.limit * 1e6:.1f} {row.limited_by}" if row.limit is not None else "",
               f"{row.best['loops'] * 1e6:.1f}" if "loops" in row.best else ""]
    for contestant in ("hbn", *RIVALS):
        shares = [share for share in (row.share(contestant), row.share_of_limit(contestant)) if share is not None]
        columns.append(f"{row.best[contestant] * 1e6:.1f} ({', '.join(f'{share:.2f}' for share in shares)})"
                       if contestant in row.best else "")
    columns += [f"{ratio:.2f}" if (ratio := row.ratio(rival)) is not None else "" for rival in ("loops", *RIVALS)]
    return "| " + " | ".join(columns) + " |"


def chart(all_rows: list[Row], path: pathlib.Path) -> None:
    """Shares of the bound, and what the limit leaves of it: float32, all threads, a panel for each operation and layout."""
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use("svg")
    from matplotlib import pyplot  # pylint: disable=import-outside-toplevel

    threads = max(row.threads for row in all_rows)
    pages = "4k" if any(row.pages == "4k" for row in all_rows) else "2m"  # as users have it
    drawn = [row for row in all_rows
             if (row.cell.dtype, row.threads, row.pages) == ("float32", threads, pages)]
    figure, panels = pyplot.subplots(len(OPERATIONS), len(LAYOUTS), figsize=(14, 11), sharey=True, squeeze=False)
    for i, operation in enumerate(OPERATIONS):
        for j, layout in enumerate(LAYOUTS):
            draw_panel(panels[i][j], [r for r in drawn if r.cell[:2] == (operation, layout)])
            panels[i][j].set_title(f"{operation}, {layout.upper()}", fontsize=10)
        panels[i][0].set_ylabel("share of the memory bound")
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"float32, {ran_with(threads, pages)}; lines: the limit")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def draw_panel(panel: Any, panel_rows: list[Row]) -> None:
    """Bars by shape."""
    contestants = [c for c in CONTESTANTS if c in COLOURS and any(c in row.best for row in panel_rows)]
    for k, contestant in enumerate(contestants):
        panel.bar([x + (k - (len(contestants) - 1) / 2) * 0.27 for x in range(len(panel_rows))],
                  [row.share(contestant) or math.nan for row in panel_rows], 0.27, label=NAMES[contestant],
                  color=COLOURS[contestant])
    for x, row in enumerate(panel_rows):
        if row.limit is not None:
            panel.hlines(row.bound / row.limit, x - 0.42, x + 0.42, color="black", linewidth=1.2)
    panel.set_ylim(0, 1.3)
    panel.axhline(1, color="black", linewidth=0.8)
    panel.set_xticks(range(len(panel_rows)), [row.cell.shape_name() for row in panel_rows], rotation=40, ha="right",
                     fontsize=7)
    panel.grid(axis="y", alpha=0.3)
