// Inputs that break other implementations. golden/make_torch_errors.py makes the same ones, bit for bit: what
// changes here changes there.
#ifndef HBN_TESTS_HARD_INPUTS_H
#define HBN_TESTS_HARD_INPUTS_H

#include "tensors.h"

namespace hbn::test {

struct HardInput {
    const char *name;
    double (*value)(Normal &normal, int64_t index);
};

inline const HardInput hard_inputs[] = {
    {"mean_1e4", [](Normal &normal, int64_t) { return normal(1e4); }},
    {"mean_1e6", [](Normal &normal, int64_t) { return normal(1e6); }},
    {"mean_minus_1e6", [](Normal &normal, int64_t) { return normal(-1e6); }},
    {"constant", [](Normal &, int64_t) { return 3.25; }},
    {"constant_but_one", [](Normal &, int64_t i) { return i == 5 ? 16777216.0 : 16777214.0; }},
    {"zero", [](Normal &, int64_t) { return 0.0; }},
    {"denormal", [](Normal &normal, int64_t) { return normal(0, 1e-41); }},
    {"smallest_denormals", [](Normal &, int64_t i) { return i % 2 ? 1.4e-45 : -1.4e-45; }},
    {"tiny", [](Normal &normal, int64_t) { return normal(0, 1e-30); }},
    {"huge_1e18", [](Normal &normal, int64_t) { return normal(0, 1e18); }},
    {"huge_mean_1e18", [](Normal &normal, int64_t) { return normal(1e18, 1e12); }},
    {"outlier_1e20", [](Normal &normal, int64_t i) { return i == 0 ? 1e20 : normal(); }},
    {"last_outlier_1e20",
     [](Normal &normal, int64_t i) { return i == 16 * 784 - 1 ? 1e20 : normal(); }},
    {"largest", [](Normal &, int64_t i) { return i % 2 ? 3.4028234e38 : -3.4028234e38; }},
    {"largest_constant", [](Normal &, int64_t) { return 3.4028234e38; }},
    {"mixed_magnitudes",
     [](Normal &normal, int64_t i) { return normal() * std::pow(10.0, double(i % 37)); }},
    {"ramp", [](Normal &, int64_t i) { return double(i); }},
};

// One of them in every channel, and the parameters to normalize it with.
struct HardProblem {
    Shape sizes{16, 8, 28, 28};
    Normal normal{11};
    TestTensor x;
    TestVector weight, bias;

    HardProblem(const HardInput &input, Layout layout, bool large_parameters)
        : x(DType::float32, sizes, layout),
          weight(DType::float32, normal.values(8, 0, large_parameters ? 1000 : 1)),
          bias(DType::float32, normal.values(8, 0, large_parameters ? 1000 : 1)) {
        for (int64_t c = 0; c < 8; c++) {
            int64_t index = 0;
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                x.set(n, c, h, w, input.value(normal, index++));
            });
        }
    }
};

}  // namespace hbn::test

#endif
