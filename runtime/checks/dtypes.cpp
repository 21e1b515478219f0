#include "dtypes.h"

namespace hbn::internal {

const char *dtype_name(const hbn_dtype &dtype) {
    switch (raw(dtype)) {
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

const char *device_name(const hbn_device &device) {
    switch (raw(device)) {
    case HBN_CPU:
        return "cpu";
    case HBN_OPENCL:
        return "opencl";
    case HBN_CUDA:
        return "cuda";
    }
    return "unknown";
}

}  // namespace hbn::internal
