"""The operations on arrays of any library."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from hbn import _core
from hbn._arrays import (
    Array,
    copy_of_statistic,
    dtype_name,
    increment_version,
    maker_for,
    refuse_tangents,
    shape_of,
    statistic_dtype,
)


class Moments(NamedTuple):
    """Statistics of `count` values in each of C channels, float64: what machines exchange.

    Merged by Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances"
    (1979).
    """

    count: float  # type: ignore[assignment]
    """Values of each channel."""
    mean: np.ndarray
    """(C,)"""
    m2: np.ndarray
    """(C,), the sum of squared deviations from the mean."""


class BackwardSums(NamedTuple):
    """Plain sums over each channel, float64: what machines add up."""

    sum_dy: np.ndarray
    """(C,), the sum of grad_output."""
    sum_dy_xmu: np.ndarray
    """(C,), the sum of grad_output * (x - mean)."""
    grad_weight: Array
    """(C,), this machine's share."""
    grad_bias: Array
    """(C,), this machine's share."""


def set_num_threads(num_threads: int) -> None:
    """Threads for later calls, in this process; 0 means one for each processor. No bit of a result depends on it."""
    _core.set_num_threads(num_threads)


def uses_batch_statistics(training: bool, running_mean: Array | None, running_var: Array | None) -> bool:
    """Whether forward normalizes with the batch's statistics, and gives them for backward."""
    return training or (running_mean is None and running_var is None)


# Of each operation: its function, what it takes, in order, and which outputs.
_operations = {
    operation: (
        getattr(_core, operation),
        [name for name, _, _, _ in arguments],
        [(name, role, presence) for name, role, direction, presence in arguments if direction == "out"],
    )
    for operation, arguments in _core.operations.items()
}


def _run(operation: str, given: dict[str, Any], out: Array | None = None, without: Collection[str] = ()) -> list[Any]:
    """Outputs of an operation on tensors, in its row's order; None for those that are not wanted.

    Args:
        operation: Its name in runtime/operations.def.
        given: Its inputs by name, among whatever else: a function's locals() will do.
        out: Where the first output goes. All others are made here.
        without: Outputs that are not wanted.
    """
    call, names, outputs = _operations[operation]
    x = given["x"]
    maker = maker_for(x)
    channels = shape_of(x, "x")[1:2] or (0,)
    made: dict[str, Array | None] = {}
    exchanged = []
    parameter_dtype = ""
    for name, role, presence in outputs:
        array = None
        if name in without:
            pass
        elif out is not None and not made:
            array = out
        elif role == "tensor":
            array = maker.empty_like(x)
        elif role == "mask":
            array = maker.empty_like(x, "uint8")
        elif role == "parameter":
            weight = given.get("weight")
            parameter_dtype = parameter_dtype or (
                statistic_dtype(x) if weight is None else dtype_name(weight, "weight")
            )
            array = maker.empty(channels, parameter_dtype)
        elif presence == "required":
            array = np.empty(channels)
            exchanged.append(name)
        elif uses_batch_statistics(given["training"], given["running_mean"], given["running_var"]):
            array = maker.empty(channels, "float64")
        made[name] = array
    values = {**given, **made}
    arguments = [values[name] for name in names]
    refuse_tangents(names, arguments)
    call(*arguments)
    if out is not None:
        increment_version(out)
    # The user's own array, what machines exchange, or one of x's library.
    return [array if array is out or name in exchanged else maker.finish(array) for name, array in made.items()]


