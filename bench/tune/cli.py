"""The command hbn-tune."""

from __future__ import annotations

import argparse
import fcntl
import functools
import json
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import machine

from . import model, result, tables
from .build import Build, generators_of
from .cells import Cell, Shape, make_cells
from .spaces import Candidate
from .store import Store, cell_of
from .tables import ROOT, UserError, tuned

DESCRIPTION = """\
Finds schedule parameters and run-time thresholds that are faster than hbn's defaults for your shapes on this machine,
and keeps them in schedules/tuned/TARGET.json, which the next build takes up.

  hbn-tune --shapes 32x256x56x56 32x64x56x56 --ops forward_training,backward
  hbn-tune report          an HTML page of what was searched and found
  hbn-tune check [FILE]    says whether a tuned file is valid
  hbn-tune verify [FILE]   times its entries again, in their whole classes of shapes
  hbn-tune pack            parameters for a board's pack, for size or for cycles; pack --help has its options

The tuner may be stopped at any time: the same command goes on where it was. A larger --time-budget searches on.
"""


LAST_SHARE = 0.25
"""Of a cell's time: for its class of shapes, whatever the search took."""


def words(choices: list[str]) -> Any:
    """A parser of options such as float32,float16."""

    def parse(text: str) -> list[str]:
        names = text.replace(",", " ").split()
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"'{name}' is not known: allowed are {', '.join(choices)}")
        return list(dict.fromkeys(names))

    return parse


def kernels(text: str) -> list[str]:
    """The kernels of operations, or of kernels, by name."""
    try:
        names = [tables.kernel_of(name) for name in text.replace(",", " ").split()]
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return list(dict.fromkeys(names))


def positive(text: str) -> float:
    """A number of seconds, for one."""
    try:
        if (number := float(text)) > 0:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")


