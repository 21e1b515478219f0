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

// A number and what a float64 computation of it may be off by.
struct Estimate {
    Real value, error = 0;

    Estimate rounded(Real roundoff) const {
        return {value, error + roundoff * (std::fabs(value) + error)};
    }
};

inline Estimate operator+(const Estimate &a, const Estimate &b) {
    return Estimate{a.value + b.value, a.error + b.error}.rounded(unit_roundoff(DType::float64));
}
inline Estimate operator-(const Estimate &a, const Estimate &b) {
    return a + Estimate{-b.value, b.error};
}
inline Estimate operator*(const Estimate &a, const Estimate &b) {
    return Estimate{a.value * b.value,
                    std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error}
        .rounded(unit_roundoff(DType::float64));
}

// What kernels make of terms a * b: coefficients, and each operation on an element, are of the statistic type.
class ElementEstimate {
public:
    explicit ElementEstimate(DType tensor) : tensor_(tensor) {
    }
    Estimate operator()(const Estimate &e) const {
        return e.rounded(unit_roundoff(statistic_dtype(tensor_)));
    }
    // Adds a * b.
    void add(const Estimate &a, const Estimate &b) {
        sum_ = (*this)(sum_ + (*this)((*this)(a) * (*this)(b)));
    }
    void add(const Estimate &a) {
        sum_ = (*this)(sum_ + (*this)(a));
    }
    void expect(double actual, const char *what) const {
        Real bound = sum_.error + 4 * Real(smallest_denormal(statistic_dtype(tensor_)));
        if (is_16_bit(tensor_)) {
            bound += Real(unit_roundoff(tensor_)) * (std::fabs(sum_.value) + bound) +
                     Real(smallest_denormal(tensor_));
        }
        EXPECT_LE(std::fabs(actual - sum_.value), bound)
            << what << " is " << actual << ", expected " << double(sum_.value);
    }

private:
    DType tensor_;
    Estimate sum_{0};
};

// {sum of g, sum of g * xhat} of a channel; none where statistics are constants.
struct SumEstimates {
    Estimate plain{0}, xhat{0};

    SumEstimates() = default;
    SumEstimates(const TestTensor &g, const TestTensor &x, int64_t c, const ChannelOracle &s) {
        const GradientOracle sums(g, x, c, s);
        const Real error = 2 * plain_sum_error(g.view().dtype, s.count);
        plain = {sums.sum_dy, error * sums.sum_abs_dy};
        xhat = {sums.sum_dy_xhat, error * sums.sum_abs_dy_xhat};
    }
};

// What forward saved is exact; what comes of a running variance is rounded.
inline Estimate given_invstd(const ChannelOracle &s, bool training,
                             const ElementEstimate &in_type) {
    return training ? Estimate{s.invstd} : in_type(Estimate{s.invstd});
}

// hbn_batch_norm_jvp's formula, which is grad_grad_output's, too.
inline void expect_tangent(const TestTensor &t, const TestTensor &x, const TestTensor &actual,
                           int64_t c, const ChannelOracle &s, Real weight, Real weight_tangent,
                           Real bias_tangent, bool training) {
    const SumEstimates sums = training ? SumEstimates(t, x, c, s) : SumEstimates();
    const ElementEstimate in_type(x.view().dtype);
    const Estimate invstd = given_invstd(s, training, in_type);
    const Estimate per_value{1 / s.count}, gain = Estimate{weight} * invstd;
    const Estimate slope = Estimate{weight_tangent} - gain * sums.xhat * per_value;
    x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
        const Estimate xhat = Estimate{Real(x.get(n, c, h, w)) - s.mean} * invstd;
        ElementEstimate sum(x.view().dtype);
        sum.add(in_type(Estimate{Real(t.get(n, c, h, w))} - in_type(sums.plain * per_value)), gain);
        sum.add(in_type(xhat), slope);
        sum.add(Estimate{bias_tangent});
        sum.expect(actual.get(n, c, h, w), "tangent");
    });
}

// hbn_batch_norm_double_backward's grad_input and grad_weight; see double_backward_coefficients.
inline void expect_double_backward(const TestTensor &ddx, const TestTensor &dy, const TestTensor &x,
                                   const TestTensor &actual, double actual_weight, int64_t c,
                                   const ChannelOracle &s, Real weight, Real ddw, bool training) {
    const DType dtype = x.view().dtype;
    const SumEstimates of_dy = training ? SumEstimates(dy, x, c, s) : SumEstimates();
    const SumEstimates of_ddx = training ? SumEstimates(ddx, x, c, s) : SumEstimates();
    const ElementEstimate in_type(dtype);
    const Estimate per_value{1 / s.count}, invstd = given_invstd(s, training, in_type);
    const Real center = training ? Real(float(of_ddx.plain.value / s.count)) : 0;
    Real sum = 0, magnitudes = 0;
    x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
        const Real term = Real(dy.get(n, c, h, w)) * (Real(ddx.get(n, c, h, w)) - center);
        sum += term;
        magnitudes += std::fabs(term);
    });
    const Estimate both{sum, 2 * plain_sum_error(dtype, s.count) * magnitudes};
    const Estimate product = both - of_dy.plain * (of_ddx.plain * per_value - Estimate{center}) -
                             of_dy.xhat * of_ddx.xhat * per_value;
    const Estimate to_weight = in_type(invstd * product);
    EXPECT_LE(std::fabs(actual_weight - to_weight.value), to_weight.error + 1e-40L);

    const Estimate gain = training ? Estimate{weight} * invstd * invstd * per_value : Estimate{0};
    const Estimate of_projected_dy = Estimate{ddw} * invstd - gain * of_ddx.xhat;
    const Estimate of_projected_ddx = Estimate{0} - gain * of_dy.xhat;
    const Estimate of_xhat = Estimate{0} - gain * product -
                             of_projected_dy * of_dy.xhat * per_value -
                             of_projected_ddx * of_ddx.xhat * per_value;
    x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
        const Estimate xhat = Estimate{Real(x.get(n, c, h, w)) - s.mean} * invstd;
        const auto centred = [&](const TestTensor &g, const SumEstimates &sums) {
            return in_type(Estimate{Real(g.get(n, c, h, w))} - in_type(sums.plain * per_value));
        };
        ElementEstimate element(dtype);
        element.add(centred(dy, of_dy), of_projected_dy);
        element.add(centred(ddx, of_ddx), of_projected_ddx);
        element.add(in_type(xhat), of_xhat);
        element.expect(actual.get(n, c, h, w), "grad_input");
    });
}

}  // namespace hbn::test

#endif