def batch_norm(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """torch.nn.functional.batch_norm: y alone, of `batch_norm_forward`."""
    return _run("forward", locals(), without=("mean", "invstd"))[0]


def batch_norm_forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance of each channel.

    They are the batch's in training, or where there are no running statistics; else the running ones. In training
    running statistics are updated in place: running = (1 - momentum) * running + momentum * batch's, the variance
    over M - 1.

    Args:
        x: (N, C, ...).
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        running_mean: (C,) or None, together with running_var. Written in training.
        running_var: (C,) or None.
        training: Whether to use, and keep, the batch's statistics.
        momentum: The share of the batch in the running statistics; 0 leaves them as they are, bit for bit.
        eps: Positive with the batch's statistics, else non-negative.
        out: Where y goes: of x's shape and dtype, x itself or no overlap with any argument.

    Returns:
        y, of x's layout (or `out`), and mean and invstd = 1 / sqrt(var + eps), (C,) of float64 beside every dtype,
        which backward needs: None where running statistics were used.

    Raises:
        ValueError: Shapes, dtypes, overlaps, eps or momentum that do not fit, in PyTorch's words where it has them.
        TypeError: An argument that is no array, or of a dtype that hbn does not know.
        BufferError: An array that does not lend its memory.
    """
    y, mean, invstd = _run("forward", locals(), out)
    return y, mean, invstd


def batch_norm_backward(
    grad_output: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    eps: float = 1e-5,
    grad_mask: tuple[bool, bool, bool] = (True, True, True),
    out: Array | None = None,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients of x, weight and bias.

    Args:
        grad_output: (N, C, ...), the gradient of y.
        x: As forward had it.
        weight: As forward had it.
        mean: (C,), as forward gave it; needed where it used the batch's statistics.
        invstd: (C,), as forward gave it.
        running_mean: (C,); needed where forward used running statistics.
        running_var: (C,).
        training: Whether forward used the batch's statistics.
        eps: As forward had it.
        grad_mask: Which of grad_input, grad_weight and grad_bias are wanted.
        out: Where grad_input goes: of x's shape and dtype, grad_output itself or no overlap with any argument.

    Returns:
        grad_input of x's layout, grad_weight and grad_bias, (C,); None for what is not wanted.

    Raises:
        ValueError: Shapes, dtypes or overlaps that do not fit, statistics that are missing.
        TypeError: An argument that is no array, or of a dtype that hbn does not know.
        BufferError: An array that does not lend its memory.
    """
    gradients = zip(("grad_input", "grad_weight", "grad_bias"), grad_mask, strict=True)
    without = [name for name, wanted in gradients if not wanted]
    grad_input, grad_weight, grad_bias = _run("backward", locals(), out, without)
    return grad_input, grad_weight, grad_bias


def batch_norm_activation_forward(
    x: Array,
    residual: Array | None,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    activation: str,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    negative_slope: float = 0.01,
    min_val: float = -1.0,
    max_val: float = 1.0,
    out: Array | None = None,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """activation(batch_norm(x) + residual) in one pass over memory, as blocks of networks end.

    All else, and errors, as of `batch_norm_forward`.

    Args:
        x: (N, C, ...).
        residual: Of x's shape and dtype, or None for no addition.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        running_mean: (C,) or None, together with running_var. Written in training.
        running_var: (C,) or None.
        activation: "identity", "relu", "leaky_relu", "clip" (torch.nn.Hardtanh; ReLU6 with limits of 0 and 6), "silu"
            or "hardswish".
        training: Whether to use, and keep, the batch's statistics.
        momentum: The share of the batch in the running statistics.
        eps: Positive with the batch's statistics, else non-negative.
        negative_slope: leaky_relu's.
        min_val: clip's lower limit.
        max_val: clip's upper limit.
        out: Where y goes: of x's shape and dtype, without overlap with any argument; x itself where there is no mask.

    Returns:
        y; mask, uint8 of x's shape and layout, 1 where an element passed, for backward: of a ReLU after an addition,
        else None; mean and invstd as of `batch_norm_forward`.
    """
    without = () if activation == "relu" and residual is not None else ("mask",)
    given = {**locals(), "activation": (activation, negative_slope, min_val, max_val)}
    y, mask, mean, invstd = _run("activation_forward", given, out, without)
    return y, mask, mean, invstd


def batch_norm_activation_backward(
    grad_output: Array,
    x: Array,
    residual: Array | None,
    mask: Array | None,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    activation: str,
    training: bool,
    eps: float = 1e-5,
    negative_slope: float = 0.01,
    min_val: float = -1.0,
    max_val: float = 1.0,
    out: Array | None = None,
) -> tuple[Array, Array | None, Array, Array]:
    """Gradients of `batch_norm_activation_forward`'s x, residual, weight and bias.

    All else, and errors, as of `batch_norm_backward`.

    Args:
        grad_output: (N, C, ...), the gradient of y.
        x: As forward had it.
        residual: As forward had it; not needed with a mask.
        mask: As forward gave it.
        weight: As forward had it.
        bias: As forward had it: with it and the above what went into the activation is computed again.
        mean: (C,), as forward gave it; needed where it used the batch's statistics.
        invstd: (C,), as forward gave it.
        running_mean: (C,); needed where forward used running statistics.
        running_var: (C,).
        activation: As forward had it.
        training: Whether forward used the batch's statistics.
        eps: As forward had it.
        negative_slope: As forward had it.
        min_val: As forward had it.
        max_val: As forward had it.
        out: Where grad_input goes: of x's shape and dtype, without overlap with any argument; grad_output itself where
            nothing was added.

    Returns:
        grad_input of x's layout; grad_residual, likewise, None where nothing was added; grad_weight and grad_bias,
        (C,).
    """
    without = ("grad_residual",) if residual is None and mask is None else ()
    given = {**locals(), "activation": (activation, negative_slope, min_val, max_val)}
    grad_input, grad_residual, grad_weight, grad_bias = _run("activation_backward", given, out, without)
    return grad_input, grad_residual, grad_weight, grad_bias


def batch_norm_jvp(
    x_tangent: Array,
    x: Array,
    weight: Array | None,
    weight_tangent: Array | None,
    bias_tangent: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    eps: float = 1e-5,
) -> Array:
    """Forward-mode derivative: y's tangent, from those of x, weight and bias (None: 0).

    x_tangent is of x's shape and dtype; all else, and errors, as of `batch_norm_backward`.
    """
    return _run("jvp", locals())[0]


def batch_norm_double_backward(
    grad_grad_input: Array,
    grad_grad_weight: Array | None,
    grad_grad_bias: Array | None,
    grad_output: Array,
    x: Array,
    weight: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """What `batch_norm_backward`'s arguments get, from the gradients that reached its results (None: 0).

    Returns:
        Gradients of grad_output and x, of x's layout, and of weight, (C,).
    """
    grad_grad_output, grad_input, grad_weight = _run("double_backward", locals())
    return grad_grad_output, grad_input, grad_weight


def batch_norm_stats(x: Array) -> Moments:
    """The first half of forward training: this machine's moments of x, (N, C, ...)."""
    mean, m2 = _run("stats", locals())
    n, _, *spatial = shape_of(x, "x")
    return Moments(float(math.prod((n, *spatial))), mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of both samples together. In a fixed order of merging, results are the same bit for bit."""
    mean, m2 = copy_of_statistic(a.mean, "mean_a"), copy_of_statistic(a.m2, "m2_a")
    _core.merge_moments(b.mean, b.m2, mean, m2, mean.size, a.count, b.count)
    return Moments(a.count + b.count, mean, m2)


def mean_and_invstd(moments: Moments, *, eps: float = 1e-5) -> tuple[np.ndarray, np.ndarray]:
    """What backward needs of (merged) moments: (C,), float64."""
    channels = math.prod(shape_of(moments.mean, "mean"))
    mean, invstd = np.empty(channels), np.empty(channels)
    _core.finalize_moments(moments.mean, moments.m2, channels, moments.count, 0.0, eps, None, None, mean, invstd)
    return mean, invstd


def update_running_stats(moments: Moments, momentum: float, running_mean: Array, running_var: Array) -> None:
    """Moves the running statistics, (C,), towards (merged) moments, in place."""
    channels = math.prod(shape_of(moments.mean, "mean"))
    _core.finalize_moments(
        moments.mean, moments.m2, channels, moments.count, momentum, 1.0, running_mean, running_var, None, None
    )


def batch_norm_normalize(
    x: Array,
    moments: Moments,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float = 1e-5,
    out: Array | None = None,
) -> Array:
    """The second half of forward training: y, with the moments of all machines together."""
    total_count, mean, m2 = moments
    return _run("normalize", locals(), out)[0]


def batch_norm_backward_reduce(grad_output: Array, x: Array, mean: Array, invstd: Array) -> BackwardSums:
    """The first half of backward training: this machine's sums, which machines add up."""
    sum_dy, sum_dy_xmu, grad_weight, grad_bias = _run("backward_reduce", locals())
    return BackwardSums(sum_dy, sum_dy_xmu, grad_weight, grad_bias)


def batch_norm_backward_elemt(
    grad_output: Array,
    x: Array,
    mean: Array,
    invstd: Array,
    weight: Array | None,
    sum_dy: np.ndarray,
    sum_dy_xmu: np.ndarray,
    count: float,
    *,
    out: Array | None = None,
) -> Array:
    """The second half of backward training: grad_input, from all machines' sums over `count` values a channel."""
    total_count = count
    return _run("backward_elemt", locals(), out)[0]
