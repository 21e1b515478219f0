"""What is found at one shape is kept for the part of its class where it holds; and hbn-tune verify."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_search import BUILD, CELL, make_search
from tune import classes, result
from tune.classes import Timer, narrowed, probes
from tune.measure import Alone
from tune.results import read_cells
from tune.store import Store

SIZES = {"n": 4, "c": 16, "plane": 64}  # CELL's
CLASS = {"n": [4, 7], "c": [16, 31], "plane": [64, 127]}
MANY = 1 << 40
TUNED = {"unroll_rows": 4, "row_lanes": 16}


# ---- which shapes


def test_probes_span_a_class():
    found = probes(CLASS, SIZES, MANY)
    assert [probe.sizes for probe in found] == [
        {"n": 7, "c": 31, "plane": 127},
        {"n": 5, "c": 25, "plane": 103},
    ]  # the least corner is what was tuned
    inside = probes(CLASS, {"n": 5, "c": 24, "plane": 100}, MANY)
    assert [probe.sizes for probe in inside][0] == SIZES and len(inside) == 3
    assert probes({name: [size, size] for name, size in SIZES.items()}, SIZES, MANY) == []
    assert [probe.sizes for probe in probes({"n": [1, 1], "c": [1, 1], "plane": [1, 1]}, SIZES, MANY)] != []


def test_what_is_too_large_gets_fewer_samples_first():
    most = probes(CLASS, SIZES, 4 * 31 * 127)[0].sizes
    assert most == {"n": 4, "c": 31, "plane": 127}
    most = probes(CLASS, SIZES, 4 * 20 * 127)[0].sizes
    assert most == {"n": 4, "c": 20, "plane": 127}
    assert all(math.prod(p.sizes.values()) <= 4 * 16 * 70 for p in probes(CLASS, SIZES, 4 * 16 * 70))


def test_shapes_have_the_plane():
    assert classes.shape_of(SIZES | {"plane": 56 * 57}, (4, 16, 8, 8)) == (4, 16, 56, 57)
    assert classes.shape_of(SIZES | {"plane": 103}, (4, 16, 8, 8)) == (4, 16, 1, 103)
    assert classes.shape_of(SIZES, (4, 16, 4, 16)) == (4, 16, 4, 16)


@pytest.mark.parametrize(
    ("holds", "left"),
    [
        (lambda s: True, {}),
        (lambda s: s["plane"] < 100, {"plane": [64, 80]}),
        (lambda s: s["plane"] > 70, {"plane": [80, 127]}),
        (lambda s: s["plane"] % 16 == 0, {"plane": [80, 80]}),
        (lambda s: s["c"] == 20 and s["n"] < 6, {"c": [20, 20], "n": [4, 5]}),
        # Only both together are too much.
        (lambda s: s["c"] < 30 or s["plane"] < 120, {"n": [4, 5], "c": [16, 20], "plane": [64, 80]}),
        (lambda s: False, {"n": [5, 5], "c": [20, 20], "plane": [80, 80]}),
    ],
)
def test_narrowed_along_what_fails(holds, left):
    sizes, asked = {"n": 5, "c": 20, "plane": 80}, []

    def ask(other):
        asked.append(tuple(other.values()))
        return holds(other)

    found = narrowed(CLASS, sizes, MANY, ask)
    assert found == CLASS | left
    assert all(holds(probe.sizes) for probe in probes(found, sizes, MANY))
    assert tuple(sizes.values()) not in asked and len(set(asked)) < 16


# ---- times


class Noisy:
    """A worker whose default differs from itself in some processes."""

    is_exact = False

    def __init__(self, noise, ratios=(1.1,)):
        self.noise, self.ratios, self.processes = noise, ratios, -1

    def use(self, cell, for_times_alone=False):
        self.processes += 1
        return {}

    def check(self, contestant):
        return {"ok": True}

    def measure(self, seconds, contestants):
        ratio = self.ratios[self.processes % len(self.ratios)]
        again, mine = (contestant.text() for contestant in contestants)
        noise = self.noise[self.processes % len(self.noise)]
        return {"default": {"median": 1.0}, mine: {"median": 1.0}, "ratios": {mine: [ratio], again: [1 + noise]}}


def timing(worker):
    contestant = classes.as_entry(1, "rows", {"nhwc_columns": 512}, {}, None)
    return Timer(worker, Alone(), CELL, contestant).time((7, 31, 1, 127), 2)


def test_what_the_default_is_not_itself_in_does_not_count():
    worker = Noisy([0.0, 0.05, 0.002], [1.02, 0.5, 1.2])
    found = timing(worker)
    assert found.ratio == 1.02 and found.noise == pytest.approx(0.002) and worker.processes == 2
    worker = Noisy([0.05], [1.1, 0.95])
    found = timing(worker)  # all is noise
    assert found.ratio == 0.95 and found.noise == pytest.approx(0.05) and found.limit() == classes.LEAST
    assert worker.processes == classes.PROCESSES + classes.MORE_PROCESSES - 1


def test_the_limit_follows_the_noise():
    assert timing(Noisy([0.0])).limit() == 0.995
    assert timing(Noisy([0.001, -0.004], [1.01])).limit() == pytest.approx(0.992)
    fast = Noisy([0.001], [1.06])
    assert timing(fast).ratio == 1.06 and fast.processes == 0  # that is plenty
    slow = Noisy([0.0], [0.9])
    assert timing(slow).ratio == 0.9 and slow.processes == 0  # the worst counts: there is no need for more


# ---- the tuner's part


def held(tmp_path, monkeypatch, slow, is_exact=False, **options):
    monkeypatch.setenv("FAKE_SLOW_AT", slow)
    found = make_search(tmp_path, most_trials=12)
    found.setting.worker.is_exact = is_exact
    found.run(1e9)
    found.finals(**options)
    row = found.store.cell_row(found.row["id"])
    assert row["state"] == "done"
    return found, row, json.loads(row["result"])


def test_the_whole_class_where_it_holds(tmp_path, monkeypatch):
    found, row, kept = held(tmp_path, monkeypatch, "")
    assert kept["shapes"] == CLASS and row["why"] is None
    # At both other shapes, and with one thread: twice.
    measured = classes.known(found.store, kept["candidate"])
    assert sorted({(*m["shape"], m["threads"]) for m in measured}) == [
        (4, 16, 8, 8, 1), (5, 25, 1, 103, 2), (7, 31, 1, 127, 2)
    ]  # fmt: skip
    assert len(measured) == 3 * 2
    assert kept["worst_in_class"] == min(m["ratio"] for m in measured) > 1.1
    entry = result.entry_of(row)
    assert entry["shapes"] == CLASS and entry["worst_in_class"] == round(kept["worst_in_class"], 3)
    (cell,) = read_cells(Store(found.store.path))
    assert cell.best.shapes == CLASS and [e.threads for e in cell.best.elsewhere] == [1, 2, 2]


@pytest.mark.parametrize(
    ("slow", "left"), [("plane>100", {"plane": [64, 64]}), ("c%16", {"c": [16, 16]}), ("n>6", {"n": [4, 4]})]
)
def test_a_class_is_narrowed_where_it_does_not_hold(tmp_path, monkeypatch, slow, left):
    found, row, kept = held(tmp_path, monkeypatch, slow)
    assert kept["shapes"] == CLASS | left and min(kept["ratio"], kept["worst_in_class"]) > 1.1
    assert "7x31x1x127, 2 threads: 0." in kept["why"] and row["why"] is None
    assert result.entry_of(row)["shapes"] == CLASS | left


def test_what_is_slower_with_another_number_of_threads_is_no_entry(tmp_path, monkeypatch):
    found, row, kept = held(tmp_path, monkeypatch, "threads=1")
    assert kept["candidate"] is None and row["why"].startswith("no entry, slower at 4x16x8x8, 1 thread: 0.")
    assert result.entry_of(row) is None
    tried = found.store.rows("SELECT DISTINCT candidate FROM class_measurements")
    assert len(tried) == 3  # each finalist


def test_what_there_is_no_time_for_is_no_part_of_the_class(tmp_path, monkeypatch):
    found, row, kept = held(tmp_path, monkeypatch, "", rest=lambda: lambda: 0)
    assert kept["shapes"] == result.exact_class(SIZES) and classes.NO_TIME in kept["why"]
    assert {m["threads"] for m in classes.known(found.store, kept["candidate"])} == {1}  # that is always measured


def test_by_a_model_each_shape_is_measured_once(tmp_path, monkeypatch):
    found, row, kept = held(tmp_path, monkeypatch, "c>30 threads=1", is_exact=True)
    assert kept["shapes"] == CLASS | {"c": [16, 16]} and len(kept["ratios"]) == 1
    measured = classes.known(found.store, kept["candidate"])
    assert [(*m["shape"], m["threads"], m["process"], m["repeat"]) for m in measured] == [
        (7, 31, 1, 127, 2, 0, 0),  # and each of its sizes alone: channels it are
        (7, 16, 8, 8, 2, 0, 0), (4, 31, 8, 8, 2, 0, 0), (4, 16, 1, 127, 2, 0, 0),
        (7, 16, 1, 127, 2, 0, 0), (5, 16, 1, 103, 2, 0, 0),
    ]  # fmt: skip
    assert kept["worst_in_class"] == min(m["ratio"] for m in measured if m["c"] == 16) > 1.1


def test_what_a_model_has_no_time_for_is_no_part_of_the_class(tmp_path, monkeypatch):
    found, row, kept = held(tmp_path, monkeypatch, "", is_exact=True, rest=lambda: lambda: 0)
    assert kept["shapes"] == result.exact_class(SIZES) and classes.known(found.store, kept["candidate"]) == []
    assert "worst_in_class" not in result.entry_of(row)


def test_a_class_with_another_cell_is_not_measured(tmp_path, monkeypatch):
    first = make_search(tmp_path, cell=CELL._replace(shape=(5, 20, 8, 8)), most_trials=1)
    assert first.row["state"] == "new"
    found, row, kept = held(tmp_path, monkeypatch, "")
    assert kept["shapes"] == result.exact_class(SIZES)


def test_it_takes_a_part_of_the_share(tmp_path):
    found = make_search(tmp_path, most_trials=1)
    worker = found.setting.worker
    assert found.final_seconds() > classes.final_seconds(worker, BUILD, CELL, found.setup_seconds)
    worker.about = {"default_seconds": 1e-5, "bytes": 1 << 20}
    short = classes.final_seconds(worker, BUILD, CELL, 0.1)
    assert short > 3 * 2 * 2 * 3 * 0.15 - 1e-9
    worker.about["default_seconds"] = 0.01
    assert classes.final_seconds(worker, BUILD, CELL, 1.0) > short
    worker.is_exact = True  # seconds are a model's then, and setting up is what takes time
    larger = (7 * 31 * 127 + 5 * 25 * 103) / math.prod(CELL.shape)
    assert classes.final_seconds(worker, BUILD, CELL, 0.5) == pytest.approx(2 * 0.5 * larger)


def test_killed_in_between_it_measures_the_rest(tuner):
    command = tuner.command("--trials", "8", "--threads", "2", "--no-report", budget=60)
    environment = tuner.environment | {"FAKE_SLOW_AT": "plane>100"}

    def rows():
        with sqlite3.connect(tuner.store) as store:
            names = "candidate, n, c, h, w, threads, process, repeat"
            return store.execute(f"SELECT {names}, ratio FROM class_measurements ORDER BY id").fetchall()

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline, seen = time.monotonic() + 60, []
    while len(seen) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        try:
            seen = rows()
        except sqlite3.OperationalError:  # there is no store or no table yet
            time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    seen = rows()
    assert not tuner.out.exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    now = rows()
    assert now[: len(seen)] == seen and len(now) > len(seen)
    assert len({row[:-1] for row in now}) == len(now)  # nothing twice
    (entry,) = tuner.entries()
    assert entry["shapes"] == CLASS | {"plane": [64, 64]} and entry["worst_in_class"] > 1


# ---- verify


def entry_for(shape, parameters=TUNED, cpu="FakeCpu 1 2", **more):
    n, c, h, w = shape
    shapes = result.power_of_two_class({"n": n, "c": c, "plane": h * w})
    return {
        "kernel": "forward_training", "dtype": "float32", "layout": "nhwc", "shapes": shapes, "cpu": cpu,
        "instruction_set": "avx512", "thresholds": {}, "kernel_layout": "rows", "parameters": parameters,
        "shape": list(shape), "threads": 2, "ratio": 1.2, "date": "2026-11-26",
    } | more  # fmt: skip


def verified(tuner, *arguments, slow=""):
    command = [
        sys.executable, ROOT / "bench/hbn-tune", "verify", tuner.out, "--build", tuner.build, "--store", tuner.store,
        *arguments,
    ]  # fmt: skip
    log = tuner.folder / "log"
    log.unlink(missing_ok=True)
    return subprocess.run(
        command, env=tuner.environment | {"FAKE_SLOW_AT": slow}, capture_output=True, text=True, check=False
    )


def good_parameters():
    """Of the model: a value that is nearer to its best one than the default is."""
    from test_search import model

    for name, parameter in model.PARAMETERS.items():
        best = model.best_position(name, len(parameter.values))
        if best and "rows" in parameter.layouts and "x86" in parameter.families:
            return {name: parameter.values[best]}
    raise AssertionError


def test_verify_finds_a_bad_entry_and_sets_it_right(tuner):
    good = good_parameters()
    other = entry_for((4, 16, 16, 16), good, cpu="Another 1 2")
    result.write(tuner.out, "x86", [entry_for((4, 16, 8, 8), good), other])
    before = tuner.out.read_text()
    done = verified(tuner, slow="n=7")  # a corner
    assert done.returncode == 1 and "1 of 1 entries are slower than the default somewhere" in done.stdout, done.stderr
    assert tuner.out.read_text() == before and "1 of 2 entries of" in done.stdout
    lines = [line.split(maxsplit=7) for line in done.stdout.splitlines() if line.startswith("forward_training")]
    assert [line[4:6] for line in lines] == [
        ["4x16x8x8", "2"], ["4x16x8x8", "1"], ["7x31x1x127", "2"], ["5x25x1x103", "2"]
    ]  # fmt: skip
    assert [line[7:] for line in lines] == [[], [], ["slower than the default"], []]
    assert all((float(line[6]) < 0.5) == bool(line[7:]) for line in lines)
    said_to_worker = (tuner.folder / "log").read_text()
    assert " 4 16 8 8 2" in said_to_worker and " 4 16 16 16 " not in said_to_worker  # that of another CPU
    done = verified(tuner, "--fix", slow="n=7")
    assert done.returncode == 0 and "0 removed, 1 narrowed" in done.stdout
    kept, same = sorted(tuner.entries(), key=lambda entry: entry["cpu"], reverse=True)
    assert kept["shapes"] == CLASS | {"n": [4, 4]} and kept["worst_in_class"] > 1 and same == other
    done = verified(tuner, slow="n=7")
    assert done.returncode == 0 and "None is slower than the default" in done.stdout
    # It is compiled by the search's own compiler, whatever the build has.
    assert len(list((tuner.folder / "kernels").glob("*.so"))) == 1
    # With another number of threads it goes. That of another CPU stays.
    done = verified(tuner, "--fix", slow="threads=1")
    assert done.returncode == 0 and "1 removed, 0 narrowed" in done.stdout and tuner.entries() == [other]


def test_verify_finds_wrong_results_and_keeps_what_it_can_not_time(tuner):
    good = good_parameters()
    setting = "{}={}".format(*next(iter(good.items())))
    refused = next(f"{name}=8" for name in ("row_lanes", "unroll_rows") if name not in good)
    other = {refused.split("=")[0]: 8}
    result.write(tuner.out, "x86", [entry_for((4, 16, 8, 8), good), entry_for((666, 16, 8, 8), good),
                                    entry_for((64, 16, 8, 8), other)])  # fmt: skip
    tuner.environment |= {"FAKE_WRONG": setting, "FAKE_REFUSED": refused}
    done = verified(tuner, "--fix")
    assert done.returncode == 1 and "wrong results: 7.0" in done.stdout, done.stdout + done.stderr
    assert "no memory for such a shape" in done.stdout and "has no effect on this kernel" in done.stdout
    assert "2 entries could not be timed" in done.stdout and "1 removed" in done.stdout
    assert [entry["shape"][0] for entry in tuner.entries()] == [64, 666]


def test_verify_says_what_it_lacks(tuner):
    done = verified(tuner)
    assert done.returncode == 2 and f"there is no {tuner.out}" in done.stderr
    result.write(tuner.out, "x86", [entry_for((4, 16, 8, 8), instruction_set="avx2")])
    done = verified(tuner)
    assert done.returncode == 0 and "1 entries are for instruction sets that this build or CPU lacks" in done.stdout
    tuner.out.write_text("{")
    done = verified(tuner)
    assert done.returncode == 2 and "x86.json:1" in done.stderr and "Traceback" not in done.stderr
