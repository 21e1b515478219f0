// Floating-point arithmetic whose every rounding, NaN and infinity counts.
#ifndef HBN_GENERATORS_ROUNDING_H
#define HBN_GENERATORS_ROUNDING_H

#include <Halide.h>

#include <functional>

namespace hbn {

using Halide::Expr;
using Halide::Type;

inline Expr f64(const Expr &e) {
    return Halide::cast<double>(e);
}

// Halide simplifies floating-point expressions, and LLVM reassociates them and assumes that there is no NaN and no
// infinity, unless told not to. An expression wrapped in exact_order() relies on its own rounding.
Expr exact_order(const Expr &e);

// The same for f(inner), but not for what is within `inner`: the compiler may make one fused multiply-add of it.
Expr exact_order_around(const Expr &inner, const std::function<Expr(const Expr &)> &f);

// Rounds to nearest even, in any type. Halide's own conversion to the 16-bit types turns NaN into infinity or zero
// where the target has no instruction for it.
Expr round_to(Type type, const Expr &value);

// The same for an output's elements, which are many. A NaN among them, if any, comes from a bfloat16 tensor, from
// arithmetic, or from coefficients that went through with_plain_nan(): such a NaN has no bits beyond bfloat16's, so
// that rounding can't carry it over into a number.
// `one` is 1, as a uint32 that the compiler had better not know: what it makes of the same with constants takes longer.
Expr round_to_bfloat16(const Expr &value, const Expr &one);
Expr with_plain_nan(const Expr &value);

// Whether a float32 or float64 is neither NaN nor infinite. Its bits say so, since LLVM assumes that arithmetic gives
// neither.
Expr is_number(const Expr &value);

// Of floating-point values, as their bits: LLVM may take a select among floats for a maximum, and lose NaN.
Expr select_bits(const Expr &condition, const Expr &if_true, const Expr &if_false);
Expr zero_where(const Expr &condition, const Expr &value);

// a <= b and a < b where neither is NaN. LLVM may turn a comparison into the negation of its opposite, which is
// something else for NaN.
Expr at_most(const Expr &a, const Expr &b);
Expr below(const Expr &a, const Expr &b);

}  // namespace hbn

#endif
