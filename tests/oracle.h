// Expectations that GoogleTest's tests have of tensors: each result within its bound.
#ifndef HBN_TESTS_ORACLE_H
#define HBN_TESTS_ORACLE_H

#include "bounds.h"

#include <gtest/gtest.h>

namespace hbn::test {

inline void expect_bounded(Real actual, const Bounded &result) {
    EXPECT_LE(std::fabs(actual - result.expected), result.bound)
        << double(actual) << " is not " << double(result.expected);
}

// Of each element of a channel: `result(n, h, w)` is what it must be. The first few that are not are shown.
template<typename Result>
void expect_elements(const char *name, const TestTensor &actual, int64_t c, Result result) {
    int failures = 0;
    actual.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
        const Bounded expected = result(n, h, w);
        const double value = actual.get(n, c, h, w);
        if (!expected.allows(value) && failures++ < 3) {
            ADD_FAILURE() << name << "[" << n << "," << c << "," << h << "," << w << "] is "
                          << value << ", expected " << double(expected.expected) << ", off by "
                          << double(expected.share(value)) << " times the bound";
        }
    });
    if (failures > 3) {
        ADD_FAILURE() << "... and " << failures - 3 << " more in channel " << c;
    }
}

inline void expect_normalized(const TestTensor &x, const TestTensor &y, int64_t c,
                              const ChannelOracle &s, Real weight, Real bias) {
    const NormalizedBounds<> bounds(y.view().dtype, s, weight, bias);
    expect_elements("y", y, c,
                    [&](int64_t n, int64_t h, int64_t w) { return bounds(x.get(n, c, h, w)); });
}

struct GradientOracle : GradientSums {
    GradientOracle(const TestTensor &dy, const TestTensor &x, int64_t c, const ChannelOracle &s) {
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            add(dy.get(n, c, h, w), s.xhat(x.get(n, c, h, w)));
        });
    }

    void expect_parameters(double actual_weight, double actual_bias, DType tensor,
                           Real count) const {
        expect_bounded(actual_bias, grad_bias(tensor, count));
        expect_bounded(actual_weight, grad_weight(tensor, count));
    }
};

inline void expect_grad_input(const TestTensor &dy, const TestTensor &x, const TestTensor &dx,
                              int64_t c, const ChannelOracle &s, Real weight,
                              const GradientOracle &g, bool training) {
    const GradInputBounds<> bounds(dx.view().dtype, s, g, weight, training);
    expect_elements("grad_input", dx, c, [&](int64_t n, int64_t h, int64_t w) {
        return bounds(x.get(n, c, h, w), dy.get(n, c, h, w));
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
