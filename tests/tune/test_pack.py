"""hbn-tune pack, and the model of cycles that it goes by."""

import re
import shutil
import subprocess
import sys

import cycles
import packs
import pytest
from conftest import ROOT
from packs.programs import problem_of, result_of
from packs.request import Request
from tune import pack
from tune.pack import Figures, Search, Setting, Wrong
from tune.spaces import Choice, Space

GENERATORS = ROOT / "build/x86/hbn_generators"
TOOLS = ["llvm-mca", "qemu-aarch64", "aarch64-linux-gnu-gcc"]


def needs_tools():
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}")
    if not GENERATORS.exists():
        pytest.skip("needs build/x86 (make tune-pack)")


# ---- the search, by figures that are made up


@pytest.fixture
def searched(monkeypatch, tmp_path):
    """Searches by a function of the values of three choices; the result, and whether it was stopped."""
    choices = [Choice(name, (0, 2, 4, 8), 0, False) for name in ("lanes", "sum_step", "map_step")]
    monkeypatch.setattr(Search, "_space", lambda self: Space({"nchw": choices}, "nchw"))

    def run(aim, figures, **setting):
        monkeypatch.setattr(pack.Measurer, "measure", lambda self, candidate: figures(**dict(candidate.parameters)))
        request = Request("baremetal-cortex-m7", "forward_training")
        made = Setting(request, aim, pack.PROCESSORS["baremetal-cortex-m7"], "", "", tmp_path, jobs=2, **setting)
        results, stopped = pack.search_all(made)
        return results[0], stopped

    return run


def test_the_fewest_cycles_are_found_where_choices_depend_on_each_other(searched):
    def figures(lanes=0, sum_step=0, map_step=0):
        registers = max(lanes, 1) * max(sum_step, 1)
        return Figures(1000 + 10 * registers, 100, 40 - 2 * map_step - (registers if registers <= 16 else -registers))

    result, stopped = searched("cycles", figures)
    assert not stopped
    assert result.found().cycles == 40 - 16 - 16
    assert result.settings() in [
        f"forward_training:lanes={a},map_step=8,sum_step={b}" for a, b in [(2, 8), (4, 4), (8, 2)]
    ]
    assert len(result.figures) <= pack.TRIALS + 3 < 64 + 3


def test_what_gains_little_is_left_out(searched):
    def figures(lanes=0, sum_step=0, map_step=0):
        cycles_ = 10 / (1.3 if map_step == 4 else 1) / (1.003 if lanes else 1) / (1.01 if sum_step == 8 else 1)
        return Figures(2000 if sum_step == 8 else 1000, 100, cycles_)

    result, _ = searched("cycles", figures, trials=40)
    assert result.settings() == "forward_training:map_step=4"  # and not twice the text for 1 %


def test_the_least_text_is_found_and_the_quickest_of_it(searched):
    def figures(lanes=0, sum_step=0, map_step=0):
        return Figures(900 if lanes == 4 else 1000 + 4 * sum_step, 100, 10 - map_step)

    result, _ = searched("size", figures)
    assert result.settings() == "forward_training:lanes=4,map_step=8"
    line = pack.table([result])[1].split()
    assert line[:7] == ["forward_training", "1000", "900", "1.111", "10.00", "2.00", "5.000"]


def test_nothing_better_is_said(searched):
    result, _ = searched("size", lambda **values: Figures(1000 + len(values), 100, 10.0))
    assert result.settings() == ""
    assert pack.table([result])[1].endswith("the default")


def test_what_computes_something_else_does_not_count(searched):
    def figures(lanes=0, sum_step=0, map_step=0):
        if map_step == 8:
            raise Wrong("wrong results: y[3] is 2, expected 1")
        return Figures(1000, 100, 10.0 - map_step)

    result, _ = searched("cycles", figures)
    assert result.settings() == "forward_training:map_step=4"
    assert set(result.failed.values()) == {"wrong results: y[3] is 2, expected 1"}


def test_a_search_that_is_stopped_says_what_it_found(searched):
    tried = []

    def figures(lanes=0, sum_step=0, map_step=0):
        tried.append(map_step)
        if len(tried) == 8:
            raise KeyboardInterrupt
        return Figures(1000, 100, 10.0 - lanes)

    result, stopped = searched("cycles", figures)
    assert stopped
    assert re.fullmatch("forward_training:lanes=[248]", result.settings())


def test_time_ends_a_search(searched):
    times = iter([True, False])
    result, _ = searched("cycles", lambda **values: Figures(1000, 100, 10.0), is_time=lambda: next(times, False))
    assert result.default()
    assert len(result.figures) < 8


def test_few_channels_of_the_same_planes_are_called_with():
    def sizes(shape, layout="nchw"):
        return pack.call_sizes(Request("linux-arm64", "backward", layout=layout, shape=shape))

    assert sizes("1,64,56,56") == (1, 10, 56, 56)
    assert sizes("64,512,7,7") == (64, 10, 7, 7)
    assert sizes("1,64,56,56", "nhwc") == (1, 32, 56, 56)
    assert sizes("8,3,224,224") == (1, 1, 224, 224)
    assert sizes("") == pack.FREE_SIZES


