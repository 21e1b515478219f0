#include "generators/activations.h"

#include <cmath>
#include <map>
#include <utility>

namespace hbn {

using namespace Halide;

namespace {

Expr constant(const Expr &z, double value) {
    return cast(z.type(), Expr(value));
}

// Both halves of the logistic function, without cancellation or overflow: {s, 1 - s}, s = 1 / (1 + exp(-z)). Of
// infinities they are {0, 1} or {1, 0}.
std::pair<Expr, Expr> logistic(const Expr &z) {
    const Expr one = constant(z, 1);
    const Expr t = exp_of_nonpositive(exact_order(-abs(z)));
    const Expr larger = exact_order(one / (one + t)), smaller = exact_order(t / (one + t));
    const Expr negative = below(z, constant(z, 0));
    return {select_bits(negative, smaller, larger), select_bits(negative, larger, smaller)};
}

// The product with `slope`, where 0 means that nothing passes: not inf * 0.
Expr scaled_by_slope(const Expr &value, const Expr &slope) {
    return zero_where(exact_order(slope == constant(slope, 0)), exact_order(value * slope));
}

const ActivationDefinition none = {
    {},
    [](const Expr &z, const std::vector<Expr> &, Type) { return z; },
    [](const Expr &grad_output, const Expr &, const std::vector<Expr> &, Type) {
        return grad_output;
    },
};

const ActivationDefinition relu = {
    {},
    [](const Expr &z, const std::vector<Expr> &, Type tensor) {
        return zero_where(relu_stops(z, tensor), z);
    },
    [](const Expr &grad_output, const Expr &z, const std::vector<Expr> &, Type tensor) {
        return zero_where(relu_stops(z, tensor), grad_output);
    },
};

// low + slope * (z - low) up to low, z, then high: LeakyReLU (low 0, high inf) and clip (slope 0). As in PyTorch's
// leaky_relu and hardtanh a gradient passes whole between low and high, both excluded, and takes slope
// for NaN.
const ActivationDefinition piecewise = {
    {"slope", "low", "high"},
    [](const Expr &z, const std::vector<Expr> &p, Type) {
        const Expr &slope = p[0], &low = p[1], &high = p[2];
        // Where z is low there is nothing to scale, though both be infinite.
        const Expr under = zero_where(exact_order(z == low), exact_order(z - low));
        const Expr sloped = exact_order(low + scaled_by_slope(under, slope));
        return select_bits(at_most(z, low), sloped, select_bits(at_most(high, z), high, z));
    },
    [](const Expr &grad_output, const Expr &z, const std::vector<Expr> &p, Type) {
        const Expr &slope = p[0], &low = p[1], &high = p[2];
        return select_bits(below(low, z), zero_where(at_most(high, z), grad_output),
                           scaled_by_slope(grad_output, slope));
    },
};

// z * s, s the logistic function. Off by less than 4 units in the last place, or by 2^-142 (2^-1064 in float64) where
// exp(z) is denormal. NaN for -inf, as PyTorch's. The gradient s * (1 + z * (1 - s)) is off by less than 8 units of s
// and of z * s * (1 - s); NaN for both infinities, as PyTorch's.
const ActivationDefinition silu = {
    {},
    [](const Expr &z, const std::vector<Expr> &, Type) {
        return exact_order(z * logistic(z).first);
    },
    [](const Expr &grad_output, const Expr &z, const std::vector<Expr> &, Type) {
        const auto [s, rest] = logistic(z);
        return exact_order(grad_output * (s * (constant(z, 1) + z * rest)));
    },
};

// z * min(max(z + 3, 0), 6) / 6; the factor is divided first, so that large z don't overflow. NaN for -inf, as
// PyTorch's.
const ActivationDefinition hardswish = {
    {},
    [](const Expr &z, const std::vector<Expr> &, Type) {
        const Expr three = constant(z, 3), six = constant(z, 6);
        const Expr factor = select_bits(
            at_most(z, -three), constant(z, 0),
            select_bits(at_most(three, z), constant(z, 1), exact_order((z + three) / six)));
        return exact_order(z * factor);
    },
    [](const Expr &grad_output, const Expr &z, const std::vector<Expr> &, Type) {
        const Expr three = constant(z, 3);
        const Expr between = exact_order(grad_output * (z / three + constant(z, 0.5)));
        return zero_where(at_most(z, -three), select_bits(at_most(three, z), grad_output, between));
    },
};

}  // namespace

const ActivationDefinition &activation_named(const std::string &name) {
    static const std::map<std::string, const ActivationDefinition *> all = {
        {"none", &none}, {"relu", &relu},           {"piecewise", &piecewise},
        {"silu", &silu}, {"hardswish", &hardswish},
    };
    const auto found = all.find(name);
    _halide_user_assert(found != all.end()) << "no activation is named " << name << "\n";
    return *found->second;
}

Expr relu_stops(const Expr &z, Type tensor) {
    // The largest that is rounded to zero: half of the least denormal, a tie, which goes to even.
    const double rounds_to_zero = tensor.is_bfloat()    ? std::ldexp(1.0, -134)
                                  : tensor.bits() == 16 ? std::ldexp(1.0, -25)
                                                        : 0;
    const Expr largest = cast(z.type(), Expr(rounds_to_zero));
    // LLVM takes z <= largest for !(z > largest), which is something else for NaN.
    return exact_order(z <= largest) && !is_nan(z);
}

Expr exp_of_nonpositive(const Expr &x) {
    const bool wide = x.type().bits() == 64;
    const auto value = [&](double v) { return constant(x, v); };
    // exp of what is below is zero.
    const Expr in_range = max(x, value(wide ? -760 : -110));
    // x = n * log(2) + r, |r| <= log(2) / 2. Adding 1.5 * 2^52 (2^23) leaves no bits for a fraction: the sum is
    // rounded, and its last bits are n's.
    const Expr magic = value(wide ? 6755399441055744.0 : 12582912.0);
    const Expr shifted = exact_order(in_range * value(1.4426950408889634) + magic);
    const Expr rounded = exact_order(shifted - magic);
    const Type bits = Int(x.type().bits());
    const Expr n = reinterpret(bits, shifted) - reinterpret(bits, magic);
    // log(2) in two parts, of which the product of n and the first is exact.
    const Expr high = value(wide ? 0x1.62e42feep-1 : 0.693359375);
    const Expr low = value(wide ? 0x1.a39ef35793c76p-33 : -2.1219444005469057e-4);
    const Expr r = exact_order((in_range - rounded * high) - rounded * low);
    // Taylor's series, up to a term that is below roundoff.
    const int degree = wide ? 13 : 7;
    double factorial = 1;
    for (int i = 2; i <= degree; i++) {
        factorial *= i;
    }
    Expr sum = value(1 / factorial);
    for (int i = degree; i > 0; i--) {
        factorial /= i;
        sum = exact_order(sum * r + value(1 / factorial));
    }
    // 2^n in two factors, both normal numbers.
    const int significand = wide ? 52 : 23, bias = wide ? 1023 : 127;
    const Expr half = n / 2;
    const auto power = [&](const Expr &exponent) {
        return reinterpret(x.type(), (exponent + cast(bits, bias)) << significand);
    };
    const Expr result = exact_order(exact_order(sum * power(half)) * power(n - half));
    return select_bits(is_nan(x), x, result);
}

}  // namespace hbn
