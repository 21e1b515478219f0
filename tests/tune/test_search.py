"""The search, in this process, by the model of fake/worker.py."""

import concurrent.futures
import json
import statistics
import sys
import types

import optuna
from conftest import FAKE
from tune import search, tables
from tune.cells import Cell
from tune.compile import Kernel
from tune.measure import Alone, Worker
from tune.search import Search, Setting
from tune.spaces import Candidate
from tune.store import Store, candidate_of

sys.path.insert(0, str(FAKE))
import worker as model  # noqa: E402

CELL = Cell("forward_training", "float32", "nhwc", (4, 16, 8, 8), 2)


class ModelWorker(Worker):
    """The model without a process."""

    def __init__(self):
        super().__init__([])

    def _start(self):
        self.process, self.loaded, self.model = types.SimpleNamespace(), {}, model.Worker()
        self.about = self._ask(self.cell.request())

    def _ask(self, line, seconds=0):
        return json.loads(json.dumps(self.model.answer(line)))

    def stop(self):
        self.process = None


class ModelCompiler:
    """Writes what the fake generators would."""

    def __init__(self, folder):
        self.folder = folder

    def start(self, kernel, dtype, candidate):
        settings = [f"{name}={value}" for name, value in candidate.parameters]
        words = " ".join([kernel, f"dtype={dtype}", f"layout={candidate.kernel_layout}", *settings])
        path = self.folder / words.replace(" ", "_")
        path.write_text(words)
        future = concurrent.futures.Future()
        future.set_result(Kernel(path, words))
        return future


BUILD = types.SimpleNamespace(
    cpu="FakeCpu 1 2", instruction_set="avx512", fingerprint="1", family="x86", measured_by="", compiler="c++",
    threads=2,
    kernel_layouts=lambda kernel, dtype: ["nchw", "nchw_few_channels", "blocks", "rows"],
)  # fmt: skip


def make_search(folder, cell=CELL, seed=1, **options):
    folder.mkdir(exist_ok=True)
    setting = Setting(Store(folder / "store.sqlite"), BUILD, ModelCompiler(folder), ModelWorker(), Alone(),
                      lambda text: None, seed=seed, **options)  # fmt: skip
    found = Search(cell, setting)
    found.prepare()
    return found


def truth(candidate, layout="rows"):
    """The default's time / the candidate's, without noise."""
    thresholds = dict(candidate.thresholds)
    time = model.cost(candidate.kernel_layout, dict(candidate.parameters), thresholds)
    return model.cost(layout, {}, {}) / time


def measured(found):
    return [row for row in found.store.candidates(found.row["id"]) if row["ratio"] is not None]


def trials_to_reach(found, target):
    """How many candidates were tried until one was so good."""
    for number, row in enumerate(found.store.candidates(found.row["id"]), 1):
        if row["state"] == "measured" and truth(candidate_of(row)) >= target:
            return number
    return len(found.store.candidates(found.row["id"])) * 2  # at least


def test_only_serving_layouts_and_effective_choices_are_searched(tmp_path):
    found = make_search(tmp_path)
    assert list(found.space.layouts) == ["rows"]
    names = {choice.name for choice in found.space.layouts["rows"]}
    assert "nhwc_columns" in names and "few_channels" not in names
    assert names - {"nhwc_columns"} == {
        p.name for p in tables.parameters() if "rows" in p.layouts and "x86" in p.families
    }


def test_values_that_are_too_few_for_the_dtype_are_left_out(tmp_path, monkeypatch):
    start = ModelCompiler.start

    def refuse(self, kernel, dtype, candidate):
        if dict(candidate.parameters).get("row_lanes", 32) >= 32:
            return start(self, kernel, dtype, candidate)
        future = concurrent.futures.Future()
        why = "does not compile: Unhandled exception: Error: row_lanes=8 map_unroll=1: allowed are 32 to 256 lanes"
        future.set_result(Kernel(None, "", why))
        return future

    before = {choice.name: choice.values for choice in make_search(tmp_path / "all").space.layouts["rows"]}
    monkeypatch.setattr(ModelCompiler, "start", refuse)
    values = {choice.name: choice.values for choice in make_search(tmp_path / "some").space.layouts["rows"]}
    assert values == before | {"row_lanes": (0, 32, 64)}


