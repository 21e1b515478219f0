"""What the tuner writes: valid always, whole always, and for one class of shapes once."""

import json
import time

import pytest
from tune import result, tables
from tune.cells import Cell
from tune.spaces import Candidate
from tune.store import Store

SHAPE = (32, 256, 56, 56)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store.sqlite")


def finished(store, shape=SHAPE, ratio=1.1, parameters=None, kernel="forward_training", dtype="float32"):
    """The row of a cell with such a result; 0: nothing was found."""
    row = store.cell(Cell(kernel, dtype, "nhwc", shape, 2), "GenuineIntel 6 207", "avx512", "build")
    found = {"candidate": None, "ratio": 1.0}
    if ratio:
        found = {
            "candidate": 1, "ratio": ratio, "ratios": [ratio, ratio + 0.02], "kernel_layout": "rows", "bound": 0.5,
            "thresholds": {"nhwc_columns": 512}, "parameters": parameters or {}, "time": time.time(),
        }  # fmt: skip
    store.update("cells", row["id"], state="done", result=json.dumps(found))
    return store.cell_row(row["id"])


def merged(store, *rows, entries=()):
    said = []
    entries = list(entries)
    for row in rows:
        entries, more = result.merge(entries, row, store)
        said += more
    return entries, said


def test_an_entry_is_for_a_class_of_shapes(store, tmp_path):
    entries, said = merged(store, finished(store))
    assert entries[0]["shapes"] == {"n": [32, 63], "c": [256, 511], "plane": [2048, 4095]} and not said
    assert entries[0]["share_of_bound"] == [0.5, 0.555]
    assert "kernel_layout" not in entries[0]  # thresholds alone need no kernel
    path = tmp_path / "x86.json"
    result.write(path, "x86", entries)
    assert result.read(path, "x86") == entries
    assert result.power_of_two_class({"n": 1, "c": 3, "plane": 4}) == {"n": [1, 1], "c": [2, 3], "plane": [4, 7]}


def test_an_entry_takes_its_predecessors_place(store):
    entries, _ = merged(store, finished(store))
    entries, said = merged(store, finished(store, ratio=1.3), entries=entries)
    assert [e["ratio"] for e in entries] == [1.3] and "replaces" in said[0]
    entries, said = merged(store, finished(store, ratio=0), entries=entries)
    assert not entries and "removes" in said[0]


def test_shapes_of_one_class_get_entries_of_their_own(store):
    entries, _ = merged(store, finished(store))
    entries, said = merged(store, finished(store, (40, 300, 50, 50), 1.2), entries=entries)
    assert [e["shapes"] for e in entries] == [
        {"n": [32, 32], "c": [256, 256], "plane": [3136, 3136]},
        {"n": [40, 40], "c": [300, 300], "plane": [2500, 2500]},
    ]
    assert "narrows" in said[0]


def test_an_entry_is_not_for_a_shape_that_gained_nothing(store):
    entries, _ = merged(store, finished(store, (40, 300, 50, 50), 0), finished(store))
    assert [e["shapes"]["n"] for e in entries] == [[32, 32]]


def test_other_cells_entries_stay(store, tmp_path):
    rows = [finished(store), finished(store, kernel="backward_training"), finished(store, dtype="bfloat16")]
    entries, said = merged(store, *rows, finished(store, (1, 8, 4, 4)))
    assert len(entries) == 4 and not said
    result.write(tmp_path / "x86.json", "x86", entries)
    assert len(result.read(tmp_path / "x86.json", "x86")) == 4


def test_a_model_takes_the_place_of_no_time(store):
    by_time, _ = merged(store, finished(store))
    assert "measured_by" not in by_time[0]
    modelled = finished(store, ratio=1.3)
    found = json.loads(modelled["result"]) | {"measured_by": "llvm-mca cortex-a53"}
    store.update("cells", modelled["id"], result=json.dumps(found))
    entries, said = merged(store, store.cell_row(modelled["id"]), entries=by_time)
    assert entries == by_time and "that was measured by time" in said[0]
    entries, _ = merged(store, store.cell_row(modelled["id"]))
    assert [(e["measured_by"], e["ratio"]) for e in entries] == [("llvm-mca cortex-a53", 1.3)]
    entries, _ = merged(store, finished(store, ratio=1.1), entries=entries)
    assert [e["ratio"] for e in entries] == [1.1] and "measured_by" not in entries[0]


def test_an_entry_is_where_a_search_begins(store):
    entries, _ = merged(store, finished(store, parameters={"row_lanes": 32}))
    cell = Cell("forward_training", "float32", "nhwc", (1, 2, 3, 4), 2)
    assert result.earlier(entries, cell, "GenuineIntel 6 207", "avx512", "rows") == [
        Candidate("rows", (("nhwc_columns", 512),), (("row_lanes", 32),))
    ]
    assert not result.earlier(entries, cell, "another", "avx512", "rows")


def test_nothing_invalid_is_written(store, tmp_path):
    path = tmp_path / "x86.json"
    entries, _ = merged(store, finished(store))
    result.write(path, "x86", entries)
    before = path.read_text()
    with pytest.raises(tables.UserError, match="nhwc_columns"):
        result.write(path, "x86", [entries[0] | {"thresholds": {"nhwc_columns": 1 << 40}}])
    assert path.read_text() == before
    path.write_text("{")
    with pytest.raises(tables.UserError, match="x86.json:1"):
        result.read(path, "x86")
