// Running a kernel on the CPU, or, under HBN_DEVICE_RUNTIME, on the GPU with the data's way there
// and back.
#ifndef HBN_RUNTIME_DEVICE_H
#define HBN_RUNTIME_DEVICE_H

#include <HalideRuntime.h>

namespace hbn::internal {

// args[i] is &buffers[i], or a scalar's address. Returns the kernel's code, or that of the first
// copy that failed.
int run_kernel(int (*kernel)(void **), void **args, halide_buffer_t *buffers, const bool *is_output,
               int count);

}  // namespace hbn::internal

#endif
