#include "vectors.h"

#include "checks.h"
#include "dispatch.h"
#include "workspace.h"

#include <cstring>

namespace hbn::internal {

namespace {

// One value in each channel.
#ifdef HBN_DEVICE_RUNTIME
hbn_vector constant(double value, hbn_dtype dtype) {
    hbn_vector v = Workspace::take(dtype);
    for (int64_t c = 0; c < v.size; c++) {
        store(v, c, value);  // devices copy dense memory best
    }
    return v;
}
#else
// A stride of 0 over a static value; `value` is 0 or 1.
hbn_vector constant(double value, hbn_dtype dtype) {
    static float floats[2] = {0.0f, 1.0f};
    static double doubles[2] = {0.0, 1.0};
    const int i = value != 0;
    hbn_vector v = Workspace::take(dtype);
    v.data = dtype == HBN_FLOAT64 ? static_cast<void *>(&doubles[i]) : &floats[i];
    v.stride = 0;
    return v;
}
#endif

}  // namespace

hbn_status as_input(const hbn_vector &v, hbn_dtype dtype, double absent, hbn_vector *input) {
    if (!v.data) {
        *input = constant(absent, dtype);
        return HBN_OK;
    }
    if (v.dtype == dtype) {
        *input = v;
        return HBN_OK;
    }
    *input = Workspace::take(dtype);
    return convert(v, *input);
}

OutputVector::OutputVector(const hbn_vector &target, hbn_dtype dtype)
    : target_(target),
      written_(target.data && target.dtype == dtype ? target : Workspace::take(dtype)) {
}

hbn_status OutputVector::store() const {
    return target_.data && target_.data != written_.data ? convert(written_, target_) : HBN_OK;
}

hbn_status require_conversions(std::initializer_list<const hbn_vector *> vectors, hbn_dtype dtype) {
    for (const hbn_vector *v : vectors) {
        if (v) {
            HBN_TRY(require_conversion(v->dtype, dtype));
            HBN_TRY(require_conversion(dtype, v->dtype));
        }
    }
    return HBN_OK;
}

void fill_zero(const hbn_vector *v) {
    if (v) {
        const int bytes = element_size(v->dtype);
        for (int64_t c = 0; c < v->size; c++) {
            std::memset(static_cast<char *>(v->data) + c * v->stride * bytes, 0, size_t(bytes));
        }
    }
}

double load(const hbn_vector &v, int64_t c) {
    return v.dtype == HBN_FLOAT64 ? static_cast<const double *>(v.data)[c * v.stride]
                                  : double(static_cast<const float *>(v.data)[c * v.stride]);
}

void store(const hbn_vector &v, int64_t c, double value) {
    if (v.dtype == HBN_FLOAT64) {
        static_cast<double *>(v.data)[c * v.stride] = value;
    } else {
        static_cast<float *>(v.data)[c * v.stride] = float(value);
    }
}

}  // namespace hbn::internal