def count(text: str) -> int:
    """A number of threads, for one."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="hbn-tune", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", metavar="{tune,report,check,verify,pack}")
    tune = commands.add_parser("tune", help="search (this is what it does without a command)")
    what = tune.add_argument_group("what to tune")
    what.add_argument("--shapes", nargs="+", default=[], metavar="NxCxHxW", help="shapes, or files of them")
    what.add_argument("--model", nargs="+", default=[], metavar="FILE.onnx", help="those of ONNX models")
    what.add_argument("--batch", type=count, metavar="N", help="for models that leave the size of a batch open")
    what.add_argument("--ops", type=kernels, default=kernels("forward_training forward_inference backward"),
                      metavar="NAMES", help="operations or kernels, for example forward_training,backward (the "
                      "default: these and forward_inference)")  # fmt: skip
    what.add_argument("--dtypes", type=words(tables.DTYPES), default=["float32"], metavar="NAMES",
                      help="of " + ",".join(tables.DTYPES) + " (default: float32)")  # fmt: skip
    what.add_argument("--layouts", type=words(tables.TENSOR_LAYOUTS), default=tables.TENSOR_LAYOUTS, metavar="NAMES",
                      help="of " + ",".join(tables.TENSOR_LAYOUTS) + " (default: both)")  # fmt: skip
    what.add_argument("--threads", type=count, metavar="N",
                      help="that calls will use (default: all processors; by a model one)")  # fmt: skip
    how = tune.add_argument_group("how")
    how.add_argument("--time-budget", type=positive, default=480, metavar="SECONDS",
                     help="for everything, earlier runs of the same included (default: 480)")  # fmt: skip
    how.add_argument("--least-gain", type=positive, default=1.02, metavar="RATIO",
                     help="a result below is not kept (default: 1.02)")  # fmt: skip
    how.add_argument("--jobs", type=count, default=machine.threads(), metavar="N",
                     help="that compile at once (default: all processors)")  # fmt: skip
    how.add_argument("--trials", type=count, default=sys.maxsize, metavar="N", help="at most so many candidates a cell")
    how.add_argument("--seed", type=int, default=1, metavar="N", help="of the search (default: 1)")
    how.add_argument(
        "--anchors",
        action="store_true",
        help="time what Halide's autoschedulers make of the same, too, for the report (minutes more)",
    )
    how.add_argument("--remote", type=shlex.split, default=[], metavar="COMMAND",
                     help="runs the worker on the device: its path becomes the last argument, its input and output are "
                     "the command's, for example 'qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu'")  # fmt: skip
    how.add_argument("--measure", choices=model.MEASURES, default="time",
                     help="what candidates are compared by: their time (the default); llvm-mca's cycles for what qemu "
                     "executes; or the number of these instructions")  # fmt: skip
    how.add_argument("--model-cpu", choices=list(model.CPUS), metavar="NAME",
                     help="that --measure cycles-model models: " + ", ".join(model.CPUS))  # fmt: skip
    how.add_argument("--no-report", action="store_true", help="write no HTML report")
    how.add_argument("--dry-run", action="store_true", help="say what would be searched, and stop")
    again = commands.add_parser("verify", help="time a tuned file's entries of this machine beside the default")
    again.add_argument("file", nargs="?", type=pathlib.Path, metavar="FILE",
                       help="default: schedules/tuned/TARGET.json")  # fmt: skip
    again.add_argument("--fix", action="store_true", help="remove or narrow those that are slower than the default")
    again.set_defaults(target="host", out=None, report=None)
    reported = commands.add_parser("report", help="write the HTML report")
    targets = {tune: "with --remote any that has a build", reported: "or any that was tuned"}
    for command in (tune, reported, again):
        files = command.add_argument_group("files")
        if command in targets:
            files.add_argument("--target", default="host", metavar="NAME",
                               help=f"host: this machine (default); {targets[command]}")  # fmt: skip
        files.add_argument("--build", type=pathlib.Path, metavar="FOLDER", help="default: build/TARGET")
        files.add_argument("--generators", type=pathlib.Path, metavar="FILE",
                           help="default: that of the build folder, else build/x86/hbn_generators")  # fmt: skip
        beside = "kernels are kept beside it, nothing in it " if command is again else ""
        files.add_argument("--store", type=pathlib.Path, metavar="FILE",
                           help=f"{beside}(default: build/tune/TARGET.sqlite)")  # fmt: skip
        if command is again:
            continue  # it writes its FILE alone
        files.add_argument("--out", type=pathlib.Path, metavar="FILE",
                           help="tuned file (default: schedules/tuned/TARGET.json)")  # fmt: skip
        files.add_argument("--report", type=pathlib.Path, metavar="FILE", help="default: build/tune/TARGET.html")
    commands.add_parser("pack", help="find a pack's parameters", add_help=False)  # pack.py parses what follows
    check = commands.add_parser("check", help="validate a tuned file")
    check.add_argument("file", nargs="?", type=pathlib.Path, metavar="FILE",
                       help="default: schedules/tuned/TARGET.json of this machine")  # fmt: skip
    return top


def host() -> str | None:
    """The target family of this machine's processor; none where tuning it isn't known."""
    return {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm64"}.get(platform.machine())


def target_of(name: str) -> str:
    """The target that is meant."""
    found = host() if name == "host" else name
    if found is None or found not in tuned.FAMILIES:
        allowed = ["host", *tuned.FAMILIES]
        raise UserError(
            f"there is no tuning for target '{name}' on {platform.machine()}: allowed is {', '.join(allowed)}"
        )
    return found


def check_runs(target: str, remote: list[str]) -> None:
    """Tuning needs to run what it compiles."""
    if tuned.FAMILIES[target] == "gpu":
        raise UserError(f"there is no tuning for target '{target}' yet: its kernels run on a GPU")
    if target != host() and not remote:
        raise UserError(
            f"target '{target}' does not run on this machine: --remote names the command that runs its programs, for "
            "example --remote 'qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu'"
        )


def set_paths(options: argparse.Namespace) -> None:
    """Fills in what the target decides."""
    options.target = target_of(options.target)
    options.build = options.build or ROOT / "build" / options.target
    options.store = options.store or ROOT / "build" / "tune" / f"{options.target}.sqlite"
    options.out = options.out or result.TUNED / f"{options.target}.json"
    options.report = options.report or ROOT / "build" / "tune" / f"{options.target}.html"


def tuned_calls(options: argparse.Namespace) -> Iterable[tuple[str, str, str, Shape]]:
    """All that are asked for: kernel, dtype, layout and shape."""
    from . import shapes

    if not options.shapes and not options.model:
        raise UserError("no shapes: name some, for example --shapes 32x256x56x56 (make tune SHAPES=32x256x56x56)")
    calls = shapes.gather(options.shapes, options.model, options.batch)
    return shapes.expanded(calls, options.ops, options.dtypes, options.layouts)


def open_build(options: argparse.Namespace) -> Build:
    """The build folder, with the options about measuring checked."""
    check_runs(options.target, options.remote)
    by = model.measured_by(options.measure, options.model_cpu)
    if by:
        model.check_tools(options.target, options.remote, options.model_cpu)
        if options.threads not in (None, 1) or options.anchors:
            raise UserError("a model measures calls of one thread, and no anchors: leave out --threads and --anchors")
        options.threads = 1
    build = Build(options.build, options.target, options.generators, options.remote, by)
    if options.model_cpu:
        build.cpu = model.CPUS[options.model_cpu]
    return build


class Tuning:
    """A run of the tuner over its cells."""

    def __init__(self, options: argparse.Namespace, build: Build, todo: list[Cell]):
        """Opens what it needs; one tuner at a time may use a store."""
        from .compile import Compiler
        from .measure import Alone, Worker
        from .progress import Progress
        from .search import Setting

        self.options, self.build, self.todo = options, build, todo
        options.store.parent.mkdir(parents=True, exist_ok=True)
        self.lock = options.store.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another hbn-tune uses {options.store}: wait for it, or name another --store") from error
        self.store = Store(options.store)
        self.compiler = Compiler(build, options.store.parent / "kernels", options.jobs)
        self.alone = Alone()
        self.worker = Worker(build.worker)
        if build.measured_by:
            self.alone.prefix = []  # what else runs makes no difference
            self.worker = model.ModelWorker(build, options.model_cpu, self._plain)
        before = sum(self._row(cell)["spent"] for cell in todo)
        self.progress = Progress(max(options.time_budget - before, 0))
        self.setting = Setting(
            self.store, build, self.compiler, self.worker, self.alone, self._show, self._earlier, options.seed,
            options.least_gain, options.trials,
        )  # fmt: skip

    def _row(self, cell: Cell) -> Any:
        return self.store.cell(cell, self.build.cpu, self.build.instruction_set, self.build.fingerprint)

    def _plain(self, cell: Cell, layout: str) -> pathlib.Path | None:
        return self.compiler.start(cell.kernel, cell.dtype, Candidate(layout)).result().path

    def _show(self, text: str) -> None:
        self.progress.skipped = self.alone.waited
        self.progress.show(text)

    def _earlier(self, cell: Cell, default_layout: str) -> list[Any]:
        entries = result.read(self.options.out, self.options.target)
        return result.earlier(entries, cell, self.build.cpu, self.build.instruction_set, default_layout)

    def run(self) -> None:
        """Searches every cell, sharing out the time that is left."""
        share = self.options.time_budget / len(self.todo)
        for number, cell in enumerate(self.todo):
            row = self._row(cell)
            if row["state"] == "done" and (row["spent"] >= 0.9 * share or self._is_exhausted(row)):
                self._write(cell)  # unless that was done
                continue
            if row["state"] == "done":  # there is more time than there was
                self.store.update("cells", row["id"], state="searching", finalists=None)
                self.store.forget_finals(row["id"])
            left = self.progress.budget - self.progress.used()
            waiting = [c for c in self.todo[number:] if self._row(c)["state"] != "done"]
            self.progress.head(f"{number + 1}/{len(self.todo)} {cell.name()}")
            self._search(cell, max(left / len(waiting), 0))
        if self.options.anchors:
            self._measure_anchors()

    def _is_exhausted(self, row: Any) -> bool:
        tried = self.store.rows("SELECT COUNT(*) FROM candidates WHERE cell = ?", row["id"])
        return tried[0][0] >= min(row["space"], self.options.trials)

    def _search(self, cell: Cell, seconds: float) -> None:
        from .measure import Crash
        from .search import Search, Unfit

        search = Search(cell, self.setting)
        begin = self.progress.used()
        rest = functools.partial(self._rest, begin + seconds)
        try:
            search.prepare()
            if search.row["state"] != "final":
                left = seconds - (self.progress.used() - begin)
                search.run(max(left - search.final_seconds(), left / 3), self.progress.used)
            search.finals(rest)
        except (Unfit, Crash) as why:
            self.store.update("cells", search.row["id"], state="failed", why=str(why))
            self.progress.say(f"{cell.name()}: left out: {why}")
            return
        finally:
            self.store.update("cells", search.row["id"], spent=row_spent(search) + self.progress.used() - begin)
        row = self._row(cell)
        if why := row["why"] or json.loads(row["result"]).get("why"):
            self.progress.say(f"{cell.name()}: {why}")
        self._write(cell)

    def _rest(self, end: float) -> Callable[[], float]:
        """What is left of a cell's time for what comes last, by a clock: a part of its whole share at least."""
        now = self.progress.used()
        end = max(end, now + LAST_SHARE * self.options.time_budget / len(self.todo))
        return lambda: end - self.progress.used()

    def _measure_anchors(self) -> None:
        from . import anchors
        from .measure import Crash

        for number, cell in enumerate(self.todo):
            self.progress.head(f"{number + 1}/{len(self.todo)} {cell.name()}, anchors")
            if self._row(cell)["state"] == "done":
                try:
                    anchors.measure(self.setting, cell)
                except Crash as crash:
                    self.progress.say(f"{cell.name()}: no anchors: {crash}")

    def _write(self, cell: Cell) -> None:
        """Brings the tuned file up to date with a finished cell."""
        before = result.read(self.options.out, self.options.target)
        entries, said = result.merge(before, self._row(cell), self.store)
        if result.ordered(entries) != result.ordered(before):
            result.write(self.options.out, self.options.target, entries)
            for text in said:
                self.progress.say(f"{cell.name()}: {text}")

    def close(self) -> None:
        """Ends the programs it started."""
        self.progress.close()
        self.worker.close()
        self.compiler.finish()


