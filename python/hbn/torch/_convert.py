"""Putting hbn's modules into models, and taking them out."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from hbn.torch._modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, _HbnBatchNorm

M = TypeVar("M", bound=nn.Module)


# A lazy module becomes another class's on its first input: hbn's.
class LazyBatchNorm1d(_HbnBatchNorm, nn.LazyBatchNorm1d):
    """torch.nn.LazyBatchNorm1d that becomes hbn's BatchNorm1d."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_HbnBatchNorm, nn.LazyBatchNorm2d):
    """torch.nn.LazyBatchNorm2d that becomes hbn's BatchNorm2d."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_HbnBatchNorm, nn.LazyBatchNorm3d):
    """torch.nn.LazyBatchNorm3d that becomes hbn's BatchNorm3d."""

    cls_to_become = BatchNorm3d


_HBN_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.LazyBatchNorm1d: LazyBatchNorm1d,
    nn.LazyBatchNorm2d: LazyBatchNorm2d,
    nn.LazyBatchNorm3d: LazyBatchNorm3d,
}
_TORCH_OF = {hbn: torch_class for torch_class, hbn in _HBN_OF.items()}


def _other_class(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module] | None:
    of = type(module)
    if not is_parametrized(module):
        return classes.get(of)
    # The module has a class of its own, which torch.nn.utils.parametrize has derived to hold the parametrized tensors
    # as properties. Derived from the other class instead, it is taken off again as it was put on.
    base = classes.get(type_before_parametrizations(module))
    return None if base is None else type(of.__name__, (base,), dict(vars(of)))


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    # Only the class changes: whoever holds a module, or its dictionaries, holds the same one afterwards.
    for module, other in [(module, _other_class(module, classes)) for module in model.modules()]:
        if other is not None:
            module.__class__ = other


def convert(model: M) -> M:
    """Makes every BatchNorm1d, BatchNorm2d and BatchNorm3d of a model hbn's, in place.

    The modules stay the same objects, of another class: whatever holds one (a list, a closure, another name, a weak
    reference, a module that shares it) sees hbn's. So do parameters and buffers, hooks, parametrizations and the
    training flag. Lazy ones become hbn's when they see their first input. Subclasses of those modules are left alone.

    Returns:
        The model.
    """
    _swap(model, _HBN_OF)
    return model


def revert(model: M) -> M:
    """Undoes `convert`, in place: PyTorch's own classes again, the same objects."""
    _swap(model, _TORCH_OF)
    return model
