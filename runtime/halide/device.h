// Running a kernel on the CPU, or, under HBN_DEVICE_RUNTIME, on the GPU with the data's way there
// and back.
#ifndef HBN_RUNTIME_DEVICE_H
#define HBN_RUNTIME_DEVICE_H

#include <HalideRuntime.h>

namespace hbn::internal {

// Each of args is the address of a scalar or of one of the `count` buffers. Returns the kernel's code, or that of
// the first copy that failed.
int run_kernel(int (*kernel)(void **), void **args, halide_buffer_t *buffers, const bool *is_output,
               int count);

}  // namespace hbn::internal

#endif
