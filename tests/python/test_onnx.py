"""hbn.onnx: ONNX's own tests of BatchNormalization, whole models, all dtypes and opsets."""

import itertools

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

import hbn
import hbn.onnx

DTYPES = {
    "float32": (np.float32, 2.0**-24),
    "float64": (np.float64, 2.0**-53),
    "float16": (np.float16, 2.0**-11),
    "bfloat16": (ml_dtypes.bfloat16, 2.0**-8),
}
NAMES = ("x", "scale", "bias", "input_mean", "input_var")
LATEST = 15


@pytest.fixture
def calls(monkeypatch):
    """How often hbn's kernels ran, by name."""
    counted = {}

    def count(name, function):
        def counting(*args, **kwargs):
            counted[name] = counted.get(name, 0) + 1
            return function(*args, **kwargs)

        monkeypatch.setattr(hbn.onnx, name, counting)

    for name in ("batch_norm_forward", "batch_norm_stats", "batch_norm_normalize"):
        count(name, getattr(hbn, name))
    return counted


INFERENCE = {"batch_norm_forward": 1}
TRAINING = {"batch_norm_stats": 1, "batch_norm_normalize": 1}


def node_model(arrays, outputs=("y",), opset=LATEST, **attributes):
    """A model of one BatchNormalization."""
    node = helper.make_node("BatchNormalization", NAMES, outputs, **attributes)
    elements = [helper.np_dtype_to_tensor_dtype(a.dtype) for a in arrays]
    inputs = [
        helper.make_tensor_value_info(name, element, a.shape)
        for name, element, a in zip(NAMES, elements, arrays, strict=True)
    ]
    made = [
        helper.make_tensor_value_info(name, element, None)
        for name, element in zip(outputs, (elements[0], elements[3], elements[4]), strict=False)
    ]
    return helper.make_model(
        helper.make_graph([node], "one", inputs, made),
        opset_imports=[helper.make_opsetid("", opset)],
    )


def evaluate(model, arrays):
    return hbn.onnx.reference_evaluator(model).run(None, dict(zip(NAMES, arrays, strict=True)))


def problem(shape=(2, 3, 4, 5), dtypes=(np.float32,) * 5, seed=0):
    rng = np.random.default_rng(seed)
    c = shape[1] if len(shape) > 1 else 1
    values = (
        rng.normal(1, 2, shape),
        rng.normal(1, 0.5, c),
        rng.normal(0, 1, c),
        rng.normal(0, 1, c),
        rng.uniform(0.5, 2, c),
    )
    return [v.astype(dtype) for v, dtype in zip(values, dtypes, strict=True)]


def oracle(arrays, training, epsilon=1e-5, momentum=0.9):
    """y, running_mean and running_var by the operator's specification, and |scale * xhat| + |bias|, in float64."""
    epsilon, momentum = float(np.float32(epsilon)), float(np.float32(momentum))
    x, scale, bias, mean, var = (a.astype(np.float64) for a in arrays)
    axes = (0, *range(2, x.ndim))
    shape = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (1,)
    running_mean = mean * momentum + x.mean(axes) * (1 - momentum) if x.size else mean
    running_var = var * momentum + x.var(axes) * (1 - momentum) if x.size else var
    if training and x.size:
        mean, var = x.mean(axes), x.var(axes)
    product = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + epsilon) * scale.reshape(shape)
    return (
        product + bias.reshape(shape),
        running_mean,
        running_var,
        abs(product) + abs(bias.reshape(shape)),
    )


def assert_within_rounding(actual, expected, size, dtype):
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    roundoff = dict(DTYPES.values())[dtype]
    compute = 2.0**-53 if dtype == np.float64 else 2.0**-24
    # What 16 bits' sums in groups of float32 add: tests/oracle.h.
    groups = 27 * 65 * 2.0**-24 if np.dtype(dtype).itemsize == 2 else 0
    bound = (8 * compute + groups) * np.maximum(1, size) + (roundoff if roundoff != compute else 0) * abs(expected)
    assert (abs(actual.astype(np.float64) - expected) <= bound).all()


# ---- ONNX's own tests


