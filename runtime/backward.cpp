// hbn_batch_norm_backward, with what may be fused into it, and its halves,
// hbn_batch_norm_backward_reduce and hbn_batch_norm_backward_elemt.
#include "context.h"
#include "dispatch.h"
#include "gradient_sums.h"
#include "vectors.h"
#include "workspace.h"

using namespace hbn::internal;

namespace {

// One block of channels of a backward pass. Absent vectors and tensors, and a grad_input that is not
// wanted, have no data.
struct Backward {
    Activation activation;
    hbn_tensor grad_output, x, mask, grad_input, grad_residual;
    hbn_vector weight, bias, mean, invstd, running_mean, running_var, grad_weight, grad_bias;
    double eps;

    hbn_dtype dtype() const {
        return statistic_dtype(x.dtype);
    }

    bool wants_parameters() const {
        return grad_weight.data || grad_bias.data;
    }

    Pieces pieces() const {
        const auto or_x = [&](const hbn_tensor &t) { return t.data ? t : x; };
        return Pieces({grad_output, x, or_x(mask), or_x(grad_input), or_x(grad_residual)});
    }

    bool fused() const {
        return activation != Activation::none;
    }

    // What a ReLU's backward needs in addition: the bias to compute it again, or add_relu's mask.
    hbn_status activation_bias(hbn_vector *b) const {
        *b = {};
        return activation == Activation::relu ? as_input(bias, dtype(), 0, b) : HBN_OK;
    }

    Operation training_operation() const {
        switch (activation) {
        case Activation::relu:
            return Operation::backward_training_relu;
        case Activation::add_relu:
            return Operation::backward_training_add_relu;
        default:
            return Operation::backward_training;
        }
    }

    Operation inference_operation() const {
        switch (activation) {
        case Activation::relu:
            return Operation::backward_inference_relu;
        case Activation::add_relu:
            return Operation::backward_inference_add_relu;
        default:
            return Operation::backward_inference;
        }
    }

    hbn_status reduce(const hbn_vector &center, const hbn_vector &scale, const hbn_vector &sum_dy,
                      const hbn_vector &sum_dy_xmu, const hbn_vector &to_weight,
                      const hbn_vector &to_bias) const {
        return reduce_gradients(grad_output, x, pieces(), center, scale, sum_dy, sum_dy_xmu,
                                to_weight, to_bias);
    }

    hbn_status elemt(const hbn_vector &sum_dy, const hbn_vector &sum_dy_xmu, const hbn_vector &w,
                     double count) const {
        return pieces().for_each([&](auto cut) {
            return call(Operation::backward_elemt,
                        {in(cut(grad_output)), in(cut(x)), in(mean), in(invstd), in(w), in(sum_dy),
                         in(sum_dy_xmu), in(count), out(cut(grad_input))});
        });
    }

    hbn_status training() const {
        const OutputVector to_weight(grad_weight, dtype()), to_bias(grad_bias, dtype());
        hbn_vector w, b;
        HBN_TRY(as_input(weight, dtype(), 1, &w));
        HBN_TRY(activation_bias(&b));
        if (grad_input.data && pieces().one()) {
            HBN_TRY(
                call(training_operation(), {in(grad_output), in(x), in(mean), in(invstd), in(w),
                                            in(b), in(mask), out(grad_input), out(grad_residual),
                                            out(to_weight.written()), out(to_bias.written())}));
        } else {
            const hbn_vector sum_dy = Workspace::take(HBN_FLOAT64);
            const hbn_vector sum_dy_xmu = Workspace::take(HBN_FLOAT64);
            HBN_TRY(
                reduce(mean, invstd, sum_dy, sum_dy_xmu, to_weight.written(), to_bias.written()));
            if (grad_input.data) {
                HBN_TRY(elemt(sum_dy, sum_dy_xmu, w, count_of(x)));
            }
        }
        HBN_TRY(to_weight.store());
        return to_bias.store();
    }

