"""Measures hbn against the memory bound, PyTorch and oneDNN, in one run on the same memory.

See README.md beside this file for what is measured and how.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any, Iterator

from tqdm import tqdm

import grid
import machine
import report

HERE = pathlib.Path(__file__).resolve().parent

# malloc gives the pages of PyTorch's results back at every call otherwise, and page faults are no kernel's fault:
# never mmap, never trim, pages as the other buffers have.
MALLOC = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.hugetlb={huge}"
PAGES = ["4k", "2m"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset of the grid in less than two minutes")
    parser.add_argument("--fused", action="store_true",
                        help="operations with ReLU, or addition and ReLU, fused into them, against one after the other")
    parser.add_argument("--filter", action="append", default=[], metavar="REGEX",
                        help="only cells like 'forward_training nchw float32 32x64x56x56' that match; may be repeated")
    parser.add_argument("--contestants", default="", metavar="REGEX", help="only these of hbn, torch, onednn")
    parser.add_argument("--threads", help="for example 1,all (default; --quick: all)")
    parser.add_argument("--pages", help="of tensors, ordinary ones of 4 KB and 2 MB (default: 4k,2m; --quick: 4k)")
    parser.add_argument("--rounds", type=int, help="of every contestant, interleaved (default: 15; --quick: 11)")
    parser.add_argument("--time-budget", type=float, metavar="SECONDS",
                        help="fewer rounds, but 3 at least, where it runs out (default: 3600; --quick: 75)")
    parser.add_argument("--name", help="of the files in bench/results/ (default: full or quick)")
    parser.add_argument("--libraries", type=pathlib.Path, default=HERE.parent / "build/x86/bench",
                        help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.threads = options.threads or ("all" if options.quick else "1,all")
    options.pages = (options.pages or ("4k" if options.quick else ",".join(PAGES))).split(",")
    if unknown := [p for p in options.pages if p not in PAGES]:
        parser.error(f"--pages: {unknown[0]!r} is none of {', '.join(PAGES)}")
    options.rounds = options.rounds or (11 if options.quick else 15)
    options.time_budget = options.time_budget or (75 if options.quick else 3600)
    options.name = options.name or ("fused" if options.fused else "quick" if options.quick else "full")
    return options


def thread_counts(text: str) -> list[int]:
    """'1,all' as numbers, each once, no more than there are processors."""
    most = machine.threads()
    return sorted({min(most, most if word == "all" else int(word)) for word in text.split(",")})


def environment(pages: str) -> dict[str, str]:
    """What workers get in addition."""
    lib = pathlib.Path(sys.prefix) / "lib"
    # Where oneDNN's SYCL runtime and the CPU device that it runs on are.
    return {"GLIBC_TUNABLES": MALLOC.format(huge=int(pages == "2m")), "LD_LIBRARY_PATH": str(lib),
            "OCL_ICD_FILENAMES": str(lib / "libintelocl.so")}


def measure(settings: dict[str, Any], results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A worker's results as they come; the first line tells versions."""
    worker = subprocess.Popen([sys.executable, str(HERE / "worker.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env={**os.environ, **environment(settings["pages"])})
    with worker:
        assert worker.stdin and worker.stdout  # both are pipes
        worker.stdin.write(json.dumps(settings) + "\n")
        worker.stdin.close()
        for line in worker.stdout:
            message = json.loads(line)
            if "versions" in message:
                results["versions"].update(message["versions"])
                results["missing"].update(message["missing"])
            else:
                yield message
    if worker.returncode != 0:
        results["errors"].append(f"the worker for {settings['threads']} threads and pages of {settings['pages']} ended "
                                 f"with {worker.returncode}")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures everything asked for."""
    cells = grid.cells(options.filter, options.quick, options.fused)
    if not cells:
        sys.exit("bench: no cell matches --filter")
    counts = thread_counts(options.threads)
    contestants = grid.FUSED_CONTESTANTS if options.fused else grid.CONTESTANTS
    settings = {
        "rounds": options.rounds, "sample_seconds": 0.0002, "settle_seconds": 0.02, "cells": cells,
        "libraries": str(options.libraries.resolve()),
        "contestants": [c for c in contestants if c in grid.LIMITS or re.search(options.contestants, c)],
    }
    workers = [(pages, threads) for threads in counts for pages in options.pages]
    results: dict[str, Any] = {"machine": machine.describe(), "settings": settings,
                               "environment": {pages: environment(pages) for pages in options.pages},
                               "versions": {}, "missing": {}, "errors": [], "cells": []}
    deadline = time.monotonic() + options.time_budget
    pause = 0.1 if sys.stderr.isatty() else 10  # a log needs no more
    with tqdm(total=len(cells) * len(workers), unit="cell", dynamic_ncols=True, mininterval=pause) as progress:
        for i, (pages, threads) in enumerate(workers):
            budget = (deadline - time.monotonic()) / (len(workers) - i)
            for cell in measure({**settings, "threads": threads, "pages": pages, "time_budget": budget}, results):
                results["cells"].append(cell)
                progress.set_postfix_str(f"{cell['operation']} {cell['layout']} {cell['dtype']}", refresh=False)
                progress.update()
    results["machine"]["load_average_after"] = os.getloadavg()
    return results


def main() -> None:
    """Runs, writes the files, prints the summary."""
    options = arguments()
    results = run(options)
    if not results["cells"]:
        sys.exit("bench: nothing was measured. " + "; ".join(results["errors"]))
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    rows = report.fused_rows(results) if options.fused else report.rows(results)
    summary = report.fused_summary(rows) if options.fused else report.summary(rows)
    markdown = report.fused_markdown if options.fused else report.markdown
    files = {"json": json.dumps(results, indent=1) + "\n", "md": markdown(results, rows)}
    for kind, text in files.items():
        # Where this checkout lies is nobody's business.
        (folder / f"{options.name}.{kind}").write_text(text.replace(str(HERE.parent), "."), encoding="utf-8")
    if not options.fused:
        report.chart(rows, folder / f"{options.name}.svg")
    print("\n".join(summary))
    for note in report.notes(results):
        print("note:", note)
    print(f"bench: {len(rows)} cells in {os.path.relpath(folder)}/{options.name}.json and beside it")


if __name__ == "__main__":
    main()
