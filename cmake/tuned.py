"""Tuned entries (schedules/tuned/*.json): checks of a file, and what the build makes of it.

    python3 cmake/tuned.py schedules/tuned/x86.json           checks the file
    python3 cmake/tuned.py --schema                           writes schedules/tuned/schema.json, of the tables

CMake calls it with --output (cmake/HbnKernels.cmake). It needs Python's standard library alone.
"""

import argparse
import datetime
import json
import json.decoder
import json.scanner
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from packs.table import ROOT, rows  # noqa: E402

SCHEMA = ROOT / "schedules" / "tuned" / "schema.json"
PARAMETERS_TABLE = ROOT / "schedules" / "parameters.def"
THRESHOLDS_TABLE = ROOT / "runtime" / "engine" / "thresholds.def"
LAYOUTS_TABLE = ROOT / "runtime" / "layouts.def"

# The family of schedules (schedules/schedule.cpp) that a target's kernels have.
FAMILIES = {
    "x86": "x86",
    "arm64": "arm",
    "armv7": "arm",
    "portable": "portable",
    "opencl": "gpu",
    "cuda": "gpu",
}


KERNELS = [row["name"] for row in rows("HBN_KERNEL")]
DTYPES = next(row["dtypes"] for row in rows("HBN_VECTOR_KERNEL") if row["name"] == "convert").split()
LAYOUTS = [row["name"] for row in rows("HBN_LAYOUT", LAYOUTS_TABLE)]
THRESHOLDS = {row["name"]: row for row in rows("HBN_THRESHOLD", THRESHOLDS_TABLE)}
# Threshold `layout`: by name in a file, by number where the library decides.
LAYOUT_THRESHOLD = "layout"
SCHEDULE_PARAMETERS = {row["name"]: row for row in rows("HBN_SCHEDULE_PARAMETER", PARAMETERS_TABLE)}
# Entries that agree in these are about the same call, but for its shape.
GROUP = ("kernel", "dtype", "layout", "cpu", "instruction_set")


class Invalid(Exception):
    """A file that is not as it must be: one line for each thing that is wrong."""


# ---- the schema


def schema() -> dict[str, Any]:
    """What a file must be, as JSON Schema 2020-12. The tables have the names and numbers."""
    extent = {"type": "integer", "minimum": 1}
    interval = {"type": "array", "items": extent, "minItems": 2, "maxItems": 2}
    thresholds: dict[str, Any] = {}
    for name, row in THRESHOLDS.items():
        rule = {"type": "integer", "minimum": int(row["least"]), "maximum": int(row["most"])}
        if name == LAYOUT_THRESHOLD:
            rule = {"enum": LAYOUTS}
        thresholds[name] = rule | {"description": row["description"].strip('"')}
    parameters = {
        name: {"enum": sorted({0, *map(int, row["values"].split())}), "description": row["description"]}
        for name, row in SCHEDULE_PARAMETERS.items()
    }
    entry = {
        "kernel": {"enum": KERNELS, "description": "a row of runtime/operations.def"},
        "dtype": {"enum": DTYPES},
        "layout": {"enum": ["nchw", "nhwc"], "description": "of the caller's tensors, which are dense"},
        "shapes": {
            "description": "the least and the most of N, C and H * W",
            **_object({"n": interval, "c": interval, "plane": interval}),
        },
        "cpu": {
            "type": "string",
            "pattern": r"^[^\s\"\\()]+( [^\s\"\\()]+)+$",
            "description": "as hbn-info prints it: vendor, family and model, or implementer and part",
        },
        "instruction_set": {"type": "string", "pattern": "^[a-z0-9]+$"},
        "thresholds": {
            "description": "those that differ from the default (runtime/engine/thresholds.def)",
            **_object(thresholds, required=[]),
        },
        "kernel_layout": {"enum": LAYOUTS, "description": "which compiled kernel the parameters are for"},
        "parameters": {
            "description": "those that differ from the default (schedules/parameters.def)",
            **_object(parameters, required=[]),
        },
        "shape": {
            "description": "N, C, H and W of what was measured",
            "type": "array",
            "items": extent,
            "minItems": 4,
            "maxItems": 4,
        },
        "threads": {"type": "integer", "minimum": 1},
        "ratio": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "the default's time / the entry's: the worst of repeated runs' medians",
        },
        "worst_in_class": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "the least ratio at other shapes of the class, and with another number of threads",
        },
        "share_of_bound": {
            "description": "the memory bound / the time: the default's and the entry's",
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0},
            "minItems": 2,
            "maxItems": 2,
        },
        "measured_by": {
            "type": "string",
            "pattern": "^(llvm-mca [a-z0-9-]+|instructions)$",
            "description": "what the ratio is of, where it isn't time: cycles by llvm-mca's model of a CPU, or instructions",
        },
        "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
    }
    optional = ["kernel_layout", "worst_in_class", "share_of_bound", "measured_by"]
    entries = {"type": "array", "items": _object(entry, [name for name in entry if name not in optional])}
    target = {"enum": list(FAMILIES), "description": "as the file's name"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What hbn's tuner found for one target",
        "$comment": "Made by `python3 cmake/tuned.py --schema`",
        **_object({"$schema": {"type": "string"}, "target": target, "entries": entries}, ["target", "entries"]),
    }


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    rule = {"type": "object", "properties": properties, "additionalProperties": False}
    required = list(properties) if required is None else required
    return rule | ({"required": required} if required else {})


