// Python's arrays as hbn's descriptors, without copies: PyTorch's tensors by DLPack's table of C functions, NumPy's by
// the buffer protocol, all others by __dlpack__.
#ifndef HBN_PYTHON_ARRAYS_H
#define HBN_PYTHON_ARRAYS_H

#include <hbn/hbn.h>
#include <nanobind/nanobind.h>

#include <string>

namespace hbn::python {

namespace nb = nanobind;

// Raises a Python exception of this type.
[[noreturn]] void raise(PyObject *type, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

// What is updated is read and written.
enum class Access { read, write, update };

// What an array is of, as far as its dtype goes: a mask may be of bool, too.
enum class Holds { values, mask, counter };

// The DLPack specification's.
struct DLTensor;
struct DLPackExchangeAPI;

// What is lent of one array, for as long as this lives: sizes and strides with which hbn can calculate, for hbn.h's
// functions to check. Raises ValueError, TypeError or BufferError, naming the argument.
class Lent {
public:
    Lent(nb::handle array, const char *name, Access access, Holds holds = Holds::values);
    ~Lent();
    Lent(const Lent &) = delete;
    Lent &operator=(const Lent &) = delete;

    // (N, C, ...), of two dimensions or more, once it has been folded.
    const hbn_tensor *tensor() const {
        return &tensor_;
    }
    // All tensors of one operation, before any is used: of one shape, or raises ValueError where hbn.h's functions
    // could not tell, with what follows the channels made H and W alike in all.
    static void fold(Lent *const *tensors, int size);

    // One value a channel: (C,), or such as (1, C, 1, 1).
    const hbn_vector *vector();
    // Whether this is a (2, C) array of two vectors, which are then its rows.
    bool has_two_rows() const {
        return ndim_ == 2 && sizes_[0] == 2;
    }
    const hbn_vector *row(int i);

    // Its sizes, its strides in elements, and its dtype's name.
    nb::tuple described() const;

    // An int64 array of one element.
    int64_t *counter() const;

    bool is_torch_tensor() const {
        return torch_tensor_;
    }
    // Raises ValueError for a tensor of PyTorch that does.
    void check_requires_no_grad() const;
    // The tensor of PyTorch that is updated, for autograd to know; null for any other array, and for views: a version is
    // shared by all views of one tensor, parameters among them, and PyTorch's own batch normalization changes none.
    PyObject *updated_torch_tensor() const;

private:
    static constexpr int kMostDimensions = 16;

    [[noreturn]] void refuse(const char *format, ...) const __attribute__((format(printf, 2, 3)));
    [[noreturn]] void refuse_failed_export(nb::python_error failure) const;
    [[noreturn]] void refuse_dtype(const std::string &dtype) const;

    void describe(const DLTensor &tensor);
    void find_type(const DLTensor &tensor);
    bool find_type(const char *format, Py_ssize_t itemsize);
    bool get_buffer(nb::handle array, Access access);
    void get_buffer_of_extension_dtype(nb::handle array, Access access);
    void describe_buffer();
    void set_dimensions(int ndim, const int64_t *sizes);
    void set_dense_strides();
    void check_sizes();
    void check_memory();
    bool lend_by_exchange(nb::handle array, Access access);
    void describe_exchanged(const DLPackExchangeAPI &api, nb::handle array);
    bool has_strides_of_complex_parts() const;
    bool lend_by_buffer(nb::handle array, Access access);
    void lend_by_dlpack(nb::handle array, Access access);
    void check_shape(const Lent &model) const;

    const char *name_;
    const Access access_;
    const Holds holds_;
    PyObject *torch_tensor_ = nullptr;  // borrowed
    void *data_ = nullptr;
    hbn_dtype dtype_ = HBN_FLOAT32;
    hbn_device device_ = HBN_CPU;
    int ndim_ = 0;
    int64_t sizes_[kMostDimensions];
    int64_t strides_[kMostDimensions];  // in elements
    int64_t elements_ = 1;
    hbn_tensor tensor_;
    hbn_vector vectors_[2];

    // What must be given back, whatever part of this was constructed when an exception was thrown.
    struct Held {
        nb::object replacement;  // what is lent in place of the array
        Py_buffer buffer{};
        void *managed_tensor = nullptr;
        void (*delete_managed_tensor)(void *) = nullptr;

        ~Held() {
            PyBuffer_Release(&buffer);
            if (delete_managed_tensor) {
                delete_managed_tensor(managed_tensor);
            }
        }
    } held_;
};

}  // namespace hbn::python

#endif
