#include "arrays.h"

#include <hbn/tensor_view.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace hbn::python {

namespace {

// The DLPack specification's DLPackExchangeAPI (version 1): a type's table of functions, in a capsule named
// "dlpack_exchange_api", its attribute __dlpack_c_exchange_api__. PyTorch has it since 2.10.
struct ExchangeApi {
    uint32_t major, minor;
    ExchangeApi *previous;
    void *managed_tensor_allocator;
    void *managed_tensor_from_py_object;
    void *managed_tensor_to_py_object;
    int (*dltensor_from_py_object)(void *py_object, void *dltensor);
    void *current_work_stream;
};

// Null where the type has none.
const ExchangeApi *exchange_api_of(PyTypeObject *type) {
    // Types that were asked last; the reference keeps a type's address its own.
    static PyTypeObject *known[4];
    static const ExchangeApi *apis[4];
    static int oldest = 0;
    for (int i = 0; i < 4; i++) {
        if (known[i] == type) {
            return apis[i];
        }
    }
    const ExchangeApi *api = nullptr;
    PyObject *capsule =
        PyObject_GetAttrString(reinterpret_cast<PyObject *>(type), "__dlpack_c_exchange_api__");
    if (capsule && PyCapsule_CheckExact(capsule)) {
        api = static_cast<ExchangeApi *>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
        while (api && api->major != 1) {
            api = api->previous;
        }
    }
    PyErr_Clear();
    Py_XDECREF(capsule);
    Py_XDECREF(known[oldest]);
    Py_INCREF(type);
    known[oldest] = type;
    apis[oldest] = api;
    oldest = (oldest + 1) % 4;
    return api;
}

}  // namespace

void Lent::refuse(const char *format, ...) const {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    throw nb::value_error((std::string(name_) + " " + text).c_str());
}

template<typename DLTensor>
void Lent::describe(const DLTensor &tensor) {
    if (tensor.ndim > kMostDimensions) {
        refuse("has %d dimensions, more than %d", int(tensor.ndim), kMostDimensions);
    }
    if (tensor.dtype.lanes == 1 && tensor.dtype.code == 0 && tensor.dtype.bits == 64) {
        dtype_ = HBN_INT64;
    } else {
        // Of its dtype and device alone: its shape may have more dimensions than hbn's.
        DLTensor scalar = tensor;
        scalar.ndim = 0;
        try {
            const TensorView view = from_dlpack(scalar);
            dtype_ = hbn_dtype(view.dtype);
            device_ = hbn_device(view.device);
        } catch (const std::invalid_argument &e) {
            throw nb::type_error((std::string(name_) + ": " + e.what()).c_str());
        }
    }
    data_ = tensor.data ? static_cast<char *>(tensor.data) + tensor.byte_offset : nullptr;
    ndim_ = tensor.ndim;
    int64_t dense_stride = 1;
    for (int d = ndim_ - 1; d >= 0; d--) {
        sizes_[d] = tensor.shape[d];
        strides_[d] = tensor.strides ? tensor.strides[d] : dense_stride;
        dense_stride *= tensor.shape[d];
    }
}

bool Lent::lend_by_exchange(nb::handle array) {
    const ExchangeApi *api = exchange_api_of(Py_TYPE(array.ptr()));
    if (!api) {
        return false;
    }
    nb::dlpack::dltensor tensor;
    if (api->dltensor_from_py_object(array.ptr(), &tensor) != 0) {
        throw nb::python_error();
    }
    describe(tensor);
    return true;
}

bool Lent::lend_by_buffer(nb::handle array, Access access) {
    if (!PyObject_CheckBuffer(array.ptr())) {
        return false;
    }
    nb::object owner = nb::borrow(array);
    bool is_bfloat16 = false;
    // NumPy has no bfloat16 of its own, and no buffer of ml_dtypes'; nor one of a type that it can't name.
    if (nb::hasattr(owner, "dtype")) {
        is_bfloat16 = nb::str(owner.attr("dtype")).equal(nb::str("bfloat16"));
        if (is_bfloat16) {
            // Others' views may be copies.
            if (!nb::hasattr(owner, "__array_interface__")) {
                return false;
            }
            owner = owner.attr("view")("uint16");
        }
    }
    if (PyObject_GetBuffer(owner.ptr(), &buffer_, PyBUF_STRIDED_RO | PyBUF_FORMAT) != 0) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError)) {
            throw nb::python_error();
        }
        PyErr_Clear();
        throw nb::type_error((std::string(name_) + " has a dtype that hbn does not know").c_str());
    }
    describe_buffer(is_bfloat16);
    if (access == Access::write && buffer_.readonly) {
        refuse("is read-only, but is to be written");
    }
    return true;
}

