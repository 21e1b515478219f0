"""The operations on arrays of any library."""

from typing import NamedTuple

import numpy as np

from hbn import _core
from hbn._arrays import Array, Maker, dtype_name, maker_for, statistic_dtype


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


def _channels(x: Array) -> int:
    shape: tuple[int, ...] = getattr(x, "shape", ())
    return int(shape[1]) if len(shape) > 1 else 0


def uses_batch_statistics(training: bool, running_mean: Array | None, running_var: Array | None) -> bool:
    """Whether forward normalizes with the batch's statistics, and gives them for backward."""
    return training or (running_mean is None and running_var is None)


def _statistics(maker: Maker, x: Array, dtype: str, wanted: bool) -> tuple[Array | None, Array | None]:
    if not wanted:
        return None, None
    return maker.empty((_channels(x),), dtype), maker.empty((_channels(x),), dtype)


def _result(maker: Maker, array: Array | None, out: Array | None) -> Array:
    # The user's own array, or one that was made in its place.
    return array if array is out else maker.finish(array)


def _parameter_gradients(
    maker: Maker, x: Array, weight: Array | None, wanted: tuple[bool, ...]
) -> tuple[Array | None, Array | None]:
    dtype = statistic_dtype(x) if weight is None else dtype_name(weight)
    grad_weight, grad_bias = (maker.empty((_channels(x),), dtype) if want else None for want in wanted)
    return grad_weight, grad_bias


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
    return batch_norm_forward(
        x, weight, bias, running_mean, running_var, training=training, momentum=momentum, eps=eps
    )[0]


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
        y, of x's layout (or `out`), and mean and invstd = 1 / sqrt(var + eps), (C,), which backward needs: None where
        running statistics were used.

    Raises:
        ValueError: Shapes, dtypes, overlaps, eps or momentum that do not fit, in PyTorch's words where it has them.
        TypeError: An argument that is no array, or of a dtype that hbn does not know.
    """
    maker, x = maker_for(x)
    y = maker.empty_like(x) if out is None else out
    wanted = uses_batch_statistics(training, running_mean, running_var)
    mean, invstd = _statistics(maker, x, statistic_dtype(x), wanted)
    _core.forward(x, weight, bias, running_mean, running_var, training, momentum, eps, y, mean, invstd)
    return _result(maker, y, out), maker.finish(mean), maker.finish(invstd)


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
    """
    maker, x = maker_for(x)
    out = out if grad_mask[0] else None
    grad_input = maker.empty_like(x) if grad_mask[0] and out is None else out
    grad_weight, grad_bias = _parameter_gradients(maker, x, weight, grad_mask[1:])
    _core.backward(
        grad_output,
        x,
        weight,
        mean,
        invstd,
        running_mean,
        running_var,
        training,
        eps,
        grad_input,
        grad_weight,
        grad_bias,
    )
    return _result(maker, grad_input, out), maker.finish(grad_weight), maker.finish(grad_bias)


