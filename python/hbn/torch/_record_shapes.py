"""Which batch normalizations a model's run calls, for the tuner."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import pathlib
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from hbn._functional import uses_batch_statistics

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_SIGNATURE = inspect.signature(functional.batch_norm)


class RecordedCall(NamedTuple):
    """A batch normalization that was called, as the tuner tells them apart."""

    operation: str
    """hbn's kernel: "forward_training", "forward_inference", "backward_training", "backward_inference", or
    "backward_inference_input" where no parameter needs a gradient."""
    dtype: str
    """Of the input: "float32", "float64", "bfloat16" or "float16"."""
    layout: str
    """Of the input: "nhwc" where channels lie next to each other in memory (channels_last), otherwise "nchw"."""
    shape: tuple[int, int, int, int]
    """(N, C, H, W). (N, C) is (N, C, 1, 1), (N, C, L) is (N, C, 1, L), and (N, C, D, H, W) is (N, C, D * H, W)."""


@contextlib.contextmanager
def record_shapes(path: str | os.PathLike[str] | None = None) -> Iterator[Counter[RecordedCall]]:
    """Records every batch normalization that is called within the `with` statement, for the tuner.

        with hbn.torch.record_shapes("shapes.json") as shapes:
            model(x).sum().backward()

    Seen are calls of BatchNorm1d, 2d and 3d modules, torch.nn's and hbn's, in every thread, and of
    torch.nn.functional.batch_norm in the thread that entered; each adds 1 to its `RecordedCall`. So does each backward
    pass through it. The file is a list of these with their numbers of calls, and is what `make tune SHAPES=` takes. It
    is written on leaving, also by an exception, and all at once: whoever reads it sees the old one or the new one.

    What torch.compile and torch.jit.script made calls no modules, and is not seen: record the model before. Nor are
    inputs that no kernel is for: empty ones, and those of another dtype or with fewer than two dimensions.

    Args:
        path: The file to write, in a folder that exists; None writes none.

    Yields:
        How many times each was called, so far. It is complete after the `with` statement.

    Raises:
        FileNotFoundError: There is no such folder.
        IsADirectoryError: `path` is a folder.
    """
    file = None if path is None else pathlib.Path(path)
    if file is not None and file.is_dir():
        raise IsADirectoryError(f"record_shapes can't write {file}: it is a folder")
    if file is not None and not file.parent.is_dir():
        raise FileNotFoundError(f"record_shapes can't write {file}: there is no folder {file.parent}")
    recorder = _Recorder()
    with contextlib.ExitStack() as stack:  # which calls back in reverse order
        if file is not None:
            stack.callback(_write, recorder.calls, file)
        stack.callback(recorder.stop)
        stack.callback(register_module_forward_pre_hook(recorder.enter_module).remove)
        stack.callback(register_module_forward_hook(recorder.leave_module, always_call=True).remove)
        stack.enter_context(_FunctionalCalls(recorder))
        yield recorder.calls
    if not recorder.calls:
        warnings.warn("record_shapes has seen no batch normalization", stacklevel=3)


class _Recorder:
    """What modules' hooks and functional calls tell."""

    def __init__(self) -> None:
        self.calls: Counter[RecordedCall] = Counter()
        self._lock = threading.Lock()
        self._recording = True
        self._thread = _ThreadState()

    def stop(self) -> None:
        """Ignores gradients that come by later."""
        with self._lock:
            self._recording = False

    def enter_module(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm) and not torch.compiler.is_compiling():
            self._thread.entered.append((module, self._thread.recorded))

    def leave_module(self, module: torch.nn.Module, args: tuple[Any, ...], y: Any) -> None:
        """Records a module's call, unless what it called has been. One that raised has no y."""
        if not isinstance(module, _BatchNorm) or torch.compiler.is_compiling():
            return
        recorded_before = self._thread.leave(module)
        if recorded_before != self._thread.recorded or not isinstance(y, Tensor):
            return
        training = uses_batch_statistics(module.training, module.running_mean, module.running_var)
        # PyTorch never forgets a hook that asks for keyword arguments; y has the shape, dtype and layout of x.
        self.record(args[0] if args else y, y, training, (module.weight, module.bias))

    def record(self, x: Any, y: Any, training: bool, parameters: tuple[Tensor | None, ...]) -> None:
        """Adds a call with input x and output y."""
        self._thread.recorded += 1
        if not isinstance(x, Tensor) or x.layout != torch.strided or x.dtype not in _DTYPES or x.dim() < 2:
            return
        # In traces sizes may be symbols.
        if x.numel() == 0 or not all(type(size) is int for size in x.shape):
            return
        dtype, layout, shape = _DTYPES[x.dtype], _layout(x), _folded(x.shape)
        self._add(RecordedCall("forward_training" if training else "forward_inference", dtype, layout, shape))
        if not isinstance(y, Tensor) or not y.requires_grad:
            return
        if training:
            operation = "backward_training"
        elif any(parameter is not None and parameter.requires_grad for parameter in parameters):
            operation = "backward_inference"
        else:
            operation = "backward_inference_input"
        backward = RecordedCall(operation, dtype, layout, shape)
        y.register_hook(lambda grad: self._add(backward))

    def _add(self, call: RecordedCall) -> None:
        with self._lock:
            if self._recording:
                self.calls[call] += 1


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.recorded = 0  # how many calls
        self.entered: list[tuple[torch.nn.Module, int]] = []  # modules, and how many calls were recorded before

    def leave(self, module: torch.nn.Module) -> int | None:
        """How many calls had been recorded when the module was entered; None if it was before recording began."""
        while self.entered:
            entered, recorded = self.entered.pop()
            # An interrupt leaves modules behind.
            if entered is module:
                return recorded
        return None


class _FunctionalCalls(TorchFunctionMode):
    """Sees torch.nn.functional.batch_norm, which torch.nn's modules call, too."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func is functional.batch_norm and not torch.compiler.is_compiling():
            given = _SIGNATURE.bind(*args, **kwargs).arguments
            training = uses_batch_statistics(given.get("training", False), given["running_mean"], given["running_var"])
            self._recorder.record(given["input"], y, training, (given.get("weight"), given.get("bias")))
        return y


def _folded(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    n, c, *plane = shape
    *outer, w = plane or [1]
    return n, c, math.prod(outer), w


def _layout(x: Tensor) -> str:
    # One channel, or one value in each, lies in either order.
    return "nhwc" if x.stride(1) == 1 and x.shape[1] > 1 and math.prod(x.shape[2:]) > 1 else "nchw"


def _write(calls: Counter[RecordedCall], file: pathlib.Path) -> None:
    """Each on a line, most frequent first."""
    rows = [json.dumps({**call._asdict(), "calls": number}) for call, number in calls.most_common()]
    text = "[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n"
    # Beside it, since a file can be replaced within one file system only.
    part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.write_text(text)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
