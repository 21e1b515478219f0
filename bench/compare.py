"""Times two builds of hbn against each other, in one process and on the same memory.

Prints how many times faster the new build is: the ratio of the two builds' shortest times, by operation, dtype,
layout and shape, with geometric means. Fails where the geometric mean of an operation and layout is below
--threshold, and where only the base can do something. See README.md beside this file for how it is measured.
"""

import argparse
import fnmatch
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Iterable, Iterator, NamedTuple

from tqdm import tqdm

import grid
import machine

HERE = pathlib.Path(__file__).resolve().parent
DTYPES = [*grid.DTYPES, "float64"]
LAYOUTS = [*grid.LAYOUTS, "strided"]
CALL_SHAPE = (12, 4, 8, 8)  # where the cost of a call is all there is
CALL_OPERATIONS = ["forward_training", "forward_inference", "backward_training"]
MIN_SECONDS = 0.03  # for a cell: some dozens of rounds of a short call
NONE = "-"  # the dtype and layout of operations without tensors


class Cell(NamedTuple):
    """What is timed once for each build."""

    operation: str
    dtype: str
    layout: str
    shape: tuple[int, int, int, int]
    threads: int

    def shape_name(self) -> str:
        """For example 32x64x56x56; C256 where only the number of channels matters."""
        return f"C{self.shape[1]}" if self.layout == NONE else "x".join(map(str, self.shape))

    def name(self) -> str:
        """For messages."""
        return f"{self.operation} {self.dtype} {self.layout} {self.shape_name()} with {threads_name(self.threads)}"

    def request(self, seconds: float) -> str:
        """The line that the worker reads."""
        dtype = "float32" if self.dtype == NONE else self.dtype
        layout = "nchw" if self.layout == NONE else self.layout
        return " ".join(map(str, [self.operation, dtype, layout, *self.shape, self.threads, seconds]))

    def weight(self) -> float:
        """About how long it takes, for sharing out the time."""
        return 1e6 + (0 if self.layout == NONE else math.prod(self.shape))

    def is_call(self) -> bool:
        """Whether its absolute times are printed, and held against the threshold by themselves."""
        return (self.operation in CALL_OPERATIONS and self.shape == CALL_SHAPE and self.dtype == "float32"
                and self.layout == "nchw")


Timed = list[tuple[Cell, dict[str, Any]]]


def threads_name(threads: int) -> str:
    """For headings."""
    return f"{threads} thread" + ("s" if threads > 1 else "")


class Worker:
    """The program that times cells. It is started again after a cell that it doesn't survive."""

    def __init__(self, program: pathlib.Path, libraries: list[pathlib.Path]):
        self.command = [str(program), *map(str, libraries)]
        self.start()

    def start(self) -> None:
        """Runs it until it has loaded both libraries."""
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.descriptions = [self.read() for _ in self.command[1:]]
        if not all(self.descriptions):
            sys.exit("compare: the two builds could not be loaded")

    def read(self) -> str:
        """A line, or nothing where the program has ended."""
        assert self.process.stdout  # a pipe
        return self.process.stdout.readline().strip()

    def measure(self, cell: Cell, seconds: float) -> dict[str, Any]:
        """The worker's answer, or the error that ended it."""
        assert self.process.stdin  # a pipe
        self.process.stdin.write(cell.request(seconds) + "\n")
        self.process.stdin.flush()
        line = self.read()
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.start()
        return {"base_error": "", "new_error": f"the worker ended with {status}, by either build"}

    def finish(self) -> None:
        """Ends it."""
        self.process.communicate()


def words(choices: list[str]) -> Callable[[str], list[str]]:
    """A parser of options such as float32,float16: `choices` that match any of the words, which may have *."""
    def parse(text: str) -> list[str]:
        patterns = text.split(",")
        for pattern in patterns:
            if not fnmatch.filter(choices, pattern):
                raise argparse.ArgumentTypeError(f"{pattern} is none of {', '.join(choices)}")
        return [choice for choice in choices if any(fnmatch.fnmatchcase(choice, p) for p in patterns)]
    return parse


def shapes(text: str) -> list[tuple[int, ...]]:
    """12x4x8x8,1x64x112x112 as tuples; they need not be in the grid."""
    parsed = [tuple(int(size) for size in shape.split("x")) for shape in text.split(",")]
    if any(len(shape) != 4 or min(shape) < 1 for shape in parsed):
        raise argparse.ArgumentTypeError("shapes are written as 12x4x8x8")
    return parsed


