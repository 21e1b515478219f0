"""What is measured: operations, layouts, dtypes, shapes and the contestants, best known first."""

import itertools
import re
from typing import Iterator, NamedTuple

OPERATIONS = ["forward_training", "forward_inference", "backward"]
# What may be fused into them, in a run of its own, against the same one after the other.
FUSED_OPERATIONS = ["forward_training_relu", "forward_training_add_relu", "forward_inference_relu",
                    "forward_inference_add_relu", "backward_relu", "backward_add_relu"]
LAYOUTS = ["nchw", "nhwc"]
DTYPES = ["float32", "bfloat16", "float16"]
# What hbn is held against, and who has no result: the bytes that have to move, what has to be computed, and both together.
LIMITS = ["bound", "bound_two_sweeps", "arithmetic", "loops"]
CONTESTANTS = [*LIMITS, "hbn", "torch", "onednn"]
FUSED_CONTESTANTS = ["hbn", "unfused", "torch"]

SHAPES = [
    (32, 64, 112, 112), (32, 64, 56, 56), (32, 256, 56, 56), (32, 128, 28, 28), (32, 512, 28, 28),
    (32, 256, 14, 14), (32, 1024, 14, 14), (32, 512, 7, 7), (32, 2048, 7, 7),  # ResNet-50's, with 32 images
    (20, 100, 35, 45),  # the example of PyTorch's documentation
    (1, 64, 112, 112), (8, 3, 224, 224), (2, 251, 28, 28),  # one image; few channels; odd ones
    (2, 64, 28, 28), (128, 96, 17, 17), (24, 144, 75, 75),  # in L2; planes that end within a line
    (12, 4, 8, 8), (256, 64, 1, 1),  # the cost of a call
]
QUICK_SHAPES = [(32, 64, 56, 56), (32, 256, 14, 14), (32, 2048, 7, 7), (20, 100, 35, 45), (8, 3, 224, 224),
                (12, 4, 8, 8)]


FUSED_SHAPES = [shape for shape in SHAPES if shape[0] == 32]  # more than caches hold


class Cell(NamedTuple):
    """One row of the results; every contestant runs it."""

    operation: str
    layout: str
    dtype: str
    shape: tuple[int, int, int, int]

    def element_bytes(self) -> int:
        """Bytes of one element of x."""
        return 4 if self.dtype == "float32" else 2

    def tensor_bytes(self) -> int:
        """Bytes of x."""
        n, c, h, w = self.shape
        return n * c * h * w * self.element_bytes()

    def shape_name(self) -> str:
        """For example 32x64x56x56."""
        return "x".join(map(str, self.shape))

    def name(self) -> str:
        """What --filter's expressions are matched against."""
        return f"{self.operation} {self.layout} {self.dtype} {self.shape_name()}"


def cells(filters: list[str], quick: bool, fused: bool = False) -> list[Cell]:
    """The grid's cells whose names match every expression in `filters`, those with the same x together."""
    every = _fused_cells() if fused else _all_cells(quick)
    return [cell for cell in every if all(re.search(f, cell.name()) for f in filters)]


def _fused_cells() -> Iterator[Cell]:
    for shape, dtype, layout, operation in itertools.product(FUSED_SHAPES, DTYPES, LAYOUTS, FUSED_OPERATIONS):
        yield Cell(operation, layout, dtype, shape)


def _all_cells(quick: bool) -> Iterator[Cell]:
    for shape, dtype in itertools.product(QUICK_SHAPES if quick else SHAPES, DTYPES):
        # A quick look takes float32, and one shape in bfloat16.
        if quick and dtype != "float32" and (dtype, shape) != ("bfloat16", QUICK_SHAPES[0]):
            continue
        for layout, operation in itertools.product(LAYOUTS, OPERATIONS):
            yield Cell(operation, layout, dtype, shape)
