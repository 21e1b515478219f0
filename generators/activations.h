// Activations, each defined once: y = value(z), z being what batch normalization, and the addition of a residual if
// there is one, give. Arithmetic is in z's type, which is the statistics'.
#ifndef HBN_GENERATORS_ACTIVATIONS_H
#define HBN_GENERATORS_ACTIVATIONS_H

#include <Halide.h>

#include <functional>
#include <string>
#include <vector>

#include "generators/rounding.h"

namespace hbn {

struct ActivationDefinition {
    // Names of the scalars that it takes beside z, in the order of `parameters`, which are in z's type.
    std::vector<std::string> parameter_names;
    // y, before it is rounded to the `tensor` type.
    std::function<Expr(const Expr &z, const std::vector<Expr> &parameters, Type tensor)> value;
    // grad_output times the derivative at z. Where that is zero by definition, not by arithmetic, the product is zero
    // whatever grad_output is.
    std::function<Expr(const Expr &grad_output, const Expr &z, const std::vector<Expr> &parameters,
                       Type tensor)>
        gradient;
};

// Fails where there is none of this name, which is one of those in the third column of operations.def's activations.
const ActivationDefinition &activation_named(const std::string &name);

// Whether relu(z), rounded to the `tensor` type, is zero; not so for NaN, which passes. Forward and backward decide
// alike, bit for bit, where they compute z in the same order.
Expr relu_stops(const Expr &z, Type tensor);

// exp(x) for x <= 0, or NaN, in float32 or float64: off by less than 2 units in the last place, in the same bits on
// every target. It calls no library.
Expr exp_of_nonpositive(const Expr &x);

}  // namespace hbn

#endif
