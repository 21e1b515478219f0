"""The installed package itself: what it needs, what is in it, and that the README's examples run."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

import hbn
from hbn import _core

README = pathlib.Path(__file__).parents[2] / "README.md"


def run(code: str, folder: str | pathlib.Path = "/") -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_needs_numpy_alone():
    required = [r for r in importlib.metadata.requires("hbn") or [] if "extra ==" not in r]
    assert [re.match(r"\w+", r)[0] for r in required] == ["numpy"]
    code = """
import sys
for name in ("torch", "jax", "onnx", "ml_dtypes"):
    sys.modules[name] = None  # importing it fails
import hbn, numpy
print(hbn.batch_norm_forward(numpy.ones((2, 3, 4, 5)), None, None, None, None, training=True)[0].sum())
"""
    assert float(run(code)) == 0


def test_version_is_the_librarys():
    assert importlib.metadata.version("hbn") == hbn.__version__


def test_library_is_linked_in():
    needed = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"hbn|halide|nanobind", needed.split("\n", 1)[-1], re.IGNORECASE)


def test_has_types_and_license():
    files = [str(f) for f in importlib.metadata.files("hbn") or []]
    assert "hbn/py.typed" in files and "hbn/_core.pyi" in files
    assert any(f.endswith("licenses/LICENSE") for f in files)


@pytest.mark.parametrize(
    "number, code",
    enumerate(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)),
)
def test_example_of_the_readme_runs(number: int, code: str, tmp_path: pathlib.Path):
    run(code, tmp_path)


def test_readme_has_its_examples():
    text = README.read_text()
    assert "hbn.torch.convert(model)" in text and text.count("```python") >= 2