def schema_text() -> str:
    """The schema as the file has it."""
    return json.dumps(schema(), indent=2) + "\n"


# ---- JSON whose values know their lines


class Node(NamedTuple):
    """A value and its line: a scalar, a list of nodes or a dict of them."""

    value: Any
    line: int


def _parse(text: str) -> Node:
    def located(scan):
        def scan_value(string, index):
            line = string.count("\n", 0, index) + 1
            try:
                value, end = scan(string, index)
            except RecursionError:
                raise json.JSONDecodeError("nested too deeply", string, index) from None
            return Node(value, line), end

        return scan_value

    def members(pairs):
        for i, (key, node) in enumerate(pairs):
            if any(key == other for other, _ in pairs[:i]):
                raise _DuplicateKey(key, node.line)
        return dict(pairs)

    def no_constant(name):
        raise ValueError(f"{name} is no JSON")

    decoder = json.JSONDecoder(object_pairs_hook=members, parse_constant=no_constant)

    def parse_object(start, strict, scan, hook, pairs_hook, memo):
        return json.decoder.JSONObject(start, strict, located(scan), hook, pairs_hook, memo)

    def parse_array(start, scan):
        return json.decoder.JSONArray(start, located(scan))

    decoder.parse_object = parse_object
    decoder.parse_array = parse_array
    scan = located(json.scanner.py_make_scanner(decoder))
    begin = len(text) - len(text.lstrip(" \t\r\n"))
    try:
        node, end = scan(text, begin)
    except StopIteration as stop:
        raise json.JSONDecodeError("Expecting value", text, stop.value) from None
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip(" \t\r\n")))
    return node


class _DuplicateKey(Exception):
    pass


def _plain(node: Node) -> Any:
    value = node.value
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


# ---- classes of shapes


def sizes_of(shape: Sequence[int]) -> dict[str, int]:
    """The numbers that classes of shapes are made of."""
    n, c, h, w = shape
    return {"n": n, "c": c, "plane": h * w}


def overlap(a: dict[str, list[int]], b: dict[str, list[int]]) -> bool:
    """Whether a tensor could be of both classes."""
    return all(a[name][0] <= b[name][1] and b[name][0] <= a[name][1] for name in a)


# ---- checks