def row_spent(search: Any) -> float:
    """Seconds of earlier runs."""
    return float(search.row["spent"])


def table(rows: list[Any]) -> list[str]:
    """The results of cells, a line for each."""
    lines = [["operation", "dtype", "layout", "shape", "ratio", "share of bound", "tried", "what"]]
    for row, tried in rows:
        cell, entry, found = cell_of(row), None, json.loads(row["result"] or "{}")
        ratio, share, what = "", "", row["why"] or {"new": "not begun", "done": "nothing is faster"}.get(row["state"])
        if entry := result.entry_of(row):
            ratio = f"{entry['ratio']:.3f}"
            share = " -> ".join(f"{s:.2f}" for s in entry.get("share_of_bound", []))
            settings = {**found["thresholds"], **found["parameters"]}
            what = " ".join([found["kernel_layout"], *(f"{k}={v}" for k, v in settings.items() if k != "layout")])
        lines.append(
            [cell.kernel, cell.dtype, cell.layout, cell.shape_name(), ratio, share, str(tried), what or "stopped"]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    return [
        "  ".join([*(t.ljust(w) for t, w in zip(line[:-1], widths, strict=True)), line[-1]]).rstrip() for line in lines
    ]


def summary(tuning: Tuning) -> None:
    """Prints what is known of all cells."""
    rows = [tuning._row(cell) for cell in tuning.todo]
    print("\nRatio: the default's time / the tuned time, the worst of repeated runs")
    print("\n".join(table([(row, tuning.store.tried(row["id"])) for row in rows])))
    if any(result.entry_of(row) for row in rows):
        print(f"\n{tuning.options.out} has them; the next build takes them up (`make build`)")
    if any(row["state"] not in ("done", "failed") for row in rows):
        print("\nNot finished: the same command goes on")


def tune(options: argparse.Namespace) -> int:
    """The command `tune`."""
    set_paths(options)
    calls = tuned_calls(options)
    build = open_build(options)
    todo = check_kernels(build, make_cells(calls, options.threads or build.threads))
    if options.dry_run:
        dry_run(build, todo, options.time_budget)
        return 0
    result.read(options.out, options.target)  # before time goes into a search
    tuning = Tuning(options, build, todo)
    stopped = False
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as what a shell starts in the background has it
        signal.signal(signal.SIGINT, interrupt)
    try:
        tuning.run()
    except KeyboardInterrupt:
        stopped = True
    finally:
        tuning.close()
    summary(tuning)
    if not stopped and not options.no_report:
        write_report(options)
    return 130 if stopped else 0


def interrupt(number: int, frame: Any) -> None:
    """Stops the search, once: timeout and make each pass a signal on, and the second one must not cut the end short."""
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, signal.SIG_IGN)
    raise KeyboardInterrupt


