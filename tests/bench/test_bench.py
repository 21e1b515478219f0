"""What bench's report makes of raw times, and what its runs are given."""

import json
import pathlib
import re
import sys

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import limits  # noqa: E402
import machine  # noqa: E402
import report  # noqa: E402
import worker  # noqa: E402

MEGABYTE = (4, 64, 32, 32)  # of float32


def raw(operation="forward_training", layout="nchw", dtype="float32", shape=MEGABYTE, threads=1, pages="4k", **times):
    return {
        "operation": operation,
        "layout": layout,
        "dtype": dtype,
        "shape": list(shape),
        "threads": threads,
        "pages": pages,
        "times": {name: [seconds, 2 * seconds] for name, seconds in times.items()},
        "unsupported": {},
        "difference_from_hbn": {},
    }


def results(*cells):
    return {
        "machine": {
            "cpu": "AMD EPYC (family 25, model 1)",
            "threads": 2,
            "cache_bytes": {"L2": 512 << 10, "L3": 32 << 20},
            "commit": "abc",
        },
        "environment": {"4k": {"GLIBC_TUNABLES": "none"}, "2m": {"GLIBC_TUNABLES": "huge"}},
        "settings": {},
        "versions": {},
        "missing": {},
        "errors": [],
        "cells": list(cells),
    }


def rows(*cells):
    return report.rows(results(*cells))


def test_the_limit_is_the_larger_of_memory_and_arithmetic():
    by_memory, by_arithmetic = rows(
        raw(bound=8e-5, arithmetic=5e-5, hbn=1e-4),
        raw("forward_inference", bound=8e-5, arithmetic=9e-5, hbn=1e-4),
    )
    assert (by_memory.limit, by_memory.limited_by) == (8e-5, "memory")
    assert (by_arithmetic.limit, by_arithmetic.limited_by) == (pytest.approx(9e-5), "arithmetic")
    assert by_arithmetic.share("hbn") == pytest.approx(0.8)
    assert by_arithmetic.share_of_limit("hbn") == pytest.approx(0.9)


def test_arithmetic_is_the_fastest_byte_of_any_shape_layout_and_pages():
    row, other_dtype, *_ = rows(
        raw(bound=1e-5, arithmetic=4e-5, hbn=1e-4),
        raw(dtype="bfloat16", bound=1e-5, arithmetic=7e-5, hbn=1e-4),
        raw(
            layout="nhwc",
            shape=(4, 64, 32, 64),
            pages="2m",
            bound=1e-5,
            bound_two_sweeps=1e-5,
            arithmetic=6e-5,
            hbn=1e-4,
        ),
    )
    assert row.limit == pytest.approx(3e-5)
    assert other_dtype.limit == pytest.approx(7e-5)


def test_memory_is_swept_twice_where_channels_lie_side_by_side():
    training, inference, planes = rows(
        raw(layout="nhwc", bound=8e-5, bound_two_sweeps=1.2e-4, arithmetic=5e-5, hbn=2e-4),
        raw("forward_inference", "nhwc", bound=8e-5, arithmetic=5e-5, hbn=2e-4),
        raw(bound=8e-5, bound_two_sweeps=1.2e-4, arithmetic=5e-5, hbn=2e-4),
    )
    assert training.bound == 8e-5  # a megabyte stays in cache
    assert training.limit == 1.2e-4
    assert inference.limit == 8e-5
    assert planes.limit == 8e-5


def test_each_size_of_pages_has_a_bound_of_its_own():
    ordinary, huge = rows(
        raw(pages="4k", bound=8e-5, arithmetic=1e-5, hbn=1e-4), raw(pages="2m", bound=6e-5, arithmetic=1e-5, hbn=1e-4)
    )
    assert (ordinary.bound, huge.bound) == (8e-5, 6e-5)
    assert ordinary.name().endswith("threads=1 pages=4k")


