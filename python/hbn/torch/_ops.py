"""Batch normalization for PyTorch: custom operators (torch.ops.hbn.*), and autograd functions for eager calls.

Both call the same kernels. A compiler sees operators; they return new running statistics instead of writing them. Eager
calls go by autograd functions straight to the kernels, since an operator written in Python costs several times what
PyTorch's own call does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _functorch
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad

from hbn import _core
from hbn._functional import set_num_threads, uses_batch_statistics
from hbn.torch import _composite

# ---- kernels

_threads_seen = -1


def _follow_num_threads(get_num_threads: Callable[[], int] = torch.get_num_threads) -> None:
    """Has hbn use as many threads as PyTorch, from when that number changes."""
    global _threads_seen
    threads = get_num_threads()
    if threads != _threads_seen:
        _threads_seen = threads
        set_num_threads(threads)


def _parameter_dtype(x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> torch.dtype:
    """Of gradients of parameters, and of what stands for those that are absent."""
    if weight is not None:
        return weight.dtype
    if bias is not None:
        return bias.dtype
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# Without a dtype to parse new_empty takes half as long.
_float64 = torch.empty(0, dtype=torch.float64, device="cpu")


def _flat(v: Tensor | None) -> Tensor | None:
    """(C,), of what may be (1, C, 1, 1)."""
    if v is None or v.dim() == 1:
        return v
    return v.squeeze() if v.numel() != 1 else v.reshape(1)


def _empty(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty(size) if x.dtype == dtype else x.new_empty(size, dtype=dtype)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _dense_format(x: Tensor) -> torch.memory_format | None:
    """The memory format that x fills without gaps, contiguous where it is both; None if it is neither."""
    if x.is_contiguous():
        return torch.contiguous_format
    channels_last = _CHANNELS_LAST.get(x.dim())
    return channels_last if channels_last and x.is_contiguous(memory_format=channels_last) else None


def _empty_output(x: Tensor) -> Tensor:
    """As PyTorch's batch normalization allocates. Strides of x itself may be any where it has a size of 1."""
    try:
        if x.is_contiguous():
            return torch.empty_like(x, memory_format=torch.contiguous_format)
        return torch.empty_like(x, memory_format=_dense_format(x) or suggest_memory_format(x))
    except RuntimeError as e:
        if x.layout != torch.strided:
            raise BufferError(f"x can't be lent: its layout is {x.layout}") from e
        raise


def _empty_grad_input(x: Tensor, grad_output: Tensor) -> Tensor:
    """Likewise for backward, which looks at grad_output, too, where x may be said to be of either format."""
    if x.is_contiguous():
        strides = x.stride()
        if len(strides) < 4 or strides[1] > strides[-1] or 1 not in x.shape:
            return torch.empty_like(x, memory_format=torch.contiguous_format)
    suggested = suggest_memory_format(x)
    if suggested != _dense_format(x) and _dense_format(grad_output) and suggest_memory_format(grad_output) == suggested:
        return _empty_output(x)
    return torch.empty_like(x, memory_format=suggested)


