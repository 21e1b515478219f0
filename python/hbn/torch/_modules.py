"""Modules in place of torch.nn's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from hbn.torch._ops import (
    batch_norm_eager,
    batch_norm_profiled,
    batch_norm_traced,
    batch_norm_transformed,
    has_dispatch,
)

_tensor_classes = (Tensor, torch.nn.Parameter)
_is_profiled: Callable[[], bool] = torch._C._autograd._profiler_enabled


def _is_watched(
    x: Tensor,
    dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack,
    functorch: Callable[[], bool] = torch._C._are_functorch_transforms_active,
    jit_tracing: Callable[[], bool] = torch._C._is_tracing,
) -> bool:
    """Whether somebody wants to see operators: exporters, modes, transforms, tensor subclasses."""
    return type(x) not in _tensor_classes or dispatch_modes() > 0 or functorch() or jit_tracing()


def _knows_no_operators(x: Tensor) -> bool:
    """Whether x is of a class that may handle PyTorch's own operations alone: any that dispatches but its tracers."""
    return has_dispatch(x) and not isinstance(x, (FakeTensor, FunctionalTensor))


class _HbnBatchNorm(_BatchNorm):
    """What the modules have in common: forward. In front of one of torch.nn's in the order of inheritance."""

    def forward(self, input: Tensor) -> Tensor:
        """Batch normalization of (N, C, ...); see torch.nn.BatchNorm2d."""
        if isinstance(input, Proxy):
            # A leaf of torch.fx's traces, as torch.nn's modules are.
            tracer = input.tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), (input,), {})
        if not input.is_cpu or (type(input) not in _tensor_classes and _knows_no_operators(input)):
            return super().forward(input)
        self._check_input_dim(input)
        training, momentum = self.training, self.momentum
        if training and input.numel() == input.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        if torch.compiler.is_compiling() or _is_watched(input):
            return self._forward_watched(input)
        parameters, buffers = self._parameters, self._buffers
        try:
            # In their dictionaries, which is quicker.
            weight, bias = parameters["weight"], parameters["bias"]
            running_mean, running_var = buffers["running_mean"], buffers["running_var"]
            count = buffers["num_batches_tracked"]
        except KeyError:
            # Replicas and parametrizations keep them elsewhere.
            weight, bias = self.weight, self.bias
            running_mean, running_var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if not training:
            count = None
        elif not self.track_running_stats:
            running_mean = running_var = count = None
        if momentum is None and count is None:
            momentum = 0.0
        batch_norm = batch_norm_profiled if _is_profiled() else batch_norm_eager
        try:
            return batch_norm(
                input,
                weight,
                bias,
                running_mean,
                running_var,
                training,
                momentum,
                self.eps,
                count,
            )
        except BufferError:
            # A tensor whose memory only PyTorch can read: sparse, quantized, MKL-DNN's, or a wrapper.
            return super().forward(input)

    def _forward_watched(self, input: Tensor) -> Tensor:
        momentum = 0.0 if self.momentum is None else self.momentum
        tracks = not self.training or self.track_running_stats
        if self.training and tracks and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        # A compiler sees no transforms: it traces through them. Operators have no forward-mode derivative.
        transformed = not torch.compiler.is_compiling() and (
            torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        )
        batch_norm = batch_norm_transformed if transformed else batch_norm_traced
        return batch_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean if tracks else None,
            self.running_var if tracks else None,
            self.training,
            momentum,
            self.eps,
        )


class BatchNorm2d(_HbnBatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d by hbn's kernels: arguments, state and behaviour are that module's, of PyTorch 2.13.

    On the CPU, for float32, float64, bfloat16 and float16 input; on other devices it is PyTorch's own. Results agree
    with PyTorch's within rounding, and are right where PyTorch's are not: means that are large against the deviation,
    outliers.

    Shapes: (N, C, H, W) to the same, in the input's memory format.

    Raises:
        ValueError: Input of another rank, or with one value a channel in training, or sizes and dtypes that do not fit.
    """


class BatchNorm1d(_HbnBatchNorm, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d by hbn's kernels, for (N, C) and (N, C, L); see `BatchNorm2d`."""


class BatchNorm3d(_HbnBatchNorm, torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d by hbn's kernels, for (N, C, D, H, W); see `BatchNorm2d`.

    Input that is neither contiguous nor channels_last_3d is copied first.
    """
