"""pack_calls.h, for pack_test.c: what the functions of a pack take, as its hbn.h declares them, and a call of each."""

import re
from typing import NamedTuple

import packs


class Parameter(NamedTuple):
    """Of a function."""

    kind: str  # in C, without const
    name: str
    const: bool

    def is_buffer(self) -> bool:
        """A tensor, mask or vector."""
        return self.kind.endswith("*")

    def element(self) -> str:
        """Of a buffer."""
        return self.kind.removesuffix("*").strip()


def declarations(header: str) -> dict[str, list[Parameter]]:
    """Functions' parameters, by name."""
    functions = re.findall(r"^hbn_status hbn_(\w+)\((.*?)\);", header, re.M | re.S)
    return {name: [parsed(text) for text in parameters.split(",")] for name, parameters in functions}


def parsed(text: str) -> Parameter:
    """As C declares it."""
    match = re.fullmatch(r"(const )?(.*?)(\w+)", text.strip())
    assert match
    return Parameter(match[2].strip(), match[3], bool(match[1]))


def calls(header: str) -> str:
    """The file."""
    functions = declarations(header)
    elements = {parameter.name: parameter.element() for parameters in functions.values() for parameter in parameters
                if parameter.is_buffer()}
    places = {name: i for i, name in enumerate(elements)}
    lines = ["static const buffer_row buffer_rows[] = {"]
    lines += [f'    {{"{name}", sizeof({element}), {int(element in ("hbn_element", "uint8_t"))}, '
              f'{int(element == "uint8_t")}}},' for name, element in elements.items()]
    lines += ["};", f"enum {{ BUFFERS = {len(elements)}, FUNCTIONS = {len(functions)} }};"]
    for name, parameters in functions.items():
        lines += [f"static hbn_status call_{name}(const arguments *a) {{",
                  f"    return hbn_{name}({', '.join(arguments(parameters, places))});", "}"]
    lines.append("static const function_row function_rows[FUNCTIONS] = {")
    lines += [f"    {{{row(name, parameters, places)}}}," for name, parameters in functions.items()]
    return "\n".join([*lines, "};", ""])


def arguments(parameters: list[Parameter], places: dict[str, int]) -> list[str]:
    """What a function is called with."""
    values = {"shape": "a->shape", "num_features": "a->shape.c", "eps": "a->eps", "momentum": "a->momentum"}
    # Other numbers are the activation's.
    others = [parameter.name for parameter in parameters
              if not parameter.is_buffer() and parameter.name not in values]
    values |= {name: f"a->{number}" for name, number in zip(others, ("alpha", "beta")[:len(others)], strict=True)}
    values |= {name: f"a->buffers[{i}]" for name, i in places.items()}
    return [values[parameter.name] for parameter in parameters]


def row(name: str, parameters: list[Parameter], places: dict[str, int]) -> str:
    """A function_row."""
    function = packs.FUNCTIONS[name]
    buffers = [parameter for parameter in parameters if parameter.is_buffer()]
    numbers = "".join(f" {parameter.name}" for parameter in parameters if parameter.kind == "double")
    indices = ", ".join(str(places[parameter.name]) for parameter in buffers)
    written = ", ".join(str(int(not parameter.const)) for parameter in buffers)
    return (f'"{name}", "{function.operation.name}", "{function.activation.name}", {int(function.add)}, call_{name}, '
            f'{len(buffers)}, {{{indices}}}, {{{written}}}, "{numbers}"')
