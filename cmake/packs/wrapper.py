"""The C functions that users call: checks, then the kernel."""

from packs.binding import C_TYPES, Bound
from packs.functions import Argument
from packs.header import prototype


def wrapper(bound: Bound) -> str:
    """A function's source. pack.h has what it calls."""
    function = bound.function
    buffers = bound.buffers()
    kinds = ",\n        ".join(kind(argument, bound) for argument in buffers)
    hosts = "\n    ".join(f"buffers[{i}].host = (uint8_t *){argument.name};" for i, argument in enumerate(buffers))
    places = {argument.name: f"&buffers[{i}]" for i, argument in enumerate(buffers)}
    passed = ",\n        ".join(places.get(name, name) for name in bound.kernel_arguments)
    begin = "hbn_pack_begin(shape" if function.operation.has_tensors() else "hbn_pack_begin_vectors(num_features"
    checks = [f"HBN_TRY({begin}, kinds, {len(buffers)}, &sizes, buffers));"]
    if any(argument.direction == "inout" for argument in buffers):
        checks.append("HBN_TRY(hbn_pack_check_batch(shape));")
    checks += [f"HBN_TRY({check});" for check in map(number_check, bound.numbers()) if check]
    lines = "\n    ".join(checks)
    return f"""#include "{bound.kernel()}.h"
#include "pack.h"

{prototype(bound)} {{
    static const uint8_t kinds[{len(buffers)}] = {{
        {kinds}}};
    hbn_pack_sizes sizes;
    halide_buffer_t buffers[{len(buffers)}];
    {hosts}
    {lines}
    {bound.kernel()}(
        {passed});
    return HBN_OK;
}}
"""


def kind(argument: Argument, bound: Bound) -> str:
    """What hbn_pack_begin() checks."""
    parts = [f"sizeof({C_TYPES[argument.role]})"]
    tensor = argument.role == "tensor"
    if tensor or argument.role == "mask":
        parts.append("HBN_PACK_TENSOR")
    if argument.direction != "in":
        parts.append("HBN_PACK_WRITTEN")
    # Of several output tensors, one is written before the inputs have been read for the next.
    if tensor and bound.output_tensors() == 1:
        parts.append("HBN_PACK_IN_PLACE")
    return " | ".join(parts)


def number_check(name: str) -> str:
    """Of a number, as the library does it; "" where another's check covers it."""
    return {"eps": "hbn_pack_check_positive(eps)", "low": "hbn_pack_check_order(low, high)", "high": ""}.get(
        name, f"hbn_pack_check_finite({name})")
