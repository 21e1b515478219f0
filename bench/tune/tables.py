"""The tables that say what may be tuned: parameters.def, thresholds.def, operations.def and layouts.def."""

import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "cmake"))
import tuned  # noqa: E402, F401 (what checks tuned files, for result.py)
from packs.table import read  # noqa: E402

PARAMETERS = ROOT / "schedules" / "parameters.def"
THRESHOLDS = ROOT / "runtime" / "engine" / "thresholds.def"
OPERATIONS = ROOT / "runtime" / "operations.def"
LAYOUTS = ROOT / "runtime" / "layouts.def"
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


def rows(path: pathlib.Path, kind: str) -> list[dict[str, str]]:
    """The columns of each row of a kind."""
    return [row.columns for row in read(path) if row.kind == kind]


def parameters(path: pathlib.Path = PARAMETERS) -> list[Parameter]:
    """All rows of parameters.def."""
    found = []
    for row in rows(path, "HBN_SCHEDULE_PARAMETER"):
        values = [0] + [int(value) for value in row["values"].split() if int(value) != 0]
        found.append(Parameter(row["name"], row["families"].split(), row["layouts"].split(), values))
    return found


def thresholds(path: pathlib.Path = THRESHOLDS) -> list[Threshold]:
    """All rows of thresholds.def, but `layout`, which names one of a few alternatives."""
    found = []
    for row in rows(path, "HBN_THRESHOLD"):
        name, default, least, most = list(row.values())[:4]
        if name != "layout":
            found.append(Threshold(name, int(default), int(least), int(most)))
    return found


def kernel_layouts() -> list[str]:
    """The layouts of kernels: what the threshold `layout` may ask for."""
    return [row["name"] for row in rows(LAYOUTS, "HBN_LAYOUT")]


def kernels() -> dict[str, dict[str, str]]:
    """The kernels on tensors by name, each with its row of operations.def."""
    return {row["name"]: row for row in rows(OPERATIONS, "HBN_KERNEL")}


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
