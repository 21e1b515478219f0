"""Whether schedules/parameters.def says what generators do.

Each parameter has an effect on some kernel of each family of targets and each layout that the table has for it, and
what is not allowed is refused with a text that says what is.

usage: check_table.py GENERATORS
"""

import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "cmake"))
from packs import table

PARAMETERS = table.rows("HBN_SCHEDULE_PARAMETER", table.ROOT / "schedules" / "parameters.def")
TARGETS = {
    "x86": "x86-64-linux-sse41-avx-avx2-f16c-fma",
    "arm": "arm-64-linux",
    "wasm": "wasm-32-wasmrt-wasm_simd128",
    "gpu": "host-opencl-cl_doubles",
    "portable": "arm-32-noos-no_neon",
}
KERNELS = ["backward_training dtype=float32", "backward_training dtype=bfloat16", "forward_inference dtype=float32"]
# A pack's.
STANDALONE = "backward_training dtype=bfloat16 standalone=true samples=2 num_features=16 plane_size=100"
REFUSED = [
    ("x86", "nchw", "row_lanes=12", "row_lanes=12: allowed are 8 16 32 64, and 0 for the default"),
    ("x86", "nchw", "gpu_block=64", "gpu_block has no effect on targets of the family x86; it has on those of gpu"),
    ("x86", "nchw", "run_lanes=8", "run_lanes has no effect on the layout nchw; it has on blocks"),
    ("gpu", "nchw", "row_lanes=8", "row_lanes has no effect on targets of the family gpu; it has on those of x86 arm "),
    ("x86", "nchw", "task_elements=4096", "task_elements has no effect on this kernel; these have: lanes row_lanes "),
    ("x86", "nchw", "lanes=1", "lanes=1 group_values=1: allowed are 8 to 256 lanes of float32 with so many values"),
]


def error(generators: str, kernel: str, family: str, layout: str, chosen: list[str]) -> str:
    """What a generator says; nothing where it succeeds."""
    generator, *parameters = kernel.split()
    target = f"target={TARGETS[family]}-no_asserts-no_bounds_query-no_runtime"
    with tempfile.TemporaryDirectory() as folder:
        output = ["-g", generator, "-f", "kernel", "-n", "kernel", "-o", folder, "-e", "stmt"]
        command = [generators, *output, target, f"layout={layout}", *parameters, *chosen]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stderr if run.returncode else ""


def with_effect(generators: str, kernel: str, family: str, layout: str, names: list[str]) -> set[str]:
    """Those of the parameters that have an effect on a kernel."""
    lists = {row["name"]: row["values"].split() for row in PARAMETERS}
    values = {name: values[len(values) // 2] for name, values in lists.items()}
    text = error(generators, kernel, family, layout, [f"{name}={values[name]}" for name in names])
    match = re.search("has no effect on this kernel; these have:(.*)", text)
    if text and not match:
        sys.exit(f"{family} {layout} {kernel} {names}: {text}")
    return set(match[1].split()) if match else set(names)


def main() -> int:
    generators = sys.argv[1]
    wrong = []
    for family in TARGETS:
        rows = [row for row in PARAMETERS if family in row["families"].split()]
        for layout in sorted({layout for row in rows for layout in row["layouts"].split()}):
            names = [row["name"] for row in rows if layout in row["layouts"].split()]
            # GPUs have kernels of float32 alone, and processors have none in NHWC but packs'.
            kernels = [kernel for kernel in KERNELS if family != "gpu" or "float32" in kernel]
            if family != "gpu" and layout in ("nchw", "nhwc"):
                kernels = [*kernels, STANDALONE] if layout == "nchw" else [STANDALONE]
            found = set().union(*(with_effect(generators, kernel, family, layout, names) for kernel in kernels))
            wrong += [f"{name} has no effect on {layout} for {family}" for name in names if name not in found]
    for family, layout, chosen, text in REFUSED:
        said = error(generators, KERNELS[0], family, layout, [chosen])
        if text not in said:
            wrong.append(f"{chosen} for {family} {layout} is not refused with '{text}' but with '{said}'")
    print("\n".join(wrong) or f"{len(PARAMETERS)} parameters")
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
