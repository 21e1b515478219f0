// Activations in long double: what fused and unfused kernels are judged against.
#ifndef HBN_TESTS_ACTIVATIONS_H
#define HBN_TESTS_ACTIVATIONS_H

#include <hbn/hbn.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace hbn::test {

struct ActivationOracle {
    std::string name;
    hbn_activation activation;
    long double (*value)(long double z, const hbn_activation &a);
    long double (*derivative)(long double z, const hbn_activation &a);
    // Of the value and of the derivative: how much a change of z changes them at most.
    double slope, curvature;
    // Where the derivative jumps, of which a result near there may have either side's.
    std::vector<double> jumps;
};

inline std::vector<ActivationOracle> activation_oracles() {
    using std::exp, std::fmax, std::fmin;
    std::vector<ActivationOracle> oracles;
    const auto add = [&](const char *name, const hbn_activation &activation, auto value,
                         auto derivative, double slope, double curvature,
                         const std::vector<double> &jumps) {
        oracles.push_back({name, activation, value, derivative, slope, curvature, {}});
        for (const double jump : jumps) {
            if (std::isfinite(jump)) {
                oracles.back().jumps.push_back(jump);
            }
        }
    };
#define HBN_TEST_FUNCTION(formula)                                         \
    [](long double z, const hbn_activation &a) {                           \
        [[maybe_unused]] const long double alpha = a.alpha, beta = a.beta; \
        (void)z;                                                           \
        return static_cast<long double>(formula);                          \
    }
#define HBN_TEST_ACTIVATION(name, activation, c_name, alpha, beta, value, derivative, slope,   \
                            curvature, ...)                                                    \
    add(#name, {c_name, alpha, beta}, HBN_TEST_FUNCTION(value), HBN_TEST_FUNCTION(derivative), \
        slope, curvature, {__VA_ARGS__});
#include "activations.def"
#undef HBN_TEST_FUNCTION
    return oracles;
}

}  // namespace hbn::test

#endif