def test_limit_lines_tell_the_worst_cell_and_medians():
    lines = report.limit_lines(
        rows(
            raw(shape=(1, 64, 32, 32), bound=1e-4, arithmetic=1e-9, hbn=1.05e-4),
            raw(shape=(2, 64, 32, 32), bound=1e-4, arithmetic=1e-9, hbn=1.08e-4),
            raw(shape=(4, 64, 32, 32), bound=1e-4, arithmetic=1e-9, hbn=1.5e-4),
            raw(
                "backward",
                "nhwc",
                shape=(8, 64, 32, 32),
                bound_two_sweeps=1e-4,
                bound=1e-5,
                arithmetic=1e-9,
                hbn=1.01e-4,
            ),
            # 64 KB are not above 64 KB.
            raw(shape=(1, 16, 32, 32), bound=1e-6, arithmetic=1e-9, hbn=9e-6),
        )
    )
    assert lines[0].startswith("NOT MET  within 1.25 of the limit in every cell above 64 KB: worst 1.50, ")
    assert "forward_training nchw float32 4x64x32x32 threads=1 pages=4k (3 of 4 cells are)" in lines[0]
    assert lines[1] == "met      within 1.10 of the limit in the median: 1.06"
    assert re.match(
        r"NOT MET +forward_training NCHW float32: median 1.08, worst 1.50, 4x64x32x32 .*, by memory", lines[2]
    )
    assert re.match(r"met +backward NHWC float32: median 1.01, worst 1.01, 8x64x32x32 .*, by memory", lines[3])
    assert len(lines) == 4


def test_a_slow_median_is_not_met_even_where_every_cell_is_within():
    lines = report.limit_lines(rows(raw(bound=1e-4, arithmetic=1e-9, hbn=1.2e-4)))
    assert [line.split()[0] for line in lines] == ["met", "NOT", "NOT"]


def test_markdown_has_both_shares_arithmetic_and_ports():
    cells = [
        raw(shape=(32, 64, 56, 56), pages=p, bound=1e-3, arithmetic=2e-3, hbn=4e-3, loops=3e-3, torch=8e-3)
        for p in ("4k", "2m")
    ]
    text = report.markdown(results(*cells), rows(*cells))
    assert "| forward_training nchw 32x64x56x56 | 1000.0 | 2000.0 arithmetic | 3000.0 | 4000.0 (0.25, 0.50) |" in text
    assert "## float32, 1 thread, 4 KB pages" in text and "## float32, 1 thread, 2 MB pages" in text
    digest = (
        "forward_training NCHW float32, 1 thread, 2 MB pages | 0.25 (0.25) | 0.50 (0.50) | 0.75 (0.75) | 2.0 x (2.00 x)"
    )
    assert f"| {digest} |" in text
    assert "Ports of Zen 3: conversions, additions and subtractions on FP2 and FP3" in text
    # 2 ms for 25.7 MB.
    assert "| forward_training float32 | 4.98 | convert, subtract, add, fma in float64; map: 2 fmas |" in text
    assert "- environment on pages of 4KB: `GLIBC_TUNABLES=none`" in text


@pytest.mark.parametrize("name", ["zen3-avx2", "zen4-avx512"])
def test_results_from_before_pages_and_arithmetic_render(name):
    old = json.loads((BENCH / "results" / f"{name}.json").read_text())
    old_rows = report.rows(old)
    assert {row.pages for row in old_rows} == {"2m"} and {row.limit for row in old_rows} == {None}
    text = report.markdown(old, old_rows)
    assert "arithmetic was not measured" in text and "Ports of" not in text
    # The shares and ratios that were published.
    published = (BENCH / "results" / f"{name}.md").read_text()
    line = re.search(r"^\| backward NHWC float32, 2 threads \|(.*)\|(.*)\|(.*)\|$", published, re.MULTILINE)
    assert f"| backward NHWC float32, 2 threads, 2 MB pages |{line[1]}|  |  |{line[2]}|{line[3]}|" in text


def test_fused_results_render():
    old = json.loads((BENCH / "results" / "zen3-avx2-fused.json").read_text())
    assert "forward_training_relu nchw float32 32x64x112x112 threads=1 pages=2m" in report.fused_markdown(
        old, report.fused_rows(old)
    ).replace("threads=2", "threads=1")


