"""Measures cells with one number of threads, on one size of pages, in a process of its own, for bench.py.

Settings come as JSON on standard input; for each cell one line of JSON goes to standard output.
"""

import ctypes
import json
import math
import mmap
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

from grid import DTYPES, FUSED_OPERATIONS, LAYOUTS, LIMITS, OPERATIONS, Cell

HUGE_PAGE = 2 << 20
MOMENTUM, EPS = 0.1, 1e-5
# After a pause of some milliseconds, a processor of a virtual machine is slow for about as long as this.
WARM_UP_SECONDS = 1.5e-3


class Problem(ctypes.Structure):
    """`struct problem` of contestant.h."""

    _fields_ = (
        [(name, ctypes.c_int32) for name in ("operation", "layout", "dtype", "threads")]
        + [(name, ctypes.c_int64) for name in ("n", "c", "h", "w")]
        + [(name, ctypes.c_void_p) for name in ("x", "grad_output", "out", "weight", "bias", "mean", "invstd",
                                                "running_mean", "running_var")]
        + [(name, ctypes.c_double) for name in ("momentum", "eps")]
        + [(name, ctypes.c_void_p) for name in ("residual", "grad_residual", "mask")]
    )


class Contestant:
    """A contestant's library."""

    def __init__(self, name: str, path: pathlib.Path):
        self.name = name
        library = ctypes.CDLL(str(path))
        library.prepare.restype = ctypes.c_void_p
        library.why.restype = library.version.restype = ctypes.c_char_p
        library.run.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.run.restype = ctypes.c_double
        library.release.argtypes = [ctypes.c_void_p]
        self.library = library

    def version(self) -> str:
        """What it says of itself."""
        return self.library.version().decode()


class Buffer:
    """Memory on pages of this size ("2m": where the system gives them), touched, at a multiple of 2 MB."""

    def __init__(self, size: int, pages: str):
        self.map = mmap.mmap(-1, math.ceil(size / HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE)
        self.map.madvise({"4k": mmap.MADV_NOHUGEPAGE, "2m": mmap.MADV_HUGEPAGE}[pages])
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        offset = -start % HUGE_PAGE
        self.address = start + offset
        self.bytes = np.frombuffer(self.map, np.uint8, offset=offset)
        self.bytes[:] = 0

    def as_array(self, dtype: str, count: int) -> np.ndarray:
        """Its beginning, as numbers; bfloat16 as their bits."""
        numpy_dtype = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]
        return self.bytes.view(numpy_dtype)[:count]


