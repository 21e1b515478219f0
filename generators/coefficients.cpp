#include "generators/coefficients.h"

#include <cmath>

namespace hbn {

using namespace Halide;

Expr invstd_from_variance(const Expr &variance, const Expr &eps) {
    // This gives the same bits wherever it is computed, which the backward of a fused ReLU relies on.
    return exact_order(f64(1) / sqrt(variance + eps));
}

Expr moved_to_batch(const Expr &running, const Expr &batch, const Expr &momentum) {
    const Expr updated = (1 - momentum) * f64(running) + momentum * batch;
    return select(momentum == 0, running, cast(running.type(), updated));
}

namespace {

Expr range_scale(const Expr &invstd) {
    // Clearing the significand of a positive float64 leaves the power of two at or below it.
    const Expr exponent = cast<uint64_t>(Expr(uint64_t(0x7ff0000000000000)));
    const Expr power = reinterpret<double>(reinterpret<uint64_t>(invstd) & exponent);
    // It is a normal float32, since some processors take others for zero. Even values of 2^128 times that are small.
    return select(power < f64(1), max(power, f64(std::ldexp(1.0f, -126))), f64(1));
}

// The coefficients of (x - mean) * scale, which come first among an element's coefficients.
std::vector<Expr> deviation_coefficients(const Expr &mean, const Expr &scale, const Arithmetic &a) {
    const Expr rounded = cast(statistic_type(a.tensor), mean);
    const Expr rounded_scale = cast(statistic_type(a.tensor), scale);
    return deviation_size(a) == 1 ? std::vector<Expr>{rounded}
                                  : std::vector<Expr>{rounded_scale * rounded, rounded_scale};
}

Expr deviation(const Expr &x, const std::vector<Expr> &coefficients, const Arithmetic &a) {
    const Expr wide = cast(coefficients[0].type(), x);
    // Products with a power of two are exact, and so those with or without fused multiply-add are the same.
    return deviation_size(a) == 1 ? exact_order(wide - coefficients[0])
                                  : wide * coefficients[1] - coefficients[0];
}

// The last two coefficients of normalize(), on the deviation.
Expr scaled_and_shifted(const Expr &deviation, const std::vector<Expr> &coefficients,
                        const Arithmetic &a) {
    const int next = deviation_size(a);
    return deviation * coefficients[next] + coefficients[next + 1];
}

Expr scale_of(const Expr &invstd, const Arithmetic &a) {
    return deviation_size(a) == 1 ? f64(1) : range_scale(invstd);
}

// deviation() is the distance from the mean rounded to the arithmetic's type: x - mean_high is exact near the
// mean. What rounding leaves, mean_low, is at most as large as x - mean_high, since mean_high is the value
// nearest to the mean. This is the constant that makes constant + slope * (x - mean_high) what `constant` makes
// constant + slope * (x - mean); all in float64.
Expr with_mean_low(const Expr &constant, const Expr &slope, const Expr &mean, const Arithmetic &a) {
    const Type type = statistic_type(a.tensor);
    if (mean.type() == type) {
        return constant;
    }
    const Expr rest = exact_order(mean - f64(cast(type, mean)));
    // An infinite mean leaves no rest.
    const Expr mean_low = zero_where(!is_number(rest), rest);
    return constant - slope * mean_low;
}

}  // namespace

std::vector<Expr> normalization_coefficients(const Expr &mean, const Expr &invstd,
                                             const Expr &weight, const Expr &bias,
                                             const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr gain = f64(weight) * invstd;
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(gain / scale));
    coefficients.push_back(rounded(exact_order(with_mean_low(f64(bias), gain, mean, a))));
    return coefficients;
}

Expr normalize(const Expr &x, const std::vector<Expr> &coefficients, const Arithmetic &a) {
    return scaled_and_shifted(deviation(x, coefficients, a), coefficients, a);
}

Expr normalize_in_exact_order(const Expr &x, const std::vector<Expr> &coefficients,
                              const Arithmetic &a) {
    return exact_order_around(deviation(x, coefficients, a), [&](const Expr &d) {
        return scaled_and_shifted(d, coefficients, a);
    });
}

