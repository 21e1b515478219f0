// Python's arrays as hbn's descriptors, without copies: PyTorch's tensors by DLPack's table of C functions, NumPy's by
// the buffer protocol, all others by __dlpack__.
#ifndef HBN_PYTHON_ARRAYS_H
#define HBN_PYTHON_ARRAYS_H

#include <hbn/hbn.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <optional>

namespace hbn::python {

namespace nb = nanobind;

enum class Access { read, write };

// What is lent of an argument, for as long as this lives. None lends nothing. Raises ValueError or TypeError, naming
// the argument.
class Lent {
public:
    Lent(nb::handle array, const char *name, Access access = Access::read);
    Lent(const Lent &) = delete;
    Lent &operator=(const Lent &) = delete;

    bool present() const {
        return present_;
    }

protected:
    static constexpr int kMostDimensions = 16;

    const char *name_;
    bool present_ = false;
    void *data_ = nullptr;
    hbn_dtype dtype_ = HBN_FLOAT32;
    hbn_device device_ = HBN_CPU;
    int ndim_ = 0;
    int64_t sizes_[kMostDimensions];
    int64_t strides_[kMostDimensions];  // in elements

    [[noreturn]] void refuse(const char *format, ...) const __attribute__((format(printf, 2, 3)));

private:
    // A DLTensor, whichever header declares it.
    template<typename DLTensor>
    void describe(const DLTensor &tensor);
    bool lend_by_exchange(nb::handle array);
    bool lend_by_buffer(nb::handle array, Access access);
    void lend_by_dlpack(nb::handle array, Access access);
    void describe_buffer(bool is_bfloat16);

    // Released whatever part of this was constructed when an exception was thrown.
    struct Buffer : Py_buffer {
        Buffer() : Py_buffer{} {
        }
        ~Buffer() {
            PyBuffer_Release(this);
        }
    };

    Buffer buffer_;
    nb::ndarray<nb::ro> ndarray_;
};

// (N, C, ...), of two dimensions or more: what follows the channels becomes H and W.
class LentTensor : public Lent {
public:
    LentTensor(nb::handle array, const char *name, Access access = Access::read);

    // All of one operation, before any is used: of one shape, or raises ValueError where hbn.h's functions could not tell, with what
    // follows the channels made H and W alike in all.
    static void fold(std::initializer_list<LentTensor *> tensors);

    // Null for None.
    operator const hbn_tensor *() const {
        return present_ ? &tensor_ : nullptr;
    }
    int64_t channels() const {
        return tensor_.sizes[1];
    }

private:
    void check_shape(const LentTensor &model) const;

    hbn_tensor tensor_{};
};

// One value a channel.
class LentVector : public Lent {
public:
    LentVector(nb::handle array, const char *name, Access access = Access::read);

    operator const hbn_vector *() const {
        return present_ ? &vector_ : nullptr;
    }
    // Of a dense float64 array of this size.
    double *doubles(int64_t size) const;
    // Of an int64 array of one element.
    int64_t *counter() const;

private:
    hbn_vector vector_{};
};

// mean and invstd: two vectors, or one (2, C) array of both in place of mean, or neither.
class LentStatistics : public Lent {
public:
    LentStatistics(nb::handle mean, nb::handle invstd, Access access = Access::read);

    const hbn_vector *mean() const {
        return present_ ? &mean_ : nullptr;
    }
    const hbn_vector *invstd() const {
        return present_ ? &invstd_ : nullptr;
    }

private:
    std::optional<LentVector> second_;
    hbn_vector mean_{}, invstd_{};
};

}  // namespace hbn::python

#endif
