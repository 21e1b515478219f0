"""Writes schedules/tuned/TARGET.json, of what searches found."""

import datetime
import json
import os
import pathlib
import sqlite3
import statistics
from typing import Any

from . import tables
from .cells import Cell
from .spaces import Candidate
from .store import Store, cell_of
from .tables import tuned

TUNED = tables.ROOT / "schedules" / "tuned"

Entry = dict[str, Any]
Class = dict[str, list[int]]  # the least and the most of n, c and plane


def read(path: pathlib.Path, target: str) -> list[Entry]:
    """The entries of a tuned file, which must be valid; none where there is no file."""
    if not path.exists():
        return []
    try:
        return [entry for _, entry in tuned.load(path, target)]
    except tuned.Invalid as error:
        raise tables.UserError(str(error)) from error


def ordered(entries: list[Entry]) -> list[Entry]:
    """In the order of a file."""
    return sorted(entries, key=lambda e: [str(e[k]) for k in ("cpu", "kernel", "dtype", "layout")] + e["shape"])


def write(path: pathlib.Path, target: str, entries: list[Entry]) -> None:
    """Replaces the file at once, an entry in a few lines; the order doesn't depend on the order of tuning."""
    texts = [_entry_text(entry) for entry in ordered(entries)]
    text = f'{{\n  "$schema": "schema.json",\n  "target": {json.dumps(target)},\n  "entries": [' + ",".join(texts)
    text += "\n  ]\n}\n" if texts else "]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    read(part, target)  # nothing invalid takes its place
    part.replace(path)


LINES = [["kernel", "dtype", "layout"], ["shapes"], ["cpu", "instruction_set"], ["thresholds"],
         ["kernel_layout", "parameters"],
         ["shape", "threads", "ratio", "worst_in_class", "share_of_bound", "measured_by", "date"]]  # fmt: skip
"""What is on one line of an entry."""


def _entry_text(entry: Entry) -> str:
    others = [name for name in entry if not any(name in line for line in LINES)]
    lines = [[name for name in line if name in entry] for line in [*LINES, others]]
    return "\n    {" + ",\n     ".join(
        ", ".join(f"{json.dumps(name)}: {json.dumps(entry[name])}" for name in line) for line in lines if line
    ) + "}"  # fmt: skip


def power_of_two_class(sizes: dict[str, int]) -> Class:
    """From a power of two up to the next, for each size."""
    return {name: [1 << size.bit_length() - 1, (1 << size.bit_length()) - 1] for name, size in sizes.items()}


def exact_class(sizes: dict[str, int]) -> Class:
    """These sizes alone."""
    return {name: [size, size] for name, size in sizes.items()}


def class_of(row: sqlite3.Row) -> Class:
    """What a finished cell found a result for."""
    sizes = cell_of(row).sizes()
    found = json.loads(row["result"] or "{}")
    # Searches of before classes were timed don't say for which shapes.
    return (found.get("shapes") or power_of_two_class(sizes)) if found.get("candidate") else exact_class(sizes)


def entry_of(row: sqlite3.Row) -> Entry | None:
    """The entry that a finished cell gives; none where nothing was found."""
    result = json.loads(row["result"] or "{}")
    if not result.get("candidate"):
        return None
    cell = cell_of(row)
    entry: Entry = {
        "kernel": cell.kernel, "dtype": cell.dtype, "layout": cell.layout, "shapes": class_of(row),
        "cpu": row["cpu"], "instruction_set": row["instruction_set"], "thresholds": result["thresholds"],
    }  # fmt: skip
    if result["parameters"]:
        entry["kernel_layout"] = result["kernel_layout"]
    entry |= {
        "parameters": result["parameters"], "shape": list(cell.shape), "threads": cell.threads,
        "ratio": round(result["ratio"], 3),
    }  # fmt: skip
    if worst := result.get("worst_in_class"):
        entry["worst_in_class"] = round(worst, 3)
    if bound := result.get("bound"):
        entry["share_of_bound"] = [round(bound, 3), round(bound * statistics.median(result["ratios"]), 3)]
    if by := result.get("measured_by"):
        entry["measured_by"] = by
    entry["date"] = datetime.date.fromtimestamp(result["time"]).isoformat()
    return entry


def _same_group(entry: Entry, row: sqlite3.Row) -> bool:
    """Whether they could be about the same call, but for the shape."""
    return all(entry[name] == row[name] for name in tuned.GROUP)


def merge(entries: list[Entry], row: sqlite3.Row, store: Store) -> tuple[list[Entry], list[str]]:
    """The entries with what a finished cell found in place of what was known of its shape, and what there is to say.

    A class of shapes that holds another shape with a result of its own, in the file or in the store, is not one class:
    each entry is then for its own shape alone.
    """
    cell, entry, said = cell_of(row), entry_of(row), []
    sizes, wide = cell.sizes(), class_of(row)
    if json.loads(row["result"] or "{}").get("measured_by"):
        for old in entries:
            if _same_group(old, row) and tuned.overlap(old["shapes"], wide) and "measured_by" not in old:
                return entries, [f"leaves the entry for {old['shapes']} as it is: that was measured by time"]
    kept = []
    for old in entries:
        if not _same_group(old, row) or not tuned.overlap(old["shapes"], wide):
            kept.append(old)
            continue
        old_sizes = tuned.sizes_of(old["shape"])
        if old_sizes == sizes:
            said.append(
                f"replaces the entry for {old['shapes']}" if entry else f"removes the entry for {old['shapes']}"
            )
            continue
        if old["shapes"] != exact_class(old_sizes):
            said.append(f"narrows the entry for {old['shapes']} to its shape {'x'.join(map(str, old['shape']))}")
        kept.append(old | {"shapes": exact_class(old_sizes)})
        wide = exact_class(sizes)
    for other in store.rows(
        "SELECT * FROM cells WHERE state = 'done' AND kernel = ? AND dtype = ? AND layout = ? AND cpu = ? AND "
        "instruction_set = ? AND build = ? AND id != ?",
        *(row[name] for name in ("kernel", "dtype", "layout", "cpu", "instruction_set", "build", "id")),
    ):  # fmt: skip
        other_sizes = cell_of(other).sizes()
        if other_sizes != sizes and tuned.overlap(exact_class(other_sizes), wide):
            wide = exact_class(sizes)
    if entry:
        entry["shapes"] = wide
        kept.append(entry)
    return kept, said


def earlier(entries: list[Entry], cell: Cell, cpu: str, instruction_set: str, default_layout: str) -> list[Candidate]:
    """What entries have for a cell, as candidates: where a search begins."""
    found = []
    for entry in entries:
        if tuple(entry[name] for name in tuned.GROUP) == (cell.kernel, cell.dtype, cell.layout, cpu, instruction_set):
            thresholds = dict(entry["thresholds"])
            layout = thresholds.pop("layout", entry.get("kernel_layout", default_layout))
            found.append(
                Candidate(layout, tuple(sorted(thresholds.items())), tuple(sorted(entry["parameters"].items())))
            )
    return found
