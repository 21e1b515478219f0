"""Writes hbn/_core.pyi: _core.pyi.in, and a function for each operation of runtime/operations.def."""

import re
import sys
from pathlib import Path

# What Python gives for an argument, by its role.
TYPES = {
    "tensor": "Array",
    "mask": "Array",
    "parameter": "Array",
    "statistic": "Array",
    "number": "float",
    "activation": "tuple[str, float, float, float]",
}
# After forward's arguments; its momentum may be None where this counts.
COUNTED = ("num_batches_tracked", "Array | None")


def read(table: str) -> dict[str, list[tuple[str, str]]]:
    """The operations' arguments: name and type."""
    rows = [
        (kind, [column.strip() for column in columns.split(",")])
        for kind, columns in re.findall(r"^HBN_(\w+)\((.*)\)$", table, re.MULTILINE)
    ]
    roles = {columns[1]: columns[0] for kind, columns in rows if kind == "ARGUMENT"}
    operations: dict[str, list[tuple[str, str]]] = {}
    for kind, (name, *columns) in rows:
        if kind == "OPERATION":
            arguments = operations.setdefault(name, [])
        elif kind in ("IN", "INOUT", "OUT"):
            absent = "" if columns[0] == "required" else " | None"
            arguments.append((name, TYPES[roles[name]] + absent))
    return operations


def function(name: str, arguments: list[tuple[str, str]]) -> str:
    """A function whose arguments are given by position."""
    lines = "".join(f"    {argument}: {type},\n" for argument, type in arguments)
    return f"def {name}(\n{lines}    /,\n) -> None: ...\n"


def main(table: str, template: str, to: str) -> None:
    """Reads the table and the template."""
    operations = read(Path(table).read_text())
    counting = [(name, type + " | None" * (name == "momentum")) for name, type in operations["forward"]]
    functions = [function(name, arguments) for name, arguments in operations.items()]
    functions.append(function("forward_and_count", [*counting, COUNTED]))
    Path(to).write_text(Path(template).read_text() + "".join(functions))


if __name__ == "__main__":
    main(*sys.argv[1:])
