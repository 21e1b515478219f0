// From the C interface's status codes to C++ exceptions, with the same texts.
#ifndef HBN_RUNTIME_API_ERRORS_H
#define HBN_RUNTIME_API_ERRORS_H

#include <hbn/error.h>

namespace hbn::internal {

inline void throw_on_error(hbn_status status) {
    switch (status) {
    case HBN_OK:
        return;
    case HBN_INVALID_ARGUMENT:
        throw InvalidArgument(hbn_last_error());
    case HBN_OUT_OF_MEMORY:
        throw OutOfMemory(hbn_last_error());
    case HBN_UNSUPPORTED:
        throw UnsupportedError(hbn_last_error());
    case HBN_DEVICE_ERROR:
    case HBN_EXECUTOR_ERROR:
        break;
    }
    throw DeviceError(hbn_last_error());
}

// Runs what allocates with the standard library's containers.
template<typename Allocate>
auto or_out_of_memory(Allocate allocate) {
    try {
        return allocate();
    } catch (const OutOfMemory &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw OutOfMemory("out of memory");
    }
}

}  // namespace hbn::internal

#endif
