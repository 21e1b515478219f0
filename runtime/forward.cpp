// hbn_batch_norm_forward, with what may be fused into it, and hbn_batch_norm_normalize.
#include "context.h"
#include "dispatch.h"
#include "moments.h"
#include "vectors.h"
#include "workspace.h"

using namespace hbn::internal;

namespace {

// One block of channels of a forward pass. Absent vectors and tensors have no data.
struct Forward {
    Activation activation;
    hbn_tensor x, residual, y, mask;
    hbn_vector weight, bias, running_mean, running_var, mean, invstd;
    double momentum, eps;

    hbn_dtype dtype() const {
        return statistic_dtype(x.dtype);
    }

    Pieces pieces() const {
        return Pieces({x, y, residual.data ? residual : x, mask.data ? mask : x});
    }

    hbn_status with_batch_statistics() const {
        const Pieces cuts = pieces();
        hbn_vector w, b;
        HBN_TRY(as_input(weight, dtype(), 1, &w));
        HBN_TRY(as_input(bias, dtype(), 0, &b));
        const hbn_vector batch_mean = Workspace::take(HBN_FLOAT64);
        const hbn_vector batch_m2 = Workspace::take(HBN_FLOAT64);
        if (cuts.one()) {
            HBN_TRY(call(training_operation(activation),
                         {in(x), in(w), in(b), in(eps), in(residual), out(y), out(mask),
                          out(batch_mean), out(batch_m2)}));
        } else {
            HBN_TRY(reduce_moments(x, cuts, batch_mean, batch_m2));
            HBN_TRY(cuts.for_each([&](auto cut) {
                return call(Operation::normalize, {in(cut(x)), in(batch_mean), in(batch_m2), in(w),
                                                   in(b), in(count_of(x)), in(eps), out(cut(y))});
            }));
        }
        if (running_mean.data || (dtype() == saved_dtype() && (mean.data || invstd.data))) {
            const bool save = dtype() == saved_dtype();
            HBN_TRY(finalize(batch_mean, batch_m2, count_of(x), momentum, eps, dtype(),
                             running_mean, running_var, save ? mean : absent(),
                             save ? invstd : absent()));
        }
        if (dtype() != saved_dtype() && (mean.data || invstd.data)) {
            HBN_TRY(finalize(batch_mean, batch_m2, count_of(x), momentum, eps, saved_dtype(),
                             absent(), absent(), mean, invstd));
        }
        return HBN_OK;
    }

    hbn_status with_running_statistics() const {
        hbn_vector w, b, m, v;
        HBN_TRY(as_input(weight, dtype(), 1, &w));
        HBN_TRY(as_input(bias, dtype(), 0, &b));
        HBN_TRY(as_input(running_mean, dtype(), 0, &m));
        HBN_TRY(as_input(running_var, dtype(), 1, &v));
        return pieces().for_each([&](auto cut) {
            const auto cut_or_absent = [&](const hbn_tensor &t) { return t.data ? cut(t) : t; };
            return call(inference_operation(activation, mask.data),
                        {in(cut(x)), in(w), in(b), in(m), in(v), in(eps),
                         in(cut_or_absent(residual)), out(cut(y)), out(cut_or_absent(mask))});
        });
    }

    hbn_status require_kernels(bool batch_statistics) const {
        if (!batch_statistics) {
            return require(inference_operation(activation, mask.data), x);
        }
        if (pieces().one()) {
            HBN_TRY(require(training_operation(activation), x));
        } else if (activation != Activation::none) {
            return fail(HBN_UNSUPPORTED, text::fused_too_large, "a fused forward pass");
        } else {
            HBN_TRY(require_moments(x));
            HBN_TRY(require(Operation::normalize, x));
        }
        HBN_TRY(require(Operation::finalize_moments, saved_dtype()));
        return require(Operation::finalize_moments, dtype());
    }

private:
    // Of mean and invstd.
    hbn_dtype saved_dtype() const {
        return activation == Activation::none ? dtype() : HBN_FLOAT64;
    }

    hbn_vector absent() const {
        return {nullptr, dtype(), x.sizes[1], 1};
    }

