"""hbn.torch's modules in what people do with PyTorch's: the same calls on both, and the same outcome."""

import contextlib
import copy
import io
import itertools
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import hbn
import hbn.torch

CLASSES = {
    nn.BatchNorm1d: hbn.torch.BatchNorm1d,
    nn.BatchNorm2d: hbn.torch.BatchNorm2d,
    nn.BatchNorm3d: hbn.torch.BatchNorm3d,
}
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPE = (4, 3, 5, 6)
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def pair(*args, of=nn.BatchNorm2d, training=True, **kwargs):
    """hbn's module and PyTorch's, of the same values, none of them the initial ones."""
    theirs = of(*(args or (3,)), **kwargs).train(training)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name != "num_batches_tracked":
                tensor.copy_(torch.linspace(0.5, 2, len(tensor)))
    ours = CLASSES[of](*(args or (3,)), **kwargs).train(training)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batch(shape=SHAPE, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_close(actual, expected, unit=None, terms=1):
    # Inputs here are of size 1 with a mean near 0: a few roundoffs of the largest value on either side. A sum of so
    # many terms of size 1 may be near 0 itself, but each term is off by a roundoff. module_db's tests are sharper.
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert (actual.numel() == 0) == (expected.numel() == 0)
    if actual.dtype == torch.int64:
        assert actual.equal(expected)
    elif actual.numel() > 0:
        unit = unit or UNIT[actual.dtype]
        error = (actual.double() - expected.double()).abs().max()
        assert error <= max(16, terms) * unit * max(1, expected.double().abs().max())


def assert_same_state(actual, expected, unit=None):
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert_close(ours[name], theirs[name], unit)


def assert_same_gradients(actual, expected, unit=None, terms=1):
    for (name, ours), (_, theirs) in zip(actual.named_parameters(), expected.named_parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert_close(ours.grad, theirs.grad, unit, terms)


def assert_same_step(ours, theirs, x, unit=None):
    """Forward and backward on x, of both: y, gradients and what is in the modules afterwards."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    results = []
    for module, leaf in zip((ours, theirs), inputs, strict=True):
        y = module(leaf)
        # Not of x's own seed: a gradient in proportion to y is one that batch normalization takes to 0.
        (y * batch(y.shape, y.dtype, seed=101)).sum().backward()
        results.append(y)
    assert_close(*results, unit)
    assert_close(inputs[0].grad, inputs[1].grad, unit)
    assert_same_gradients(ours, theirs, unit, terms=x.numel() // x.shape[1])
    assert_same_state(ours, theirs, unit)


# ---- state


@pytest.mark.parametrize("of", CLASSES)
def test_is_a_subclass_with_the_same_constructor_and_description(of):
    assert issubclass(CLASSES[of], of)
    arguments = {"eps": 1e-3, "momentum": None, "affine": True, "track_running_stats": False, "bias": False}
    assert repr(CLASSES[of](7, **arguments)) == repr(of(7, **arguments))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"bias": False}])
def test_state_dict_goes_both_ways(options):
    ours, theirs = pair(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    ours(batch())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for name, tensor in theirs.state_dict().items():
        assert tensor.equal(ours.state_dict()[name])


def test_checkpoint_of_version_1_loads_without_num_batches_tracked():
    ours, theirs = pair()
    old = theirs.state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    ours.load_state_dict(old, strict=True)
    assert ours.num_batches_tracked == 0
    old._metadata[""]["version"] = 2
    old.pop("num_batches_tracked", None)
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        ours.load_state_dict(old, strict=True)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@MODES
def test_copies_are_independent_and_compute_the_same(copied, training):
    ours, _ = pair(training=training)
    ours(batch(seed=5))  # of a module that has been used
    before = copy.deepcopy(ours.state_dict())
    other = copied(ours)
    assert type(other) is hbn.torch.BatchNorm2d and other.training == training
    assert_same_step(other, copy.deepcopy(ours), batch())
    for name, tensor in ours.state_dict().items():
        assert tensor.equal(before[name]), name


def test_state_dict_file_is_loaded_by_plain_torch():
    ours, theirs = pair()
    ours(batch())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    assert_same_step(ours.eval(), theirs.eval(), batch(seed=2))


# ---- constructor options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.0},
        {"momentum": 1.0},
        {"eps": 0.5},
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"momentum": None, "track_running_stats": False},
        {"dtype": torch.float64},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
    ],
    ids=str,
)
def test_several_batches_then_evaluation(options):
    ours, theirs = pair(**options)
    dtype = options.get("dtype", torch.float32)
    for step in range(3):
        assert_same_step(ours, theirs, batch(dtype=dtype, seed=step))
    assert_same_step(ours.eval(), theirs.eval(), batch(dtype=dtype, seed=9))


@pytest.mark.parametrize("of, shape", [(nn.BatchNorm1d, (8, 3)), (nn.BatchNorm1d, (4, 3, 7))])
@MODES
def test_one_dimensional_input(of, shape, training):
    assert_same_step(*pair(of=of, training=training), batch(shape))


@MODES
def test_running_statistics_that_are_set_to_none_are_not_needed(training):
    ours, theirs = pair(training=training)
    for module in (ours, theirs):
        module.running_mean = module.running_var = None
    assert_same_step(ours, theirs, batch())


@MODES
def test_track_running_stats_turned_off_later(training):
    ours, theirs = pair(training=training)
    ours.track_running_stats = theirs.track_running_stats = False
    assert_same_step(ours, theirs, batch())


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("of_input, of_module", list(itertools.product(DTYPES, DTYPES)), ids=str)
@MODES
def test_dtypes_of_input_and_module_go_together_as_with_pytorch(of_input, of_module, training):
    ours, theirs = pair(dtype=of_module, training=training)
    x = batch(dtype=of_input)
    try:
        theirs(x)
    except (ValueError, RuntimeError):
        with pytest.raises((ValueError, RuntimeError)):
            ours(x)
        return
    theirs.load_state_dict(ours.state_dict())
    assert_same_step(ours, theirs, x, unit=UNIT[of_input])


@MODES
def test_autocast_gives_bfloat16_and_gradients_of_float32(training):
    ours, theirs = pair(8, training=training)
    convolution = nn.Conv2d(3, 8, 3)
    models = [nn.Sequential(copy.deepcopy(convolution), bn) for bn in (ours, theirs)]
    results = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            y = model(batch((4, 3, 9, 9)))
        assert y.dtype == torch.bfloat16
        (y.float() * batch(y.shape, seed=1)).sum().backward()
        results.append(y)
    assert_close(*results)
    assert models[0][1].weight.grad.dtype == torch.float32
    # y's gradient and the convolution's output, the same on both sides, are bfloat16; what follows is float32.
    assert_same_gradients(models[0][1], models[1][1])
    assert_same_gradients(models[0][0], models[1][0], unit=UNIT[torch.bfloat16])
    assert_same_state(ours, theirs)


# ---- layouts

LAYOUTS_2D = {
    "channels_last": lambda: batch().contiguous(memory_format=torch.channels_last),
    "transposed": lambda: batch((4, 3, 6, 5)).transpose(2, 3),
    "batch and channels swapped": lambda: batch((3, 4, 5, 6)).transpose(0, 1),
    "sliced": lambda: batch((8, 6, 10, 12))[::2, 1:4, ::2, 3:9],
    "sliced channels_last": lambda: batch((4, 6, 5, 6)).contiguous(memory_format=torch.channels_last)[:, 2:5],
    "expanded over the batch": lambda: batch((1, 3, 5, 6)).expand(4, 3, 5, 6),
    "expanded over pixels": lambda: batch((4, 3, 1, 1)).expand(4, 3, 5, 6),
    "one pixel channels_last": lambda: batch((4, 3, 1, 1)).contiguous(memory_format=torch.channels_last),
    "one channel": lambda: batch((4, 1, 5, 6)).contiguous(memory_format=torch.channels_last),
    "one image": lambda: batch((1, 3, 5, 6)).contiguous(memory_format=torch.channels_last),
    "at an odd offset": lambda: batch((4 * 3 * 5 * 6 + 1,))[1:].view(SHAPE),
}
LAYOUTS = {
    **{f"2d {name}": (nn.BatchNorm2d, make) for name, make in LAYOUTS_2D.items()},
    "1d transposed": (nn.BatchNorm1d, lambda: batch((3, 8)).t()),
    "1d channels last": (nn.BatchNorm1d, lambda: batch((4, 7, 3)).transpose(1, 2)),
    "1d expanded": (nn.BatchNorm1d, lambda: batch((4, 3, 1)).expand(4, 3, 5)),
    "3d": (nn.BatchNorm3d, lambda: batch((2, 3, 4, 5, 6))),
    "3d channels_last_3d": (
        nn.BatchNorm3d,
        lambda: batch((2, 3, 4, 5, 6)).contiguous(memory_format=torch.channels_last_3d),
    ),
    "3d transposed": (nn.BatchNorm3d, lambda: batch((2, 3, 6, 5, 4)).transpose(2, 4)),
    "3d sliced": (nn.BatchNorm3d, lambda: batch((2, 6, 4, 5, 12))[:, ::2, :, :, ::2]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@MODES
def test_layouts_give_pytorchs_values_and_strides(layout, training):
    of, make = LAYOUTS[layout]
    x = make()
    ours, theirs = pair(x.shape[1], of=of, training=training)
    results = []
    for module in (ours, theirs):
        leaf = x.detach().requires_grad_()
        y = module(leaf)
        wanted = (leaf, module.weight, module.bias)
        results.append((y.detach(), *torch.autograd.grad(y, wanted, batch(y.shape, seed=1))))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, terms=x.numel() // x.shape[1])
        assert actual.stride() == expected.stride()
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS_2D)
@MODES
def test_gradient_of_any_layout_flows_back(layout, training):
    # The gradient that arrives has the layout, as a transposition or slice behind the module makes it.
    ours, theirs = pair(LAYOUTS_2D[layout]().shape[1], training=training)
    grad_output = LAYOUTS_2D[layout]()
    gradients = []
    for module in (ours, theirs):
        x = batch(grad_output.shape, seed=3).requires_grad_()
        module(x).backward(grad_output)
        gradients.append(x.grad)
    assert_close(*gradients)
    assert_same_gradients(ours, theirs, terms=x.numel() // x.shape[1])


# ---- autograd


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)), ids=str)
@MODES
def test_gradients_are_none_exactly_where_pytorchs_are(wanted, training):
    ours, theirs = pair(training=training)
    results = []
    for module in (ours, theirs):
        x = batch().requires_grad_(wanted[0])
        module.weight.requires_grad_(wanted[1])
        module.bias.requires_grad_(wanted[2])
        y = module(x)
        assert y.requires_grad == any(wanted)
        if y.requires_grad:
            (y * batch(seed=1)).sum().backward()
        results.append((y, x.grad))
    assert_close(results[0][0], results[1][0])
    assert (results[0][1] is None) == (results[1][1] is None) == (not wanted[0])
    if wanted[0]:
        assert_close(results[0][1], results[1][1])
    assert_same_gradients(ours, theirs)


GRADCHECKS = {
    "contiguous": (nn.BatchNorm2d, lambda: batch((3, 2, 2, 3), torch.float64)),
    "channels_last": (
        nn.BatchNorm2d,
        lambda: batch((3, 2, 2, 3), torch.float64).contiguous(memory_format=torch.channels_last),
    ),
    "1d": (nn.BatchNorm1d, lambda: batch((5, 2), torch.float64)),
    "1d of three dimensions": (nn.BatchNorm1d, lambda: batch((3, 2, 4), torch.float64)),
    "3d": (nn.BatchNorm3d, lambda: batch((2, 2, 2, 2, 2), torch.float64)),
    "transposed": (nn.BatchNorm2d, lambda: batch((3, 2, 3, 2), torch.float64).transpose(2, 3)),
    "3d transposed": (nn.BatchNorm3d, lambda: batch((2, 2, 2, 2, 2), torch.float64).transpose(2, 4)),
}
AFFINE = pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])


def function_of_input_and_parameters(layout, training, affine, **options):
    of, make = GRADCHECKS[layout]
    module, _ = pair(2, of=of, training=training, affine=affine, dtype=torch.float64, **options)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    return function, (make().requires_grad_(), *(p.detach().clone().requires_grad_() for p in module.parameters()))


@pytest.mark.parametrize("layout", GRADCHECKS)
@MODES
@AFFINE
def test_gradcheck_backward_and_forward_mode(layout, training, affine):
    function, inputs = function_of_input_and_parameters(layout, training, affine)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)


@pytest.mark.parametrize("layout", GRADCHECKS)
@MODES
@AFFINE
def test_gradgradcheck(layout, training, affine):
    function, inputs = function_of_input_and_parameters(layout, training, affine)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_gradgradcheck_in_evaluation_without_running_statistics():
    function, inputs = function_of_input_and_parameters("contiguous", False, True, track_running_stats=False)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def critics():
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, 1),
    ).double()
    return hbn.torch.convert(copy.deepcopy(theirs)), theirs


def test_gradient_penalty_trains_as_with_pytorch():
    ours, theirs = critics()
    for critic in (ours, theirs):
        optimizer = torch.optim.SGD(critic.parameters(), lr=0.05)
        for step in range(3):
            x = batch((6, 2, 7, 7), torch.float64, seed=step).requires_grad_()
            (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
            penalty = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
            optimizer.zero_grad()
            (critic(x).mean() + 10 * penalty).backward()
            optimizer.step()
    # Roundoff of float64, grown over three steps of products of gradients.
    assert_same_state(ours, theirs, unit=1e-13)


@pytest.mark.parametrize("forward_first", [True, False])
def test_forward_mode_alone_and_beside_gradients(forward_first):
    ours, theirs = pair(dtype=torch.float64)
    tangents = []
    for module in (ours, theirs):
        x = batch(dtype=torch.float64).requires_grad_(forward_first)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, batch(dtype=torch.float64, seed=1))
            y, tangent = torch.autograd.forward_ad.unpack_dual(module(dual))
        tangents.append(tangent.detach())
        assert y.requires_grad
    assert_close(*tangents)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
@MODES
def test_without_gradients(without_gradients, training):
    ours, theirs = pair(training=training)
    with without_gradients():
        y, expected = ours(batch()), theirs(batch())
    assert not y.requires_grad and y.is_inference() == expected.is_inference()
    assert_close(y, expected)
    assert_same_state(ours, theirs)


@MODES
def test_input_and_gradient_are_never_modified(training):
    for ours in (pair(training=training)[0], pair(affine=False, training=training)[0]):
        x, grad_output = batch().requires_grad_(), batch(seed=1)
        y = ours(x)
        y_before = y.detach().clone()
        y.backward(grad_output)
        assert x.equal(batch()) and grad_output.equal(batch(seed=1)) and y.equal(y_before)
        assert x.grad.data_ptr() not in (x.data_ptr(), y.data_ptr(), grad_output.data_ptr())


@pytest.mark.parametrize("modified", ["input", "weight"])
@MODES
def test_modified_saved_tensor_is_an_error_in_backward(modified, training):
    for module in pair(training=training):
        x = batch().requires_grad_().clone()
        y = module(x)
        with torch.no_grad():
            (x if modified == "input" else module.weight).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_running_statistics_modified_after_evaluation_are_an_error_in_backward():
    for module in pair(training=False):
        y = module(batch().requires_grad_())
        module.running_var.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_two_forwards_before_one_backward():
    ours, theirs = pair()
    inputs = []
    for module in (ours, theirs):
        x = batch().requires_grad_()
        (module(x) * module(2 * x + 1) ** 2).sum().backward()
        inputs.append(x)
    assert_close(inputs[0].grad, inputs[1].grad)
    assert_same_gradients(ours, theirs)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(use_reentrant):
    ours, theirs = pair()
    inputs = []
    for module in (ours, theirs):
        x = batch().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)
        (y * batch(seed=1)).sum().backward()
        inputs.append(x)
    assert_close(inputs[0].grad, inputs[1].grad)
    assert_same_gradients(ours, theirs)
    assert_same_state(ours, theirs)


def test_backward_twice_needs_a_retained_graph_as_with_pytorch():
    for module in pair():
        y = module(batch().requires_grad_()).sum()
        y.backward(retain_graph=True)
        y.backward()
        with pytest.raises(RuntimeError, match="second time"):
            y.backward()


# ---- refusals


def refusal(call):
    try:
        call()
    except Exception as caught:
        return type(caught), str(caught)
    return None


@pytest.mark.parametrize(
    "of, shape",
    [(nn.BatchNorm2d, (1, 3, 1, 1)), (nn.BatchNorm1d, (1, 3)), (nn.BatchNorm3d, (1, 3, 1, 1, 1))],
)
def test_one_value_per_channel_in_training_is_refused_and_nothing_changes(of, shape):
    ours, theirs = pair(of=of)
    before = copy.deepcopy(ours.state_dict())
    expected = refusal(lambda: theirs(batch(shape)))
    assert expected is not None and expected[0] is ValueError
    assert refusal(lambda: ours(batch(shape))) == expected
    for name, tensor in ours.state_dict().items():
        assert tensor.equal(before[name]), name
    assert_same_step(ours.eval(), pair(of=of, training=False)[1], batch(shape))


@pytest.mark.parametrize(
    "of, shape",
    [
        (nn.BatchNorm2d, (4, 3)),
        (nn.BatchNorm2d, (4, 3, 5)),
        (nn.BatchNorm2d, (4, 3, 5, 6, 7)),
        (nn.BatchNorm2d, (3,)),
        (nn.BatchNorm2d, ()),
        (nn.BatchNorm1d, (3,)),
        (nn.BatchNorm1d, (4, 3, 5, 6)),
        (nn.BatchNorm3d, (4, 3, 5, 6)),
    ],
    ids=str,
)
@MODES
def test_other_ranks_are_refused_in_pytorchs_words(of, shape, training):
    ours, theirs = pair(of=of, training=training)
    expected = refusal(lambda: theirs(batch(shape)))
    assert expected is not None
    assert refusal(lambda: ours(batch(shape))) == expected
    assert ours.num_batches_tracked == 0


@MODES
def test_other_numbers_of_channels_are_refused(training):
    ours, theirs = pair(training=training)
    before = copy.deepcopy(ours.state_dict())
    expected = refusal(lambda: theirs(batch((4, 5, 6, 7))))
    found = refusal(lambda: ours(batch((4, 5, 6, 7))))
    assert found is not None and found[0] in (ValueError, RuntimeError)
    assert found[1].splitlines()[0] == expected[1].splitlines()[0]
    for name, tensor in ours.state_dict().items():
        assert tensor.equal(before[name]), name


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_other_dtypes_are_refused(dtype):
    ours, theirs = pair()
    x = torch.ones(SHAPE).to(dtype)
    for module in (ours, theirs):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            module(x)
    assert ours.num_batches_tracked == 0


@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (4, 3, 0, 6)])
@MODES
def test_empty_batch_changes_nothing_and_has_gradients_of_zero(shape, training):
    ours, theirs = pair(training=training)
    results = []
    for module in (ours, theirs):
        x = batch(shape).requires_grad_()
        y = module(x)
        y.sum().backward()
        results.append((y.shape, x.grad.shape))
    assert results[0] == results[1]
    assert not ours.weight.grad.any() and not ours.bias.grad.any()
    assert_same_gradients(ours, theirs)
    assert_same_state(ours, theirs)


# ---- modules among modules


def test_hooks_see_calls():
    ours, _ = pair()
    seen = []
    ours.register_forward_pre_hook(lambda module, args: seen.append("before"))
    ours.register_forward_hook(lambda module, args, output: seen.append("after") or output * 0)
    ours.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append("backward"))
    y = ours(batch().requires_grad_())
    assert not y.any()
    y.sum().backward()
    assert seen == ["before", "after", "backward"]


def test_meta_device_has_shapes_alone_and_becomes_real():
    module = hbn.torch.BatchNorm2d(3, device="meta")
    y = module(torch.empty(SHAPE, device="meta"))
    assert y.is_meta and y.shape == SHAPE
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert_same_step(module, nn.BatchNorm2d(3), batch())


@MODES
def test_functional_call_uses_what_is_given(training):
    ours, theirs = pair(training=training)
    own = copy.deepcopy(ours.state_dict())
    given = [{name: t.clone() if t.dtype == torch.int64 else t * 3 for name, t in own.items()} for _ in range(2)]
    results = [torch.func.functional_call(m, g, (batch(),)) for m, g in zip((ours, theirs), given, strict=True)]
    assert_close(*results)
    for name in own:
        assert_close(given[0][name], given[1][name])
        assert ours.state_dict()[name].equal(own[name]), name


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()


@MODES
def test_parametrized_weight(training):
    ours, theirs = pair(training=training)
    for module in (ours, theirs):
        parametrize.register_parametrization(module, "weight", Exponential())
    assert_same_step(ours, theirs, batch())
    assert ours.parametrizations.weight.original.grad is not None
    parametrize.remove_parametrizations(ours, "weight")
    parametrize.remove_parametrizations(theirs, "weight")
    assert_same_step(ours, theirs, batch())


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str)
@MODES
def test_replica_for_data_parallel_computes_as_the_module(options, training):
    ours, theirs = pair(training=training, **options)
    replica = ours._replicate_for_data_parallel()
    # As torch.nn.parallel.replicate fills it: parameters are no leaves, and plain attributes.
    for name, parameter in ours._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.view_as(parameter))
    for name, buffer in ours._buffers.items():
        if buffer is None:
            replica._buffers[name] = None
        else:
            setattr(replica, name, buffer)
    y = replica(batch())
    expected = theirs(batch())
    assert_close(y, expected)
    if y.requires_grad:
        y.square().sum().backward()
        expected.square().sum().backward()
    assert_same_gradients(ours, theirs)
    assert_same_state(ours, theirs)


def test_symbolic_trace_has_the_module_as_a_leaf():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), hbn.torch.BatchNorm2d(3), nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1", "2"]
    assert traced(batch()).equal(copy.deepcopy(model)(batch()))


# ---- torch.func


def as_function(module):
    """Of x, weight and bias. In training with buffers made within: transforms refuse to write others, PyTorch's too."""

    def function(x, weight, bias):
        state = {"weight": weight, "bias": bias}
        if module.training:
            of_x = x[0, 0, 0, 0].detach() * 0  # whatever transforms make of x, buffers must be, too
            state |= {name: buffer + of_x.to(buffer.dtype) for name, buffer in module.named_buffers()}
        return torch.func.functional_call(module, state, (x,))

    return function


@MODES
def test_func_grad(training):
    arguments = batch(dtype=torch.float64), torch.tensor([0.5, 1, 2]).double(), torch.tensor([1.0, 2, 3]).double()
    results = []
    for module in pair(dtype=torch.float64, training=training):
        function = as_function(module)
        loss = lambda *a, function=function: (function(*a) * batch(dtype=torch.float64, seed=1)).sum()  # noqa: E731
        results.append(torch.func.grad(loss, argnums=(0, 1, 2))(*arguments))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


@MODES
def test_func_jvp(training):
    arguments = batch(dtype=torch.float64), torch.tensor([0.5, 1, 2]).double(), torch.tensor([1.0, 2, 3]).double()
    tangents = tuple(torch.ones_like(a) * torch.arange(a.shape[-1]) for a in arguments)
    results = []
    for module in pair(dtype=torch.float64, training=training):
        results.append(torch.func.jvp(as_function(module), arguments, tangents))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


@MODES
@AFFINE
def test_func_grad_of_func_grad(training, affine):
    x = batch((3, 3, 2, 2), torch.float64)
    results = []
    # Without running statistics in training: transforms refuse to write them.
    for module in pair(dtype=torch.float64, training=training, affine=affine, track_running_stats=not training):

        def gradient_times_constants(x, module=module):
            gradient = torch.func.grad(lambda x: (module(x) ** 3).sum())(x)
            return (gradient * batch(x.shape, torch.float64, seed=1)).sum()

        results.append(torch.func.grad(gradient_times_constants)(x))
    # Third powers of values up to 8 are differentiated twice.
    assert_close(*results, terms=x.numel())


# ---- compilers


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@MODES
def test_compiles_as_one_graph(backend, training, fresh_compiler):
    ours, theirs = pair(training=training)
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    for step in range(2):
        inputs = [batch(seed=step).requires_grad_() for _ in range(2)]
        results = [module(x) for module, x in zip((compiled, theirs), inputs, strict=True)]
        for y in results:
            (y * batch(seed=7)).sum().backward()
        assert_close(*results)
        assert_close(inputs[0].grad, inputs[1].grad)
        assert_same_gradients(ours, theirs)
        assert_same_state(ours, theirs)


def test_compiled_network_trains(fresh_compiler):
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    theirs = theirs.to(memory_format=torch.channels_last)
    ours = hbn.torch.convert(copy.deepcopy(theirs))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    x = batch((4, 3, 6, 6)).contiguous(memory_format=torch.channels_last)
    # The gradient of a bias that batch normalization takes away is roundoff alone.
    assert_same_step(compiled._orig_mod, theirs, x, unit=4 * UNIT[torch.float32])
    for model in (compiled, theirs):
        model.zero_grad()
        (model(x) * batch((4, 2, 4, 4), seed=1)).sum().backward()
    assert_same_gradients(ours, theirs, unit=4 * UNIT[torch.float32], terms=x.numel() // x.shape[1])
    assert_same_state(ours, theirs)


def test_compiles_without_affine_and_running_statistics(fresh_compiler):
    ours, theirs = pair(affine=False, track_running_stats=False)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    inputs = [batch().requires_grad_() for _ in range(2)]
    for module, x in zip((compiled, theirs), inputs, strict=True):
        (module(x) * batch(seed=1)).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad)


def test_cumulative_average_compiles_as_pytorchs_does(fresh_compiler):
    ours, theirs = pair(momentum=None)
    compiled = torch.compile(ours, backend="aot_eager")
    for step in range(3):
        assert_close(compiled(batch(seed=step)), theirs(batch(seed=step)))
        assert_same_state(ours, theirs)


@MODES
def test_exported_program_computes_the_same_and_updates_buffers(training):
    ours, theirs = pair(training=training)
    untouched = copy.deepcopy(ours.state_dict())
    exported = torch.export.export(ours, (batch(),))
    assert "hbn.batch_norm_forward" in exported.graph_module.code
    for name, tensor in ours.state_dict().items():
        assert tensor.equal(untouched[name]), name
    program = exported.module()
    for step in range(2):
        assert_close(program(batch(seed=step)), theirs(batch(seed=step)))
    assert_same_state(program, theirs)


def test_exported_program_is_saved_and_takes_other_batch_sizes():
    ours, theirs = pair(training=False)
    exported = torch.export.export(ours, (batch(),), dynamic_shapes=({0: torch.export.Dim("N", min=2)},))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x = batch((9, 3, 5, 6))
    assert_close(loaded(x), theirs(x))


@MODES
def test_operators_are_registered_as_pytorch_asks(training):
    module, _ = pair(training=training)
    statistics = (module.running_mean, module.running_var)
    x, weight, bias = batch().requires_grad_(), module.weight, module.bias
    torch.library.opcheck(torch.ops.hbn.batch_norm_forward, (x, weight, bias, *statistics, training, 0.1, 1e-5))


# ---- threads and processes


@contextlib.contextmanager
def torch_threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_threads_are_as_many_as_pytorchs():
    ours, _ = pair()
    for number in (1, 2, 1):
        with torch_threads(number):
            ours(batch())
            assert hbn.get_num_threads() == number


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_bitwise_the_same_for_any_number_of_threads(memory_format, dtype):
    results = []
    for number in (1, 2, 3):
        ours, _ = pair(33)
        x = batch((7, 33, 30, 31), dtype).contiguous(memory_format=memory_format).requires_grad_()
        with torch_threads(number):
            y = ours(x)
            y.backward(batch(x.shape, dtype, seed=1))
        results.append([y, x.grad, ours.weight.grad, ours.bias.grad, ours.running_mean, ours.running_var])
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


def test_forked_workers_compute():
    code = """
    import torch, hbn, hbn.torch
    class Normalized(torch.utils.data.Dataset):
        def __init__(self):
            self.module, self.x = hbn.torch.BatchNorm2d(8), torch.randn(4, 8, 64, 64)
        def __len__(self):
            return 8
        def __getitem__(self, index):
            # One thread, as data loaders give workers, then hbn's pool anew. PyTorch's own threads don't live through a
            # fork: what they would compute hangs, so index is added by NumPy.
            y = self.module(torch.from_numpy(self.x.numpy() + index)).detach()
            hbn.set_num_threads(2)
            assert self.module(torch.from_numpy(self.x.numpy() + index)).equal(y)
            return y
    torch.set_num_threads(2)
    dataset = Normalized()
    expected = torch.stack([dataset[i] for i in range(8)])  # this process's threads are there when it forks
    loader = torch.utils.data.DataLoader(dataset, num_workers=2, batch_size=2, multiprocessing_context="fork")
    for epoch in range(2):
        assert torch.cat(list(loader)).equal(expected)
        assert dataset[0].equal(expected[0])
    print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "done\n", done.stderr