def _dense(x: Tensor) -> Tensor:
    """x itself where hbn knows its strides, else a copy."""
    if x.dim() > 4 and _dense_format(x) is None:
        return x.contiguous(memory_format=suggest_memory_format(x))
    return x


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y, and mean and invstd as rows of one float64 tensor; running statistics are written in training."""
    _follow_num_threads()
    y = _empty_output(x)
    if x.dim() > 4:
        x = _dense(x)
    saved = None
    if uses_batch_statistics(training, running_mean, running_var):
        saved = _float64.new_empty((2, x.shape[1]))
    _core.forward_and_count(
        x, weight, bias, running_mean, running_var, training, momentum, eps, y, saved, None, num_batches_tracked
    )
    return y, saved


def _backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    mask: tuple[bool, bool, bool],
    parameter_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    _follow_num_threads()
    grad_input = _empty_grad_input(x, grad_output) if mask[0] else None
    if x.dim() > 4:
        grad_output, x = _dense(grad_output), _dense(x)
    grad_weight = _empty(x, x.shape[1], parameter_dtype) if mask[1] else None
    grad_bias = _empty(x, x.shape[1], parameter_dtype) if mask[2] else None
    _core.backward(
        grad_output,
        x,
        weight,
        saved,
        None,
        running_mean,
        running_var,
        training,
        eps,
        grad_input,
        grad_weight,
        grad_bias,
    )
    return grad_input, grad_weight, grad_bias


def _jvp(
    x_tangent: Tensor,
    x: Tensor,
    weight: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    saved: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
) -> Tensor:
    _follow_num_threads()
    y_tangent = _empty_output(x)
    x = _dense(x)
    _core.jvp(
        _dense(x_tangent),
        x,
        weight,
        weight_tangent,
        bias_tangent,
        saved,
        None,
        running_mean,
        running_var,
        training,
        eps,
        y_tangent,
    )
    return y_tangent


def _double_backward(
    grad_grad_input: Tensor,
    grad_grad_weight: Tensor | None,
    grad_grad_bias: Tensor | None,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _follow_num_threads()
    grad_grad_output, grad_input = _empty_output(x), _empty_output(x)
    x = _dense(x)
    grad_weight = _empty(x, x.shape[1], _parameter_dtype(x, weight))
    _core.double_backward(
        _dense(grad_grad_input),
        grad_grad_weight,
        grad_grad_bias,
        _dense(grad_output),
        x,
        weight,
        saved,
        None,
        running_mean,
        running_var,
        training,
        eps,
        grad_grad_output,
        grad_input,
        grad_weight,
    )
    return grad_grad_output, grad_input, grad_weight


# ---- what kernels have no derivative for, and what transforms look into: PyTorch's own operations (_composite.py)


def _transforms() -> list[_functorch.TransformType]:
    """functorch's transforms that are active, outermost first."""
    return [interpreter.key() for interpreter in _functorch.get_interpreter_stack() or ()]


def _is_traced() -> bool:
    """Whether a mode, such as make_fx's, looks for PyTorch's operations."""
    return torch._C._len_torch_dispatch_stack() > 0


def has_dispatch(x: Tensor) -> bool:
    """Whether only x's class knows its elements: wrappers, DTensor."""
    return type(x).__torch_dispatch__ is not _no_dispatch


_no_dispatch = Tensor.__torch_dispatch__


def _need_operations(*tensors: Tensor | None) -> bool:
    """Whether any is what PyTorch's operations alone can read, as in the vmap that torch.autograd has for itself."""
    for t in tensors:
        if t is None:
            continue
        # The class first, which is quicker to see.
        if (type(t) is not Tensor and has_dispatch(t)) or _functorch.is_legacy_batchedtensor(t):
            return True
    return False


def _is_transformed_further(
    *gradients: Tensor | None, functorch: Callable[[], bool] = torch._C._are_functorch_transforms_active
) -> bool:
    """Whether a derivative, that of these, is itself looked into, by more than one torch.func.grad."""
    if forward_ad._current_level >= 0:
        return True
    if functorch() and _transforms() != [_functorch.TransformType.Grad]:
        return True
    return _need_operations(*gradients)


# They take what _backward and _jvp take, but have statistics from x: what was saved of them is no function of it.


def _composed_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor | None, _saved: Tensor | None, *others: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return _composite.backward(grad_output, x, weight, *others)


def _composed_jvp(
    x_tangent: Tensor,
    x: Tensor,
    weight: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    _saved: Tensor | None,
    *others: Any,
) -> Tensor:
    return _composite.jvp(x_tangent, x, weight, weight_tangent, bias_tangent, *others)


