"""The tuner's report, as a browser shows it."""

import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from tune import report, results
from tune.cells import Cell as TunedCell
from tune.results import Anchor, Best, Cell, Elsewhere, Results, Trial
from tune.spaces import Candidate
from tune.store import Store

BROWSERS = ["chromium-headless-shell", "chromium", "google-chrome"]
SECONDS = 60


def trial(number):
    layout = ["nchw", "rows", "blocks"][number % 3]
    lanes = [8, 16, 32][number // 3 % 3]
    ratio = {"nchw": 1.0, "rows": 1.1, "blocks": 0.6}[layout] + lanes / 1000 + number / 1e5
    if number % 13 == 5:
        return Trial(layout, {}, {"lanes": lanes}, "failed", why="wrong <results>")
    return Trial(
        layout, {"columns": 512} if number % 2 else {}, {"lanes": lanes}, "slow" if ratio < 0.8 else "measured", ratio
    )


def synthetic():
    best = Best("rows", {"layout": 3, "columns": 512}, {"lanes": 32}, "measured", 1.127)
    best.seconds, best.default_seconds, best.ratios = 0.0123, 0.0139, [1.127, 1.13, 1.14]
    best.shapes = {"n": [32, 63], "c": [256, 511], "plane": [3136, 3136]}
    best.elsewhere = [Elsewhere((32, 256, 56, 56), 1, 1.091), Elsewhere((63, 511, 56, 56), 2, None, "no <memory>")]
    anchors = [Anchor("Mullapudi2016", 0.412), Anchor("Li2018", 0.523), Anchor("Adams2019", why="can't reorder RVars")]
    about = {"cpu": "GenuineIntel 6 207", "instruction_set": "avx512", "default_layout": "nchw", "space": 432}
    loops = {
        "default": "produce y:\n  for c:\n    vectorized w in [0, 15]:\n      y(...) = ...",
        "best": "produce y:\n  parallel c:\n    vectorized w in [0, 15]:\n      y(...) = ...",
    }
    cells = [
        Cell("forward_training", "float32", "nhwc", (32, 256, 56, 56), 2, "done", default_seconds=0.014,
             bound=0.755, spent=21.5, best=best, trials=[trial(i) for i in range(60)], anchors=anchors,
             loops=loops, **about),
        Cell("backward_training", "bfloat16", "nchw", (1, 64, 7, 7), 2, "done", default_seconds=2.5e-6, spent=3.0,
             trials=[trial(i) for i in range(4)], measured_by="llvm-mca cortex-a53", **about),
        Cell("forward_inference", "float32", "nchw", (8, 3, 224, 224), 2, "failed", why="the default fails its check"),
        Cell("forward_inference", "float32", "nhwc", (8, 3, 224, 224), 2, "new"),
    ]  # fmt: skip
    entry = {
        "kernel": "forward_training", "dtype": "float32", "layout": "nhwc",
        "shapes": {"n": [32, 63], "c": [256, 511], "plane": [3136, 3136]}, "cpu": "GenuineIntel 6 207",
        "instruction_set": "avx512", "thresholds": {"layout": 3, "columns": 512}, "kernel_layout": "rows",
        "parameters": {"lanes": 32}, "shape": [32, 256, 56, 56], "threads": 2, "ratio": 1.127,
        "share_of_bound": [0.755, 0.854], "date": "2026-11-26",
    }  # fmt: skip
    machine = {"cpu": "Some <CPU> & more", "threads": 2, "commit": "0123abc"}
    return Results("x86", machine, "2026-11-26", cells, [entry])


# ---- the data


def test_json_and_back():
    found = synthetic()
    assert Results.from_json(found.to_json()) == found


def test_what_a_store_holds(tmp_path):
    store = Store(tmp_path / "x86.sqlite")
    cell = TunedCell("forward_training", "float32", "nhwc", (32, 256, 56, 56), 2)
    old = store.cell(cell, "cpu", "avx512", "an older build")
    row = store.cell(cell, "cpu", "avx512", "this build")
    assert old["id"] != row["id"]
    added, _ = store.add_candidate(row["id"], Candidate("rows", (("columns", 512),), (("lanes", 32),)))
    store.finish_candidate(added["id"], "measured", ratio=1.2)
    result = {
        "candidate": added["id"], "ratio": 1.15, "seconds": 0.010, "default_seconds": 0.012, "kernel_layout": "rows",
        "thresholds": {"columns": 512}, "parameters": {"lanes": 32},
        "ratios": [1.15, 1.2, 1.25], "bound": 0.75,
    }  # fmt: skip
    store.update(
        "cells", row["id"], state="done", result=json.dumps(result), space=7, spent=3.5,
        kernel_layout="nchw", default_seconds=0.0125,
    )  # fmt: skip
    (cell,) = results.read_cells(store)
    assert cell.name() == "forward_training float32 nhwc 32x256x56x56" and cell.ratio() == 1.15
    assert cell.trials == [Trial("rows", {"columns": 512}, {"lanes": 32}, "measured", 1.2)]
    assert cell.shares() == pytest.approx((0.75, 0.9)) and cell.default_layout == "nchw"
    report.write(tmp_path / "x86.sqlite", tmp_path / "x86.json", tmp_path / "new" / "x86.html", tmp_path / "none")
    assert "1.150" in (tmp_path / "new" / "x86.html").read_text()


def test_nothing_was_searched_yet(tmp_path):
    page = tmp_path / "x86.html"
    report.write(tmp_path / "x86.sqlite", tmp_path / "x86.json", page, tmp_path / "none")
    assert "None yet." in page.read_text() and [path.name for path in tmp_path.glob("*.html*")] == ["x86.html"]


def test_summary():
    summed = report.summary(synthetic().cells)
    assert summed.cells == 2 and summed.faster == 1 and summed.trials == 64
    assert summed.ratio == pytest.approx(1.127**0.5) and summed.most == 1.127
    assert summed.anchor == pytest.approx(1.127 / 0.523)
    assert summed.shares == pytest.approx((0.755, 0.755 * 1.13))


def test_it_says_where_the_best_holds():
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", report.render(synthetic())))
    assert (
        "For N 32–63, C 256–511, H x W 3136: 32x256x56x56 with threads: 1: 1.091, 63x511x56x56: no &lt;memory&gt;."
        in text
    )


def test_importances_find_what_matters():
    found = report.importances([trial(i) for i in range(60)])
    assert max(found, key=found.get) == "kernel layout" and found["kernel layout"] > 0.8
    assert sum(found.values()) == pytest.approx(1) and set(found) == {"kernel layout", "lanes", "columns"}
    assert report.importances([trial(i) for i in range(4)]) == {}
    assert report.importances([trial(0)] * 20) == {}


def test_lines_that_differ_are_marked():
    before, after = report.compared("a\nb <i>\nc", "a\nd\nc")
    assert before == "a\n<mark>b &lt;i&gt;</mark>\nc\n" and after == "a\n<mark>d</mark>\nc\n"


def test_loops_of_generators(tmp_path):
    program = tmp_path / "hbn_generators"
    program.write_text('#!/bin/sh\necho "produce y: $*" >&2\n')
    program.chmod(0o755)
    cells = synthetic().cells[:2]
    cells[0].loops = {}
    report.add_loops(cells, program, program.parent)
    assert cells[0].loops == {}  # without the build's targets
    (tmp_path / "hbn_targets.json").write_text(json.dumps({"instruction_sets": {"avx512": "some-target"}}))
    report.add_loops(cells, program, program.parent)
    assert "layout=nchw print_loops=true" in cells[0].loops["default"]
    assert "target=some-target dtype=float32 layout=rows lanes=32 print_loops=true" in cells[0].loops["best"]
    assert cells[1].loops == {}
    program.write_text("#!/bin/sh\necho 'no such layout' >&2; exit 1\n")
    report.add_loops(cells, program, program.parent)
    assert "could not print the loops: no such layout" in cells[0].loops["best"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (1.5, "1.5 s"), (0.0123, "12.3 ms"), (2.5e-6, "2.5 µs"), (3e-8, "30 ns")]
)
def test_times(value, text):
    assert report.seconds_text(value) == text


