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

inline long double logistic(long double z) {
    return 1 / (1 + std::exp(-z));
}

inline std::vector<ActivationOracle> activation_oracles() {
    using A = hbn_activation;
    const auto leaky = [](long double z, const A &a) { return z > 0 ? z : a.alpha * z; };
    const auto leaky_slope = [](long double z, const A &a) { return z > 0 ? 1 : a.alpha + 0.0L; };
    const auto clip = [](long double z, const A &a) {
        return std::fmin(std::fmax(z, (long double)a.alpha), (long double)a.beta);
    };
    const auto clip_slope = [](long double z, const A &a) {
        return z <= a.alpha || z >= a.beta ? 0.0L : 1.0L;
    };
    return {
        {"identity",
         {HBN_IDENTITY, 0, 0},
         [](long double z, const A &) { return z; },
         [](long double, const A &) { return 1.0L; },
         1,
         0,
         {}},
        {"relu",
         {HBN_RELU, 0, 0},
         [](long double z, const A &) { return std::fmax(z, 0.0L); },
         [](long double z, const A &) { return z > 0 ? 1.0L : 0.0L; },
         1,
         0,
         {0}},
        {"leaky_relu", {HBN_LEAKY_RELU, 0.01, 0}, leaky, leaky_slope, 1, 0, {0}},
        {"steep_leaky_relu", {HBN_LEAKY_RELU, -1.5, 0}, leaky, leaky_slope, 1.5, 0, {0}},
        {"relu6", {HBN_CLIP, 0, 6}, clip, clip_slope, 1, 0, {0, 6}},
        {"clip", {HBN_CLIP, -0.7, 0.9}, clip, clip_slope, 1, 0, {-0.7, 0.9}},
        {"silu",
         {HBN_SILU, 0, 0},
         [](long double z, const A &) { return z * logistic(z); },
         [](long double z, const A &) { return logistic(z) * (1 + z * (1 - logistic(z))); },
         1.1,
         0.5,
         {}},
        {"hardswish",
         {HBN_HARDSWISH, 0, 0},
         [](long double z, const A &) { return z * std::fmin(std::fmax(z + 3, 0.0L), 6.0L) / 6; },
         [](long double z, const A &) { return z < -3   ? 0
                                               : z <= 3 ? z / 3 + 0.5L
                                                        : 1.0L; },
         1.5,
         1.0 / 3,
         {-3, 3}},
    };
}

}  // namespace hbn::test

#endif
