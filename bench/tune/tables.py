"""The tables that say what may be tuned: parameters.def, thresholds.def, operations.def and layouts.def."""

import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))
import tuned  # noqa: E402
from packs.table import rows  # noqa: E402

DTYPES = ["float32", "bfloat16", "float16", "float64"]
TENSOR_LAYOUTS = ["nchw", "nhwc"]


class UserError(Exception):
    """Something that the user can set right; its text says how."""


class Parameter(NamedTuple):
    """A row of parameters.def. 0, the target's own default, is the first of its values."""

    name: str
    families: list[str]
    layouts: list[str]
    values: list[int]


class Threshold(NamedTuple):
    """A row of thresholds.def."""

    name: str
    default: int
    least: int
    most: int


def parameters() -> list[Parameter]:
    """All rows of parameters.def."""
    found = []
    for row in tuned.SCHEDULE_PARAMETERS.values():
        values = [0] + [int(value) for value in row["values"].split() if int(value) != 0]
        found.append(Parameter(row["name"], row["families"].split(), row["layouts"].split(), values))
    return found


def thresholds() -> list[Threshold]:
    """All rows of thresholds.def, but `layout`, which names one of a few alternatives."""
    return [
        Threshold(name, int(row["initial"]), int(row["least"]), int(row["most"]))
        for name, row in tuned.THRESHOLDS.items()
        if name != tuned.LAYOUT_THRESHOLD
    ]


def kernel_layouts() -> list[str]:
    """The layouts of kernels: what the threshold `layout` may ask for."""
    return list(tuned.LAYOUTS)


def kernels() -> dict[str, dict[str, str]]:
    """The kernels on tensors by name, each with its row of operations.def."""
    return {row["name"]: row for row in rows("HBN_KERNEL")}


def kernel_of(operation: str) -> str:
    """The kernel that an operation's users wait for; a kernel's own name is allowed, too."""
    known = kernels()
    tries = [operation]
    for short in ("forward", "backward"):  # the module in training, for example backward_relu
        if operation == short or operation.startswith(short + "_"):
            tries.append(f"{short}_training{operation.removeprefix(short)}")
    for name in tries:
        if name in known:
            return name
    raise UserError(f"there is no operation '{operation}': allowed are forward, backward, {', '.join(known)}")