OWN_TESTS = {
    "test_batchnorm_example": INFERENCE,
    "test_batchnorm_epsilon": INFERENCE,
    "test_batchnorm_example_training_mode": TRAINING,
    "test_batchnorm_epsilon_training_mode": TRAINING,
}


@pytest.fixture(scope="module")
def own_tests():
    with np.errstate(all="ignore"):  # ONNX generates its casts' overflows, too.
        return {case.name: case for case in load_model_tests(kind="node") if "batchnorm" in case.name}


def test_all_of_onnxs_tests_are_here(own_tests):
    assert set(own_tests) == set(OWN_TESTS)


@pytest.mark.parametrize("name", OWN_TESTS)
def test_onnxs_own_test(own_tests, calls, name):
    case = own_tests[name]
    assert case.data_sets
    evaluator = hbn.onnx.reference_evaluator(case.model)
    for inputs, expected in case.data_sets:
        calls.clear()
        actual = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
        assert calls == OWN_TESTS[name]
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype
            np.testing.assert_allclose(a, e, rtol=case.rtol, atol=case.atol)


CONVERTED = [
    "test_BatchNorm1d_3d_input_eval",
    "test_BatchNorm2d_eval",
    "test_BatchNorm2d_momentum_eval",
    "test_BatchNorm3d_eval",
    "test_BatchNorm3d_momentum_eval",
]


def test_all_of_onnxs_models_from_pytorch_are_here():
    found = [case.name for case in load_model_tests(kind="pytorch-converted") if "BatchNorm" in case.name]
    assert sorted(found) == CONVERTED


@pytest.mark.parametrize("name", CONVERTED)
def test_onnxs_model_from_pytorch(calls, name):
    case = {case.name: case for case in load_model_tests(kind="pytorch-converted")}[name]

    def tensor(path):
        return numpy_helper.to_array(onnx.load_tensor(f"{case.model_dir}/test_data_set_0/{path}"))

    evaluator = hbn.onnx.reference_evaluator(f"{case.model_dir}/model.onnx")
    (actual,) = evaluator.run(None, {evaluator.input_names[0]: tensor("input_0.pb")})
    assert calls == INFERENCE
    np.testing.assert_allclose(actual, tensor("output_0.pb"), rtol=case.rtol, atol=case.atol)


# ---- one operator


@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(7,), (5, 3), (4, 3, 6), (2, 3, 4, 5), (2, 3, 2, 3, 4), (2, 3, 2, 1, 3, 2)],
    ids=str,
)
def test_every_rank_and_dtype(calls, shape, dtype, training):
    numpy_dtype, _ = DTYPES[dtype]
    arrays = problem(shape, (numpy_dtype,) * 5)
    before = [a.tobytes() for a in arrays]
    outputs = ("y", "running_mean", "running_var")[: 3 if training else 1]
    actual = evaluate(node_model(arrays, outputs, training_mode=training), arrays)
    assert calls == (TRAINING if training else INFERENCE)
    assert [a.tobytes() for a in arrays] == before
    y, *running, size = oracle(arrays, training)
    assert_within_rounding(actual[0], y, size, numpy_dtype)
    for a, e in zip(actual[1:], running, strict=False):
        assert_within_rounding(a, e, abs(e), numpy_dtype)


@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=3)), ids="-".join)
def test_dtypes_of_parameters_may_differ(dtypes, training):
    x, parameter, statistic = (DTYPES[name][0] for name in dtypes)
    arrays = problem(dtypes=(x, parameter, parameter, statistic, statistic))
    outputs = ("y", "running_mean", "running_var")[: 3 if training else 1]
    actual = evaluate(node_model(arrays, outputs, training_mode=training), arrays)
    assert [a.dtype for a in actual] == [x, statistic, statistic][: len(outputs)]
    # Parameters wider than X's statistics are rounded to those.
    rounded = [arrays[0]] + [a.astype(np.float32) if x != np.float64 else a for a in arrays[1:]]
    y, _, _, size = oracle(rounded, training)
    assert_within_rounding(actual[0], y, size, x)
    for a, e in zip(actual[1:], oracle(arrays, training)[1:3], strict=False):
        np.testing.assert_allclose(
            a.astype(np.float64),
            e,
            rtol=2 * dict(DTYPES.values())[statistic] + 27 * 65 * 2.0**-24,
            atol=1e-5,
        )