# ---- the page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "x86.html"
    report.write_page(synthetic(), path)
    return path


def browse(folder, page, *options):
    """What the browser prints, to both streams."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"there is no browser: sudo apt-get install {BROWSERS[0]}")
    command = [
        browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--window-size=1300,2600", "--no-first-run",
        "--enable-logging=stderr", f"--user-data-dir={folder / 'browser'}", "--disable-background-networking", *options,
        page.as_uri(),
    ]  # fmt: skip
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)


class Texts(html.parser.HTMLParser):
    """The texts of the cells, row by row, of the table with an id."""

    def __init__(self, text, name):
        super().__init__()
        self.name, self.inside, self.open, self.rows = name, False, False, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.inside = dict(attributes).get("id") == self.name
        elif self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.open = False

    def handle_data(self, data):
        if self.inside and self.open:
            self.rows[-1][-1] += data


def table(text, name):
    head, *rows = Texts(text, name).rows
    return [dict(zip(head, (" ".join(cell.split()) for cell in row), strict=True)) for row in rows]


def test_numbers_are_those_of_the_json(tmp_path, page):
    found = json.loads(synthetic().to_json())
    text = browse(tmp_path, page, "--dump-dom").stdout
    rows = table(text, "cells")
    assert len(rows) == len(found["cells"])
    for row, cell in zip(rows, found["cells"], strict=True):
        assert [row[name] for name in ("operation", "dtype", "layout")] == [
            cell["kernel"],
            cell["dtype"],
            cell["layout"],
        ]
        assert row["shape"] == "x".join(map(str, cell["shape"]))
        assert int(row["tried"]) == sum(trial["state"] != "new" for trial in cell["trials"])
    first, second, third, fourth = rows
    best = found["cells"][0]["best"]
    assert float(first["ratio"]) == best["ratio"]
    assert (
        first["default"] == f"{best['default_seconds'] * 1e3:.3g} ms"
        and first["tuned"] == f"{best['seconds'] * 1e3:.3g} ms"
    )
    assert float(first["share before"]) == round(found["cells"][0]["bound"], 2)
    assert float(first["share after"]) == round(found["cells"][0]["bound"] * best["ratios"][1], 2)
    for anchor in found["cells"][0]["anchors"]:
        assert first[anchor["name"]] == (f"{anchor['ratio']:.3f}" if anchor["ratio"] else "failed")
    assert first["result"] == "rows columns=512 lanes=32"
    assert second["ratio"] == "1.000" and second["result"] == "nothing is faster" and second["default"] == "2.5 µs"
    assert third["result"] == "the default fails its check" and fourth["result"] == "not finished"

    (row,), (entry,) = table(text, "entries"), found["entries"]
    assert float(row["ratio"]) == entry["ratio"] and row["date"] == entry["date"]
    assert row["N"] == "32–63" and row["H x W"] == "3136" and row["CPU"] == entry["cpu"]
    assert row["thresholds"] == "layout=3, columns=512" and row["parameters"] == "lanes=32"
    assert row["measured at"] == "32x256x56x56, 2 threads" and row["kernel"] == entry["kernel_layout"]

    summary = re.search(r'id="summary">(.*?)<p', text, re.DOTALL)[1]
    assert re.findall(r"<b>(.*?)</b>", summary) == ["1.062", "1.127", "1 of 2", "64", "0.76 → 0.85", "2.155"]
    # Names and texts are no markup.
    assert "Some &lt;CPU&gt; &amp; more" in text and "wrong &lt;results&gt;" in text
    assert "<mark>  for c:</mark>" in text and "<mark>  parallel c:</mark>" in text


def test_the_screenshot_shows_something_in_light_and_dark(tmp_path, page):
    brightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        browse(tmp_path / scheme, page, f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={number}")
        image = Image.open(picture).convert("RGB")
        pixels = np.asarray(image, dtype=float)
        assert pixels.shape == (2600, 1300, 3)
        # Text, a chart and tables are all over the page, not in a corner of it.
        for band in np.split(pixels[:2000], 5):
            assert band.std() > 8, scheme
        assert len(image.getcolors(maxcolors=2600 * 1300)) > 100
        brightness[scheme] = np.median(pixels)
    assert brightness["dark"] < 60 and brightness["light"] > 200


def asked_and_said(folder, page):
    """What the browser asks others than the disk for, and what the page writes to the console."""
    log = folder / "net.json"
    done = browse(folder, page, f"--screenshot={folder / 'page.png'}", f"--log-net-log={log}")
    asked = set(re.findall(r'"url":"([^"]*)"', log.read_text()))
    return asked, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_nothing_is_fetched_and_nothing_is_wrong(tmp_path, page):
    assert asked_and_said(tmp_path, page) == (set(), [])
    # A page that asks and complains is found out.
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://hbn.invalid/a.png"><script>console.error("no")</script>')
    asked, said = asked_and_said(tmp_path, bad)
    assert asked == {"http://hbn.invalid/a.png"} and len(said) == 1


def test_nothing_names_another_file(page):
    text = page.read_text()
    links = re.findall(r'\b(?:src|href|action)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    targets = set(re.findall(r'\bid="([^"]*)"', text))
    assert [link for link in links if link.startswith("#") and link[1:] not in targets] == []
    assert "@import" not in text and len(text) < 200_000


def test_a_large_search_is_a_small_page(tmp_path, monkeypatch):
    found = synthetic()
    found.cells[0].trials = [trial(i) for i in range(300)]
    found.cells = found.cells[:1] * 20
    monkeypatch.setattr(report, "importances", lambda trials: {})
    report.write_page(found, tmp_path / "x86.html")
    assert (tmp_path / "x86.html").stat().st_size < 1_000_000
