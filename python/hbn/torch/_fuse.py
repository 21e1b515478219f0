"""Folding batch normalizations into the convolutions before them."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import itertools
import operator
import types
import warnings
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from hbn.torch._modules import BatchNorm1d, BatchNorm2d, BatchNorm3d

M = TypeVar("M", bound=nn.Module)

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

_BATCH_NORMS_OF: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Conv1d: (nn.BatchNorm1d, BatchNorm1d),
    nn.Conv2d: (nn.BatchNorm2d, BatchNorm2d),
    nn.Conv3d: (nn.BatchNorm3d, BatchNorm3d),
}
_CONVOLUTION_STATE = {"weight", "bias"}
_BATCH_NORM_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}

# forward is traced for every choice of optional arguments, of which there are no more than 6.
_MAX_TRACES = 2**6


def fuse_conv_bn(model: M) -> M:
    """Folds batch normalizations in evaluation mode into the convolutions before them, in place.

    The model's forward is traced (torch.fx) with and without its optional arguments, to see where a batch normalization
    takes what a convolution returns and nothing else sees it. The convolution gets a new weight and bias; the batch
    normalization, the same object still, becomes an nn.Identity without parameters and buffers, under all its names and
    for whatever else holds it. Left alone are modules whose tensors forward reads itself, modules with hooks,
    parametrizations or methods of their own, users' subclasses, and what is inside compiled modules. Only forward is
    looked at: no other method, and no other model that shares the modules.

    Returns:
        The model.

    Raises:
        ValueError: The model, or a batch normalization that would be fused, is in training mode; or forward depends on
            what would be fused, calls what is no submodule, or has more than some 6 optional arguments, so that its
            output might change. Nothing is changed.
        torch.fx.proxy.TraceError: The model's forward depends on its input's values.
    """
    traced = _uncompiled(model)
    names = {module: name or "the model itself" for name, module in traced.named_modules()}
    traces = [] if isinstance(traced, _BatchNorm) else list(_traces(traced))
    pairs = _pairs(traces)
    training = [names[module] for module in (traced, *(batch_norm for _, batch_norm in pairs)) if module.training]
    if training:
        raise ValueError(f"fuse_conv_bn needs evaluation mode (model.eval()); in training: {', '.join(training)}")
    folds = [_Fold(convolution, batch_norm) for convolution, batch_norm in pairs]
    if not _same_traces(traced, traces, folds):
        # One that is harmless alone is not to blame, unless all are.
        blamed = [fold for fold in folds if not _same_traces(traced, traces, [fold])] or folds
        raise ValueError(
            "fuse_conv_bn has changed nothing, as the model's forward depends on more of these modules than what they "
            f"return: {', '.join(f'{names[fold.convolution]} and {names[fold.batch_norm]}' for fold in blamed)}"
        )
    for fold in folds:
        fold.apply()
    return model


# ---- what is changed


class _Fold:
    """A batch normalization's folding into a convolution, which can be undone."""

    def __init__(self, convolution: _Convolution, batch_norm: _BatchNorm) -> None:
        self.convolution, self.batch_norm = convolution, batch_norm
        self._before = [
            (module, type(module), dict(module._parameters), dict(module._buffers))
            for module in (convolution, batch_norm)
        ]
        # In double precision: the factors of low-precision parameters would be rounded before they are multiplied.
        wide = torch.float32 if convolution.weight.device.type == "mps" else torch.float64
        arguments: list[Any] = [
            value.detach().to(wide) if isinstance(value, Tensor) else value
            for value in (
                convolution.weight,
                convolution.bias,
                batch_norm.running_mean,
                batch_norm.running_var,
                batch_norm.eps,
                batch_norm.weight,
                batch_norm.bias,
            )
        ]
        weight, bias = nn.utils.fuse_conv_bn_weights(*arguments)
        self._weight = self._parameter(weight, convolution.weight, batch_norm.weight)
        self._bias = self._parameter(bias, convolution.bias, batch_norm.bias)

    def _parameter(self, value: Tensor, *made_of: Tensor | None) -> nn.Parameter:
        # Trainable if any of those that it is made of is.
        given = [tensor for tensor in made_of if tensor is not None]
        dtype = self.convolution.weight.dtype if made_of[0] is None else made_of[0].dtype
        return nn.Parameter(value.detach().to(dtype), any(tensor.requires_grad for tensor in given))

    def apply(self) -> None:
        self.convolution._parameters.update(weight=self._weight, bias=self._bias)
        for name in _BATCH_NORM_STATE:
            self.batch_norm._parameters.pop(name, None)
            self.batch_norm._buffers.pop(name, None)
        self.batch_norm.__class__ = nn.Identity  # type: ignore[assignment]

    def undo(self) -> None:
        for module, of, parameters, buffers in self._before:
            module.__class__ = of
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)


