"""Shapes to tune: from the command line, a file, an ONNX model, or what hbn.torch.record_shapes has written.

A shape is N x C x H x W, with `x` or commas: 32x256x56x56. In a file each line has one, and may add an operation (a
kernel of operations.def), a dtype, a layout and how many times it is called, in any order, and a comment:

    32x256x56x56                                        # all that the command line asks for
    32x256x56x56 forward_training float32 nhwc calls=3

A JSON file is a list of objects, as hbn.torch.record_shapes writes it, or one of these on each line:

    {"shape": [32, 256, 56, 56], "operation": "forward_training", "dtype": "float32", "layout": "nhwc", "calls": 3}
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import tables
from .cells import Shape
from .tables import UserError

if TYPE_CHECKING:
    import onnx

LARGEST = 2**31 - 1
"""Of a size, and of how many elements a tensor may have: what kernels index in one piece."""


class Call(NamedTuple):
    """A batch normalization that is to be tuned. What is None is left to the command line's other options."""

    shape: Shape
    operation: str | None = None
    dtype: str | None = None
    layout: str | None = None
    calls: int = 1


Tuned = tuple[str, str, str, Shape]
"""Operation, dtype, layout and shape: what one search is for."""


def gather(sources: Iterable[str], models: Iterable[str] = (), batch: int | None = None) -> list[Call]:
    """All calls that shapes and files (`sources`) and ONNX files (`models`) name, each once; calls add up."""
    found: list[Call] = []
    for source in sources:
        if re.fullmatch(r"[\s\dx,X]+", source) and not pathlib.Path(source).exists():
            # `make tune SHAPES="32x256x56x56 1,64,112,112"` comes as one word.
            found += [parse(text, "--shapes") for text in source.split()]
        else:
            found += read(pathlib.Path(source))
    for model in models:
        found += read_model(pathlib.Path(model), batch)
    return merged(found)


def merged(calls: Iterable[Call]) -> list[Call]:
    """Each once, in the order of their first, with all its calls."""
    numbers: dict[Call, int] = {}
    for call in calls:
        key = call._replace(calls=0)
        numbers[key] = numbers.get(key, 0) + call.calls
    return [call._replace(calls=number) for call, number in numbers.items()]


def expanded(calls: Iterable[Call], operations: list[str], dtypes: list[str], layouts: list[str]) -> dict[Tuned, int]:
    """What to search, with how many times it is called: what a call leaves open is each of these."""
    numbers: dict[Tuned, int] = {}
    for call in calls:
        for key in itertools.product(
            [call.operation] if call.operation else operations,
            [call.dtype] if call.dtype else dtypes,
            [call.layout] if call.layout else layouts,
            [call.shape],
        ):
            numbers[key] = numbers.get(key, 0) + call.calls
    return numbers


# ---- lines


def parse(text: str, where: str) -> Call:
    """A line of a text file, without its comment. `where` begins error messages."""
    shape, *words = text.split()
    sizes = re.split(r"[xX,]", shape)
    if not all(re.fullmatch(r"\d+", size) for size in sizes):
        raise UserError(f"{where}: '{shape}' is no shape: allowed is N x C x H x W, for example 32x256x56x56")
    fields: dict[str, Any] = {"shape": [int(size) for size in sizes]}
    for word in words:
        for field, allowed in (*_allowed().items(), ("calls", [])):
            number = re.fullmatch(r"calls=(\d+)", word)
            if word in allowed or (field == "calls" and number):
                if field in fields:
                    raise UserError(f"{where}: '{word}' is a second {field}: one is allowed")
                fields[field] = int(number[1]) if number else word
                break
        else:
            raise UserError(
                f"{where}: '{word}' is not known: after the shape allowed are "
                + "; ".join(", ".join(allowed) for allowed in _allowed().values())
                + "; calls=NUMBER"
            )
    return _checked(fields, where)


def _allowed() -> dict[str, list[str]]:
    """Of each field that is a name: the names."""
    # Kernels that stand in for others, or serve any strides, have nothing to choose.
    operations = [name for name, row in tables.kernels().items() if row["layouts"] == "all"]
    return {"operation": operations, "dtype": tables.DTYPES, "layout": tables.TENSOR_LAYOUTS}


def _checked(fields: Any, where: str) -> Call:
    """Of what JSON holds."""
    if not isinstance(fields, dict) or "shape" not in fields:
        raise UserError(f'{where}: this is no call: allowed is {{"shape": [N, C, H, W], ...}}')
    shape = fields["shape"]
    if not isinstance(shape, list) or len(shape) != 4 or not all(_is_size(size) for size in shape):
        raise UserError(
            f"{where}: the shape {_as_text(shape)} is not allowed: it must be four sizes, N, C, H and W, "
            f"each from 1 to {LARGEST}"
        )
    if math.prod(shape) > LARGEST:
        raise UserError(
            f"{where}: the shape {_as_text(shape)} has {math.prod(shape)} elements: at most {LARGEST} are allowed, "
            "which is what a kernel takes at once"
        )
    for field, value in fields.items():
        allowed = _allowed().get(field)
        if allowed is not None and value not in allowed:
            raise UserError(f"{where}: the {field} {value!r} is not known: allowed are {', '.join(allowed)}")
        if field not in Call._fields:
            raise UserError(f"{where}: the field '{field}' is not known: allowed are {', '.join(Call._fields)}")
    if not _is_size(fields.get("calls", 1)):
        raise UserError(f"{where}: calls is {fields['calls']!r}: it must be a number from 1 to {LARGEST}")
    return Call(**{**fields, "shape": tuple(shape)})


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _as_text(shape: Any) -> str:
    return "x".join(map(str, shape)) if isinstance(shape, list) else repr(shape)