void Lent::describe_buffer(bool is_bfloat16) {
    const char *format = buffer_.format ? buffer_.format : "B";
    if (*format == '@' || *format == '=' || *format == '<') {
        format++;
    }
    const char kind = format[0] && !format[1] ? format[0] : '?';
    if (is_bfloat16) {
        dtype_ = HBN_BFLOAT16;
    } else if (kind == 'f') {
        dtype_ = HBN_FLOAT32;
    } else if (kind == 'd') {
        dtype_ = HBN_FLOAT64;
    } else if (kind == 'e') {
        dtype_ = HBN_FLOAT16;
    } else if (kind == 'B') {
        dtype_ = HBN_UINT8;
    } else if ((kind == 'l' || kind == 'q') && buffer_.itemsize == 8) {
        dtype_ = HBN_INT64;
    } else {
        throw nb::type_error(
            (std::string(name_) +
             " must be float32, float64, bfloat16 or float16, got buffer format '" +
             (buffer_.format ? buffer_.format : "B") + "'")
                .c_str());
    }
    if (buffer_.ndim > kMostDimensions) {
        refuse("has %d dimensions, more than %d", buffer_.ndim, kMostDimensions);
    }
    data_ = buffer_.buf;
    ndim_ = buffer_.ndim;
    for (int d = 0; d < ndim_; d++) {
        sizes_[d] = buffer_.shape[d];
        if (buffer_.strides[d] % buffer_.itemsize != 0) {
            refuse("has strides that are no multiple of its element's size");
        }
        strides_[d] = buffer_.strides[d] / buffer_.itemsize;
    }
}

void Lent::lend_by_dlpack(nb::handle array, Access access) {
    nb::ndarray<> writable;
    // An array that nothing can be assigned to is one whose memory others rely on, whatever its capsule says.
    if (access == Access::write &&
        (!nb::hasattr(array, "__setitem__") || !nb::try_cast(array, writable, /*convert*/ false))) {
        if (nb::try_cast(array, ndarray_, false)) {
            refuse("is read-only, but is to be written");
        }
    }
    if (!nb::try_cast(array, ndarray_, false)) {
        throw nb::type_error((std::string(name_) +
                              " must be an array (NumPy's, or any with __dlpack__), got " +
                              nb::type_name(array.type()).c_str())
                                 .c_str());
    }
    nb::dlpack::dltensor tensor;
    tensor.data = const_cast<void *>(ndarray_.data());
    tensor.device = {ndarray_.device_type(), ndarray_.device_id()};
    tensor.ndim = int32_t(ndarray_.ndim());
    tensor.dtype = ndarray_.dtype();
    tensor.shape = const_cast<int64_t *>(ndarray_.shape_ptr());
    tensor.strides = const_cast<int64_t *>(ndarray_.stride_ptr());
    tensor.byte_offset = 0;
    describe(tensor);
}

Lent::Lent(nb::handle array, const char *name, Access access) : name_(name) {
    if (array.is_none()) {
        return;
    }
    present_ = true;
    if (!lend_by_exchange(array) && !lend_by_buffer(array, access)) {
        lend_by_dlpack(array, access);
    }
}

LentTensor::LentTensor(nb::handle array, const char *name, Access access)
    : Lent(array, name, access) {
    if (!present_) {
        return;
    }
    if (ndim_ < 2) {
        throw nb::value_error(
            ("expected at least 2D input (got " + std::to_string(ndim_) + "D input)").c_str());
    }
    tensor_.data = data_;
    tensor_.dtype = dtype_;
    tensor_.device = device_;
    tensor_.ndim = 4;
}

void LentTensor::check_shape(const LentTensor &model) const {
    // Of four dimensions each, hbn.h's functions compare them, in their order of checks.
    if ((ndim_ == 4 && model.ndim_ == 4) ||
        (ndim_ == model.ndim_ && std::equal(sizes_, sizes_ + ndim_, model.sizes_))) {
        return;
    }
    const auto text = [](const LentTensor &t) {
        std::string sizes;
        for (int d = 0; d < t.ndim_; d++) {
            sizes += (d ? ", " : "") + std::to_string(t.sizes_[d]);
        }
        return sizes;
    };
    refuse("should have the shape of %s, [%s], not [%s]", model.name_, text(model).c_str(),
           text(*this).c_str());
}

