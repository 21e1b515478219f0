"""A build folder whose programs are those of fake/, and runs of hbn-tune on it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKE = pathlib.Path(__file__).resolve().parent / "fake"
sys.path.insert(0, str(ROOT / "bench"))

# ctest runs them, with the programs they need.
collect_ignore = ["test_model.py", "test_worker.py"]


def pytest_addoption(parser):
    parser.addoption(
        "--skip-none", action="store_true", help="a test that would be skipped fails: all it needs is here"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption("--skip-none"):
        report.outcome, report.longrepr = "failed", f"skipped: {call.excinfo.value}"
    return report


class Tuner:
    """hbn-tune in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.build = folder, folder / "build"
        for name, program in [("hbn_generators", "generators.sh"), ("bench/tune_worker", "worker.py")]:
            (self.build / name).parent.mkdir(parents=True, exist_ok=True)
            (self.build / name).symlink_to(FAKE / program)
        layouts = ["nchw", "nchw_few_channels", "blocks", "rows", "strided"]
        (self.build / "hbn_kernels.h").write_text(
            "".join(f"HBN_BUILT_KERNEL(forward_training, float32, {layout})\n" for layout in layouts)
        )
        (self.build / "hbn_targets.json").write_text(
            json.dumps(
                {
                    "target": "x86",
                    "instruction_sets": {"avx512": "x86-64-linux"},
                    "compiler": str(FAKE / "linker.sh"),
                    "objdump": "objdump",
                }
            )
        )
        self.store, self.out = folder / "store.sqlite", folder / "x86.json"
        self.environment = os.environ | {
            "FAKE_LOG": str(folder / "log"),
            "FAKE_BUSY": str(folder / "busy"),
        }
        (folder / "busy").mkdir()

    def command(self, *arguments, shapes="4x16x8x8", layouts="nhwc", budget=3, ops="forward_training"):
        return [
            sys.executable, str(ROOT / "bench/hbn-tune"), "--shapes", *shapes.split(), "--ops", ops,
            "--layouts", layouts, "--build", str(self.build), "--store", str(self.store), "--out", str(self.out),
            "--report", str(self.folder / "report.html"), "--time-budget", str(budget), *arguments,
        ]  # fmt: skip

    def run(self, *arguments, environment=None, **options):
        return subprocess.run(
            self.command("--no-report", *arguments, **options), capture_output=True, text=True, check=False,
            env=self.environment | (environment or {}),
        )  # fmt: skip

    def entries(self):
        return json.loads(self.out.read_text())["entries"]


@pytest.fixture
def tuner(tmp_path):
    if not shutil.which("sh"):
        pytest.skip("needs a shell")
    return Tuner(tmp_path)
