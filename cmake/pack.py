"""Makes a pack: a folder with a static library, a header and a size report, for a board. See `make pack`."""

import argparse
import functools
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ROOT / "runtime" / "pack"


class Target(NamedTuple):
    """What a pack is compiled for."""

    halide: str  # its target string
    tools: str  # prefix of gcc, ld and so on; of WebAssembly, LLVM's take the place of those
    flags: tuple[str, ...]
    packages: tuple[str, ...]  # of Debian, that hold those
    c_source: bool = False  # kernels by way of C++, which `tools` compile
    has_sqrt: bool = True  # of double
    as_sources: bool = False  # what goes into the pack; `tools` show that it compiles, and its size

    def is_wasm(self) -> bool:
        """WebAssembly, which is not ELF."""
        return self.halide.startswith("wasm")

    def tool(self, name: str) -> str:
        """A program of the tool chain, by its name in GNU's."""
        if self.is_wasm():
            return {"gcc": "clang", "ld": "wasm-ld"}.get(name, f"llvm-{name}")
        return self.tools + name


BARE = ("-ffreestanding",)
CORTEX_M_PACKAGES = ("gcc-arm-none-eabi", "libstdc++-arm-none-eabi-newlib")
TARGETS = {
    "linux-arm64": Target("arm-64-linux", "aarch64-linux-gnu-", ("-fPIC",), ("g++-aarch64-linux-gnu",)),
    "linux-arm64-fp16": Target("arm-64-linux-arm_fp16", "aarch64-linux-gnu-", ("-fPIC", "-march=armv8.2-a+fp16"),
                               ("g++-aarch64-linux-gnu",)),
    "android-arm64": Target("arm-64-android", "aarch64-linux-gnu-", ("-fPIC", *BARE), ("g++-aarch64-linux-gnu",)),
    "linux-armv7": Target("arm-32-linux", "arm-linux-gnueabihf-", ("-fPIC", "-march=armv7-a+simd"),
                          ("g++-arm-linux-gnueabihf",)),
    "baremetal-arm64": Target("arm-64-noos", "aarch64-linux-gnu-", BARE, ("g++-aarch64-linux-gnu",)),
    "baremetal-cortex-m": Target("arm-32-noos-no_neon", "arm-none-eabi-",
                                 (*BARE, "-mthumb", "-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
                                 CORTEX_M_PACKAGES, c_source=True, has_sqrt=False),
    "baremetal-cortex-m7": Target("arm-32-noos-no_neon", "arm-none-eabi-",
                                  (*BARE, "-mthumb", "-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-d16"),
                                  CORTEX_M_PACKAGES, c_source=True),
    "wasm": Target("wasm-32-wasmrt-wasm_simd128-wasm_bulk_memory", "",
                   ("--target=wasm32-wasi", "-msimd128", "-mbulk-memory"),
                   ("clang", "lld", "llvm", "wasi-libc", "libclang-rt-14-dev-wasm32")),
    "linux-x86-64": Target("x86-64-linux-sse41", "", ("-fPIC",), ("g++",)),
    "portable": Target("arm-32-noos-no_neon", "", (), ("g++",), c_source=True, as_sources=True),
}


class Operation(NamedTuple):
    """A function of the pack."""

    source: str  # in runtime/pack
    generator: str
    relu: bool
    add: bool = False  # before the ReLU

    def activation(self) -> list[str]:
        """Parameters of the generator."""
        parameters = ["activation=relu"] * self.relu + ["add=true"] * self.add
        # Backward needs the mask; inference's result is all there is to keep.
        mask = ["with_mask=true"] * (self.relu and self.add and self.generator == "forward_training_whole")
        return parameters + mask


OPERATIONS = {
    "forward_inference": Operation("forward_inference", "forward_inference", False),
    "forward_inference_relu": Operation("forward_inference", "forward_inference", True),
    "forward_training": Operation("forward_training", "forward_training_whole", False),
    "forward_training_relu": Operation("forward_training", "forward_training_whole", True),
    "backward": Operation("backward", "backward_training", False),
    "backward_relu": Operation("backward", "backward_training", True),
    "forward_inference_add_relu": Operation("forward_inference", "forward_inference", True, True),
    "forward_training_add_relu": Operation("forward_training", "forward_training_whole", True, True),
    "backward_add_relu": Operation("backward", "backward_training", True, True),
    "fold": Operation("fold", "fold", False),
    "forward_folded": Operation("forward_folded", "forward_folded", False),
    "forward_folded_relu": Operation("forward_folded", "forward_folded", True),
}

ELEMENTS = {
    "float32": ("float", "float32."),
    "float16": ("uint16_t", "float16, as bits."),
    "bfloat16": ("uint16_t", "bfloat16, as bits."),
    "int8": ("int8_t", "int8."),
}


class Size(NamedTuple):
    """Of one operation, in bytes."""

    text: int
    data: int
    stack: int


class Pack:
    """What is asked for, and where it goes."""

    def __init__(self, *, target: str, ops: str, out: str | pathlib.Path, generators: str, halide_include: str,
                 dtype: str = "float32", layout: str = "nchw", shape: str = "", threads: str = "none") -> None:
        self.target_name = target
        self.target = TARGETS[target]
        self.operations = ops.split(",")
        self.dtype = dtype
        self.layout = layout
        self.shape = parse_shape(shape)
        self.parallel = threads == "hook"
        self.folder = pathlib.Path(out)
        self.generators = pathlib.Path(generators).resolve()
        self.halide_include = pathlib.Path(halide_include).resolve()
        self.work = self.folder / "objects"
        self.command = (f"make pack TARGET={self.target_name} OPS={ops} DTYPE={self.dtype} "
                        f"LAYOUT={self.layout} SHAPE={shape}" + " THREADS=hook" * self.parallel)
        self.check()

    def check(self) -> None:
        """Exits where something is asked for that there is not."""
        for name in self.operations:
            if name not in OPERATIONS:
                sys.exit(f"OPS: '{name}' is none of {', '.join(OPERATIONS)}")
        others = [name for name in self.operations if not re.match("fold|forward_folded", name)]
        if self.dtype == "int8" and others:
            sys.exit(f"DTYPE=int8 is for fold and forward_folded only, not {', '.join(others)}")
        if self.target.c_source and self.dtype not in ("float32", "int8"):
            sys.exit(f"DTYPE={self.dtype} is not for TARGET={self.target_name}: Halide writes no 16-bit floats in C++")
        if self.parallel and self.target.c_source:
            sys.exit(f"THREADS=hook is not for TARGET={self.target_name}")
        for tool in ("gcc", "ar", "ld", "size", "nm", "objdump"):
            if not shutil.which(self.target.tool(tool)):
                sys.exit(f"{self.target.tool(tool)} is missing: sudo apt-get install "
                         f"{' '.join(self.target.packages)}")

    def make(self) -> dict[str, Size]:
        """Writes all of the folder but README.md and returns sizes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.write_headers()
        objects, sizes = [], {}
        common = [self.compile_c(SOURCES / "pack.c", "pack", [])]
        if not self.target.has_sqrt:
            common.append(self.compile_c(SOURCES / "sqrt.c", "sqrt", []))
        if self.parallel:
            common.append(self.compile_c(SOURCES / "parallel.c", "parallel", []))
        for name in self.operations:
            kernel = self.compile_kernel(name)
            wrapper = self.compile_wrapper(name)
            objects += [kernel, wrapper]
            sizes[name] = self.measure(name, [*common, kernel, wrapper])
        if self.target.as_sources:
            self.write_sources()
        else:
            run(self.target.tool("ar"), "rcsD", self.folder / "libhbn.a", *common, *objects)
        return sizes

    def write_sources(self) -> None:
        """What libhbn.a would be made from, and a CMakeLists.txt that makes it."""
        sources = self.folder / "src"
        sources.mkdir()
        wanted = {"pack", *(OPERATIONS[name].source for name in self.operations)}
        files = [*(SOURCES / f"{name}.c" for name in wanted), SOURCES / "pack.h", self.work / "hbn_pack.h",
                 self.halide_include / "HalideRuntime.h", *self.work.glob("*.cpp"), *self.work.glob("hbn_kernel_*.h")]
        for file in files:
            shutil.copy(file, sources / file.name)
        for name in self.operations:
            # Under its names; the source is included as it is.
            defines = [define[2:].replace("=", " ") for define in self.defines(name)]
            text = "".join(f"#define {define}\n" for define in defines)
            source = OPERATIONS[name].source
            (sources / f"hbn_{name}.c").write_text(
                f'#include "hbn_kernel_{name}.h"\n{text}#include "{source}.c"\n')
        (self.folder / "CMakeLists.txt").write_text(CMAKE_LISTS)

    # ---- headers

    def write_headers(self) -> None:
        """hbn.h, for users, and hbn_pack.h, for runtime/pack."""
        template = (SOURCES / "hbn.h.in").read_text()
        element, element_doc = ELEMENTS[self.dtype]
        blocks = re.split(r"^//@ (\w+)\n", template, flags=re.M)
        text = blocks[0]
        for name, block in zip(blocks[1::2], blocks[2::2]):
            if name == "end":
                text += block
                continue
            if name == "parallel" and self.parallel:
                text += block
            for operation in self.operations:
                if OPERATIONS[operation].source == name:
                    text += self.function(operation, block)
        fixed = [f"{axis} is {size}" if size else f"{axis} is any" for axis, size in zip("nchw", self.shape)]
        for key, value in {
            "WHAT": f"{self.dtype} for {self.target_name}", "COMMAND": self.command,
            "LAYOUT_WORDS": {"nchw": "(N, C, H, W)", "nhwc": "(N, H, W, C), channels last"}[self.layout],
            "ELEMENT": element, "ELEMENT_DOC": element_doc, "SHAPE_WORDS": ", ".join(fixed),
        }.items():
            text = text.replace(f"@{key}@", value)
        (self.folder / "hbn.h").write_text(text)
        n, c, h, w = self.shape
        (self.work / "hbn_pack.h").write_text(
            f"#define HBN_PACK_N {n}\n#define HBN_PACK_C {c}\n#define HBN_PACK_H {h}\n#define HBN_PACK_W {w}\n"
            f"#define HBN_PACK_ANY_FREE {int(0 in self.shape)}\n#define HBN_PACK_NHWC {int(self.layout == 'nhwc')}\n")

    @staticmethod
    def function(operation: str, block: str) -> str:
        """A function's declaration."""
        relu, add = OPERATIONS[operation].relu, OPERATIONS[operation].add
        suffix = ("_add" if add else "") + "_relu" if relu else ""
        for key, value in {
            "NAME": operation, "RELU": ", and 0 where that is negative" if relu else "",
            "BACKWARD": "backward" + suffix,
            "FORWARD": "forward_training" + suffix,
            "ADDED": " + residual" if add else "", "RESIDUAL": " const hbn_element *residual," if add else "",
            "MASK_DOC": "\n *  mask has a byte an element: 1 where y is positive, else 0. y overlaps nothing." if add else "",
            "MASK_OUT": " uint8_t *mask," if add else "",
            "MORE": " const uint8_t *mask," if add else " const float *bias," if relu else "",
            "GRAD_DOC": "\n *  The residual's is grad_output where mask is not 0. The outputs overlap nothing." if add else "",
            "GRAD_RESIDUAL": " hbn_element *grad_residual," if add else "",
        }.items():
            block = block.replace(f"@{key}@", value)
        comment, declaration = block.split("*/")
        lines = [" ".join(line.removeprefix("/**").removeprefix(" *").split()) for line in comment.splitlines()]
        wrap = functools.partial(textwrap.fill, width=110, break_long_words=False, break_on_hyphens=False)
        return (wrap(" ".join(lines), initial_indent="/** ", subsequent_indent=" *  ") + " */\n" +
                wrap(parameters_whole(declaration), subsequent_indent="    ").replace("\0", " ") + "\n\n")

    # ---- code

    def compile_kernel(self, name: str) -> pathlib.Path:
        """The kernel's object, without what nothing calls."""
        operation = OPERATIONS[name]
        kernel = f"hbn_kernel_{name}"
        n, c, h, w = self.shape
        parameters = ["dtype=float32"]
        if operation.generator != "fold":
            parameters = [f"dtype={self.dtype}", f"layout={self.layout}", "standalone=true", f"samples={n}",
                          f"num_features={c}", f"plane_size={h * w}", f"parallel={str(self.parallel).lower()}"]
            if self.target.c_source:
                parameters.append("lanes=1")
            parameters += operation.activation()
        output = "c_source" if self.target.c_source else "object"
        whole = self.work / f"{kernel}.o"
        for halide_target in self.halide_targets():
            run(self.generators, "-g", operation.generator, "-f", kernel, "-n", kernel, "-o", self.work, "-e",
                     f"{output},c_header", f"target={halide_target}-no_runtime-no_asserts-no_bounds_query", *parameters)
            if not self.without_float16_arithmetic() or not self.computes_in_float16(whole):
                break
        if self.target.c_source:
            self.compile_cpp(next(self.work.glob(f"{kernel}*.cpp")), whole)
        needed = self.work / f"{name}.kernel.o"
        if self.target.is_wasm():
            # Whose linker leaves nothing out before the program.
            return whole.rename(needed)
        run(self.target.tool("ld"), "-r", "--gc-sections", f"--entry={kernel}", "-o", needed, whole)
        return needed

    def halide_targets(self) -> list[str]:
        """What to compile a kernel for, the best first; the next one where that takes what the processor lacks."""
        best = []
        if self.without_float16_arithmetic():
            # For instructions that convert float16, which every 64-bit ARM has.
            best.append(self.target.halide + "-arm_fp16")
        return [*best, self.target.halide]

    def without_float16_arithmetic(self) -> bool:
        """Whether the tensors are of float16 and the processors 64-bit ARMs that may not compute in it."""
        return (self.dtype == "float16" and self.target.halide.startswith("arm-64")
                and "arm_fp16" not in self.target.halide)

    def computes_in_float16(self, code: pathlib.Path) -> bool:
        """Whether instructions do anything but convert float16."""
        listing = run(self.target.tool("objdump"), "-d", "--no-show-raw-insn", code)
        return re.search(r"\tf(?!cvt[ln]?2?\t)\w+\t.*(\bh\d|\.[48]h)", listing) is not None

    def compile_cpp(self, source: pathlib.Path, to: pathlib.Path) -> None:
        """What Halide wrote in C++."""
        # Newlib's int32_t is long, which Halide's templates don't expect.
        types = ("-U__INT32_TYPE__", "-D__INT32_TYPE__=int", "-U__UINT32_TYPE__", "-D__UINT32_TYPE__=unsigned")
        # What the compiler knows of the C library, it may use: the processor's square root.
        flags = [flag for flag in self.target.flags if flag not in BARE]
        run(self.target.tool("g++"), *flags, *types, "-std=c++17", "-Os", "-fno-math-errno", "-ffp-contract=off",
                 "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-ffunction-sections", "-fdata-sections", "-w",
                 f"-I{self.halide_include}", "-c", source, "-o", to)
        if not self.target.has_sqrt:
            run(self.target.tool("objcopy"), "--redefine-sym", "sqrt=hbn_pack_sqrt", to)

    def compile_wrapper(self, name: str) -> pathlib.Path:
        """The function that users call."""
        header = ["-include", str(self.work / f"hbn_kernel_{name}.h")]
        return self.compile_c(SOURCES / f"{OPERATIONS[name].source}.c", name, header + self.defines(name))

    @staticmethod
    def defines(name: str) -> list[str]:
        """What an operation's source is compiled with."""
        relu, add = OPERATIONS[name].relu, OPERATIONS[name].add
        return [f"-DHBN_FUNCTION=hbn_{name}", f"-DHBN_KERNEL=hbn_kernel_{name}",
                f"-DHBN_RELU={int(relu)}", f"-DHBN_ADD={int(add)}"]

    def compile_c(self, source: pathlib.Path, name: str, defines: list[str]) -> pathlib.Path:
        """An object from C."""
        to = self.work / f"{name}.o"
        run(self.target.tool("gcc"), *self.target.flags, "-std=c99", "-Os", "-Wall", "-Wextra", "-Werror",
                 "-fno-asynchronous-unwind-tables", "-ffunction-sections", "-fstack-usage", f"-I{self.folder}",
                 f"-I{self.work}", f"-I{SOURCES}", "-isystem", self.halide_include, *defines, "-c", source, "-o", to)
        return to

    # ---- sizes

    def measure(self, name: str, objects: list[pathlib.Path]) -> Size:
        """Of an operation with all that it calls."""
        stack = stack_of_wrapper(self.work / f"{name}.su") + stack_of_kernel(
            run(self.target.tool("objdump"), "-d", self.work / f"{name}.kernel.o"))
        callees = {"memcpy", "memset"} | ({"hbn_parallel_for"} if self.parallel else set())
        if self.target.is_wasm():
            return Size(self.link_wasm(name, objects, callees), 0, stack)
        linked = self.work / f"{name}.linked.o"
        run(self.target.tool("ld"), "-r", "--gc-sections", f"--entry=hbn_{name}", "-o", linked, *objects)
        text, data, bss = map(int, run(self.target.tool("size"), linked).splitlines()[1].split()[:3])
        undefined = {line.split()[-1] for line in run(self.target.tool("nm"), "-u", linked).splitlines()}
        allowed = callees | {"_GLOBAL_OFFSET_TABLE_"}
        if self.target.halide.startswith("arm-32"):
            # Arithmetic that the processor lacks, in libgcc.
            allowed |= {symbol for symbol in undefined if symbol.startswith("__aeabi_")}
        if undefined - allowed:
            sys.exit(f"{name} needs {', '.join(sorted(undefined - allowed))}")
        return Size(text, data + bss, stack)

    def link_wasm(self, name: str, objects: list[pathlib.Path], callees: set[str]) -> int:
        """Bytes of code and constants of a whole module, as WebAssembly's linker leaves out nothing sooner."""
        allowed, linked = self.work / "allowed", self.work / f"{name}.wasm"
        allowed.write_text("\n".join(callees))
        run(self.target.tool("ld"), "--no-entry", "--gc-sections", f"--export=hbn_{name}",
            f"--allow-undefined-file={allowed}", "-o", linked, *objects)
        sections = run(self.target.tool("objdump"), "-h", linked)
        return sum(int(size, 16) for size in re.findall(r"^ *\d+ (?:CODE|DATA) +([0-9a-f]{8}) ", sections, re.M))


def run(*command: object, text: str | None = None) -> str:
    """A command's output, given `text`; exits where it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, text=True, capture_output=True, check=False, input=text)
    if result.returncode:
        sys.exit(f"{shlex.join(words)}\n{result.stdout}{result.stderr}")
    return result.stdout


def parameters_whole(declaration: str) -> str:
    """On one line, where spaces that are no place to break it are zeros."""
    return ", ".join(" ".join(part.split()).replace(" ", "\0") for part in declaration.split(","))


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """N,C,H,W; 0 where a size is left out, or not a number."""
    parts = text.split(",") if text else ["", "", "", ""]
    if len(parts) != 4 or not all(re.fullmatch(r"\d*|\w", part.strip()) for part in parts):
        sys.exit("SHAPE is four sizes, N,C,H,W, of which any may be left out: 1,64,, for example")
    n, c, h, w = (int(part) if part.strip().isdigit() else 0 for part in parts)
    return n, c, h, w


def stack_of_wrapper(usage: pathlib.Path) -> int:
    """Of the compiler's -fstack-usage, the largest function's."""
    return max(int(line.split("\t")[1]) for line in usage.read_text().splitlines())


def stack_of_kernel(disassembly: str) -> int:
    """What functions take from the stack pointer, added up: they call each other once at most."""
    # WebAssembly's is a global.
    total = sum(map(int, re.findall(r"global\.get\t\d+\n.*i32\.const\t(\d+)\n.*i32\.sub", disassembly)))
    for line in disassembly.splitlines():
        if match := re.search(r"\tsub\t(?:sp, )?sp, (?:sp, )?#(0x[0-9a-f]+|\d+)(, lsl #12)?", line):
            total += int(match[1], 0) << (12 if match[2] else 0)
        elif match := re.search(r"\tsub\w*\tsp, #(\d+)", line):
            total += int(match[1])
        elif match := re.search(r"\t(?:stp|str)\t.*\[sp, #-(\d+)\]!", line):
            total += int(match[1])
        elif match := re.search(r"\tv?push\w*(?:\.w)?\t\{(.*)\}", line):
            total += sum(register_bytes(registers) for registers in match[1].split(","))
    return total


def register_bytes(registers: str) -> int:
    """Of `r4`, or `d8-d15`."""
    numbers = [int(number) for number in re.findall(r"\d+", registers)] or [0]
    return (numbers[-1] - numbers[0] + 1) * (8 if registers.strip().startswith("d") else 4)


def report(sizes: dict[str, Size]) -> str:
    """The size report's table."""
    lines = ["| operation | text | data | stack | heap |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| hbn_{name} | {size.text} | {size.data} | {size.stack} | 0 |" for name, size in sizes.items()]
    return "\n".join(lines)


def readme(pack: Pack, sizes: dict[str, Size]) -> str:
    """The folder's README.md."""
    flags = " ".join(pack.target.flags)
    use = f"""Compile with `-I` this folder and link `libhbn.a`:

    {pack.target.tool("gcc")} {flags} -I. main.c libhbn.a

or, in CMake, `find_package(hbn REQUIRED PATHS this/folder)` and `target_link_libraries(app hbn::hbn)`."""
    if pack.target.as_sources:
        use = """Sources in C99 and C++17, for any processor and compiler: in CMake, `add_subdirectory(this/folder)`
and `target_link_libraries(app hbn::hbn)`. Compile the C++ without contraction of a * b + c (gcc and clang:
-ffp-contract=off), as CMakeLists.txt does."""
    return f"""# hbn for {pack.target_name}

Batch normalization of {pack.dtype} tensors, {pack.layout.upper()}. Made by

    {pack.command}

`hbn.h` says what there is. {use}

The library calls memcpy and memset{', what libgcc has of __aeabi_*' * pack.target.halide.startswith('arm-32')}{
    ', the hbn_parallel_for() that you define' * pack.parallel}, and nothing else. It takes no memory but the stack.

## Sizes, in bytes

{report(sizes)}

Each operation with all that it calls, linked alone with `--gc-sections`. Text includes constants. The stack is the
wrapper's (the compiler's -fstack-usage) and the kernel's (what its code takes from the stack pointer{
    ', in linear memory' * pack.target.is_wasm()}).
"""


CMAKE_LISTS = """# Batch normalization from C and C++ sources, for any processor.
cmake_minimum_required(VERSION 3.10)
project(hbn LANGUAGES C CXX)
file(GLOB sources src/pack.c src/hbn_*.c src/*.cpp)
add_library(hbn STATIC ${sources})
add_library(hbn::hbn ALIAS hbn)
target_include_directories(hbn PUBLIC . PRIVATE src)
set_target_properties(hbn PROPERTIES CXX_STANDARD 17 C_STANDARD 99)
if (CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    # Forward and backward of a fused ReLU must round alike; nothing of a C++ library is needed.
    target_compile_options(hbn PRIVATE -ffunction-sections $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-math-errno
                                       -fno-threadsafe-statics -fno-exceptions -fno-rtti -w>)
endif ()
"""


CMAKE = """# find_package(hbn) for this folder alone.
add_library(hbn::hbn STATIC IMPORTED)
set_target_properties(hbn::hbn PROPERTIES
    IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/libhbn.a"
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
"""


def make(**arguments: Any) -> dict[str, Size]:
    """The whole folder, of what Pack takes."""
    pack = Pack(**arguments)
    sizes = pack.make()
    (pack.folder / "README.md").write_text(readme(pack, sizes))
    if not pack.target.as_sources:
        (pack.folder / "hbnConfig.cmake").write_text(CMAKE)
    (pack.folder / "sizes.md").write_text(report(sizes) + "\n")
    shutil.rmtree(pack.work)
    return sizes


def main() -> None:
    """Parses what `make pack` was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--ops", default="forward_inference", help=f"some of {','.join(OPERATIONS)}")
    parser.add_argument("--dtype", choices=ELEMENTS, default="float32")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw")
    parser.add_argument("--shape", default="", help="N,C,H,W; leave out what only the call will know")
    parser.add_argument("--threads", choices=("none", "hook"), default="none")
    parser.add_argument("--out", required=True)
    parser.add_argument("--generators", required=True, help="the program that emits kernels")
    parser.add_argument("--halide-include", required=True)
    arguments = parser.parse_args()
    print(report(make(**vars(arguments))))
    print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
