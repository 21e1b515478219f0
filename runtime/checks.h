// Every precondition of the C interface, and every error text, in one place.
//
// A check returns HBN_OK or leaves its text for hbn_last_error(). None throws or allocates.
#ifndef HBN_RUNTIME_CHECKS_H
#define HBN_RUNTIME_CHECKS_H

#include <hbn/hbn.h>

#include <cassert>
#include <initializer_list>
#include <new>

// Hands a failure to the caller; everything in runtime/ that can fail returns hbn_status.
#define HBN_TRY(expression)                             \
    do {                                                \
        const hbn_status hbn_try_status = (expression); \
        if (hbn_try_status != HBN_OK)                   \
            return hbn_try_status;                      \
    } while (0)

namespace hbn::internal {

// PyTorch's wording where it has one.
namespace text {
constexpr char required[] = "%s is required";
constexpr char rank[] = "expected 4D input (got %dD input)";
constexpr char float_dtype[] = "%s must be float32, float64, bfloat16 or float16, got %s";
constexpr char mask_dtype[] = "%s must be uint8, got %s";
constexpr char unknown_device[] = "%s has an unknown device (%d)";
constexpr char negative_size[] = "%s has a negative size: [%lld, %lld, %lld, %lld]";
constexpr char negative_strides[] = "negative strides are not supported (%s)";
constexpr char size_overflow[] = "%s is too large: its size overflows 64 bits";
constexpr char no_data[] = "%s has no data";
constexpr char devices_differ[] =
    "Expected all tensors to be on the same device, but found at least two devices, %s and %s!";
constexpr char device_unsupported[] = "hbn was built without support for device '%s'";
constexpr char device_memory[] = "tensors in the memory of device '%s' are not supported yet";
constexpr char shapes_differ[] =
    "%s should have the shape of %s, [%lld, %lld, %lld, %lld], not [%lld, %lld, %lld, %lld]";
constexpr char dtypes_differ[] = "%s should have the dtype of %s, %s, not %s";
constexpr char one_value[] =
    "Expected more than 1 value per channel when training, got input size [%lld, %lld, %lld, %lld]";
constexpr char one_count[] =
    "Expected more than 1 value per channel when training, got a count of %g";
constexpr char vector_size[] = "%s should contain %lld elements not %lld";
constexpr char vector_dtype[] = "mixed dtype: expected %s to be %s, got %s";
constexpr char vector_dtype_or[] = "mixed dtype: expected %s to be %s or %s, got %s";
constexpr char both_or_neither[] = "%s and %s must either both be None or neither be None";
constexpr char needed_in_training[] = "%s must be defined in training mode";
constexpr char needed_in_evaluation[] = "%s must be defined in evaluation mode";
constexpr char eps_positive[] = "batch_norm eps must be positive during training, but got %s";
constexpr char eps_non_negative[] = "batch_norm eps must be non-negative, but got %s";
constexpr char momentum_nan[] = "batch_norm momentum must not be nan";
constexpr char count_positive[] = "count must be positive and finite, got %g";
constexpr char count_non_negative[] = "count must be non-negative and finite, got %g";
constexpr char channels_differ[] = "moments should have %lld channels not %lld";
constexpr char self_overlap[] =
    "unsupported operation: more than one element of the written-to tensor (%s) refers to a single "
    "memory location";
constexpr char overlap[] =
    "unsupported operation: some elements of the input tensor (%s) and the written-to tensor (%s) "
    "refer to a single memory location";
constexpr char outputs_overlap[] =
    "unsupported operation: some elements of the written-to tensors %s and %s refer to a single "
    "memory location";
constexpr char no_kernel[] = "this library was built without %s for %s";
constexpr char unknown_kernel_argument[] =
    "%s takes '%s', which runtime/operations.def does not name as what it is";
constexpr char kernel_arguments_differ[] =
    "%s takes other arguments than the same kernel for another layout";
constexpr char too_many_kernel_arguments[] = "%s takes more arguments than a call has room for";
constexpr char missing_kernel_argument[] = "%s takes '%s', which %s does not give it";
constexpr char unknown_activation[] = "unknown activation (%d)";
constexpr char unknown_activation_name[] = "unknown activation '%s'";
constexpr char slope_finite[] = "leaky_relu's slope must be finite";
constexpr char clip_order[] = "clip's low must not be above its high";
constexpr char mask_without_relu[] = "mask is only for a ReLU after an addition";
constexpr char kernel_failed[] = "%s failed with code %d%s%s";
constexpr char out_of_memory[] = "out of memory: no room for the workspace of %lld channels";
constexpr char negative_dimension[] = "Trying to create tensor with negative dimension %lld: [%s]";
constexpr char no_forward[] = "backward() needs a forward() before it";
constexpr char num_threads[] = "number of threads must not be negative, got %d";
constexpr char unknown_instruction_set[] =
    "%sunknown instruction set '%s': this library has kernels for %s";
constexpr char unsupported_instruction_set[] = "%sthis processor does not have '%s'";
constexpr char num_threads_variable[] =
    "environment variable HBN_NUM_THREADS: expected a number of threads, got '%s'";
constexpr char no_ordinal_or_stream[] = "hbn does not support device ordinals and streams yet";
constexpr char no_memory_for_context[] = "out of memory: no room for a context";
constexpr char executor_threw[] = "parallel_for threw an exception: %s";
constexpr char executor_tasks[] =
    "parallel_for ran %llu tasks, or some twice, instead of each of %d";
}  // namespace text

// Keeps the formatted text for hbn_last_error() and returns status.
hbn_status fail(hbn_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Python's spelling of a float, as PyTorch's texts have it. Returns buffer.
const char *spell(double value, char (&buffer)[32]);

const char *dtype_name(hbn_dtype dtype);
const char *device_name(hbn_device device);
inline int element_size(hbn_dtype dtype) {
    switch (dtype) {
    case HBN_FLOAT32:
        return 4;
    case HBN_FLOAT64:
    case HBN_INT64:
        return 8;
    case HBN_BFLOAT16:
    case HBN_FLOAT16:
        return 2;
    case HBN_UINT8:
        return 1;
    }
    return 1;
}

// float64 beside float64 tensors, float32 beside all others.
inline hbn_dtype statistic_dtype(hbn_dtype tensor) {
    return tensor == HBN_FLOAT64 ? HBN_FLOAT64 : HBN_FLOAT32;
}

inline bool is_empty(const hbn_tensor &t) {
    return t.sizes[0] == 0 || t.sizes[1] == 0 || t.sizes[2] == 0 || t.sizes[3] == 0;
}

// Values of a channel.
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

// A float tensor of rank 4 with sane sizes and strides, on any known device.
hbn_status check_tensor(const NamedTensor &t);

// The first as above, the rest of the same shape, dtype and device; all where this library can
// work.
hbn_status check_tensors(std::initializer_list<NamedTensor> tensors);

// A uint8 tensor of x's shape and device; x has passed.
hbn_status check_mask(const NamedTensor &mask, const hbn_tensor &x);

// One value a channel in memory of the caller's, dense; null where there is no channel, at most.
hbn_status check_array(const char *name, const double *values, int64_t channels);

// More than one value per channel, unless empty.
hbn_status check_batch_size(const hbn_tensor &x);

enum class VectorDType {
    parameter,  // float32 (float64 beside float64 tensors), or the tensor's own
    statistic,  // float32 (float64 beside float64 tensors)
    float64,
};

// Sizes of all vectors, then what else they must satisfy; absent ones pass.
hbn_status check_vectors(std::initializer_list<NamedVector> vectors, int64_t channels,
                         hbn_dtype tensor_dtype, VectorDType kind);

// Vectors that a mode can't do without.
hbn_status check_defined(const NamedVector &v, bool training);
hbn_status check_both_or_neither(const NamedVector &a, const NamedVector &b);
hbn_status check_eps(double eps, bool batch_statistics);
hbn_status check_momentum(double momentum);
// What a derivative is given: the statistics that forward saved, in training, or running ones and eps.
hbn_status check_given_statistics(bool training, const hbn_vector *mean, const hbn_vector *invstd,
                                  const hbn_vector *running_mean, const hbn_vector *running_var,
                                  double eps);
// Of values behind given moments or sums.
hbn_status check_count(double count);

// `may_be_zero`: for moments of an empty sample.
hbn_status check_moments(const hbn_moments *moments, const char *name, bool may_be_zero);

// The bytes an argument occupies, for the overlap checks.
struct Footprint {
    const char *name;
    const char *data;  // null: absent or empty, overlaps nothing
    uintptr_t begin, end;
    int element_bytes;
    int dimensions;
    int64_t sizes[4];
    int64_t strides[4];  // in elements

    Footprint() {  // of nothing yet, and nothing is initialized
    }
    explicit Footprint(const NamedTensor &t);
    explicit Footprint(const NamedVector &v);
    Footprint(const char *name, const double *data, int64_t size);

private:
    void find_end();
};

// A few of them.
class Footprints {
public:
    // What occupies nothing is left out.
    template<typename... What>
    void add(What... what) {
        assert(size_ < kMost);
        new (&all_[size_]) Footprint(what...);
        size_ += all_[size_].data != nullptr;
    }
    const Footprint *begin() const {
        return all_;
    }
    const Footprint *end() const {
        return all_ + size_;
    }

private:
    static constexpr int kMost = 20;
    int size_ = 0;
    Footprint all_[kMost];
};

// Refuses outputs that overlap themselves, each other or an input. The only exception: the output
// `in_place` may be the very same view as the input `in_place_of` (names, or null).
//
// Exact wherever the strides of the two nest (slices of one buffer, such as two halves of the
// channels); views that can't be proven disjoint with little work are refused.
hbn_status check_overlap(const Footprints &inputs, const Footprints &outputs,
                         const char *in_place = nullptr, const char *in_place_of = nullptr);

}  // namespace hbn::internal

#endif