std::vector<Expr> input_gradient_coefficients(const Expr &mean, const Expr &invstd,
                                              const Expr &weight, const Expr &sum_dy,
                                              const Expr &sum_dy_xmu, const Expr &count,
                                              const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr mean_dy_xhat = sum_dy_xmu * invstd / count;
    // Both are subtracted from dy.
    const Expr mean_dy = with_mean_low(sum_dy / count, mean_dy_xhat * invstd, mean, a);
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(mean_dy_xhat * (invstd / scale)));
    coefficients.push_back(rounded(mean_dy));
    coefficients.push_back(rounded(f64(weight) * invstd));
    return coefficients;
}

Expr input_gradient(const Expr &grad_output, const Expr &x, const std::vector<Expr> &coefficients,
                    const Arithmetic &a) {
    const int next = deviation_size(a);
    const Expr centred =
        exact_order(cast(coefficients[0].type(), grad_output) - coefficients[next + 1]);
    const Expr gradient =
        (centred - deviation(x, coefficients, a) * coefficients[next]) * coefficients[next + 2];
    // In float64 LLVM makes slow vectors of strided elements where it may fuse multiplications and additions.
    return a.tensor == Float(64) ? exact_order(gradient) : gradient;
}

std::vector<Expr> tangent_coefficients(const Expr &mean, const Expr &invstd, const Expr &weight,
                                       const Expr &weight_tangent, const Expr &bias_tangent,
                                       const GradientSums &sums, const Expr &count,
                                       const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr gain = f64(weight) * invstd;
    const Expr of_xhat = f64(weight_tangent) - gain * (sums.xmu * invstd / count);
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(gain));
    coefficients.push_back(rounded(sums.plain / count));
    coefficients.push_back(rounded(of_xhat * (invstd / scale)));
    coefficients.push_back(rounded(with_mean_low(f64(bias_tangent), of_xhat * invstd, mean, a)));
    return coefficients;
}

Expr tangent(const Expr &x_tangent, const Expr &x, const std::vector<Expr> &coefficients,
             const Arithmetic &a) {
    const int next = deviation_size(a);
    const Expr centred =
        exact_order(cast(coefficients[0].type(), x_tangent) - coefficients[next + 1]);
    return exact_order(
        centred * coefficients[next] +
        (deviation(x, coefficients, a) * coefficients[next + 2] + coefficients[next + 3]));
}

std::vector<Expr> double_backward_coefficients(const Expr &mean, const Expr &invstd,
                                               const Expr &weight, const Expr &ddw,
                                               const GradientSums &of_dy,
                                               const GradientSums &of_ddx, const Expr &product,
                                               const Expr &count, const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr gain = f64(weight) * invstd * invstd / count;
    const Expr sum_dy_xhat = of_dy.xmu * invstd, sum_ddx_xhat = of_ddx.xmu * invstd;
    const Expr of_projected_dy = f64(ddw) * invstd - gain * sum_ddx_xhat;
    const Expr of_projected_ddx = -gain * sum_dy_xhat;
    const Expr of_xhat = -gain * product - of_projected_dy * (sum_dy_xhat / count) -
                         of_projected_ddx * (sum_ddx_xhat / count);
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(of_projected_dy));
    coefficients.push_back(rounded(of_dy.plain / count));
    coefficients.push_back(rounded(of_projected_ddx));
    coefficients.push_back(rounded(of_ddx.plain / count));
    coefficients.push_back(rounded(of_xhat * (invstd / scale)));
    coefficients.push_back(rounded(with_mean_low(f64(0), of_xhat * invstd, mean, a)));
    return coefficients;
}

Expr double_backward(const Expr &dy, const Expr &ddx, const Expr &x,
                     const std::vector<Expr> &coefficients, const Arithmetic &a) {
    const int next = deviation_size(a);
    const Expr centred_dy = exact_order(cast(coefficients[0].type(), dy) - coefficients[next + 1]);
    const Expr centred_ddx =
        exact_order(cast(coefficients[0].type(), ddx) - coefficients[next + 3]);
    return exact_order(
        centred_dy * coefficients[next] +
        (centred_ddx * coefficients[next + 2] +
         (deviation(x, coefficients, a) * coefficients[next + 4] + coefficients[next + 5])));
}

Expr double_backward_product(const Expr &sum_dy_ddx, const Expr &center, const Expr &invstd,
                             const GradientSums &of_dy, const GradientSums &of_ddx,
                             const Expr &count) {
    const Expr centred = sum_dy_ddx - of_dy.plain * (of_ddx.plain / count - center);
    return centred - (of_dy.xmu * invstd) * (of_ddx.xmu * invstd / count);
}

}  // namespace hbn
