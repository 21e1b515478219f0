// What hbn's results must be, with the bounds of what they may be off by: batch normalization in plain loops over long double.
#ifndef HBN_TESTS_BOUNDS_H
#define HBN_TESTS_BOUNDS_H

#include "tensors.h"

namespace hbn::test {

using Real = long double;

struct ChannelOracle {
    Real mean = 0, m2 = 0, count = 0, invstd = 0;

    ChannelOracle() = default;
    // Of a channel's values. for_each(visit) calls visit(value) for each of them.
    template<typename ForEach>
    ChannelOracle(ForEach for_each, double eps) {
        for_each([&](double x) {
            mean += Real(x);
            count += 1;
        });
        mean /= count;
        for_each([&](double x) {
            const Real d = Real(x) - mean;
            m2 += d * d;
        });
        invstd = 1 / std::sqrt(m2 / count + Real(eps));
    }
    ChannelOracle(const TestTensor &x, int64_t c, double eps)
        : ChannelOracle(
              [&](const auto &visit) {
                  x.for_each_in_channel(
                      [&](int64_t n, int64_t h, int64_t w) { visit(x.get(n, c, h, w)); });
              },
              eps) {
    }
    ChannelOracle(Real mean, Real invstd, Real count)
        : mean(mean), m2(0), count(count), invstd(invstd) {
    }

