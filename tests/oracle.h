// Batch normalization in plain loops over long double: what every kernel is judged against.
#ifndef HBN_TESTS_ORACLE_H
#define HBN_TESTS_ORACLE_H

#include "tensors.h"

#include <gtest/gtest.h>

namespace hbn::test {

using Real = long double;

struct ChannelOracle {
    Real mean, m2, count, invstd;

    ChannelOracle(const TestTensor &x, int64_t c, double eps) : mean(0), m2(0), count(0) {
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            mean += Real(x.get(n, c, h, w));
            count += 1;
        });
        mean /= count;
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            const Real d = Real(x.get(n, c, h, w)) - mean;
            m2 += d * d;
        });
        invstd = 1 / std::sqrt(m2 / count + Real(eps));
    }
    ChannelOracle(Real mean, Real invstd, Real count)
        : mean(mean), m2(0), count(count), invstd(invstd) {
    }
};

// generators/batch_norm.h's bounds of what sums of `count` values of a tensor are off by, at `Pivot`: plain
// sums, relative to the sum of magnitudes; m2, relative to itself; and a mean, relative to the deviation.
inline bool sums_in_float32_groups(DType tensor) {
    return tensor == DType::float16 || tensor == DType::bfloat16;
}
inline Real plain_sum_error(DType tensor, Real count) {
    return sums_in_float32_groups(tensor) ? 9 * std::ldexp(Real(1), -24)
                                          : count * std::ldexp(Real(1), -53);
}
inline Real m2_error(DType tensor, Real count) {
    return sums_in_float32_groups(tensor)
               ? 27 * (1 + std::min(count, Real(64))) * std::ldexp(Real(1), -24)
               : count * std::ldexp(Real(1), -53);
}
inline Real mean_error(DType tensor, Real count) {
    return sums_in_float32_groups(tensor)
               ? 8 * std::sqrt(1 + std::min(count, Real(64))) * std::ldexp(Real(1), -24)
               : count * std::ldexp(Real(1), -53);
}

// Of xhat, by float32 groups, where the statistics are the tensor's own and not given.
inline Real xhat_error(DType tensor, const ChannelOracle &s, Real xhat) {
    return s.m2 > 0 && sums_in_float32_groups(tensor)
               ? m2_error(tensor, s.count) * std::fabs(xhat) / 2 + mean_error(tensor, s.count)
               : 0;
}

inline bool is_16_bit(DType dtype) {
    return dtype == DType::bfloat16 || dtype == DType::float16;
}

// Relative error that sums of `count` values in float64 may add beside the statistic type's rounding:
// nothing for float32 and narrower, each addition's half ulp for float64.
inline Real sum_error(DType dtype, Real count) {
    return dtype == DType::float64 ? count * std::ldexp(Real(1), -53) : Real(0);
}

// design.md's bound: 8 ulps of max(1, |weight * xhat| + |bias|); and the rounding to a narrower output.
inline void expect_normalized(const TestTensor &x, const TestTensor &y, int64_t c,
                              const ChannelOracle &s, Real weight, Real bias) {
    const DType dtype = y.view().dtype;
    const Real roundoff = unit_roundoff(statistic_dtype(dtype));
    // A float64 mean has no low part: its own rounding, |mean| ulps, is seen through invstd.
    const Real spread = 1 + std::fabs(s.mean) * s.invstd;
    int failures = 0;
    x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
        const Real xhat = (Real(x.get(n, c, h, w)) - s.mean) * s.invstd;
        const Real expected = xhat * weight + bias;
        const Real size = std::fmax(Real(1), std::fabs(xhat * weight) + std::fabs(bias));
        Real bound = (8 * roundoff + sum_error(dtype, s.count) * spread) * size;
        if (is_16_bit(dtype)) {
            bound += xhat_error(dtype, s, xhat) * std::fabs(weight) +
                     Real(unit_roundoff(dtype)) * std::fabs(expected) * (1 + roundoff) +
                     Real(smallest_denormal(dtype));
        }
        const double actual = y.get(n, c, h, w);
        if (!(std::fabs(actual - expected) <= bound) && failures++ < 3) {
            ADD_FAILURE() << "y[" << n << "," << c << "," << h << "," << w << "] is " << actual
                          << ", expected " << double(expected) << ", off by "
                          << double(std::fabs(actual - expected) / bound) << " times the bound";
        }
    });
    if (failures > 3) {
        ADD_FAILURE() << "... and " << failures - 3 << " more in channel " << c;
    }
}

