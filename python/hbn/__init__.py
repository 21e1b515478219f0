"""Batch normalization as PyTorch's BatchNorm2d documents it, by ahead-of-time compiled Halide kernels.

The functions here take NumPy arrays (with ml_dtypes' bfloat16, too), PyTorch tensors, JAX arrays, and whatever else has
`__dlpack__` or the buffer protocol, in any mixture, without copying them; results are of x's library, NumPy's where it
has none. They need NumPy alone.

- `hbn.torch`: modules to put in place of PyTorch's, with autograd; `hbn.torch.convert(model)`.
- `hbn.onnx`: ONNX's BatchNormalization for onnx.reference's evaluator.

Tensors are (N, C, ...), of two dimensions or more, dtype float32, float64, bfloat16 or float16, with any non-negative
strides; channels_last has kernels of its own. Parameters, running statistics and their gradients, (C,), are float32
(float64 beside float64 tensors), or the tensor's own dtype; mean and invstd are float64 beside every dtype. Everything
is checked before anything is written: ValueError says what is wrong, TypeError that something is no array of a known
dtype, BufferError that an array does not lend its memory. No function is differentiable by itself: hbn.torch is what
autograd sees.
"""

from hbn._core import get_num_threads, instruction_set, instruction_sets, set_instruction_set
from hbn._core import version as _version
from hbn._functional import (
    BackwardSums,
    Moments,
    batch_norm,
    batch_norm_activation_backward,
    batch_norm_activation_forward,
    batch_norm_backward,
    batch_norm_backward_elemt,
    batch_norm_backward_reduce,
    batch_norm_double_backward,
    batch_norm_forward,
    batch_norm_jvp,
    batch_norm_normalize,
    batch_norm_stats,
    mean_and_invstd,
    merge_moments,
    set_num_threads,
    update_running_stats,
)

__version__ = _version()

__all__ = [
    "BackwardSums",
    "Moments",
    "batch_norm",
    "batch_norm_activation_backward",
    "batch_norm_activation_forward",
    "batch_norm_backward",
    "batch_norm_backward_elemt",
    "batch_norm_backward_reduce",
    "batch_norm_double_backward",
    "batch_norm_forward",
    "batch_norm_jvp",
    "batch_norm_normalize",
    "batch_norm_stats",
    "get_num_threads",
    "instruction_set",
    "instruction_sets",
    "mean_and_invstd",
    "merge_moments",
    "set_instruction_set",
    "set_num_threads",
    "update_running_stats",
]
