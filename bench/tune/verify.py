"""The command verify: is every tuned entry of this machine as fast as the default, in its whole class of shapes?

Each entry's kernel is compiled as the search compiles candidates, whatever the build has, and timed beside the default,
which is never an entry. Nothing is taken from the store.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import machine

from . import classes, result
from .build import Build
from .cells import Cell
from .classes import LEAST, Timer, Timing, narrowed, other_threads, shape_of
from .compile import Compiler
from .measure import Alone, Worker
from .result import Entry
from .spaces import Candidate
from .tables import UserError

VARIABLE = "HBN_INSTRUCTION_SET"
HEADINGS = ["entry", "tuned at", "shape", "threads", "ratio"]


class Verified(NamedTuple):
    """What was found of an entry."""

    timings: list[Timing]  # that at its own shape is the first
    entry: Entry | None  # what may stay of it

    def is_slow(self) -> bool:
        """Whether it is anywhere."""
        return any(is_slow(timing) for timing in self.timings)

    def was_timed(self) -> bool:
        """Whether anything is known."""
        return self.timings[0].ratio is not None


def is_slow(timing: Timing) -> bool:
    """Whether the entry is slower than the default there, or wrong. What can't be timed is not."""
    return timing.ratio is not None and timing.ratio < LEAST


def cell_of_entry(entry: Entry) -> Cell:
    """What it was tuned for."""
    n, c, h, w = entry["shape"]
    return Cell(entry["kernel"], entry["dtype"], entry["layout"], (n, c, h, w), entry["threads"])


def verify(entry: Entry, number: int, compiler: Compiler, worker: Worker, alone: Alone, narrows: bool) -> Verified:
    """Times an entry of this CPU. `narrows`: finds out which part of its class is good."""
    cell, path = cell_of_entry(entry), None
    if entry["parameters"]:
        kernel = compiler.start(cell.kernel, cell.dtype, candidate_of_entry(entry)).result()
        if kernel.why:
            return Verified([Timing(cell.shape, cell.threads, None, why=kernel.why)], entry)
        path = kernel.path
    contestant = classes.as_entry(
        number, entry.get("kernel_layout", ""), entry["thresholds"], entry["parameters"], path
    )
    timer = Timer(worker, alone, cell, contestant, checks_all=True)
    own = [timer.time(cell.shape, cell.threads)]
    if own[0].ratio is None:
        return Verified(own, entry)
    about = worker.about
    if threads := other_threads(worker, cell.threads, compiler.build.threads):
        own.append(timer.time(cell.shape, threads))
    if any(is_slow(timing) for timing in own):
        return Verified(own, None)
    sizes, most = cell.sizes(), classes.most_elements(worker, cell, about)
    if not narrows:
        for probe in classes.probes(entry["shapes"], sizes, most):
            timer.time(shape_of(probe.sizes, cell.shape), cell.threads)
        return Verified(list(timer.timings.values()), entry)
    shapes = narrowed(
        entry["shapes"], sizes, most, lambda s: not is_slow(timer.time(shape_of(s, cell.shape), cell.threads))
    )
    timings = list(timer.timings.values())
    if any(timing.ratio == 0 for timing in timings):  # it crashed, or was wrong
        return Verified(timings, None)
    worst = classes.Held(shapes, [t for t in timings if (t.shape, t.threads) != (cell.shape, cell.threads)]).worst()
    return Verified(timings, entry | {"shapes": shapes} | ({"worst_in_class": round(worst, 3)} if worst else {}))


def candidate_of_entry(entry: Entry) -> Candidate:
    """That has its kernel."""
    return Candidate(entry["kernel_layout"], (), tuple(sorted(entry["parameters"].items())))


def builds(options: argparse.Namespace, entries: list[Entry]) -> dict[str, Build]:
    """The build as it runs with each instruction set that entries of this CPU are for, and the CPU has."""
    found = {}
    for name in sorted({entry["instruction_set"] for entry in entries}):
        build = Build(options.build, options.target, options.generators, ["env", f"{VARIABLE}={name}"])
        if build.instruction_set == name:
            found[name] = build
    return found