@pytest.mark.parametrize(
    "cpu, name",
    [
        ("AMD EPYC (family 25, model 1)", "Zen 3"),
        ("AMD EPYC (family 25, model 17)", "Zen 4"),
        ("AMD EPYC (family 26, model 2)", "Zen 5"),
        ("Intel(R) Xeon(R) Processor (family 6, model 207)", "Golden Cove"),
        ("Intel(R) Xeon(R) Processor (family 6, model 1)", None),
        ("", None),
    ],
)
def test_cores_are_known_by_family_and_model(cpu, name):
    core = machine.core(cpu)
    assert (core.name if core else None) == name


@pytest.mark.parametrize("pages, flag", [("4k", "nh"), ("2m", "hg")])
def test_buffers_lie_on_the_pages_that_were_asked_for(pages, flag):
    buffer = worker.Buffer(5 << 20, pages)
    assert buffer.address % worker.HUGE_PAGE == 0
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", pathlib.Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    for text in maps[1:]:
        start, end = (int(address, 16) for address in text.split()[0].split("-"))
        if start <= buffer.address < end:
            assert flag in re.search(r"^VmFlags:(.*)$", text, re.MULTILINE)[1].split()
            return
    pytest.fail("no mapping holds the buffer")


@pytest.mark.parametrize(
    "arguments, pages",
    [
        ([], ["4k", "2m"]),
        (["--quick"], ["4k"]),
        (["--pages", "2m"], ["2m"]),
        (["--quick", "--pages=2m,4k"], ["2m", "4k"]),
    ],
)
def test_pages_default_to_both_and_a_quick_run_to_ordinary_ones(monkeypatch, arguments, pages):
    import bench

    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert bench.arguments().pages == pages
    assert "hugetlb=1" in bench.environment("2m")["GLIBC_TUNABLES"]
    assert "hugetlb=0" in bench.environment("4k")["GLIBC_TUNABLES"]


def test_unknown_pages_are_refused(monkeypatch, capsys):
    import bench

    monkeypatch.setattr(sys, "argv", ["bench", "--pages", "4k,1g"])
    with pytest.raises(SystemExit):
        bench.arguments()
    assert "--pages: '1g' is none of 4k, 2m" in capsys.readouterr().err


def test_groups_are_those_of_the_kernels():
    """bench's loops can't include generators/tiling.h, which needs Halide."""

    def number(file: str, pattern: str) -> int:
        (found,) = re.findall(pattern, (BENCH.parent / file).read_text())
        return int(found)

    rows = number("runtime/tile_units.h", r"tile_row_unit = (\d+)")
    groups = number("generators/tiling.h", r"int groups_in_set = (\d+);")
    assert number("bench/arithmetic_loops.cpp", r"constexpr int kGroup = (\d+);") == rows * groups
    assert {
        number("bench/report.py", rf'"{name}": "[^"]*once in (\d+) values') for name in ("forward_training", "backward")
    } == {rows * groups}


def test_limits_reads_the_innermost_loop_and_its_step():
    function = """0000000000000000 <f>:
   0:\tmov    %rdi,%r10
   8:\tvmovaps (%rax),%ymm0
  10:\tsub    $0xffffffffffffff80,%rax
  14:\tcmp    %rdx,%rax
  17:\tjb     8 <f+0x8>
  20:\tsub    $0x1,%r8d
  24:\tjne    0 <f>"""
    loop = limits.innermost(function)
    assert loop.bytes == 128 and loop.per_line() == 0.5
    assert [text.split()[0] for text in loop.instructions] == ["vmovaps", "sub", "cmp", "jb"]


def test_limits_reads_the_busiest_ports():
    output = """
Resources:
[0]   - SPRPort00
[1]   - SPRPort05
[2.0] - SPRPort02
[2.1] - SPRPort02


Resource pressure per iteration:
[0]    [1]    [2.0]  [2.1]
4.00   3.90    -     1.00

"""
    pressures = limits.pressures(output)
    assert pressures == {"SPRPort00": 4.0, "SPRPort05": 3.9, "SPRPort02": 1.0}
    assert [limits.short(port) for port in [*pressures, "Zn3FPP2", "Zn4FP3"]] == ["p0", "p5", "p2", "FP2", "FP3"]