void LentTensor::fold(std::initializer_list<LentTensor *> tensors) {
    const LentTensor *first = nullptr;
    for (const LentTensor *t : tensors) {
        if (t->present_) {
            first = first ? first : t;
            t->check_shape(*first);
        }
    }
    if (!first) {
        return;
    }
    int count = 0;
    for (int d = 2; d < first->ndim_; d++) {
        // Into the dimension before it, where the two are one run of memory in all tensors.
        const LentTensor *apart = nullptr;
        if (first->ndim_ > 4 && count > 0) {
            const int64_t before = first->tensor_.sizes[1 + count];
            for (const LentTensor *t : tensors) {
                if (t->present_ && t->sizes_[d] != 1 && before != 1 &&
                    t->tensor_.strides[1 + count] != t->sizes_[d] * t->strides_[d]) {
                    apart = t;
                }
            }
        }
        const bool starts = count == 0 || first->ndim_ <= 4 || apart;
        if (starts && count == 2) {
            apart->refuse(
                "has %d dimensions, which hbn can only take where all after the second are dense; "
                "copy it first",
                apart->ndim_);
        }
        count += starts;
        for (LentTensor *t : tensors) {
            if (!t->present_) {
                continue;
            }
            int64_t &size = t->tensor_.sizes[1 + count], &stride = t->tensor_.strides[1 + count];
            stride = starts || t->sizes_[d] != 1 ? t->strides_[d] : stride;
            size = starts ? t->sizes_[d] : size * t->sizes_[d];
        }
    }
    for (LentTensor *t : tensors) {
        if (!t->present_) {
            continue;
        }
        for (int d = 0; d < 2; d++) {
            t->tensor_.sizes[d] = t->sizes_[d];
            t->tensor_.strides[d] = t->strides_[d];
        }
        for (int d = 3; d >= 2; d--) {
            const int from = d - 2 + count;
            t->tensor_.sizes[d] = from >= 2 ? t->tensor_.sizes[from] : 1;
            t->tensor_.strides[d] = from >= 2 ? t->tensor_.strides[from] : 1;
        }
    }
}

LentVector::LentVector(nb::handle array, const char *name, Access access)
    : Lent(array, name, access) {
    if (!present_) {
        return;
    }
    if (dtype_ == HBN_INT64 && ndim_ == 0) {
        return;
    }
    if (ndim_ != 1) {
        refuse("should have one dimension, not %d", ndim_);
    }
    vector_ = {data_, dtype_, sizes_[0], strides_[0]};
}

double *LentVector::doubles(int64_t size) const {
    if (dtype_ != HBN_FLOAT64 || vector_.size != size || (size > 1 && vector_.stride != 1)) {
        refuse("should be a dense float64 array of %lld elements", (long long)size);
    }
    return static_cast<double *>(data_);
}

int64_t *LentVector::counter() const {
    if (present_ && (dtype_ != HBN_INT64 || ndim_ != 0)) {
        refuse("should be an int64 array without dimensions");
    }
    return static_cast<int64_t *>(data_);
}

LentStatistics::LentStatistics(nb::handle mean, nb::handle invstd, Access access)
    : Lent(mean, "mean", access) {
    if (!present_) {
        if (!invstd.is_none()) {
            throw nb::value_error("mean and invstd must either both be None or neither be None");
        }
        return;
    }
    if (ndim_ == 2 && sizes_[0] == 2 && invstd.is_none()) {
        mean_ = {data_, dtype_, sizes_[1], strides_[1]};
        invstd_ = mean_;
        invstd_.data = static_cast<char *>(data_) + strides_[0] * (dtype_ == HBN_FLOAT64 ? 8 : 4);
        return;
    }
    second_.emplace(invstd, "invstd", access);
    if (!second_->present()) {
        throw nb::value_error("mean and invstd must either both be None or neither be None");
    }
    if (ndim_ != 1) {
        refuse("should have one dimension, not %d", ndim_);
    }
    mean_ = {data_, dtype_, sizes_[0], strides_[0]};
    invstd_ = *static_cast<const hbn_vector *>(*second_);
}

}  // namespace hbn::python
