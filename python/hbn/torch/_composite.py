"""Batch normalization, and its backward, composed of PyTorch's own operations, in float64.

Slower than kernels, but differentiable any number of times, in either mode, and seen through by every transform: what
takes over where hbn has no kernel for a derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _of_channels(v: Tensor, x: Tensor) -> Tensor:
    """(C,) in the shape that broadcasts over x."""
    return v.double().reshape(1, -1, *(1,) * (x.dim() - 2))


def _reduced(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _normalized(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, batch_statistics: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """x less its mean, times invstd; and invstd."""
    wide = x.double()
    if batch_statistics:
        centered = wide - wide.mean(_reduced(x), keepdim=True)
        variance = centered.square().mean(_reduced(x), keepdim=True)
    else:
        assert running_mean is not None and running_var is not None
        centered, variance = wide - _of_channels(running_mean, x), _of_channels(running_var, x)
    invstd = (variance + eps).rsqrt()
    return centered * invstd, invstd


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batch_statistics: bool,
    eps: float,
) -> Tensor:
    """y."""
    y, _ = _normalized(x, running_mean, running_var, batch_statistics, eps)
    if weight is not None:
        y = y * _of_channels(weight, x)
    if bias is not None:
        y = y + _of_channels(bias, x)
    return y.to(x.dtype)


@torch.no_grad()
def update_running_stats(x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float) -> None:
    """Written in place."""
    wide = x.detach().double()
    variance, mean = torch.var_mean(wide, _reduced(x), correction=1)
    for running, batch in ((running_mean, mean), (running_var, variance)):
        running.copy_(((1 - momentum) * running.double() + momentum * batch).to(running.dtype))


class _Projection:
    """v less its parts along 1 and along normalized x, or v itself where statistics are constants. Its own adjoint."""

    def __init__(self, normalized: Tensor, batch_statistics: bool) -> None:
        self.normalized, self.batch_statistics = normalized, batch_statistics

    def mean(self, v: Tensor) -> Tensor:
        return v.mean(_reduced(v), keepdim=True)

    def __call__(self, v: Tensor) -> Tensor:
        if not self.batch_statistics:
            return v
        return v - self.mean(v) - self.normalized * self.mean(v * self.normalized)


def backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batch_statistics: bool,
    eps: float,
    mask: Sequence[bool],
    parameter_dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that `mask` asks for."""
    normalized, invstd = _normalized(x, running_mean, running_var, batch_statistics, eps)
    dy = grad_output.double()
    grad_input = grad_weight = grad_bias = None
    if mask[0]:
        scale = invstd if weight is None else invstd * _of_channels(weight, x)
        grad_input = (scale * _Projection(normalized, batch_statistics)(dy)).to(x.dtype)
    if mask[1]:
        grad_weight = (dy * normalized).sum(_reduced(x)).to(parameter_dtype)
    if mask[2]:
        grad_bias = dy.sum(_reduced(x)).to(parameter_dtype)
    return grad_input, grad_weight, grad_bias


def jvp(
    x_tangent: Tensor,
    x: Tensor,
    weight: Tensor | None,
    weight_tangent: Tensor | None,
    bias_tangent: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batch_statistics: bool,
    eps: float,
) -> Tensor:
    """The tangent of y."""
    normalized, invstd = _normalized(x, running_mean, running_var, batch_statistics, eps)
    tangent = invstd * _Projection(normalized, batch_statistics)(x_tangent.double())
    if weight is not None:
        tangent = tangent * _of_channels(weight, x)
    if weight_tangent is not None:
        tangent = tangent + normalized * _of_channels(weight_tangent, x)
    if bias_tangent is not None:
        tangent = tangent + _of_channels(bias_tangent, x)
    return tangent.to(x.dtype)


def double_backward(
    grad_grad_input: Tensor | None,
    grad_grad_weight: Tensor | None,
    grad_grad_bias: Tensor | None,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batch_statistics: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of backward's grad_output, x and weight."""
    normalized, invstd = _normalized(x, running_mean, running_var, batch_statistics, eps)
    project = _Projection(normalized, batch_statistics)
    dy = grad_output.double()
    ddx = torch.zeros_like(dy) if grad_grad_input is None else grad_grad_input.double()
    scale = invstd if weight is None else invstd * _of_channels(weight, x)
    grad_grad_output = scale * project(ddx)
    # By normalized x, of which backward's results are functions, too.
    by_normalized = torch.zeros_like(dy)
    if grad_grad_weight is not None:
        ddw = _of_channels(grad_grad_weight, x)
        grad_grad_output = grad_grad_output + ddw * normalized
        by_normalized = ddw * dy
    if grad_grad_bias is not None:
        grad_grad_output = grad_grad_output + _of_channels(grad_grad_bias, x)
    products = ddx * project(dy)
    if batch_statistics:
        mean = project.mean
        by_normalized = by_normalized - scale * (ddx * mean(dy * normalized) + dy * mean(ddx * normalized))
        grad_input = invstd * (project(by_normalized) - scale * normalized * mean(products))
    else:
        grad_input = invstd * by_normalized
    grad_weight = None if weight is None else (invstd * products).sum(_reduced(x)).to(weight.dtype)
    return grad_grad_output.to(grad_output.dtype), grad_input.to(x.dtype), grad_weight
