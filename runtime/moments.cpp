// Statistics by themselves: taking, merging and finalizing moments.
#include "moments.h"

#include "context.h"
#include "dispatch.h"
#include "vectors.h"
#include "workspace.h"

namespace hbn::internal {

namespace {

hbn_status merge(const hbn_vector &mean, const hbn_vector &m2, double count,
                 const hbn_vector &other_mean, const hbn_vector &other_m2, double other_count) {
    return call(Operation::merge_moments, HBN_FLOAT64,
                {in(mean), in(m2), in(other_mean), in(other_m2), in(count), in(other_count),
                 out(mean), out(m2)});
}

}  // namespace

hbn_status require_moments(const hbn_tensor &x) {
    HBN_TRY(require(Operation::stats, x));
    return require(Operation::merge_moments, HBN_FLOAT64);
}

hbn_status reduce_moments(const hbn_tensor &x, const Pieces &pieces, const hbn_vector &mean,
                          const hbn_vector &m2) {
    const hbn_vector piece_mean = Workspace::take(HBN_FLOAT64);
    const hbn_vector piece_m2 = Workspace::take(HBN_FLOAT64);
    double count = 0;
    return pieces.for_each([&](auto cut) {
        const hbn_tensor piece = cut(x);
        const bool first = count == 0;
        HBN_TRY(call(Operation::stats,
                     {in(piece), out(first ? mean : piece_mean), out(first ? m2 : piece_m2)}));
        if (!first) {
            HBN_TRY(merge(mean, m2, count, piece_mean, piece_m2, count_of(piece)));
        }
        count += count_of(piece);
        return HBN_OK;
    });
}

hbn_status finalize(const hbn_vector &moments_mean, const hbn_vector &moments_m2, double count,
                    double momentum, double eps, hbn_dtype dtype, const hbn_vector &running_mean,
                    const hbn_vector &running_var, const hbn_vector &mean,
                    const hbn_vector &invstd) {
    const hbn_vector absent{nullptr, dtype, mean.size, 1};
    const hbn_vector &old_mean = momentum != 0 ? running_mean : absent;
    const hbn_vector &old_var = momentum != 0 ? running_var : absent;
    hbn_vector old_mean_input, old_var_input;
    HBN_TRY(as_input(old_mean, dtype, 0, &old_mean_input));
    HBN_TRY(as_input(old_var, dtype, 1, &old_var_input));
    const OutputVector new_mean(old_mean, dtype), new_var(old_var, dtype);
    const OutputVector save_mean(mean, dtype), save_invstd(invstd, dtype);
    HBN_TRY(call(Operation::finalize_moments, dtype,
                 {in(moments_mean), in(moments_m2), in(old_mean_input), in(old_var_input),
                  in(count), in(eps), in(old_mean.data ? momentum : 0.0), out(save_mean.written()),
                  out(save_invstd.written()), out(new_mean.written()), out(new_var.written())}));
    HBN_TRY(save_mean.store());
    HBN_TRY(save_invstd.store());
    HBN_TRY(new_mean.store());
    return new_var.store();
}

}  // namespace hbn::internal

using namespace hbn::internal;

extern "C" hbn_status hbn_batch_norm_stats(const hbn_tensor *x, hbn_moments *moments) {
    HBN_TRY(check_tensors({{"x", x}}));
    if (!moments) {
        return fail(HBN_INVALID_ARGUMENT, text::required, "moments");
    }
    const int64_t channels = x->sizes[1];
    // Its count is an output: whatever it is now will do.
    const hbn_moments room{0, moments->mean, moments->m2, moments->channels};
    HBN_TRY(check_moments(&room, "moments", true));
    if (moments->channels != channels) {
        return fail(HBN_INVALID_ARGUMENT, text::channels_differ, (long long)channels,
                    (long long)moments->channels);
    }
    HBN_TRY(check_overlap({Footprint({"x", x})}, {Footprint("mean", moments->mean, channels),
                                                  Footprint("m2", moments->m2, channels)}));
    if (is_empty(*x)) {
        moments->count = 0;
        std::fill_n(moments->mean, channels, 0.0);
        std::fill_n(moments->m2, channels, 0.0);
        return HBN_OK;
    }
    const int64_t per_block = channels_per_block({*x}, {});
    HBN_TRY(require_moments(*x));
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x));
    HBN_TRY(for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        const hbn_tensor block = slice(*x, 1, begin, size);
        return reduce_moments(block, Pieces({block}), slice(moments->mean, begin, size),
                              slice(moments->m2, begin, size));
    }));
    moments->count = count_of(*x);
    return HBN_OK;
}

