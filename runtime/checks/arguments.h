// Checks of single arguments: there, of the right shape, dtype and device, and in memory that can be
// addressed.
#ifndef HBN_RUNTIME_CHECKS_ARGUMENTS_H
#define HBN_RUNTIME_CHECKS_ARGUMENTS_H

#include <hbn/hbn.h>

namespace hbn::internal {

inline bool is_empty(const hbn_tensor &t) {
    return t.sizes[0] == 0 || t.sizes[1] == 0 || t.sizes[2] == 0 || t.sizes[3] == 0;
}

// The number of values in a channel.
inline double count_of(const hbn_tensor &t) {
    return double(t.sizes[0]) * double(t.sizes[2]) * double(t.sizes[3]);
}

// An argument and what to call it. A null pointer is an absent one.
struct NamedTensor {
    const char *name;
    const hbn_tensor *tensor;
};
struct NamedVector {
    const char *name;
    const hbn_vector *vector;
};

// A dtype that kernels exist for.
hbn_status check_float(const char *name, const hbn_dtype &dtype);

// A float tensor of rank 4 on any known device. Its sizes are not negative, its strides and its last
// element can be counted, and its data is there and aligned.
hbn_status check_tensor(const NamedTensor &t);

// As above, on a device that this library can work on.
hbn_status check_supported_tensor(const NamedTensor &t);

// As above, of the same shape, dtype and device as `model`, which has passed.
hbn_status check_tensor_like(const NamedTensor &t, const NamedTensor &model);

// That this library can work on tensors there.
hbn_status check_device_supported(const hbn_device &device);

// A uint8 tensor of x's shape and device; x has passed.
hbn_status check_mask(const NamedTensor &mask, const hbn_tensor &x);

// Dense memory of one double a channel, which may be null only where there are no channels.
hbn_status check_array(const char *name, const double *values, int64_t channels);

// More than one value per channel, unless empty.
hbn_status check_batch_size(const hbn_tensor &x);

hbn_status check_vector_size(const char *name, const hbn_vector &v, int64_t channels);

enum class VectorDType {
    parameter,  // float32 (float64 beside float64 tensors), or the tensor's own
    float64,
};

// Dtype, device, stride, memory and alignment of a vector whose size has passed. It must be on the CPU. Where the
// tensors are elsewhere it may be there as well, since check_device_supported() has refused them, or will.
hbn_status check_vector(const char *name, const hbn_vector &v, hbn_dtype tensor_dtype,
                        VectorDType kind, const hbn_device &tensor_device);

// That a vector is there which training, or evaluation, can't do without.
hbn_status check_defined(const NamedVector &v, bool training);
hbn_status check_both_or_neither(const NamedVector &a, const NamedVector &b);
hbn_status check_eps(double eps, bool batch_statistics);
hbn_status check_momentum(double momentum);
// What a derivative is given: in training the statistics that forward saved, otherwise running
// statistics and eps.
hbn_status check_given_statistics(bool training, const hbn_vector *mean, const hbn_vector *invstd,
                                  const hbn_vector *running_mean, const hbn_vector *running_var,
                                  double eps);
// The number of values that given moments or sums are of.
hbn_status check_count(double count);

// `may_be_zero`: whether they may be those of an empty sample.
hbn_status check_moments(const hbn_moments *moments, const char *name, bool may_be_zero);

}  // namespace hbn::internal

#endif
