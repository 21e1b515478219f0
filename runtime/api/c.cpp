// The operations of hbn.h. What each takes, in which order and under which names, is runtime/operations.def's.
#include "runtime/checks.h"
#include "runtime/context.h"
#include "runtime/engine/problem.h"

#include <cstring>

using namespace hbn::internal;

extern "C" {

hbn_status hbn_batch_norm_forward(const hbn_tensor *x, const hbn_vector *weight,
                                  const hbn_vector *bias, const hbn_vector *running_mean,
                                  const hbn_vector *running_var, int training, double momentum,
                                  double eps, const hbn_tensor *y, const hbn_vector *mean,
                                  const hbn_vector *invstd) {
    HBN_RUN(forward, x, weight, bias, running_mean, running_var, training, momentum, eps, y, mean,
            invstd);
}

hbn_status hbn_batch_norm_activation_forward(
    const hbn_tensor *x, const hbn_tensor *residual, const hbn_vector *weight,
    const hbn_vector *bias, const hbn_vector *running_mean, const hbn_vector *running_var,
    int training, double momentum, double eps, const hbn_activation *activation,
    const hbn_tensor *y, const hbn_tensor *mask, const hbn_vector *mean, const hbn_vector *invstd) {
    HBN_RUN(activation_forward, x, residual, weight, bias, running_mean, running_var, training,
            momentum, eps, activation, y, mask, mean, invstd);
}

hbn_status hbn_batch_norm_backward(const hbn_tensor *grad_output, const hbn_tensor *x,
                                   const hbn_vector *weight, const hbn_vector *mean,
                                   const hbn_vector *invstd, const hbn_vector *running_mean,
                                   const hbn_vector *running_var, int training, double eps,
                                   const hbn_tensor *grad_input, const hbn_vector *grad_weight,
                                   const hbn_vector *grad_bias) {
    HBN_RUN(backward, grad_output, x, weight, mean, invstd, running_mean, running_var, training,
            eps, grad_input, grad_weight, grad_bias);
}

hbn_status hbn_batch_norm_activation_backward(
    const hbn_tensor *grad_output, const hbn_tensor *x, const hbn_tensor *residual,
    const hbn_tensor *mask, const hbn_vector *weight, const hbn_vector *bias,
    const hbn_vector *mean, const hbn_vector *invstd, const hbn_vector *running_mean,
    const hbn_vector *running_var, int training, double eps, const hbn_activation *activation,
    const hbn_tensor *grad_input, const hbn_tensor *grad_residual, const hbn_vector *grad_weight,
    const hbn_vector *grad_bias) {
    HBN_RUN(activation_backward, grad_output, x, residual, mask, weight, bias, mean, invstd,
            running_mean, running_var, training, eps, activation, grad_input, grad_residual,
            grad_weight, grad_bias);
}

hbn_status hbn_batch_norm_jvp(const hbn_tensor *x_tangent, const hbn_tensor *x,
                              const hbn_vector *weight, const hbn_vector *weight_tangent,
                              const hbn_vector *bias_tangent, const hbn_vector *mean,
                              const hbn_vector *invstd, const hbn_vector *running_mean,
                              const hbn_vector *running_var, int training, double eps,
                              const hbn_tensor *y_tangent) {
    HBN_RUN(jvp, x_tangent, x, weight, weight_tangent, bias_tangent, mean, invstd, running_mean,
            running_var, training, eps, y_tangent);
}

hbn_status hbn_batch_norm_double_backward(
    const hbn_tensor *grad_grad_input, const hbn_vector *grad_grad_weight,
    const hbn_vector *grad_grad_bias, const hbn_tensor *grad_output, const hbn_tensor *x,
    const hbn_vector *weight, const hbn_vector *mean, const hbn_vector *invstd,
    const hbn_vector *running_mean, const hbn_vector *running_var, int training, double eps,
    const hbn_tensor *grad_grad_output, const hbn_tensor *grad_input,
    const hbn_vector *grad_weight) {
    HBN_RUN(double_backward, grad_grad_input, grad_grad_weight, grad_grad_bias, grad_output, x,
            weight, mean, invstd, running_mean, running_var, training, eps, grad_grad_output,
            grad_input, grad_weight);
}

hbn_status hbn_batch_norm_backward_reduce(const hbn_tensor *grad_output, const hbn_tensor *x,
                                          const hbn_vector *mean, const hbn_vector *invstd,
                                          double *sum_dy, double *sum_dy_xmu,
                                          const hbn_vector *grad_weight,
                                          const hbn_vector *grad_bias) {
    HBN_RUN(backward_reduce, grad_output, x, mean, invstd, sum_dy, sum_dy_xmu, grad_weight,
            grad_bias);
}

hbn_status hbn_batch_norm_backward_elemt(const hbn_tensor *grad_output, const hbn_tensor *x,
                                         const hbn_vector *mean, const hbn_vector *invstd,
                                         const hbn_vector *weight, const double *sum_dy,
                                         const double *sum_dy_xmu, double total_count,
                                         const hbn_tensor *grad_input) {
    HBN_RUN(backward_elemt, grad_output, x, mean, invstd, weight, sum_dy, sum_dy_xmu, total_count,
            grad_input);
}

}  // extern "C"