extern "C" hbn_status hbn_merge_moments(hbn_moments *into, const hbn_moments *other) {
    HBN_TRY(check_moments(into, "into", true));
    HBN_TRY(check_moments(other, "other", true));
    const int64_t channels = into->channels;
    if (other->channels != channels) {
        return fail(HBN_INVALID_ARGUMENT, text::channels_differ, (long long)channels,
                    (long long)other->channels);
    }
    HBN_TRY(check_overlap(
        {Footprint("mean of other", other->mean, channels),
         Footprint("m2 of other", other->m2, channels)},
        {Footprint("mean", into->mean, channels), Footprint("m2", into->m2, channels)}));
    HBN_TRY(require(Operation::merge_moments, HBN_FLOAT64));
    if (other->count == 0) {
        return HBN_OK;
    }
    Call memory;
    HBN_TRY(memory.begin(0, channels_per_block(channels), nullptr));
    if (into->count == 0) {
        into->count = other->count;
        std::copy_n(other->mean, channels, into->mean);
        std::copy_n(other->m2, channels, into->m2);
        return HBN_OK;
    }
    HBN_TRY(
        for_each_block(channels, channels_per_block(channels), [&](int64_t begin, int64_t size) {
            return merge(slice(into->mean, begin, size), slice(into->m2, begin, size), into->count,
                         slice(other->mean, begin, size), slice(other->m2, begin, size),
                         other->count);
        }));
    into->count += other->count;
    return HBN_OK;
}

extern "C" hbn_status hbn_finalize_moments(const hbn_moments *moments, double momentum, double eps,
                                           const hbn_vector *running_mean,
                                           const hbn_vector *running_var, const hbn_vector *mean,
                                           const hbn_vector *invstd) {
    HBN_TRY(check_moments(moments, "moments", true));
    HBN_TRY(check_eps(eps, true));
    HBN_TRY(check_both_or_neither({"running_mean", running_mean}, {"running_var", running_var}));
    HBN_TRY(check_momentum(momentum));
    const int64_t channels = moments->channels;
    hbn_dtype dtype = HBN_FLOAT32;
    for (const hbn_vector *v : {running_mean, running_var, mean, invstd}) {
        dtype = v && v->dtype == HBN_FLOAT64 ? HBN_FLOAT64 : dtype;
    }
    // Running buffers may be of any tensor dtype whose statistics are of this one.
    for (const NamedVector &v :
         {NamedVector{"running_mean", running_mean}, NamedVector{"running_var", running_var}}) {
        const bool narrow = v.vector && dtype == HBN_FLOAT32 &&
                            (v.vector->dtype == HBN_BFLOAT16 || v.vector->dtype == HBN_FLOAT16);
        HBN_TRY(
            check_vectors({v}, channels, narrow ? v.vector->dtype : dtype, VectorDType::parameter));
    }
    HBN_TRY(check_vectors({{"mean", mean}, {"invstd", invstd}}, channels, dtype,
                          VectorDType::statistic));
    const bool update = running_mean && momentum != 0 && moments->count > 0;
    if (update && moments->count == 1) {
        return fail(HBN_INVALID_ARGUMENT, text::one_count, moments->count);
    }
    HBN_TRY(check_overlap({Footprint("mean of moments", moments->mean, channels),
                           Footprint("m2 of moments", moments->m2, channels)},
                          {Footprint({"running_mean", update ? running_mean : nullptr}),
                           Footprint({"running_var", update ? running_var : nullptr}),
                           Footprint({"mean", mean}), Footprint({"invstd", invstd})}));
    HBN_TRY(require(Operation::finalize_moments, dtype));
    HBN_TRY(require_conversions({running_mean, running_var}, dtype));
    if (moments->count == 0) {
        fill_zero(mean);
        fill_zero(invstd);
        return HBN_OK;
    }
    int64_t per_block = channels_per_block(channels);
    for (const hbn_vector *v : {running_mean, running_var, mean, invstd}) {
        per_block =
            v ? std::min(per_block, per_block / std::max<int64_t>(v->stride, 1) + 1) : per_block;
    }
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, nullptr));
    return for_each_block(channels, per_block, [&](int64_t begin, int64_t size) {
        HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
        return finalize(slice(moments->mean, begin, size), slice(moments->m2, begin, size),
                        moments->count, update ? momentum : 0, eps, dtype,
                        slice(running_mean, begin, size), slice(running_var, begin, size),
                        slice(mean, begin, size), slice(invstd, begin, size));
    });
}
