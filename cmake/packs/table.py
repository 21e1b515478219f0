"""The rows of runtime/operations.def and of tables like it."""

import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """A macro's name, and its columns by theirs."""

    kind: str
    columns: dict[str, str]


def read(path: pathlib.Path) -> list[Row]:
    """All rows, in order. A line `#define KIND(...)` names the columns of a kind."""
    names: dict[str, list[str]] = {}
    rows = []
    for line in path.read_text().splitlines():
        if match := re.match(r"#define (\w+)\((.*?)\)", line):
            names[match[1]] = split(match[2])
        elif match := re.fullmatch(r"(HBN_\w+)\((.*)\)", line):
            rows.append(Row(match[1], dict(zip(names[match[1]], split(match[2]), strict=False))))
    return rows


def split(columns: str) -> list[str]:
    """What commas separate."""
    return [column.strip() for column in columns.split(",")]


ROWS = read(ROOT / "runtime" / "operations.def")


def rows(kind: str, path: pathlib.Path | None = None) -> list[dict[str, str]]:
    """The columns of each row of a kind, of operations.def or of another table."""
    return [row.columns for row in (read(path) if path else ROWS) if row.kind == kind]


ROLES = {row["name"]: row["role"] for row in rows("HBN_ARGUMENT")}