    static Operation training_operation(Activation activation) {
        switch (activation) {
        case Activation::relu:
            return Operation::forward_training_relu;
        case Activation::add_relu:
            return Operation::forward_training_add_relu;
        default:
            return Operation::forward_training;
        }
    }

    static Operation inference_operation(Activation activation, bool with_mask) {
        switch (activation) {
        case Activation::relu:
            return Operation::forward_inference_relu;
        case Activation::add_relu:
            return with_mask ? Operation::forward_inference_add_relu_mask
                             : Operation::forward_inference_add_relu;
        default:
            return Operation::forward_inference;
        }
    }
};

// `residual` with add_relu only; `mask`, too, where it is wanted.
hbn_status forward(Activation activation, const hbn_tensor *x, const hbn_tensor *residual,
                   const hbn_vector *weight, const hbn_vector *bias, const hbn_vector *running_mean,
                   const hbn_vector *running_var, int training, double momentum, double eps,
                   const hbn_tensor *y, const hbn_tensor *mask, const hbn_vector *mean,
                   const hbn_vector *invstd) {
    HBN_TRY(check_tensor({"x", x}));
    const NamedVector parameters[] = {{"running_mean", running_mean},
                                      {"running_var", running_var},
                                      {"weight", weight},
                                      {"bias", bias}};
    HBN_TRY(check_both_or_neither(parameters[0], parameters[1]));
    const bool batch_statistics = training || !running_mean;
    const bool update = training && running_mean && momentum != 0;
    const int64_t channels = x->sizes[1];
    if (batch_statistics) {
        HBN_TRY(check_batch_size(*x));
    }
    HBN_TRY(check_eps(eps, batch_statistics));
    HBN_TRY(check_momentum(momentum));
    HBN_TRY(check_vectors({parameters[0], parameters[1], parameters[2], parameters[3]}, channels,
                          x->dtype, VectorDType::parameter));
    HBN_TRY(check_vectors(
        {{"mean", mean}, {"invstd", invstd}}, channels, x->dtype,
        activation == Activation::none ? VectorDType::statistic : VectorDType::float64));
    HBN_TRY(check_tensors({{"x", x}, {"y", y}}));
    if (activation == Activation::add_relu) {
        HBN_TRY(check_tensors({{"x", x}, {"residual", residual}}));
        if (batch_statistics || mask) {
            HBN_TRY(check_mask({"mask", mask}, *x));
        }
    }
    // Running buffers that are only read are inputs; vectors that are not written don't matter.
    const auto only_if = [](bool condition, const hbn_vector *v) {
        return condition ? v : nullptr;
    };
    // Where a mask is written, too, x is still needed after y.
    HBN_TRY(check_overlap(
        {Footprint({"x", x}), Footprint({"residual", residual}), Footprint({"weight", weight}),
         Footprint({"bias", bias}), Footprint({"running_mean", only_if(!update, running_mean)}),
         Footprint({"running_var", only_if(!update, running_var)})},
        {Footprint({"y", y}), Footprint({"mask", mask}),
         Footprint({"mean", only_if(batch_statistics, mean)}),
         Footprint({"invstd", only_if(batch_statistics, invstd)}),
         Footprint({"running_mean", only_if(update, running_mean)}),
         Footprint({"running_var", only_if(update, running_var)})},
        "y", mask ? nullptr : "x"));
    if (is_empty(*x)) {
        if (batch_statistics) {
            fill_zero(mean);
            fill_zero(invstd);
        }
        return HBN_OK;
    }
    const int64_t per_block =
        channels_per_block({*x, *y, residual ? *residual : *x, mask ? *mask : *x},
                           {running_mean, running_var, weight, bias, mean, invstd});
    const auto block_of = [&](int64_t begin, int64_t size) {
        const auto part = [&](const hbn_vector *v) { return slice(v, begin, size); };
        const auto tensor_part = [&](const hbn_tensor *t) {
            return t ? slice(*t, 1, begin, size) : hbn_tensor{};
        };
        return Forward{activation,
                       tensor_part(x),
                       tensor_part(residual),
                       tensor_part(y),
                       tensor_part(mask),
                       part(weight),
                       part(bias),
                       part(batch_statistics ? only_if(update, running_mean) : running_mean),
                       part(batch_statistics ? only_if(update, running_var) : running_var),
                       part(mean),
                       part(invstd),
                       momentum,
                       eps};
    };
    HBN_TRY(block_of(0, per_block).require_kernels(batch_statistics));
    HBN_TRY(
        require_conversions({running_mean, running_var, weight, bias}, statistic_dtype(x->dtype)));
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const Forward block = block_of(begin, size);
        return batch_statistics ? block.with_batch_statistics() : block.with_running_statistics();
    });
}

}  // namespace