class _UpdateRunningStats(torch.autograd.Function):
    """Writes running statistics, which no derivative sees, beneath all transforms."""

    @staticmethod
    def forward(x, running_mean, running_var, momentum, num_batches_tracked):  # type: ignore[no-untyped-def]
        _forward(x, None, None, running_mean, running_var, True, momentum, 1.0, num_batches_tracked)
        return _nothing(x)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, _):  # type: ignore[no-untyped-def]
        return (None,) * 5

    @staticmethod
    def jvp(ctx, *_):  # type: ignore[no-untyped-def]
        return None

    @staticmethod
    def vmap(info, in_dims, *_):  # type: ignore[no-untyped-def]
        raise RuntimeError(
            "hbn: batch normalization in training can't write one set of running statistics for every sample of "
            "vmap: use track_running_stats=False, or eval()"
        )


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """y, differentiable any number of times, in either mode, and by every transform."""
    if training and _have_tangents(running_mean, running_var):
        raise RuntimeError("hbn: running statistics that training writes can't have tangents")
    batch_statistics = uses_batch_statistics(training, running_mean, running_var)
    y = _composite.forward(x, weight, bias, running_mean, running_var, batch_statistics, eps)
    if training and running_mean is not None and running_var is not None:
        if _is_traced() or _functorch.TransformType.Functionalize in _transforms():
            assert momentum is not None, "eager calls alone leave it to num_batches_tracked, and are not traced"
            _composite.update_running_stats(x, running_mean, running_var, momentum)
        else:
            _UpdateRunningStats.apply(x, running_mean, running_var, momentum, num_batches_tracked)
    return y


# ---- running statistics, by which there are no derivatives, as in PyTorch


def _refuse_derivatives_by(running_mean: Tensor | None, running_var: Tensor | None) -> None:
    for name, t in (("running_mean", running_mean), ("running_var", running_var)):
        if t is not None and _require_grad(t):
            _raise_not_differentiable(name)


def _raise_not_differentiable(name: str) -> NoReturn:
    raise RuntimeError(
        f"hbn: batch normalization is not differentiable with respect to argument '{name}'. "
        "This input cannot have requires_grad True."
    )


def _unwrapped(*tensors: Tensor | None) -> Iterator[Tensor]:
    """Each, and what is beneath functorch's wrappers around it."""
    for t in tensors:
        while t is not None:
            yield t
            t = _functorch.get_unwrapped(t) if _functorch.is_functorch_wrapped_tensor(t) else None


def _have_tangents(*tensors: Tensor | None) -> bool:
    return any(forward_ad.unpack_dual(t).tangent is not None for t in _unwrapped(*tensors))


def _require_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd, or a transform, watches any of them."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in _unwrapped(*tensors))


# ---- autograd functions, for eager calls


class _Backward(torch.autograd.Function):
    """Backward, differentiable once more."""

    @staticmethod
    def forward(ctx, *args):  # type: ignore[no-untyped-def]
        _save_for_double_backward(ctx, args, None)
        return _backward(*args)

    @staticmethod
    def backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias):  # type: ignore[no-untyped-def]
        return _differentiate_backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias)


class _BatchNorm(torch.autograd.Function):
    # What has no gradient comes in one piece, which costs less than each by itself.
    @staticmethod
    def forward(ctx, x, weight, bias, constants):  # type: ignore[no-untyped-def]
        running_mean, running_var, training, momentum, eps, num_batches_tracked = constants
        y, saved = _forward(x, weight, bias, running_mean, running_var, training, momentum, eps, num_batches_tracked)
        _save(ctx, x, weight, bias, saved, running_mean, running_var, eps)
        return y

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        differentiate: Callable[..., Any] = _backward
        if _is_transformed_further(grad_output):
            differentiate = _composed_backward
        elif torch.is_grad_enabled():
            differentiate = _Backward.apply
        return (*_gradients(ctx, grad_output, differentiate), None)

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, bias_tangent, *_):  # type: ignore[no-untyped-def]
        differentiate = _composed_jvp if _need_operations(x_tangent, weight_tangent, bias_tangent) else _jvp
        return _tangent(ctx, x_tangent, weight_tangent, bias_tangent, differentiate)


def _save(ctx, x, weight, bias, saved, running_mean, running_var, eps):  # type: ignore[no-untyped-def]
    # Running statistics are constants to a derivative, where they were used.
    if saved is not None:
        running_mean = running_var = None
    tensors = (x, weight, saved, running_mean, running_var)
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)
    ctx.dtype, ctx.eps = _parameter_dtype(x, weight, bias), eps


