"""hbn.torch.record_shapes: what a model's run calls, as the tuner's file."""

import contextlib
import json
import stat
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import hbn.torch
from hbn.torch import RecordedCall, record_shapes

OF = {"torch": nn, "hbn": hbn.torch}
LIBRARY = pytest.mark.parametrize("library", OF.values(), ids=OF)
SHAPE = (4, 3, 5, 6)


def rows(shapes):
    return {(call.operation, call.dtype, call.layout, call.shape): number for call, number in shapes.items()}


def read(path):
    return {
        (row["operation"], row["dtype"], row["layout"], tuple(row["shape"])): row["calls"]
        for row in json.loads(path.read_text())
    }


def called(operation, number=1, dtype="float32", layout="nchw", shape=SHAPE):
    return {(operation, dtype, layout, shape): number}


@LIBRARY
def test_a_models_training_and_evaluation(library, tmp_path):
    path = tmp_path / "shapes.json"
    model = nn.Sequential(nn.Conv2d(3, 8, 3), library.BatchNorm2d(8), nn.ReLU(inplace=True), library.BatchNorm2d(8))
    x = torch.randn(2, 3, 8, 10)
    with record_shapes(path) as shapes:
        model(x).sum().backward()
        with torch.no_grad():
            model(x)
        model.eval()(x)
        model[1].requires_grad_(False)(torch.randn(2, 8, 6, 8, requires_grad=True)).sum().backward()
    eight = (2, 8, 6, 8)
    assert rows(shapes) == {
        **called("forward_training", 4, shape=eight),
        **called("backward_training", 2, shape=eight),
        **called("forward_inference", 3, shape=eight),
        **called("backward_inference_input", 1, shape=eight),
    }
    assert read(path) == rows(shapes)
    assert [row["calls"] for row in json.loads(path.read_text())] == [4, 3, 2, 1]


@LIBRARY
def test_shapes_are_folded_and_layouts_told(library):
    cases = [
        (library.BatchNorm1d, torch.randn(4, 3), "nchw", (4, 3, 1, 1)),
        (library.BatchNorm1d, torch.randn(4, 3, 7), "nchw", (4, 3, 1, 7)),
        (library.BatchNorm1d, torch.randn(4, 7, 3).transpose(1, 2), "nhwc", (4, 3, 1, 7)),
        (library.BatchNorm2d, torch.randn(SHAPE), "nchw", SHAPE),
        (library.BatchNorm2d, torch.randn(SHAPE).to(memory_format=torch.channels_last), "nhwc", SHAPE),
        (library.BatchNorm2d, torch.randn(SHAPE)[:, :, 1:, 1:], "nchw", (4, 3, 4, 5)),
        (library.BatchNorm3d, torch.randn(2, 3, 4, 5, 6), "nchw", (2, 3, 20, 6)),
        (
            library.BatchNorm3d,
            torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
            "nhwc",
            (2, 3, 20, 6),
        ),
    ]
    for module, x, layout, shape in cases:
        with record_shapes() as shapes:
            module(3)(x)
        assert rows(shapes) == called("forward_training", layout=layout, shape=shape)
    with record_shapes() as shapes:
        library.BatchNorm2d(1)(torch.randn(4, 1, 5, 6).to(memory_format=torch.channels_last))
    assert rows(shapes) == called("forward_training", shape=(4, 1, 5, 6))


@LIBRARY
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dtypes(library, dtype):
    of = getattr(torch, dtype)
    with record_shapes() as shapes:
        library.BatchNorm2d(3, dtype=of)(torch.randn(SHAPE, dtype=of)).sum().backward()
    assert rows(shapes) == {**called("forward_training", dtype=dtype), **called("backward_training", dtype=dtype)}


@LIBRARY
def test_other_ways_to_call_a_module(library):
    class Inherited(library.BatchNorm2d):
        def forward(self, input):
            return super().forward(input) * 2

    with record_shapes() as shapes:
        library.BatchNorm2d(3)(input=torch.randn(SHAPE)).sum().backward()
        Inherited(3)(torch.randn(SHAPE)).sum().backward()
        library.BatchNorm2d(3, track_running_stats=False).eval()(torch.randn(SHAPE))
        library.BatchNorm2d(3, affine=False)(torch.randn(SHAPE, requires_grad=True)).sum().backward()
    assert rows(shapes) == {**called("forward_training", 4), **called("backward_training", 3)}


def test_lazy_modules_and_others():
    with record_shapes() as shapes:
        nn.LazyBatchNorm2d()(torch.randn(SHAPE))
        nn.InstanceNorm2d(3)(torch.randn(SHAPE))
        nn.GroupNorm(3, 3)(torch.randn(SHAPE))
        nn.BatchNorm2d(3)(torch.randn(0, 3, 5, 6))
    assert rows(shapes) == called("forward_training")


def test_functional_calls():
    x, mean, var = torch.randn(SHAPE, requires_grad=True), torch.zeros(3), torch.ones(3)
    with record_shapes() as shapes:
        functional.batch_norm(x, mean, var)
        functional.batch_norm(x, None, None, training=True).sum().backward()
        functional.batch_norm(x, mean, var, weight=torch.ones(3, requires_grad=True)).sum().backward()
    assert rows(shapes) == {
        **called("forward_inference", 2),
        **called("forward_training"),
        **called("backward_training"),
        **called("backward_inference"),
    }