    hbn_status inference() const {
        hbn_vector w, b, center, variance;
        HBN_TRY(as_input(weight, dtype(), 1, &w));
        HBN_TRY(activation_bias(&b));
        HBN_TRY(as_input(running_mean, dtype(), 0, &center));
        HBN_TRY(as_input(running_var, dtype(), 1, &variance));
        const OutputVector to_weight(grad_weight, dtype()), to_bias(grad_bias, dtype());
        if (fused() || (grad_input.data && wants_parameters() && pieces().one())) {
            HBN_TRY(call(inference_operation(),
                         {in(grad_output), in(x), in(center), in(variance), in(w), in(eps), in(b),
                          in(mask), out(grad_input), out(grad_residual), out(to_weight.written()),
                          out(to_bias.written())}));
        } else {
            if (wants_parameters()) {
                const hbn_vector scale = Workspace::take(dtype());
                HBN_TRY(call(Operation::invstd_from_variance, dtype(),
                             {in(variance), in(eps), out(scale)}));
                HBN_TRY(reduce(center, scale, Workspace::take(HBN_FLOAT64),
                               Workspace::take(HBN_FLOAT64), to_weight.written(),
                               to_bias.written()));
            }
            if (grad_input.data) {
                HBN_TRY(pieces().for_each([&](auto cut) {
                    return call(
                        Operation::backward_inference_input,
                        {in(cut(grad_output)), in(variance), in(w), in(eps), out(cut(grad_input))});
                }));
            }
        }
        HBN_TRY(to_weight.store());
        return to_bias.store();
    }

    hbn_status require_kernels(bool is_training) const {
        const bool one = pieces().one();
        if (fused() && !one) {
            return fail(HBN_UNSUPPORTED, text::fused_too_large, "a fused backward pass");
        }
        if (fused() || (grad_input.data && one && (is_training || wants_parameters()))) {
            return require(is_training ? training_operation() : inference_operation(), grad_output);
        }
        if (wants_parameters() || is_training) {
            HBN_TRY(require(Operation::backward_reduce, grad_output));
            if (!is_training) {
                HBN_TRY(require(Operation::invstd_from_variance, dtype()));
            }
        }
        if (grad_input.data) {
            return is_training ? require(Operation::backward_elemt, grad_output)
                               : require(Operation::backward_inference_input, grad_output);
        }
        return HBN_OK;
    }
};

// `bias` with relu only; `mask` and `grad_residual` with add_relu only.
hbn_status backward(Activation activation, const hbn_tensor *grad_output, const hbn_tensor *x,
                    const hbn_tensor *mask, const hbn_vector *weight, const hbn_vector *bias,
                    const hbn_vector *mean, const hbn_vector *invstd,
                    const hbn_vector *running_mean, const hbn_vector *running_var, int training,
                    double eps, const hbn_tensor *grad_input, const hbn_tensor *grad_residual,
                    const hbn_vector *grad_weight, const hbn_vector *grad_bias) {
    HBN_TRY(check_tensors({{"grad_output", grad_output}, {"x", x}}));
    const int64_t channels = x->sizes[1];
    HBN_TRY(check_given_statistics(training, mean, invstd, running_mean, running_var, eps));
    HBN_TRY(check_vectors({{"running_mean", running_mean},
                           {"running_var", running_var},
                           {"weight", weight},
                           {"bias", bias},
                           {"grad_weight", grad_weight},
                           {"grad_bias", grad_bias}},
                          channels, x->dtype, VectorDType::parameter));
    HBN_TRY(check_vectors(
        {{"mean", mean}, {"invstd", invstd}}, channels, x->dtype,
        activation == Activation::none ? VectorDType::statistic : VectorDType::float64));
    if (activation == Activation::add_relu) {
        HBN_TRY(check_mask({"mask", mask}, *x));
        HBN_TRY(check_tensors({{"x", x}, {"grad_residual", grad_residual}}));
    }
    if (grad_input || activation != Activation::none) {
        HBN_TRY(check_tensors({{"x", x}, {"grad_input", grad_input}}));
    }
    HBN_TRY(check_overlap(
        {Footprint({"grad_output", grad_output}), Footprint({"x", x}), Footprint({"mask", mask}),
         Footprint({"weight", weight}), Footprint({"bias", bias}), Footprint({"mean", mean}),
         Footprint({"invstd", invstd}), Footprint({"running_mean", running_mean}),
         Footprint({"running_var", running_var})},
        {Footprint({"grad_input", grad_input}), Footprint({"grad_residual", grad_residual}),
         Footprint({"grad_weight", grad_weight}), Footprint({"grad_bias", grad_bias})},
        "grad_input", grad_residual ? nullptr : "grad_output"));
    if (is_empty(*x)) {
        fill_zero(grad_weight);
        fill_zero(grad_bias);
        return HBN_OK;
    }
    if (!grad_input && !grad_weight && !grad_bias) {
        return HBN_OK;
    }
    const auto or_x = [&](const hbn_tensor *t) { return t ? *t : *x; };
    const int64_t per_block = channels_per_block(
        {*grad_output, *x, or_x(mask), or_x(grad_input), or_x(grad_residual)},
        {weight, bias, mean, invstd, running_mean, running_var, grad_weight, grad_bias});
    const auto block_of = [&](int64_t begin, int64_t size) {
        const auto part = [&](const hbn_vector *v) { return slice(v, begin, size); };
        const auto tensor_part = [&](const hbn_tensor *t) {
            return t ? slice(*t, 1, begin, size) : hbn_tensor{};
        };
        return Backward{activation,
                        tensor_part(grad_output),
                        tensor_part(x),
                        tensor_part(mask),
                        tensor_part(grad_input),
                        tensor_part(grad_residual),
                        part(weight),
                        part(bias),
                        part(mean),
                        part(invstd),
                        part(running_mean),
                        part(running_var),
                        part(grad_weight),
                        part(grad_bias),
                        eps};
    };
    HBN_TRY(block_of(0, per_block).require_kernels(training != 0));
    HBN_TRY(require_conversions({running_mean, running_var, weight, bias, grad_weight, grad_bias},
                                statistic_dtype(x->dtype)));
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const Backward block = block_of(begin, size);
        return training ? block.training() : block.inference();
    });
}

}  // namespace

