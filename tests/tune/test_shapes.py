"""Where the tuner takes shapes from: arguments, files, ONNX models, and what hbn.torch.record_shapes wrote."""

import json

import onnx
import pytest
from onnx import TensorProto, helper
from tune import shapes
from tune.shapes import Call, expanded, gather, merged
from tune.tables import UserError

SHAPE = (32, 256, 56, 56)


def refused(text, function, *args, **kwargs):
    """Checks that the error says all of this."""
    with pytest.raises(UserError) as raised:
        function(*args, **kwargs)
    for part in [text] if isinstance(text, str) else text:
        assert part in str(raised.value)


def refused_text(file, text, said):
    """The same of what `file` holds."""
    file.write_text(text)
    refused(said, gather, [str(file)])


# ---- arguments and files


def test_shapes_of_the_command_line():
    assert gather(["32x256x56x56"]) == gather(["32,256,56,56"]) == gather(["32X256X56X56"]) == [Call(SHAPE)]
    assert gather(["32x256x56x56 1,3,8,8", "1x3x8x8"]) == [Call(SHAPE), Call((1, 3, 8, 8), calls=2)]


@pytest.mark.parametrize("text", ["32x256x56", "1x1x1x1x1", "32x0x5x5", "32", "1,,2,3", "70000x70000x1x1"])
def test_what_is_no_shape(text):
    refused(["--shapes: ", text, "allowed"], gather, [text])


def test_what_is_neither_a_shape_nor_a_file(tmp_path):
    refused(
        ["resnet.txt is neither a shape nor a file", "No such file", "allowed are N x C x H x W"],
        gather,
        [str(tmp_path / "resnet.txt")],
    )
    refused("neither", gather, [str(tmp_path)])
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00")
    refused("not text", gather, [str(tmp_path / "picture")])
    (tmp_path / "model.onnx").write_bytes(b"")
    refused("--model", gather, [str(tmp_path / "model.onnx")])


def test_a_text_file(tmp_path):
    file = tmp_path / "shapes.txt"
    file.write_text(
        "# ResNet-50\n"
        "\n"
        "32x256x56x56 forward_training float32 nhwc calls=3   # the first stage\n"
        "32,256,56,56   bfloat16\n"
        "32x256x56x56 nhwc calls=2 float32 forward_training\n"
        '{"shape": [1, 2, 3, 4], "calls": 5}\n'
    )
    assert gather([str(file)]) == [
        Call(SHAPE, "forward_training", "float32", "nhwc", 5),
        Call(SHAPE, None, "bfloat16"),
        Call((1, 2, 3, 4), calls=5),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("32x256x56", "the shape 32x256x56 is not allowed: it must be four sizes"),
        ("32x-2x56x3", "'32x-2x56x3' is no shape: allowed is N x C x H x W"),
        ("1x2x3x4 float31", "'float31' is not known: after the shape allowed are forward_training, "),
        ("1x2x3x4 float31", "float32, bfloat16, float16, float64; nchw, nhwc; calls=NUMBER"),
        ("1x2x3x4 activation_forward_relu", "'activation_forward_relu' is not known"),
        ("1x2x3x4 nchw nhwc", "'nhwc' is a second layout: one is allowed"),
        ("1x2x3x4 calls=0", "calls is 0: it must be a number from 1"),
        ('{"shape": [1, 2, 3]}', "the shape 1x2x3 is not allowed"),
        ('{"shape": [1, 2, 3, 4.0]}', "the shape 1x2x3x4.0 is not allowed"),
        ('{"shape": "1x2x3x4"}', "the shape '1x2x3x4' is not allowed"),
        ('{"shape": [1, 2, 3, 4], "dtype": "int8"}', "the dtype 'int8' is not known: allowed are float32, "),
        ('{"shape": [1, 2, 3, 4], "dtype": ["float32"]}', "the dtype ['float32'] is not known"),
        ('{"shape": [1, 2, 3, 4], "weight": 3}', "the field 'weight' is not known: allowed are shape, operation, "),
        ('{"shape": [1, 2, 3, 4], "calls": true}', "calls is True: it must be a number"),
        ('{"shape": [1, 2, 3, 4]', "this is no JSON: Expecting ',' delimiter, column 23"),
        ('{"dtype": "float32"}', 'this is no call: allowed is {"shape": [N, C, H, W], ...}'),
    ],
)
def test_a_wrong_line(tmp_path, line, error):
    file = tmp_path / "shapes.txt"
    refused_text(file, f"# shapes\n1x1x8x8\n{line}\n1x1x9x9\n", [f"{file}:3: ", error])


