"""Kernels and C to objects."""

import pathlib
import re

from packs import table
from packs.binding import Bound, bind
from packs.functions import Function
from packs.parameters import OPTIMIZE
from packs.request import Request
from packs.shell import run
from packs.targets import BARE

SOURCES = table.ROOT / "runtime" / "pack"


class Compiler:
    """Makes objects in a folder."""

    def __init__(self, request: Request, folder: pathlib.Path, generators: str, halide_include: str) -> None:
        """`generators` is the program that emits kernels."""
        self.request = request
        self.target = request.target()
        self.folder = folder
        self.generators = pathlib.Path(generators).resolve()
        self.halide_include = pathlib.Path(halide_include).resolve()
        self.schedule = request.schedule()

    def kernel(self, function: Function) -> tuple[Bound, pathlib.Path]:
        """The kernel's object, without what nothing calls, and the function bound to it."""
        kernel = f"hbn_kernel_{function.name()}"
        output = "c_source" if self.target.c_source else "object"
        whole = self.folder / f"{kernel}.o"
        for halide_target in self.halide_targets():
            command = [self.generators, "-g", function.operation.generator, "-f", kernel, "-n", kernel,
                       "-o", self.folder, "-e", f"{output},c_header",
                       f"target={halide_target}-no_runtime-no_asserts-no_bounds_query", *self.parameters(function)]
            values = self.schedule.emit(function, command)
            if not self.without_float16_arithmetic() or not self.computes_in_float16(whole):
                break
        if self.target.c_source:
            self.cpp(self.folder / f"{kernel}.halide_generated.cpp", whole, values.get(OPTIMIZE))
        bound = bind(function, (self.folder / f"{kernel}.h").read_text())
        needed = self.folder / f"{function.name()}.kernel.o"
        if self.target.is_wasm():
            # Whose linker leaves nothing out before the program.
            return bound, whole.rename(needed)
        run(self.target.tool("ld"), "-r", "--gc-sections", f"--entry={kernel}", "-o", needed, whole)
        return bound, needed

    def parameters(self, function: Function) -> list[str]:
        """The generator's."""
        if not function.operation.has_tensors():
            return ["dtype=float32"]
        n, c, h, w = self.request.sizes()
        parameters = [f"dtype={self.request.dtype}", f"layout={self.request.layout}", "standalone=true", f"samples={n}",
                      f"num_features={c}", f"plane_size={h * w}", f"parallel={str(self.request.parallel()).lower()}"]
        return parameters + function.parameters()

    def halide_targets(self) -> list[str]:
        """What to compile a kernel for, the best first; the next one where that takes what the processor lacks."""
        best = []
        if self.without_float16_arithmetic():
            # For instructions that convert float16, which every 64-bit ARM has.
            best.append(self.target.halide + "-arm_fp16")
        return [*best, self.target.halide]

    def without_float16_arithmetic(self) -> bool:
        """Whether the tensors are of float16 and the processors 64-bit ARMs that may not compute in it."""
        return (self.request.dtype == "float16" and self.target.halide.startswith("arm-64")
                and "arm_fp16" not in self.target.halide)

    def computes_in_float16(self, code: pathlib.Path) -> bool:
        """Whether instructions do anything but convert float16."""
        listing = run(self.target.tool("objdump"), "-d", "--no-show-raw-insn", code)
        return re.search(r"\tf(?!cvt[ln]?2?\t)\w+\t.*(\bh\d|\.[48]h)", listing) is not None

    def cpp(self, source: pathlib.Path, to: pathlib.Path, optimize: int | None = None) -> None:
        """What Halide wrote in C++, compiled for size or by -O and a number."""
        # Newlib's int32_t is long, which Halide's templates don't expect.
        types = ("-U__INT32_TYPE__", "-D__INT32_TYPE__=int", "-U__UINT32_TYPE__", "-D__UINT32_TYPE__=unsigned")
        # What the compiler knows of the C library, it may use: the processor's square root.
        flags = [flag for flag in self.target.flags if flag not in BARE]
        run(self.target.tool("g++"), *flags, *types, "-std=c++17", f"-O{optimize or 's'}", "-fno-math-errno",
            "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-ffunction-sections",
            "-fdata-sections", "-w", f"-I{self.halide_include}", "-c", source, "-o", to)
        if not self.target.has_sqrt:
            run(self.target.tool("objcopy"), "--redefine-sym", "sqrt=hbn_pack_sqrt", to)

    def c(self, source: pathlib.Path, name: str) -> pathlib.Path:
        """An object from C, and how much stack it takes beside it."""
        to = self.folder / f"{name}.o"
        run(self.target.tool("gcc"), *self.target.flags, "-std=c99", "-Os", "-Wall", "-Wextra", "-Werror",
            "-fno-asynchronous-unwind-tables", "-ffunction-sections", "-fstack-usage", f"-I{self.folder.parent}",
            f"-I{self.folder}", f"-I{SOURCES}", "-isystem", self.halide_include, "-c", source, "-o", to)
        return to