extern "C" hbn_status hbn_batch_norm_backward(
    const hbn_tensor *grad_output, const hbn_tensor *x, const hbn_vector *weight,
    const hbn_vector *mean, const hbn_vector *invstd, const hbn_vector *running_mean,
    const hbn_vector *running_var, int training, double eps, const hbn_tensor *grad_input,
    const hbn_vector *grad_weight, const hbn_vector *grad_bias) {
    return backward(Activation::none, grad_output, x, nullptr, weight, nullptr, mean, invstd,
                    running_mean, running_var, training, eps, grad_input, nullptr, grad_weight,
                    grad_bias);
}

extern "C" hbn_status hbn_batch_norm_relu_backward(
    const hbn_tensor *grad_output, const hbn_tensor *x, const hbn_vector *weight,
    const hbn_vector *bias, const hbn_vector *mean, const hbn_vector *invstd,
    const hbn_vector *running_mean, const hbn_vector *running_var, int training, double eps,
    const hbn_tensor *grad_input, const hbn_vector *grad_weight, const hbn_vector *grad_bias) {
    return backward(Activation::relu, grad_output, x, nullptr, weight, bias, mean, invstd,
                    running_mean, running_var, training, eps, grad_input, nullptr, grad_weight,
                    grad_bias);
}

extern "C" hbn_status hbn_batch_norm_add_relu_backward(
    const hbn_tensor *grad_output, const hbn_tensor *x, const hbn_tensor *mask,
    const hbn_vector *weight, const hbn_vector *mean, const hbn_vector *invstd,
    const hbn_vector *running_mean, const hbn_vector *running_var, int training, double eps,
    const hbn_tensor *grad_input, const hbn_tensor *grad_residual, const hbn_vector *grad_weight,
    const hbn_vector *grad_bias) {
    return backward(Activation::add_relu, grad_output, x, mask, weight, nullptr, mean, invstd,
                    running_mean, running_var, training, eps, grad_input, grad_residual,
                    grad_weight, grad_bias);
}