def _same_traces(model: nn.Module, traces: list[_Trace], folds: list[_Fold]) -> bool:
    """Whether forward does the same, step by step, when modules are folded. Leaves them as they were."""
    try:
        for fold in folds:
            fold.apply()
        return not folds or all(trace.same_as(_Trace(model, trace.arguments)) for trace in traces)
    except Exception:
        return False
    finally:
        for fold in folds:
            fold.undo()


# ---- what forward does


def _uncompiled(model: nn.Module) -> nn.Module:
    return model._orig_mod if _is_optimized(model) else model  # type: ignore[return-value]


def _is_optimized(module: nn.Module) -> bool:
    # torch.compile's OptimizedModule. Its module is slow to import, and not needed where nobody has.
    return type(module).__module__.startswith("torch._dynamo")


class _NoSubmoduleError(ValueError):
    pass


class _Tracer(torch.fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.proxy_buffer_attributes = True
        self.calls: Counter[nn.Module] = Counter()
        self._proxies: list[weakref.ref[torch.fx.Proxy]] = []

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        made = super().proxy(node)
        self._proxies.append(weakref.ref(made))
        return made

    def kept_nodes(self) -> set[torch.fx.Node]:
        """Whose values forward has put somewhere: into an attribute, a list or whatever else outlives it."""
        # What is but part of a cycle of garbage is young, and soon found.
        for generation in range(3):
            if any(reference() is not None for reference in self._proxies):
                gc.collect(generation)
        return {proxy.node for reference in self._proxies if (proxy := reference()) is not None}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Users' batch normalizations, which are left alone, have conditions that can't be traced. Nor can what is
        # compiled.
        norm = isinstance(m, nn.modules.batchnorm._BatchNorm)
        compiled = isinstance(m, torch.jit.ScriptModule) or _is_optimized(m) or m._compiled_call_impl is not None
        return norm or compiled or super().is_leaf_module(m, module_qualified_name)

    def path_of_module(self, mod: nn.Module) -> str:
        if self.submodule_paths and mod not in self.submodule_paths:
            raise _NoSubmoduleError(f"fuse_conv_bn sees submodules only, and the model's forward calls another: {mod}")
        return super().path_of_module(mod)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.calls[m] += 1
        return super().call_module(m, forward, args, kwargs)


class _Trace:
    """What a model's forward does with the model's modules, some of its arguments being given values."""

    def __init__(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.calls: Counter[nn.Module] = Counter()
        # What a module is called on: what these modules return, None being anything else or what others see, too.
        self.sources: dict[nn.Module, set[nn.Module | None]] = {}
        # What is used in other ways than by being called.
        self.used_modules: set[nn.Module] = set()
        self.used_tensors: list[Tensor] = []
        self._constants: dict[str, Any] = {}
        tracer = _Tracer()
        attributes = {module: dict(vars(module)) for module in model.modules()}
        contents = [(held, copy.copy(held)) for held in _containers_of(model)]
        random = torch.get_rng_state()
        try:
            with warnings.catch_warnings():
                # That the given values can't be checked for.
                warnings.simplefilter("ignore", UserWarning)
                graph = tracer.trace(model, arguments or None)
            self._text = str(graph)
            kept = tracer.kept_nodes()
            for node in graph.nodes:
                self._see(model, node, attributes[model], kept)
        finally:
            # Forward has not been run: nothing that it has put somewhere stays, nor do torch.fx's constants.
            torch.set_rng_state(random)
            for held, before in contents:
                _refill(held, before)
            for module, own in attributes.items():
                for name in vars(module).keys() - own.keys():
                    del vars(module)[name]
                vars(module).update(own)
        self._use_held_by(model)
        # hbn's modules see themselves traced, even where only their forward is called.
        self.used_modules.update(module for module, calls in self.calls.items() if calls != tracer.calls[module])

    def same_as(self, other: _Trace) -> bool:
        def same(a: object, b: object) -> bool:
            return a.equal(b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b

        constants = self._constants
        return (
            self._text == other._text
            and constants.keys() == other._constants.keys()
            and all(same(value, other._constants[name]) for name, value in constants.items())
        )

    def uses(self, module: nn.Module) -> bool:
        """Whether a module or a tensor of it is used in another way than by calling the module."""
        own = {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None}
        return module in self.used_modules or any(id(tensor) in own for tensor in self.used_tensors)

    def _see(self, model: nn.Module, node: torch.fx.Node, attributes: dict[str, Any], kept: set[torch.fx.Node]) -> None:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            self.calls[module] += 1
            before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            alone = (
                isinstance(before, torch.fx.Node)
                and before.op == "call_module"
                and len(before.users) == 1
                and before not in kept
            )
            source = model.get_submodule(str(before.target)) if alone else None  # type: ignore[union-attr]
            self.sources.setdefault(module, set()).add(source)
            # They may be called in there.
            self.used_modules.update(inner for inner in module.modules() if inner is not module)
            self._use_held_by(module)
        elif node.op == "call_function":
            # torch.fx.wrap hides what is called in there.
            self._use_held_by(node.target)
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(model)
            if isinstance(value, nn.Module):
                self.used_modules.update(value.modules())
            elif isinstance(value, Tensor):
                self.used_tensors.append(value)
            if node.target in vars(model).keys() - attributes.keys():
                self._constants[str(node.target)] = value

    def _use_held_by(self, held: object) -> None:
        if isinstance(held, nn.Module):
            held = [*(vars(held).get(name) for name in (*_hooks(held), "forward"))]
        for value in _reachable(held):
            if isinstance(value, nn.Module):
                self.used_modules.update(value.modules())
            elif isinstance(value, Tensor):
                self.used_tensors.append(value)


def _containers_of(model: nn.Module) -> Iterator[Any]:
    """Lists, dictionaries and sets that forward may put something into: the modules' own, but for those of torch.nn."""
    own = vars(nn.Module())
    for module in model.modules():
        yield from (
            held
            for name, value in vars(module).items()
            if name not in own
            for held in _reachable(value)
            if type(held) in (dict, OrderedDict, defaultdict, list, set)
        )


def _refill(held: Any, before: Any) -> None:
    held.clear()
    (held.extend if isinstance(held, list) else held.update)(before)


# Other containers may compute what they hold, or fail to.
_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, tuple, set, frozenset)
_SCALARS = (bool, int, float, complex, str, bytes)


def _variables(function: types.FunctionType) -> list[object]:
    """What a function's names stand for outside of it."""
    values = [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    for cell in function.__closure__ or ():
        # One that is empty has been deleted, or not been set yet.
        with contextlib.suppress(ValueError):
            values.append(cell.cell_contents)
    return values


def _reachable(start: object) -> Iterator[object]:
    """What Python code gets at through its closures, globals, defaults, containers and bound objects."""
    seen: dict[int, object] = {}
    waiting = [start]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        if isinstance(value, types.FunctionType) and (value.__module__ or "").split(".")[0] != "torch":
            waiting += _variables(value)
            waiting += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        elif isinstance(value, types.MethodType):
            waiting += [value.__self__, value.__func__]
        elif isinstance(value, functools.partial):
            waiting += [value.func, *value.args, *value.keywords.values()]
        elif type(value) in _CONTAINERS:
            elements: Iterable[object] = value.values() if isinstance(value, dict) else value  # type: ignore[assignment]
            waiting += [element for element in elements if not isinstance(element, _SCALARS)]


def _traces(model: nn.Module) -> Iterator[_Trace]:
    """forward's traces with each of its optional arguments given, left to its default, and None."""
    if isinstance(model, torch.jit.ScriptModule) or "forward" in vars(model):
        raise ValueError(f"fuse_conv_bn can't trace a {type(model).__name__} whose forward is not its class's")
    given = object()
    choices: dict[str, list[Any]] = {}
    for number, parameter in enumerate(list(inspect.signature(type(model).forward).parameters.values())[1:]):
        if parameter.kind is parameter.VAR_POSITIONAL:
            choices[f"*{parameter.name}"] = [given, ()]
        elif parameter.kind is parameter.VAR_KEYWORD:
            choices[f"**{parameter.name}"] = [given, {}]
        elif parameter.default is not None and parameter.default is not parameter.empty:
            choices[parameter.name] = [given, parameter.default, None]
        elif number > 0 or parameter.default is None:
            choices[parameter.name] = [given, None]
    combinations = list(itertools.islice(itertools.product(*choices.values()), _MAX_TRACES + 1))
    if len(combinations) > _MAX_TRACES:
        raise ValueError(
            f"fuse_conv_bn would have to trace {type(model).__name__}.forward too often: too many arguments"
        )
    for values in combinations:
        arguments = {name: value for name, value in zip(choices, values, strict=True) if value is not given}
        try:
            yield _Trace(model, arguments)
        except (torch.fx.proxy.TraceError, _NoSubmoduleError):
            raise
        except Exception:
            # An argument that may not be None. Whatever else is wrong shows where all are given.
            if None not in arguments.values():
                raise


# ---- what can be folded


def _hooks(module: nn.Module) -> list[str]:
    return [name for name, value in vars(module).items() if name.endswith("_hooks") and value]


def _is_plain(module: nn.Module, state: set[str]) -> bool:
    """Whether a module has no hooks or methods of its own, and no parametrized tensors."""
    own = module._parameters.keys() | module._buffers.keys()
    overridden = any(callable(getattr(type(module), name, None)) for name in vars(module))
    return own >= state and not overridden and not _hooks(module) and not _has_any_global_hook()


def _can_be_folded(convolution: nn.Module | None, batch_norm: nn.Module) -> bool:
    return (
        isinstance(convolution, _Convolution)
        and type(batch_norm) in _BATCH_NORMS_OF.get(type(convolution), ())
        and isinstance(batch_norm, _BatchNorm)
        and batch_norm.running_mean is not None
        and batch_norm.running_var is not None
        and batch_norm.num_features == convolution.out_channels
        and _is_plain(convolution, _CONVOLUTION_STATE)
        and _is_plain(batch_norm, _BATCH_NORM_STATE)
    )


def _pairs(traces: list[_Trace]) -> list[tuple[Any, Any]]:
    """Convolutions and batch normalizations that are called only one on the other, whatever arguments are given."""
    sources: dict[nn.Module, set[nn.Module | None]] = {}
    for trace in traces:
        for module, before in trace.sources.items():
            sources.setdefault(module, set()).update(before)
    pairs = [(next(iter(before)), batch_norm) for batch_norm, before in sources.items() if len(before) == 1]
    return [
        (convolution, batch_norm)
        for convolution, batch_norm in pairs
        if convolution is not None
        and _can_be_folded(convolution, batch_norm)
        and all(
            trace.calls[convolution] == trace.calls[batch_norm]
            and not trace.uses(convolution)
            and not trace.uses(batch_norm)
            for trace in traces
        )
    ]
