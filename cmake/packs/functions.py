"""What functions packs may have: each operation alone, with each activation, and with an addition before that."""

import re
import sys
from typing import NamedTuple

from packs import table


class Argument(NamedTuple):
    """Of an operation."""

    name: str
    generator_names: tuple[str, ...]
    direction: str  # "in", "inout" or "out"
    role: str  # HBN_ARGUMENT's


class Operation(NamedTuple):
    """A row HBN_PACK_FUNCTION and its arguments."""

    name: str
    generator: str
    activations: str
    kernel: str
    dtypes: tuple[str, ...]
    arguments: list[Argument]

    def has_tensors(self) -> bool:
        """Whether it takes more than vectors."""
        return any(argument.role == "tensor" for argument in self.arguments)


class Activation(NamedTuple):
    """A row HBN_ACTIVATION, and what include/hbn/hbn.h says of it."""

    name: str
    compiled: str
    numbers: tuple[str, ...]  # the caller's
    constants: dict[str, str]
    formula: str  # of z

    def suffix(self) -> str:
        """Of functions' names."""
        return "" if self.name == "identity" else f"_{self.name}"

    def suits_int8(self) -> bool:
        """Whether its y of z / scale is y / scale, as of quantized tensors; its numbers being divided, too."""
        return self.compiled in ("none", "relu", "piecewise")


class Function(NamedTuple):
    """Of a pack."""

    operation: Operation
    activation: Activation
    add: bool  # before the activation

    def suffix(self) -> str:
        """What its name has beside the operation's."""
        return "_add" * self.add + self.activation.suffix()

    def name(self) -> str:
        """As OPS has it; hbn_NAME in C."""
        return self.operation.name + self.suffix()

    def has_dtype(self, dtype: str) -> bool:
        """Whether it is for such tensors."""
        suits_int8 = self.activation.suits_int8() and not self.add
        return dtype in self.operation.dtypes and (suits_int8 or dtype != "int8")

    def parameters(self) -> list[str]:
        """The generator's, for what is fused."""
        fused = KERNEL_PARAMETERS.get(self.operation.kernel + self.suffix())
        if fused is None:
            fused = [f"activation={self.activation.compiled}"] + ["add=true"] * self.add
        constants = ",".join(f"{name}:{value}" for name, value in self.activation.constants.items())
        return fused + [f"constants={constants}"] * (self.operation.activations == "fused")


# Of the library's kernels: with_mask where backward needs it.
KERNEL_PARAMETERS = {row["name"]: row["parameters"].split() for row in table.rows("HBN_KERNEL")}


def read_operations() -> list[Operation]:
    """From the rows HBN_PACK_FUNCTION and those that follow each."""
    operations: list[Operation] = []
    for row in table.ROWS:
        columns = row.columns
        if row.kind == "HBN_PACK_FUNCTION":
            operations.append(Operation(columns["name"], columns["generator"], columns["activations"],
                                        columns["kernel"], tuple(columns["dtypes"].split()), []))
        elif match := re.fullmatch("HBN_PACK_(IN|INOUT|OUT)", row.kind):
            names = tuple(columns["generator_names"].split())
            operations[-1].arguments.append(Argument(columns["name"], names, match[1].lower(), table.ROLES[names[0]]))
    return operations


def read_activations() -> list[Activation]:
    """From the rows HBN_ACTIVATION, where alpha and beta are the caller's numbers, and from C's documentation."""
    header = (table.ROOT / "include" / "hbn" / "hbn.h").read_text()
    formulas = dict(re.findall(r"^ *(HBN_\w+) = \d+,? */\*\*< (.*?) \*/", header, flags=re.M))
    activations = []
    for row in table.rows("HBN_ACTIVATION"):
        numbers = {name: value for name, value in row.items() if table.ROLES.get(name) == "number"}
        callers = {value: name for name, value in numbers.items() if value in ("alpha", "beta")}
        if row["c_name"] not in formulas:
            sys.exit(f"include/hbn/hbn.h has no line '{row['c_name']} = NUMBER, /**< FORMULA */'")
        formula = formulas[row["c_name"]]
        for value, name in callers.items():
            formula = re.sub(rf"\b{value}\b", name, formula)
        constants = {name: value for name, value in numbers.items() if value not in callers}
        given = tuple(callers[value] for value in sorted(callers))
        activations.append(Activation(row["name"], row["compiled"], given, constants, formula))
    return activations


def all_functions() -> dict[str, Function]:
    """By name."""
    identity, *others = read_activations()
    assert identity.name == "identity"
    functions = []
    for operation in read_operations():
        functions.append(Function(operation, identity, False))
        if operation.activations == "fused":
            functions += [Function(operation, activation, False) for activation in others]
            functions += [Function(operation, activation, True) for activation in (identity, *others)]
    return {function.name(): function for function in functions}


FUNCTIONS = all_functions()
