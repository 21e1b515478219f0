#include "generators/rounding.h"

#include <limits>
#include <string>

namespace hbn {

using namespace Halide;

Expr exact_order(const Expr &e) {
    return strict_float(e);
}

Expr exact_order_around(const Expr &inner, const std::function<Expr(const Expr &)> &f) {
    const std::string name = Internal::unique_name("inner");
    return Internal::substitute(name, inner,
                                exact_order(f(Internal::Variable::make(inner.type(), name))));
}

Expr round_to(Type type, const Expr &value) {
    const Expr rounded = cast(type, value);
    if (type.bits() != 16) {
        return rounded;
    }
    const uint16_t quiet_nan = type.is_bfloat() ? 0x7fc0 : 0x7e00;
    return reinterpret(type,
                       select(is_nan(value), Expr(quiet_nan), reinterpret(UInt(16), rounded)));
}

Expr round_to_bfloat16(const Expr &value, const Expr &one) {
    // Halide's own conversion does the same, but keeps what it converts from using fused multiply-add. What is to be added
    // is 0x7fff, and 1 more to an odd number. Its negative takes the lowest bit by an exclusive or, which is one instruction
    // with what selects that bit.
    const Expr bits = reinterpret(UInt(32), value);
    const Expr rounded = bits - (((bits >> 16) & Expr(uint32_t(1))) ^ (one * Expr(0u - 0x7fffu)));
    return reinterpret(BFloat(16), cast<uint16_t>(rounded >> 16));
}

Expr with_plain_nan(const Expr &value) {
    return select(is_nan(value), Expr(std::numeric_limits<float>::quiet_NaN()), value);
}

Expr is_number(const Expr &value) {
    if (value.type().bits() == 64) {
        const Expr magnitude = reinterpret<uint64_t>(value) & Expr(uint64_t(0x7fffffffffffffff));
        return magnitude < Expr(uint64_t(0x7ff0000000000000));
    }
    const Expr magnitude = reinterpret<uint32_t>(value) & Expr(uint32_t(0x7fffffff));
    return magnitude < Expr(uint32_t(0x7f800000));
}

Expr select_bits(const Expr &condition, const Expr &if_true, const Expr &if_false) {
    const Type type = if_true.type(), bits = UInt(type.bits());
    return reinterpret(type,
                       select(condition, reinterpret(bits, if_true), reinterpret(bits, if_false)));
}

Expr zero_where(const Expr &condition, const Expr &value) {
    const Type type = value.type(), bits = UInt(type.bits());
    return reinterpret(type, select(condition, cast(bits, 0), reinterpret(bits, value)));
}

Expr at_most(const Expr &a, const Expr &b) {
    return exact_order(a <= b) && !is_nan(a) && !is_nan(b);
}

Expr below(const Expr &a, const Expr &b) {
    return exact_order(a < b) && !is_nan(a) && !is_nan(b);
}

}  // namespace hbn