def check_kernels(build: Build, todo: list[Cell]) -> list[Cell]:
    """Fails where the build lacks a kernel."""
    for cell in todo:
        if not build.kernel_layouts(cell.kernel, cell.dtype):
            raise UserError(f"{build.folder} has no kernel {cell.kernel} for {cell.dtype}: build it with all kernels")
    return todo


def dry_run(build: Build, todo: list[Cell], budget: float) -> None:
    """Prints what would be searched."""
    from .spaces import make_space

    parameters = [p for p in tables.parameters() if build.family in p.families]
    for cell in todo:
        layouts = build.kernel_layouts(cell.kernel, cell.dtype)
        space = make_space(layouts, layouts[0], parameters, [])
        choices = {choice.name for chosen in space.layouts.values() for choice in chosen}
        print(
            f"{cell.name()}: at most {space.size()} candidates of {len(choices)} parameters in {', '.join(layouts)}, "
            "times those of thresholds"
        )
    print(f"{len(todo)} cells, {budget / len(todo):.0f} s each, on {build.cpu} with {build.instruction_set}")


def write_report(options: argparse.Namespace) -> None:
    """The command `report`, and the end of `tune`."""
    from . import report

    generators = options.generators or generators_of(options.build)
    report.write(options.store, options.out, options.report, generators, options.build)
    print(f"{options.report}")


