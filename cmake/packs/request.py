"""What a pack is asked to be."""

import re
import shutil
import sys
from typing import NamedTuple

from packs.functions import FUNCTIONS, Function
from packs.parameters import Parameters
from packs.targets import TARGETS, Target

DTYPES = ("float32", "float16", "bfloat16", "int8")


class Request(NamedTuple):
    """As `make pack` takes it."""

    target_name: str
    ops: str
    dtype: str = "float32"
    layout: str = "nchw"
    shape: str = ""
    threads: str = "none"
    parameters: str = ""

    def target(self) -> Target:
        """What it is compiled for."""
        return TARGETS[self.target_name]

    def functions(self) -> list[Function]:
        """What it holds."""
        return [FUNCTIONS[name] for name in self.ops.split(",")]

    def sizes(self) -> tuple[int, int, int, int]:
        """N, C, H and W; 0 where a size is left out, or not a number."""
        parts = self.shape.split(",") if self.shape else ["", "", "", ""]
        if len(parts) != 4 or not all(re.fullmatch(r"\d*|\w", part.strip()) for part in parts):
            sys.exit("SHAPE is four sizes, N,C,H,W, of which any may be left out: 1,64,, for example")
        n, c, h, w = (int(part) if part.strip().isdigit() else 0 for part in parts)
        return n, c, h, w

    def parallel(self) -> bool:
        """Whether kernels call the user's loop."""
        return self.threads == "hook"

    def schedule(self) -> Parameters:
        """How its kernels are scheduled."""
        return Parameters(self.parameters, self.target_name, self.target(), self.layout, self.ops.split(","))

    def command(self) -> str:
        """That makes it."""
        return (f"make pack TARGET={self.target_name} OPS={self.ops} DTYPE={self.dtype} LAYOUT={self.layout} "
                f"SHAPE={self.shape}" + " THREADS=hook" * self.parallel()
                + f" PARAMETERS='{' '.join(self.parameters.split())}'" * bool(self.parameters.strip()))

    def check(self) -> None:
        """Exits where something is asked for that there is not."""
        target = self.target()
        for name in self.ops.split(","):
            if name not in FUNCTIONS:
                sys.exit(f"OPS: '{name}' is none of {', '.join(FUNCTIONS)}")
        if others := [function.name() for function in self.functions() if not function.has_dtype(self.dtype)]:
            here = [name for name, function in FUNCTIONS.items() if function.has_dtype(self.dtype)]
            sys.exit(f"DTYPE={self.dtype} is for {', '.join(here)} only, not {', '.join(others)}")
        if target.c_source and self.dtype not in ("float32", "int8"):
            sys.exit(f"DTYPE={self.dtype} is not for TARGET={self.target_name}: Halide writes no 16-bit floats in C++")
        if self.parallel() and target.c_source:
            sys.exit(f"THREADS=hook is not for TARGET={self.target_name}")
        self.sizes()
        self.schedule()
        for tool in ("gcc", "ar", "ld", "size", "nm", "objdump"):
            if not shutil.which(target.tool(tool)):
                sys.exit(f"{target.tool(tool)} is missing: sudo apt-get install {' '.join(target.packages)}")