def _save_call(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, running_mean, running_var, training, _, eps = inputs
    saved = output[1] if uses_batch_statistics(training, running_mean, running_var) else None
    _save(ctx, x, weight, bias, saved, running_mean, running_var, eps)


def _gradients(ctx, grad_output, differentiate):  # type: ignore[no-untyped-def]
    x, weight, saved, running_mean, running_var = ctx.saved_tensors
    return differentiate(
        grad_output,
        x,
        weight,
        saved,
        running_mean,
        running_var,
        saved is not None,
        ctx.eps,
        ctx.needs_input_grad[:3],
        ctx.dtype,
    )


def _tangent(ctx, x_tangent, weight_tangent, bias_tangent, jvp=_jvp):  # type: ignore[no-untyped-def]
    x, weight, saved, running_mean, running_var = ctx.saved_tensors
    if x_tangent is None:
        x_tangent = torch.zeros_like(x)
    return jvp(
        x_tangent,
        x,
        weight,
        weight_tangent,
        bias_tangent,
        saved,
        running_mean,
        running_var,
        saved is not None,
        ctx.eps,
    )


class _TransformedBackward(torch.autograd.Function):
    """`_Backward` in the form that functorch's transforms take."""

    @staticmethod
    def forward(*args):  # type: ignore[no-untyped-def]
        return _backward(*args)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        _save_for_double_backward(ctx, inputs, output)

    @staticmethod
    def backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias):  # type: ignore[no-untyped-def]
        # An operator, since what is saved is wrapped where transforms are nested.
        return _differentiate_backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias)


class _TransformedBatchNorm(torch.autograd.Function):
    """`_BatchNorm` in that form, which takes longer to call. What is saved must be a result."""

    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, training, momentum, eps):  # type: ignore[no-untyped-def]
        y, saved = _forward(x, weight, bias, running_mean, running_var, training, momentum, eps)
        return y, _nothing(x) if saved is None else saved

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output[1])
        _save_call(ctx, inputs, output)

    @staticmethod
    def backward(ctx, grad_output, _):  # type: ignore[no-untyped-def]
        differentiate = _composed_backward if _is_transformed_further(grad_output) else _TransformedBackward.apply
        return (*_gradients(ctx, grad_output, differentiate), None, None, None, None, None)

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, bias_tangent, *_):  # type: ignore[no-untyped-def]
        # An operator, since tangents and what is saved are wrapped here.
        return _tangent(ctx, x_tangent, weight_tangent, bias_tangent, torch.ops.hbn.batch_norm_jvp), None


# Function.apply looks for functorch's transforms first, which take a quarter of a small call, and which
# batch_norm_eager's callers have looked for.
_apply = super(torch.autograd.Function, _BatchNorm).apply


def batch_norm_eager(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    num_batches_tracked: Tensor | None,
    is_grad_enabled: Callable[[], bool] = torch.is_grad_enabled,
) -> Tensor:
    """y. In training num_batches_tracked is counted up, and a momentum of None is 1 / that.

    Not under functorch's transforms.
    """
    requires_grad = False
    if is_grad_enabled():
        if running_mean is not None and running_var is not None:
            if running_mean.requires_grad or running_var.requires_grad:
                _refuse_derivatives_by(running_mean, running_var)
        requires_grad = (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
        )
    is_dual = forward_ad._current_level >= 0
    if is_dual and (requires_grad or _have_tangents(running_mean, running_var)):
        return _composed(x, weight, bias, running_mean, running_var, training, momentum, eps, num_batches_tracked)
    if requires_grad:
        if (not x.requires_grad and x.is_inference()) or (weight is not None and weight.is_inference()):
            # Autograd would say so only after statistics have been written.
            raise RuntimeError(
                "hbn: inference tensors can't be saved for backward: clone() them outside of inference_mode"
            )
    if requires_grad or is_dual:
        if weight is not None and weight.dim() != 1:
            weight = _flat(weight)
        if bias is not None and bias.dim() != 1:
            bias = _flat(bias)
        constants = (running_mean, running_var, training, momentum, eps, num_batches_tracked)
        return _apply(x, weight, bias, constants)  # type: ignore[no-any-return]
    return _forward(x, weight, bias, running_mean, running_var, training, momentum, eps, num_batches_tracked)[0]


