"""Modules in place of torch.nn's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from hbn.torch._ops import batch_norm_eager, batch_norm_traced, dense


def _is_traced(x: Tensor) -> bool:
    """Whether somebody watches what operators are called: compilers, exporters, modes, tensor subclasses."""
    return (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        and type(x) is not torch.nn.Parameter
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


class _HbnBatchNorm:
    """What the modules have in common: forward. In front of one of torch.nn's in the order of inheritance."""

    def forward(self, input: Tensor) -> Tensor:
        """Batch normalization of (N, C, ...); see torch.nn.BatchNorm2d."""
        if input.device.type != "cpu":
            return super().forward(input)  # type: ignore[misc,no-any-return]
        self._check_input_dim(input)
        training, momentum, count = self.training, self.momentum, None
        running_mean, running_var = self.running_mean, self.running_var
        if training:
            if not self.track_running_stats:
                running_mean = running_var = None
            else:
                count = self.num_batches_tracked
            if momentum is None and count is None:
                momentum = 0.0
            if input.dim() > 1 and input.numel() == input.shape[1]:
                raise ValueError(
                    f"Expected more than 1 value per channel when training, got input size {input.size()}"
                )
        elif momentum is None:
            momentum = 0.0
        if not _is_traced(input):
            return batch_norm_eager(
                dense(input),
                self.weight,
                self.bias,
                running_mean,
                running_var,
                training,
                momentum,
                self.eps,
                count,
            )
        if count is not None:
            count.add_(1)
            if momentum is None:
                momentum = 1.0 / float(count)
        return batch_norm_traced(
            dense(input), self.weight, self.bias, running_mean, running_var, training, momentum, self.eps
        )


class BatchNorm2d(_HbnBatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d by hbn's kernels: arguments, state and behaviour are that module's, of PyTorch 2.13.

    On the CPU, for float32, float64, bfloat16 and float16 input; on other devices it is PyTorch's own. Results agree with
    PyTorch's within rounding, and are right where PyTorch's are not: means that are large against the deviation, outliers.

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
