"""scikit-build-core, with the versions that requirements.txt pins, and told where Halide's CMake packages are.

A build-system table can't refer to another file; a backend can.
"""

import importlib.util
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_NEEDED = (
    "cmake",
    "halide",
    "imageio",
    "nanobind",
    "ninja",
    "numpy",
    "packaging",
    "pathspec",
    "pillow",
    "scikit-build-core",
)


def _pinned(config_settings=None):
    lines = (_ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line.partition("==")[0] in _NEEDED]


def _settings(config_settings):
    halide = Path(importlib.util.find_spec("halide").origin).parent
    defaults = {
        f"cmake.define.{package}_DIR": str(halide / "lib64" / "cmake" / package)
        for package in ("Halide", "HalideHelpers")
    }
    return {**defaults, **(config_settings or {})}


get_requires_for_build_wheel = get_requires_for_build_editable = get_requires_for_build_sdist = _pinned


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    from scikit_build_core import build

    return build.build_wheel(wheel_directory, _settings(config_settings), metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    from scikit_build_core import build

    return build.build_editable(wheel_directory, _settings(config_settings), metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    from scikit_build_core import build

    return build.build_sdist(sdist_directory, config_settings)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    from scikit_build_core import build

    return build.prepare_metadata_for_build_wheel(metadata_directory, _settings(config_settings))