def check(options: argparse.Namespace) -> int:
    """The command `check`."""
    path = options.file or result.TUNED / f"{target_of('host')}.json"
    done = subprocess.run([sys.executable, str(ROOT / "cmake" / "tuned.py"), str(path)], check=False)
    return done.returncode


def main(arguments: list[str] | None = None) -> int:
    """Runs a command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = parser()
    if not arguments:
        top.print_usage(sys.stderr)
        raise SystemExit("hbn-tune: no shapes: name some, for example --shapes 32x256x56x56; --help has the rest")
    if arguments[0] in ("-h", "--help"):
        top.print_help()
        print("\noptions of tune:")
        print(tune_help(top))
        return 0
    if arguments[0] == "pack":
        from . import pack

        return pack.main(arguments[1:])
    if arguments[0].startswith("-"):
        arguments = ["tune", *arguments]
    options = top.parse_args(arguments)
    try:
        if options.command == "tune":
            return tune(options)
        if options.command == "report":
            set_paths(options)
            write_report(options)
            return 0
        if options.command == "verify":
            from . import verify

            set_paths(options)
            return verify.run(options)
        return check(options)
    except UserError as error:
        print(f"hbn-tune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nhbn-tune: stopped", file=sys.stderr)
        return 130


def tune_help(top: argparse.ArgumentParser) -> str:
    """What `tune --help` says of options."""
    actions = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    text = actions[0].choices["tune"].format_help()
    return text[text.index("what to tune") :]
