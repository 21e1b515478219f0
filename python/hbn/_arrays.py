"""Allocation of results in the library that an argument is of."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hbn import _core

Array = Any
"""NumPy's array, or anything that lends memory by `__dlpack__` or the buffer protocol."""

_FLOATS = frozenset(("float32", "float64", "bfloat16", "float16"))


class Maker(Protocol):
    """Makes uninitialized arrays for the kernels to fill, and gives them the form that the user gets."""

    def empty_like(self, x: Array, dtype: str | None = None) -> Array:
        """Of x's shape and memory layout."""

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Dense."""

    def finish(self, array: Array) -> Array:
        """What the user gets."""


class _Numpy:
    def empty_like(self, x: Array, dtype: str | None = None) -> Array:
        if not isinstance(x, np.ndarray):
            # Of the same strides, in memory that is never read.
            shape, strides, own_dtype = _core.describe(x, "x")
            element = self.empty((), dtype or own_dtype)
            strides = tuple(stride * element.itemsize for stride in strides)
            return np.empty_like(np.lib.stride_tricks.as_strided(element, shape, strides))
        # A subclass may stand for more than memory, as np.memmap does.
        return np.empty_like(x, dtype=dtype, subok=False)

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        if dtype == "bfloat16":
            import ml_dtypes

            return np.empty(shape, ml_dtypes.bfloat16)
        return np.empty(shape, dtype)

    def finish(self, array: Array) -> Array:
        return array


class _Torch:
    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def empty_like(self, x: Array, dtype: str | None = None) -> Array:
        return self._torch.empty_like(x, dtype=dtype and getattr(self._torch, dtype))

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype))

    def finish(self, array: Array) -> Array:
        return array


class _Standard(_Numpy):
    """Libraries of the Python array API standard, whose arrays may be immutable: made by NumPy."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def finish(self, array: Array) -> Array:
        if array is None:
            return None
        dtype = dtype_name(array, "result")
        # NumPy lends no bfloat16 by DLPack.
        taken = (self._namespace.asarray if dtype == "bfloat16" else self._namespace.from_dlpack)(array)
        # Where the library has no float64, mean and invstd stay NumPy's: rounded, they would be of no use.
        return taken if dtype_name(taken, "result") == dtype else array


_numpy = _Numpy()


def _is_torch_tensor(x: Array) -> bool:
    # Another thread may be importing it.
    return isinstance(x, getattr(sys.modules.get("torch"), "Tensor", ()))


def maker_for(x: Array) -> Maker:
    """What makes arrays of x's library, NumPy's where that is not known."""
    if isinstance(x, np.ndarray):
        return _numpy
    if x is None:
        raise ValueError("x is required")
    if _is_torch_tensor(x):
        torch = sys.modules["torch"]
        if x.layout != torch.strided:
            raise BufferError(f"x can't be lent: its layout is {x.layout}")
        return _Torch(torch)
    if hasattr(x, "__array_namespace__"):
        return _Standard(x.__array_namespace__())
    # Whatever is no array is left for _core to refuse.
    return _numpy


def shape_of(x: Array, name: str) -> tuple[int, ...]:
    """Of an argument of this name, also where what lends memory has no shape itself."""
    shape = getattr(x, "shape", None)
    return shape if isinstance(shape, tuple) else _core.describe(x, name)[0]


def dtype_name(x: Array, name: str) -> str:
    """Such as "float32", of an argument of this name; TypeError for what hbn doesn't know."""
    dtype = getattr(x, "dtype", None)
    known = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
    return known if known in _FLOATS else _core.describe(x, name)[2]


def statistic_dtype(x: Array) -> str:
    """What the statistics of such tensors are kept in."""
    return "float64" if dtype_name(x, "x") == "float64" else "float32"


def copy_of_statistic(x: Array, name: str) -> np.ndarray:
    """A copy of a vector that must be float64, of whatever library."""
    copy = np.empty(math.prod(shape_of(x, name)))
    _core.copy_statistic(x, name, copy)
    return copy


def refuse_tangents(names: Sequence[str], arguments: Sequence[Any]) -> None:
    """Raises ValueError where one has a tangent of PyTorch's forward mode, which kernels would drop."""
    forward_ad: Any = sys.modules.get("torch.autograd.forward_ad")
    if getattr(forward_ad, "_current_level", -1) < 0:
        return
    for name, argument in zip(names, arguments, strict=True):
        if _is_torch_tensor(argument) and forward_ad.unpack_dual(argument).tangent is not None:
            raise ValueError(f"{name} has a tangent, which functions of hbn do not propagate: use hbn.torch")


def increment_version(array: Array) -> None:
    """Tells PyTorch's autograd that a tensor was written."""
    if _is_torch_tensor(array):
        sys.modules["torch"].autograd.graph.increment_version(array)
