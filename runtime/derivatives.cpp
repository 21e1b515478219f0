// hbn_batch_norm_jvp and hbn_batch_norm_double_backward: sums of pairs of tensors, by the kernel that backward has for
// them, and a map.
#include "context.h"
#include "dispatch.h"
#include "gradient_sums.h"
#include "vectors.h"
#include "workspace.h"

using namespace hbn::internal;

namespace {

// What forward and backward knew of a block of channels, as kernels take it: statistics that depend on x, or
// constants.
struct Context {
    bool training;
    hbn_dtype dtype;
    double count;
    hbn_vector weight, mean, invstd;

    // From vectors of the caller's that may be absent, or of another dtype.
    hbn_status load(const hbn_tensor &x, bool is_training, double eps,
                    const hbn_vector &caller_weight, const hbn_vector &saved_mean,
                    const hbn_vector &saved_invstd, const hbn_vector &running_mean,
                    const hbn_vector &running_var) {
        training = is_training;
        dtype = statistic_dtype(x.dtype);
        count = count_of(x);
        HBN_TRY(as_input(caller_weight, dtype, 1, &weight));
        if (training) {
            mean = saved_mean;
            invstd = saved_invstd;
            return HBN_OK;
        }
        hbn_vector variance;
        HBN_TRY(as_input(running_mean, dtype, 0, &mean));
        HBN_TRY(as_input(running_var, dtype, 1, &variance));
        invstd = Workspace::take(dtype);
        return call(Operation::invstd_from_variance, dtype, {in(variance), in(eps), out(invstd)});
    }
};

hbn_status zeros(hbn_vector *v) {
    return as_input({nullptr, HBN_FLOAT64, 0, 1}, HBN_FLOAT64, 0, v);
}

struct Sums {
    hbn_vector plain, xmu;

    // Of g and g * (x - center).
    hbn_status reduce(const hbn_tensor &g, const hbn_tensor &x, const hbn_vector &center,
                      const Context &k) {
        plain = Workspace::take(HBN_FLOAT64);
        xmu = Workspace::take(HBN_FLOAT64);
        const hbn_vector unused_weight = Workspace::take(k.dtype);
        const hbn_vector unused_bias = Workspace::take(k.dtype);
        return reduce_gradients(g, x, Pieces({g, x}), center, k.invstd, plain, xmu, unused_weight,
                                unused_bias);
    }
    // What statistics that are constants add to a derivative.
    hbn_status none() {
        HBN_TRY(zeros(&plain));
        return zeros(&xmu);
    }
    // As a projection needs them.
    hbn_status of(const hbn_tensor &g, const hbn_tensor &x, const Context &k) {
        return k.training ? reduce(g, x, k.mean, k) : none();
    }
};

hbn_status map_tangent(const hbn_tensor &x_tangent, const hbn_tensor &x, const Context &k,
                       const hbn_vector &weight_tangent, const hbn_vector &bias_tangent,
                       const Sums &sums, const hbn_tensor &y_tangent) {
    hbn_vector w, b;
    HBN_TRY(as_input(weight_tangent, k.dtype, 0, &w));
    HBN_TRY(as_input(bias_tangent, k.dtype, 0, &b));
    return Pieces({x_tangent, x, y_tangent}).for_each([&](auto cut) {
        return call(Operation::jvp_elemt,
                    {in(cut(x_tangent)), in(cut(x)), in(k.mean), in(k.invstd), in(k.weight), in(w),
                     in(b), in(sums.plain), in(sums.xmu), in(k.count), out(cut(y_tangent))});
    });
}

hbn_status check_statistics(const hbn_tensor &x, int training, double eps, const hbn_vector *mean,
                            const hbn_vector *invstd, const hbn_vector *running_mean,
                            const hbn_vector *running_var) {
    HBN_TRY(check_given_statistics(training, mean, invstd, running_mean, running_var, eps));
    const int64_t channels = x.sizes[1];
    HBN_TRY(check_vectors({{"running_mean", running_mean}, {"running_var", running_var}}, channels,
                          x.dtype, VectorDType::parameter));
    return check_vectors({{"mean", mean}, {"invstd", invstd}}, channels, x.dtype,
                         VectorDType::statistic);
}

hbn_status require_kernels(const hbn_tensor &x, bool training, bool reduces) {
    if (!training) {
        HBN_TRY(require(Operation::invstd_from_variance, statistic_dtype(x.dtype)));
    }
    return reduces ? require(Operation::backward_reduce, x) : HBN_OK;
}

}  // namespace