@LIBRARY
def test_threads(library):
    module = library.BatchNorm2d(3)

    def run():
        for _ in range(50):
            module(torch.randn(SHAPE)).sum().backward()

    with record_shapes() as shapes:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert rows(shapes) == {**called("forward_training", 200), **called("backward_training", 200)}


@LIBRARY
def test_nested(library):
    module = library.BatchNorm2d(3)
    with record_shapes() as outer:
        module(torch.randn(SHAPE))
        with record_shapes() as inner:
            module(torch.randn(SHAPE))
        module(torch.randn(SHAPE))
    module(torch.randn(SHAPE))
    assert rows(inner) == called("forward_training", 1) and rows(outer) == called("forward_training", 3)


@LIBRARY
def test_what_comes_after_is_not_recorded(library, tmp_path):
    module = library.BatchNorm2d(3)
    with record_shapes(tmp_path / "shapes.json") as shapes:
        y = module(torch.randn(SHAPE))
    y.sum().backward()
    module(torch.randn(SHAPE))
    functional.batch_norm(torch.randn(SHAPE), None, None, training=True)
    assert rows(shapes) == read(tmp_path / "shapes.json") == called("forward_training")


@LIBRARY
def test_derivatives_of_derivatives_and_checkpoints(library):
    module = library.BatchNorm2d(3)
    x = torch.randn(SHAPE, requires_grad=True)
    with record_shapes() as shapes:
        (grad,) = torch.autograd.grad(module(x).pow(2).sum(), x, create_graph=True)
        grad.pow(2).sum().backward()
    assert shapes[RecordedCall("forward_training", "float32", "nchw", SHAPE)] == 1
    assert shapes[RecordedCall("backward_training", "float32", "nchw", SHAPE)] >= 1
    # What is recomputed is called again.
    model = nn.Sequential(module, nn.Sigmoid())
    with record_shapes() as shapes:
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    assert rows(shapes) == {**called("forward_training", 2), **called("backward_training")}


@LIBRARY
def test_transforms(library):
    module = library.BatchNorm2d(3).eval()
    with record_shapes() as shapes:
        torch.func.grad(lambda x: module(x).sum())(torch.randn(SHAPE))
        torch.func.jvp(module, (torch.randn(SHAPE),), (torch.randn(SHAPE),))
    assert shapes[RecordedCall("forward_inference", "float32", "nchw", SHAPE)] == 2


@LIBRARY
def test_an_exception_leaves_a_file_and_no_hooks(library, tmp_path):
    path = tmp_path / "shapes.json"
    module = library.BatchNorm2d(3)
    with pytest.raises(ZeroDivisionError), record_shapes(path) as shapes:
        module(torch.randn(SHAPE))
        with pytest.raises(ValueError):
            module(torch.randn(3, 5))
        with pytest.raises(ValueError):
            module(torch.randn(1, 3, 1, 1))
        with contextlib.suppress(KeyboardInterrupt):
            handle = module.register_forward_pre_hook(interrupt)
            module(torch.randn(SHAPE))
        handle.remove()
        module(torch.randn(SHAPE))
        raise ZeroDivisionError
    assert read(path) == rows(shapes) == called("forward_training", 2)
    assert not nn.modules.module._has_any_global_hook()
    assert torch._C._len_torch_function_stack() == 0


def interrupt(module, args):
    raise KeyboardInterrupt


@LIBRARY
def test_results_stay_the_same(library):
    x = torch.randn(SHAPE)
    module = library.BatchNorm2d(3)
    plain = module(x)
    with record_shapes():
        recorded = module(x)
    assert recorded.equal(plain) and type(recorded.grad_fn) is type(plain.grad_fn)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_models_are_not_seen_and_work():
    model = torch.compile(nn.Sequential(hbn.torch.BatchNorm2d(3)).eval(), backend="eager")
    x = torch.randn(SHAPE)
    plain = model(x)
    with pytest.warns(UserWarning, match="has seen no batch normalization"), record_shapes() as shapes:
        assert model(x).equal(plain)
        # Compiled while recording.
        assert torch.compile(nn.Sequential(hbn.torch.BatchNorm2d(3)).eval(), backend="eager")(x).equal(plain)
    assert not shapes
    assert model(x).equal(plain)


def test_the_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "shapes.json"
    path.write_text("old")
    module = nn.BatchNorm2d(3)
    with record_shapes(str(path)):
        module(torch.randn(SHAPE))
        assert path.read_text() == "old"
    assert read(path) == called("forward_training")
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    before = path.read_text()
    with pytest.raises(OSError, match="No space"), record_shapes(path):
        module(torch.randn(SHAPE))
    assert path.read_text() == before and not list(tmp_path.glob("*.part"))


def test_a_path_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="can't write .*: there is no folder"),
        record_shapes(tmp_path / "no" / "f"),
    ):
        raise AssertionError("nothing is run before")
    with pytest.raises(IsADirectoryError, match="it is a folder"), record_shapes(tmp_path):
        raise AssertionError("nothing is run before")


def test_nothing_called(tmp_path):
    path = tmp_path / "shapes.json"
    with pytest.warns(UserWarning, match="no batch normalization"), record_shapes(path):
        pass
    assert json.loads(path.read_text()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record_shapes(path):
            nn.BatchNorm2d(3)(torch.randn(SHAPE))
