"""PyTorch's own descriptions of its BatchNorm modules, run against hbn.torch's."""

import copy
import re

import pytest
import torch
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import hbn.torch

CLASSES = {
    torch.nn.BatchNorm1d: hbn.torch.BatchNorm1d,
    torch.nn.BatchNorm2d: hbn.torch.BatchNorm2d,
    torch.nn.BatchNorm3d: hbn.torch.BatchNorm3d,
}
DESCRIPTIONS = [info for info in module_db if info.module_cls in CLASSES]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Bounds are this many unit roundoffs of the result's dtype, of the sum of the magnitudes of all that the result is a
# sum of. hbn promises 8 for forward; what it computes is in float32 (or float64) and then rounded once, so that no
# other result needs more. The float64 reference, PyTorch's, has its own roundoff: where the result is float64, too, it
# is of the same size, hence 16.
ROUNDOFFS = 8
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# What rounding to the smallest denormal number costs.
DENORMAL = {torch.float32: 2.0**-150, torch.float64: 2.0**-1075, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}


def test_all_three_classes_are_described():
    assert {info.module_cls for info in DESCRIPTIONS} == set(CLASSES)


def descriptions():
    """(description, the number of an input of it), with names."""
    for info in DESCRIPTIONS:
        inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
        for number, described in enumerate(inputs):
            name = f"{info.module_cls.__name__}-{described.desc or 'plain'}"
            yield pytest.param(info, number, id=name)


def constructor_and_input(info, number, dtype, training):
    torch.manual_seed(number)
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    described = inputs[number]
    assert described.reference_fn is None, "a reference that this test would have to ask"
    assert not described.forward_input.kwargs
    (x,) = described.forward_input.args
    return described.constructor_input, x


def with_values(module):
    """Values other than the initial ones, so that none of them can be forgotten."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name == "num_batches_tracked":
                tensor.fill_(3)
            else:
                tensor.uniform_(0.5, 2)
    return module


def call_and_differentiate(module, x, grad_output):
    """The output, and every gradient and buffer by name."""
    y = module(x)
    y.backward(grad_output)
    results = {"y": y, "grad_input": x.grad}
    results |= {f"grad_{name}": parameter.grad for name, parameter in module.named_parameters()}
    results |= dict(module.named_buffers())
    return {name: value.detach() for name, value in results.items()}


def magnitudes(before, x, grad_output, training):
    """The sum of magnitudes behind each result, in float64, by the formulas of batch normalization."""
    over = [0, *range(2, x.dim())]
    values = x.numel() // x.shape[1]

    def of_channel(t):
        return t.reshape(1, -1, *[1] * (x.dim() - 2))

    # Without values nothing moves.
    training = training and x.numel() > 0
    ones = torch.ones(x.shape[1], dtype=torch.float64)
    weight = ones if before.weight is None else before.weight
    bias = 0 * ones if before.bias is None else before.bias
    batch_statistics = training or (before.running_mean is None and x.numel() > 0)
    mean = x.mean(over) if batch_statistics else before.running_mean
    var = x.var(over, correction=0) if batch_statistics else before.running_var
    invstd = (var + before.eps).rsqrt()
    # x - mean cancels, and that x and the mean are rounded counts as it would without cancellation.
    xhat = (x.abs() + of_channel(mean.abs())) * of_channel(invstd)
    dy = grad_output.abs()
    grad_input = dy
    if batch_statistics:
        grad_input = dy + of_channel(dy.mean(over)) + xhat * of_channel((dy * xhat).mean(over))
    sums = {
        "y": of_channel(weight.abs()) * xhat + of_channel(bias.abs()),
        "grad_input": of_channel(weight.abs() * invstd) * grad_input,
        "grad_weight": (dy * xhat).sum(over),
        "grad_bias": dy.sum(over),
        "num_batches_tracked": torch.zeros(()),
    }
    if before.running_mean is not None:
        share = before.momentum
        if share is None:
            share = 1 / (float(before.num_batches_tracked) + 1)
        if not training:
            share = 0
        squares = ((x.abs() + of_channel(mean.abs())) ** 2).sum(over) / max(values - 1, 1)
        absolute = x.abs().sum(over) / max(values, 1)
        sums["running_mean"] = (1 - share) * before.running_mean.abs() + share * absolute
        sums["running_var"] = (1 - share) * before.running_var + share * squares
    return sums


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("info, number", list(descriptions()))
def test_forward_gradients_and_buffers_are_right(info, number, dtype, training):
    constructor, x = constructor_and_input(info, number, dtype, training)
    reference = with_values(info.module_cls(*constructor.args, **constructor.kwargs, dtype=dtype)).train(training)
    module = CLASSES[info.module_cls](*constructor.args, **constructor.kwargs, dtype=dtype).train(training)
    module.load_state_dict(reference.state_dict())
    exact = copy.deepcopy(reference).double()
    before = copy.deepcopy(exact)
    grad_output = torch.randn(x.shape, dtype=dtype)

    ours = call_and_differentiate(module, x.detach().clone().requires_grad_(), grad_output)
    theirs = call_and_differentiate(reference, x.detach().clone().requires_grad_(), grad_output)
    exactly = call_and_differentiate(exact, x.detach().double().requires_grad_(), grad_output.double())
    sums = magnitudes(before, x.detach().double(), grad_output.double(), training)

    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert (value.dtype, value.shape, value.stride()) == (
            theirs[name].dtype,
            theirs[name].shape,
            theirs[name].stride(),
        ), name
        if value.dtype == torch.int64:
            assert value.equal(theirs[name]), name
            continue
        roundoffs = ROUNDOFFS * (2 if dtype == torch.float64 else 1)
        error = (value.double() - exactly[name]).abs()
        allowed = roundoffs * UNIT[value.dtype] * sums[name] + DENORMAL[value.dtype]
        assert (error <= allowed).all(), f"{name} is off by {(error / allowed).max():.3g} times what is allowed"


def error_inputs():
    for info in DESCRIPTIONS:
        for training in (True, False):
            described = info.module_error_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=False, training=training
            )
            for number, error in enumerate(described):
                mode = "train" if training else "eval"
                yield pytest.param(info, error, training, id=f"{info.module_cls.__name__}-{number}-{mode}")


@pytest.mark.parametrize("info, error, training", list(error_inputs()))
def test_described_errors_are_raised(info, error, training):
    constructor, forward = error.module_error_input.constructor_input, error.module_error_input.forward_input
    if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(error.error_type, match=error.error_regex):
            CLASSES[info.module_cls](*constructor.args, **constructor.kwargs)
        return
    reference = info.module_cls(*constructor.args, **constructor.kwargs).train(training)
    module = CLASSES[info.module_cls](*constructor.args, **constructor.kwargs).train(training)
    if training:
        with pytest.raises(error.error_type, match=error.error_regex):
            module(*forward.args, **forward.kwargs)
        return
    # The descriptions are of training; in evaluation what PyTorch's module does is what counts.
    try:
        expected = reference(*forward.args, **forward.kwargs)
    except Exception as caught:
        with pytest.raises(type(caught), match=re.escape(str(caught))):
            module(*forward.args, **forward.kwargs)
    else:
        torch.testing.assert_close(module(*forward.args, **forward.kwargs), expected)