extern "C" hbn_status hbn_batch_norm_jvp(const hbn_tensor *x_tangent, const hbn_tensor *x,
                                         const hbn_vector *weight, const hbn_vector *weight_tangent,
                                         const hbn_vector *bias_tangent, const hbn_vector *mean,
                                         const hbn_vector *invstd, const hbn_vector *running_mean,
                                         const hbn_vector *running_var, int training, double eps,
                                         const hbn_tensor *y_tangent) {
    HBN_TRY(check_tensors({{"x_tangent", x_tangent}, {"x", x}, {"y_tangent", y_tangent}}));
    const int64_t channels = x->sizes[1];
    HBN_TRY(check_statistics(*x, training, eps, mean, invstd, running_mean, running_var));
    HBN_TRY(check_vectors(
        {{"weight", weight}, {"weight_tangent", weight_tangent}, {"bias_tangent", bias_tangent}},
        channels, x->dtype, VectorDType::parameter));
    HBN_TRY(check_overlap(
        {Footprint({"x_tangent", x_tangent}), Footprint({"x", x}), Footprint({"weight", weight}),
         Footprint({"weight_tangent", weight_tangent}), Footprint({"bias_tangent", bias_tangent}),
         Footprint({"mean", mean}), Footprint({"invstd", invstd}),
         Footprint({"running_mean", running_mean}), Footprint({"running_var", running_var})},
        {Footprint({"y_tangent", y_tangent})}, "y_tangent", "x_tangent"));
    if (is_empty(*x)) {
        return HBN_OK;
    }
    HBN_TRY(require(Operation::jvp_elemt, *x));
    HBN_TRY(require_kernels(*x, training, training));
    HBN_TRY(require_conversions({weight, weight_tangent, bias_tangent, running_mean, running_var},
                                statistic_dtype(x->dtype)));
    const int64_t per_block = channels_per_block(
        {*x_tangent, *x, *y_tangent},
        {weight, weight_tangent, bias_tangent, mean, invstd, running_mean, running_var});
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const auto part = [&](const hbn_vector *v) { return slice(v, begin, size); };
        const hbn_tensor tangent_part = slice(*x_tangent, 1, begin, size);
        const hbn_tensor x_part = slice(*x, 1, begin, size);
        Context k;
        HBN_TRY(k.load(x_part, training, eps, part(weight), part(mean), part(invstd),
                       part(running_mean), part(running_var)));
        Sums sums;
        HBN_TRY(sums.of(tangent_part, x_part, k));
        return map_tangent(tangent_part, x_part, k, part(weight_tangent), part(bias_tangent), sums,
                           slice(*y_tangent, 1, begin, size));
    });
}

namespace {

// One block of channels. What is not wanted has no data.
struct DoubleBackward {
    hbn_tensor grad_grad_input, grad_output, x;
    hbn_vector grad_grad_weight, grad_grad_bias;
    hbn_tensor grad_grad_output, grad_input;
    hbn_vector grad_weight;

    hbn_status run(const Context &k) const {
        Sums of_ddx;
        HBN_TRY(of_ddx.of(grad_grad_input, x, k));
        if (grad_input.data || grad_weight.data) {
            HBN_TRY(by_x_and_weight(k, of_ddx));
        }
        return grad_grad_output.data ? map_tangent(grad_grad_input, x, k, grad_grad_weight,
                                                   grad_grad_bias, of_ddx, grad_grad_output)
                                     : HBN_OK;
    }

private:
    hbn_status by_x_and_weight(const Context &k, const Sums &of_ddx) const {
        Sums of_dy, of_both;
        HBN_TRY(of_dy.of(grad_output, x, k));
        // Near grad_grad_input's mean, where it counts: there the sum cancels least.
        const hbn_vector center = Workspace::take(k.dtype);
        for (int64_t c = 0; c < center.size; c++) {
            store(center, c, k.training ? load(of_ddx.plain, c) / k.count : 0);
        }
        HBN_TRY(of_both.reduce(grad_output, grad_grad_input, center, k));
        hbn_vector product = Workspace::take(HBN_FLOAT64);
        const OutputVector to_weight(grad_weight, k.dtype);
        HBN_TRY(call(Operation::double_backward_product, k.dtype,
                     {in(of_both.xmu), in(center), in(k.invstd), in(of_dy.plain), in(of_dy.xmu),
                      in(of_ddx.plain), in(of_ddx.xmu), in(k.count), out(product),
                      out(to_weight.written())}));
        if (grad_input.data) {
            hbn_vector w;
            HBN_TRY(as_input(grad_grad_weight, k.dtype, 0, &w));
            if (!k.training) {
                HBN_TRY(zeros(&product));
            }
            HBN_TRY(Pieces({grad_output, grad_grad_input, x, grad_input}).for_each([&](auto cut) {
                return call(Operation::double_backward_elemt,
                            {in(cut(grad_output)), in(cut(grad_grad_input)), in(cut(x)), in(k.mean),
                             in(k.invstd), in(k.weight), in(w), in(of_dy.plain), in(of_dy.xmu),
                             in(of_ddx.plain), in(of_ddx.xmu), in(product), in(k.count),
                             out(cut(grad_input))});
            }));
        }
        return to_weight.store();
    }
};

}  // namespace