def test_attributes_are_read():
    arrays = problem()
    arrays[0] *= np.float32(1e-2)
    attributes = {"epsilon": 1e-2, "momentum": 0.25}
    actual = evaluate(
        node_model(arrays, ("y", "running_mean", "running_var"), training_mode=1, **attributes),
        arrays,
    )
    y, *running, size = oracle(arrays, True, **attributes)
    assert_within_rounding(actual[0], y, size, np.float32)
    for a, e in zip(actual[1:], running, strict=True):
        np.testing.assert_allclose(a, e, rtol=2.0**-23)


def test_the_running_variance_is_over_m():
    x = np.array([[[1.0], [0.0]], [[3.0], [4.0]]], np.float32)  # Two values a channel: 1, 3 and 0, 4
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    model = node_model([x, one, zero, zero, zero], ("y", "m", "v"), training_mode=1, momentum=0.0)
    _, mean, var = evaluate(model, [x, one, zero, zero, zero])
    assert (mean == [2, 2]).all()
    assert (var == [1, 4]).all()


def test_one_value_a_channel_gives_the_bias():
    arrays = problem((1, 3, 1, 1))
    y, mean, var = evaluate(node_model(arrays, ("y", "m", "v"), training_mode=1, momentum=0.0), arrays)
    np.testing.assert_array_equal(y, arrays[2].reshape(1, 3, 1, 1))
    np.testing.assert_array_equal(mean, arrays[0].reshape(3))
    np.testing.assert_array_equal(var, np.zeros(3))


@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (0, 3), (2, 0, 4)], ids=str)
def test_empty(shape, training):
    arrays = problem(shape)
    outputs = ("y", "running_mean", "running_var")[: 3 if training else 1]
    y, *running = evaluate(node_model(arrays, outputs, training_mode=training), arrays)
    assert y.shape == shape
    for a, e in zip(running, arrays[3:], strict=False):
        np.testing.assert_array_equal(a, e)
        assert not np.shares_memory(a, e)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_outputs_may_be_left_out_of_training(outputs):
    arrays = problem()
    names = ("y", "running_mean", "running_var")[:outputs]
    assert len(evaluate(node_model(arrays, names, training_mode=1), arrays)) == outputs


@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 4, 1)).transpose(0, 4, 1, 2, 3),
        lambda x: x.transpose(0, 1, 4, 2, 3),
        lambda x: x[:, :, ::2, :, 1:],
        lambda x: x[::-1],
        lambda x: x[::-1, :, :, ::-1],
        lambda x: np.broadcast_to(x[:1], x.shape),
    ],
    ids=["channels_last", "transposed", "sliced", "reversed", "reversed in two", "expanded"],
)
def test_views(view, training):
    arrays = problem((2, 3, 4, 3, 5))
    arrays[0] = view(arrays[0])
    for a in arrays:
        a.setflags(write=False)
    (y,) = evaluate(node_model(arrays, training_mode=training), arrays)
    expected, _, _, size = oracle(arrays, training)
    assert_within_rounding(y, expected, size, np.float32)


def test_a_mean_far_from_zero():
    arrays = problem((8, 3, 16, 16))
    arrays[0] = (np.random.default_rng(1).normal(1e6, 1, arrays[0].shape)).astype(np.float32)
    (y,) = evaluate(node_model(arrays, training_mode=1), arrays)
    expected, _, _, size = oracle(arrays, True)
    assert_within_rounding(y, expected, size, np.float32)


# ---- models


def tensor(name, array):
    return numpy_helper.from_array(array, name)


