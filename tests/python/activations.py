"""The activations of tests/activations.def, for NumPy."""

import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

REAL = np.longdouble
FILE = pathlib.Path(__file__).resolve().parent.parent / "activations.def"
FUNCTIONS = {"fmin": np.fmin, "fmax": np.fmax, "exp": np.exp, "where": np.where, "INFINITY": np.inf}


class Activation(NamedTuple):
    """One case: an activation with its parameters."""

    case: str
    name: str
    parameters: dict[str, float]  # as hbn's functions take them
    formulas: tuple[str, str]  # y and dy/dz
    alpha: float
    beta: float
    slope: float  # how much a change of z changes y at most
    jumps: list[float]  # where the derivative jumps

    def _evaluate(self, formula: str, z: Any) -> Any:
        # The formulas are this repository's own.
        values = {**FUNCTIONS, "z": z, "alpha": REAL(self.alpha), "beta": REAL(self.beta)}
        return np.broadcast_to(np.asarray(eval(formula, values), dtype=REAL), np.shape(z))  # noqa: S307

    def options(self) -> dict[str, Any]:
        """Keyword arguments of hbn's functions."""
        return {"activation": self.name, **self.parameters}

    def value(self, z: Any) -> Any:
        """Y."""
        return self._evaluate(self.formulas[0], z)

    def derivative(self, z: Any) -> Any:
        """dy/dz."""
        return self._evaluate(self.formulas[1], z)


def arguments(text: str) -> list[str]:
    """Of a macro: parts between commas that stand in no parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [" ".join(part.split()) for part in parts]


def read() -> dict[str, Activation]:
    """All cases by name."""
    keywords = {"leaky_relu": ("negative_slope",), "clip": ("min_val", "max_val")}
    cases = {}
    for row in re.findall(r"^HBN_TEST_ACTIVATION\((.*?)\)$", FILE.read_text(), re.MULTILINE | re.DOTALL):
        case, name, _, alpha, beta, value, derivative, slope, _, *jumps = arguments(row)
        limits = float(alpha), float(beta)
        parameters = dict(zip(keywords.get(name, ()), limits, strict=False))
        finite = [float(jump) for jump in jumps if jump != "INFINITY"]
        cases[case] = Activation(case, name, parameters, (value, derivative), *limits, float(slope), finite)
    return cases
