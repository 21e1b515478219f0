#include "device.h"

#include <limits>

namespace hbn::internal {

#ifdef HBN_DEVICE_RUNTIME

namespace {

// Halide copies a dense buffer at once when each stride, from the smallest on, is what the dimensions before it span.
// One of extent 1, whose stride is any, must not come between others: a copy each of N * C planes or of all rows would
// follow.
void put_unit_dimensions_last(halide_buffer_t &buffer) {
    for (int d = 0; d < buffer.dimensions; d++) {
        if (buffer.dim[d].extent == 1) {
            buffer.dim[d].stride = std::numeric_limits<int32_t>::max();
        }
    }
}

}  // namespace

// Kernels copy host-dirty inputs to the device themselves; outputs are fetched here. Nothing stays
// on the device between calls, so a view's memory is the caller's at any time.
int run_kernel(int (*kernel)(void **), void **args, halide_buffer_t *buffers, const bool *is_output,
               int count) {
    for (int i = 0; i < count; i++) {
        put_unit_dimensions_last(buffers[i]);
        if (!is_output[i]) {
            buffers[i].set_host_dirty();
        }
    }
    int code = kernel(args);
    for (int i = 0; i < count; i++) {
        if (is_output[i] && code == 0) {
            code = halide_copy_to_host(nullptr, &buffers[i]);
        }
    }
    for (int i = 0; i < count; i++) {
        const int freed = halide_device_free(nullptr, &buffers[i]);
        code = code != 0 ? code : freed;
    }
    return code;
}

#else

int run_kernel(int (*kernel)(void **), void **args, halide_buffer_t *, const bool *, int) {
    return kernel(args);
}

#endif

}  // namespace hbn::internal