def line(columns: list[str]) -> str:
    """Of the table."""
    widths = [36, 18, 18, 7]
    padded = [column.ljust(width) for column, width in zip(columns[:-1], widths, strict=True)]
    return "  ".join([*padded, columns[-1]]).rstrip()


def lines(entry: Entry, verified: Verified) -> list[str]:
    """An entry's."""
    found = []
    for timing in verified.timings:
        ratio = "     " if timing.ratio is None else f"{timing.ratio:.3f}"
        verdict = timing.why or ("slower than the default" if is_slow(timing) else "")
        if not verdict and timing.noise > classes.NOISE:
            verdict = f"noisy: the default's times differ by {timing.noise:.0%}"
        name = " ".join(entry[key] for key in ("kernel", "dtype", "layout"))
        shapes = ["x".join(map(str, shape)) for shape in (entry["shape"], timing.shape)]
        found.append(line([name, *shapes, str(timing.threads), f"{ratio}  {verdict}".rstrip()]))
    return found


def run(options: argparse.Namespace) -> int:
    """Prints a table. 1 where an entry is slower than the default, unless that was set right."""
    path = options.file or options.out
    if options.file and not path.exists():
        raise UserError(f"there is no {path}")
    entries = result.read(path, options.target)
    cpu = Build(options.build, options.target, options.generators).cpu
    mine = [entry for entry in entries if entry["cpu"] == cpu]
    found: dict[int, Verified] = {}
    compilers: list[Compiler] = []
    workers: list[Worker] = []
    print(f"{len(mine)} of {len(entries)} entries of {path} are for this CPU, {cpu}")
    try:
        for name, build in builds(options, mine).items():
            compiler = Compiler(build, options.store.parent / "kernels", machine.threads())
            compilers.append(compiler)
            worker, alone = Worker(build.worker), Alone()
            workers.append(worker)
            chosen = [
                (i, entry) for i, entry in enumerate(entries) if entry in mine and entry["instruction_set"] == name
            ]
            kernels = [
                compiler.start(entry["kernel"], entry["dtype"], candidate_of_entry(entry))
                for _, entry in chosen
                if entry["parameters"]
            ]
            for kernel in kernels:  # nothing compiles while times are taken
                kernel.result()
            print(
                f"\nWith {name}. Ratio: the default's time / the entry's, the worst of repeated runs\n{line(HEADINGS)}"
            )
            for i, entry in chosen:
                found[i] = verify(entry, i + 1, compiler, worker, alone, options.fix)
                print("\n".join(lines(entry, found[i])), flush=True)
    finally:
        for worker in workers:
            worker.stop()
        for compiler in compilers:
            compiler.finish()
    return conclude(options, path, entries, mine, found)


def conclude(
    options: argparse.Namespace, path: Any, entries: list[Entry], mine: list[Entry], found: dict[int, Verified]
) -> int:
    """Says what is wrong, and sets it right where that is asked for."""
    if len(found) < len(mine):
        print(f"\n{len(mine) - len(found)} entries are for instruction sets that this build or CPU lacks: not timed")
    unknown = sum(not verified.was_timed() for verified in found.values())
    if unknown:
        print(f"\n{unknown} entries could not be timed")
    bad = [i for i, verified in found.items() if verified.is_slow()]
    if not bad:
        print(f"\nNone{' of the others' * bool(unknown)} is slower than the default (under {LEAST})")
        return 1 if unknown else 0
    removed = [i for i in bad if not found[i].entry]
    print(f"\n{len(bad)} of {len(found)} entries are slower than the default somewhere (under {LEAST})")
    if not options.fix:
        print("--fix removes or narrows them")
        return 1
    kept = [found[i].entry if i in bad else entry for i, entry in enumerate(entries)]
    result.write(path, options.target, [entry for entry in kept if entry])
    print(f"{path}: {len(removed)} removed, {len(bad) - len(removed)} narrowed")
    return 1 if unknown else 0
