// What there is to know about a dtype, and about enumerators that come from C.
#ifndef HBN_RUNTIME_CHECKS_DTYPES_H
#define HBN_RUNTIME_CHECKS_DTYPES_H

#include <hbn/hbn.h>

#include <cstring>
#include <type_traits>

namespace hbn::internal {

// The number that an enumeration's variable holds. C callers can store any number there; C++ must not
// read one as an enumerator before it is known to be one, so checks and the functions below use this.
template<typename Enum>
std::underlying_type_t<Enum> raw(const Enum &value) {
    static_assert(std::is_enum_v<Enum>, "raw() is for enumerations");
    std::underlying_type_t<Enum> number;
    std::memcpy(&number, &value, sizeof number);
    return number;
}

// Whether the numbers are among hbn.h's enumerators.
inline bool is_dtype(const hbn_dtype &dtype) {
    return raw(dtype) >= HBN_FLOAT32 && raw(dtype) <= HBN_UINT8;
}
inline bool is_device(const hbn_device &device) {
    return raw(device) >= HBN_CPU && raw(device) <= HBN_CUDA;
}

// Whether tensors and parameters may be of it. Kernel tables are indexed by these dtypes only.
inline bool is_float(const hbn_dtype &dtype) {
    return raw(dtype) >= HBN_FLOAT32 && raw(dtype) <= HBN_FLOAT16;
}

// PyTorch's names. Whatever number is stored there, these return a text.
const char *dtype_name(const hbn_dtype &dtype);
const char *device_name(const hbn_device &device);

// In bytes; 1 for a dtype that there is not.
inline int element_size(const hbn_dtype &dtype) {
    switch (raw(dtype)) {
    case HBN_FLOAT32:
        return 4;
    case HBN_FLOAT64:
    case HBN_INT64:
        return 8;
    case HBN_BFLOAT16:
    case HBN_FLOAT16:
        return 2;
    default:
        return 1;
    }
}

// float64 beside float64 tensors, float32 beside all others.
inline hbn_dtype statistic_dtype(hbn_dtype tensor) {
    return tensor == HBN_FLOAT64 ? HBN_FLOAT64 : HBN_FLOAT32;
}

}  // namespace hbn::internal

#endif