def test_a_json_file(tmp_path):
    file = tmp_path / "shapes.json"
    calls = [
        {"shape": [32, 256, 56, 56], "dtype": "float16"},
        {"shape": [1, 2, 3, 4], "operation": "stats", "calls": 7},
    ]
    for indent in (None, 2):
        file.write_text(json.dumps(calls, indent=indent))
        assert gather([str(file)]) == [Call(SHAPE, dtype="float16"), Call((1, 2, 3, 4), "stats", calls=7)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[\n{"shape": [1, 2, 3, 4]},\n\n{"shape": [1, 2,\n 3]}\n]', ":4: the shape 1x2x3 is not allowed"),
        ('[\n{"shape": [1, 2, 3, 4]},\n{"shape": }\n]', ":3: this is no JSON: Expecting value, column 11"),
        ('[{"shape": [1, 2, 3, 4]}\n{"shape": [1, 2, 3, 4]}]', ":2: this is no JSON: ',' or ']' is allowed"),
        ('[{"shape": [1, 2, 3, 4]}]\n\n3', ":3: nothing is allowed after the list"),
        ('[\n{"shape": [1, 2, 3, 4]},\n', ":3: this is no JSON: Expecting value"),
        ("[\n5]", ":2: this is no call"),
        ("[]", " has no shapes"),
    ],
)
def test_wrong_json(tmp_path, text, error):
    file = tmp_path / "shapes.json"
    refused_text(file, text, str(file) + error)


def test_nothing_in_a_file(tmp_path):
    refused_text(tmp_path / "shapes.txt", "# none yet\n", "shapes.txt has no shapes")


def test_calls_add_up():
    stats = Call((1, 2, 3, 4), "stats", calls=2)
    assert merged([stats, Call((1, 2, 3, 4)), stats]) == [stats._replace(calls=4), Call((1, 2, 3, 4))]


def test_what_a_line_leaves_open_is_what_the_options_say():
    calls = [Call(SHAPE, calls=2), Call(SHAPE, "stats", "float64", "nhwc", 5), Call(SHAPE, dtype="float64", calls=3)]
    assert expanded(calls, ["stats", "normalize"], ["float32", "float64"], ["nhwc"]) == {
        ("stats", "float32", "nhwc", SHAPE): 2,
        ("stats", "float64", "nhwc", SHAPE): 10,
        ("normalize", "float32", "nhwc", SHAPE): 2,
        ("normalize", "float64", "nhwc", SHAPE): 5,
    }


def test_what_record_shapes_writes(tmp_path):
    torch = pytest.importorskip("torch")
    record_shapes = pytest.importorskip("hbn.torch").record_shapes
    file = tmp_path / "shapes.json"
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3))
    x = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    with record_shapes(file):
        model(x).sum().backward()
        model.eval()(x)
    assert sorted(gather([str(file)])) == [
        Call((4, 3, 5, 6), "backward_training", "float32", "nhwc", 2),
        Call((4, 3, 5, 6), "forward_inference", "float32", "nhwc", 2),
        Call((4, 3, 5, 6), "forward_training", "float32", "nhwc", 2),
    ]


# ---- ONNX models

VECTORS = ["scale", "bias", "mean", "var"]


def batch_norm(x, y, training=False, **attributes):
    outputs = [y, f"{y}_mean", f"{y}_var"] if training else [y]
    extra = {"training_mode": 1} if training else {}
    return helper.make_node("BatchNormalization", [x, *VECTORS], outputs, name=f"bn_{y}", **extra, **attributes)


def save(tmp_path, nodes, shape, dtype=TensorProto.FLOAT, functions=(), channels=8, output="y"):
    weight = helper.make_tensor_value_info("weight", dtype, [channels, 3, 3, 3])
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("x", dtype, shape), weight]
        + [helper.make_tensor_value_info(name, dtype, [channels]) for name in VECTORS],
        [helper.make_tensor_value_info(output, dtype, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=list(functions)), path)
    return path


CONV = helper.make_node("Conv", ["x", "weight"], ["c"], strides=[2, 2])