def batch_norm_profiled(*args: Any) -> Tensor:
    """`batch_norm_eager`, as an event that PyTorch's profilers see."""
    with torch.autograd.profiler.record_function("hbn::batch_norm"):
        return batch_norm_eager(*args)


def batch_norm_transformed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """y, under functorch's transforms: by kernels under one torch.func.grad, vjp or jvp."""
    _refuse_derivatives_by(running_mean, running_var)
    transforms = _transforms()
    one = len(transforms) == 1
    reverse = one and transforms[0] == _functorch.TransformType.Grad and forward_ad._current_level < 0
    forward = one and transforms[0] == _functorch.TransformType.Jvp and not _require_grad(x, weight, bias)
    if not (reverse or forward) or _is_traced() or _have_tangents(running_mean, running_var):
        return _composed(x, weight, bias, running_mean, running_var, training, momentum, eps)
    return _TransformedBatchNorm.apply(  # type: ignore[no-any-return]
        x, _flat(weight), _flat(bias), running_mean, running_var, training, momentum, eps
    )[0]


# ---- operators, for compilers

_library = torch.library.Library("hbn", "DEF")
_STATISTICS = "Tensor? saved, Tensor? running_mean, Tensor? running_var, bool training, float eps"
_library.define(
    "batch_norm_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
    "bool training, float momentum, float eps) -> (Tensor y, Tensor saved, Tensor running_mean, Tensor running_var)"
)
_library.define(
    f"batch_norm_backward(Tensor grad_output, Tensor x, Tensor? weight, {_STATISTICS}, bool[3] grad_mask, "
    "ScalarType dtype) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
)
_library.define(
    "batch_norm_double_backward(Tensor grad_grad_input, Tensor? grad_grad_weight, Tensor? grad_grad_bias, "
    f"Tensor grad_output, Tensor x, Tensor? weight, {_STATISTICS}) "
    "-> (Tensor grad_grad_output, Tensor grad_input, Tensor grad_weight)"
)
_library.define(
    "batch_norm_jvp(Tensor x_tangent, Tensor x, Tensor? weight, Tensor? weight_tangent, Tensor? bias_tangent, "
    f"{_STATISTICS}) -> Tensor y_tangent"
)


def _nothing(x: Tensor) -> Tensor:
    """Stands for an absent result: operators return tensors."""
    return x.new_empty(0)