def model_of_two_blocks(training, dtype=np.float32):
    """Conv, BatchNormalization, Relu, Conv, BatchNormalization."""
    rng = np.random.default_rng(5)
    channels, element = (
        {"rm0": 4, "rv0": 4, "rm1": 5, "rv1": 5},
        helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
    )
    constants, nodes = [], []

    def block(index, x, channels_in, channels_out):
        weight = f"w{index}"
        constants.append(
            tensor(
                weight,
                rng.normal(0, 0.3, (channels_out, channels_in, 3, 3)).astype(dtype),
            )
        )
        nodes.append(helper.make_node("Conv", [x, weight], [f"conv{index}"], pads=[1, 1, 1, 1]))
        parameters = [f"{name}{index}" for name in NAMES[1:]]
        values = (
            rng.normal(1, 0.1, channels_out),
            rng.normal(0, 1, channels_out),
            rng.normal(0, 1, channels_out),
            rng.uniform(0.5, 2, channels_out),
        )
        constants.extend(tensor(n, v.astype(dtype)) for n, v in zip(parameters, values, strict=True))
        running = [f"rm{index}", f"rv{index}"] if training else []
        nodes.append(
            helper.make_node(
                "BatchNormalization",
                [f"conv{index}", *parameters],
                [f"bn{index}", *running],
                training_mode=int(training),
            )
        )
        return [f"bn{index}", *running]

    first = block(0, "x", 3, 4)
    nodes.append(helper.make_node("Relu", ["bn0"], ["relu"]))
    second = block(1, "relu", 4, 5)
    outputs = [*second, *first[1:]]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", element, ["N", 3, 8, 8])],
        [
            helper.make_tensor_value_info(name, element, ["N", 5, 8, 8] if name == "bn1" else [channels[name]])
            for name in outputs
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", LATEST)])
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-13)])
def test_whole_model(calls, dtype, tolerance, training):
    model = model_of_two_blocks(training, dtype)
    x = np.random.default_rng(6).normal(size=(4, 3, 8, 8)).astype(dtype)
    with_hbn = hbn.onnx.reference_evaluator(model).run(None, {"x": x})
    assert calls == {name: 2 for name in (TRAINING if training else INFERENCE)}
    without = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    by_new_ops = onnx.reference.ReferenceEvaluator(model, new_ops=[hbn.onnx.BatchNormalization]).run(None, {"x": x})
    assert len(with_hbn) == (5 if training else 1)
    for a, b, c in zip(with_hbn, without, by_new_ops, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(a, c)


def test_the_nodes_are_hbns():
    evaluator = hbn.onnx.reference_evaluator(model_of_two_blocks(training=False))
    classes = [type(node) for node in evaluator.rt_nodes_ if node.op_type == "BatchNormalization"]
    assert classes == [hbn.onnx.BatchNormalization] * 2


def test_models_as_bytes_and_files(tmp_path):
    model = model_of_two_blocks(training=False)
    onnx.save(model, tmp_path / "model.onnx")
    x = np.ones((1, 3, 8, 8), np.float32)
    expected = hbn.onnx.reference_evaluator(model).run(None, {"x": x})
    for form in (model.SerializeToString(), str(tmp_path / "model.onnx")):
        np.testing.assert_array_equal(hbn.onnx.reference_evaluator(form).run(None, {"x": x}), expected)


def test_nodes_in_functions(calls):
    # Its attributes are the function's caller's.
    node = helper.make_node("BatchNormalization", NAMES, ["y"])
    for name, kind in (
        ("training_mode", onnx.AttributeProto.INT),
        ("epsilon", onnx.AttributeProto.FLOAT),
    ):
        node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    opsets = [helper.make_opsetid("", LATEST), helper.make_opsetid("mine", 1)]
    function = helper.make_function(
        "mine",
        "Normalize",
        list(NAMES),
        ["y"],
        [node],
        opsets[:1],
        attributes=["training_mode", "epsilon"],
    )
    arrays = problem()
    call = helper.make_node("Normalize", NAMES, ["y"], domain="mine", training_mode=1, epsilon=0.5)
    graph = node_model(arrays).graph
    model = helper.make_model(
        helper.make_graph([call], "one", graph.input, graph.output),
        opset_imports=opsets,
        functions=[function],
    )
    (y,) = evaluate(model, arrays)
    assert calls == TRAINING
    expected, _, _, size = oracle(arrays, True, epsilon=0.5)
    assert_within_rounding(y, expected, size, np.float32)


def test_nodes_in_subgraphs(calls):
    arrays = problem()
    graph = node_model(arrays).graph
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("BatchNormalization", NAMES, ["inner"], training_mode=mode)],
            name,
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )
        for name, mode in (("then", 1), ("else", 0))
    }
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["condition"], ["y"], **branches)],
            "if",
            [*graph.input, condition],
            graph.output,
        ),
        opset_imports=[helper.make_opsetid("", LATEST)],
    )
    inputs = dict(zip(NAMES, arrays, strict=True))
    evaluator = hbn.onnx.reference_evaluator(model)
    for training, expected_calls in ((True, TRAINING), (False, INFERENCE)):
        calls.clear()
        (y,) = evaluator.run(None, {**inputs, "condition": np.array(training)})
        assert calls == expected_calls
        expected, _, _, size = oracle(arrays, training)
        assert_within_rounding(y, expected, size, np.float32)


