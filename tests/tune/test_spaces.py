"""What a candidate may be: the tables, and which of their rows make a difference."""

import random

import pytest
from tune import tables
from tune.spaces import Candidate, Choice, Space, make_space, powers_of_two
from tune.tables import Parameter, Threshold, UserError


def space():
    return Space(
        {
            "nchw": [Choice("lanes", (0, 8, 16), 0, False), Choice("tile", (64, 128), 128, True)],
            "blocks": [Choice("rows", (0, 1, 2, 4), 0, False)],
        },
        "nchw",
    )


def test_operations_are_kernels_and_what_users_call_them():
    assert tables.kernel_of("backward") == "backward_training"
    assert tables.kernel_of("backward_add_relu") == "backward_training_add_relu"
    assert tables.kernel_of("forward") == "forward_training"
    assert tables.kernel_of("forward_inference") == "forward_inference"
    assert tables.kernel_of("stats") == "stats"
    with pytest.raises(UserError, match="no operation 'bachward': allowed are forward, backward, .*stats"):
        tables.kernel_of("bachward")


def test_tables_are_read():
    parameters = {p.name: p for p in tables.parameters()}
    assert all(p.values[0] == 0 and p.values.count(0) == 1 and p.families and p.layouts for p in parameters.values())
    assert {layout for p in parameters.values() for layout in p.layouts} <= set(tables.kernel_layouts())
    thresholds = tables.thresholds()
    assert thresholds and all(t.least <= t.default <= t.most for t in thresholds)
    assert "layout" not in {t.name for t in thresholds}


def test_a_space_has_each_candidate_once():
    everything = list(space().everything())
    assert len(everything) == len({c.key() for c in everything}) == space().size() == 3 * 2 + 4
    for candidate in everything:
        assert space().of_trial(space().params(candidate)) == candidate


def test_defaults_are_not_settings():
    plain, blocks = space().plain()
    assert plain == Candidate("nchw") and blocks == Candidate("blocks")
    assert Candidate("nchw", (("tile", 64),), (("lanes", 8),)).key() == "nchw tile=64 lanes=8"
    assert space().of_positions("nchw", [1, 1]) == Candidate("nchw", (), (("lanes", 8),))


def test_what_is_not_in_a_space():
    for candidate in [Candidate("rows"), Candidate("nchw", (), (("lanes", 64),)), Candidate("nchw", (), (("x", 1),))]:
        assert space().params(candidate) is None
    assert space().of_trial({"layout": "nchw", "nchw.lanes": 1}) is None  # the tuner was killed in between


def test_neighbours_differ_in_one_choice():
    found = {c.key() for c in space().neighbours(Candidate("nchw", (), (("lanes", 8),)))}
    assert found == {"nchw", "nchw lanes=16", "nchw tile=64 lanes=8"}
    # A parameter's default may be any value: it has no place among them.
    assert {c.key() for c in space().neighbours(Candidate("blocks"))} == {f"blocks rows={rows}" for rows in (1, 2, 4)}
    assert space().random(random.Random(1)).key() in {c.key() for c in space().everything()}


def test_powers_of_two():
    assert powers_of_two(0, 8) == [0, 1, 2, 4, 8]
    assert powers_of_two(3, 20) == [3, 4, 8, 16, 20]


THRESHOLDS = [
    Threshold("columns", 1024, 64, 2048),
    Threshold("bytes", 25165824, 0, 1 << 40),
    Threshold("idle", 8, 1, 64),
]


def test_thresholds_have_a_value_for_each_view():
    def view(thresholds):
        columns = min(thresholds.get("columns", 1024), 512)  # all there are
        streams = 1000000 > thresholds.get("bytes", 25165824)
        return f"{thresholds.get('layout')} {columns} {streams}"

    choices = make_space(["rows"], "rows", [], THRESHOLDS, view).layouts["rows"]
    assert choices == [
        Choice("columns", (64, 128, 256, 1024), 1024, True),
        Choice("bytes", (524288, 25165824), 25165824, True),  # of many, the one nearest to the default
    ]


def test_thresholds_whose_effect_is_unknown():
    choices = make_space(["rows"], "rows", [], THRESHOLDS[:1]).layouts["rows"]
    assert choices == [Choice("columns", (256, 512, 1024, 2048), 1024, True)]


def test_parameters_are_those_of_the_layout():
    parameters = [Parameter("lanes", ["x86"], ["nchw"], [0, 8]), Parameter("unroll", ["x86"], ["rows", "nchw"], [0, 2])]
    found = make_space(["nchw", "rows"], "nchw", parameters, []).layouts
    assert [c.name for c in found["nchw"]] == ["lanes", "unroll"]
    assert [c.name for c in found["rows"]] == ["unroll"]
