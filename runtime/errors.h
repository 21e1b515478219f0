// From the C core's status codes to C++ exceptions, with the same texts.
#ifndef HBN_RUNTIME_ERRORS_H
#define HBN_RUNTIME_ERRORS_H

#include <hbn/hbn.h>

#include <new>
#include <stdexcept>

namespace hbn::internal {

inline void throw_on_error(hbn_status status) {
    switch (status) {
    case HBN_OK:
        return;
    case HBN_INVALID_ARGUMENT:
        throw std::invalid_argument(hbn_last_error());
    case HBN_OUT_OF_MEMORY:
        throw std::bad_alloc();
    case HBN_UNSUPPORTED:
    case HBN_DEVICE_ERROR:
    case HBN_EXECUTOR_ERROR:
        break;
    }
    throw std::runtime_error(hbn_last_error());
}

}  // namespace hbn::internal

#endif
