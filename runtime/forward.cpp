// hbn_batch_norm_forward and hbn_batch_norm_normalize.
#include "dispatch.h"
#include "moments.h"
#include "vectors.h"
#include "workspace.h"

using namespace hbn::internal;

namespace {

// One block of channels of a forward pass. Absent vectors have no data.
struct Forward {
    hbn_tensor x, y;
    hbn_vector weight, bias, running_mean, running_var, mean, invstd;
    double momentum, eps;

    hbn_dtype dtype() const {
        return statistic_dtype(x.dtype);
    }

    double count() const {
        return double(x.sizes[0]) * double(x.sizes[2]) * double(x.sizes[3]);
    }

    hbn_status with_batch_statistics() const {
        const Pieces pieces({x, y});
        hbn_vector w, b;
        HBN_TRY(as_input(weight, dtype(), 1, &w));
        HBN_TRY(as_input(bias, dtype(), 0, &b));
        const hbn_vector batch_mean = Workspace::take(HBN_FLOAT64);
        const hbn_vector batch_m2 = Workspace::take(HBN_FLOAT64);
        if (pieces.one()) {
            HBN_TRY(call(Operation::forward_training,
                         {in(x), in(w), in(b), in(eps), out(y), out(batch_mean), out(batch_m2)}));
        } else {
            HBN_TRY(reduce_moments(x, pieces, batch_mean, batch_m2));
            HBN_TRY(pieces.for_each([&](auto cut) {
                return call(Operation::normalize, {in(cut(x)), in(batch_mean), in(batch_m2), in(w),
                                                   in(b), in(count()), in(eps), out(cut(y))});
            }));
        }
        if (!running_mean.data && !mean.data && !invstd.data) {
            return HBN_OK;
        }
        return finalize(batch_mean, batch_m2, count(), momentum, eps, dtype(), running_mean,
                        running_var, mean, invstd);
    }

    hbn_status with_running_statistics() const {
        hbn_vector w, b, m, v;
        HBN_TRY(as_input(weight, dtype(), 1, &w));
        HBN_TRY(as_input(bias, dtype(), 0, &b));
        HBN_TRY(as_input(running_mean, dtype(), 0, &m));
        HBN_TRY(as_input(running_var, dtype(), 1, &v));
        return Pieces({x, y}).for_each([&](auto cut) {
            return call(Operation::forward_inference,
                        {in(cut(x)), in(w), in(b), in(m), in(v), in(eps), out(cut(y))});
        });
    }
};

hbn_status require_forward_kernels(const hbn_tensor &x, const hbn_tensor &y, bool batch_statistics,
                                   bool whole) {
    if (!batch_statistics) {
        return require(Operation::forward_inference, {x, y});
    }
    if (whole) {
        HBN_TRY(require(Operation::forward_training, {x, y}));
    } else {
        HBN_TRY(require_moments(x));
        HBN_TRY(require(Operation::normalize, {x, y}));
    }
    return require(Operation::finalize_moments, statistic_dtype(x.dtype));
}

}  // namespace

extern "C" hbn_status hbn_batch_norm_forward(const hbn_tensor *x, const hbn_vector *weight,
                                             const hbn_vector *bias, const hbn_vector *running_mean,
                                             const hbn_vector *running_var, int training,
                                             double momentum, double eps, const hbn_tensor *y,
                                             const hbn_vector *mean, const hbn_vector *invstd) {
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
    HBN_TRY(check_vectors({{"mean", mean}, {"invstd", invstd}}, channels, x->dtype,
                          VectorDType::statistic));
    HBN_TRY(check_tensors({{"x", x}, {"y", y}}));
    // Running buffers that are only read are inputs; vectors that are not written don't matter.
    const auto only_if = [](bool condition, const hbn_vector *v) {
        return condition ? v : nullptr;
    };
    HBN_TRY(check_overlap(
        {Footprint({"x", x}), Footprint({"weight", weight}), Footprint({"bias", bias}),
         Footprint({"running_mean", only_if(!update, running_mean)}),
         Footprint({"running_var", only_if(!update, running_var)})},
        {Footprint({"y", y}), Footprint({"mean", only_if(batch_statistics, mean)}),
         Footprint({"invstd", only_if(batch_statistics, invstd)}),
         Footprint({"running_mean", only_if(update, running_mean)}),
         Footprint({"running_var", only_if(update, running_var)})},
        "y", "x"));
    if (is_empty(*x)) {
        if (batch_statistics) {
            fill_zero(mean);
            fill_zero(invstd);
        }
        return HBN_OK;
    }
    const int64_t per_block =
        channels_per_block({*x, *y}, {running_mean, running_var, weight, bias, mean, invstd});
    const bool whole = Pieces({slice(*x, 1, 0, per_block), slice(*y, 1, 0, per_block)}).one();
    HBN_TRY(require_forward_kernels(*x, *y, batch_statistics, whole));
    HBN_TRY(
        require_conversions({running_mean, running_var, weight, bias}, statistic_dtype(x->dtype)));
    HBN_TRY(Workspace::begin(kWorkspaceVectors, per_block));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const auto part = [&](const hbn_vector *v) { return slice(v, begin, size); };
        const Forward block{slice(*x, 1, begin, size),
                            slice(*y, 1, begin, size),
                            part(weight),
                            part(bias),
                            part(batch_statistics ? only_if(update, running_mean) : running_mean),
                            part(batch_statistics ? only_if(update, running_var) : running_var),
                            part(mean),
                            part(invstd),
                            momentum,
                            eps};
        return batch_statistics ? block.with_batch_statistics() : block.with_running_statistics();
    });
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
    HBN_TRY(require(Operation::normalize, {*x, *y}));
    HBN_TRY(require_conversions({weight, bias}, dtype));
    const int64_t per_block = channels_per_block({*x, *y}, {weight, bias});
    HBN_TRY(Workspace::begin(kWorkspaceVectors, per_block));
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