def test_an_operator_of_the_users_own_comes_first(calls):
    class BatchNormalization(onnx.reference.op_run.OpRun):
        op_domain = ""

        def _run(self, x, *parameters, **attributes):
            return (x,)

    arrays = problem()
    model = node_model(arrays)
    evaluator = hbn.onnx.reference_evaluator(model, new_ops=[BatchNormalization])
    np.testing.assert_array_equal(evaluator.run(None, dict(zip(NAMES, arrays, strict=True)))[0], arrays[0])
    assert calls == {}


# ---- opsets


@pytest.mark.parametrize("opset", [1, 6, 7, 8, 9, 13, 14, 15, 21])
def test_inference_of_every_opset(calls, opset):
    arrays = problem()
    attributes = {"is_test": 1, "spatial": 1} if opset < 7 else {}
    (y,) = evaluate(node_model(arrays, opset=opset, **attributes), arrays)
    assert calls == INFERENCE
    expected, _, _, size = oracle(arrays, False)
    assert_within_rounding(y, expected, size, np.float32)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [
        (1, 1, {}),
        (6, 1, {"is_test": 0}),
        (6, 5, {"is_test": 1}),
        (6, 1, {"is_test": 1, "spatial": 0}),
        (7, 1, {"spatial": 0}),
        (7, 5, {}),
        (9, 5, {}),
        (13, 2, {}),
    ],
    ids=str,
)
def test_training_before_14_is_refused(opset, outputs, attributes):
    names = ("y", "mean", "var", "saved_mean", "saved_var")[:outputs]
    with pytest.raises(
        NotImplementedError,
        match=f"opset {opset} only as spatial inference: .* opset 14 or later",
    ):
        hbn.onnx.reference_evaluator(node_model(problem(), names, opset=opset, **attributes))


# ---- errors


@pytest.mark.parametrize("outputs", [2, 3])
def test_inference_has_one_output(outputs):
    arrays = problem()
    with pytest.raises(ValueError, match=f"one output where training_mode is 0, not {outputs}"):
        evaluate(node_model(arrays, ("y", "running_mean", "running_var")[:outputs]), arrays)


@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize(("index", "name"), [(1, "weight"), (2, "bias")])
def test_parameters_of_other_sizes_are_refused(index, name, training):
    arrays = problem()
    arrays[index] = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=f"^{name} should contain 3 elements not 4$"):
        evaluate(node_model(arrays, training_mode=training), arrays)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("training", [0, 1])
@pytest.mark.parametrize(("index", "name"), [(3, "running_mean"), (4, "running_var")])
def test_statistics_of_other_sizes_are_refused(index, name, training, size):
    arrays = problem()
    arrays[index] = np.ones(size, np.float32)
    outputs = ("y", "running_mean", "running_var")[: 3 if training else 1]
    with pytest.raises(ValueError, match=f"^{name} should contain 3 elements not {size}$"):
        evaluate(node_model(arrays, outputs, training_mode=training), arrays)


@pytest.mark.parametrize(("training", "epsilon", "text"), [(1, 0.0, "positive"), (0, -1.0, "non-negative")])
def test_epsilon_is_checked(training, epsilon, text):
    arrays = problem()
    with pytest.raises(ValueError, match=f"eps must be {text}"):
        evaluate(node_model(arrays, training_mode=training, epsilon=epsilon), arrays)