class _Checker:
    """Checks of one file. Errors are (line, text)."""

    def __init__(self, target: str):
        self.target = target
        self.errors: list[tuple[int, str]] = []

    def error(self, node: Node, path: str, text: str) -> None:
        self.errors.append((node.line, f"{path}: {text}" if path else text))

    def check(self, node: Node, rule: dict[str, Any], path: str) -> None:
        """By the part of JSON Schema that schema() uses."""
        value = node.value
        if "enum" in rule:
            if value not in rule["enum"] or isinstance(value, bool):
                self.error(node, path, f"{_spell(node)} is none of {_names(rule['enum'])}")
            return
        types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
        if not isinstance(value, types[rule["type"]]) or isinstance(value, bool):
            article = "an" if rule["type"][0] in "aio" else "a"
            self.error(node, path, f"expected {article} {rule['type']}, got {_spell(node)}")
        elif rule["type"] == "object":
            self.check_members(node, rule, path)
        elif rule["type"] == "array":
            least, most = rule.get("minItems", 0), rule.get("maxItems", sys.maxsize)
            if not least <= len(value) <= most:
                self.error(node, path, f"expected {least} values, got {len(value)}")
            for i, item in enumerate(value):
                self.check(item, rule["items"], f"{path}[{i}]")
        elif rule["type"] == "string":
            if not re.search(rule.get("pattern", ""), value):
                self.error(node, path, f"{_spell(node)} does not match {rule['pattern']}")
        elif "exclusiveMinimum" in rule and value <= rule["exclusiveMinimum"]:
            self.error(node, path, f"expected more than {rule['exclusiveMinimum']}, got {value}")
        elif "maximum" in rule and not rule["minimum"] <= value <= rule["maximum"]:
            self.error(node, path, f"expected {rule['minimum']} to {rule['maximum']}, got {value}")
        elif "minimum" in rule and value < rule["minimum"]:
            self.error(node, path, f"expected {rule['minimum']} or more, got {value}")

    def check_members(self, node: Node, rule: dict[str, Any], path: str) -> None:
        known = rule["properties"]
        for key, member in node.value.items():
            at = f"{path}.{key}" if path else key
            if key in known:
                self.check(member, known[key], at)
            else:
                self.error(member, at, f"unknown key, expected one of {_names(known)}")
        for key in rule.get("required", []):
            if key not in node.value:
                self.error(node, path, f"lacks '{key}'")

    def check_entry(self, entry: Node, path: str, build: "Build | None") -> None:
        """What the schema can't say, of an entry that it finds nothing wrong with."""
        values, e = entry.value, _plain(entry)
        for key, interval in e["shapes"].items():
            if interval[0] > interval[1]:
                self.error(
                    values["shapes"].value[key],
                    f"{path}.shapes.{key}",
                    f"expected the least before the most, got {interval}",
                )
        for key, size in sizes_of(e["shape"]).items():
            least, most = e["shapes"][key]
            if least <= most and not least <= size <= most:
                text = f"the shape that was measured is not of the class: {key} is {size}, not {least} to {most}"
                self.error(values["shape"], f"{path}.shape", text)
        try:
            datetime.date.fromisoformat(e["date"])
        except ValueError:
            self.error(values["date"], f"{path}.date", f"{_spell(values['date'])} is no day, expected YYYY-MM-DD")
        if not e["thresholds"] and not e["parameters"]:
            self.error(entry, path, "expected a threshold or a parameter that differs from the default")
        if bool(e["parameters"]) != ("kernel_layout" in e):
            self.error(entry, path, "expected kernel_layout where there are parameters, and only there")
        for name, value in e["thresholds"].items():
            if str(value) == THRESHOLDS[name]["initial"]:
                self.error(
                    values["thresholds"].value[name],
                    f"{path}.thresholds.{name}",
                    f"{value} is the default, which is left out",
                )
        for name in e["parameters"]:
            self.check_parameter(e, name, values["parameters"].value[name], f"{path}.parameters.{name}")
        if build:
            build.check_entry(self, entry, path)

    def check_parameter(self, e: dict[str, Any], name: str, node: Node, path: str) -> None:
        row = SCHEDULE_PARAMETERS[name]
        family = FAMILIES[self.target]
        if family not in row["families"].split():
            self.error(node, path, f"has no effect on {self.target}: it is for {row['families']}")
        elif e.get("kernel_layout") not in row["layouts"].split() and "kernel_layout" in e:
            self.error(node, path, f"has no effect on {e['kernel_layout']}: it is for {row['layouts']}")

    def check_overlap(self, entries: list[Node]) -> None:
        """No call may have two entries."""
        seen: dict[tuple, list[tuple[Node, dict[str, Any]]]] = {}
        for i, node in enumerate(entries):
            e = _plain(node)
            key = tuple(e[name] for name in GROUP)
            for other, shapes in seen.setdefault(key, []):
                if overlap(e["shapes"], shapes):
                    self.error(
                        node.value["shapes"],
                        f"entries[{i}].shapes",
                        f"overlap those of the entry of line {other.line} for the same kernel, dtype, layout, CPU and "
                        f"instruction set: a shape may have one",
                    )
            seen[key].append((node, e["shapes"]))