def thread_counts(text: str) -> list[int]:
    """'1,all' as numbers, each once."""
    return sorted({machine.threads() if word == "all" else int(word) for word in text.split(",")})


def arguments(operations: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make compare BASE=<build folder> ARGS=...", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, required=True, metavar="FOLDER", help="the build to compare with")
    parser.add_argument("--new", type=pathlib.Path, default=HERE.parent / "build/x86", metavar="FOLDER",
                        help="the build that is compared (default: build/x86)")
    parser.add_argument("--self", action="store_true", dest="itself",
                        help="compare the base with a copy of itself: what differs from 1 is noise")
    parser.add_argument("--all", action="store_true", help="every shape of bench/grid.py")
    parser.add_argument("--operations", type=words(operations), default=operations, metavar="NAMES",
                        help="only these, for example 'stats,backward*', of " + ", ".join(operations))
    parser.add_argument("--dtypes", type=words(DTYPES), default=DTYPES, metavar="NAMES", help=",".join(DTYPES))
    parser.add_argument("--layouts", type=words(LAYOUTS), default=LAYOUTS, metavar="NAMES", help=",".join(LAYOUTS))
    parser.add_argument("--shapes", type=shapes, metavar="SHAPES", help="any, for example 12x4x8x8,1x64x112x112")
    parser.add_argument("--threads", type=thread_counts, default=[1], metavar="COUNTS",
                        help="for example 1,all (default: 1, which is the least noisy)")
    parser.add_argument("--time-budget", type=float, metavar="SECONDS",
                        help="about this long, though 6 rounds a cell at least (default: 240; --all: 1800)")
    parser.add_argument("--threshold", type=float, default=0.98, metavar="RATIO",
                        help="fail where an operation and layout are slower (default: 0.98)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every time there, too")
    options = parser.parse_args()
    options.shapes = options.shapes or (grid.SHAPES if options.all else grid.QUICK_SHAPES)
    options.time_budget = options.time_budget or (1800 if options.all else 240)
    return options


def worker_program() -> pathlib.Path:
    """Where `make compare` builds it."""
    return HERE.parent / "build/x86/bench/compare_worker"


def operations_with_tensors() -> dict[str, bool]:
    """The worker's operations, and whether each has tensors: the only list of them."""
    done = subprocess.run([str(worker_program()), "--operations"], capture_output=True, text=True, check=True)
    return {name: has == "1" for name, has in (line.split() for line in done.stdout.splitlines())}


def shared_object(build: pathlib.Path, name: str) -> pathlib.Path:
    """The library of a build folder as a shared object that keeps its symbols to itself."""
    archive = build / "libhbn.a"
    if not archive.exists():
        sys.exit(f"compare: there is no {archive}")
    folder = HERE.parent / "build/compare"
    folder.mkdir(parents=True, exist_ok=True)
    exports, out = folder / "exports.map", folder / f"{name}.so"
    exports.write_text("{ global: hbn_*; local: *; };\n")
    # -Bsymbolic: a library's own calls stay in it, whatever else is loaded.
    subprocess.run([os.environ.get("CXX", "c++"), "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs",
                    f"-Wl,--version-script={exports}", "-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive",
                    "-pthread", "-ldl", "-o", str(out)], check=True)
    return out


def cells(options: argparse.Namespace, has_tensors: dict[str, bool]) -> list[Cell]:
    """Everything to time: the three that show what a call costs first, then those with the same tensors together.

    Small tensors come first: large ones take more than their share of the time where 6 rounds do.
    """
    chosen = [Cell(operation, "float32", "nchw", CALL_SHAPE, threads)
              for operation, threads in itertools.product(CALL_OPERATIONS, options.threads)]
    for shape, dtype, layout in itertools.product(sorted(options.shapes, key=math.prod), options.dtypes,
                                                  options.layouts):
        chosen += [Cell(operation, dtype, layout, tuple(shape), threads)
                   for operation, threads in itertools.product(options.operations, options.threads)
                   if has_tensors[operation]]
    for operation, channels in itertools.product(options.operations, sorted({shape[1] for shape in options.shapes})):
        if not has_tensors[operation]:
            chosen.append(Cell(operation, NONE, NONE, (12, channels, 8, 8), min(options.threads)))
    return list(dict.fromkeys(chosen))


def run_cells(worker: Worker, todo: list[Cell], budget: float, label: str) -> Timed:
    """Times each of `todo`, all of them in about `budget` seconds."""
    timed = []
    deadline = time.monotonic() + budget
    remaining = sum(cell.weight() for cell in todo)
    for cell in tqdm(todo, desc=label, unit="cell", dynamic_ncols=True,
                     mininterval=0.1 if sys.stderr.isatty() else 10):
        seconds = max(MIN_SECONDS, (deadline - time.monotonic()) * cell.weight() / remaining)
        remaining -= cell.weight()
        timed.append((cell, worker.measure(cell, seconds)))
    return timed


def best(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The result of two processes: each build's shortest time. An error of the second is a result, too."""
    if "base_us" not in second:
        return second
    rounds = first["rounds"] + second["rounds"]
    medians = [first["median_ratio"]] * first["rounds"] + [second["median_ratio"]] * second["rounds"]
    return {**second, "base_us": min(first["base_us"], second["base_us"]),
            "new_us": min(first["new_us"], second["new_us"]), "rounds": rounds,
            "median_ratio": geometric_mean(medians),
            "differing": sorted({*first["differing"], *second["differing"]})}


def measure(options: argparse.Namespace, has_tensors: dict[str, bool]) -> dict[str, Any]:
    """Times everything."""
    base = shared_object(options.base, "base")
    if options.itself:
        new = base.with_name("base_again.so")  # another file, or it would not be loaded again
        new.unlink(missing_ok=True)  # a run that has it loaded keeps its own
        shutil.copy(base, new)
    else:
        new = shared_object(options.new, "new")
    worker = Worker(worker_program(), [base, new])
    todo = cells(options, has_tensors)
    results: dict[str, Any] = {"machine": machine.describe(), "base": worker.descriptions[0],
                               "new": worker.descriptions[1], "itself": options.itself, "cells": []}
    results["cells"] = run_cells(worker, todo, options.time_budget, "")
    # Where a process's pages lie can slow one library down for all of its rounds. What looks slower gets another
    # process, for both libraries, and the shortest of all times counts.
    doubtful = [cell for cell, _ in slower_cells(results["cells"], options.threshold)]
    if doubtful:
        worker.finish()
        worker.start()
        again = dict(run_cells(worker, doubtful, options.time_budget / 4, "again"))
        results["cells"] = [(cell, best(result, again[cell]) if cell in again else result)
                            for cell, result in results["cells"]]
    worker.finish()
    results["machine"]["load_average_after"] = os.getloadavg()
    return results


def measured(results: Timed) -> Timed:
    """Those that both builds did."""
    return [(cell, result) for cell, result in results if "base_us" in result]


def ratio(result: dict[str, Any]) -> float:
    """How many times faster the new build is."""
    return result["base_us"] / result["new_us"]


def geometric_mean(ratios: Iterable[float]) -> float:
    """Of at least one."""
    logs = [math.log(r) for r in ratios]
    return math.exp(sum(logs) / len(logs))


def mean_of(timed: Timed) -> float:
    """The geometric mean of cells' ratios."""
    return geometric_mean(ratio(result) for _, result in timed)


def grouped(timed: Timed, key: Callable[[Cell], Any]) -> dict[Any, Timed]:
    """The cells by `key`, in the order in which each first came."""
    groups: dict[Any, Timed] = {}
    for cell, result in timed:
        groups.setdefault(key(cell), []).append((cell, result))
    return groups


def columns(rows: list[list[str]]) -> Iterator[str]:
    """The rows' texts in columns: words on the left, numbers on the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(text.ljust(width) if text[:1].isalpha() or text == NONE else text.rjust(width)
                        for text, width in zip(row, widths)).rstrip()


def differing(timed: Timed) -> list[str]:
    """The outputs whose bits differ in any of the cells."""
    return sorted({name for _, result in timed for name in result["differing"]})


def table(timed: Timed) -> Iterator[str]:
    """A line for each operation, dtype and layout; a column for each shape."""
    names = list(dict.fromkeys(cell.shape_name() for cell, _ in timed))
    rows = [["operation", "dtype", "layout", *(f"({name})" for name in names), "(mean)", "bits"]]
    for key, group in grouped(timed, lambda cell: (cell.operation, cell.dtype, cell.layout)).items():
        by_shape = {cell.shape_name(): f"{ratio(result):.3f}" for cell, result in group}
        differ = differing(group)
        rows.append([*key, *(by_shape.get(name, "") for name in names), f"{mean_of(group):.3f}",
                     "differs: " + ", ".join(differ) if differ else "same"])
    # Brackets kept the headings of numbers on the right.
    rows[0] = [text.strip("()") for text in rows[0]]
    return columns(rows)


def means_table(timed: Timed) -> Iterator[str]:
    """A line for each operation, a column for each layout: what the threshold is for."""
    layouts = list(dict.fromkeys(cell.layout for cell, _ in timed))
    rows = [["operation", *layouts]]
    for operation, group in grouped(timed, lambda cell: cell.operation).items():
        by_layout = grouped(group, lambda cell: cell.layout)
        rows.append([operation, *(f"{mean_of(by_layout[name]):.3f}" if name in by_layout else "" for name in layouts)])
    return columns(rows)


def slower_groups(timed: Timed, threshold: float) -> list[Timed]:
    """The operations and layouts that are slower than they may be."""
    groups = grouped(timed, lambda cell: (cell.threads, cell.operation, cell.layout)).values()
    return [group for group in groups if mean_of(group) < threshold]


def slower_calls(timed: Timed, threshold: float) -> Timed:
    """Of the calls that take next to no time, those that are slower than they may be."""
    return [(cell, result) for cell, result in timed if cell.is_call() and ratio(result) < threshold]


def slower_cells(results: Timed, threshold: float) -> Timed:
    """The cells of both, each once."""
    timed = measured(results)
    groups = slower_groups(timed, threshold)
    return list(dict([*itertools.chain(*groups), *slower_calls(timed, threshold)]).items())


def slower(timed: Timed, threshold: float) -> Iterator[str]:
    """A line for each operation and layout, and each short call, that is slower than it may be."""
    for group in slower_groups(timed, threshold):
        cell, median = group[0][0], geometric_mean(result["median_ratio"] for _, result in group)
        yield (f"{mean_of(group):.3f}  {cell.operation} {cell.layout} with {threads_name(cell.threads)} "
               f"(by medians of rounds: {median:.3f})")
    for cell, result in slower_calls(timed, threshold):
        yield (f"{ratio(result):.3f}  {cell.name()}: {result['base_us']:.2f} us became {result['new_us']:.2f} us "
               f"(by the median of rounds: {result['median_ratio']:.3f})")


def report(results: dict[str, Any], threshold: float) -> bool:
    """Prints everything. False if something is slower than it may be, or fails."""
    timed = measured(results["cells"])
    print(f"base: {results['base']}; new: {results['new']}" + (", a copy of it" if results["itself"] else ""))
    print("Ratios of the shortest times, base / new: above 1 the new build is faster.")
    for threads, group in grouped(timed, lambda cell: cell.threads).items():
        print(f"\n{threads_name(threads)}")
        # Operations without tensors have columns of their own.
        for part in grouped(group, lambda cell: cell.layout == NONE).values():
            for line in table(part):
                print(line)
        print(f"\nGeometric means with {threads_name(threads)}")
        for line in means_table(group):
            print(line)
        median = geometric_mean(result["median_ratio"] for _, result in group)
        print(f"overall  {mean_of(group):.3f}  (by medians of rounds: {median:.3f})")
    print("\nMicroseconds of a call, float32 nchw 12x4x8x8")
    for cell, result in timed:
        if cell.is_call():
            print(f"{cell.operation} with {threads_name(cell.threads)}: base {result['base_us']:.2f}, "
                  f"new {result['new_us']:.2f}")
    different = sum(bool(result["differing"]) for _, result in timed)
    print(f"\nbits: {len(timed) - different} of {len(timed)} cells have the same outputs")
    broken = []
    for cell, result in results["cells"]:
        if result["base_error"]:
            print(f"not compared: {cell.name()}: the base says: {result['base_error']}")
        elif result["new_error"]:
            broken.append(f"{cell.name()}: {result['new_error']}")
    for line in broken:
        print(f"FAILS in the new build: {line}")
    slow = list(slower(timed, threshold))
    for line in slow:
        print(f"SLOWER than {threshold}: {line}")
    return not slow and not broken


def main() -> None:
    """Measures, prints, and fails where something is slower than it may be."""
    has_tensors = operations_with_tensors()
    options = arguments(list(has_tensors))
    results = measure(options, has_tensors)
    if options.json:
        flat = [{**cell._asdict(), **result} for cell, result in results["cells"]]
        options.json.write_text(json.dumps({**results, "cells": flat}, indent=1) + "\n", encoding="utf-8")
    if not report(results, options.threshold):
        sys.exit(1)
    print("compare: nothing is slower than it may be")


if __name__ == "__main__":
    main()