    Real xhat(Real x) const {
        return (x - mean) * invstd;
    }
};

// generators/reductions.h's bounds of what sums of `count` values of a tensor are off by, at `Pivot`: plain
// sums, relative to the sum of magnitudes; m2, relative to itself; and a mean, relative to the deviation.
inline bool sums_in_float32_groups(DType tensor) {
    return tensor == DType::float16 || tensor == DType::bfloat16;
}
inline Real plain_sum_error(DType tensor, Real count) {
    return sums_in_float32_groups(tensor) ? 12 * std::ldexp(Real(1), -24)
                                          : count * std::ldexp(Real(1), -53);
}
inline Real m2_error(DType tensor, Real count) {
    return sums_in_float32_groups(tensor)
               ? 35 * (1 + std::min(count, Real(64))) * std::ldexp(Real(1), -24)
               : count * std::ldexp(Real(1), -53);
}
inline Real mean_error(DType tensor, Real count) {
    return sums_in_float32_groups(tensor)
               ? 11 * std::sqrt(1 + std::min(count, Real(64))) * std::ldexp(Real(1), -24)
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

// What a result should be, and how far off it may be.
template<typename T>
struct BasicBounded {
    T expected, bound;

    bool allows(T actual) const {
        return std::fabs(actual - expected) <= bound;
    }
    // The distance of `actual`, in bounds: infinite for NaN.
    T share(T actual) const {
        const T distance = std::fabs(actual - expected), bounds = distance / bound;
        return distance == 0 ? 0 : bounds >= 0 ? bounds : std::numeric_limits<T>::infinity();
    }
};
using Bounded = BasicBounded<Real>;

// ---- elements. What they have in common in a channel is found once. Numbers are of type T: float64 is enough to judge narrower
// dtypes by.

// y, by design.md's bound: 8 ulps of max(1, |weight * xhat| + |bias|); and the rounding to a narrower output. Where something is
// added to it before an activation, one more.
template<typename T = Real>
class NormalizedBounds {
public:
    // `least`: what is less becomes that.
    NormalizedBounds(DType dtype, const ChannelOracle &s, Real weight, Real bias, int ulps = 8,
                     T least = -std::numeric_limits<T>::infinity())
        : mean_(T(s.mean)),
          invstd_(T(s.invstd)),
          weight_(T(weight)),
          bias_(T(bias)),
          least_(least) {
        const Real roundoff = unit_roundoff(statistic_dtype(dtype));
        // A float64 mean has no low part: its own rounding, |mean| ulps, is seen through invstd.
        const Real spread = 1 + std::fabs(s.mean) * s.invstd;
        relative_ = T(Real(ulps) * roundoff + sum_error(dtype, s.count) * spread);
        if (is_16_bit(dtype)) {
            of_expected_ = T(Real(unit_roundoff(dtype)) * (1 + roundoff));
            const Real at_0 = xhat_error(dtype, s, 0) * std::fabs(weight);
            of_xhat_ = T(xhat_error(dtype, s, 1) * std::fabs(weight) - at_0);
            absolute_ = T(at_0 + Real(smallest_denormal(dtype)));
        }
    }
    BasicBounded<T> operator()(T x, T residual = 0) const {
        const T xhat = (x - mean_) * invstd_, scaled = xhat * weight_;
        const T expected = std::max(least_, scaled + bias_ + residual);
        const T size = std::max(T(1), std::fabs(scaled) + std::fabs(bias_) + std::fabs(residual));
        return {expected, relative_ * size + of_expected_ * std::fabs(expected) +
                              of_xhat_ * std::fabs(xhat) + absolute_};
    }

private:
    T mean_, invstd_, weight_, bias_, least_, relative_;
    T of_expected_ = 0, of_xhat_ = 0, absolute_ = 0;
};

// The same after an addition and ReLU.
template<typename T = Real>
class ReluBounds : public NormalizedBounds<T> {
public:
    ReluBounds(DType dtype, const ChannelOracle &s, Real weight, Real bias)
        : NormalizedBounds<T>(dtype, s, weight, bias, 9, 0) {
    }
};

// ---- statistics

inline Bounded relative_to(Real expected, Real relative) {
    return {expected, relative * std::fabs(expected) + 1e-30L};
}

inline Bounded bounded_mean(DType dtype, const ChannelOracle &s) {
    const Real sum = s.count * std::ldexp(Real(1), -53);
    return {s.mean, (2 * Real(unit_roundoff(statistic_dtype(dtype))) + sum) * std::fabs(s.mean) +
                        4 * mean_error(dtype, s.count) / s.invstd};
}

inline Bounded bounded_invstd(DType dtype, const ChannelOracle &s) {
    return relative_to(
        s.invstd, 2 * Real(unit_roundoff(statistic_dtype(dtype))) + 2 * m2_error(dtype, s.count));
}

// What momentum makes of the running statistics `old`.
inline Bounded bounded_running_mean(DType dtype, const ChannelOracle &s, Real old, Real momentum) {
    return {(1 - momentum) * old + momentum * s.mean,
            2 * Real(unit_roundoff(statistic_dtype(dtype))) * (std::fabs(old) + std::fabs(s.mean)) +
                bounded_mean(dtype, s).bound};
}

inline Bounded bounded_running_var(DType dtype, const ChannelOracle &s, Real old, Real momentum) {
    return relative_to(
        (1 - momentum) * old + momentum * s.m2 / (s.count - 1),
        2 * Real(unit_roundoff(statistic_dtype(dtype))) + 2 * m2_error(dtype, s.count));
}

// ---- moments, in float64

// Sums of 16-bit tensors run in float32 groups; others in float64, where any order of M values is off by M half ulps of the
// sum of magnitudes.
inline Bounded bounded_moments_mean(DType dtype, const ChannelOracle &s) {
    const Real deviation = std::sqrt(s.m2 / s.count);
    return {s.mean,
            mean_error(dtype, s.count) * deviation + std::ldexp(s.count, -53) * std::fabs(s.mean)};
}

inline Bounded bounded_moments_m2(DType dtype, const ChannelOracle &s) {
    const Real mean_bound = bounded_moments_mean(dtype, s).bound;
    const Real deviation = std::sqrt(s.m2 / s.count);
    // The tiles' means are off by as much, which merging sees through their distance, at most a few
    // deviations, and each tile's m2 through its square. A tile's m2 is a difference of sums around a
    // pivot; where that is the outlier itself, it costs as many bits as generators/reductions.h says.
    const Real values = std::min(s.count, std::ldexp(Real(1), 15)),
               chain = std::min(s.count, std::ldexp(Real(1), 11));
    const Real cancellation = chain * (values + 1) * std::ldexp(s.m2, -53);
    return {s.m2, m2_error(dtype, s.count) * s.m2 + cancellation +
                      s.count * mean_bound * (2 * deviation + mean_bound)};
}

// ---- backward

// Of one channel.
struct GradientSums {
    Real sum_dy = 0, sum_dy_xhat = 0;
    Real sum_abs_dy = 0, sum_abs_dy_xhat = 0;

    void add(Real dy, Real xhat) {
        sum_dy += dy;
        sum_dy_xhat += dy * xhat;
        sum_abs_dy += std::fabs(dy);
        sum_abs_dy_xhat += std::fabs(dy * xhat);
    }

    // The result is rounded once to the statistic type, whose denormals are further apart than its relative
    // roundoff tells.
    Bounded grad_bias(DType tensor, Real count) const {
        const DType dtype = statistic_dtype(tensor);
        return {sum_dy, 2 * Real(unit_roundoff(dtype)) * std::fabs(sum_dy) +
                            plain_sum_error(tensor, count) * sum_abs_dy +
                            Real(smallest_denormal(dtype))};
    }
    Bounded grad_weight(DType tensor, Real count) const {
        const DType dtype = statistic_dtype(tensor);
        return {sum_dy_xhat, 4 * Real(unit_roundoff(dtype)) * std::fabs(sum_dy_xhat) +
                                 2 * plain_sum_error(tensor, count) * sum_abs_dy_xhat +
                                 Real(smallest_denormal(dtype))};
    }
    // In float64. That of dy * (x - mean) is the second one where invstd is 1.
    Bounded float64_sum_dy(DType tensor, Real count) const {
        return {sum_dy, float64_error(tensor, count) * sum_abs_dy};
    }
    Bounded float64_sum_dy_xhat(DType tensor, Real count) const {
        return {sum_dy_xhat, float64_error(tensor, count) * sum_abs_dy_xhat};
    }

private:
    static Real float64_error(DType tensor, Real count) {
        return plain_sum_error(tensor, count) + std::ldexp(count, -53);
    }
};

// 8 ulps of the sum of the magnitudes of the three terms of grad_input (two of them absent in inference).
template<typename T = Real>
class GradInputBounds {
public:
    GradInputBounds(DType dtype, const ChannelOracle &s, const GradientSums &g, Real weight,
                    bool training)
        : mean_(T(s.mean)),
          invstd_(T(s.invstd)),
          gain_(T(weight * s.invstd)),
          mean_dy_(T(training ? g.sum_dy / s.count : 0)),
          slope_(T(training ? g.sum_dy_xhat / s.count : 0)) {
        const Real roundoff = unit_roundoff(statistic_dtype(dtype)),
                   gain = std::fabs(weight * s.invstd);
        relative_ = T(gain * 8 * roundoff);
        absolute_ = T(smallest_denormal(statistic_dtype(dtype)));
        if (training) {
            // The sums' own error is relative to the sums of magnitudes.
            const Real of_sums = gain * plain_sum_error(dtype, s.count) * 2 / s.count;
            absolute_ += T(of_sums * g.sum_abs_dy);
            of_xhat_ = T(of_sums * g.sum_abs_dy_xhat);
        }
        if (is_16_bit(dtype)) {
            of_expected_ = T(Real(unit_roundoff(dtype)) * (1 + roundoff));
            absolute_ += T(smallest_denormal(dtype));
        }
    }
    BasicBounded<T> operator()(T x, T dy) const {
        const T xhat = (x - mean_) * invstd_, slope = xhat * slope_;
        const T expected = gain_ * (dy - mean_dy_ - slope);
        const T size = std::fabs(dy) + std::fabs(mean_dy_) + std::fabs(slope);
        return {expected, relative_ * size + of_xhat_ * std::fabs(xhat) +
                              of_expected_ * std::fabs(expected) + absolute_};
    }

private:
    T mean_, invstd_, gain_, mean_dy_, slope_, relative_, of_xhat_ = 0, of_expected_ = 0, absolute_;
};

}  // namespace hbn::test

#endif
