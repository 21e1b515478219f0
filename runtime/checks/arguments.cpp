#include "arguments.h"

#include "dtypes.h"
#include "texts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace hbn::internal {

namespace {

using Long = long long;

bool add_overflows(int64_t a, int64_t b, int64_t *sum) {
    return __builtin_add_overflow(a, b, sum);
}

bool multiply_overflows(int64_t a, int64_t b, int64_t *product) {
    return __builtin_mul_overflow(a, b, product);
}

// Whether the bytes from the first element to the end of the last one can't be counted in 64 bits.
// There is at least one element. Otherwise *span is their number.
bool span_overflows(const int64_t *sizes, const int64_t *strides, int dimensions, int bytes,
                    uint64_t *span) {
    int64_t elements = 1, last = 0, total = 0;
    for (int d = 0; d < dimensions; d++) {
        int64_t reach = 0;
        if (multiply_overflows(elements, sizes[d], &elements) ||
            multiply_overflows(sizes[d] - 1, strides[d], &reach) ||
            add_overflows(last, reach, &last)) {
            return true;
        }
    }
    // Headroom, so that sums of two spans are safe in the overlap checks.
    if (elements > (INT64_MAX >> 5) || multiply_overflows(last, bytes, &total) ||
        total > (INT64_MAX >> 2)) {
        return true;
    }
    *span = uint64_t(total) + uint64_t(bytes);
    return false;
}

// That elements, of which there is at least one, are in memory and can be addressed.
hbn_status check_addresses(const char *name, const void *data, const hbn_dtype &dtype,
                           const int64_t *sizes, const int64_t *strides, int dimensions) {
    const int bytes = element_size(dtype);
    uint64_t span = 0;
    if (span_overflows(sizes, strides, dimensions, bytes, &span)) {
        return fail(HBN_INVALID_ARGUMENT, text::size_overflow, name);
    }
    if (!data) {
        return fail(HBN_INVALID_ARGUMENT, text::no_data, name);
    }
    const uintptr_t address = reinterpret_cast<uintptr_t>(data);
    if (span > UINTPTR_MAX - address) {
        return fail(HBN_INVALID_ARGUMENT, text::beyond_memory, name);
    }
    if (address % unsigned(bytes) != 0) {
        return fail(HBN_INVALID_ARGUMENT, text::misaligned, name, dtype_name(dtype), bytes);
    }
    return HBN_OK;
}

// The same for one double a channel, side by side. Most calls of operations on moments are as short as their checks.
hbn_status check_dense(const char *name, const double *values, int64_t channels) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(values);
    if (values && address % sizeof(double) == 0 && channels <= (INT64_MAX >> 8) &&
        uint64_t(channels) <= (UINTPTR_MAX - address) / sizeof(double)) {
        return HBN_OK;
    }
    const int64_t stride = 1;
    return check_addresses(name, values, HBN_FLOAT64, &channels, &stride, 1);
}

hbn_status check_device(const char *name, const hbn_device &device) {
    return is_device(device)
               ? HBN_OK
               : fail(HBN_INVALID_ARGUMENT, text::unknown_device, name, int(raw(device)));
}

// What a tensor of any dtype must satisfy.
hbn_status check_memory(const char *name, const hbn_tensor &t) {
    HBN_TRY(check_device(name, t.device));
    if (std::any_of(t.sizes, t.sizes + 4, [](int64_t size) { return size < 0; })) {
        return fail(HBN_INVALID_ARGUMENT, text::negative_size, name, Long(t.sizes[0]),
                    Long(t.sizes[1]), Long(t.sizes[2]), Long(t.sizes[3]));
    }
    if (is_empty(t)) {
        return HBN_OK;
    }
    for (int d = 0; d < 4; d++) {
        if (t.strides[d] < 0 && t.sizes[d] > 1) {
            return fail(HBN_INVALID_ARGUMENT, text::negative_strides, name);
        }
    }
    return check_addresses(name, t.data, t.dtype, t.sizes, t.strides, 4);
}