def _names(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"


def _spell(node: Node) -> str:
    kinds = {dict: "an object", list: "an array"}
    return kinds.get(type(node.value)) or json.dumps(node.value)


def built_kernels(text: str) -> set[tuple[str, ...]]:
    """Kernel, dtype and layout of each kernel that a build's hbn_kernels.h names."""
    return set(re.findall(r"^HBN_BUILT_KERNEL\((\w+), (\w+), (\w+)\)$", text, re.MULTILINE))


class Build:
    """The kernels and instruction sets that a build has, and could have."""

    def __init__(self, kernels: str, built: str, all_sets: list[str], built_sets: list[str]):
        """Of lines "kernel dtype layout", and of the text of hbn_kernels.h."""
        self.kernels = {tuple(line.split()) for line in kernels.splitlines()}
        self.built = built_kernels(built)
        self.all_sets, self.built_sets = all_sets, built_sets

    def check_entry(self, checker: _Checker, entry: Node, path: str) -> None:
        """That the target has the entry's kernel and instruction set."""
        values, e = entry.value, _plain(entry)
        layouts = [layout for layout in LAYOUTS if (e["kernel"], e["dtype"], layout) in self.kernels]
        if not layouts:
            checker.error(values["dtype"], f"{path}.dtype", f"{checker.target} has no {e['kernel']} for {e['dtype']}")
        elif e.get("kernel_layout", layouts[0]) not in layouts:
            text = f"{e['kernel']} for {e['dtype']} has {_names(layouts)}, not {e['kernel_layout']}"
            checker.error(values["kernel_layout"], f"{path}.kernel_layout", text)
        if e["instruction_set"] not in self.all_sets:
            node = values["instruction_set"]
            checker.error(node, f"{path}.instruction_set", f"{_spell(node)} is none of {_names(self.all_sets)}")

    def has(self, e: dict[str, Any]) -> bool:
        """Whether it is in this build, which may be of few kernels."""
        return e["instruction_set"] in self.built_sets and any(
            (e["kernel"], e["dtype"], layout) in self.built for layout in LAYOUTS
        )


def load(path: pathlib.Path, target: str | None = None, build: Build | None = None) -> list[tuple[int, dict[str, Any]]]:
    """The file's entries, with their lines. `target`: the file's name, if none.

    Raises:
        Invalid: with a line for each thing that is wrong.
    """
    checker = _Checker(target or path.stem)
    name = place_of(path)
    try:
        text = path.read_text(encoding="utf-8")
        root = _parse(text)
    except OSError as e:
        raise Invalid(f"{name}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{name}:1: is no UTF-8") from None
    except json.JSONDecodeError as e:
        raise Invalid(f"{name}:{e.lineno}: is no JSON: {e.msg}") from None
    except _DuplicateKey as e:
        raise Invalid(f"{name}:{e.args[1]}: '{e.args[0]}' is there twice") from None
    except ValueError as e:
        raise Invalid(f"{name}:1: {e}") from None
    rule = schema()
    checker.check(root, rule, "")
    if not checker.errors:
        if root.value["target"].value != checker.target:
            checker.error(root.value["target"], "target", f"expected {checker.target}, as the file's name")
        entries = root.value["entries"].value
        for i, entry in enumerate(entries):
            checker.check_entry(entry, f"entries[{i}]", build)
        if not checker.errors:
            checker.check_overlap(entries)
    if checker.errors:
        raise Invalid("\n".join(f"{name}:{line}: {text}" for line, text in sorted(checker.errors)))
    return [(entry.line, _plain(entry)) for entry in root.value["entries"].value]


def place_of(path: pathlib.Path) -> str:
    """The path within the repository, or the file's name."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


# ---- what the build takes


def tuned_kernels(entries: list[tuple[int, dict[str, Any]]]) -> dict[tuple, int]:
    """The number of each tuned kernel: the first entry's that has it."""
    numbers: dict[tuple, int] = {}
    for i, (_, e) in enumerate(entries):
        if e["parameters"]:
            numbers.setdefault(_tuned_kernel(e), i)
    return numbers


def _tuned_kernel(e: dict[str, Any]) -> tuple:
    parameters = tuple(sorted(e["parameters"].items()))
    return e["kernel"], e["dtype"], e["kernel_layout"], e["instruction_set"], parameters


def header(path: pathlib.Path, entries: list[tuple[int, dict[str, Any]]], build: Build, prefix: str = "") -> str:
    """hbn_tuned.h: a row for each entry of the build; one with a kernel has its row next. `prefix`: of numbers."""
    place = place_of(path)
    numbers = tuned_kernels(entries)
    lines = []
    for line, e in entries:
        if not build.has(e):
            continue
        thresholds = []
        for name, value in e["thresholds"].items():
            number = LAYOUTS.index(value) if name == LAYOUT_THRESHOLD else value
            thresholds.append(f"{{&Thresholds::{name}, {number}}}")
        columns = [e["kernel"], e["dtype"], e.get("kernel_layout", "strided")]
        columns += ["true, false" if e["layout"] == "nchw" else "false, true"]
        columns += [f"{least}, {most}" for least, most in (e["shapes"][axis] for axis in ("n", "c", "plane"))]
        columns += [json.dumps(e["cpu"]), str(build.built_sets.index(e["instruction_set"]))]
        columns += [json.dumps(f"{place}:{line}"), repr(float(e["ratio"])), *thresholds]
        lines.append(f"HBN_TUNED_ENTRY({', '.join(columns)})")
        if e["parameters"]:
            kernel = _tuned_kernel(e)
            lines.append(f"HBN_TUNED_KERNEL({', '.join(kernel[:3])}, {prefix}{numbers[kernel]})")
    return (
        f"// Generated by cmake/tuned.py of {place}. Define the macros that are wanted.\n"
        "#ifndef HBN_TUNED_ENTRY\n#define HBN_TUNED_ENTRY(...)\n#endif\n"
        "#ifndef HBN_TUNED_KERNEL\n#define HBN_TUNED_KERNEL(kernel, dtype, layout, number)\n#endif\n"
        + "".join(line + "\n" for line in lines)
        + "#undef HBN_TUNED_ENTRY\n#undef HBN_TUNED_KERNEL\n"
    )


def kernel_list(entries: list[tuple[int, dict[str, Any]]], build: Build) -> str:
    """For CMake, a line for each tuned kernel: kernel dtype layout number instruction_set name=value..."""
    return "".join(
        " ".join([*kernel[:3], str(number), kernel[3], *(f"{name}={value}" for name, value in kernel[4])]) + "\n"
        for kernel, number in tuned_kernels(entries).items()
        if build.has(entries[number][1])
    )


def _write(path: pathlib.Path, text: str) -> None:
    """Leaves a file that has the text as it is, so that nothing is built again for it."""
    if not path.exists() or path.read_text() != text:
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        os.replace(part, path)


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path, nargs="*", help="tuned entries of one target")
    parser.add_argument("--schema", action="store_true", help="write the schema")
    parser.add_argument("--target", help="of the file; its name without .json, if not given")
    parser.add_argument("--kernels", type=pathlib.Path, help="a line 'kernel dtype layout' for each the target has")
    parser.add_argument("--built", type=pathlib.Path, help="the build's hbn_kernels.h")
    parser.add_argument("--instruction-sets", help="the target's, separated by commas")
    parser.add_argument("--built-sets", help="the build's, separated by commas")
    parser.add_argument("--prefix", default="", help="before numbers in names of kernels")
    parser.add_argument("--output", type=pathlib.Path, help="folder for hbn_tuned.h and hbn_tuned_kernels.txt")
    args = parser.parse_args()
    if args.schema:
        _write(SCHEMA, schema_text())
    build = None
    if args.output:
        build = Build(
            args.kernels.read_text(),
            args.built.read_text(),
            args.instruction_sets.split(","),
            args.built_sets.split(","),
        )
    for path in args.file:
        try:
            entries = load(path, args.target, build)
        except Invalid as e:
            print(e, file=sys.stderr)
            return 1
        if build:
            _write(args.output / "hbn_tuned.h", header(path, entries, build, args.prefix))
            _write(args.output / "hbn_tuned_kernels.txt", kernel_list(entries, build))
    return 0


if __name__ == "__main__":
    sys.exit(main())
