#include "arrays.h"

#include "torch_tensor.h"

#include "runtime/checks.h"

#include <hbn/tensor_view.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>

namespace hbn::python {

using internal::element_size;

// ---- the DLPack specification's structures, version 1

struct DLTensor {
    void *data;
    struct {
        int32_t device_type, device_id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

namespace {

// In a capsule named "dltensor".
struct DLManagedTensor {
    DLTensor tensor;
    void *context;
    void (*deleter)(DLManagedTensor *);
};

// In a capsule named "dltensor_versioned".
struct DLManagedTensorVersioned {
    uint32_t major, minor;
    void *context;
    void (*deleter)(DLManagedTensorVersioned *);
    uint64_t flags;
    DLTensor tensor;
};
constexpr uint64_t kReadOnly = 1;

}  // namespace

// A type's table of functions, in a capsule named "dlpack_exchange_api", its attribute __dlpack_c_exchange_api__.
// PyTorch has it since 2.10.
struct DLPackExchangeAPI {
    uint32_t major, minor;
    DLPackExchangeAPI *previous;
    void *managed_tensor_allocator;
    void *managed_tensor_from_py_object;
    void *managed_tensor_to_py_object;
    int (*dltensor_from_py_object)(void *py_object, DLTensor *tensor);
    void *current_work_stream;
};

namespace {

struct Exchange {
    PyTypeObject *type = nullptr;
    const DLPackExchangeAPI *api = nullptr;  // null where the type has none
    TorchType torch_type = TorchType::none;
};

const Exchange &exchange_of(PyTypeObject *type) {
    // Types that were asked last; the reference keeps a type's address its own.
    static Exchange known[4];
    static int oldest = 0;
    for (const Exchange &each : known) {
        if (each.type == type) {
            return each;
        }
    }
    const DLPackExchangeAPI *api = nullptr;
    PyObject *capsule =
        PyObject_GetAttrString(reinterpret_cast<PyObject *>(type), "__dlpack_c_exchange_api__");
    if (capsule && PyCapsule_CheckExact(capsule)) {
        api =
            static_cast<DLPackExchangeAPI *>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
        while (api && (api->major != 1 || !api->dltensor_from_py_object)) {
            api = api->previous;
        }
    }
    PyErr_Clear();
    Py_XDECREF(capsule);
    const TorchType of_torch = torch_type(type);
    Exchange &made = known[oldest];
    Py_XDECREF(made.type);
    Py_INCREF(type);
    made = {type, api, of_torch};
    oldest = (oldest + 1) % 4;
    return made;
}

template<typename Managed>
void delete_managed(void *managed) {
    Managed *const tensor = static_cast<Managed *>(managed);
    if (tensor->deleter) {
        // It may call Python, which must not see an exception that is on its way.
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        tensor->deleter(tensor);
        PyErr_Restore(type, value, traceback);
    }
}

// The array's capsule, of this version of DLPack or of the one before it.
nb::object capsule_of(nb::handle array) {
    nb::object method = nb::getattr(array, "__dlpack__");
    try {
        return method(nb::arg("max_version") = nb::make_tuple(1, 1));
    } catch (nb::python_error &e) {
        // What is older than versions.
        if (!e.matches(PyExc_TypeError)) {
            throw;
        }
    }
    return method();
}

void raise_formatted(PyObject *type, const char *format, va_list arguments) {
    char text[512];
    std::vsnprintf(text, sizeof(text), format, arguments);
    PyErr_SetString(type, text);
}

}  // namespace

void raise(PyObject *type, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    raise_formatted(type, format, arguments);
    va_end(arguments);
    throw nb::python_error();
}

void Lent::refuse(const char *format, ...) const {
    const std::string text = std::string(name_) + " " + format;
    va_list arguments;
    va_start(arguments, format);
    raise_formatted(PyExc_ValueError, text.c_str(), arguments);
    va_end(arguments);
    throw nb::python_error();
}

// Within a handler of what an array raised instead of lending its memory: the same, naming the argument.
void Lent::refuse_failed_export() const {
    try {
        throw;
    } catch (nb::python_error &e) {
        for (PyObject *type : {PyExc_BufferError, PyExc_TypeError, PyExc_ValueError,
                               PyExc_RuntimeError, PyExc_AttributeError}) {
            if (e.matches(type)) {
                // PyTorch's texts end with where they come from, in lines of their own.
                std::string text = nb::str(e.value()).c_str();
                text.resize(std::min(text.size(), text.find('\n')));
                raise(PyExc_BufferError, "%s can't be lent: %s", name_, text.c_str());
            }
        }
        throw;
    }
}

// ---- what is lent

void Lent::set_dimensions(int ndim, const int64_t *sizes) {
    if (ndim < 0) {
        refuse("has a negative number of dimensions (%d)", ndim);
    }
    if (ndim > kMostDimensions) {
        refuse("has %d dimensions, more than %d", ndim, kMostDimensions);
    }
    if (ndim > 0 && !sizes) {
        refuse("has %d dimensions without sizes", ndim);
    }
    ndim_ = ndim;
    std::copy(sizes, sizes + ndim, sizes_);
    check_sizes();
}

// That their product does not overflow, even without those that are 0.
void Lent::check_sizes() {
    int64_t product = 1;
    bool overflows = false;
    for (int d = 0; d < ndim_; d++) {
        if (sizes_[d] < 0) {
            std::string sizes;
            for (int i = 0; i < ndim_; i++) {
                sizes += (i ? ", " : "") + std::to_string(sizes_[i]);
            }
            refuse("has a negative size: [%s]", sizes.c_str());
        }
        elements_ = sizes_[d] == 0 ? 0 : elements_;
        overflows |= __builtin_mul_overflow(product, std::max<int64_t>(sizes_[d], 1), &product);
    }
    if (overflows || product > INT64_MAX / 64) {
        refuse("is too large: its size overflows 64 bits");
    }
    elements_ = elements_ ? product : 0;
}

void Lent::set_dense_strides() {
    int64_t stride = 1;
    for (int d = ndim_ - 1; d >= 0; d--) {
        strides_[d] = stride;
        stride *= std::max<int64_t>(sizes_[d], 1);
    }
}

// Once all is known: no strides that lead beyond memory that there can be.
void Lent::check_memory() {
    if (elements_ == 0) {
        std::fill(strides_, strides_ + ndim_, 0);
        return;
    }
    constexpr int64_t limit = INT64_MAX / 64;
    int64_t reach = 0;
    for (int d = 0; d < ndim_; d++) {
        if (sizes_[d] == 1) {
            // It leads nowhere, and may be anything.
            strides_[d] = std::clamp(strides_[d], -limit, limit);
            continue;
        }
        int64_t last;
        if (__builtin_mul_overflow(sizes_[d] - 1, strides_[d], &last) || last < -limit ||
            last > limit || (reach += last < 0 ? -last : last) > limit) {
            refuse("is too large: its size overflows 64 bits");
        }
    }
    uintptr_t end;
    if (__builtin_add_overflow(reinterpret_cast<uintptr_t>(data_),
                               uintptr_t(reach + 1) * uintptr_t(element_size(dtype_)), &end)) {
        refuse("is too large: its size overflows 64 bits");
    }
}

void Lent::find_type(const DLTensor &tensor) {
    // What was found last: most arrays of a call are of one dtype.
    static bool any_known = false;
    static DLTensor known;
    static hbn_dtype known_dtype;
    static hbn_device known_device;
    if (!any_known || std::memcmp(&tensor.dtype, &known.dtype, sizeof(known.dtype)) != 0 ||
        tensor.device.device_type != known.device.device_type) {
        // Of its dtype and device alone: its shape may have more dimensions than from_dlpack takes, which is for tensors,
        // of which counters are none.
        DLTensor scalar{};
        scalar.dtype = tensor.dtype;
        scalar.device = tensor.device;
        const bool is_int64 =
            tensor.dtype.code == 0 && tensor.dtype.bits == 64 && tensor.dtype.lanes == 1;
        if (is_int64) {
            scalar.dtype = {2, 64, 1};
        }
        try {
            const TensorView view = from_dlpack(scalar);
            known_dtype = is_int64 ? HBN_INT64 : hbn_dtype(view.dtype);
            known_device = hbn_device(view.device);
        } catch (const std::exception &e) {
            raise(PyExc_TypeError, "%s: %s", name_, e.what());
        }
        known = tensor;
        any_known = true;
    }
    dtype_ = known_dtype;
    device_ = known_device;
}

void Lent::describe(const DLTensor &tensor) {
    find_type(tensor);
    set_dimensions(tensor.ndim, tensor.shape);
    if (tensor.strides) {
        std::copy(tensor.strides, tensor.strides + ndim_, strides_);
    } else {
        set_dense_strides();
    }
    uintptr_t address = reinterpret_cast<uintptr_t>(tensor.data);
    if (address && __builtin_add_overflow(address, tensor.byte_offset, &address)) {
        refuse("has a byte offset beyond all memory");
    }
    data_ = reinterpret_cast<void *>(address);
    check_memory();
}

bool Lent::lend_by_exchange(nb::handle array, Access access) {
    const Exchange &exchange = exchange_of(Py_TYPE(array.ptr()));
    if (exchange.torch_type == TorchType::dispatching) {
        raise(PyExc_BufferError,
              "%s can't be lent: %s has a __torch_dispatch__, which hbn does not call", name_,
              exchange.type->tp_name);
    }
    if (!exchange.api) {
        return false;
    }
    describe_exchanged(*exchange.api, array);
    if (exchange.torch_type == TorchType::none) {
        return true;
    }
    torch_tensor_ = array.ptr();
    if (has_strides_of_complex_parts() && is_negative(array)) {
        if (access != Access::read) {
            refuse("has PyTorch's negative bit, but is to be written: resolve_neg() it first");
        }
        held_.replacement = resolve_negative(array);
    } else if (!data_ && elements_ > 0) {
        held_.replacement = zeros_with_memory(array);
        if (!held_.replacement.is_valid() || access != Access::read) {
            raise(PyExc_BufferError, "%s can't be lent: it has no memory", name_);
        }
    } else {
        return true;
    }
    describe_exchanged(*exchange.api, held_.replacement);
    return true;
}

// Whether no stride rules out a view of the real or imaginary parts of complex numbers, which alone have PyTorch's
// negative bit. To ask every tensor for it would take as long as all else that is done for it here.
bool Lent::has_strides_of_complex_parts() const {
    for (int d = 0; d < ndim_; d++) {
        if (sizes_[d] > 1 && strides_[d] % 2 != 0) {
            return false;
        }
    }
    return true;
}

void Lent::describe_exchanged(const DLPackExchangeAPI &api, nb::handle array) {
    DLTensor tensor;
    if (api.dltensor_from_py_object(array.ptr(), &tensor) != 0) {
        try {
            throw nb::python_error();
        } catch (nb::python_error &) {
            refuse_failed_export();
        }
    }
    describe(tensor);
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
    if (PyObject_GetBuffer(owner.ptr(), &held_.buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT) != 0) {
        if (!PyErr_ExceptionMatches(PyExc_ValueError)) {
            try {
                throw nb::python_error();
            } catch (nb::python_error &) {
                refuse_failed_export();
            }
        }
        PyErr_Clear();
        raise(PyExc_TypeError, "%s has a dtype that hbn does not know", name_);
    }
    describe_buffer(is_bfloat16);
    if (access != Access::read && held_.buffer.readonly) {
        refuse("is read-only, but is to be written");
    }
    return true;
}

void Lent::describe_buffer(bool is_bfloat16) {
    const Py_buffer &buffer = held_.buffer;
    const char *const given = buffer.format ? buffer.format : "B";
    const char *format = given;
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
    } else if ((kind == 'l' || kind == 'q') && buffer.itemsize == 8) {
        dtype_ = HBN_INT64;
    } else {
        raise(PyExc_TypeError,
              "%s must be float32, float64, bfloat16 or float16, got buffer format '%s'", name_,
              given);
    }
    const Py_ssize_t bytes = element_size(dtype_);
    if (buffer.itemsize != bytes) {
        raise(PyExc_TypeError, "%s has elements of %zd bytes, but buffer format '%s' is of %zd",
              name_, buffer.itemsize, given, bytes);
    }
    set_dimensions(buffer.ndim, buffer.shape);
    if (buffer.len != elements_ * bytes) {
        refuse("lends a buffer of %zd bytes, but its sizes make %lld", buffer.len,
               (long long)(elements_ * bytes));
    }
    // Exporters must give strides where they are asked for; ctypes does not.
    set_dense_strides();
    for (int d = 0; d < ndim_; d++) {
        if (buffer.suboffsets && buffer.suboffsets[d] >= 0) {
            refuse("is an array of pointers, which hbn does not follow");
        }
        if (buffer.strides && buffer.strides[d] % bytes == 0) {
            strides_[d] = buffer.strides[d] / bytes;
        } else if (buffer.strides && sizes_[d] > 1) {
            refuse("has strides that are no multiple of its element's size");
        }
    }
    data_ = buffer.buf;
    check_memory();
}

void Lent::lend_by_dlpack(nb::handle array, Access access) {
    if (!nb::hasattr(array, "__dlpack__")) {
        const std::string type = nb::type_name(array.type()).c_str();
        raise(PyExc_TypeError, "%s must be an array (NumPy's, or any with __dlpack__), got %s",
              name_, type.c_str());
    }
    nb::object capsule;
    try {
        capsule = capsule_of(array);
    } catch (nb::python_error &) {
        refuse_failed_export();
    }
    bool read_only = false;
    const DLTensor *tensor = nullptr;
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
        void *managed = PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned");
        const auto &m = *static_cast<DLManagedTensorVersioned *>(managed);
        // Its deleter is where it is in every version; nothing else is.
        held_.delete_managed_tensor = delete_managed<DLManagedTensorVersioned>;
        held_.managed_tensor = managed;
        PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
        if (m.major != 1) {
            raise(PyExc_BufferError, "%s is lent by DLPack %u.%u, hbn knows versions 0 and 1",
                  name_, unsigned(m.major), unsigned(m.minor));
        }
        read_only = m.flags & kReadOnly;
        tensor = &m.tensor;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        void *managed = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
        held_.delete_managed_tensor = delete_managed<DLManagedTensor>;
        held_.managed_tensor = managed;
        PyCapsule_SetName(capsule.ptr(), "used_dltensor");
        tensor = &static_cast<DLManagedTensor *>(managed)->tensor;
    } else {
        raise(PyExc_BufferError, "%s has a __dlpack__ that gives no DLPack capsule", name_);
    }
    describe(*tensor);
    // An array that nothing can be assigned to is one whose memory others rely on, whatever its capsule says.
    if (access != Access::read && (read_only || !nb::hasattr(array, "__setitem__"))) {
        refuse("is read-only, but is to be written");
    }
}

Lent::Lent(nb::handle array, const char *name, Access access) : name_(name), access_(access) {
    if (!lend_by_exchange(array, access) && !lend_by_buffer(array, access)) {
        lend_by_dlpack(array, access);
    }
}

Lent::~Lent() = default;

void Lent::check_requires_no_grad() const {
    if (torch_tensor_ && requires_grad(torch_tensor_)) {
        refuse(
            "requires grad, which functions of hbn do not record: use hbn.torch, or detach() it "
            "first");
    }
}

// ---- tensors

void Lent::check_shape(const Lent &model) const {
    // Of four dimensions each, hbn.h's functions compare them, in their order of checks.
    if ((ndim_ == 4 && model.ndim_ == 4) ||
        (ndim_ == model.ndim_ && std::equal(sizes_, sizes_ + ndim_, model.sizes_))) {
        return;
    }
    const auto text = [](const Lent &t) {
        std::string sizes;
        for (int d = 0; d < t.ndim_; d++) {
            sizes += (d ? ", " : "") + std::to_string(t.sizes_[d]);
        }
        return sizes;
    };
    refuse("should have the shape of %s, [%s], not [%s]", model.name_, text(model).c_str(),
           text(*this).c_str());
}

void Lent::fold(Lent *const *tensors, int size) {
    Lent *const *const end = tensors + size;
    for (Lent *const *each = tensors; each != end; each++) {
        Lent &t = **each;
        if (t.ndim_ < 2) {
            raise(PyExc_ValueError, "expected at least 2D input (got %dD input)", t.ndim_);
        }
        t.check_shape(**tensors);
        t.tensor_ = {t.data_, t.dtype_, t.device_, 4, {}, {}};
    }
    if (size == 0) {
        return;
    }
    const Lent &first = **tensors;
    int count = 0;
    for (int d = 2; d < first.ndim_; d++) {
        // Into the dimension before it, where the two are one run of memory in all tensors.
        const Lent *apart = nullptr;
        if (first.ndim_ > 4 && count > 0) {
            const int64_t before = first.tensor_.sizes[1 + count];
            for (Lent *const *each = tensors; each != end; each++) {
                const Lent &t = **each;
                if (t.sizes_[d] != 1 && before != 1 &&
                    t.tensor_.strides[1 + count] != t.sizes_[d] * t.strides_[d]) {
                    apart = &t;
                }
            }
        }
        const bool starts = count == 0 || first.ndim_ <= 4 || apart;
        if (starts && count == 2) {
            apart->refuse(
                "has %d dimensions, which hbn can only take where all after the second are dense; "
                "copy it first",
                apart->ndim_);
        }
        count += starts;
        for (Lent *const *each = tensors; each != end; each++) {
            Lent &t = **each;
            int64_t &size = t.tensor_.sizes[1 + count], &stride = t.tensor_.strides[1 + count];
            stride = starts || t.sizes_[d] != 1 ? t.strides_[d] : stride;
            size = starts ? t.sizes_[d] : size * t.sizes_[d];
        }
    }
    for (Lent *const *each = tensors; each != end; each++) {
        Lent &t = **each;
        for (int d = 0; d < 2; d++) {
            t.tensor_.sizes[d] = t.sizes_[d];
            t.tensor_.strides[d] = t.strides_[d];
        }
        for (int d = 3; d >= 2; d--) {
            const int from = d - 2 + count;
            t.tensor_.sizes[d] = from >= 2 ? t.tensor_.sizes[from] : 1;
            t.tensor_.strides[d] = from >= 2 ? t.tensor_.strides[from] : 1;
        }
    }
}

// ---- vectors

const hbn_vector *Lent::vector() {
    // In the one dimension that has a size, as (C,) and (1, C, 1, 1) have it.
    int channels = ndim_ - 1;
    for (int d = 0, found = 0; d < ndim_; d++) {
        if (sizes_[d] != 1) {
            channels = d;
            found++;
        }
        if (found > 1) {
            channels = -1;
            break;
        }
    }
    if (channels < 0) {
        refuse("should have one dimension beside those of size 1, not %d", ndim_);
    }
    vectors_[0] = {data_, dtype_, sizes_[channels], strides_[channels], device_};
    return &vectors_[0];
}

const hbn_vector *Lent::row(int i) {
    char *const begin = static_cast<char *>(data_) + i * strides_[0] * element_size(dtype_);
    vectors_[i] = {begin, dtype_, sizes_[1], strides_[1], device_};
    return &vectors_[i];
}

// hbn.h's functions take none, and check none.
int64_t *Lent::counter() const {
    if (dtype_ != HBN_INT64 || elements_ != 1) {
        refuse("should be one int64");
    }
    if (device_ != HBN_CPU) {
        refuse("should be in the memory of the CPU, not of device '%s'",
               internal::device_name(device_));
    }
    if (!data_) {
        refuse("has no data");
    }
    if (reinterpret_cast<uintptr_t>(data_) % sizeof(int64_t) != 0) {
        refuse("is not aligned: int64 data must be at an address that is a multiple of 8");
    }
    return static_cast<int64_t *>(data_);
}

}  // namespace hbn::python