extern "C" hbn_status hbn_batch_norm_backward_reduce(const hbn_tensor *grad_output,
                                                     const hbn_tensor *x, const hbn_vector *mean,
                                                     const hbn_vector *invstd, double *sum_dy,
                                                     double *sum_dy_xmu,
                                                     const hbn_vector *grad_weight,
                                                     const hbn_vector *grad_bias) {
    HBN_TRY(check_tensors({{"grad_output", grad_output}, {"x", x}}));
    const int64_t channels = x->sizes[1];
    HBN_TRY(check_defined({"mean", mean}, true));
    HBN_TRY(check_defined({"invstd", invstd}, true));
    HBN_TRY(check_vectors({{"grad_weight", grad_weight}, {"grad_bias", grad_bias}}, channels,
                          x->dtype, VectorDType::parameter));
    HBN_TRY(check_vectors({{"mean", mean}, {"invstd", invstd}}, channels, x->dtype,
                          VectorDType::statistic));
    if (channels > 0 && (!sum_dy || !sum_dy_xmu)) {
        return fail(HBN_INVALID_ARGUMENT, text::required, sum_dy ? "sum_dy_xmu" : "sum_dy");
    }
    const Footprint sums[2] = {Footprint("sum_dy", sum_dy, channels),
                               Footprint("sum_dy_xmu", sum_dy_xmu, channels)};
    HBN_TRY(check_overlap({Footprint({"grad_output", grad_output}), Footprint({"x", x}),
                           Footprint({"mean", mean}), Footprint({"invstd", invstd})},
                          {sums[0], sums[1], Footprint({"grad_weight", grad_weight}),
                           Footprint({"grad_bias", grad_bias})}));
    if (is_empty(*x)) {
        std::fill_n(sum_dy, channels, 0.0);
        std::fill_n(sum_dy_xmu, channels, 0.0);
        fill_zero(grad_weight);
        fill_zero(grad_bias);
        return HBN_OK;
    }
    const hbn_dtype dtype = statistic_dtype(x->dtype);
    HBN_TRY(require(Operation::backward_reduce, *grad_output));
    HBN_TRY(require_conversions({grad_weight, grad_bias}, dtype));
    const int64_t per_block =
        channels_per_block({*grad_output, *x}, {mean, invstd, grad_weight, grad_bias});
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        Backward block{};
        block.grad_output = slice(*grad_output, 1, begin, size);
        block.x = slice(*x, 1, begin, size);
        const OutputVector to_weight(slice(grad_weight, begin, size), dtype);
        const OutputVector to_bias(slice(grad_bias, begin, size), dtype);
        HBN_TRY(block.reduce(slice(mean, begin, size), slice(invstd, begin, size),
                             slice(sum_dy, begin, size), slice(sum_dy_xmu, begin, size),
                             to_weight.written(), to_bias.written()));
        HBN_TRY(to_weight.store());
        return to_bias.store();
    });
}

extern "C" hbn_status hbn_batch_norm_backward_elemt(const hbn_tensor *grad_output,
                                                    const hbn_tensor *x, const hbn_vector *mean,
                                                    const hbn_vector *invstd,
                                                    const hbn_vector *weight, const double *sum_dy,
                                                    const double *sum_dy_xmu, double count,
                                                    const hbn_tensor *grad_input) {
    HBN_TRY(check_tensors({{"grad_output", grad_output}, {"x", x}, {"grad_input", grad_input}}));
    const int64_t channels = x->sizes[1];
    HBN_TRY(check_defined({"mean", mean}, true));
    HBN_TRY(check_defined({"invstd", invstd}, true));
    HBN_TRY(check_vectors({{"weight", weight}}, channels, x->dtype, VectorDType::parameter));
    HBN_TRY(check_vectors({{"mean", mean}, {"invstd", invstd}}, channels, x->dtype,
                          VectorDType::statistic));
    if (channels > 0 && (!sum_dy || !sum_dy_xmu)) {
        return fail(HBN_INVALID_ARGUMENT, text::required, sum_dy ? "sum_dy_xmu" : "sum_dy");
    }
    HBN_TRY(check_overlap(
        {Footprint({"grad_output", grad_output}), Footprint({"x", x}), Footprint({"mean", mean}),
         Footprint({"invstd", invstd}), Footprint({"weight", weight}),
         Footprint("sum_dy", sum_dy, channels), Footprint("sum_dy_xmu", sum_dy_xmu, channels)},
        {Footprint({"grad_input", grad_input})}, "grad_input", "grad_output"));
    if (is_empty(*x)) {
        return HBN_OK;
    }
    HBN_TRY(check_count(count));
    const hbn_dtype dtype = statistic_dtype(x->dtype);
    HBN_TRY(require(Operation::backward_elemt, *grad_output));
    HBN_TRY(require_conversions({weight}, dtype));
    const int64_t per_block =
        channels_per_block({*grad_output, *x, *grad_input}, {mean, invstd, weight});
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        Backward block{};
        block.grad_output = slice(*grad_output, 1, begin, size);
        block.x = slice(*x, 1, begin, size);
        block.grad_input = slice(*grad_input, 1, begin, size);
        block.mean = slice(mean, begin, size);
        block.invstd = slice(invstd, begin, size);
        hbn_vector w;
        HBN_TRY(as_input(slice(weight, begin, size), dtype, 1, &w));
        return block.elemt(slice(sum_dy, begin, size), slice(sum_dy_xmu, begin, size), w, count);
    });
}