struct GradientOracle {
    Real sum_dy = 0, sum_dy_xhat = 0;
    Real sum_abs_dy = 0, sum_abs_dy_xhat = 0;

    GradientOracle(const TestTensor &dy, const TestTensor &x, int64_t c, const ChannelOracle &s) {
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            const Real g = dy.get(n, c, h, w);
            const Real xhat = (Real(x.get(n, c, h, w)) - s.mean) * s.invstd;
            sum_dy += g;
            sum_dy_xhat += g * xhat;
            sum_abs_dy += std::fabs(g);
            sum_abs_dy_xhat += std::fabs(g * xhat);
        });
    }

    // The result is rounded once to the statistic type, whose denormals are further apart than its relative
    // roundoff tells.
    void expect_parameters(double grad_weight, double grad_bias, DType tensor, Real count) const {
        const DType dtype = statistic_dtype(tensor);
        const Real roundoff = unit_roundoff(dtype);
        const Real sum = plain_sum_error(tensor, count);
        const Real denormal = smallest_denormal(dtype);
        EXPECT_LE(std::fabs(grad_bias - sum_dy),
                  2 * roundoff * std::fabs(sum_dy) + sum * sum_abs_dy + denormal);
        EXPECT_LE(std::fabs(grad_weight - sum_dy_xhat),
                  4 * roundoff * std::fabs(sum_dy_xhat) + 2 * sum * sum_abs_dy_xhat + denormal);
    }
};

// 8 ulps of the sum of the magnitudes of the three terms of grad_input (two of them absent in inference).
inline void expect_grad_input(const TestTensor &dy, const TestTensor &x, const TestTensor &dx,
                              int64_t c, const ChannelOracle &s, Real weight,
                              const GradientOracle &g, bool training) {
    const DType dtype = dx.view().dtype;
    const Real roundoff = unit_roundoff(statistic_dtype(dtype));
    int failures = 0;
    x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
        const Real xhat = (Real(x.get(n, c, h, w)) - s.mean) * s.invstd;
        const Real direct = dy.get(n, c, h, w);
        const Real mean_dy = training ? g.sum_dy / s.count : 0;
        const Real slope = training ? xhat * (g.sum_dy_xhat / s.count) : 0;
        const Real gain = weight * s.invstd;
        const Real expected = gain * (direct - mean_dy - slope);
        // The sums' own error is relative to the sums of magnitudes.
        const Real sums =
            training ? (g.sum_abs_dy + std::fabs(xhat) * g.sum_abs_dy_xhat) / s.count : 0;
        Real bound = std::fabs(gain) * 8 * roundoff *
                         (std::fabs(direct) + std::fabs(mean_dy) + std::fabs(slope)) +
                     std::fabs(gain) * plain_sum_error(dtype, s.count) * 2 * sums +
                     Real(smallest_denormal(statistic_dtype(dtype)));
        if (is_16_bit(dtype)) {
            bound += Real(unit_roundoff(dtype)) * std::fabs(expected) * (1 + roundoff) +
                     Real(smallest_denormal(dtype));
        }
        const double actual = dx.get(n, c, h, w);
        if (!(std::fabs(actual - expected) <= bound) && failures++ < 3) {
            ADD_FAILURE() << "grad_input[" << n << "," << c << "," << h << "," << w << "] is "
                          << actual << ", expected " << double(expected) << ", off by "
                          << double(std::fabs(actual - expected) / bound) << " times the bound";
        }
    });
}

}  // namespace hbn::test

#endif