extern "C" hbn_status hbn_batch_norm_forward(const hbn_tensor *x, const hbn_vector *weight,
                                             const hbn_vector *bias, const hbn_vector *running_mean,
                                             const hbn_vector *running_var, int training,
                                             double momentum, double eps, const hbn_tensor *y,
                                             const hbn_vector *mean, const hbn_vector *invstd) {
    return forward(Activation::none, x, nullptr, weight, bias, running_mean, running_var, training,
                   momentum, eps, y, nullptr, mean, invstd);
}

extern "C" hbn_status hbn_batch_norm_relu_forward(
    const hbn_tensor *x, const hbn_vector *weight, const hbn_vector *bias,
    const hbn_vector *running_mean, const hbn_vector *running_var, int training, double momentum,
    double eps, const hbn_tensor *y, const hbn_vector *mean, const hbn_vector *invstd) {
    return forward(Activation::relu, x, nullptr, weight, bias, running_mean, running_var, training,
                   momentum, eps, y, nullptr, mean, invstd);
}

extern "C" hbn_status hbn_batch_norm_add_relu_forward(
    const hbn_tensor *x, const hbn_tensor *residual, const hbn_vector *weight,
    const hbn_vector *bias, const hbn_vector *running_mean, const hbn_vector *running_var,
    int training, double momentum, double eps, const hbn_tensor *y, const hbn_tensor *mask,
    const hbn_vector *mean, const hbn_vector *invstd) {
    return forward(Activation::add_relu, x, residual, weight, bias, running_mean, running_var,
                   training, momentum, eps, y, mask, mean, invstd);
}

extern "C" hbn_status hbn_batch_norm_normalize(const hbn_tensor *x, const hbn_moments *moments,
                                               const hbn_vector *weight, const hbn_vector *bias,
                                               double eps, const hbn_tensor *y) {
    HBN_TRY(check_tensor({"x", x}));
    const int64_t channels = x->sizes[1];
    HBN_TRY(check_moments(moments, "moments", is_empty(*x)));
    if (moments->channels != channels) {
        return fail(HBN_INVALID_ARGUMENT, text::channels_differ, (long long)channels,
                    (long long)moments->channels);
    }
    HBN_TRY(check_eps(eps, true));
    HBN_TRY(check_vectors({{"weight", weight}, {"bias", bias}}, channels, x->dtype,
                          VectorDType::parameter));
    HBN_TRY(check_tensors({{"x", x}, {"y", y}}));
    HBN_TRY(check_overlap({Footprint({"x", x}), Footprint("mean", moments->mean, channels),
                           Footprint("m2", moments->m2, channels), Footprint({"weight", weight}),
                           Footprint({"bias", bias})},
                          {Footprint({"y", y})}, "y", "x"));
    if (is_empty(*x)) {
        return HBN_OK;
    }
    const hbn_dtype dtype = statistic_dtype(x->dtype);
    HBN_TRY(require(Operation::normalize, *x));
    HBN_TRY(require_conversions({weight, bias}, dtype));
    const int64_t per_block = channels_per_block({*x, *y}, {weight, bias});
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const hbn_tensor x_block = slice(*x, 1, begin, size), y_block = slice(*y, 1, begin, size);
        hbn_vector w, b;
        HBN_TRY(as_input(slice(weight, begin, size), dtype, 1, &w));
        HBN_TRY(as_input(slice(bias, begin, size), dtype, 0, &b));
        return Pieces({x_block, y_block}).for_each([&](auto cut) {
            return call(Operation::normalize,
                        {in(cut(x_block)), in(slice(moments->mean, begin, size)),
                         in(slice(moments->m2, begin, size)), in(w), in(b), in(moments->count),
                         in(eps), out(cut(y_block))});
        });
    });
}
