"""What packs are compiled for."""

from typing import NamedTuple


class Target(NamedTuple):
    """A kind of processor and what runs on it."""

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

    def family(self) -> str:
        """Of schedules, as schedules/schedule.cpp has it."""
        if self.is_wasm():
            return "wasm"
        if self.halide.startswith("x86"):
            return "x86"
        return "portable" if "no_neon" in self.halide else "arm"

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
