"""What is tuned: cells, each one kernel on tensors of one dtype, layout and shape."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from .tables import tuned

Shape = tuple[int, int, int, int]


class Cell(NamedTuple):
    """One search."""

    kernel: str
    dtype: str
    layout: str  # of the caller's dense tensors
    shape: Shape
    threads: int

    def shape_name(self) -> str:
        """For example 32x64x56x56."""
        return "x".join(map(str, self.shape))

    def name(self) -> str:
        """For people, and of the study in Optuna."""
        return f"{self.kernel} {self.dtype} {self.layout} {self.shape_name()}"

    def sizes(self) -> dict[str, int]:
        """The numbers that shape classes are made of."""
        return tuned.sizes_of(self.shape)

    def request(self, for_times_alone: bool = False) -> str:
        """The line that the worker reads."""
        words = ["cell", self.kernel, self.dtype, self.layout, *self.shape, self.threads]
        return " ".join(map(str, words + ["timing"] * for_times_alone))


def make_cells(calls: Iterable[tuple[str, str, str, Shape]], threads: int) -> list[Cell]:
    """Of kernels, dtypes, layouts and shapes; small tensors first: what is learnt there is tried on large ones."""
    chosen = [Cell(*names, shape, threads) for *names, shape in sorted(calls, key=lambda one: math.prod(one[3]))]
    return list(dict.fromkeys(chosen))
