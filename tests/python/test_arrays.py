"""The functions of `hbn` on NumPy's, PyTorch's and JAX's arrays, against plain NumPy in long double."""

import ast
import gc
import importlib
import inspect
import itertools
import pathlib
import re
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc

import activations
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import hbn
from hbn import _core

jax.config.update("jax_enable_x64", True)

REAL = np.longdouble
NUMPY_DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
ROUNDOFF = {
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
DENORMAL = {
    "float32": 2.0**-149,
    "float64": 2.0**-1074,
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
}
EPS = 1e-5


# ---- arrays of each library


def statistic(dtype):
    return "float64" if dtype == "float64" else "float32"


def make(library, values, dtype):
    """An array of the library with these values, rounded to dtype, and the strides of `values`."""
    values = np.asarray(values)
    if library == "torch":
        made = torch.empty_strided(
            values.shape,
            [s // values.itemsize for s in values.strides],
            dtype=torch.float64,
        )
        return made.copy_(torch.from_numpy(np.ascontiguousarray(values, np.float64))).to(getattr(torch, dtype))
    if library == "jax":
        return jnp.asarray(values.astype(NUMPY_DTYPES[dtype]))
    return values.astype(NUMPY_DTYPES[dtype])


def real(array):
    """Its values in long double."""
    if isinstance(array, torch.Tensor):
        array = array.to(torch.float64)
    return np.asarray(array).astype(np.float64).astype(REAL)


def raw(array):
    """Its values' bytes."""
    if isinstance(array, torch.Tensor):
        array = array.contiguous().view(torch.uint8) if array.numel() else array
    return np.asarray(array).tobytes()


def dtype_of(array):
    return str(array.dtype).removeprefix("torch.")


def strides_of(array):
    """In elements, where they say where something is."""
    strides = array.stride() if isinstance(array, torch.Tensor) else [s // array.itemsize for s in array.strides]
    return [stride for stride, size in zip(strides, array.shape, strict=True) if size > 1]


def class_of(library):
    return {"numpy": np.ndarray, "torch": torch.Tensor, "jax": jax.Array}[library]


LAYOUTS = {
    "dense": lambda x: x,
    "channels_last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "transposed": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
}
SHAPES = {
    2: (9, 5),
    3: (4, 5, 7),
    4: (3, 5, 4, 6),
    5: (2, 5, 3, 4, 3),
    6: (2, 3, 2, 3, 2, 2),
}


def sliced(x):
    """Every second sample and all channels but the first of a larger array of x's library, filled with x."""
    if isinstance(x, torch.Tensor):
        larger = torch.full((2 * x.shape[0], x.shape[1] + 1, *x.shape[2:]), torch.nan, dtype=x.dtype)
    else:
        larger = np.full((2 * x.shape[0], x.shape[1] + 1, *x.shape[2:]), np.nan, x.dtype)
    view = larger[::2, 1:]
    view[:] = x
    return view


# ---- the oracle, and the bounds of tests/oracle.h


def per_channel(vector, ndim):
    return np.reshape(vector, (1, -1, *(1,) * (ndim - 2)))


class Statistics:
    """Of each channel of x, shaped to broadcast with it."""

    def __init__(self, x, eps=EPS, mean=None, var=None):
        axes = tuple(d for d in range(x.ndim) if d != 1)
        self.axes, self.ndim = axes, x.ndim
        self.count = x.size // x.shape[1]
        self.of_batch = mean is None
        self.mean = x.mean(axes, keepdims=True) if mean is None else per_channel(mean, x.ndim)
        self.m2 = ((x - self.mean) ** 2).sum(axes, keepdims=True)
        self.invstd = 1 / np.sqrt((self.m2 / self.count if var is None else per_channel(var, x.ndim)) + REAL(eps))

    def sum(self, values):
        return values.sum(self.axes, keepdims=True)


def sums_in_float32_groups(dtype):
    return dtype in ("float16", "bfloat16")


def plain_sum_error(dtype, count):
    return 9 * 2.0**-24 if sums_in_float32_groups(dtype) else count * 2.0**-53


def m2_error(dtype, count):
    return 27 * (1 + min(count, 64)) * 2.0**-24 if sums_in_float32_groups(dtype) else count * 2.0**-53


def mean_error(dtype, count):
    return 8 * (1 + min(count, 64)) ** 0.5 * 2.0**-24 if sums_in_float32_groups(dtype) else count * 2.0**-53


def rounded_to(dtype, expected, bound):
    """The bound, and what rounding a result to a 16-bit tensor adds."""
    if dtype in ("float32", "float64"):
        return bound
    return bound + ROUNDOFF[dtype] * abs(expected) * (1 + 2.0**-24) + DENORMAL[dtype]


def assert_close(actual, expected, bound):
    actual = real(actual)
    assert actual.shape == expected.shape
    off = abs(actual - expected) > bound
    with np.errstate(all="ignore"):
        worst = np.max(abs(actual - expected) / bound, initial=0)
    assert not (off | np.isnan(actual)).any(), f"off by {float(worst):.3g} times the bound"


def normalized(x, s, weight, bias):
    """y, and its bound before it is rounded to x's dtype, in functions of x's dtype."""
    xhat = (x - s.mean) * s.invstd
    y = xhat * weight + bias

    def bound(dtype):
        size = np.maximum(1, abs(xhat * weight) + abs(bias))
        sums = s.count * 2.0**-53 * (1 + abs(s.mean) * s.invstd) if dtype == "float64" else 0
        groups = 0
        if s.of_batch and sums_in_float32_groups(dtype):
            groups = np.where(
                s.m2 > 0,
                m2_error(dtype, s.count) * abs(xhat) / 2 + mean_error(dtype, s.count),
                0,
            ) * abs(weight)
        return (8 * ROUNDOFF[statistic(dtype)] + sums) * size + groups

    return y, bound


def gradients(dy, x, s, weight, training):
    """grad_input, grad_weight and grad_bias, each with its bound (a function of x's dtype)."""
    xhat = (x - s.mean) * s.invstd
    sum_dy, sum_dy_xhat = s.sum(dy), s.sum(dy * xhat)
    sum_abs_dy, sum_abs_dy_xhat = s.sum(abs(dy)), s.sum(abs(dy * xhat))
    gain = weight * s.invstd
    mean_dy, slope = (sum_dy / s.count, xhat * sum_dy_xhat / s.count) if training else (REAL(0), REAL(0))
    grad_input = gain * (dy - mean_dy - slope)

    def input_bound(dtype):
        sums = (sum_abs_dy + abs(xhat) * sum_abs_dy_xhat) / s.count if training else 0
        magnitudes = abs(dy) + abs(mean_dy) + abs(slope)
        bound = abs(gain) * (8 * ROUNDOFF[statistic(dtype)] * magnitudes + plain_sum_error(dtype, s.count) * 2 * sums)
        return rounded_to(dtype, grad_input, bound + DENORMAL[statistic(dtype)])

    def weight_bound(dtype):
        return 4 * ROUNDOFF[statistic(dtype)] * abs(sum_dy_xhat) + 2 * plain_sum_error(dtype, s.count) * sum_abs_dy_xhat

    def bias_bound(dtype):
        return 2 * ROUNDOFF[statistic(dtype)] * abs(sum_dy) + plain_sum_error(dtype, s.count) * sum_abs_dy

    return (grad_input, input_bound), (sum_dy_xhat, weight_bound), (sum_dy, bias_bound)


class Problem:
    """x, dy and what there is one of for each channel, as arrays of a library and as their values."""

    def __init__(
        self,
        library="numpy",
        dtype="float32",
        layout="dense",
        shape=SHAPES[4],
        seed=0,
        parameters=None,
    ):
        rng = np.random.default_rng(seed)
        self.library, self.dtype, self.ndim = library, dtype, len(shape)
        self.parameter_dtype = parameters or statistic(dtype)

        def tensor(mean):
            values = rng.normal(mean, 2, shape)
            if layout == "sliced":
                return sliced(make(library, values, dtype))
            return make(library, LAYOUTS[layout](values), dtype)

        def vector(values):
            return make(library, values, self.parameter_dtype)

        c = shape[1]
        self.x, self.dy, self.residual = tensor(1), tensor(0), tensor(0)
        self.weight, self.bias = (
            vector(rng.normal(1, 0.5, c)),
            vector(rng.normal(0, 1, c)),
        )
        self.running_mean, self.running_var = (
            vector(rng.normal(0, 1, c)),
            vector(rng.uniform(0.5, 2, c)),
        )

    def arrays(self):
        return [a for a in vars(self).values() if isinstance(a, np.ndarray | torch.Tensor | jax.Array)]

    def values(self, *names):
        values = [real(getattr(self, name)) for name in names]
        return [per_channel(v, self.ndim) if v.ndim == 1 else v for v in values]

    def statistics(self, training=True):
        if training:
            return Statistics(real(self.x))
        return Statistics(real(self.x), mean=real(self.running_mean), var=real(self.running_var))

    def parameters(self):
        return self.weight, self.bias

    def running(self):
        return self.running_mean, self.running_var


def ids(case):
    return "-".join(str(part) for part in case)


LIBRARIES_AND_LAYOUTS = [
    (library, layout)
    for library, layout in itertools.product(("numpy", "torch", "jax"), (*LAYOUTS, "sliced"))
    if library != "jax" or layout == "dense"
]
CASES = [
    (library, dtype, layout, rank)
    for (library, layout), dtype, rank in itertools.product(LIBRARIES_AND_LAYOUTS, NUMPY_DTYPES, (2, 3, 4, 5))
]


def of_case(case):
    library, dtype, layout, rank = case
    return Problem(library, dtype, layout, SHAPES[rank])


def assert_like(made, x, library):
    """Of x's library, shape, dtype and, where x is dense, strides."""
    assert isinstance(made, class_of(library))
    assert made.shape == x.shape and dtype_of(made) == dtype_of(x)


def assert_same_layout(made, x):
    if not isinstance(x, jax.Array):
        assert strides_of(made) == strides_of(x)


# ---- forward and backward


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_forward_in_training(case):
    p = of_case(case)
    library, dtype, layout, _ = case
    s = p.statistics()
    before = [raw(a) for a in (p.x, p.weight, p.bias)]
    old = p.values("running_mean", "running_var")
    running = (None, None) if library == "jax" else p.running()
    y, mean, invstd = hbn.batch_norm_forward(p.x, *p.parameters(), *running, training=True, momentum=0.3)
    assert [raw(a) for a in (p.x, p.weight, p.bias)] == before
    assert_like(y, p.x, library)
    if layout != "sliced":
        assert_same_layout(y, p.x)
    expected, bound = normalized(real(p.x), s, *p.values("weight", "bias"))
    assert_close(y, expected, rounded_to(dtype, expected, bound(dtype)))

    u, n = ROUNDOFF["float64"], s.count
    deviation = np.sqrt(s.m2 / n)
    for saved, of_oracle, error in (
        (mean, s.mean, 2 * u * abs(s.mean) + mean_error(dtype, n) * deviation),
        (invstd, s.invstd, (4 * u + m2_error(dtype, n)) * s.invstd),
    ):
        assert isinstance(saved, class_of(library)) and dtype_of(saved) == "float64"
        assert_close(saved, of_oracle.ravel(), error.ravel())
    u = ROUNDOFF[statistic(dtype)]
    if library != "jax":
        variance = s.m2 / (n - 1)
        for now, was, batch, error in (
            (p.running_mean, old[0], s.mean, mean_error(dtype, n) * deviation),
            (p.running_var, old[1], variance, m2_error(dtype, n) * variance),
        ):
            size = abs(0.7 * was) + abs(0.3 * batch)
            assert_close(
                now,
                (REAL(0.7) * was + REAL(0.3) * batch).ravel(),
                (4 * u * size + error).ravel(),
            )


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_forward_by_running_statistics(case):
    p = of_case(case)
    library, dtype, _, _ = case
    before = [raw(a) for a in p.arrays()]
    y, mean, invstd = hbn.batch_norm_forward(p.x, *p.parameters(), *p.running(), training=False)
    assert mean is None and invstd is None
    assert [raw(a) for a in p.arrays()] == before
    assert_like(y, p.x, library)
    expected, bound = normalized(real(p.x), p.statistics(False), *p.values("weight", "bias"))
    assert_close(y, expected, rounded_to(dtype, expected, bound(dtype)))
    same = hbn.batch_norm(p.x, *p.running(), *p.parameters())
    assert raw(same) == raw(y)


def assert_gradients(p, given, training, s=None):
    dy, x, weight = p.values("dy", "x", "weight")
    for actual, (expected, bound) in zip(
        given,
        gradients(dy, x, s or p.statistics(training), weight, training),
        strict=True,
    ):
        shape = np.shape(actual)
        size = bound(p.dtype)
        if p.parameter_dtype == p.dtype and len(shape) == 1:
            size = rounded_to(p.dtype, expected, size)
        assert_close(
            actual,
            expected.reshape(shape),
            np.broadcast_to(size, expected.shape).reshape(shape),
        )


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_backward(case, training):
    p = of_case(case)
    library, _, layout, _ = case
    running = (None, None) if training else p.running()
    _, mean, invstd = hbn.batch_norm_forward(p.x, *p.parameters(), *running, training=training)
    before = [raw(a) for a in p.arrays()]
    given = hbn.batch_norm_backward(p.dy, p.x, p.weight, mean, invstd, *running, training=training)
    assert [raw(a) for a in p.arrays()] == before
    assert_like(given[0], p.x, library)
    if layout != "sliced":
        assert_same_layout(given[0], p.x)
    for gradient in given[1:]:
        assert_like(gradient, p.weight, library)
    # The statistics that backward was given, which are rounded.
    s = Statistics(real(p.x), mean=real(mean)) if training else p.statistics(False)
    if training:
        s.invstd = per_channel(real(invstd), p.ndim)
    assert_gradients(p, given, training, s)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_parameters_of_the_tensors_own_dtype(library, dtype):
    p = Problem(library, dtype, parameters=dtype)
    y, mean, invstd = hbn.batch_norm_forward(p.x, *p.parameters(), None, None, training=True)
    assert dtype_of(mean) == dtype_of(invstd) == "float64"
    expected, bound = normalized(real(p.x), p.statistics(), *p.values("weight", "bias"))
    assert_close(y, expected, rounded_to(dtype, expected, bound(dtype)))
    given = hbn.batch_norm_backward(p.dy, p.x, p.weight, mean, invstd, None, None, training=True)
    assert [dtype_of(g) for g in given] == [dtype] * 3
    s = Statistics(real(p.x), mean=real(mean))
    s.invstd = per_channel(real(invstd), p.ndim)
    assert_gradients(p, given, True, s)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_above_five(layout):
    p = Problem(layout=layout, shape=SHAPES[6])
    y, _, _ = hbn.batch_norm_forward(p.x, *p.parameters(), None, None, training=True)
    assert_same_layout(y, p.x)
    expected, bound = normalized(real(p.x), p.statistics(), *p.values("weight", "bias"))
    assert_close(y, expected, bound("float32"))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_five_dimensions_of_which_the_third_is_sliced(library):
    p = Problem(library, shape=(2, 3, 6, 4, 5))
    x = p.x[:, :, ::2]
    y, _, _ = hbn.batch_norm_forward(x, *p.parameters(), None, None, training=True)
    expected, bound = normalized(real(x), Statistics(real(x)), *p.values("weight", "bias"))
    assert_close(y, expected, bound("float32"))


def test_batch_norm_has_pytorchs_arguments():
    p = Problem("torch")
    theirs = [t.clone() for t in p.running()]
    expected = torch.nn.functional.batch_norm(p.x, *theirs, *p.parameters(), True, 0.3, 1e-3)
    actual = hbn.batch_norm(p.x, *p.running(), *p.parameters(), True, 0.3, 1e-3)
    torch.testing.assert_close(actual, expected)
    for ours, their in zip(p.running(), theirs, strict=True):
        torch.testing.assert_close(ours, their)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_parameters_may_be_absent(library):
    p = Problem(library)
    y, mean, invstd = hbn.batch_norm_forward(p.x, None, None, None, None, training=False)
    expected, bound = normalized(real(p.x), p.statistics(), REAL(1), REAL(0))
    assert_close(y, expected, bound("float32"))
    grad_input, grad_weight, grad_bias = hbn.batch_norm_backward(
        p.dy, p.x, None, mean, invstd, None, None, training=True
    )
    assert dtype_of(grad_weight) == dtype_of(grad_bias) == "float32"
    one = make(library, np.ones(p.x.shape[1]), "float32")
    same = hbn.batch_norm_backward(p.dy, p.x, one, mean, invstd, None, None, training=True)
    assert [raw(g) for g in (grad_input, grad_weight, grad_bias)] == [raw(g) for g in same]


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("mask", list(itertools.product((False, True), repeat=3)), ids=str)
def test_backward_computes_what_is_wanted(library, mask):
    p = Problem(library)
    _, mean, invstd = hbn.batch_norm_forward(p.x, None, None, None, None, training=True)
    arguments = (p.dy, p.x, p.weight, mean, invstd, None, None)
    whole = hbn.batch_norm_backward(*arguments, training=True)
    given = hbn.batch_norm_backward(*arguments, training=True, grad_mask=mask)
    for wanted, a, b in zip(mask, given, whole, strict=True):
        assert raw(a) == raw(b) if wanted else a is None


HARD = {
    "mean 1e6": lambda rng, shape: rng.normal(1e6, 1, shape),
    "mean -1e6": lambda rng, shape: rng.normal(-1e6, 1, shape),
    "outlier 1e20": lambda rng, shape: np.where(
        np.arange(np.prod(shape)).reshape(shape) == 7, 1e20, rng.normal(size=shape)
    ),
    "constant": lambda rng, shape: np.full(shape, 3.25),
    "1e18": lambda rng, shape: rng.normal(0, 1e18, shape),
}


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize(
    ("library", "layout"),
    [c for c in LIBRARIES_AND_LAYOUTS if c[1] != "sliced"],
    ids=str,
)
def test_hard_inputs(library, layout, hard):
    shape = (16, 4, 14, 14)
    p = Problem(library, shape=shape)
    x = make(library, LAYOUTS[layout](HARD[hard](np.random.default_rng(3), shape)), "float32")
    y, mean, invstd = hbn.batch_norm_forward(x, *p.parameters(), None, None, training=True)
    expected, bound = normalized(real(x), Statistics(real(x)), *p.values("weight", "bias"))
    assert_close(y, expected, bound("float32"))
    by_moments = hbn.batch_norm_normalize(x, hbn.batch_norm_stats(x), *p.parameters())
    assert_close(by_moments, expected, bound("float32"))


# ---- activations


ACTIVATIONS = activations.read()


def test_every_activation_is_tested():
    assert {a.name for a in ACTIVATIONS.values()} == set(_core.activations)


def test_every_activation_is_documented():
    for name in _core.activations:
        assert f'"{name}"' in inspect.getdoc(hbn.batch_norm_activation_forward)


def assert_activation(p, activation, added, training):
    """Forward and backward of one activation, against NumPy."""
    name = activation.name
    dtype, u = p.dtype, ROUNDOFF[statistic(p.dtype)]
    running = (None, None) if training else p.running()
    options = {"training": training, **activation.options()}
    residual = p.residual if added else None
    y, mask, mean, invstd = hbn.batch_norm_activation_forward(p.x, residual, *p.parameters(), *running, **options)
    assert_like(y, p.x, p.library)

    s = p.statistics(training)
    z, bound = normalized(real(p.x), s, *p.values("weight", "bias"))
    error = bound(dtype)
    if added:
        error = error + 2 * u * (abs(z) + abs(real(p.residual)))
        z = z + real(p.residual)
    expected = activation.value(z)
    assert_close(y, expected, rounded_to(dtype, expected, activation.slope * error + 8 * u * abs(expected)))

    if training:
        assert dtype_of(mean) == dtype_of(invstd) == "float64"
        s = Statistics(real(p.x), mean=real(mean))
        s.invstd = per_channel(real(invstd), p.ndim)
        z = normalized(real(p.x), s, *p.values("weight", "bias"))[0] + (real(p.residual) if added else 0)
    else:
        assert mean is None and invstd is None
    given = hbn.batch_norm_activation_backward(
        p.dy, p.x, residual, mask, *p.parameters(), mean, invstd, *running, **options
    )
    for jump in activation.jumps:
        assert (abs(z - jump) > 2e-5).all(), "an element is so near that rounding decides on which side it is"
    passed = real(p.dy) * activation.derivative(z)
    if mask is not None:
        assert dtype_of(mask) == "uint8" and mask.shape == p.x.shape
        np.testing.assert_array_equal(real(mask).astype(bool), real(y) > 0)
    assert (mask is not None) == (added and name == "relu")
    assert (given[1] is not None) == added
    # Of the derivative, and where it is rounded before it is summed.
    off = abs(real(p.dy)) * (
        0 if name in ("identity", "relu") else ROUNDOFF[dtype] * activation.slope + 32 * u * (1 + abs(z))
    )
    if added:
        assert_close(given[1], passed, rounded_to(dtype, passed, off))
    xhat = (real(p.x) - s.mean) * s.invstd
    sums = (s.sum(off) + abs(xhat) * s.sum(off * abs(xhat))) / s.count if training else 0
    offs = (abs(p.values("weight")[0] * s.invstd) * (off + sums), s.sum(off * abs(xhat)), s.sum(off))
    found = gradients(passed, real(p.x), s, *p.values("weight"), training)
    for actual, (wanted, size), more in zip((given[0], *given[2:]), found, offs, strict=True):
        shape = np.shape(actual)
        assert_close(actual, wanted.reshape(shape), (size(dtype) + more).reshape(shape))


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
@pytest.mark.parametrize("added", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize("case", ACTIVATIONS)
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize(("library", "layout"), LIBRARIES_AND_LAYOUTS, ids=str)
def test_activation(library, layout, dtype, case, added, training):
    assert_activation(Problem(library, dtype, layout), ACTIVATIONS[case], added, training)


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activation_of_other_ranks(case, rank):
    assert_activation(Problem(shape=SHAPES[rank]), ACTIVATIONS[case], True, True)


@pytest.mark.parametrize("case", ACTIVATIONS)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_nan_passes_activations(library, case):
    values = np.random.default_rng(0).normal(size=(4, 2, 3, 3))
    values[0, 0, 0, 0] = np.nan
    x, zero = (
        make(library, values, "float32"),
        make(library, np.zeros_like(values), "float32"),
    )
    mean, var = (
        make(library, np.zeros(2), "float32"),
        make(library, np.ones(2), "float32"),
    )
    options = ACTIVATIONS[case].options()
    y, _, _, _ = hbn.batch_norm_activation_forward(x, None, None, None, mean, var, training=False, **options)
    z, mask, _, _ = hbn.batch_norm_activation_forward(x, zero, None, None, mean, var, training=False, **options)
    is_nan = np.isnan(values)
    for given in (y, z):
        np.testing.assert_array_equal(np.isnan(real(given)), is_nan)
    if mask is not None:
        np.testing.assert_array_equal(real(mask) == 1, ~(values <= 0))
    y, _, _, _ = hbn.batch_norm_activation_forward(x, None, None, None, None, None, training=True, **options)
    assert np.isnan(real(y)[:, 0]).all() and not np.isnan(real(y)[:, 1]).any()


def test_activations_are_refused():
    p = Problem()
    out = np.full_like(p.x, -7)
    mask = np.full(p.x.shape, 7, np.uint8)
    saved = hbn.batch_norm_forward(p.x, None, None, None, None, training=True)[1:]

    def forward(activation, **options):
        return lambda: hbn.batch_norm_activation_forward(
            p.x, None, *p.parameters(), *p.running(), activation=activation, training=True, out=out, **options
        )

    def backward(activation, *added):
        arguments = (p.dy, p.x, *added, *p.parameters(), *saved, None, None)
        return lambda: hbn.batch_norm_activation_backward(*arguments, activation=activation, training=True, out=out)

    for text, call in (
        ("unknown activation 'gelu'", forward("gelu")),
        ("leaky_relu's slope must be finite", forward("leaky_relu", negative_slope=np.inf)),
        ("clip's low must not be above its high", forward("clip", min_val=2.0, max_val=1.0)),
        ("clip's low must not be above its high", forward("clip", min_val=np.nan)),
        ("mask is only for a ReLU after an addition", backward("silu", p.residual, mask)),
    ):
        refused(ValueError, text, call, out, mask, *saved, *p.arrays())
    refused(TypeError, "activation must be a str", forward(None), out, *p.arrays())
    refused(TypeError, "negative_slope must be a number, got str", forward("leaky_relu", negative_slope="0.1"), out)


# ---- derivatives, against finite differences


STEP = REAL(1e-6)


def forward_of(x, weight, bias, running):
    s = Statistics(x) if running is None else Statistics(x, mean=running[0], var=running[1])
    return (x - s.mean) * s.invstd * per_channel(weight, x.ndim) + per_channel(bias, x.ndim)


def backward_of(dy, x, weight, running):
    s = Statistics(x) if running is None else Statistics(x, mean=running[0], var=running[1])
    return [
        g.ravel() if g.shape[0] == 1 else g
        for g, _ in gradients(dy, x, s, per_channel(weight, x.ndim), running is None)
    ]


def saved_and_running(p, training):
    running = (None, None) if training else p.running()
    _, mean, invstd = hbn.batch_norm_forward(p.x, *p.parameters(), *running, training=training)
    return (mean, invstd, *running), None if training else [real(r) for r in running]


def assert_near(actual, expected):
    actual = real(actual)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.astype(float), expected.astype(float), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
@pytest.mark.parametrize(("library", "layout"), LIBRARIES_AND_LAYOUTS, ids=str)
def test_jvp(library, layout, training):
    p = Problem(library, "float64", layout)
    saved, running = saved_and_running(p, training)
    weight_tangent, bias_tangent = p.bias, p.weight
    tangents = [real(t) for t in (p.dy, weight_tangent, bias_tangent)]
    given = hbn.batch_norm_jvp(p.dy, p.x, p.weight, weight_tangent, bias_tangent, *saved, training=training)
    assert_like(given, p.x, library)
    at = [real(a) for a in (p.x, p.weight, p.bias)]
    ahead, behind = (
        forward_of(*(a + h * t for a, t in zip(at, tangents, strict=True)), running) for h in (STEP, -STEP)
    )
    assert_near(given, (ahead - behind) / (2 * STEP))
    # Absent ones are 0.
    zero = make(library, np.zeros(p.x.shape[1]), "float64")
    alone = hbn.batch_norm_jvp(p.dy, p.x, p.weight, None, None, *saved, training=training)
    same = hbn.batch_norm_jvp(p.dy, p.x, p.weight, zero, zero, *saved, training=training)
    assert raw(alone) == raw(same)


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_double_backward(library, training):
    p = Problem(library, "float64", shape=(2, 2, 3, 2))
    saved, running = saved_and_running(p, training)
    grad_grads = (p.residual, p.bias, p.weight)
    given = hbn.batch_norm_double_backward(*grad_grads, p.dy, p.x, p.weight, *saved, training=training)
    into = [real(g) for g in grad_grads]
    at = [real(a) for a in (p.dy, p.x, p.weight)]

    def reached(arguments):
        return sum((g * r).sum() for g, r in zip(into, backward_of(*arguments, running), strict=True))

    for actual, argument in zip(given, at, strict=True):
        expected = np.empty_like(argument)
        for index in np.ndindex(argument.shape):
            middle = argument[index]
            argument[index] = middle + STEP
            ahead = reached(at)
            argument[index] = middle - STEP
            expected[index] = (ahead - reached(at)) / (2 * STEP)
            argument[index] = middle
        assert_near(actual, expected)


# ---- statistics of several machines


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_two_machines_agree_with_one(library, dtype):
    p = Problem(library, dtype, shape=(5, 3, 4, 6))
    parts = [slice(0, 2), slice(2, 5)]
    s = p.statistics()
    each = [hbn.batch_norm_stats(p.x[part]) for part in parts]
    before = [(m.count, m.mean.copy(), m.m2.copy()) for m in each]
    moments = hbn.merge_moments(*each)
    for m, (count, mean, m2) in zip(each, before, strict=True):
        assert m.count == count and (m.mean == mean).all() and (m.m2 == m2).all()
    assert moments.count == s.count
    n = s.count
    assert_close(
        moments.mean,
        s.mean.ravel(),
        (mean_error(dtype, n) * np.sqrt(s.m2 / n) + 2.0**-52 * abs(s.mean)).ravel(),
    )
    assert_close(moments.m2, s.m2.ravel(), ((m2_error(dtype, n) + 2.0**-50) * s.m2).ravel())

    expected, bound = normalized(real(p.x), s, *p.values("weight", "bias"))
    for part in parts:
        y = hbn.batch_norm_normalize(p.x[part], moments, *p.parameters())
        assert_like(y, p.x[part], library)
        assert_close(y, expected[part], rounded_to(dtype, expected, bound(dtype))[part])

    mean, invstd = hbn.mean_and_invstd(moments)
    assert mean.dtype == invstd.dtype == np.float64
    sums = [hbn.batch_norm_backward_reduce(p.dy[part], p.x[part], mean, invstd) for part in parts]
    assert all(isinstance(b, hbn.BackwardSums) for b in sums)
    sum_dy, sum_dy_xmu = (
        sums[0].sum_dy + sums[1].sum_dy,
        sums[0].sum_dy_xmu + sums[1].sum_dy_xmu,
    )
    given = np.concatenate(
        [
            real(
                hbn.batch_norm_backward_elemt(
                    p.dy[part],
                    p.x[part],
                    mean,
                    invstd,
                    p.weight,
                    sum_dy,
                    sum_dy_xmu,
                    moments.count,
                )
            )
            for part in parts
        ]
    )
    s = Statistics(real(p.x), mean=real(mean))
    s.invstd = per_channel(real(invstd), p.ndim)
    (grad_input, bound), (grad_weight, weight_bound), (grad_bias, bias_bound) = gradients(
        *p.values("dy", "x"), s, *p.values("weight"), True
    )
    assert_close(given, grad_input, bound(dtype))
    # Each machine's share is rounded by itself.
    xhat = (real(p.x) - s.mean) * s.invstd
    u = 4 * ROUNDOFF[statistic(dtype)]
    for name, total, size in (
        (
            "grad_weight",
            grad_weight,
            weight_bound(dtype) + u * s.sum(abs(real(p.dy) * xhat)),
        ),
        ("grad_bias", grad_bias, bias_bound(dtype) + u * s.sum(abs(real(p.dy)))),
    ):
        assert_close(
            real(getattr(sums[0], name)) + real(getattr(sums[1], name)),
            total.ravel(),
            size.ravel(),
        )

    if library != "jax":
        old = p.values("running_mean", "running_var")
        hbn.update_running_stats(moments, 0.3, *p.running())
        s, u = p.statistics(), ROUNDOFF[statistic(dtype)]
        for now, was, batch, error in (
            (p.running_mean, old[0], s.mean, mean_error(dtype, n) * np.sqrt(s.m2 / n)),
            (
                p.running_var,
                old[1],
                s.m2 / (n - 1),
                m2_error(dtype, n) * s.m2 / (n - 1),
            ),
        ):
            size = abs(0.7 * was) + abs(0.3 * batch)
            assert_close(
                now,
                (REAL(0.7) * was + REAL(0.3) * batch).ravel(),
                (4 * u * size + error).ravel(),
            )


def test_merging_with_an_empty_sample_changes_nothing():
    m = hbn.batch_norm_stats(Problem().x)
    empty = hbn.batch_norm_stats(np.empty((0, 5, 4, 6), np.float32))
    for merged in (hbn.merge_moments(m, empty), hbn.merge_moments(empty, m)):
        assert merged.count == m.count
        np.testing.assert_array_equal(merged.mean, m.mean)
        np.testing.assert_array_equal(merged.m2, m.m2)
        assert not np.shares_memory(merged.mean, m.mean)


# ---- empty input


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (0, 3), (2, 3, 0, 4, 5)], ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_empty(library, shape):
    p = Problem(library, shape=shape)
    before = [raw(r) for r in p.running()]
    y, mean, invstd = hbn.batch_norm_forward(p.x, *p.parameters(), *p.running(), training=True)
    assert y.shape == shape
    assert [raw(r) for r in p.running()] == before
    grad_input, grad_weight, grad_bias = hbn.batch_norm_backward(
        p.dy, p.x, p.weight, mean, invstd, None, None, training=True
    )
    assert grad_input.shape == shape
    np.testing.assert_array_equal(real(grad_weight), np.zeros(3))
    np.testing.assert_array_equal(real(grad_bias), np.zeros(3))
    moments = hbn.batch_norm_stats(p.x)
    assert moments.count == 0
    assert hbn.batch_norm_normalize(p.x, moments, None, None).shape == shape


# ---- whose memory


def allocated_like(library, x):
    return torch.full_like(x, -7.0) if library == "torch" else np.full_like(x, -7.0)


@pytest.mark.parametrize("layout", [*LAYOUTS, "sliced"])
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_results_go_where_out_says(library, dtype, layout):
    p = Problem(library, dtype, layout)
    saved = hbn.batch_norm_forward(p.x, *p.parameters(), None, None, training=True)[1:]
    relu = {"activation": "relu", "training": True}
    moments = hbn.batch_norm_stats(p.x)
    sums = hbn.batch_norm_backward_reduce(p.dy, p.x, *saved)
    forward, nothing = (*p.parameters(), None, None), (None, None)
    calls = [
        lambda **o: hbn.batch_norm_forward(p.x, *forward, training=True, **o)[0],
        lambda **o: hbn.batch_norm_backward(p.dy, p.x, p.weight, *saved, *nothing, training=True, **o)[0],
        lambda **o: hbn.batch_norm_activation_forward(p.x, None, *forward, **relu, **o)[0],
        lambda **o: hbn.batch_norm_activation_backward(
            p.dy, p.x, None, None, *p.parameters(), *saved, *nothing, **relu, **o
        )[0],
        lambda **o: hbn.batch_norm_activation_forward(p.x, p.residual, *forward, **relu, **o)[0],
        lambda **o: hbn.batch_norm_normalize(p.x, moments, *p.parameters(), **o),
        lambda **o: hbn.batch_norm_backward_elemt(
            p.dy,
            p.x,
            *saved,
            p.weight,
            sums.sum_dy,
            sums.sum_dy_xmu,
            moments.count,
            **o,
        ),
    ]
    for call in calls:
        out = sliced(allocated_like(library, p.x))
        assert call(out=out) is out
        # Its strides may ask for another kernel, of another order of summation.
        a, b = real(out), real(call())
        assert (abs(a - b) <= 64 * ROUNDOFF[dtype] * (1 + abs(b).max())).all()
        # What is between its elements is not touched.
        larger = out._base if library == "torch" else out.base
        assert np.isnan(real(larger)[1::2]).all() and np.isnan(real(larger)[:, 0]).all()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_out_may_be_of_another_library_than_x(library):
    p = Problem("jax")
    saved = hbn.batch_norm_forward(p.x, *p.parameters(), None, None, training=True)[1:]
    forward, relu = (*p.parameters(), *p.running()), {"activation": "relu", "training": False}
    for call in (
        lambda **o: hbn.batch_norm_forward(p.x, *forward, training=False, **o)[0],
        lambda **o: hbn.batch_norm_activation_forward(p.x, None, *forward, **relu, **o)[0],
        lambda **o: hbn.batch_norm_activation_forward(p.x, p.dy, *forward, **relu, **o)[0],
        lambda **o: hbn.batch_norm_backward(p.dy, p.x, p.weight, *saved, None, None, training=True, **o)[0],
        lambda **o: hbn.batch_norm_normalize(p.x, hbn.batch_norm_stats(p.x), None, None, **o),
    ):
        out = make(library, np.zeros(p.x.shape), "float32")
        assert call(out=out) is out
        assert raw(out) == raw(call())


@pytest.mark.parametrize("training", [True, False], ids=["training", "running"])
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("layout", [*LAYOUTS, "sliced"])
@pytest.mark.parametrize("case", [None, *ACTIVATIONS])
def test_in_place(case, layout, dtype, training):
    def results(in_place):
        p = Problem("numpy", dtype, layout)
        running = (None, None) if training else p.running()
        options = {"training": training}
        if case is None:
            forward, backward, added, bias = hbn.batch_norm_forward, hbn.batch_norm_backward, (), ()
        else:
            forward, backward = hbn.batch_norm_activation_forward, hbn.batch_norm_activation_backward
            options |= ACTIVATIONS[case].options()
            added, bias = (None,), (p.bias,)
        y, *_, mean, invstd = forward(p.x, *added, *p.parameters(), *running, **options)
        statistics = (mean, invstd, *running)
        out = {"out": p.dy} if in_place else {}
        given = backward(p.dy, p.x, *added * 2, p.weight, *bias, *statistics, **options, **out)
        if in_place:
            assert given[0] is p.dy
            y = forward(p.x, *added, *p.parameters(), *running, out=p.x, **options)[0]
            assert y is p.x
        return [y, *given]

    # In another order of summation, where one pass over memory would overwrite what it has yet to sum.
    for out, made in zip(results(True), results(False), strict=True):
        if made is None:
            assert out is None
        else:
            error = 64 * ROUNDOFF[dtype_of(made)] * abs(real(made)).max()
            assert_close(out, real(made), error + DENORMAL[dtype])


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_running_statistics_are_updated_where_they_are(library, dtype):
    p = Problem(library, dtype, parameters=dtype)
    pairs = np.stack([real(r).astype(float) for r in p.running()] * 2, 1)
    memory = make(library, pairs, dtype)  # (C, 4): mean, variance, and neighbours that stay
    neighbours = raw(memory[:, 2:])
    hbn.batch_norm_forward(p.x, None, None, *p.running(), training=True, momentum=0.5)
    hbn.batch_norm_forward(p.x, None, None, memory[:, 0], memory[:, 1], training=True, momentum=0.5)
    assert raw(memory[:, 0]) == raw(p.running_mean)
    assert raw(memory[:, 1]) == raw(p.running_var)
    assert raw(memory[:, 2:]) == neighbours
    before = raw(memory)
    hbn.batch_norm_forward(p.x, None, None, memory[:, 0], memory[:, 1], training=True, momentum=0.0)
    hbn.update_running_stats(hbn.batch_norm_stats(p.x), 0.0, memory[:, 0], memory[:, 1])
    assert raw(memory) == before


def run(code):
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path("/"),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_input_is_not_copied():
    assert "in place" in run("""
        import numpy as np, torch, jax, ml_dtypes, hbn

        def megabytes(name):
            for line in open("/proc/self/status"):
                if line.startswith(name):
                    return int(line.split()[1]) / 1024

        size = 200 << 20
        memory = np.ones(size + 64, np.uint8)
        x = memory[-memory.ctypes.data % 64 :][:size].view(np.float32).reshape(50, 4, 512, 512)  # aligned for JAX
        torch_x = torch.from_numpy(x)
        jax_x = jax.block_until_ready(jax.dlpack.from_dlpack(x))
        assert jax_x.unsafe_buffer_pointer() == x.ctypes.data
        lent = {
            "numpy": x,
            "numpy, bfloat16": x.view(ml_dtypes.bfloat16),
            "torch": torch_x,
            "torch, bfloat16": torch_x.view(torch.bfloat16),
            "jax": jax_x,
            "jax, bfloat16": jax.dlpack.from_dlpack(torch_x.view(torch.bfloat16)),
        }
        for array in lent.values():
            hbn.batch_norm_stats(array[:1, :1, :2, :2])
        before = megabytes("VmRSS")
        assert megabytes("VmHWM") - before < 50, "an earlier peak hides a copy"
        for name, array in lent.items():
            hbn.batch_norm_stats(array)
            assert megabytes("VmHWM") - before < 100, name
            print(name)
        hbn.batch_norm_forward(x, None, None, None, None, training=True, out=x)
        assert megabytes("VmHWM") - before < 100
        print("in place")
        """)


# ---- mixtures, and arrays of other kinds


@pytest.mark.parametrize("rotation", range(3))
@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_libraries_may_be_mixed(dtype, rotation):
    libraries = [("numpy", "torch", "jax")[(i + rotation) % 3] for i in range(3)]
    of = [Problem(library, dtype) for library in libraries]
    one = Problem("numpy", dtype)
    y, mean, invstd = hbn.batch_norm_forward(of[0].x, of[1].weight, of[2].bias, None, None, training=True)
    expected = hbn.batch_norm_forward(one.x, *one.parameters(), None, None, training=True)
    assert isinstance(y, class_of(libraries[0]))
    assert [raw(a) for a in (y, mean, invstd)] == [raw(a) for a in expected]
    given = hbn.batch_norm_backward(of[2].dy, of[0].x, of[1].weight, *expected[1:], None, None, training=True)
    assert all(isinstance(g, class_of(libraries[0])) for g in given)
    same = hbn.batch_norm_backward(one.dy, one.x, one.weight, *expected[1:], None, None, training=True)
    assert [raw(a) for a in given] == [raw(a) for a in same]
    buffers = Problem("torch", dtype).running_mean, Problem("numpy", dtype).running_var
    hbn.batch_norm_forward(of[0].x, None, None, *buffers, training=True)
    hbn.batch_norm_forward(one.x, None, None, *one.running(), training=True)
    assert [raw(a) for a in buffers] == [raw(a) for a in one.running()]


class OnlyDlpack:
    """Of an unknown library."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **arguments):
        return self._array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class AssignableDlpack(OnlyDlpack):
    """Whose memory may be written."""

    def __setitem__(self, index, value):
        self._array[index] = value


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_what_has_nothing_but_dlpack(dtype):
    p = Problem("numpy", dtype)
    expected = hbn.batch_norm_forward(p.x, *p.parameters(), None, None, training=True)
    lent = [OnlyDlpack(a) for a in (p.x, *p.parameters())]
    given = hbn.batch_norm_forward(*lent, None, None, training=True)
    assert [type(a) for a in given] == [np.ndarray] * 3
    assert [raw(a) for a in given] == [raw(a) for a in expected]
    gradients_given = hbn.batch_norm_backward(
        OnlyDlpack(p.dy),
        lent[0],
        lent[1],
        *map(OnlyDlpack, expected[1:]),
        None,
        None,
        training=True,
    )
    same = hbn.batch_norm_backward(p.dy, p.x, p.weight, *expected[1:], None, None, training=True)
    assert [raw(a) for a in gradients_given] == [raw(a) for a in same]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_parameters_and_outputs_with_nothing_but_dlpack(dtype):
    p, lent = Problem("numpy", dtype), Problem("numpy", dtype)
    out, running = np.empty_like(p.x), [AssignableDlpack(r) for r in lent.running()]
    arguments = [OnlyDlpack(a) for a in lent.parameters()]
    hbn.batch_norm_forward(p.x, *arguments, *running, training=True, out=AssignableDlpack(out))
    y, _, _ = hbn.batch_norm_forward(p.x, *p.parameters(), *p.running(), training=True)
    assert raw(out) == raw(y)
    assert [raw(a) for a in lent.running()] == [raw(a) for a in p.running()]


def test_what_requires_grad_is_refused():
    p = Problem("torch")
    p.x.requires_grad_()
    for call in (
        lambda: hbn.batch_norm_forward(p.x, None, None, None, None, training=True),
        lambda: hbn.batch_norm(p.x, *p.running()),
        lambda: hbn.batch_norm_activation_forward(p.x, *[None] * 5, activation="relu", training=True),
    ):
        with pytest.raises(ValueError, match=re.escape("use hbn.torch, or detach() it first")):
            call()
        with torch.no_grad():
            call()


# ---- errors


class Unchanged:
    """Checks at its end that the bytes of arrays are what they were."""

    def __init__(self, *arrays):
        self._arrays = [a for a in arrays if isinstance(a, np.ndarray | torch.Tensor | jax.Array)]

    def __enter__(self):
        self._before = [raw(a) for a in self._arrays]

    def __exit__(self, *error):
        assert [raw(a) for a in self._arrays] == self._before


def refused(error, text, call, *arrays):
    with (
        Unchanged(*arrays),
        pytest.raises(error, match=f"^{re.escape(text)}$") as caught,
    ):
        call()
    assert type(caught.value) is error


def changed_forward(**changes):
    """A forward call that is right but for the changes; what it may write, and all else."""
    p = Problem()
    arguments = {
        "x": p.x,
        "weight": p.weight,
        "bias": p.bias,
        "running_mean": p.running_mean,
        "running_var": p.running_var,
        "training": True,
        "out": np.full_like(p.x, -7),
    }
    changes = {name: change(p) if callable(change) else change for name, change in changes.items()}
    return {**arguments, **changes}


F32 = np.float32
NOT_FLOAT = "{} must be float32, float64, bfloat16 or float16, got {}"
NO_ARRAY = "{} must be an array (NumPy's, or any with __dlpack__ or a buffer), got {}"
OVERLAP = (
    "unsupported operation: some elements of the input tensor ({}) and the written-to tensor ({}) "
    "refer to a single memory location"
)
BOTH = "running_mean and running_var must either both be None or neither be None"
READ_ONLY = "{} is read-only, but is to be written"


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


FORWARD_ERRORS = {
    "rank 0": (
        {"x": np.ones((), F32)},
        ValueError,
        "expected at least 2D input (got 0D input)",
    ),
    "rank 1": (
        {"x": np.ones(3, F32)},
        ValueError,
        "expected at least 2D input (got 1D input)",
    ),
    "rank 17": (
        {"x": np.ones((2,) * 17, F32)},
        ValueError,
        "x has 17 dimensions, more than 16",
    ),
    "int32": (
        {"x": lambda p: p.x.astype(np.int32)},
        TypeError,
        NOT_FLOAT.format("x", "int32"),
    ),
    "complex64": (
        {"x": lambda p: p.x.astype(np.complex64)},
        TypeError,
        NOT_FLOAT.format("x", "complex64"),
    ),
    "object": (
        {"x": lambda p: p.x.astype(object)},
        TypeError,
        NOT_FLOAT.format("x", "object"),
    ),
    "big endian": (
        {"x": lambda p: p.x.astype(">f4")},
        TypeError,
        NOT_FLOAT.format("x", "big-endian float32"),
    ),
    "list": ({"x": lambda p: p.x.tolist()}, TypeError, NO_ARRAY.format("x", "list")),
    "str": ({"x": "x"}, TypeError, NO_ARRAY.format("x", "str")),
    "None": ({"x": None}, ValueError, "x is required"),
    "negative strides": (
        {"x": lambda p: p.x[:, :, ::-1]},
        ValueError,
        "negative strides are not supported (x)",
    ),
    "one value": (
        {"x": np.ones((1, 5, 1, 1), F32), "out": np.ones((1, 5, 1, 1), F32)},
        ValueError,
        "Expected more than 1 value per channel when training, got input size [1, 5, 1, 1]",
    ),
    "five dimensions in bits": (
        {
            "x": lambda p: np.ones((2, 5, 4, 4, 4), F32)[:, :, ::2, ::2, ::2],
            "out": np.ones((2, 5, 2, 2, 2), F32),
        },
        ValueError,
        "x has 5 dimensions, which hbn can only take where all after the second are dense; copy it first",
    ),
    "running_mean's size": (
        {"running_mean": np.ones(4, F32)},
        ValueError,
        "running_mean should contain 5 elements not 4",
    ),
    "running_var's size": (
        {"running_var": np.ones(6, F32)},
        ValueError,
        "running_var should contain 5 elements not 6",
    ),
    "weight's size": (
        {"weight": np.ones(4, F32)},
        ValueError,
        "weight should contain 5 elements not 4",
    ),
    "bias's size": (
        {"bias": np.ones(4, F32)},
        ValueError,
        "bias should contain 5 elements not 4",
    ),
    "weight's dtype": (
        {"weight": np.ones(5)},
        ValueError,
        "mixed dtype: expected weight to be float32, got float64",
    ),
    "weight of integers": (
        {"weight": np.ones(5, np.int32)},
        TypeError,
        NOT_FLOAT.format("weight", "int32"),
    ),
    "weight's rank": (
        {"weight": np.ones((5, 2), F32)},
        ValueError,
        "weight should have one dimension beside those of size 1, not 2",
    ),
    "weight a list": (
        {"weight": [1.0] * 5},
        TypeError,
        NO_ARRAY.format("weight", "list"),
    ),
    "weight reversed": (
        {"weight": lambda p: p.weight[::-1]},
        ValueError,
        "negative strides are not supported (weight)",
    ),
    "no running_var": ({"running_var": None}, ValueError, BOTH),
    "no running_mean": ({"running_mean": None}, ValueError, BOTH),
    "no running_mean, in evaluation": (
        {"running_mean": None, "training": False},
        ValueError,
        BOTH,
    ),
    "eps 0": (
        {"eps": 0},
        ValueError,
        "batch_norm eps must be positive during training, but got 0.0",
    ),
    "eps NaN": (
        {"eps": np.nan},
        ValueError,
        "batch_norm eps must be positive during training, but got nan",
    ),
    "eps -1, in evaluation": (
        {"eps": -1, "training": False},
        ValueError,
        "batch_norm eps must be non-negative, but got -1.0",
    ),
    "momentum NaN": (
        {"momentum": np.nan},
        ValueError,
        "batch_norm momentum must not be nan",
    ),
    "out's shape": (
        {"out": np.ones((3, 5, 4, 5), F32)},
        ValueError,
        "y should have the shape of x, [3, 5, 4, 6], not [3, 5, 4, 5]",
    ),
    "out's dtype": (
        {"out": np.ones((3, 5, 4, 6))},
        ValueError,
        "y should have the dtype of x, float32, not float64",
    ),
    "out a list": ({"out": [1.0]}, TypeError, NO_ARRAY.format("y", "list")),
    "out's rank": (
        {"out": np.ones((3, 5, 24), F32)},
        ValueError,
        "y should have the shape of x, [3, 5, 4, 6], not [3, 5, 24]",
    ),
    "datetime": ({"x": np.ones((3, 5, 4, 6), "M8[s]")}, TypeError, NOT_FLOAT.format("x", "datetime64[s]")),
    "float8": (
        {"x": lambda p: p.x.astype(ml_dtypes.float8_e4m3fn)},
        TypeError,
        NOT_FLOAT.format("x", "float8_e4m3fn"),
    ),
    "weight is running_mean": (
        {"weight": lambda p: p.running_mean},
        ValueError,
        OVERLAP.format("weight", "running_mean"),
    ),
    "out repeats": (
        {"out": np.lib.stride_tricks.as_strided(np.ones(720, F32), (3, 5, 4, 6), (0, 96, 24, 4))},
        ValueError,
        "unsupported operation: more than one element of the written-to tensor (y) refers to a single memory location",
    ),
    "out read-only": (
        {"out": lambda p: read_only(p.x)},
        ValueError,
        READ_ONLY.format("y"),
    ),
    "out JAX's": (
        {"out": lambda p: jnp.asarray(p.x)},
        ValueError,
        READ_ONLY.format("y"),
    ),
    "out without assignment": (
        {"out": lambda p: OnlyDlpack(p.x.copy())},
        ValueError,
        READ_ONLY.format("y"),
    ),
    "out lent read-only": (
        {"out": lambda p: AssignableDlpack(read_only(p.x))},
        ValueError,
        READ_ONLY.format("y"),
    ),
    **{
        f"{name} {kind}": (
            {name: lambda p, name=name, form=form: form(getattr(p, name))},
            ValueError,
            READ_ONLY.format(name),
        )
        for name in ("running_mean", "running_var")
        for kind, form in (("read-only", read_only), ("JAX's", jnp.asarray))
    },
}


@pytest.mark.parametrize("case", FORWARD_ERRORS)
def test_forward_refuses(case):
    changes, error, text = FORWARD_ERRORS[case]
    arguments = changed_forward(**changes)
    refused(error, text, lambda: hbn.batch_norm_forward(**arguments), *arguments.values())


@pytest.mark.parametrize("case", [name for name in FORWARD_ERRORS if not name.startswith("out")])
def test_forward_without_out_refuses(case):
    changes, error, text = FORWARD_ERRORS[case]
    arguments = changed_forward(**changes)
    del arguments["out"]
    refused(error, text, lambda: hbn.batch_norm_forward(**arguments), *arguments.values())


def test_read_only_bfloat16_is_refused():
    p = Problem(dtype="bfloat16")
    out = read_only(p.x)
    refused(
        ValueError,
        READ_ONLY.format("y"),
        lambda: hbn.batch_norm_forward(p.x, None, None, *p.running(), training=True, out=out),
        *p.arrays(),
        out,
    )


def test_overlap_is_refused():
    p = Problem()
    memory = np.arange(p.x.size + 1, dtype=F32)
    x, out = memory[:-1].reshape(p.x.shape), memory[1:].reshape(p.x.shape)
    refused(
        ValueError,
        OVERLAP.format("x", "y"),
        lambda: hbn.batch_norm_forward(x, *p.parameters(), *p.running(), training=True, out=out),
        memory,
        *p.arrays(),
    )


def test_shapes_of_five_dimensions_are_compared():
    p = Problem(shape=(2, 3, 4, 5, 6))
    out = np.full((2, 3, 5, 4, 6), -7, F32)
    refused(
        ValueError,
        "y should have the shape of x, [2, 3, 4, 5, 6], not [2, 3, 5, 4, 6]",
        lambda: hbn.batch_norm_forward(p.x, None, None, *p.running(), training=True, out=out),
        out,
        *p.arrays(),
    )


TORCH_ERRORS = {
    "int32": (
        lambda x: x.to(torch.int32),
        TypeError,
        NOT_FLOAT.format("x", "int32"),
    ),
    "complex64": (
        lambda x: x.to(torch.complex64),
        TypeError,
        NOT_FLOAT.format("x", "complex64"),
    ),
    "rank 1": (
        lambda x: x[0, 0, 0],
        ValueError,
        "expected at least 2D input (got 1D input)",
    ),
    "five dimensions in bits": (
        lambda x: torch.ones(2, 5, 4, 4, 4)[:, :, ::2, ::2, ::2],
        ValueError,
        "x has 5 dimensions, which hbn can only take where all after the second are dense; copy it first",
    ),
}


@pytest.mark.parametrize("case", TORCH_ERRORS)
def test_tensors_are_refused(case):
    change, error, text = TORCH_ERRORS[case]
    p = Problem("torch")
    x = change(p.x)
    refused(
        error,
        text,
        lambda: hbn.batch_norm_forward(x, None, None, *p.running(), training=True),
        x,
        *p.arrays(),
    )


def test_backward_refuses():
    p = Problem()
    out = np.full_like(p.x, -7)
    _, mean, invstd = hbn.batch_norm_forward(p.x, None, None, None, None, training=True)

    def backward(**changes):
        arguments = {
            "grad_output": p.dy, "x": p.x, "weight": p.weight, "mean": mean, "invstd": invstd,
            "running_mean": None, "running_var": None, "training": True, "out": out, **changes,
        }  # fmt: skip
        return lambda: hbn.batch_norm_backward(**arguments)

    for changes, text in (
        ({"mean": None, "invstd": None}, "mean must be defined in training mode"),
        (
            {"invstd": None},
            "mean and invstd must either both be None or neither be None",
        ),
        ({"mean": None}, "mean and invstd must either both be None or neither be None"),
        ({"mean": mean[1:]}, "mean should contain 5 elements not 4"),
        (
            {"mean": mean.astype(F32)},
            "mixed dtype: expected mean to be float64, got float32",
        ),
        ({"training": False}, "running_mean must be defined in evaluation mode"),
        ({"grad_output": None}, "grad_output is required"),
        (
            {"grad_output": p.dy[:2]},
            "x should have the shape of grad_output, [2, 5, 4, 6], not [3, 5, 4, 6]",
        ),
        (
            {"grad_output": p.dy.astype(float)},
            "x should have the dtype of grad_output, float64, not float32",
        ),
        ({"out": p.x}, OVERLAP.format("x", "grad_input")),
        ({"out": read_only(p.x)}, READ_ONLY.format("grad_input")),
        ({"out": jnp.asarray(p.x)}, READ_ONLY.format("grad_input")),
    ):
        refused(ValueError, text, backward(**changes), out, mean, invstd, *p.arrays())


def test_moments_are_checked():
    p = Problem()
    m = hbn.batch_norm_stats(p.x)
    out = np.full_like(p.x, -7)
    for text, call in (
        (
            "mean_b should contain 5 elements not 4",
            lambda: hbn.merge_moments(m, m._replace(mean=m.mean[1:])),
        ),
        (
            "mixed dtype: expected m2_b to be float64, got float32",
            lambda: hbn.merge_moments(m, m._replace(m2=p.weight)),
        ),
        (
            "count must be non-negative and finite, got -1",
            lambda: hbn.merge_moments(m, m._replace(count=-1)),
        ),
        (
            "batch_norm eps must be positive during training, but got 0.0",
            lambda: hbn.mean_and_invstd(m, eps=0),
        ),
        (
            "count must be positive and finite, got 0",
            lambda: hbn.batch_norm_normalize(p.x, m._replace(count=0), None, None, out=out),
        ),
        (
            "running_var should contain 5 elements not 4",
            lambda: hbn.update_running_stats(m, 0.1, p.running_mean, p.running_var[1:]),
        ),
        (BOTH, lambda: hbn.update_running_stats(m, 0.1, p.running_mean, None)),
        (
            READ_ONLY.format("running_var"),
            lambda: hbn.update_running_stats(m, 0.1, p.running_mean, jnp.asarray(p.running_var)),
        ),
        ("x is required", lambda: hbn.batch_norm_stats(None)),
        (
            "negative strides are not supported (x)",
            lambda: hbn.batch_norm_stats(p.x[::-1]),
        ),
    ):
        refused(ValueError, text, call, m.mean, m.m2, out, *p.arrays())
    refused(TypeError, NO_ARRAY.format("x", "list"), lambda: hbn.batch_norm_stats([[1.0]]))


# ---- references


def calls_of_all_kinds(p):
    """Calls of every function that takes arrays: some that succeed, some that fail in every stage."""
    _, mean, invstd = hbn.batch_norm_forward(p.x, None, None, None, None, training=True)
    relu = {"activation": "relu", "training": True}
    mask = hbn.batch_norm_activation_forward(p.x, p.residual, *[None] * 4, **relu)[1]
    m = hbn.batch_norm_stats(p.x)
    sums = hbn.batch_norm_backward_reduce(p.dy, p.x, mean, invstd)
    saved, nothing, t = (mean, invstd), (None, None), {"training": True}
    good = [
        lambda: hbn.batch_norm(p.x, *p.running(), *p.parameters()),
        lambda: hbn.batch_norm_forward(p.x, *p.parameters(), *p.running(), training=False),
        lambda: hbn.batch_norm_backward(p.dy, p.x, p.weight, *saved, *nothing, **t),
        lambda: hbn.batch_norm_activation_forward(p.x, None, *p.parameters(), *nothing, **relu),
        lambda: hbn.batch_norm_activation_backward(p.dy, p.x, None, None, *p.parameters(), *saved, *nothing, **relu),
        lambda: hbn.batch_norm_activation_forward(p.x, p.residual, *p.parameters(), *nothing, **relu),
        lambda: hbn.batch_norm_activation_backward(p.dy, p.x, None, mask, *p.parameters(), *saved, *nothing, **relu),
        lambda: hbn.batch_norm_jvp(p.dy, p.x, p.weight, p.bias, p.weight, *saved, *nothing, **t),
        lambda: hbn.batch_norm_double_backward(
            p.residual, p.bias, p.weight, p.dy, p.x, p.weight, *saved, *nothing, **t
        ),
        lambda: hbn.batch_norm_stats(p.x),
        lambda: hbn.merge_moments(m, m),
        lambda: hbn.mean_and_invstd(m),
        lambda: hbn.batch_norm_normalize(p.x, m, *p.parameters()),
        lambda: hbn.batch_norm_backward_reduce(p.dy, p.x, *saved),
        lambda: hbn.batch_norm_backward_elemt(p.dy, p.x, *saved, p.weight, sums.sum_dy, sums.sum_dy_xmu, m.count),
    ]
    return good, [
        p.x,
        p.dy,
        p.residual,
        *p.parameters(),
        *p.running(),
        mask,
        *saved,
        m.mean,
        m.m2,
        sums.sum_dy,
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_no_reference_is_kept(library, dtype):
    calls, arrays = calls_of_all_kinds(Problem(library, dtype))
    for call in calls:
        call()
        before = [sys.getrefcount(a) for a in arrays]
        for _ in range(5):
            call()
        assert [sys.getrefcount(a) for a in arrays] == before


@pytest.mark.parametrize("case", FORWARD_ERRORS)
def test_no_reference_is_kept_after_errors(case):
    changes, error, _ = FORWARD_ERRORS[case]
    arguments = changed_forward(**changes)
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray | jax.Array | OnlyDlpack)]

    def fail():
        with pytest.raises((TypeError, ValueError)):
            hbn.batch_norm_forward(**arguments)

    fail()
    gc.collect()
    before = [sys.getrefcount(a) for a in arrays]
    for _ in range(5):
        fail()
    gc.collect()
    assert [sys.getrefcount(a) for a in arrays] == before


def test_failing_calls_keep_no_memory():
    cases = [changed_forward(**changes) for changes, _, _ in FORWARD_ERRORS.values()]

    def fail(times):
        for i in range(times):
            try:
                hbn.batch_norm_forward(**cases[i % len(cases)])
            except (TypeError, ValueError):
                continue
            raise AssertionError("did not fail")

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

    # NumPy keeps some of what it frees, up to a limit that thousands of calls may take to reach. What is lost in each
    # call is lost in every round.
    grown = []
    tracemalloc.start()
    fail(10000)
    while len(grown) < 8 and (not grown or min(grown)[0] > 2000):
        gc.collect()
        traced, used = tracemalloc.get_traced_memory()[0], resident()
        fail(10000)
        gc.collect()
        grown.append((tracemalloc.get_traced_memory()[0] - traced, resident() - used))
    tracemalloc.stop()
    assert min(grown)[0] <= 2000
    assert min(resident_growth for _, resident_growth in grown) < 8_000_000


# ---- threads and processes


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = hbn.get_num_threads()
    yield hbn.set_num_threads
    hbn.set_num_threads(before)


def test_number_of_threads(threads):
    for n in (1, 2, 3):
        threads(n)
        assert hbn.get_num_threads() == n
    threads(0)
    assert hbn.get_num_threads() >= 1
    refused(
        ValueError,
        "number of threads must not be negative, got -1",
        lambda: threads(-1),
    )


def arrays_in(result):
    return [a for a in (result if isinstance(result, tuple) else (result,)) if hasattr(a, "dtype")]


@pytest.mark.parametrize("layout", ["dense", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_do_not_depend_on_threads(threads, dtype, layout):
    calls, _ = calls_of_all_kinds(Problem("numpy", dtype, layout, (8, 12, 40, 40)))
    for call in calls:
        given = []
        for n in (1, 2):
            threads(n)
            given.append([raw(a) for a in arrays_in(call())])
        assert given[0] == given[1] and given[0]


def test_other_threads_run_meanwhile(threads):
    threads(1)
    x = np.ones((8, 512, 64, 64))[:, :, ::2, ::2].transpose(0, 1, 3, 2)
    out = np.empty_like(x)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0)

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        # Until some call was seen in whose middle half the other thread ran: with the lock held none ever is.
        for _ in range(50):
            begin = time.perf_counter()
            for _ in range(4):
                hbn.batch_norm_forward(x, None, None, None, None, training=True, out=out)
            end = time.perf_counter()
            quarter = (end - begin) / 4
            if sum(begin + quarter < t < end - quarter for t in ticks) > 10:
                break
        else:
            raise AssertionError("no other thread ran while hbn did")
    finally:
        done.set()
        ticking.join()


def test_threads_may_call_at_once(threads):
    threads(2)
    p = Problem(shape=(8, 12, 40, 40))
    expected = raw(hbn.batch_norm(p.x, None, None, *p.parameters(), training=True))
    wrong = []

    def work():
        for _ in range(20):
            if raw(hbn.batch_norm(p.x, None, None, *p.parameters(), training=True)) != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_errors_are_of_the_thread_that_made_them():
    texts = {}

    def work(size):
        for _ in range(200):
            try:
                hbn.batch_norm_forward(
                    np.ones((2, 3), F32),
                    np.ones(size, F32),
                    None,
                    None,
                    None,
                    training=True,
                )
            except ValueError as e:
                texts.setdefault(size, set()).add(str(e))

    workers = [threading.Thread(target=work, args=(size,)) for size in (4, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert texts == {size: {f"weight should contain 3 elements not {size}"} for size in (4, 5)}


def test_a_forked_child_can_call():
    assert "the same" in run("""
        import os, signal
        import numpy as np, hbn
        hbn.set_num_threads(2)
        x = np.random.default_rng(0).normal(size=(8, 16, 32, 32)).astype(np.float32)
        expected = hbn.batch_norm(x, None, None, training=True).tobytes()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(0 if hbn.batch_norm(x, None, None, training=True).tobytes() == expected else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert hbn.batch_norm(x, None, None, training=True).tobytes() == expected
        print("the same")
        """)


# ---- the library


def test_instruction_sets():
    names = hbn.instruction_sets().split(",")
    used = hbn.instruction_set()
    assert used in names
    p = Problem()
    expected, bound = normalized(real(p.x), p.statistics(), *p.values("weight", "bias"))
    try:
        for name in names[names.index(used) :]:  # This processor has the one in use, and all lower ones.
            hbn.set_instruction_set(name)
            assert hbn.instruction_set() == name
            y = hbn.batch_norm(p.x, None, None, *p.parameters(), training=True)
            assert_close(y, expected, bound("float32"))
        refused(
            ValueError,
            f"unknown instruction set 'abacus': this library has kernels for {hbn.instruction_sets()}",
            lambda: hbn.set_instruction_set("abacus"),
        )
    finally:
        hbn.set_instruction_set(used)


def test_every_public_name_is_tested_here():
    tree = ast.parse(pathlib.Path(__file__).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hbn"
    }
    assert isinstance(hbn.batch_norm_stats(Problem().x), hbn.Moments)
    assert set(hbn.__all__) - used == set()
    assert {name for name in used if name not in hbn.__all__} == {"__all__"}


def own_text(documented):
    """Its docstring without the signature that compiled functions begin theirs with, nor what it inherits."""
    return re.sub(r"^\w+\(.*\) -> .*", "", documented.__doc__ or "").strip()


@pytest.mark.parametrize("module", ["hbn", "hbn.torch", "hbn.onnx"])
def test_every_public_name_is_documented(module):
    # Linters take what is in modules with an underscore for private, wherever it is exported.
    module = importlib.import_module(module)
    assert own_text(module)
    public = {name: getattr(module, name) for name in module.__all__}
    for name, thing in list(public.items()):
        for owner in thing.__mro__ if inspect.isclass(thing) else ():
            if owner.__module__.startswith("hbn"):
                methods = {k: v for k, v in vars(owner).items() if inspect.isfunction(v) and not k.startswith("_")}
                public.update({f"{name}.{k}": v for k, v in methods.items()})
    assert [name for name, thing in public.items() if not own_text(thing)] == []
