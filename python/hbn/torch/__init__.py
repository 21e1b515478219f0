"""hbn's kernels in PyTorch: modules, and functions that put them into models.

    import hbn.torch
    model = hbn.torch.convert(model)   # every BatchNorm1d, 2d, 3d; train and save as before

The modules are subclasses of torch.nn's with the same state; autograd and torch.func (derivatives of every order and
mode), torch.compile, torch.export, autocast, deepcopy and pickle work as with those. Threads are as many as PyTorch's
(torch.set_num_threads).
"""

import torch as _torch

if not hasattr(_torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(f"hbn.torch needs PyTorch 2.10 or newer, this is {_torch.__version__}")

from hbn.torch._convert import convert, revert  # noqa: E402
from hbn.torch._fuse import fuse_conv_bn  # noqa: E402
from hbn.torch._modules import BatchNorm1d, BatchNorm2d, BatchNorm3d  # noqa: E402
from hbn.torch._record_shapes import RecordedCall, record_shapes  # noqa: E402

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "RecordedCall",
    "convert",
    "fuse_conv_bn",
    "record_shapes",
    "revert",
]