def test_finds_the_optimum_sooner_than_chance(tmp_path, monkeypatch):
    best = max(truth(Candidate("rows", thresholds)) for thresholds in [(), (("nhwc_columns", 512),)])
    for p in tables.parameters():
        if "rows" in p.layouts and "x86" in p.families:
            best *= (
                max(truth(Candidate("rows", (), ((p.name, value),))) for value in p.values[1:]) if p.values[1:] else 1
            )
    target = best**0.75
    ours = []
    for seed in range(3):
        found = make_search(tmp_path / f"ours{seed}", seed=seed, most_trials=100)
        found.run(1e9)
        ours.append(trials_to_reach(found, target))
    make_study = search.make_study
    monkeypatch.setattr(search, "make_study", lambda seed: make_study(seed, optuna.samplers.RandomSampler(seed)))
    monkeypatch.setattr(Search, "first_candidates", lambda self: [])
    monkeypatch.setattr(Search, "_near_best", lambda self: [])
    chance = []
    for seed in range(3):
        found = make_search(tmp_path / f"chance{seed}", seed=seed, most_trials=100)
        found.run(1e9)
        chance.append(trials_to_reach(found, target))
    print(best, ours, chance)
    assert statistics.mean(ours) < statistics.mean(chance) / 1.5


def test_a_small_space_is_searched_once(tmp_path, monkeypatch):
    parameters = [p for p in tables.parameters() if "rows" in p.layouts and "x86" in p.families][:2]
    monkeypatch.setattr(tables, "parameters", lambda: [p._replace(values=p.values[:3]) for p in parameters])
    found = make_search(tmp_path)
    found.run(1e9)
    rows = found.store.candidates(found.row["id"])
    assert found.exhausted and len(rows) == len({row["key"] for row in rows}) == found.space.size() < 100
    assert not [row for row in rows if row["state"] == "new"]
    assert max(truth(candidate_of(row)) for row in rows) == truth(candidate_of(found.best()))


def test_what_is_clearly_slower_gets_no_long_measurement(tmp_path):
    found = make_search(tmp_path, most_trials=60)
    found.run(1e9)
    rows = measured(found)
    slow = [row for row in rows if row["state"] == "slow"]
    assert len(slow) > 10
    assert not [row for row in slow if found.store.measurements(row["id"], "long")]
    assert max(row["ratio"] for row in slow) < found.best()["ratio"]


def test_the_default_again_is_not_measured(tmp_path):
    found = make_search(tmp_path, most_trials=5)
    found.run(1e9)
    row = found.store.candidates(found.row["id"])[0]
    assert (row["key"], row["state"], row["why"], row["ratio"]) == ("rows", "same", "the default", 1.0)


def test_the_result_is_the_worst_of_repeated_measurements(tmp_path):
    found = make_search(tmp_path, most_trials=60)
    found.run(1e9)
    found.finals()
    result = json.loads(found.store.cell_row(found.row["id"])["result"])
    finals = found.store.measurements(result["candidate"], "final")
    assert len(finals) == 6 and len({row["process"] for row in finals}) == 3
    assert result["ratio"] == min(row["ratio"] for row in finals) > 1.3
    assert 0 < result["bound"] < 1


def test_small_gains_are_not_kept(tmp_path):
    found = make_search(tmp_path, most_trials=30, least_gain=1000)
    found.run(1e9)
    found.finals()
    assert json.loads(found.store.cell_row(found.row["id"])["result"])["candidate"] is None


def test_another_shape_begins_with_what_was_found(tmp_path):
    first = make_search(tmp_path, most_trials=60)
    first.run(1e9)
    best = candidate_of(first.best())
    other = make_search(tmp_path, cell=CELL._replace(shape=(8, 16, 8, 8)), most_trials=4)
    assert best in other.first_candidates()
    other.run(1e9)
    assert best.key() in {row["key"] for row in other.store.candidates(other.row["id"])}


def test_settings_without_an_effect_are_left_out(tmp_path):
    found = make_search(tmp_path, most_trials=40)
    found.run(1e9)
    # Of equals the simplest: best() with each setting left out was tried.
    keys = {row["key"] for row in found.store.candidates(found.row["id"])}
    best = candidate_of(found.best())
    assert found.simpler() == [] or any(c.key() not in keys for c in found.simpler())
    needless = Candidate("rows", (("nhwc_columns", 64), ("few_channels", 0)), best.parameters)
    assert found.needed_thresholds(needless) == {}
