"""What a candidate may be.

A candidate names a kernel layout, thresholds and parameters. Parameters are those of parameters.def that have an
effect in the layout; thresholds those of thresholds.def that change how the kernel sees the cell's tensors, each with
one value for every view that it leads to. The space is finite, so that nothing needs measuring twice.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import tables

View = Callable[[dict[str, int | str]], str | None]
"""What the engine makes of the cell's tensors by some thresholds; None where that can't be told."""

UNKNOWN_STEPS = (-2, -1, 1, 2)
"""Where a threshold's effect can't be told: these powers of two times its default."""


class Candidate(NamedTuple):
    """Values that differ from the defaults, sorted by name. Without a kernel layout: the default itself."""

    kernel_layout: str = ""
    thresholds: tuple[tuple[str, int], ...] = ()
    parameters: tuple[tuple[str, int], ...] = ()

    def key(self) -> str:
        """The same for the same candidate, and readable."""
        settings = [f"{name}={value}" for name, value in self.thresholds + self.parameters]
        return " ".join([self.kernel_layout or "default", *settings])

    def all_thresholds(self) -> dict[str, int | str]:
        """With the one that asks for the kernel layout."""
        asked = {"layout": self.kernel_layout} if self.kernel_layout else {}
        return asked | dict(self.thresholds)


DEFAULT = Candidate()


class Choice(NamedTuple):
    """A parameter or a threshold, and the values that are tried, in their order."""

    name: str
    values: tuple[int, ...]
    default: int
    is_threshold: bool


class Space:
    """The candidates of a cell: for each kernel layout that serves it, choices."""

    def __init__(self, layouts: dict[str, list[Choice]], default_layout: str):
        """`default_layout` is the kernel layout that the default takes."""
        self.layouts, self.default_layout = layouts, default_layout

    def size(self) -> int:
        """The number of candidates."""
        return sum(math.prod(len(choice.values) for choice in choices) for choices in self.layouts.values())

    def suggest(self, trial: Any) -> Candidate:
        """A candidate by Optuna, which takes a value for its position: values near each other are alike."""
        layout = trial.suggest_categorical("layout", list(self.layouts))
        return self.of_positions(
            layout, [trial.suggest_int(f"{layout}.{c.name}", 0, len(c.values) - 1) for c in self.layouts[layout]]
        )

    def of_trial(self, params: dict[str, Any]) -> Candidate | None:
        """The candidate that a trial's values mean; None where some are missing."""
        layout = params.get("layout")
        if layout not in self.layouts:
            return None
        positions = [params.get(f"{layout}.{choice.name}") for choice in self.layouts[layout]]
        return None if None in positions else self.of_positions(layout, positions)

    def of_positions(self, layout: str, positions: list[int]) -> Candidate:
        """The candidate with these positions in the values of the layout's choices."""
        settings = [(c, c.values[position]) for c, position in zip(self.layouts[layout], positions, strict=True)]
        changed = [(c.is_threshold, c.name, value) for c, value in settings if value != c.default]
        return Candidate(
            layout,
            tuple(sorted((name, value) for is_threshold, name, value in changed if is_threshold)),
            tuple(sorted((name, value) for is_threshold, name, value in changed if not is_threshold)),
        )

    def positions(self, candidate: Candidate) -> list[int] | None:
        """The reverse; None where the candidate isn't in this space."""
        if candidate.kernel_layout not in self.layouts:
            return None
        settings = dict(candidate.thresholds + candidate.parameters)
        found = []
        for choice in self.layouts[candidate.kernel_layout]:
            value = settings.pop(choice.name, choice.default)
            if value not in choice.values:
                return None
            found.append(choice.values.index(value))
        return None if settings else found

    def params(self, candidate: Candidate) -> dict[str, Any] | None:
        """What Optuna calls a candidate; None where it isn't in this space."""
        positions = self.positions(candidate)
        if positions is None:
            return None
        layout = candidate.kernel_layout
        named = {f"{layout}.{c.name}": p for c, p in zip(self.layouts[layout], positions, strict=True)}
        return {"layout": layout} | named

    def plain(self) -> list[Candidate]:
        """Each layout's kernel as it is, that of the default first."""
        ordered = sorted(self.layouts, key=lambda layout: layout != self.default_layout)
        return [Candidate(layout) for layout in ordered]

    def neighbours(self, candidate: Candidate) -> list[Candidate]:
        """Those with one choice made otherwise: a step up or down, and from a parameter's default to any value."""
        positions, found = self.positions(candidate), []
        for i, choice in enumerate(self.layouts[candidate.kernel_layout]):
            for other in range(len(choice.values)):
                from_default = not choice.is_threshold and 0 in (other, positions[i])
                if other != positions[i] and (from_default or abs(other - positions[i]) == 1):
                    moved = positions[:i] + [other] + positions[i + 1 :]
                    found.append(self.of_positions(candidate.kernel_layout, moved))
        return found

    def everything(self) -> Iterator[Candidate]:
        """All candidates."""
        for layout, choices in self.layouts.items():
            for positions in itertools.product(*(range(len(choice.values)) for choice in choices)):
                yield self.of_positions(layout, list(positions))

    def random(self, generator: random.Random) -> Candidate:
        """Any candidate."""
        layout = generator.choice(list(self.layouts))
        return self.of_positions(layout, [generator.randrange(len(c.values)) for c in self.layouts[layout]])


def powers_of_two(least: int, most: int) -> list[int]:
    """All from `least` to `most`, and these two."""
    powers = (1 << i for i in range(most.bit_length() + 1))
    return sorted({least, most, *(power for power in powers if least <= power <= most)})


def threshold_choice(threshold: tables.Threshold, pinned: dict[str, int | str], view: View) -> Choice | None:
    """Of the values that lead to the same view of the tensors the one nearest to the default; None if all do."""
    name, default = threshold.name, threshold.default
    if view(pinned) is None:
        around = [default << step if step > 0 else default >> -step for step in UNKNOWN_STEPS]
        values = {default, *(value for value in around if threshold.least <= value <= threshold.most)}
    else:
        views: dict[str | None, int] = {}
        grid = {default, *powers_of_two(threshold.least, threshold.most)}
        for value in sorted(grid, key=lambda value: (value != default, abs(value - default))):
            views.setdefault(view(pinned | {name: value} if value != default else pinned), value)
        values = set(views.values())
    return Choice(name, tuple(sorted(values)), default, True) if len(values) > 1 else None


def make_space(
    layouts: list[str],
    default_layout: str,
    parameters: list[tables.Parameter],
    thresholds: list[tables.Threshold],
    view: View = lambda thresholds: None,
) -> Space:
    """The space of a cell that these kernel layouts serve; `parameters` are those of the target's family."""
    choices: dict[str, list[Choice]] = {}
    for layout in layouts:
        pinned = Candidate(layout).all_thresholds()
        choices[layout] = [
            Choice(p.name, tuple(p.values), 0, False) for p in parameters if layout in p.layouts and len(p.values) > 1
        ]
        found = (threshold_choice(threshold, pinned, view) for threshold in thresholds)
        choices[layout] += [choice for choice in found if choice]
    return Space(choices, default_layout)
