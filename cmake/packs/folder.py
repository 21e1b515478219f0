"""A pack's folder: library, or sources; header, CMake file, README.md and sizes."""

import pathlib
import shutil

from packs.binding import Bound
from packs.compiler import SOURCES, Compiler
from packs.header import hbn_h, hbn_pack_h
from packs.request import Request
from packs.shell import run
from packs.sizes import Size, measure, report
from packs.wrapper import wrapper


def make(*, out: str | pathlib.Path, generators: str, halide_include: str, target: str, ops: str,
         dtype: str = "float32", layout: str = "nchw", shape: str = "", threads: str = "none",
         parameters: str = "") -> dict[str, Size]:
    """The whole folder, which takes the place of what there was; each function's size."""
    request = Request(target, ops, dtype, layout, shape, threads, parameters)
    request.check()
    folder = pathlib.Path(out).resolve()
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        sizes = fill(part, request, generators, halide_include)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sizes


def fill(folder: pathlib.Path, request: Request, generators: str, halide_include: str) -> dict[str, Size]:
    """Makes a new folder."""
    objects = folder / "objects"
    objects.mkdir(parents=True)
    compiler = Compiler(request, objects, generators, halide_include)
    kernels = [compiler.kernel(function) for function in request.functions()]
    compiler.schedule.check_used()
    functions = [bound for bound, _ in kernels]
    (folder / "hbn.h").write_text(hbn_h(request, functions))
    (objects / "hbn_pack.h").write_text(hbn_pack_h(request))
    common = [compiler.c(SOURCES / f"{name}.c", name) for name in common_sources(request)]
    library, sizes = list(common), {}
    for bound, kernel in kernels:
        name = bound.function.name()
        source = objects / f"hbn_{name}.c"
        source.write_text(wrapper(bound))
        function = compiler.c(source, name)
        library += [kernel, function]
        sizes[name] = measure(name, request.target(), objects, [*common, kernel, function], request.parallel())
    if request.target().as_sources:
        write_sources(folder, compiler, functions)
        (folder / "CMakeLists.txt").write_text(CMAKE_LISTS)
    else:
        run(request.target().tool("ar"), "rcsD", folder / "libhbn.a", *library)
        (folder / "hbnConfig.cmake").write_text(CMAKE_CONFIG)
    (folder / "README.md").write_text(readme(request, sizes))
    (folder / "sizes.md").write_text(report(sizes) + "\n")
    shutil.rmtree(objects)
    return sizes


def common_sources(request: Request) -> list[str]:
    """Of runtime/pack, those that all functions share."""
    return ["pack"] + ["sqrt"] * (not request.target().has_sqrt) + ["parallel"] * request.parallel()


def write_sources(folder: pathlib.Path, compiler: Compiler, functions: list[Bound]) -> None:
    """What libhbn.a would be made from."""
    sources = folder / "src"
    sources.mkdir()
    files = [SOURCES / "pack.h", compiler.folder / "hbn_pack.h", compiler.halide_include / "HalideRuntime.h",
             *(SOURCES / f"{name}.c" for name in common_sources(compiler.request)), *compiler.folder.glob("*.cpp")]
    for bound in functions:
        files += [compiler.folder / f"{bound.kernel()}.h", compiler.folder / f"hbn_{bound.function.name()}.c"]
    for file in files:
        shutil.copy(file, sources / file.name)


def readme(request: Request, sizes: dict[str, Size]) -> str:
    """The folder's README.md."""
    target = request.target()
    flags = " ".join(target.flags)
    use = f"""Compile with `-I` this folder and link `libhbn.a`:

    {target.tool("gcc")} {flags} -I. main.c libhbn.a

or, in CMake, `find_package(hbn REQUIRED PATHS this/folder)` and `target_link_libraries(app hbn::hbn)`."""
    if target.as_sources:
        use = """Sources in C99 and C++17, for any processor and compiler: in CMake, `add_subdirectory(this/folder)`
and `target_link_libraries(app hbn::hbn)`. Compile the C++ without contraction of a * b + c (gcc and clang:
-ffp-contract=off), as CMakeLists.txt does."""
    return f"""# hbn for {request.target_name}

Batch normalization of {request.dtype} tensors, {request.layout.upper()}. Made by

    {request.command()}

`hbn.h` says what there is. {use}

The library calls memcpy and memset{', what libgcc has of __aeabi_*' * target.halide.startswith('arm-32')}{
    ', the hbn_parallel_for() that you define' * request.parallel()}, and nothing else. It takes no memory
but the stack.

## Sizes, in bytes

{report(sizes)}

Each operation with all that it calls, linked alone with `--gc-sections`. Text includes constants. The stack is the
wrapper's (the compiler's -fstack-usage) and the kernel's (what its code takes from the stack pointer{
    ', in linear memory' * target.is_wasm()}).
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
    # Forward and backward of a fused activation must round alike; nothing of a C++ library is needed.
    target_compile_options(hbn PRIVATE -ffunction-sections $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-math-errno
                                       -fno-threadsafe-statics -fno-exceptions -fno-rtti -w>)
endif ()
"""


CMAKE_CONFIG = """# find_package(hbn) for this folder alone.
add_library(hbn::hbn STATIC IMPORTED)
set_target_properties(hbn::hbn PROPERTIES
    IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/libhbn.a"
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
"""
