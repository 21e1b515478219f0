#include <hbn/functional.h>

#include "errors.h"
#include "runtime/checks.h"
#include "views.h"

namespace hbn {

using internal::OptionalTensor;
using internal::OptionalVector;
using internal::or_out_of_memory;
using internal::throw_on_error;
using internal::to_c;

void set_num_threads(int num_threads) {
    throw_on_error(hbn_set_num_threads(num_threads));
}

int get_num_threads() {
    return hbn_get_num_threads();
}

namespace functional {

namespace {

DType statistic_dtype(DType tensor) {
    return tensor == DType::float64 ? DType::float64 : DType::float32;
}

// What is allocated for an operation takes its shape from x, so x must be sound first.
void check(const ConstTensorView &x, const char *name = "x") {
    const hbn_tensor c_x = to_c(x);
    throw_on_error(internal::check_supported_tensor({name, &c_x}));
}

// For one value a channel. An expanded tensor may have more channels than addresses can count.
void resize(std::vector<double> &values, int64_t channels) {
    if (uint64_t(channels) > values.max_size()) {
        throw OutOfMemory("out of memory");
    }
    or_out_of_memory([&] { values.resize(size_t(channels)); });
}

hbn_moments to_c(const Moments &moments) {
    if (moments.mean.size() != moments.m2.size()) {
        throw_on_error(internal::fail(HBN_INVALID_ARGUMENT, internal::text::vector_size, "m2",
                                      (long long)moments.mean.size(),
                                      (long long)moments.m2.size()));
    }
    return {moments.count, const_cast<double *>(moments.mean.data()),
            const_cast<double *>(moments.m2.data()), int64_t(moments.mean.size())};
}

}  // namespace

void Moments::merge(const Moments &other) {
    hbn_moments into = to_c(*this);
    const hbn_moments from = to_c(other);
    throw_on_error(hbn_merge_moments(&into, &from));
    count = into.count;
}

Tensor batch_norm(const ConstTensorView &input, const VectorView &running_mean,
                  const VectorView &running_var, const ConstVectorView &weight,
                  const ConstVectorView &bias, bool training, double momentum, double eps) {
    check(input);
    Tensor y = Tensor::like(input);
    const hbn_tensor c_x = to_c(input), c_y = to_c(y);
    throw_on_error(hbn_batch_norm_forward(&c_x, OptionalVector(weight), OptionalVector(bias),
                                          OptionalVector(running_mean), OptionalVector(running_var),
                                          training, momentum, eps, &c_y, nullptr, nullptr));
    return y;
}

ForwardResult batch_norm_forward(const ConstTensorView &x, const ConstVectorView &weight,
                                 const ConstVectorView &bias, const VectorView &running_mean,
                                 const VectorView &running_var, bool training, double momentum,
                                 double eps, const std::optional<TensorView> &out) {
    check(x);
    ForwardResult result;
    if (!out) {
        result.y = Tensor::like(x);
    }
    if (training || (!running_mean && !running_var)) {
        result.mean = Vector(DType::float64, x.sizes[1]);
        result.invstd = Vector(DType::float64, x.sizes[1]);
    }
    const hbn_tensor c_x = to_c(x), c_y = to_c(out ? *out : result.y.view());
    throw_on_error(hbn_batch_norm_forward(
        &c_x, OptionalVector(weight), OptionalVector(bias), OptionalVector(running_mean),
        OptionalVector(running_var), training, momentum, eps, &c_y, OptionalVector(result.mean),
        OptionalVector(result.invstd)));
    return result;
}

Gradients batch_norm_backward(const ConstTensorView &grad_output, const ConstTensorView &x,
                              const ConstVectorView &weight, const ConstVectorView &mean,
                              const ConstVectorView &invstd, const ConstVectorView &running_mean,
                              const ConstVectorView &running_var, bool training, double eps,
                              const GradMask &grad_mask, const std::optional<TensorView> &out) {
    check(grad_output, "grad_output");
    check(x);
    Gradients result;
    if (grad_mask.input && !out) {
        result.grad_input = Tensor::like(x);
    }
    const DType dtype = weight ? weight.dtype : statistic_dtype(x.dtype);
    if (grad_mask.weight) {
        result.grad_weight = Vector(dtype, x.sizes[1]);
    }
    if (grad_mask.bias) {
        result.grad_bias = Vector(dtype, x.sizes[1]);
    }
    const hbn_tensor c_dy = to_c(grad_output), c_x = to_c(x);
    const hbn_tensor c_dx = to_c(out ? *out : result.grad_input.view());
    throw_on_error(hbn_batch_norm_backward(
        &c_dy, &c_x, OptionalVector(weight), OptionalVector(mean), OptionalVector(invstd),
        OptionalVector(running_mean), OptionalVector(running_var), training, eps,
        grad_mask.input ? &c_dx : nullptr, OptionalVector(result.grad_weight),
        OptionalVector(result.grad_bias)));
    return result;
}

Tensor batch_norm_inference(const ConstTensorView &x, const ConstVectorView &weight,
                            const ConstVectorView &bias, const ConstVectorView &running_mean,
                            const ConstVectorView &running_var, double eps,
                            const Activation &activation,
                            const std::optional<ConstTensorView> &residual,
                            const std::optional<TensorView> &out) {
    check(x);
    for (const auto &[name, statistic] :
         {std::pair("running_mean", &running_mean), std::pair("running_var", &running_var)}) {
        const OptionalVector c_statistic(*statistic);
        throw_on_error(internal::check_defined({name, c_statistic}, false));
    }
    const bool training = false;
    const double momentum = 0;
    Tensor y;
    if (!out) {
        y = Tensor::like(x);
    }
    const hbn_tensor c_x = to_c(x), c_y = to_c(out ? *out : y.view());
    if (activation.kind == HBN_IDENTITY && !residual) {
        throw_on_error(hbn_batch_norm_forward(
            &c_x, OptionalVector(weight), OptionalVector(bias), OptionalVector(running_mean),
            OptionalVector(running_var), training, momentum, eps, &c_y, nullptr, nullptr));
    } else {
        const hbn_activation c_activation = to_c(activation);
        throw_on_error(hbn_batch_norm_activation_forward(
            &c_x, OptionalTensor(residual), OptionalVector(weight), OptionalVector(bias),
            OptionalVector(running_mean), OptionalVector(running_var), training, momentum, eps,
            &c_activation, &c_y, nullptr, nullptr, nullptr));
    }
    return y;
}

ActivationForwardResult batch_norm_activation_forward(
    const ConstTensorView &x, const std::optional<ConstTensorView> &residual,
    const ConstVectorView &weight, const ConstVectorView &bias, const VectorView &running_mean,
    const VectorView &running_var, bool training, double momentum, double eps,
    const Activation &activation, const std::optional<TensorView> &out,
    const std::optional<TensorView> &mask_out) {
    check(x);
    ActivationForwardResult result;
    if (!out) {
        result.y = Tensor::like(x);
    }
    const bool batch_statistics = training || (!running_mean && !running_var);
    if (batch_statistics) {
        result.mean = Vector(DType::float64, x.sizes[1]);
        result.invstd = Vector(DType::float64, x.sizes[1]);
    }
    std::optional<ConstTensorView> mask = mask_out;
    if (batch_statistics && residual && activation.kind == HBN_RELU && !mask) {
        result.mask = Tensor::like(x, DType::uint8);
        mask = result.mask;
    }
    const hbn_tensor c_x = to_c(x), c_y = to_c(out ? *out : result.y.view());
    const hbn_activation c_activation = to_c(activation);
    throw_on_error(hbn_batch_norm_activation_forward(
        &c_x, OptionalTensor(residual), OptionalVector(weight), OptionalVector(bias),
        OptionalVector(running_mean), OptionalVector(running_var), training, momentum, eps,
        &c_activation, &c_y, OptionalTensor(mask), OptionalVector(result.mean),
        OptionalVector(result.invstd)));
    return result;
}

ActivationGradients batch_norm_activation_backward(
    const ConstTensorView &grad_output, const ConstTensorView &x,
    const std::optional<ConstTensorView> &residual, const std::optional<ConstTensorView> &mask,
    const ConstVectorView &weight, const ConstVectorView &bias, const ConstVectorView &mean,
    const ConstVectorView &invstd, const ConstVectorView &running_mean,
    const ConstVectorView &running_var, bool training, double eps, const Activation &activation,
    const GradMask &grad_mask, const std::optional<TensorView> &out,
    const std::optional<TensorView> &residual_out) {
    check(grad_output, "grad_output");
    check(x);
    ActivationGradients result;
    const bool added = residual || mask || residual_out;
    // The kernels compute it in any case.
    Tensor unwanted;
    Tensor &grad_input = grad_mask.input ? result.grad_input : unwanted;
    if (!grad_mask.input || !out) {
        grad_input = Tensor::like(x);
    }
    if (added && !residual_out) {
        result.grad_residual = Tensor::like(x);
    }
    const DType dtype = weight ? weight.dtype : statistic_dtype(x.dtype);
    if (grad_mask.weight) {
        result.grad_weight = Vector(dtype, x.sizes[1]);
    }
    if (grad_mask.bias) {
        result.grad_bias = Vector(dtype, x.sizes[1]);
    }
    const hbn_tensor c_dy = to_c(grad_output), c_x = to_c(x);
    const hbn_tensor c_dx = to_c(grad_mask.input && out ? *out : grad_input.view());
    const hbn_tensor c_dr = to_c(residual_out ? *residual_out : result.grad_residual.view());
    const hbn_activation c_activation = to_c(activation);
    throw_on_error(hbn_batch_norm_activation_backward(
        &c_dy, &c_x, OptionalTensor(residual), OptionalTensor(mask), OptionalVector(weight),
        OptionalVector(bias), OptionalVector(mean), OptionalVector(invstd),
        OptionalVector(running_mean), OptionalVector(running_var), training, eps, &c_activation,
        &c_dx, added ? &c_dr : nullptr, OptionalVector(result.grad_weight),
        OptionalVector(result.grad_bias)));
    return result;
}

Tensor batch_norm_jvp(const ConstTensorView &x_tangent, const ConstTensorView &x,
                      const ConstVectorView &weight, const ConstVectorView &weight_tangent,
                      const ConstVectorView &bias_tangent, const ConstVectorView &mean,
                      const ConstVectorView &invstd, const ConstVectorView &running_mean,
                      const ConstVectorView &running_var, bool training, double eps,
                      const std::optional<TensorView> &out) {
    check(x);
    Tensor y_tangent;
    if (!out) {
        y_tangent = Tensor::like(x);
    }
    const hbn_tensor c_t = to_c(x_tangent), c_x = to_c(x),
                     c_y = to_c(out ? *out : y_tangent.view());
    throw_on_error(hbn_batch_norm_jvp(
        &c_t, &c_x, OptionalVector(weight), OptionalVector(weight_tangent),
        OptionalVector(bias_tangent), OptionalVector(mean), OptionalVector(invstd),
        OptionalVector(running_mean), OptionalVector(running_var), training, eps, &c_y));
    return y_tangent;
}

DoubleGradients batch_norm_double_backward(
    const ConstTensorView &grad_grad_input, const ConstVectorView &grad_grad_weight,
    const ConstVectorView &grad_grad_bias, const ConstTensorView &grad_output,
    const ConstTensorView &x, const ConstVectorView &weight, const ConstVectorView &mean,
    const ConstVectorView &invstd, const ConstVectorView &running_mean,
    const ConstVectorView &running_var, bool training, double eps,
    const std::optional<TensorView> &grad_output_out, const std::optional<TensorView> &input_out) {
    check(x);
    DoubleGradients result;
    if (!grad_output_out) {
        result.grad_grad_output = Tensor::like(x);
    }
    if (!input_out) {
        result.grad_input = Tensor::like(x);
    }
    result.grad_weight = Vector(statistic_dtype(x.dtype), x.sizes[1]);
    const hbn_tensor c_ddx = to_c(grad_grad_input), c_dy = to_c(grad_output), c_x = to_c(x),
                     c_ddy =
                         to_c(grad_output_out ? *grad_output_out : result.grad_grad_output.view()),
                     c_dx = to_c(input_out ? *input_out : result.grad_input.view());
    throw_on_error(hbn_batch_norm_double_backward(
        &c_ddx, OptionalVector(grad_grad_weight), OptionalVector(grad_grad_bias), &c_dy, &c_x,
        OptionalVector(weight), OptionalVector(mean), OptionalVector(invstd),
        OptionalVector(running_mean), OptionalVector(running_var), training, eps, &c_ddy, &c_dx,
        OptionalVector(result.grad_weight)));
    return result;
}

Moments batch_norm_stats(const ConstTensorView &x) {
    check(x);
    Moments moments;
    resize(moments.mean, x.sizes[1]);
    resize(moments.m2, x.sizes[1]);
    const hbn_tensor c_x = to_c(x);
    hbn_moments c_moments = to_c(moments);
    throw_on_error(hbn_batch_norm_stats(&c_x, &c_moments));
    moments.count = c_moments.count;
    return moments;
}

Tensor batch_norm_normalize(const ConstTensorView &x, const Moments &moments,
                            const ConstVectorView &weight, const ConstVectorView &bias,
                            double eps) {
    check(x);
    Tensor y = Tensor::like(x);
    batch_norm_normalize(x, moments, weight, bias, eps, y);
    return y;
}

void batch_norm_normalize(const ConstTensorView &x, const Moments &moments,
                          const ConstVectorView &weight, const ConstVectorView &bias, double eps,
                          const TensorView &out) {
    const hbn_tensor c_x = to_c(x), c_y = to_c(out);
    const hbn_moments c_moments = to_c(moments);
    throw_on_error(hbn_batch_norm_normalize(&c_x, &c_moments, OptionalVector(weight),
                                            OptionalVector(bias), eps, &c_y));
}

BackwardSums batch_norm_backward_reduce(const ConstTensorView &grad_output,
                                        const ConstTensorView &x, const ConstVectorView &mean,
                                        const ConstVectorView &invstd) {
    check(grad_output, "grad_output");
    check(x);
    BackwardSums sums;
    resize(sums.sum_dy, x.sizes[1]);
    resize(sums.sum_dy_xmu, x.sizes[1]);
    sums.grad_weight = Vector(statistic_dtype(x.dtype), x.sizes[1]);
    sums.grad_bias = Vector(statistic_dtype(x.dtype), x.sizes[1]);
    const hbn_tensor c_dy = to_c(grad_output), c_x = to_c(x);
    throw_on_error(hbn_batch_norm_backward_reduce(
        &c_dy, &c_x, OptionalVector(mean), OptionalVector(invstd), sums.sum_dy.data(),
        sums.sum_dy_xmu.data(), OptionalVector(sums.grad_weight), OptionalVector(sums.grad_bias)));
    return sums;
}

Tensor batch_norm_backward_elemt(const ConstTensorView &grad_output, const ConstTensorView &x,
                                 const ConstVectorView &mean, const ConstVectorView &invstd,
                                 const ConstVectorView &weight, const BackwardSums &sums,
                                 double count) {
    check(grad_output, "grad_output");
    check(x);
    Tensor grad_input = Tensor::like(x);
    batch_norm_backward_elemt(grad_output, x, mean, invstd, weight, sums, count, grad_input);
    return grad_input;
}

void batch_norm_backward_elemt(const ConstTensorView &grad_output, const ConstTensorView &x,
                               const ConstVectorView &mean, const ConstVectorView &invstd,
                               const ConstVectorView &weight, const BackwardSums &sums,
                               double count, const TensorView &out) {
    check(x);
    for (const std::vector<double> *sum : {&sums.sum_dy, &sums.sum_dy_xmu}) {
        if (int64_t(sum->size()) != x.sizes[1]) {
            throw_on_error(internal::fail(HBN_INVALID_ARGUMENT, internal::text::vector_size,
                                          sum == &sums.sum_dy ? "sum_dy" : "sum_dy_xmu",
                                          (long long)x.sizes[1], (long long)sum->size()));
        }
    }
    const hbn_tensor c_dy = to_c(grad_output), c_x = to_c(x), c_dx = to_c(out);
    throw_on_error(hbn_batch_norm_backward_elemt(
        &c_dy, &c_x, OptionalVector(mean), OptionalVector(invstd), OptionalVector(weight),
        sums.sum_dy.data(), sums.sum_dy_xmu.data(), count, &c_dx));
}

void update_running_stats(const Moments &moments, double momentum, const VectorView &running_mean,
                          const VectorView &running_var) {
    const hbn_moments c_moments = to_c(moments);
    const double any_eps = 1;  // no invstd is asked for
    throw_on_error(hbn_finalize_moments(&c_moments, momentum, any_eps, OptionalVector(running_mean),
                                        OptionalVector(running_var), nullptr, nullptr));
}

std::tuple<Vector, Vector> mean_and_invstd(const Moments &moments, double eps) {
    const hbn_moments c_moments = to_c(moments);
    Vector mean(DType::float64, c_moments.channels), invstd(DType::float64, c_moments.channels);
    throw_on_error(hbn_finalize_moments(&c_moments, 0, eps, nullptr, nullptr, OptionalVector(mean),
                                        OptionalVector(invstd)));
    return {std::move(mean), std::move(invstd)};
}

}  // namespace functional
}  // namespace hbn
