"""Allocation of results in the library that an argument is of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Array = Any
"""NumPy's array, or anything with `__dlpack__`."""


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
        return np.empty_like(x, dtype=dtype)

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

    def empty_like(self, x: Array, dtype: str | None = None) -> Array:
        return super().empty_like(np.asarray(x), dtype)

    def finish(self, array: Array) -> Array:
        if array is None:
            return None
        # NumPy lends no bfloat16 by DLPack.
        take = self._namespace.asarray if dtype_name(array) == "bfloat16" else self._namespace.from_dlpack
        return take(array)


_numpy = _Numpy()


def maker_for(x: Array) -> tuple[Maker, Array]:
    """What makes arrays of x's library, NumPy's where that is not known; and x, with a shape and a dtype."""
    if isinstance(x, np.ndarray):
        return _numpy, x
    if x is None:
        raise ValueError("x is required")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if x.layout != torch.strided:
            raise BufferError(f"x can't be lent: its layout is {x.layout}")
        return _Torch(torch), x
    if hasattr(x, "__array_namespace__"):
        return _Standard(x.__array_namespace__()), x
    # Whatever is no array is left for _core to refuse.
    return _numpy, np.from_dlpack(x) if hasattr(x, "__dlpack__") else x


def dtype_name(x: Array) -> str:
    """Such as "float32"."""
    dtype = getattr(x, "dtype", None) or (np.from_dlpack(x).dtype if hasattr(x, "__dlpack__") else None)
    return getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")


def statistic_dtype(x: Array) -> str:
    """What the statistics of such tensors are kept in."""
    return "float64" if dtype_name(x) == "float64" else "float32"


def refuse_tangents(names: Sequence[str], arguments: Sequence[Any]) -> None:
    """Raises ValueError where one has a tangent of PyTorch's forward mode, which kernels would drop."""
    torch = sys.modules["torch"]
    forward_ad = torch.autograd.forward_ad
    if forward_ad._current_level < 0:
        return
    for name, argument in zip(names, arguments, strict=True):
        if isinstance(argument, torch.Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            raise ValueError(f"{name} has a tangent, which functions of hbn do not propagate: use hbn.torch")


def increment_version(array: Array) -> None:
    """Tells PyTorch's autograd that a tensor was written."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        torch.autograd.graph.increment_version(array)
