"""A function's arguments: those of its operation that its kernel takes, by name."""

import re
import sys
from typing import NamedTuple

from packs import table
from packs.functions import Argument, Function

# Of tensors' elements; vectors are float or double.
C_TYPES = {"tensor": "hbn_element", "mask": "uint8_t", "parameter": "float", "statistic": "double", "number": "double"}

# Halide's names of tensors that a kernel stores together.
TUPLES = {name: value for row in table.rows("HBN_TUPLE")
          for name, value in ((f"{row['first']}_0", row["first"]), (f"{row['first']}_1", row["second"]))}


class Bound(NamedTuple):
    """A function and its kernel."""

    function: Function
    arguments: list[Argument]  # the function's, in order, after the shape
    kernel_arguments: list[str]  # names of those, in the kernel's order

    def kernel(self) -> str:
        """Its symbol."""
        return f"hbn_kernel_{self.function.name()}"

    def has(self, name: str) -> bool:
        """Whether the function takes it."""
        return any(argument.name == name for argument in self.arguments)

    def buffers(self) -> list[Argument]:
        """Tensors and vectors."""
        return [argument for argument in self.arguments if argument.role != "number"]

    def numbers(self) -> list[str]:
        """Scalars' names."""
        return [argument.name for argument in self.arguments if argument.role == "number"]

    def output_tensors(self) -> int:
        """How many, mask included."""
        return sum(argument.direction == "out" and argument.role in ("tensor", "mask") for argument in self.arguments)

    def parameters(self) -> list[str]:
        """Of the C function."""
        first = "hbn_shape shape" if self.function.operation.has_tensors() else "int32_t num_features"
        return [first, *map(parameter, self.arguments)]


def parameter(argument: Argument) -> str:
    """A C function's."""
    if argument.role == "number":
        return f"double {argument.name}"
    const = "const " * (argument.direction == "in")
    return f"{const}{C_TYPES[argument.role]} *{argument.name}"


def bind(function: Function, header: str) -> Bound:
    """To the kernel that Halide's header declares."""
    kernel_names = kernel_arguments(header, f"hbn_kernel_{function.name()}")
    arguments = []
    for argument in function.operation.arguments:
        if argument.role == "activation":
            arguments += [Argument(name, (name,), "in", table.ROLES[name]) for name in function.activation.numbers]
        elif set(argument.generator_names) & set(kernel_names):
            arguments.append(argument)
    names = {generator_name: argument.name for argument in arguments for generator_name in argument.generator_names}
    if strangers := set(kernel_names) ^ set(names):
        sys.exit(f"{function.operation.generator} and {function.name()} in runtime/operations.def don't have the same "
                 f"arguments: {', '.join(sorted(strangers))}")
    return Bound(function, arguments, [names[name] for name in kernel_names])


def kernel_arguments(header: str, kernel: str) -> list[str]:
    """Their names, in order."""
    declaration = re.search(rf"\bint {kernel}\((.*?)\);", header)
    assert declaration
    names = [re.sub(r".*[ *]_(\w+)", r"\1", argument).removesuffix("_buffer") for argument in declaration[1].split(",")]
    return [TUPLES.get(name, name) for name in names]