extern "C" hbn_status hbn_activation_named(const char *name, hbn_activation_kind *kind) {
#define HBN_ACTIVATION(activation, c_name, ...)        \
    if (name && std::strcmp(name, #activation) == 0) { \
        *kind = c_name;                                \
        return HBN_OK;                                 \
    }
#include "runtime/operations.def"
    return fail(HBN_INVALID_ARGUMENT, text::unknown_activation_name, name ? name : "");
}

// ---- operations on moments, which come in a struct

namespace {

// Sound, and of x's channels; x has not been checked yet.
hbn_status check_moments_of(const hbn_moments *moments, const hbn_tensor *x, bool may_be_zero) {
    HBN_TRY(check_tensor({"x", x}));
    HBN_TRY(check_moments(moments, "moments", may_be_zero));
    return moments->channels == x->sizes[1]
               ? HBN_OK
               : fail(HBN_INVALID_ARGUMENT, text::channels_differ, (long long)x->sizes[1],
                      (long long)moments->channels);
}

hbn_status run_stats(const hbn_tensor *x, double *mean, double *m2) {
    HBN_RUN(stats, x, mean, m2);
}

hbn_status run_normalize(const hbn_tensor *x, const double *mean, const double *m2,
                         double total_count, const hbn_vector *weight, const hbn_vector *bias,
                         double eps, const hbn_tensor *y) {
    HBN_RUN(normalize, x, mean, m2, total_count, weight, bias, eps, y);
}

hbn_status run_merge(const double *mean_b, const double *m2_b, double *mean_a, double *m2_a,
                     double channels, double count_a, double count_b) {
    HBN_RUN(merge_moments, mean_b, m2_b, mean_a, m2_a, channels, count_a, count_b);
}

hbn_status run_finalize(const double *mean, const double *m2, double channels, double count,
                        double momentum, double eps, const hbn_vector *running_mean,
                        const hbn_vector *running_var, const hbn_vector *save_mean,
                        const hbn_vector *invstd) {
    HBN_RUN(finalize_moments, mean, m2, channels, count, momentum, eps, running_mean, running_var,
            save_mean, invstd);
}

}  // namespace

extern "C" {

hbn_status hbn_batch_norm_stats(const hbn_tensor *x, hbn_moments *moments) {
    HBN_TRY(check_context());
    HBN_TRY(check_tensor({"x", x}));
    if (!moments) {
        return fail(HBN_INVALID_ARGUMENT, text::required, "moments");
    }
    // Its count is an output: whatever it is now will do.
    const hbn_moments room{0, moments->mean, moments->m2, moments->channels};
    HBN_TRY(check_moments_of(&room, x, true));
    HBN_TRY(run_stats(x, moments->mean, moments->m2));
    moments->count = count_of(*x);
    return HBN_OK;
}

hbn_status hbn_batch_norm_normalize(const hbn_tensor *x, const hbn_moments *moments,
                                    const hbn_vector *weight, const hbn_vector *bias, double eps,
                                    const hbn_tensor *y) {
    HBN_TRY(check_context());
    HBN_TRY(check_tensor({"x", x}));
    HBN_TRY(check_moments_of(moments, x, is_empty(*x)));
    return run_normalize(x, moments->mean, moments->m2, moments->count, weight, bias, eps, y);
}

hbn_status hbn_merge_moments(hbn_moments *into, const hbn_moments *other) {
    HBN_TRY(check_context());
    HBN_TRY(check_moments(into, "into", true));
    HBN_TRY(check_moments(other, "other", true));
    if (other->channels != into->channels) {
        return fail(HBN_INVALID_ARGUMENT, text::channels_differ, (long long)into->channels,
                    (long long)other->channels);
    }
    HBN_TRY(run_merge(other->mean, other->m2, into->mean, into->m2, double(into->channels),
                      into->count, other->count));
    into->count += other->count;
    return HBN_OK;
}

hbn_status hbn_finalize_moments(const hbn_moments *moments, double momentum, double eps,
                                const hbn_vector *running_mean, const hbn_vector *running_var,
                                const hbn_vector *save_mean, const hbn_vector *invstd) {
    HBN_TRY(check_context());
    HBN_TRY(check_moments(moments, "moments", true));
    return run_finalize(moments->mean, moments->m2, double(moments->channels), moments->count,
                        momentum, eps, running_mean, running_var, save_mean, invstd);
}

}  // extern "C"
