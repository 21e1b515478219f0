"""hbn.h, for a pack's users, from runtime/pack/hbn.h.in."""

import functools
import re
import textwrap

from packs import table
from packs.binding import Bound
from packs.request import Request

ELEMENTS = {
    "float32": ("float", "float32."),
    "float16": ("uint16_t", "float16, as bits."),
    "bfloat16": ("uint16_t", "bfloat16, as bits."),
    "int8": ("int8_t", "int8."),
}


def hbn_h(request: Request, functions: list[Bound]) -> str:
    """The header. The template has a block for each operation: prose, which goes before each of its functions."""
    template = (table.ROOT / "runtime" / "pack" / "hbn.h.in").read_text()
    text, *blocks = re.split(r"^//@ (\w+)\n", template, flags=re.M)
    for name, block in zip(blocks[::2], blocks[1::2], strict=True):
        if name == "end" or (name == "parallel" and request.parallel()):
            text += block
        for bound in functions:
            if bound.function.operation.name == name:
                text += declaration(bound, block)
    element, element_doc = ELEMENTS[request.dtype]
    sizes = [f"{axis} is {size}" if size else f"{axis} is any"
             for axis, size in zip("nchw", request.sizes(), strict=True)]
    return filled(text, {
        "WHAT": f"{request.dtype} for {request.target_name}", "COMMAND": request.command(),
        "LAYOUT_WORDS": {"nchw": "(N, C, H, W)", "nhwc": "(N, H, W, C), channels last"}[request.layout],
        "ELEMENT": element, "ELEMENT_DOC": element_doc, "SHAPE_WORDS": ", ".join(sizes),
    })


def declaration(bound: Bound, prose: str) -> str:
    """A function's, with its documentation. A line that begins with [NAME] is for those that have that argument."""
    function = bound.function
    identity = not function.activation.suffix()
    lines = []
    for line in prose.split("\n"):
        match = re.match(r"\[(\w+)\] ", line)
        if not match or bound.has(match[1]):
            lines.append(line[match.end():] if match else line)
    prose = filled("\n".join(lines), {
        "Z": "y" if identity else "z",
        "ADDED": " + residual" if function.add else "",
        "ACTIVATED": "" if identity else f"; y = {function.activation.formula}",
        "GIVEN": ", ".join(name for name in ("residual", "bias", *function.activation.numbers) if bound.has(name)),
        "SUFFIX": function.suffix(),
    })
    wrap = functools.partial(textwrap.fill, width=110, break_long_words=False, break_on_hyphens=False)
    # No line of the comment begins with an operator.
    comment = re.sub(r" ([-+*/=]) ", "\0\\1 ", " ".join(prose.split()))
    comment = wrap(comment, initial_indent="/** ", subsequent_indent=" *  ").replace("\0", " ")
    return f"{comment} */\n{prototype(bound)};\n\n"


def prototype(bound: Bound) -> str:
    """As declarations and definitions have it."""
    # Lines break between parameters only.
    parameters = ", ".join(bound.parameters()).replace(" ", "\0").replace(",\0", ", ")
    return textwrap.fill(f"hbn_status\0hbn_{bound.function.name()}({parameters})", width=110, break_long_words=False,
                         break_on_hyphens=False, subsequent_indent="    ").replace("\0", " ")


def filled(text: str, values: dict[str, str]) -> str:
    """With each @KEY@ replaced."""
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def hbn_pack_h(request: Request) -> str:
    """The pack's sizes, for runtime/pack."""
    sizes = request.sizes()
    text = "".join(f"#define HBN_PACK_{axis} {size}\n" for axis, size in zip("NCHW", sizes, strict=True))
    return (f"{text}#define HBN_PACK_ANY_FREE {int(0 in sizes)}\n"
            f"#define HBN_PACK_NHWC {int(request.layout == 'nhwc')}\n")
