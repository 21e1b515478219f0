/// @file error.h
/// What hbn throws.
#ifndef HBN_ERROR_H
#define HBN_ERROR_H

#include <hbn/hbn.h>

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace hbn {

/// The base of everything hbn throws. Each class below is an exception of the standard library, too, so a program catches
/// whichever it knows: std::invalid_argument or hbn::InvalidArgument, std::exception or hbn::Error. Nothing has been
/// written when one is thrown, but for DeviceError. Where there isn't even memory for an error's text, the standard
/// library throws its own std::bad_alloc.
class Error {
public:
    /// Of whatever it is.
    virtual ~Error() = default;
    /// @return what is wrong, in PyTorch's words where it has any; lives as long as the error
    virtual const char *what() const noexcept = 0;
    /// @return what the C interface returns in this case
    virtual hbn_status status() const noexcept = 0;
};

/// What the caller passed can't be: sizes, dtypes, strides, aliasing, absent data, eps, momentum, keys of a state.
class InvalidArgument : public std::invalid_argument, public Error {
public:
    using std::invalid_argument::invalid_argument;
    /// @return what is wrong
    const char *what() const noexcept override {
        return std::invalid_argument::what();
    }
    /// @return HBN_INVALID_ARGUMENT
    hbn_status status() const noexcept override {
        return HBN_INVALID_ARGUMENT;
    }
};

/// A module can't do this now: backward() before any forward(), or anything after it was moved from.
class InvalidState : public std::logic_error, public Error {
public:
    using std::logic_error::logic_error;
    /// @return what is wrong
    const char *what() const noexcept override {
        return std::logic_error::what();
    }
    /// @return HBN_INVALID_ARGUMENT
    hbn_status status() const noexcept override {
        return HBN_INVALID_ARGUMENT;
    }
};

/// This library was built without the kernel, instruction set or device that the call needs.
class UnsupportedError : public std::runtime_error, public Error {
public:
    using std::runtime_error::runtime_error;
    /// @return what is missing
    const char *what() const noexcept override {
        return std::runtime_error::what();
    }
    /// @return HBN_UNSUPPORTED
    hbn_status status() const noexcept override {
        return HBN_UNSUPPORTED;
    }
};

/// A kernel or the device's runtime failed, maybe after writing.
class DeviceError : public std::runtime_error, public Error {
public:
    using std::runtime_error::runtime_error;
    /// @return what failed
    const char *what() const noexcept override {
        return std::runtime_error::what();
    }
    /// @return HBN_DEVICE_ERROR
    hbn_status status() const noexcept override {
        return HBN_DEVICE_ERROR;
    }
};

/// No memory for what is returned, or to work in. Keeps its text without allocating.
class OutOfMemory : public std::bad_alloc, public Error {
public:
    /// @param text  what there is no memory for; cut after 127 characters
    explicit OutOfMemory(const char *text) noexcept {
        std::strncpy(text_, text, sizeof text_ - 1);
    }
    /// @return what there is no memory for
    const char *what() const noexcept override {
        return text_;
    }
    /// @return HBN_OUT_OF_MEMORY
    hbn_status status() const noexcept override {
        return HBN_OUT_OF_MEMORY;
    }

private:
    char text_[128] = {};
};

}  // namespace hbn

#endif