class Buffers:
    """Every cell's memory, as big as the biggest needs."""

    def __init__(self, cells: list[Cell], pages: str):
        size = max(cell.tensor_bytes() for cell in cells)
        self.x, self.grad_output, self.out = (Buffer(size, pages) for _ in range(3))
        fused = any(cell.operation in FUSED_OPERATIONS for cell in cells)
        self.fused = {name: Buffer(size, pages) for name in ("residual", "grad_residual", "mask")} if fused else {}
        channels = max(cell.shape[1] for cell in cells)
        names = ("weight", "bias", "mean", "invstd", "running_mean", "running_var")
        self.vectors = {name: Buffer(4 * channels, pages) for name in names}
        elements = max(math.prod(cell.shape) for cell in cells)
        # One draw for all: a gradient is x from its other end.
        self.normal = np.random.default_rng(0).standard_normal(elements, np.float32)
        self.filled: tuple[Any, ...] = ()

    def fill(self, cell: Cell) -> None:
        """Puts a cell's numbers in. Layouts share them: independent draws have no layout."""
        channels, count = cell.shape[1], math.prod(cell.shape)
        generator = np.random.default_rng(1)
        for name, buffer in self.vectors.items():
            low, high = (0.8, 1.2) if name in ("weight", "invstd", "running_var") else (-0.1, 0.1)
            buffer.as_array("float32", channels)[:] = generator.uniform(low, high, channels)
        if self.filled != (cell.dtype, cell.shape):
            put(self.x, cell.dtype, self.normal[:count])
            put(self.grad_output, cell.dtype, self.normal[:count][::-1])
            if self.fused:
                put(self.fused["residual"], cell.dtype, np.roll(self.normal[:count], count // 2))
            self.filled = (cell.dtype, cell.shape)

    def problem(self, cell: Cell, threads: int) -> Problem:
        """The cell as contestants take it."""
        addresses = {name: buffer.address for name, buffer in {**self.vectors, **self.fused}.items()}
        return Problem((OPERATIONS + FUSED_OPERATIONS).index(cell.operation), LAYOUTS.index(cell.layout), DTYPES.index(cell.dtype),
                       threads, *cell.shape, x=self.x.address, grad_output=self.grad_output.address,
                       out=self.out.address, momentum=MOMENTUM, eps=EPS, **addresses)

    def sample_out(self, cell: Cell) -> np.ndarray:
        """Some thousand elements of y or grad_input, as float32."""
        count = math.prod(cell.shape)
        out = self.out.as_array(cell.dtype, count)[::max(1, count // 4093)]
        if cell.dtype == "bfloat16":
            return (out.astype(np.uint32) << 16).view(np.float32)
        return out.astype(np.float32)


def put(buffer: Buffer, dtype: str, values: np.ndarray) -> None:
    """Writes float32 values as `dtype`."""
    out = buffer.as_array(dtype, values.size)
    if dtype == "bfloat16":
        out[:] = (np.ascontiguousarray(values).view(np.uint32) + 0x8000) >> 16
    else:
        out[:] = values


def settle(limit: float) -> None:
    """Waits until threads that the one before left spinning sleep: OpenMP's do for milliseconds."""
    deadline = time.perf_counter() + limit
    while time.perf_counter() < deadline:
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(0.0005)
        if time.process_time() - cpu < 0.4 * (time.perf_counter() - wall):
            return


def warm_up(contestant: Contestant, prepared: int) -> None:
    """Untimed calls: processors that slept, caches and threads are cold through no fault of the contestant's."""
    start = time.perf_counter()
    while True:
        contestant.library.run(prepared, 1)
        if time.perf_counter() - start > WARM_UP_SECONDS:
            return


def disagreement(outs: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference from hbn's result, relative to its largest value."""
    if "hbn" not in outs:
        return {}
    scale = float(np.abs(outs["hbn"]).max())
    return {name: float(np.abs(out - outs["hbn"]).max()) / scale for name, out in outs.items() if name != "hbn"}


class Measurement:
    """One cell."""

    def __init__(self, cell: Cell, contestants: list[Contestant], buffers: Buffers, settings: dict[str, Any]):
        self.cell, self.buffers, self.settings = cell, buffers, settings
        self.problem = buffers.problem(cell, settings["threads"])
        self.prepared: list[tuple[Contestant, int]] = []
        self.unsupported: dict[str, str] = {}
        self.repeats: dict[str, int] = {}
        buffers.fill(cell)
        outs = {}
        for contestant in contestants:
            buffers.out.bytes[:cell.tensor_bytes()] = 0  # nobody passes with another's result
            prepared = contestant.library.prepare(ctypes.byref(self.problem))
            if prepared is None:
                self.unsupported[contestant.name] = contestant.library.why().decode()
                continue
            self.prepared.append((contestant, prepared))
            if contestant.name not in LIMITS:
                outs[contestant.name] = buffers.sample_out(cell)
            self.repeats[contestant.name] = self.choose_repeats(contestant, prepared)
        self.disagreement = disagreement(outs)

    def choose_repeats(self, contestant: Contestant, prepared: int) -> int:
        """As many calls as make a sample long enough for the clock."""
        repeats = 1
        while repeats < 10000:
            seconds = contestant.library.run(prepared, repeats)
            if seconds >= self.settings["sample_seconds"]:
                break
            repeats = max(2 * repeats, math.ceil(repeats * self.settings["sample_seconds"] / max(seconds, 1e-9)))
        return min(repeats, 10000)

    def run(self, seconds: float) -> dict[str, Any]:
        """Interleaves the contestants, up to `rounds` times; less if `seconds` are over, but thrice at least."""
        times: dict[str, list[float]] = {contestant.name: [] for contestant, _ in self.prepared}
        start = time.perf_counter()
        for done in range(self.settings["rounds"]):
            if done >= 3 and time.perf_counter() - start > seconds:
                break
            for contestant, prepared in self.prepared:
                settle(self.settings["settle_seconds"])
                warm_up(contestant, prepared)
                repeats = self.repeats[contestant.name]
                times[contestant.name].append(contestant.library.run(prepared, repeats) / repeats)
        for contestant, prepared in self.prepared:
            contestant.library.release(prepared)
        return {**self.cell._asdict(), "threads": self.settings["threads"], "pages": self.settings["pages"],
                "times": times, "repeats": self.repeats,
                "unsupported": self.unsupported, "difference_from_hbn": self.disagreement}


def weight(cell: Cell) -> float:
    """About how long a cell takes, for sharing out the time."""
    return 1e6 + math.prod(cell.shape)


def load(settings: dict[str, Any]) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants whose libraries are there and load; and for the others, why not."""
    loaded, missing = [], {}
    for name in settings["contestants"]:
        path = pathlib.Path(settings["libraries"]) / f"contestant_{name}.so"
        try:
            loaded.append(Contestant(name, path))
        except OSError as error:
            missing[name] = str(error) if path.exists() else "not built: its package is not installed"
    return loaded, missing


def main() -> None:
    """Reads settings, writes results."""
    settings = json.loads(sys.stdin.readline())
    # Libraries may print; results have the only copy of standard output.
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # oneDNN has no other limit to its threads; it holds for every contestant. Must come before they are loaded.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:settings["threads"]])
    cells = [Cell(operation, layout, dtype, tuple(shape)) for operation, layout, dtype, shape in settings["cells"]]
    contestants, missing = load(settings)
    print(json.dumps({"versions": {c.name: c.version() for c in contestants}, "missing": missing}), file=results)
    buffers = Buffers(cells, settings["pages"])
    deadline = time.perf_counter() + settings["time_budget"]
    weights = [weight(cell) for cell in cells]
    for i, cell in enumerate(cells):
        share = (deadline - time.perf_counter()) * weights[i] / sum(weights[i:])
        print(json.dumps(Measurement(cell, contestants, buffers, settings).run(share)), file=results)


if __name__ == "__main__":
    main()