hbn_status check_same_shape(const char *name, const hbn_tensor &t, const char *model_name,
                            const hbn_tensor &model) {
    if (!std::equal(t.sizes, t.sizes + 4, model.sizes)) {
        return fail(HBN_INVALID_ARGUMENT, text::shapes_differ, name, model_name,
                    Long(model.sizes[0]), Long(model.sizes[1]), Long(model.sizes[2]),
                    Long(model.sizes[3]), Long(t.sizes[0]), Long(t.sizes[1]), Long(t.sizes[2]),
                    Long(t.sizes[3]));
    }
    return HBN_OK;
}

hbn_status check_same_device(const hbn_tensor &t, const hbn_tensor &model) {
    return t.device == model.device ? HBN_OK
                                    : fail(HBN_INVALID_ARGUMENT, text::devices_differ,
                                           device_name(model.device), device_name(t.device));
}

}  // namespace

hbn_status check_float(const char *name, const hbn_dtype &dtype) {
    return is_float(dtype) ? HBN_OK
                           : fail(HBN_INVALID_ARGUMENT, text::float_dtype, name, dtype_name(dtype));
}

hbn_status check_tensor(const NamedTensor &named) {
    const char *name = named.name;
    if (!named.tensor) {
        return fail(HBN_INVALID_ARGUMENT, text::required, name);
    }
    const hbn_tensor &t = *named.tensor;
    if (t.ndim != 4) {
        return fail(HBN_INVALID_ARGUMENT, text::rank, t.ndim);
    }
    HBN_TRY(check_float(name, t.dtype));
    return check_memory(name, t);
}

hbn_status check_mask(const NamedTensor &mask, const hbn_tensor &x) {
    if (!mask.tensor) {
        return fail(HBN_INVALID_ARGUMENT, text::required, mask.name);
    }
    const hbn_tensor &t = *mask.tensor;
    if (t.ndim != 4) {
        return fail(HBN_INVALID_ARGUMENT, text::rank, t.ndim);
    }
    if (raw(t.dtype) != HBN_UINT8) {
        return fail(HBN_INVALID_ARGUMENT, text::mask_dtype, mask.name, dtype_name(t.dtype));
    }
    HBN_TRY(check_memory(mask.name, t));
    HBN_TRY(check_same_shape(mask.name, t, "x", x));
    return check_same_device(t, x);
}

hbn_status check_tensor_like(const NamedTensor &named, const NamedTensor &model_named) {
    HBN_TRY(check_tensor(named));
    const hbn_tensor &t = *named.tensor, &model = *model_named.tensor;
    HBN_TRY(check_same_shape(named.name, t, model_named.name, model));
    if (t.dtype != model.dtype) {
        return fail(HBN_INVALID_ARGUMENT, text::dtypes_differ, named.name, model_named.name,
                    dtype_name(model.dtype), dtype_name(t.dtype));
    }
    return check_same_device(t, model);
}

hbn_status check_device_supported(const hbn_device &device) {
    if (device == HBN_CPU) {
        return HBN_OK;
    }
#ifdef HBN_DEVICE_RUNTIME
    return fail(HBN_UNSUPPORTED, text::device_memory, device_name(device));
#else
    return fail(HBN_UNSUPPORTED, text::device_unsupported, device_name(device));
#endif
}

hbn_status check_supported_tensor(const NamedTensor &t) {
    HBN_TRY(check_tensor(t));
    return check_device_supported(t.tensor->device);
}

hbn_status check_batch_size(const hbn_tensor &x) {
    if (x.sizes[0] == 1 && x.sizes[2] == 1 && x.sizes[3] == 1) {
        return fail(HBN_INVALID_ARGUMENT, text::one_value, Long(x.sizes[0]), Long(x.sizes[1]),
                    Long(x.sizes[2]), Long(x.sizes[3]));
    }
    return HBN_OK;
}

hbn_status check_vector_size(const char *name, const hbn_vector &v, int64_t channels) {
    return v.size == channels
               ? HBN_OK
               : fail(HBN_INVALID_ARGUMENT, text::vector_size, name, Long(channels), Long(v.size));
}

