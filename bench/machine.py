"""What a measurement ran on."""

import os
import pathlib
import platform
import subprocess
from typing import Any

CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")


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
