"""Halide's autoschedulers beside the default: by the fake programs, and once by the real ones."""

import os
import pathlib
import subprocess
import types

import pytest
from conftest import ROOT
from test_search import BUILD, ModelWorker
from tune import anchors, compile, results
from tune.cells import Cell
from tune.compile import Compiler
from tune.measure import Alone
from tune.search import Setting
from tune.spaces import Candidate
from tune.store import Store

CELL = Cell("forward_training", "float32", "nhwc", (4, 16, 8, 8), 2)
REAL = pathlib.Path(os.environ.get("HBN_TUNE_BUILD", ROOT / "build" / "x86"))


class Programs:
    """What the generators and the linker are told, and what comes of it."""

    def __init__(self, monkeypatch):
        self.commands, self.failing, self.slow = [], {}, []
        monkeypatch.setattr(compile, "run_alone", self.run)

    def run(self, command, seconds, prefix):
        self.commands.append(command)
        scheduler = next((word.split("=")[1] for word in command if word.startswith("autoscheduler=")), None)
        if scheduler in self.slow:
            raise subprocess.TimeoutExpired(command, seconds)
        if scheduler in self.failing:
            raise subprocess.CalledProcessError(
                1, command, stderr=f"Unhandled exception: {self.failing[scheduler]}\n\n"
            )
        if scheduler:
            name, folder = command[command.index("-n") + 1], command[command.index("-o") + 1]
            words = " ".join(["forward_training", *(word for word in command if "=" in word)])
            (pathlib.Path(folder) / f"{name}.o").write_text(words)
        else:
            linked, made = command[4], command[5]
            pathlib.Path(linked).write_text(pathlib.Path(made).read_text())


@pytest.fixture
def setting(tmp_path):
    build = types.SimpleNamespace(
        **vars(BUILD), generators=pathlib.Path("hbn_generators"), halide_targets={"avx512": "x86-64-linux"}
    )
    return Setting(Store(tmp_path / "store.sqlite"), build, Compiler(build, tmp_path / "kernels", 1), ModelWorker(),
                   Alone(), lambda text: None)  # fmt: skip


def found(setting):
    (cell,) = results.read_cells(setting.store)
    return {anchor.name: anchor for anchor in cell.anchors}


def test_all_are_compiled_and_timed(setting, monkeypatch):
    programs = Programs(monkeypatch)
    anchors.measure(setting, CELL)
    assert list(found(setting)) == list(anchors.SCHEDULERS)
    assert all(0.8 < anchor.ratio < 1.2 and anchor.why == "" for anchor in found(setting).values())
    first = programs.commands[0]
    assert {"autoscheduler=Mullapudi2016", "autoscheduler.parallelism=2", "samples=4", "num_features=16"} < set(first)
    assert {"layout=rows", "dtype=float32", "target=x86-64-linux", "plane_size=65"} < set(first)
    library = first[first.index("-p") + 1]
    assert pathlib.Path(library).name == "libautoschedule_mullapudi2016.so" and pathlib.Path(library).exists()
    assert not list((setting.compiler.folder).glob("*.o")) and not list((setting.compiler.folder).glob("*.part"))


def test_what_fails_is_kept_with_its_reason(setting, monkeypatch):
    programs = Programs(monkeypatch)
    programs.failing["Li2018"] = "Error: can't reorder RVars"
    programs.slow.append("Adams2019")
    anchors.measure(setting, CELL)
    kept = found(setting)
    assert kept["Mullapudi2016"].ratio is not None
    assert kept["Li2018"].why == "does not compile: Unhandled exception: Error: can't reorder RVars"
    assert kept["Adams2019"].why == "took longer than 120 s to compile" and kept["Adams2019"].ratio is None
    # It isn't tried again.
    before = len(programs.commands)
    anchors.measure(setting, CELL)
    assert len(programs.commands) == before and found(setting) == kept


def test_one_that_is_wrong_is_not_timed(setting, monkeypatch):
    Programs(monkeypatch)
    answers = {"Mullapudi2016": {"ok": False, "worst": 1.5, "used": True, "kernel_layout": "rows"},
               "Li2018": {"ok": False, "worst": 0.5, "used": True, "kernel_layout": "rows", "why": "scratch memory"},
               "Adams2019": {"ok": True, "worst": 0.5, "used": False, "kernel_layout": "blocks"}}  # fmt: skip

    def check(contestant):
        setting.worker.load(contestant)
        return answers[anchors.SCHEDULERS[contestant.number - anchors.NUMBER]]

    monkeypatch.setattr(setting.worker, "check", check)
    anchors.measure(setting, CELL)
    kept = found(setting)
    assert kept["Mullapudi2016"].why == "wrong results: 1.5 of what may be wrong"
    assert kept["Li2018"].ratio is not None
    assert kept["Adams2019"].why == "hbn takes blocks for these tensors"


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(anchors.importlib.util, "find_spec", lambda name: None)
    kernel = anchors.compile_one(None, CELL, "Li2018")
    assert kernel.path is None and kernel.why == "the package halide has no Li2018"


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_real_ones_are_right(tmp_path, layout):
    """The two that are quick, of the kernel with the most steps."""
    if not (REAL / "bench" / "tune_worker").exists() or not (REAL / "hbn_generators").exists():
        pytest.skip(f"{REAL} has no generators and worker: `make tune-worker` builds them")
    from tune.build import Build
    from tune.measure import Contestant, Worker

    build = Build(REAL, "x86")
    cell = Cell("backward_training", "float32", layout, (3, 19, 9, 10), 2)
    compiler, worker = Compiler(build, tmp_path, 1), Worker(build.worker)
    try:
        assert "error" not in worker.use(cell)
        for number, name in enumerate(anchors.SCHEDULERS[:2]):
            kernel = anchors.compile_one(compiler, cell, name)
            assert kernel.path, kernel.why
            answer = worker.check(Contestant(number, Candidate(anchors.KERNEL_LAYOUTS[layout]), kernel.path))
            assert answer["worst"] <= 1 and answer["used"], answer
    finally:
        worker.stop()
