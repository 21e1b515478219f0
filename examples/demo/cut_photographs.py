"""Cuts photographs into one (20, 3, 200, 200) float32 array of overlapping patches, values 0 to 255, as .npy.

usage: cut_photographs.py OUTPUT.npy [PHOTOGRAPH...]    (without any: the two that scikit-learn ships)
"""

import importlib.util
import pathlib
import sys

import numpy
from PIL import Image

SIZE, ROWS, COLUMNS = 200, 2, 5  # ten patches a photograph, from its edges inward


def shipped_photographs():
    # Found, not imported: scikit-learn is installed for its pictures, without what its code needs.
    package = pathlib.Path(importlib.util.find_spec("sklearn").origin).parent
    return [package / "datasets" / "images" / name for name in ("china.jpg", "flower.jpg")]


def patches(path):
    photograph = numpy.asarray(Image.open(path).convert("RGB"), dtype=numpy.float32).transpose(2, 0, 1)
    _, height, width = photograph.shape
    if min(height, width) < SIZE:
        sys.exit(f"{path}: smaller than {SIZE}x{SIZE}")
    for row in range(ROWS):
        for column in range(COLUMNS):
            top = (height - SIZE) * row // (ROWS - 1)
            left = (width - SIZE) * column // (COLUMNS - 1)
            yield photograph[:, top : top + SIZE, left : left + SIZE]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    output = pathlib.Path(sys.argv[1])
    output.parent.mkdir(parents=True, exist_ok=True)
    photographs = sys.argv[2:] or shipped_photographs()
    numpy.save(output, numpy.stack([patch for path in photographs for patch in patches(path)]))


if __name__ == "__main__":
    main()