def _forward_operator(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new_mean = None if running_mean is None else running_mean.clone()
    new_var = None if running_var is None else running_var.clone()
    y, saved = _forward(x, weight, bias, new_mean, new_var, training, momentum, eps)
    return tuple(_nothing(x) if t is None else t for t in (y, saved, new_mean, new_var))  # type: ignore[return-value]


def _forward_shapes(x, weight, bias, running_mean, running_var, training, momentum, eps):  # type: ignore[no-untyped-def]
    saved = _nothing(x)
    if uses_batch_statistics(training, running_mean, running_var):
        saved = x.new_empty((2, x.shape[1]), dtype=torch.float64)
    running = [_nothing(x) if t is None else torch.empty_like(t) for t in (running_mean, running_var)]
    return _empty_output(x), saved, *running


def _backward_operator(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(_nothing(args[1]) if t is None else t for t in _backward(*args))  # type: ignore[return-value]


def _backward_shapes(grad_output, x, weight, saved, running_mean, running_var, training, eps, mask, dtype):  # type: ignore[no-untyped-def]
    of_channels = [x.new_empty(x.shape[1] if wanted else 0, dtype=dtype) for wanted in mask[1:]]
    return _empty_grad_input(x, grad_output) if mask[0] else _nothing(x), *of_channels


def _double_backward_shapes(ddx, ddw, ddb, grad_output, x, weight, *_):  # type: ignore[no-untyped-def]
    return _empty_output(x), _empty_output(x), _empty(x, x.shape[1], _parameter_dtype(x, weight))


def _save_for_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    for name, is_wanted in zip(("running_mean", "running_var"), ctx.needs_input_grad[3:5], strict=True):
        if is_wanted:
            _raise_not_differentiable(name)
    _save_call(ctx, inputs, output)
    ctx.set_materialize_grads(False)


def _differentiate_forward(ctx, grad_output, *_):  # type: ignore[no-untyped-def]
    if grad_output is None:
        return (None,) * 8
    gradients = _gradients(ctx, grad_output, torch.ops.hbn.batch_norm_backward)
    wanted = (g if m else None for g, m in zip(gradients, ctx.needs_input_grad[:3], strict=True))
    return (*wanted, None, None, None, None, None)


def _save_for_double_backward(ctx, inputs, output):  # type: ignore[no-untyped-def]
    grad_output, x, weight, saved, running_mean, running_var, training, eps, _, _ = inputs
    ctx.save_for_backward(grad_output, x, weight, saved, running_mean, running_var)
    ctx.training, ctx.eps = training, eps
    ctx.set_materialize_grads(False)


def _differentiate_backward(ctx, grad_grad_input, grad_grad_weight, grad_grad_bias):  # type: ignore[no-untyped-def]
    grad_output, x, weight, saved, running_mean, running_var = ctx.saved_tensors
    if torch.is_grad_enabled() or _is_transformed_further(grad_grad_input, grad_grad_weight, grad_grad_bias):
        gradients = _composite.double_backward(
            grad_grad_input,
            grad_grad_weight,
            grad_grad_bias,
            grad_output,
            x,
            weight,
            running_mean,
            running_var,
            ctx.training,
            ctx.eps,
        )
        return (*gradients, *(None,) * 7)
    if grad_grad_input is None:
        grad_grad_input = torch.zeros_like(x)
    gradients = torch.ops.hbn.batch_norm_double_backward(
        grad_grad_input,
        grad_grad_weight,
        grad_grad_bias,
        grad_output,
        x,
        weight,
        saved,
        running_mean,
        running_var,
        ctx.training,
        ctx.eps,
    )
    return (*gradients[:2], None if weight is None else gradients[2], *(None,) * 7)


_library.impl("batch_norm_forward", _forward_operator, "CPU")
_library.impl("batch_norm_backward", _backward_operator, "CPU")
_library.impl("batch_norm_double_backward", _double_backward, "CPU")
_library.impl("batch_norm_jvp", _jvp, "CPU")
torch.library.register_fake("hbn::batch_norm_forward", _forward_shapes, lib=_library)
torch.library.register_fake("hbn::batch_norm_backward", _backward_shapes, lib=_library)
torch.library.register_fake("hbn::batch_norm_double_backward", _double_backward_shapes, lib=_library)
torch.library.register_fake("hbn::batch_norm_jvp", lambda x_tangent, x, *_: _empty_output(x), lib=_library)
torch.library.register_autograd(
    "hbn::batch_norm_forward", _differentiate_forward, setup_context=_save_for_backward, lib=_library
)
torch.library.register_autograd(
    "hbn::batch_norm_backward", _differentiate_backward, setup_context=_save_for_double_backward, lib=_library
)


def _has_no_derivative(ctx, *_):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "hbn: torch.ops.hbn's batch_norm_jvp and batch_norm_double_backward have no derivatives; "
        "hbn.torch's modules have them, of every order"
    )


for _operator in ("batch_norm_jvp", "batch_norm_double_backward"):
    torch.library.register_autograd(f"hbn::{_operator}", _has_no_derivative, lib=_library)


def batch_norm_traced(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """y. In training running statistics are written, as an operation that the compiler sees."""
    y, _, new_mean, new_var = torch.ops.hbn.batch_norm_forward(
        x, _flat(weight), _flat(bias), running_mean, running_var, training, momentum, eps
    )
    if training and running_mean is not None and running_var is not None:
        running_mean.copy_(new_mean.detach())
        running_var.copy_(new_var.detach())
    return y  # type: ignore[no-any-return]