# ---- files


def read(path: pathlib.Path) -> list[Call]:
    """All calls of a text or JSON file. Errors name its line."""
    if path.suffix == ".onnx":
        raise UserError(f"{path} is a model: name it by --model")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f"{path} is neither a shape nor a file that can be read ({getattr(e, 'strerror', None) or 'not text'}): "
            "allowed are N x C x H x W, for example 32x256x56x56, and text and JSON files of these"
        ) from e
    start = text.lstrip()[:1]
    if start == "[":
        found = [_checked(fields, f"{path}:{line}") for fields, line in _json_items(text, path)]
    else:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{path}:{number}"
            if line.lstrip().startswith("{"):
                found.append(_checked(_json(line, where), where))
            elif words := line.split("#")[0].strip():
                found.append(parse(words, where))
    if not found:
        raise UserError(f"{path} has no shapes")
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: this is no JSON: {e.msg}, column {e.colno}") from e


def _json_items(text: str, path: pathlib.Path) -> Iterator[tuple[Any, int]]:
    """A JSON list's items, with their lines, which json.loads doesn't tell."""
    decoder = json.JSONDecoder()

    def skip(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    def at(position: int) -> str:
        return f"{path}:{text.count(chr(10), 0, position) + 1}"

    position = skip(skip(0) + 1)
    while text[position : position + 1] != "]":
        start = position
        try:
            item, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as e:
            raise UserError(f"{path}:{e.lineno}: this is no JSON: {e.msg}, column {e.colno}") from e
        yield item, text.count("\n", 0, start) + 1
        position = skip(position)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            raise UserError(f"{at(position)}: this is no JSON: ',' or ']' is allowed after an item of the list")
    if skip(position + 1) != len(text):
        raise UserError(f"{at(skip(position + 1))}: nothing is allowed after the list")


# ---- ONNX models


def read_model(path: pathlib.Path, batch: int | None = None) -> list[Call]:
    """The input of each BatchNormalization of an ONNX model, by ONNX's inference of shapes.

    `batch` stands in where the first size of the model's inputs is left open.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError as e:
        raise UserError("reading an ONNX model needs the package onnx: pip install onnx") from e
    try:
        # Shapes don't depend on weights that are kept in files beside it.
        model = onnx.load(path, load_external_data=False)
    except Exception as e:  # protobuf's errors have no common base
        raise UserError(f"{path} can't be read as an ONNX model: {e}") from e
    if not model.graph.node:
        raise UserError(f"{path} is no ONNX model, or an empty one")
    is_open = _set_batch(model.graph, batch)
    try:
        model = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model), data_prop=True)
    except Exception as e:
        raise UserError(f"{path}: ONNX can't infer the model's shapes: {e}") from e
    found = [_call_of(node, values, path, is_open and batch is None) for node, values in _batch_norms(model.graph, {})]
    if not found:
        raise UserError(f"{path} has no BatchNormalization")
    return found


def _set_batch(graph: onnx.GraphProto, batch: int | None) -> bool:
    """Gives open first sizes of inputs a value. Returns whether there are any."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in weights]
    batches = [dims[0] for dims in inputs if dims and not dims[0].HasField("dim_value")]
    if batch is not None:
        names = {dim.dim_param for dim in batches if dim.dim_param}
        for value in (*graph.value_info, *graph.output):
            batches += [dim for dim in value.type.tensor_type.shape.dim if dim.dim_param in names]
        for dim in batches:
            dim.dim_value = batch
    return bool(batches)


Values = dict[str, "onnx.TypeProto.Tensor"]


def _batch_norms(graph: onnx.GraphProto, outer: Values) -> Iterator[tuple[onnx.NodeProto, Values]]:
    """The nodes of a graph and of the graphs within it, with the tensors that each sees."""
    values = outer | {
        value.name: value.type.tensor_type for value in itertools.chain(graph.input, graph.value_info, graph.output)
    }
    for node in graph.node:
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
            yield node, values
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _batch_norms(inner, values)


def _call_of(node: onnx.NodeProto, values: Values, path: pathlib.Path, needs_batch: bool) -> Call:
    import onnx

    name = node.input[0]
    where = f"{path}: BatchNormalization '{node.name or node.output[0]}'"
    tensor = values.get(name)
    dims = tensor.shape.dim if tensor is not None and tensor.HasField("shape") else None
    # Sizes that are open have a name or nothing.
    if not dims or not all(dim.HasField("dim_value") for dim in dims):
        sizes = "unknown" if not dims else f"({', '.join(str(d.dim_value or d.dim_param or '?') for d in dims)})"
        raise UserError(
            f"{where}: the shape of its input '{name}' can't be inferred, it is {sizes}: "
            + ("give the batch's size by --batch N" if needs_batch else "export the model with fixed sizes")
        )
    shape = [dim.dim_value for dim in dims]
    n, c = (*shape, 1)[:2]
    *outer, w = shape[2:] or [1]
    assert tensor is not None
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    operation = "forward_training" if training else "forward_inference"
    fields = {"shape": [n, c, math.prod(outer), w], "operation": operation, "dtype": dtype, "layout": "nchw"}
    return _checked(fields, where)
