#include "checks.h"
#include "small_sort.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hbn::internal {

namespace {

thread_local char last_error[512] = "";

using Long = long long;

bool add_overflows(int64_t a, int64_t b, int64_t *sum) {
    return __builtin_add_overflow(a, b, sum);
}

bool multiply_overflows(int64_t a, int64_t b, int64_t *product) {
    return __builtin_mul_overflow(a, b, product);
}

// Whether the bytes from the first element to the end of the last one can't be counted in 64 bits.
bool span_overflows(const int64_t *sizes, const int64_t *strides, int dimensions, int bytes) {
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
    return elements > (INT64_MAX >> 5) || multiply_overflows(last, bytes, &total) ||
           total > (INT64_MAX >> 2);
}

bool is_float(hbn_dtype dtype) {
    return dtype >= HBN_FLOAT32 && dtype <= HBN_FLOAT16;
}

// What a tensor of any dtype must satisfy.
hbn_status check_memory(const char *name, const hbn_tensor &t);
hbn_status check_same_shape(const char *name, const hbn_tensor &t, const char *model_name,
                            const hbn_tensor &model);

}  // namespace

hbn_status fail(hbn_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last_error, sizeof(last_error), format, arguments);
    va_end(arguments);
    return status;
}

const char *spell(double value, char (&buffer)[32]) {
    if (!std::isfinite(value)) {
        std::strcpy(buffer, std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        return buffer;
    }
    // The fewest digits that read back as the same value, in whichever notation Python takes.
    int digits = 0;
    do {
        std::snprintf(buffer, sizeof(buffer), "%.*e", digits, value);
    } while (std::strtod(buffer, nullptr) != value && ++digits < 17);
    const int exponent = std::atoi(std::strchr(buffer, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        std::snprintf(buffer, sizeof(buffer), "%.*f", std::max(digits - exponent, 1), value);
    }
    return buffer;
}

const char *dtype_name(hbn_dtype dtype) {
    switch (dtype) {
    case HBN_FLOAT32:
        return "float32";
    case HBN_FLOAT64:
        return "float64";
    case HBN_BFLOAT16:
        return "bfloat16";
    case HBN_FLOAT16:
        return "float16";
    case HBN_INT64:
        return "int64";
    case HBN_UINT8:
        return "uint8";
    }
    return "an unknown dtype";
}

const char *device_name(hbn_device device) {
    switch (device) {
    case HBN_CPU:
        return "cpu";
    case HBN_OPENCL:
        return "opencl";
    case HBN_CUDA:
        return "cuda";
    }
    return "unknown";
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
    if (!is_float(t.dtype)) {
        return fail(HBN_INVALID_ARGUMENT, text::float_dtype, name, dtype_name(t.dtype));
    }
    return check_memory(name, t);
}

namespace {

hbn_status check_memory(const char *name, const hbn_tensor &t) {
    if (t.device < HBN_CPU || t.device > HBN_CUDA) {
        return fail(HBN_INVALID_ARGUMENT, text::unknown_device, name, int(t.device));
    }
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
    if (span_overflows(t.sizes, t.strides, 4, element_size(t.dtype))) {
        return fail(HBN_INVALID_ARGUMENT, text::size_overflow, name);
    }
    if (!t.data) {
        return fail(HBN_INVALID_ARGUMENT, text::no_data, name);
    }
    return HBN_OK;
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

hbn_status check_mask(const NamedTensor &mask, const hbn_tensor &x) {
    if (!mask.tensor) {
        return fail(HBN_INVALID_ARGUMENT, text::required, mask.name);
    }
    const hbn_tensor &t = *mask.tensor;
    if (t.ndim != 4) {
        return fail(HBN_INVALID_ARGUMENT, text::rank, t.ndim);
    }
    if (t.dtype != HBN_UINT8) {
        return fail(HBN_INVALID_ARGUMENT, text::mask_dtype, mask.name, dtype_name(t.dtype));
    }
    HBN_TRY(check_memory(mask.name, t));
    HBN_TRY(check_same_shape(mask.name, t, "x", x));
    return check_same_device(t, x);
}

hbn_status check_tensors(std::initializer_list<NamedTensor> tensors) {
    const NamedTensor &first = *tensors.begin();
    for (const NamedTensor &named : tensors) {
        HBN_TRY(check_tensor(named));
        const hbn_tensor &t = *named.tensor, &model = *first.tensor;
        HBN_TRY(check_same_shape(named.name, t, first.name, model));
        if (t.dtype != model.dtype) {
            return fail(HBN_INVALID_ARGUMENT, text::dtypes_differ, named.name, first.name,
                        dtype_name(model.dtype), dtype_name(t.dtype));
        }
        HBN_TRY(check_same_device(t, model));
    }
    const hbn_device device = first.tensor->device;
    if (device != HBN_CPU) {
#ifdef HBN_DEVICE_RUNTIME
        return fail(HBN_UNSUPPORTED, text::device_memory, device_name(device));
#else
        return fail(HBN_UNSUPPORTED, text::device_unsupported, device_name(device));
#endif
    }
    return HBN_OK;
}

hbn_status check_batch_size(const hbn_tensor &x) {
    if (x.sizes[0] == 1 && x.sizes[2] == 1 && x.sizes[3] == 1) {
        return fail(HBN_INVALID_ARGUMENT, text::one_value, Long(x.sizes[0]), Long(x.sizes[1]),
                    Long(x.sizes[2]), Long(x.sizes[3]));
    }
    return HBN_OK;
}

hbn_status check_vectors(std::initializer_list<NamedVector> vectors, int64_t channels,
                         hbn_dtype tensor_dtype, VectorDType kind) {
    for (const NamedVector &v : vectors) {
        if (v.vector && v.vector->size != channels) {
            return fail(HBN_INVALID_ARGUMENT, text::vector_size, v.name, Long(channels),
                        Long(v.vector->size));
        }
    }
    const hbn_dtype statistic =
        kind == VectorDType::float64 ? HBN_FLOAT64 : statistic_dtype(tensor_dtype);
    const bool own = kind == VectorDType::parameter && statistic != tensor_dtype;
    for (const NamedVector &v : vectors) {
        if (!v.vector) {
            continue;
        }
        const hbn_dtype dtype = v.vector->dtype;
        if (dtype != statistic && !(own && dtype == tensor_dtype)) {
            return own ? fail(HBN_INVALID_ARGUMENT, text::vector_dtype_or, v.name,
                              dtype_name(statistic), dtype_name(tensor_dtype), dtype_name(dtype))
                       : fail(HBN_INVALID_ARGUMENT, text::vector_dtype, v.name,
                              dtype_name(statistic), dtype_name(dtype));
        }
        if (v.vector->stride < 0 && v.vector->size > 1) {
            return fail(HBN_INVALID_ARGUMENT, text::negative_strides, v.name);
        }
        if (v.vector->size > 0) {
            if (span_overflows(&v.vector->size, &v.vector->stride, 1, element_size(dtype))) {
                return fail(HBN_INVALID_ARGUMENT, text::size_overflow, v.name);
            }
            if (!v.vector->data) {
                return fail(HBN_INVALID_ARGUMENT, text::no_data, v.name);
            }
        }
    }
    return HBN_OK;
}

hbn_status check_array(const char *name, const double *values, int64_t channels) {
    return values || channels <= 0 ? HBN_OK : fail(HBN_INVALID_ARGUMENT, text::required, name);
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
    const int64_t stride = 1;
    if (moments->channels < 0 ||
        (moments->channels > 0 && span_overflows(&moments->channels, &stride, 1, 8))) {
        return fail(HBN_INVALID_ARGUMENT, text::size_overflow, name);
    }
    if (moments->channels > 0 && (!moments->mean || !moments->m2)) {
        return fail(HBN_INVALID_ARGUMENT, text::no_data, name);
    }
    return HBN_OK;
}

// ---- overlap

Footprint::Footprint(const NamedTensor &t) : name(t.name), data(nullptr), dimensions(4) {
    if (t.tensor && !is_empty(*t.tensor)) {
        data = static_cast<const char *>(t.tensor->data);
        element_bytes = element_size(t.tensor->dtype);
        std::copy_n(t.tensor->sizes, 4, sizes);
        std::copy_n(t.tensor->strides, 4, strides);
        find_end();
    }
}

Footprint::Footprint(const NamedVector &v) : name(v.name), data(nullptr), dimensions(1) {
    if (v.vector && v.vector->size > 0) {
        data = static_cast<const char *>(v.vector->data);
        element_bytes = element_size(v.vector->dtype);
        sizes[0] = v.vector->size;
        strides[0] = v.vector->stride;
        find_end();
    }
}

Footprint::Footprint(const char *name, const double *values, int64_t size)
    : name(name), element_bytes(sizeof(double)), dimensions(1) {
    data = size > 0 ? reinterpret_cast<const char *>(values) : nullptr;
    sizes[0] = size;
    strides[0] = 1;
    find_end();
}

void Footprint::find_end() {
    int64_t last = 0;
    for (int d = 0; d < dimensions; d++) {
        last += sizes[d] > 1 ? (sizes[d] - 1) * strides[d] : 0;
    }
    begin = reinterpret_cast<uintptr_t>(data);
    end = begin + uintptr_t((last + 1) * element_bytes);
}

namespace {

// True unless every element surely has memory of its own: sorted by stride, each step must leap
// over all that the smaller strides reach.
bool overlaps_itself(const Footprint &f) {
    int order[4] = {0, 1, 2, 3};
    small_sort(order, f.dimensions, [&](int a, int b) { return f.strides[a] < f.strides[b]; });
    int64_t reach = 0;
    for (int i = 0; i < f.dimensions; i++) {
        const int d = order[i];
        if (f.sizes[d] > 1) {
            if (f.strides[d] <= reach) {
                return true;
            }
            reach += (f.sizes[d] - 1) * f.strides[d];
        }
    }
    return false;
}

// One unknown k in [low, high] of the equation sum(k * stride) = distance.
struct Step {
    int64_t stride, low, high;
};

// Whether the equation may have a solution. With nested strides each level has one or two
// candidates.
bool may_reach(const Step *steps, int count, int64_t distance) {
    if (count == 0) {
        return distance == 0;
    }
    int64_t rest_low = 0, rest_high = 0;
    for (int i = 1; i < count; i++) {
        rest_low += steps[i].low * steps[i].stride;
        rest_high += steps[i].high * steps[i].stride;
    }
    const Step &s = steps[0];
    // rest_low <= distance - k * stride <= rest_high
    const auto floor_div = [](int64_t a, int64_t b) { return a / b - (a % b < 0); };
    const int64_t first = std::max(s.low, -floor_div(rest_high - distance, s.stride));
    const int64_t last = std::min(s.high, floor_div(distance - rest_low, s.stride));
    if (last - first >= 4) {
        return true;  // not worth the search
    }
    for (int64_t k = first; k <= last; k++) {
        if (may_reach(steps + 1, count - 1, distance - k * s.stride)) {
            return true;
        }
    }
    return false;
}

bool elements_overlap(const Footprint &a, const Footprint &b) {
    // A byte of an element of a is one of b's when sum(i * stride) - sum(j * stride) = b0 - a0.
    // Equal strides share one unknown, i - j.
    Step steps[9] = {};
    int count = 0;
    const auto add = [&](int64_t stride, int64_t low, int64_t high) {
        for (int i = 0; i < count; i++) {
            if (steps[i].stride == stride) {
                steps[i].low += low;
                steps[i].high += high;
                return;
            }
        }
        steps[count++] = {stride, low, high};
    };
    add(1, 1 - b.element_bytes, a.element_bytes - 1);
    for (int d = 0; d < a.dimensions; d++) {
        if (a.sizes[d] > 1 && a.strides[d] > 0) {
            add(a.strides[d] * a.element_bytes, 0, a.sizes[d] - 1);
        }
    }
    for (int d = 0; d < b.dimensions; d++) {
        if (b.sizes[d] > 1 && b.strides[d] > 0) {
            add(b.strides[d] * b.element_bytes, 1 - b.sizes[d], 0);
        }
    }
    small_sort(steps, count, [](const Step &l, const Step &r) { return l.stride > r.stride; });
    return may_reach(steps, count, int64_t(b.begin) - int64_t(a.begin));
}

bool overlap(const Footprint &a, const Footprint &b) {
    return a.data && b.data && a.begin < b.end && b.begin < a.end && elements_overlap(a, b);
}

bool same_view(const Footprint &a, const Footprint &b) {
    if (a.data != b.data || a.element_bytes != b.element_bytes || a.dimensions != b.dimensions) {
        return false;
    }
    for (int d = 0; d < a.dimensions; d++) {
        if (a.sizes[d] != b.sizes[d] || (a.sizes[d] > 1 && a.strides[d] != b.strides[d])) {
            return false;
        }
    }
    return true;
}

bool same_name(const char *a, const char *b) {
    return a && b && std::strcmp(a, b) == 0;
}

}  // namespace

hbn_status check_overlap(const Footprints &inputs, const Footprints &outputs, const char *in_place,
                         const char *in_place_of) {
    for (const Footprint *out = outputs.begin(); out != outputs.end(); ++out) {
        if (overlaps_itself(*out)) {
            return fail(HBN_INVALID_ARGUMENT, text::self_overlap, out->name);
        }
        for (const Footprint &in : inputs) {
            if (!overlap(in, *out)) {
                continue;
            }
            const bool allowed = same_name(out->name, in_place) &&
                                 same_name(in.name, in_place_of) && same_view(*out, in);
            if (!allowed) {
                return fail(HBN_INVALID_ARGUMENT, text::overlap, in.name, out->name);
            }
        }
        for (const Footprint *other = outputs.begin(); other != out; ++other) {
            if (overlap(*other, *out)) {
                return fail(HBN_INVALID_ARGUMENT, text::outputs_overlap, other->name, out->name);
            }
        }
    }
    return HBN_OK;
}

}  // namespace hbn::internal

extern "C" const char *hbn_last_error(void) {
    return hbn::internal::last_error;
}
