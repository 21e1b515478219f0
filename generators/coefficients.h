// The algebra that every operation shares: what a channel's statistics and sums become for its elements. A few
// coefficients a channel are computed in float64 and rounded once; the work per element is in the type of arithmetic.
#ifndef HBN_GENERATORS_COEFFICIENTS_H
#define HBN_GENERATORS_COEFFICIENTS_H

#include <Halide.h>

#include <vector>

#include "generators/rounding.h"

namespace hbn {

// Parameters, running statistics and the type of arithmetic: float64 beside float64 tensors, float32 beside all
// others. Saved mean and invstd are float64 beside every dtype.
inline Type statistic_type(Type tensor) {
    return tensor.is_float() && tensor.bits() == 64 ? Halide::Float(64) : Halide::Float(32);
}

Expr invstd_from_variance(const Expr &variance, const Expr &eps);

// (1 - momentum) * running + momentum * batch, in running's type. A momentum of 0 keeps the old value bit for bit,
// whatever the batch holds.
Expr moved_to_batch(const Expr &running, const Expr &batch, const Expr &momentum);

// The type that elements are computed in, and how far they may reach.
struct Arithmetic {
    Type tensor;
    // Whether elements may be as large as the type's largest value, or no more than a quarter of that.
    bool whole_range = true;
};

// How many coefficients x - mean takes: the mean, and, for tensors whose range is that of the arithmetic, range_scale, a
// power of two of at most 1 that brings the channel's standard deviation near 1. x * range_scale is exact and can't
// overflow, and neither can (x - mean) * range_scale, even for values of 1e38.
inline int deviation_size(const Arithmetic &a) {
    return a.tensor == Halide::Float(16) || !a.whole_range ? 1 : 2;
}

// y = (x - mean) * (weight * invstd) + bias, for every finite x. Here and below mean and invstd are float64, and
// coefficients are computed once a channel, for the function beside them to use for each element, in their type.
std::vector<Expr> normalization_coefficients(const Expr &mean, const Expr &invstd,
                                             const Expr &weight, const Expr &bias,
                                             const Arithmetic &arithmetic);
Expr normalize(const Expr &x, const std::vector<Expr> &coefficients, const Arithmetic &arithmetic);
Expr normalize_in_exact_order(const Expr &x, const std::vector<Expr> &coefficients,
                              const Arithmetic &arithmetic);

// grad_input = weight * invstd * (dy - sum_dy / M - xhat * sum(dy * xhat) / M).
std::vector<Expr> input_gradient_coefficients(const Expr &mean, const Expr &invstd,
                                              const Expr &weight, const Expr &sum_dy,
                                              const Expr &sum_dy_xmu, const Expr &count,
                                              const Arithmetic &arithmetic);
Expr input_gradient(const Expr &grad_output, const Expr &x, const std::vector<Expr> &coefficients,
                    const Arithmetic &arithmetic);

// The gradient by x is weight * invstd * P(g) for a gradient g by y, where P(g) = g - sum_g / M - xhat * sum(g * xhat) / M
// is a symmetric projection. These are {sum of g, sum of g * (x - mean)} over a channel.
struct GradientSums {
    Expr plain, xmu;
};

// The tangent of y: weight * invstd * P(x_tangent) + xhat * weight_tangent + bias_tangent.
std::vector<Expr> tangent_coefficients(const Expr &mean, const Expr &invstd, const Expr &weight,
                                       const Expr &weight_tangent, const Expr &bias_tangent,
                                       const GradientSums &sums, const Expr &count,
                                       const Arithmetic &arithmetic);
Expr tangent(const Expr &x_tangent, const Expr &x, const std::vector<Expr> &coefficients,
             const Arithmetic &arithmetic);

// Double backward: the gradient by x of sum(ddx * grad_input) + ddw * grad_weight + ddb * grad_bias, where ddx, ddw and
// ddb (grad_grad_input, ...) are constants. With product = sum(dy * P(ddx)), and by d xhat = invstd * P(dx) and
// d invstd = -invstd^2 * xhat * dx / M, it is
//   ddw * invstd * P(dy)
//   - weight * invstd^2 / M * (product * xhat + sum(dy * xhat) * P(ddx) + sum(ddx * xhat) * P(dy)).
std::vector<Expr> double_backward_coefficients(const Expr &mean, const Expr &invstd,
                                               const Expr &weight, const Expr &ddw,
                                               const GradientSums &of_dy,
                                               const GradientSums &of_ddx, const Expr &product,
                                               const Expr &count, const Arithmetic &arithmetic);
Expr double_backward(const Expr &dy, const Expr &ddx, const Expr &x,
                     const std::vector<Expr> &coefficients, const Arithmetic &arithmetic);
// `product`, from sum(dy * (ddx - center)), where center is near the mean of ddx.
Expr double_backward_product(const Expr &sum_dy_ddx, const Expr &center, const Expr &invstd,
                             const GradientSums &of_dy, const GradientSums &of_ddx,
                             const Expr &count);

}  // namespace hbn

#endif
