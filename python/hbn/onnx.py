"""ONNX's BatchNormalization by hbn's kernels, for onnx.reference's evaluator.

    import hbn.onnx
    y, = hbn.onnx.reference_evaluator("model.onnx").run(None, {"x": x})

All other operators stay onnx.reference's. `BatchNormalization` alone is for an evaluator of your own:
`onnx.reference.ReferenceEvaluator(model, new_ops=[hbn.onnx.BatchNormalization])`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from hbn._arrays import statistic_dtype
from hbn._functional import (
    Moments,
    batch_norm_forward,
    batch_norm_normalize,
    batch_norm_stats,
)

__all__ = ["BatchNormalization", "reference_evaluator"]


class BatchNormalization(OpRun):
    """BatchNormalization of opset 14 and later, and as inference of all before.

    X is (N, C, ...), or (N,) with one channel. It, scale, B, input_mean and input_var may each be float32, float64,
    bfloat16 or float16; Y is of X's dtype, running_mean and running_var are of input_mean's and input_var's. In
    training the running variance moves towards the batch's over M, and momentum is the share of the old value, as ONNX
    has it. An empty X leaves both as they are.

    Raises:
        NotImplementedError: Training, or spatial = 0, of an opset before 14.
        ValueError: Outputs that inference doesn't have, or what `hbn.batch_norm_forward` refuses.
    """

    op_domain = ""
    """ONNX's own operators."""

    def __init__(self, onnx_node: onnx.NodeProto, run_params: dict[str, Any], schema: Any = None) -> None:
        """As the evaluator makes one of each node."""
        super().__init__(onnx_node, run_params, schema)
        opset = run_params["opsets"][self.op_domain]
        # What older operators have besides; attributes that a node leaves out are not there.
        infers = len(onnx_node.output) == 1 and (opset >= 7 or getattr(self, "is_test", 0) == 1)
        if opset < 14 and not (infers and getattr(self, "spatial", 1) == 1):
            raise NotImplementedError(
                f"hbn has BatchNormalization of opset {opset} only as spatial inference: convert the model to opset 14 "
                "or later"
            )

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        input_mean: np.ndarray,
        input_var: np.ndarray,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        training_mode: int = 0,
        **older_attributes: Any,
    ) -> tuple[np.ndarray, ...]:
        outputs = len(self.output)
        if not training_mode and outputs > 1:
            raise ValueError(f"BatchNormalization has one output where training_mode is 0, not {outputs}")
        values = _folded(x)
        weight, bias = _parameter(scale, x), _parameter(bias, x)
        if not training_mode:
            mean, var = _parameter(input_mean, x), _parameter(input_var, x)
            y, _, _ = batch_norm_forward(values, weight, bias, mean, var, training=False, eps=float(epsilon))
            return (y.reshape(x.shape),)
        moments = batch_norm_stats(values)
        if moments.count == 0:
            return (np.empty_like(x), input_mean.copy(), input_var.copy())[:outputs]
        y = batch_norm_normalize(values, moments, weight, bias, eps=float(epsilon))
        return (
            y.reshape(x.shape),
            *_running(moments, input_mean, input_var, float(momentum)),
        )[:outputs]


def _folded(x: np.ndarray) -> np.ndarray:
    # (N, C, all else), without a copy where strides allow; hbn reads no negative ones.
    n, c = (*x.shape, 1)[:2]
    folded = x.reshape(n, c, math.prod(x.shape[2:]))
    return np.ascontiguousarray(folded) if min(folded.strides) < 0 else folded


def _parameter(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    # ONNX lets the dtypes of parameters be any.
    statistic = np.dtype(statistic_dtype(x))
    return values if values.dtype in (x.dtype, statistic) else values.astype(statistic)


def _running(
    moments: Moments, input_mean: np.ndarray, input_var: np.ndarray, momentum: float
) -> tuple[np.ndarray, np.ndarray]:
    def moved(name: str, old: np.ndarray, batch: np.ndarray) -> np.ndarray:
        if old.shape != batch.shape:
            raise ValueError(f"{name} should contain {batch.size} elements not {old.size}")
        return (old.astype(np.float64) * momentum + batch * (1 - momentum)).astype(old.dtype)

    return (
        moved("running_mean", input_mean, moments.mean),
        moved("running_var", input_var, moments.m2 / moments.count),
    )


class _Evaluator(ReferenceEvaluator):
    # The evaluator makes others of its own class for functions and subgraphs, for functions without new_ops.
    def __init__(self, proto: Any, new_ops: list[type[OpRun]] | None = None, **kwargs: Any) -> None:
        super().__init__(proto, new_ops=[*(new_ops or []), BatchNormalization], **kwargs)


def reference_evaluator(model: Any, **kwargs: Any) -> ReferenceEvaluator:
    """An onnx.reference.ReferenceEvaluator that runs each BatchNormalization by hbn, in functions and subgraphs, too.

    Args:
        model: As ReferenceEvaluator takes it: a ModelProto, GraphProto, FunctionProto or NodeProto, bytes or a file's
            path.
        kwargs: ReferenceEvaluator's other arguments. An operator in new_ops is taken instead of hbn's.

    Returns:
        What has run(output_names, {name: array}).

    Raises:
        NotImplementedError: A BatchNormalization that hbn's class of that name doesn't have.
    """
    return _Evaluator(model, **kwargs)
