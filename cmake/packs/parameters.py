"""Schedule parameters of a pack's kernels: those of schedules/parameters.def, and how much its compiler optimizes.

`lanes=16 forward_training:map_unroll=4,lanes=8` gives values to all functions, and to single ones, which go before.
What is given to all is left out where it has no effect on a function's kernel, and must have one on some.
"""

import re
import sys
from collections.abc import Iterable

from packs import table
from packs.functions import Function
from packs.shell import Failure, run
from packs.targets import Target

Values = dict[str, int]

ROWS = {row["name"]: row for row in table.rows("HBN_SCHEDULE_PARAMETER", table.ROOT / "schedules" / "parameters.def")}

# Of C++ that Halide wrote and a pack's compiler compiles: -Os is the default.
OPTIMIZE = "optimize"
OPTIMIZE_VALUES = [2]


def allowed(target: Target, layout: str) -> dict[str, list[int]]:
    """The parameters that may have an effect, and their values; 0, for the default, is another of each."""
    found = {name: [int(value) for value in row["values"].split()] for name, row in ROWS.items()
             if target.family() in row["families"].split() and layout in row["layouts"].split()}
    return found | ({OPTIMIZE: OPTIMIZE_VALUES} if target.c_source and not target.as_sources else {})


class Parameters:
    """Those that PARAMETERS gives to the functions of a pack."""

    def __init__(self, text: str, target_name: str, target: Target, layout: str, functions: Iterable[str]) -> None:
        """Exits where the text gives what there is not."""
        self.common: Values = {}
        self.own: dict[str, Values] = {name: {} for name in functions}
        known, where = allowed(target, layout), f"TARGET={target_name} LAYOUT={layout}"
        for word in text.split():
            match = re.fullmatch(r"(?:(\w+):)?(\w+=-?\d+(?:,\w+=-?\d+)*)", word)
            if not match:
                sys.exit(f"PARAMETERS: '{word}' is not as in lanes=16, or in forward_training:lanes=16,map_unroll=4")
            if match[1] and match[1] not in self.own:
                sys.exit(f"PARAMETERS: '{match[1]}' is not one of OPS={','.join(self.own)}")
            for setting in match[2].split(","):
                name, _, value = setting.partition("=")
                if name not in known:
                    there = "is not for" if name in ROWS or name == OPTIMIZE else "is unknown for"
                    sys.exit(f"PARAMETERS: {name} {there} {where}, which has {', '.join(known)}")
                if int(value) not in (0, *known[name]):
                    values = " ".join(map(str, known[name]))
                    sys.exit(f"PARAMETERS: {name}={int(value)}: allowed are {values}, and 0 for the default")
                (self.own[match[1]] if match[1] else self.common)[name] = int(value)
        self.used: set[str] = set()
        self.with_effect: set[str] = set()

    def emit(self, function: Function, command: list[object]) -> Values:
        """Runs a generator with a function's parameters, again without those that have no effect. Returns the rest."""
        name, own = function.name(), self.own[function.name()]
        if not function.operation.has_tensors():
            if own:
                sys.exit(f"PARAMETERS: {name} has none")
            run(*command)
            return {}
        values = {each: value for each, value in (self.common | own).items() if value}
        try:
            run(*command, *settings(values))
        except Failure as failure:
            effect = re.search(r"has no effect on this kernel; these have:(.*)", str(failure))
            if not effect:
                together = re.search(r"Error: (.*: allowed are .*)", str(failure))
                sys.exit(f"PARAMETERS: {name}: {together[1]}" if together else failure.code)
            here = [*effect[1].split(), OPTIMIZE]
            self.with_effect |= set(here)
            if strangers := [each for each in own if own[each] and each not in here]:
                sys.exit(f"PARAMETERS: {', '.join(strangers)} has no effect on {name}; these have: "
                         f"{', '.join(effect[1].split())}")
            values = {each: value for each, value in values.items() if each in here}
            run(*command, *settings(values))
        self.used |= set(values)
        return values

    def check_used(self) -> None:
        """Exits where what all functions were given had an effect on none."""
        if unused := [name for name, value in self.common.items() if value and name not in self.used
                      and not any(name in own for own in self.own.values())]:
            sys.exit(f"PARAMETERS: {', '.join(unused)} has no effect on {', '.join(self.own)}; these have: "
                     f"{', '.join(sorted(self.with_effect - {OPTIMIZE}))}")


def settings(values: Values) -> list[str]:
    """As generators take them."""
    return [f"{name}={value}" for name, value in values.items() if name != OPTIMIZE]