def test_a_model(tmp_path):
    nodes = [
        CONV,
        batch_norm("c", "b1", training=True),
        helper.make_node("Relu", ["b1"], ["r"]),
        batch_norm("r", "b2"),
        batch_norm("b2", "y"),
    ]
    path = save(tmp_path, nodes, [4, 3, 33, 17])
    assert gather([], [str(path)]) == [
        Call((4, 8, 16, 8), "forward_training", "float32", "nchw", 1),
        Call((4, 8, 16, 8), "forward_inference", "float32", "nchw", 2),
    ]
    # The batch is fixed.
    assert gather([], [str(path)], 7)[0].shape == (4, 8, 16, 8)


@pytest.mark.parametrize("batch", ["N", None], ids=["named", "unnamed"])
def test_an_open_batch(tmp_path, batch):
    path = save(tmp_path, [CONV, batch_norm("c", "y")], [batch, 3, 33, 17])
    assert gather([], [str(path)], 6) == [Call((6, 8, 16, 8), "forward_inference", "float32", "nchw")]
    refused(
        [f"{path}: BatchNormalization 'bn_y': the shape of its input 'c' can't be inferred", "--batch N"],
        gather,
        [],
        [str(path)],
    )


def test_shapes_that_the_model_gives_for_an_open_batch(tmp_path):
    own = helper.make_node("Own", ["x"], ["c"], domain="own")
    path = save(tmp_path, [own, batch_norm("c", "y")], ["N", 3, 33, 17])
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 8, 5, 6]))
    onnx.save(model, path)
    assert gather([], [str(path)], 6)[0].shape == (6, 8, 5, 6)


@pytest.mark.parametrize(
    ("shape", "folded"), [([4, 8], (4, 8, 1, 1)), ([4, 8, 7], (4, 8, 1, 7)), ([4, 8, 2, 3, 5], (4, 8, 6, 5))]
)
def test_other_dimensions(tmp_path, shape, folded):
    path = save(tmp_path, [batch_norm("x", "y")], shape, TensorProto.DOUBLE)
    assert gather([], [str(path)]) == [Call(folded, "forward_inference", "float64", "nchw")]


def test_branches_and_functions(tmp_path):
    branch = helper.make_graph(
        [batch_norm("c", "inner")], "branch", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    )
    function = helper.make_function(
        "own",
        "TwoNorms",
        ["f", *VECTORS],
        ["g"],
        [batch_norm("f", "between"), batch_norm("between", "g")],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        CONV,
        helper.make_node("ReduceMax", ["c"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["choice"], to=TensorProto.BOOL),
        helper.make_node("If", ["choice"], ["chosen"], then_branch=branch, else_branch=branch),
        helper.make_node("TwoNorms", ["chosen", *VECTORS], ["y"], domain="own"),
    ]
    path = save(tmp_path, nodes, [4, 3, 33, 17], functions=[function])
    assert gather([], [str(path)]) == [Call((4, 8, 16, 8), "forward_inference", "float32", "nchw", 4)]


def test_shapes_that_cannot_be_inferred(tmp_path):
    own = helper.make_node("Own", ["x"], ["c"], domain="own")
    path = save(tmp_path, [own, batch_norm("c", "y")], [4, 3, 33, 17])
    refused(["bn_y", "its input 'c' can't be inferred, it is unknown", "fixed sizes"], gather, [], [str(path)])
    path = save(tmp_path, [batch_norm("x", "y")], [4, 8, "height", 17])
    refused(["it is (4, 8, height, 17)", "fixed sizes"], gather, [], [str(path)])


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "model.onnx").write_text("32x256x56x56")
    refused("model.onnx can't be read as an ONNX model", gather, [], [str(tmp_path / "model.onnx")])
    (tmp_path / "model.onnx").write_bytes(b"")
    refused("model.onnx is no ONNX model, or an empty one", gather, [], [str(tmp_path / "model.onnx")])
    refused("none.onnx can't be read as an ONNX model", gather, [], [str(tmp_path / "none.onnx")])
    path = save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [4, 3, 33, 17])
    refused("has no BatchNormalization", gather, [], [str(path)])


def test_a_dtype_that_no_kernel_has(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes.tables, "DTYPES", ["float32"])
    path = save(tmp_path, [batch_norm("x", "y")], [4, 8, 5, 6], TensorProto.FLOAT16)
    refused(["bn_y", "the dtype 'float16' is not known: allowed are float32"], gather, [], [str(path)])