def batch_norm_relu_forward(
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
    """relu(batch_norm(x)) in one pass over memory.

    Arguments, results and errors as of `batch_norm_forward`, but that mean and invstd are float64 whatever x's dtype:
    with them backward finds again which elements passed.
    """
    maker, x = maker_for(x)
    y = maker.empty_like(x) if out is None else out
    wanted = uses_batch_statistics(training, running_mean, running_var)
    mean, invstd = _statistics(maker, x, "float64", wanted)
    _core.relu_forward(x, None, weight, bias, running_mean, running_var, training, momentum, eps, y, None, mean, invstd)
    return _result(maker, y, out), maker.finish(mean), maker.finish(invstd)


def batch_norm_relu_backward(
    grad_output: Array,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm_relu_forward`'s x, weight and bias.

    Arguments, results and errors as of `batch_norm_backward`; bias is needed to find what passed, and all three
    gradients are computed.
    """
    maker, x = maker_for(x)
    grad_input = maker.empty_like(x) if out is None else out
    grad_weight, grad_bias = _parameter_gradients(maker, x, weight, (True, True))
    _core.relu_backward(
        grad_output,
        x,
        None,
        weight,
        bias,
        mean,
        invstd,
        running_mean,
        running_var,
        training,
        eps,
        grad_input,
        None,
        grad_weight,
        grad_bias,
    )
    return _result(maker, grad_input, out), maker.finish(grad_weight), maker.finish(grad_bias)


def batch_norm_add_relu_forward(
    x: Array,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out: Array | None = None,
) -> tuple[Array, Array, Array | None, Array | None]:
    """relu(batch_norm(x) + residual) in one pass over memory, as residual networks end a block.

    Arguments and errors as of `batch_norm_relu_forward`; residual is of x's shape and dtype.

    Returns:
        y; mask, uint8 of x's shape and layout, 1 where an element passed, for backward; mean and invstd as there.
    """
    maker, x = maker_for(x)
    y = maker.empty_like(x) if out is None else out
    mask = maker.empty_like(x, "uint8")
    wanted = uses_batch_statistics(training, running_mean, running_var)
    mean, invstd = _statistics(maker, x, "float64", wanted)
    _core.relu_forward(
        x, residual, weight, bias, running_mean, running_var, training, momentum, eps, y, mask, mean, invstd
    )
    return _result(maker, y, out), maker.finish(mask), maker.finish(mean), maker.finish(invstd)


def batch_norm_add_relu_backward(
    grad_output: Array,
    x: Array,
    mask: Array,
    weight: Array | None,
    mean: Array | None,
    invstd: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    *,
    training: bool,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of `batch_norm_add_relu_forward`'s x, residual, weight and bias.

    Arguments and errors as of `batch_norm_relu_backward`, with the mask that forward gave instead of the bias.
    """
    maker, x = maker_for(x)
    grad_input, grad_residual = maker.empty_like(x), maker.empty_like(x)
    grad_weight, grad_bias = _parameter_gradients(maker, x, weight, (True, True))
    _core.relu_backward(
        grad_output,
        x,
        mask,
        weight,
        None,
        mean,
        invstd,
        running_mean,
        running_var,
        training,
        eps,
        grad_input,
        grad_residual,
        grad_weight,
        grad_bias,
    )
    return (
        maker.finish(grad_input),
        maker.finish(grad_residual),
        maker.finish(grad_weight),
        maker.finish(grad_bias),
    )


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
    maker, x = maker_for(x)
    y_tangent = maker.empty_like(x)
    _core.jvp(
        x_tangent,
        x,
        weight,
        weight_tangent,
        bias_tangent,
        mean,
        invstd,
        running_mean,
        running_var,
        training,
        eps,
        y_tangent,
    )
    return maker.finish(y_tangent)


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
    maker, x = maker_for(x)
    grad_grad_output, grad_input = maker.empty_like(x), maker.empty_like(x)
    grad_weight, _ = _parameter_gradients(maker, x, weight, (True, False))
    _core.double_backward(
        grad_grad_input,
        grad_grad_weight,
        grad_grad_bias,
        grad_output,
        x,
        weight,
        mean,
        invstd,
        running_mean,
        running_var,
        training,
        eps,
        grad_grad_output,
        grad_input,
        grad_weight,
    )
    return maker.finish(grad_grad_output), maker.finish(grad_input), maker.finish(grad_weight)


def batch_norm_stats(x: Array) -> Moments:
    """The first half of forward training: this machine's moments of x, (N, C, ...)."""
    _, x = maker_for(x)
    mean, m2 = np.empty(_channels(x)), np.empty(_channels(x))
    return Moments(_core.stats(x, mean, m2), mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of both samples together. In a fixed order of merging, results are the same bit for bit."""
    mean, m2 = np.array(a.mean, dtype=np.float64), np.array(a.m2, dtype=np.float64)
    count = _core.merge_moments(a.count, mean, m2, b.count, b.mean, b.m2, mean.size)
    return Moments(count, mean, m2)


def mean_and_invstd(moments: Moments, *, eps: float = 1e-5, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """What backward needs of (merged) moments, (C,); dtype is float64 beside float64 tensors, else float32."""
    mean, invstd = np.empty(moments.mean.size, dtype), np.empty(moments.mean.size, dtype)
    _core.finalize_moments(
        moments.count, moments.mean, moments.m2, moments.mean.size, 0.0, eps, None, None, mean, invstd
    )
    return mean, invstd


def update_running_stats(moments: Moments, momentum: float, running_mean: Array, running_var: Array) -> None:
    """Moves the running statistics, (C,), towards (merged) moments, in place."""
    _core.finalize_moments(
        moments.count,
        moments.mean,
        moments.m2,
        moments.mean.size,
        momentum,
        1.0,
        running_mean,
        running_var,
        None,
        None,
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
    maker, x = maker_for(x)
    y = maker.empty_like(x) if out is None else out
    _core.normalize(x, moments.count, moments.mean, moments.m2, weight, bias, eps, y)
    return _result(maker, y, out)


def batch_norm_backward_reduce(grad_output: Array, x: Array, mean: Array, invstd: Array) -> BackwardSums:
    """The first half of backward training: this machine's sums, which machines add up."""
    maker, x = maker_for(x)
    sum_dy, sum_dy_xmu = np.empty(_channels(x)), np.empty(_channels(x))
    grad_weight, grad_bias = _parameter_gradients(maker, x, None, (True, True))
    _core.backward_reduce(grad_output, x, mean, invstd, sum_dy, sum_dy_xmu, grad_weight, grad_bias)
    return BackwardSums(sum_dy, sum_dy_xmu, maker.finish(grad_weight), maker.finish(grad_bias))


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
    maker, x = maker_for(x)
    grad_input = maker.empty_like(x) if out is None else out
    _core.backward_elemt(grad_output, x, mean, invstd, weight, sum_dy, sum_dy_xmu, count, grad_input)
    return _result(maker, grad_input, out)
