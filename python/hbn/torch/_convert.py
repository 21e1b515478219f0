"""Putting hbn's modules into models, and taking them out."""

from __future__ import annotations

from typing import TypeVar, get_args

import torch
from torch import nn

from hbn.torch._modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

M = TypeVar("M", bound=nn.Module)

_HBN_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_TORCH_OF = {hbn: torch_class for torch_class, hbn in _HBN_OF.items()}


def _with_class(module: nn.Module, to: type[nn.Module]) -> nn.Module:
    # One of the same state: its dictionary is the old one's, with parameters, buffers, hooks, the training flag and
    # whatever else users have put there.
    other = to.__new__(to)
    other.__dict__ = module.__dict__.copy()
    return other


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    # A module that is used in several places stays one module.
    swapped: dict[nn.Module, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if type(module) not in classes:
            return module
        if module not in swapped:
            swapped[module] = _with_class(module, classes[type(module)])
        return swapped[module]

    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = of(child)
    return of(model)


def convert(model: M) -> M:
    """Swaps every BatchNorm1d, BatchNorm2d and BatchNorm3d of a model for hbn's, in place.

    Parameters and buffers stay the same objects, so that optimizers go on; so do hooks and the training flag.
    Subclasses of those modules are left alone.

    Returns:
        The model; a new module of the same state where the model is itself a batch normalization.
    """
    return _swap(model, _HBN_OF)  # type: ignore[return-value]


def revert(model: M) -> M:
    """Undoes `convert`: PyTorch's own modules again, of the same state."""
    return _swap(model, _TORCH_OF)  # type: ignore[return-value]


_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def fuse_conv_bn(model: M) -> M:
    """Folds batch normalizations in evaluation mode into the convolutions before them, in place.

    The model is traced (torch.fx), to see where a batch normalization takes what a convolution returns and nothing else
    sees it; the batch normalization becomes nn.Identity. Left alone are modules with hooks or parametrizations, and
    users' subclasses.

    Returns:
        The model.

    Raises:
        ValueError: The model, or a batch normalization that would be fused, is in training mode.
        torch.fx.proxy.TraceError: The model's forward depends on its input's values.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs = _pairs(model)
    training = [names[batch_norm] for _, batch_norm in pairs if batch_norm.training]
    if model.training or training:
        raise ValueError(f"fuse_conv_bn needs evaluation mode (model.eval()); in training: {', '.join(training)}")
    for convolution, batch_norm in pairs:
        fused = torch.nn.utils.fuse_conv_bn_eval(convolution, batch_norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        _replace(model, names[batch_norm], nn.Identity())
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


_KNOWN = _HBN_OF.keys() | _TORCH_OF.keys()
_CONVOLUTIONS = get_args(_Convolution)


class _Tracer(torch.fx.Tracer):
    # Users' batch normalizations, which are left alone, have conditions that can't be traced.
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        norm = isinstance(m, nn.modules.batchnorm._BatchNorm)
        return norm or super().is_leaf_module(m, module_qualified_name)


def _has_hooks(module: nn.Module) -> bool:
    # They see or change what a fused module no longer has.
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _pairs(model: nn.Module) -> list[tuple[_Convolution, _BatchNorm]]:
    # Of modules that are called once, the second on nothing but what the first returns, and not read otherwise.
    if isinstance(model, _BatchNorm):
        return []
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules())
    calls: dict[nn.Module, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[modules[node.target]] = calls.get(modules[node.target], 0) + 1
    read = {modules[node.target.rpartition(".")[0]] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in _KNOWN:
            continue
        before, batch_norm = node.args[0] if node.args else None, modules[node.target]
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = modules[before.target]
        if (
            type(convolution) in _CONVOLUTIONS
            and batch_norm.running_mean is not None
            and calls[convolution] == calls[batch_norm] == 1
            and read.isdisjoint((convolution, batch_norm))
            and not (_has_hooks(convolution) or _has_hooks(batch_norm))
        ):
            pairs.append((convolution, batch_norm))
    return pairs