hbn_status check_vector(const char *name, const hbn_vector &v, hbn_dtype tensor_dtype,
                        VectorDType kind, const hbn_device &tensor_device) {
    const hbn_dtype statistic =
        kind == VectorDType::float64 ? HBN_FLOAT64 : statistic_dtype(tensor_dtype);
    const bool own = kind == VectorDType::parameter && statistic != tensor_dtype;
    if (!is_dtype(v.dtype) || (v.dtype != statistic && !(own && v.dtype == tensor_dtype))) {
        const char *dtype = dtype_name(v.dtype);
        return own ? fail(HBN_INVALID_ARGUMENT, text::vector_dtype_or, name, dtype_name(statistic),
                          dtype_name(tensor_dtype), dtype)
                   : fail(HBN_INVALID_ARGUMENT, text::vector_dtype, name, dtype_name(statistic),
                          dtype);
    }
    HBN_TRY(check_device(name, v.device));
    if (v.device != HBN_CPU && v.device != tensor_device) {
        return fail(HBN_INVALID_ARGUMENT, text::devices_differ, device_name(tensor_device),
                    device_name(v.device));
    }
    if (v.stride < 0 && v.size > 1) {
        return fail(HBN_INVALID_ARGUMENT, text::negative_strides, name);
    }
    return v.size > 0 ? check_addresses(name, v.data, v.dtype, &v.size, &v.stride, 1) : HBN_OK;
}

hbn_status check_array(const char *name, const double *values, int64_t channels) {
    if (channels <= 0) {
        return HBN_OK;
    }
    if (!values) {
        return fail(HBN_INVALID_ARGUMENT, text::required, name);
    }
    return check_dense(name, values, channels);
}

hbn_status check_defined(const NamedVector &v, bool training) {
    if (v.vector) {
        return HBN_OK;
    }
    return training ? fail(HBN_INVALID_ARGUMENT, text::needed_in_training, v.name)
                    : fail(HBN_INVALID_ARGUMENT, text::needed_in_evaluation, v.name);
}

hbn_status check_both_or_neither(const NamedVector &a, const NamedVector &b) {
    if (!a.vector != !b.vector) {
        return fail(HBN_INVALID_ARGUMENT, text::both_or_neither, a.name, b.name);
    }
    return HBN_OK;
}

hbn_status check_eps(double eps, bool batch_statistics) {
    char number[32];
    if (batch_statistics && !(eps > 0)) {
        return fail(HBN_INVALID_ARGUMENT, text::eps_positive, spell(eps, number));
    }
    if (!batch_statistics && !(eps >= 0)) {
        return fail(HBN_INVALID_ARGUMENT, text::eps_non_negative, spell(eps, number));
    }
    return HBN_OK;
}

hbn_status check_given_statistics(bool training, const hbn_vector *mean, const hbn_vector *invstd,
                                  const hbn_vector *running_mean, const hbn_vector *running_var,
                                  double eps) {
    if (training) {
        HBN_TRY(check_defined({"mean", mean}, true));
        return check_defined({"invstd", invstd}, true);
    }
    HBN_TRY(check_defined({"running_mean", running_mean}, false));
    HBN_TRY(check_defined({"running_var", running_var}, false));
    return check_eps(eps, false);
}

hbn_status check_momentum(double momentum) {
    return std::isnan(momentum) ? fail(HBN_INVALID_ARGUMENT, text::momentum_nan) : HBN_OK;
}

hbn_status check_count(double count) {
    return count > 0 && std::isfinite(count)
               ? HBN_OK
               : fail(HBN_INVALID_ARGUMENT, text::count_positive, count);
}

hbn_status check_moments(const hbn_moments *moments, const char *name, bool may_be_zero) {
    if (!moments) {
        return fail(HBN_INVALID_ARGUMENT, text::required, name);
    }
    const double count = moments->count;
    if (may_be_zero && !(count >= 0 && std::isfinite(count))) {
        return fail(HBN_INVALID_ARGUMENT, text::count_non_negative, count);
    }
    if (!may_be_zero) {
        HBN_TRY(check_count(count));
    }
    if (moments->channels < 0) {
        return fail(HBN_INVALID_ARGUMENT, text::negative_channels, name, Long(moments->channels));
    }
    for (const double *values : {moments->mean, moments->m2}) {
        if (moments->channels > 0) {
            HBN_TRY(check_dense(name, values, moments->channels));
        }
    }
    return HBN_OK;
}

}  // namespace hbn::internal