def test_processors_without_a_model_are_refused():
    needs_tools()
    assert pack.processor_of("wasm", None, "size") is None
    with pytest.raises(SystemExit, match="no cycles for TARGET=wasm, only for linux-arm64, .*--for size is for all"):
        pack.processor_of("wasm", None, "cycles")
    with pytest.raises(SystemExit, match="no model of 'cortex-a99': allowed are, where they have one, .*cortex-a72"):
        pack.processor_of("baremetal-arm64", "cortex-a99", "cycles")


def test_a_program_that_fails_in_silence_or_never_ends_fails():
    assert problem_of(result_of("true")) is None
    assert problem_of(result_of("sh", "-c", "kill -9 $$")) == "exit status -9\n"
    assert problem_of(result_of("sleep", "60", timeout=0.1)).startswith("sleep did not end in 0.1 s\n")


# ---- the model

LISTING = {
    0x1000: "movs\tr0, #4",
    0x1002: "subs\tr0, #1",
    0x1004: "itt\tne",
    0x1006: "addne.w\tr1, r1, r0",
    0x100A: "vmlane.f64\td0, d1, d2",
    0x100E: "bne.n\t1002 <f+0x2>",
    0x1010: "pop\t{r4, pc}",
}
LOOP = [0x1002, 0x1004, 0x1006, 0x100A, 0x100E]


def log(addresses):
    return "".join(f"Trace 0: 0x7f0010 [00000000/{address:08x}/00000110/ff000201] f\n" for address in addresses)


def test_each_instruction_is_counted():
    every = cycles.counts_of(log([0x1000, *LOOP * 3, 0x1010]), LISTING)
    branches = cycles.counts_of(log([0x1000, 0x1002, 0x1002, 0x1010]), LISTING, singlestep=False)
    assert every == branches
    blocks = cycles.blocks_of(LISTING, every)
    assert [(block.times, len(block.instructions)) for block in blocks] == [(1, 1), (3, 5), (1, 1)]
    assert cycles.executed(blocks) == 17


def test_a_run_ends_with_its_page():
    listing = {0x1FFC: "nop", 0x1FFE: "nop", 0x2000: "nop", 0x2002: "bx\tlr"}
    counts = cycles.counts_of(log([0x1FFC, 0x2000]), listing, singlestep=False)
    assert counts == dict.fromkeys(listing, 1)


def test_thumb_is_read_as_llvm_has_it():
    assert cycles.lines_of_thumb(list(LISTING.values())[2:5]) == ["nop", "add\tr1, r1, r0", "vmla.f64\td0, d1, d2"]


def test_a_chain_of_additions_waits_and_a_cortex_m7_has_a_model():
    needs_tools()
    m7 = pack.PROCESSORS["baremetal-cortex-m7"]
    chain = cycles.Block(100, ["vadd.f32\ts0, s0, s1"] * 4)
    apart = cycles.Block(100, [f"vadd.f32\ts{i}, s{i}, s8" for i in range(4)])
    assert cycles.cycles([chain], m7) > 2 * cycles.cycles([apart], m7)
    assert cycles.cycles([chain], m7, least_times=101) == 0
    assert cycles.cycles([cycles.Block(1, list(LISTING.values())[:6])], m7) > 0


# ---- the whole command


def test_a_pack_is_tuned_and_made_by_what_it_prints(tmp_path):
    needs_tools()
    command = [
        sys.executable,
        ROOT / "bench/hbn-tune",
        "pack",
        "--target",
        "baremetal-arm64",
        "--ops",
        "forward_inference",
    ]
    shape = "1,4,16,16"
    run = subprocess.run(
        [*command, "--shape", shape, "--for", "cycles", "--trials", "5", "--generators", GENERATORS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    line = re.search(r"^forward_inference +(.*)$", run.stdout, re.M)[1].split()
    text, best, _, before, after = map(float, line[:5])
    made = re.search(rf"make pack TARGET=baremetal-arm64 .* SHAPE={shape} PARAMETERS='(.*)'$", run.stdout, re.M)
    assert made, run.stdout
    assert after < before / 1.2  # several vectors in one step
    arguments = {"generators": str(GENERATORS), "halide_include": pack.halide_include(), "shape": shape}
    for parameters, expected in (("", text), (made[1], best)):
        sizes = packs.make(
            target="baremetal-arm64", ops="forward_inference", out=tmp_path / "pack", parameters=parameters, **arguments
        )
        assert sizes["forward_inference"].text == expected
    assert made[0] in (tmp_path / "pack" / "README.md").read_text()


def test_wrong_results_of_the_default_end_the_search(tmp_path, monkeypatch):
    needs_tools()
    monkeypatch.setattr(pack.Program, "run", lambda self: "y[3] is 2, expected 1\n")
    request = Request("linux-arm64", "forward_inference", shape="1,1,4,4")
    setting = Setting(request, "size", None, str(GENERATORS), pack.halide_include(), tmp_path)
    with pytest.raises(SystemExit, match=r"^forward_inference: wrong results: y\[3\] is 2, expected 1$"):
        pack.search_all(setting)
