"""What a measurement ran on."""

import os
import pathlib
import platform
import re
import subprocess
from typing import Any, NamedTuple

CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")


class Core(NamedTuple):
    """What arithmetic waits for in a kind of processor core."""

    name: str
    ports: str


_ZEN_PORTS = ("conversions, additions and subtractions on FP2 and FP3; multiplications and fmas on FP0 and FP1; "
              "integers on FP0 to FP3, shifts on FP1 and FP2")
_INTEL_PORTS = ("vectors of 512 bits: all on p0 and p5, shifts on p0, conversions to float64 on both at once; of 256 "
                "bits: multiplications, fmas and conversions on p0 and p1, {additions}, integers on p0, p1 and p5")
_COVE = Core("Golden Cove", _INTEL_PORTS.format(additions="additions and subtractions on p1 and p5"))
_LAKE_PORTS = _INTEL_PORTS.format(additions="additions and subtractions, too")
_ZEN_3 = Core("Zen 3", _ZEN_PORTS)
_ZEN_4 = Core("Zen 4", _ZEN_PORTS + "; vectors of 512 bits take each twice")

# By the family and models that CPUID tells. Only AMD's are of families above 6.
_CORES = [
    (6, [85], Core("Skylake", _LAKE_PORTS)),
    (6, [106, 108], Core("Sunny Cove", _LAKE_PORTS)),
    (6, [143, 151, 154, 183, 186, 191, 207], _COVE),
    (25, range(0x00, 0x10), _ZEN_3), (25, range(0x20, 0x60), _ZEN_3),
    (25, range(0x10, 0x20), _ZEN_4), (25, range(0x60, 0xb0), _ZEN_4),
    (26, range(0x00, 0x100), Core("Zen 5", _ZEN_PORTS)),
]


def threads() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))


def cache_bytes() -> dict[str, int]:
    """Bytes of the first processor's caches: {"L1d": ..., "L2": ..., "L3": ...}."""
    sizes = {}
    for index in sorted(CACHES.glob("index*")):
        level, kind = _read(index / "level"), _read(index / "type")
        if kind != "Instruction":
            size = _read(index / "size")
            sizes[f"L{level}" + ("d" if kind == "Data" else "")] = int(size.rstrip("KM")) << (20 if "M" in size else 10)
    return sizes


def core(cpu: str) -> Core | None:
    """The core of a CPU as describe() names it, if it is known."""
    found = re.search(r"family (\d+), model (\d+)", cpu)
    if not found:
        return None
    family, model = map(int, found.groups())
    return next((c for f, models, c in _CORES if f == family and model in models), None)


def describe() -> dict[str, Any]:
    """Everything that may explain a figure."""
    return {
        "cpu": _cpu_name(), "threads": threads(), "cache_bytes": cache_bytes(), "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()), "python": platform.python_version(),
        "transparent_hugepage": _read(pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average_before": os.getloadavg(), "commit": _commit(),
        "flags": [f for f in _cpu_info("flags").split() if f.startswith(("avx", "f16c", "fma", "amx", "sse4"))],
    }


def _read(path: pathlib.Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _cpu_info(key: str) -> str:
    for line in _read(pathlib.Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _cpu_name() -> str:
    return f"{_cpu_info('model name')} (family {_cpu_info('cpu family')}, model {_cpu_info('model')})"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=pathlib.Path(__file__).parent)
    return done.stdout.strip()
