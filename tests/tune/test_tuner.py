"""The command hbn-tune, on the programs in fake/; and one real tuning of a small cell, where hbn is built."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from tune import tables

PARAMETERS = [p for p in tables.parameters() if "rows" in p.layouts and "x86" in p.families]
REAL = ROOT / "build" / "x86"


BY_MODEL = ["--target", "arm64", "--measure", "instructions", "--remote"]


def probed(parameter):
    """A value that a search tries at first."""
    from tune.search import probe_value

    return f"{parameter.name}={probe_value(tuple(parameter.values))}"


def query(tuner, text):
    with sqlite3.connect(tuner.store) as connection:
        return connection.execute(text).fetchall()


def test_tunes_reports_and_has_nothing_to_do_again(tuner):
    done = tuner.run("--trials", "25", budget=60, shapes="4x16x8x8 8x16x8x8")
    assert done.returncode == 0, done.stderr
    assert "8x16x8x8" in done.stdout and "share of bound" in done.stdout and str(tuner.out) in done.stdout
    assert [entry["shape"] for entry in tuner.entries()] == [[4, 16, 8, 8], [8, 16, 8, 8]]
    assert all(entry["ratio"] > 1.2 and entry["cpu"] == "FakeCpu 1 2" for entry in tuner.entries())
    report = subprocess.run(
        [sys.executable, ROOT / "bench/hbn-tune", "report", "--store", tuner.store, "--out", tuner.out, "--build",
         tuner.build, "--report", tuner.folder / "report.html"], env=tuner.environment, check=False,
    )  # fmt: skip
    assert report.returncode == 0 and "8x16x8x8" in (tuner.folder / "report.html").read_text()
    before, log = tuner.out.read_text(), (tuner.folder / "log").stat().st_size
    again = tuner.run("--trials", "25", budget=60, shapes="4x16x8x8 8x16x8x8")
    assert again.returncode == 0 and tuner.out.read_text() == before
    assert (tuner.folder / "log").read_text()[log:].split() == ["machine"]


def test_what_fails_is_recorded_and_never_chosen(tuner):
    # Wrong results come ten times as fast; the second ends the worker, the third doesn't compile.
    wrong, crash, refused = (probed(p) for p in PARAMETERS[:3])
    done = tuner.run(
        "--trials", "40", budget=60, environment={"FAKE_WRONG": wrong, "FAKE_CRASH": crash, "FAKE_REFUSED": refused}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failed = dict(query(tuner, "SELECT key, why FROM candidates WHERE state = 'failed'"))
    assert failed[f"rows {wrong}"].startswith("wrong results: 7.0")
    assert failed[f"rows {crash}"] == "crashed: the worker ended with 139"
    for setting in (wrong, crash, refused):
        assert not query(
            tuner, f"SELECT key FROM candidates WHERE state = 'measured' AND ' ' || key || ' ' LIKE '% {setting} %'"
        )
    ratio = query(tuner, "SELECT MAX(ratio) FROM candidates")[0][0]
    assert 1.2 < ratio < 4  # the wrong ones would have 10
    settings = {f"{k}={v}" for entry in tuner.entries() for k, v in entry["parameters"].items()}
    assert settings and not settings & {wrong, crash, refused}
    # A parameter that a kernel hasn't got is no choice: nothing more of it was compiled.
    name = refused.split("=")[0]
    assert not query(tuner, f"SELECT key FROM candidates WHERE key LIKE '% {name}=%'")


def test_killed_at_any_time_it_goes_on_where_it_was(tuner):
    seen, kills = {}, 0
    for wait in (1.2, 1.4, 1.7):
        process = subprocess.Popen(
            tuner.command("--trials", "120", budget=600), env=tuner.environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(wait)
        kills += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if tuner.store.exists():
            now = dict(query(tuner, "SELECT key, state || finished FROM candidates WHERE state != 'new'"))
            assert seen.items() <= now.items()  # nothing is lost, and nothing done again
            seen = now
    assert kills == 3 and len(seen) > 10
    done = tuner.run("--trials", "120", budget=600)
    assert done.returncode == 0, done.stderr
    now = dict(query(tuner, "SELECT key, state || finished FROM candidates"))
    assert seen.items() <= now.items() and len(now) == 120
    assert not query(tuner, "SELECT key FROM candidates WHERE state = 'new'")
    repeated = "SELECT candidate FROM measurements WHERE stage = 'short' GROUP BY candidate HAVING COUNT(*) > 1"
    assert not query(tuner, repeated)
    assert len(query(tuner, "SELECT id FROM measurements WHERE stage = 'final'")) == 6 * 3
    assert tuner.entries()[0]["ratio"] > 1.3


def test_interrupted_it_says_how_to_go_on(tuner):
    process = subprocess.Popen(
        tuner.command(budget=600), env=tuner.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # What a shell starts in the background ignores it, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr.readline()  # it has begun
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in errors


def test_a_second_signal_does_not_cut_the_end_short(tuner):
    # As `timeout SECONDS make tune` does it: timeout signals make and make's children, and make its children again.
    slow = tuner.folder / "slow.sh"
    slow.write_text('#!/bin/sh\nsleep 2\nexec "$@"\n')
    slow.chmod(0o755)
    process = subprocess.Popen(
        tuner.command(budget=600), env=tuner.environment | {"HBN_TUNE_COMPILE_WITH": str(slow)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr.readline()  # it has begun, and waits for compilers
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in errors


def test_more_time_searches_on(tuner):
    assert tuner.run(budget=1).returncode == 0
    first = query(tuner, "SELECT COUNT(*) FROM candidates")[0][0]
    assert tuner.run(budget=3).returncode == 0
    assert query(tuner, "SELECT COUNT(*) FROM candidates")[0][0] > first
    assert query(tuner, "SELECT state FROM cells") == [("done",)]
    assert 1 < query(tuner, "SELECT spent FROM cells")[0][0] < 8


def test_a_cell_that_fails_leaves_the_others(tuner):
    done = tuner.run("--trials", "8", budget=60, shapes="4x16x8x8 666x16x8x8")
    assert done.returncode == 0
    assert "666x16x8x8: left out: no memory for such a shape" in done.stdout
    assert dict(query(tuner, "SELECT n, state FROM cells")) == {4: "done", 666: "failed"}


def test_says_every_10_s_how_far_it_is(tuner):
    said = tuner.run("--trials", "8", budget=60).stderr
    assert "60 s left  1/1 forward_training float32 nhwc 4x16x8x8: " in said


def test_dry_run(tuner):
    done = tuner.run("--dry-run", layouts="nchw,nhwc")
    assert done.returncode == 0 and not tuner.store.exists()
    assert "forward_training float32 nchw 4x16x8x8: at most" in done.stdout
    assert "2 cells, 2 s each, on FakeCpu 1 2 with avx512" in done.stdout


def test_measures_alone_where_the_machine_is_shared(tuner):
    holds = tuner.folder / "holds"
    holder = tuner.folder / "holder.sh"
    holder.write_text(f'#!/bin/sh\necho held >> {holds}\nexec "$@"\n')
    holder.chmod(0o755)
    done = tuner.run("--trials", "8", budget=60, environment={"HBN_TUNE_MEASURE_WITH": str(holder)})
    assert done.returncode == 0, done.stderr
    assert len(holds.read_text().split()) >= 2


@pytest.mark.parametrize(
    "command, text",
    [("no-such-program", "no-such-program: No such file"), ("false", "'false' does not run the command")],
)
def test_what_should_hold_others_off_must_work(tuner, command, text):
    done = tuner.run("--trials", "8", budget=60, environment={"HBN_TUNE_MEASURE_WITH": command})
    assert done.returncode == 2 and f"HBN_TUNE_MEASURE_WITH: {text}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--ops", "bachward"], "there is no operation 'bachward': allowed are forward, backward, "),
        (["--dtypes", "float"], "'float' is not known: allowed are float32"),
        (["--shapes", "4x16x8"], "4x16x8"),
        (["--shapes", "4x16x8x0"], "each from 1 to"),
        (["--dtypes", "float16"], "has no kernel forward_training for float16"),
        (["--build", "nowhere"], "there is no nowhere/bench/tune_worker: `make tune` builds it"),
        (["--target", "cuda"], "there is no tuning for target 'cuda' yet"),
        (["--target", "arm65"], "there is no tuning for target 'arm65'"),
        (["--target", "arm64"], "target 'arm64' does not run on this machine: --remote names the command"),
        (["--target", "arm64", "--remote", "env"], "build is a build for x86, not for arm64: --build names another"),
        (["--remote", "no-such-program"], "no-such-program: No such file or directory"),
        (["--remote", "sh -c 'echo unknown host >&2; exit 255'"], "does not run: unknown host"),
        (["--measure", "cycles-model"], "--measure cycles-model needs --model-cpu"),
        (["--model-cpu", "cortex-a53"], "--measure cycles-model needs --model-cpu, and nothing else has it"),
        (["--measure", "instructions"], "kernels of target arm64 alone are measured: --target arm64"),
        ([*BY_MODEL, "env"], "--remote must begin with it, for example --remote 'qemu-aarch64 "),
        ([*BY_MODEL, "qemu-none"], "qemu-none is missing: sudo apt-get install qemu-user"),
        ([*BY_MODEL, "qemu-fake", "--anchors"], "a model measures calls of one thread, and no anchors"),
        ([*BY_MODEL, "qemu-fake", "--threads", "2"], "a model measures calls of one thread, and no anchors"),
        (["--time-budget", "0"], "'0' is no number above 0"),
        (["--threads", "0"], "'0' is no whole number above 0"),
        (["--jobs", "-1"], "'-1' is no whole number above 0"),
    ],
)
def test_errors_say_what_is_allowed(tuner, arguments, text):
    (tuner.folder / "qemu-fake").symlink_to("/bin/true")
    done = tuner.run(*arguments, environment={"PATH": f"{tuner.folder}:{os.environ['PATH']}"})
    assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr
    assert not tuner.out.exists()


def test_a_broken_tuned_file_is_found_before_time_is_spent(tuner):
    tuner.out.write_text('{\n  "target": "x86",\n  "entries": [{"kernel": "bachward"}]\n}\n')
    done = tuner.run()
    assert done.returncode == 2 and "x86.json:3: entries[0]" in done.stderr
    check = subprocess.run(
        [sys.executable, ROOT / "bench/hbn-tune", "check", tuner.out], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert check.returncode == 1 and "x86.json:3" in check.stderr


def test_one_tuner_at_a_time(tuner):
    process = subprocess.Popen(
        tuner.command(budget=600), env=tuner.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        while not tuner.store.exists():
            time.sleep(0.05)
        done = tuner.run()
        assert done.returncode == 2 and "another hbn-tune uses" in done.stderr
    finally:
        process.kill()
        process.wait()


def test_a_remote_worker_gets_candidates_by_its_pipe_alone(tuner):
    # It is told of no file.
    kernels = tuner.folder / "kernels"
    done = tuner.run("--remote", """sh -c 'cd / && exec "$0"'""", "--trials", "12", budget=60)
    assert done.returncode == 0, done.stderr
    assert tuner.entries()[0]["ratio"] > 1.1 and list(kernels.glob("*.so"))
    lines = (tuner.folder / "log").read_text()
    assert "candidate " in lines and str(kernels) not in lines
    # As many threads as the device has.
    assert query(tuner, "SELECT threads FROM cells") == [(2,)] and " 8 8 2\n" in lines


def test_a_connection_that_breaks_ends_it_and_fails_no_more_than_one(tuner):
    starts = tuner.folder / "starts"
    broken = tuner.folder / "broken.sh"
    # The first two are asked of the machine and the cell; a candidate ends the second one, and there is no third.
    broken.write_text(f'#!/bin/sh\necho >> {starts}\n[ $(wc -l < {starts}) -lt 3 ] || exit 255\nexec "$@"\n')
    broken.chmod(0o755)
    refused = probed(PARAMETERS[0])
    done = tuner.run("--remote", str(broken), "--trials", "12", budget=60, environment={"FAKE_CRASH": refused})
    assert done.returncode == 2 and "started again: the worker ended with 255" in done.stderr
    assert "the same command goes on" in done.stderr and "Traceback" not in done.stderr
    assert not query(tuner, "SELECT key FROM candidates WHERE state = 'failed'")
    starts.unlink()
    done = tuner.run("--trials", "12", budget=60)
    assert done.returncode == 0, done.stderr
    assert tuner.entries() and not query(tuner, "SELECT key FROM candidates WHERE state IN ('new', 'failed')")


def test_what_compiles_too_long_ends_with_all_that_it_started(tmp_path):
    from tune.compile import run_alone

    turn = tmp_path / "turn.sh"
    turn.write_text('#!/bin/sh\nsleep 0.7\nexec "$@"\n')
    turn.chmod(0o755)
    mark = tmp_path / "mark"
    run_alone(["touch", str(mark)], 0.5, [str(turn)])  # the wait for its turn doesn't count
    assert mark.exists()
    begin, late = time.monotonic(), tmp_path / "late"
    with pytest.raises(subprocess.TimeoutExpired):
        run_alone(["sh", "-c", f"(sleep 1.5; touch {late}) & wait"], 0.3, [str(turn)])
    assert time.monotonic() - begin < 1.5
    time.sleep(1.5)
    assert not late.exists()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run_alone(["sh", "-c", "echo said >&2; exit 3"], 5)
    assert failed.value.returncode == 3 and failed.value.stderr == "said\n"


def test_what_is_too_slow_to_be_timed_is_slow(tuner):
    slow = probed(PARAMETERS[0])
    done = tuner.run("--trials", "12", budget=60, environment={"FAKE_SLOW": slow})
    assert done.returncode == 0, done.stderr
    rows = query(tuner, f"SELECT state, ratio, why FROM candidates WHERE key = 'rows {slow}'")
    assert rows == [("slow", pytest.approx(0.001, rel=0.1), "too slow to be timed more than once")]


def test_help_without_what_it_needs():
    done = subprocess.run([ROOT / "bench/hbn-tune", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--time-budget" in done.stdout and "hbn-tune report" in done.stdout


@pytest.mark.skipif(
    not all((REAL / name).exists() for name in ["hbn_generators", "bench/tune_worker", "hbn_targets.json"]),
    reason="needs `make tune-worker`",
)
def test_a_real_tuning(tuner):
    command = tuner.command(
        "--trials", "3", "--threads", "1", "--build", str(REAL), "--no-report", budget=60, ops="forward_inference",
        layouts="nchw",
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = query(tuner, "SELECT state, worst, why FROM candidates")
    assert len(rows) == 3 and all(state in ("measured", "slow", "same") for state, _, _ in rows), rows
    assert all(worst < 1 for _, worst, _ in rows if worst is not None)