extern "C" hbn_status hbn_batch_norm_double_backward(
    const hbn_tensor *grad_grad_input, const hbn_vector *grad_grad_weight,
    const hbn_vector *grad_grad_bias, const hbn_tensor *grad_output, const hbn_tensor *x,
    const hbn_vector *weight, const hbn_vector *mean, const hbn_vector *invstd,
    const hbn_vector *running_mean, const hbn_vector *running_var, int training, double eps,
    const hbn_tensor *grad_grad_output, const hbn_tensor *grad_input,
    const hbn_vector *grad_weight) {
    HBN_TRY(check_tensors(
        {{"grad_grad_input", grad_grad_input}, {"grad_output", grad_output}, {"x", x}}));
    const int64_t channels = x->sizes[1];
    HBN_TRY(check_statistics(*x, training, eps, mean, invstd, running_mean, running_var));
    HBN_TRY(check_vectors({{"weight", weight},
                           {"grad_grad_weight", grad_grad_weight},
                           {"grad_grad_bias", grad_grad_bias},
                           {"grad_weight", grad_weight}},
                          channels, x->dtype, VectorDType::parameter));
    for (const NamedTensor &output :
         {NamedTensor{"grad_grad_output", grad_grad_output}, {"grad_input", grad_input}}) {
        if (output.tensor) {
            HBN_TRY(check_tensors({{"x", x}, output}));
        }
    }
    const bool only_grad_grad_output = !grad_input && !grad_weight;
    HBN_TRY(check_overlap(
        {Footprint({"grad_grad_input", grad_grad_input}),
         Footprint({"grad_grad_weight", grad_grad_weight}),
         Footprint({"grad_grad_bias", grad_grad_bias}), Footprint({"grad_output", grad_output}),
         Footprint({"x", x}), Footprint({"weight", weight}), Footprint({"mean", mean}),
         Footprint({"invstd", invstd}), Footprint({"running_mean", running_mean}),
         Footprint({"running_var", running_var})},
        {Footprint({"grad_grad_output", grad_grad_output}), Footprint({"grad_input", grad_input}),
         Footprint({"grad_weight", grad_weight})},
        only_grad_grad_output ? "grad_grad_output" : nullptr, "grad_grad_input"));
    if (is_empty(*x)) {
        fill_zero(grad_weight);
        return HBN_OK;
    }
    if (!grad_grad_output && only_grad_grad_output) {
        return HBN_OK;
    }
    if (grad_grad_output) {
        HBN_TRY(require(Operation::jvp_elemt, *x));
    }
    if (!only_grad_grad_output) {
        HBN_TRY(require(Operation::double_backward_product, statistic_dtype(x->dtype)));
    }
    if (grad_input) {
        HBN_TRY(require(Operation::double_backward_elemt, *x));
    }
    HBN_TRY(require_kernels(*x, training, training || !only_grad_grad_output));
    HBN_TRY(require_conversions(
        {weight, grad_grad_weight, grad_grad_bias, running_mean, running_var, grad_weight},
        statistic_dtype(x->dtype)));
    const auto or_x = [&](const hbn_tensor *t) { return t ? *t : *x; };
    const int64_t per_block = channels_per_block(
        {*grad_grad_input, *grad_output, *x, or_x(grad_grad_output), or_x(grad_input)},
        {weight, grad_grad_weight, grad_grad_bias, mean, invstd, running_mean, running_var,
         grad_weight});
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const auto part = [&](const hbn_vector *v) { return slice(v, begin, size); };
        const auto tensor_part = [&](const hbn_tensor *t) {
            return t ? slice(*t, 1, begin, size) : hbn_tensor{};
        };
        const DoubleBackward block{
            tensor_part(grad_grad_input), tensor_part(grad_output), tensor_part(x),
            part(grad_grad_weight),       part(grad_grad_bias),     tensor_part(grad_grad_output),
            tensor_part(grad_input),      part(grad_weight)};
        Context k;
        HBN_TRY(k.load(block.x, training, eps, part(weight), part(mean), part(invstd),
                       part(running_mean), part(running_var)));
        return block.run(k);
    });
}
