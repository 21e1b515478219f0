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
constexpr uint64_t kReadOnly = 1, kIsCopied = 2;

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

Exchange exchange_of(PyTypeObject *type) {
    // Types that were asked last. They are referred to, so that no other type gets their address.
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
    const Exchange made = {type, api, of_torch};
    // Last of all, since it may run Python, which may come back here.
    PyTypeObject *const forgotten = known[oldest].type;
    Py_INCREF(type);
    known[oldest] = made;
    oldest = (oldest + 1) % 4;
    Py_XDECREF(forgotten);
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
nb::object capsule_of(nb::handle array, Access access) {
    const nb::object method = nb::getattr(array, "__dlpack__");
    nb::dict arguments;
    arguments["max_version"] = nb::make_tuple(1, 1);
    if (access != Access::read) {
        arguments["copy"] = false;
    }
    // What is older than an argument refuses it.
    while (nb::len(arguments) > 0) {
        try {
            return method(**arguments);
        } catch (nb::python_error &e) {
            if (!e.matches(PyExc_TypeError)) {
                throw;
            }
        }
        nb::del(arguments[arguments.contains("copy") ? "copy" : "max_version"]);
    }
    return method();
}

// Whatever a str holds: lone surrogates have no UTF-8.
std::string utf8_of(nb::handle object) {
    const nb::object text = nb::steal(PyObject_Str(object.ptr()));
    const nb::object bytes =
        text ? nb::steal(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "backslashreplace"))
             : nb::object();
    if (!bytes) {
        PyErr_Clear();
        return "?";
    }
    return PyBytes_AS_STRING(bytes.ptr());
}

void raise_formatted(PyObject *type, const char *format, va_list arguments) {
    char text[512];
    std::vsnprintf(text, sizeof(text), format, arguments);
    // It may have been cut within a character.
    PyObject *const decoded = PyUnicode_DecodeUTF8(text, Py_ssize_t(std::strlen(text)), "ignore");
    if (decoded) {
        PyErr_SetObject(type, decoded);
        Py_DECREF(decoded);
    }
}

// NumPy's own class, none that is derived from it.
bool is_plain_numpy(nb::handle array) {
    return std::strcmp(Py_TYPE(array.ptr())->tp_name, "numpy.ndarray") == 0;
}

// Whether it is NumPy's, of any class.
bool is_numpy(nb::handle array) {
    return is_plain_numpy(array) || nb::hasattr(array, "__array_interface__");
}

// Of a class of a module; where no one has imported it, there are none.
bool is_a(nb::handle array, const char *class_name, const char *module_name) {
    const nb::object module = nb::steal(PyImport_GetModule(nb::str(module_name).ptr()));
    const nb::object type =
        module ? nb::getattr(module, class_name, nb::none()) : nb::object(nb::none());
    return !type.is_none() && nb::isinstance(array, type);
}

// What can't be assigned to is memory that others rely on, whatever DLPack says of it: some of its exporters, JAX among
// them, know no flag for that.
bool is_immutable(nb::handle array) {
    return !nb::hasattr(array, "__setitem__") || is_a(array, "Array", "jax");
}

// ---- names of what hbn can't take, for errors

// Of a buffer's elements, in NumPy's words where there are any.
std::string name_of_format(const char *format, Py_ssize_t itemsize) {
    const char *kind = format + (*format && std::strchr("@=<>!", *format));
    const char *const order = *format == '>' || *format == '!' ? "big-endian " : "";
    const std::string bits = std::to_string(itemsize * 8);
    if (*kind && !kind[1]) {
        if (std::strchr("bhilq", *kind)) {
            return order + ("int" + bits);
        } else if (std::strchr("BHILQ", *kind)) {
            return order + ("uint" + bits);
        } else if (std::strchr("efdg", *kind)) {
            return order + ("float" + bits);
        } else if (*kind == '?') {
            return "bool";
        } else if (*kind == 'O') {
            return "object";
        }
    } else if (*kind == 'Z' && kind[1] && std::strchr("fdg", kind[1]) && !kind[2]) {
        return order + ("complex" + bits);
    }
    return std::string("buffer format '") + format + "'";
}

// In the words of the DLPack specification, kDLInt and so on.
std::string name_of_dlpack_dtype(const DLTensor &tensor) {
    constexpr const char *kinds[] = {"int", "uint", "float", "opaque ", "bfloat", "complex"};
    constexpr const char *names[] = {
        "bool",           "float8_e3m4",     "float8_e4m3",   "float8_e4m3b11fnuz",
        "float8_e4m3fn",  "float8_e4m3fnuz", "float8_e5m2",   "float8_e5m2fnuz",
        "float8_e8m0fnu", "float6_e2m3fn",   "float6_e3m2fn", "float4_e2m1fn"};
    const size_t code = tensor.dtype.code;
    const std::string bits = std::to_string(tensor.dtype.bits);
    std::string name = "DLPack's dtype " + std::to_string(code) + " of " + bits + " bits";
    if (code < std::size(kinds)) {
        name = kinds[code] + bits;
    } else if (code - std::size(kinds) < std::size(names)) {
        name = names[code - std::size(kinds)];
    }
    return tensor.dtype.lanes == 1
               ? name
               : "vectors of " + std::to_string(tensor.dtype.lanes) + " " + name;
}

std::string name_of_dlpack_device(int32_t type) {
    constexpr const char *names[] = {"",       "cpu",       "cuda",   "cuda_host",    "opencl",
                                     "",       "",          "vulkan", "metal",        "vpi",
                                     "rocm",   "rocm_host", "extdev", "cuda_managed", "oneapi",
                                     "webgpu", "hexagon",   "maia"};
    return type > 0 && size_t(type) < std::size(names) && *names[type] ? names[type]
                                                                       : std::to_string(type);
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

// By what the array raised instead of lending its memory.
void Lent::refuse_failed_export(nb::python_error failure) const {
    if (!failure.matches(PyExc_Exception) || failure.matches(PyExc_MemoryError)) {
        throw failure;
    }
    // PyTorch's texts end with where they come from, in lines of their own.
    std::string text = utf8_of(failure.value());
    text.resize(std::min(text.size(), text.find('\n')));
    raise(PyExc_BufferError, "%s can't be lent: %s", name_, text.c_str());
}

void Lent::refuse_dtype(const std::string &dtype) const {
    const char *const known = holds_ == Holds::mask      ? "uint8"
                              : holds_ == Holds::counter ? "int64"
                                                         : "float32, float64, bfloat16 or float16";
    raise(PyExc_TypeError, "%s must be %s, got %s", name_, known, dtype.c_str());
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
    constexpr uint8_t kInt = 0, kFloat = 2, kBool = 6;
    const auto &dtype = tensor.dtype;
    if (dtype.code == kBool && holds_ != Holds::mask) {
        refuse_dtype(name_of_dlpack_dtype(tensor));
    }
    if (!any_known || std::memcmp(&dtype, &known.dtype, sizeof(known.dtype)) != 0 ||
        tensor.device.device_type != known.device.device_type) {
        // Of its dtype and device alone: its shape may have more dimensions than from_dlpack takes, which is for tensors,
        // of which counters are none.
        DLTensor scalar{};
        scalar.dtype = dtype;
        scalar.device = {1, 0};
        const bool is_int64 = dtype.code == kInt && dtype.bits == 64 && dtype.lanes == 1;
        if (is_int64) {
            scalar.dtype = {kFloat, 64, 1};
        }
        hbn_dtype dtype_found;
        try {
            dtype_found = is_int64 ? HBN_INT64 : hbn_dtype(from_dlpack(scalar).dtype);
        } catch (const std::exception &) {
            refuse_dtype(name_of_dlpack_dtype(tensor));
        }
        scalar.device = tensor.device;
        try {
            known_device = hbn_device(from_dlpack(scalar).device);
        } catch (const std::exception &) {
            raise(PyExc_TypeError, "%s is in the memory of device '%s', which hbn does not know",
                  name_, name_of_dlpack_device(tensor.device.device_type).c_str());
        }
        // Once nothing can fail, so that they fit together.
        known_dtype = dtype_found;
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
    // A copy: other threads may ask for other types while this one's calls into PyTorch let them run.
    const Exchange exchange = exchange_of(Py_TYPE(array.ptr()));
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

// Whether strides are those of a view of the real or imaginary parts of complex numbers. Such views are what users have
// with PyTorch's negative bit; as_strided() to an odd stride and torch._neg_view() make others, which are not noticed. To ask
// every tensor would take as long as all else that is done for it here.
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
        nb::python_error failure;
        if (exchange_of(Py_TYPE(array.ptr())).torch_type == TorchType::plain &&
            is_transformed(array)) {
            refuse(
                "is transformed by torch.func, which functions of hbn do not see: use hbn.torch");
        }
        refuse_failed_export(failure);
    }
    describe(tensor);
}

// False where the array, or its dtype, is better lent by DLPack.
bool Lent::lend_by_buffer(nb::handle array, Access access) {
    if (!PyObject_CheckBuffer(array.ptr())) {
        return false;
    }
    const bool has_dlpack = !is_numpy(array) && nb::hasattr(array, "__dlpack__");
    // Only DLPack says whether what it lends is a copy, in which what is written would be lost.
    if (access != Access::read && has_dlpack) {
        return false;
    }
    if (get_buffer(array, access)) {
        const char *const format = held_.buffer.format ? held_.buffer.format : "B";
        const Py_ssize_t itemsize = held_.buffer.itemsize;
        const bool is_known = find_type(format, itemsize);
        // Such as MLX's bfloat16, which some of its versions call "B".
        if (has_dlpack && (!is_known || itemsize != element_size(dtype_))) {
            PyBuffer_Release(&held_.buffer);
            return false;
        }
        if (!is_known) {
            refuse_dtype(name_of_format(format, itemsize));
        }
    } else if (has_dlpack) {
        PyErr_Clear();
        return false;
    } else {
        get_buffer_of_extension_dtype(array, access);
    }
    describe_buffer();
    if (access != Access::read && held_.buffer.readonly) {
        refuse("is read-only, but is to be written");
    }
    return true;
}

// False, with a Python exception, where there is none.
bool Lent::get_buffer(nb::handle array, Access access) {
    if (access != Access::read &&
        PyObject_GetBuffer(array.ptr(), &held_.buffer, PyBUF_STRIDED | PyBUF_FORMAT) == 0) {
        return true;
    }
    // Read-only ones are refused later, by name.
    PyErr_Clear();
    if (PyObject_GetBuffer(array.ptr(), &held_.buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT) != 0) {
        held_.buffer.obj = nullptr;
        return false;
    }
    held_.buffer.readonly |= access != Access::read;
    return true;
}

// NumPy has no bfloat16 of its own, and no buffer of ml_dtypes'; nor one of a type that it can't name. With the exception
// that said so.
void Lent::get_buffer_of_extension_dtype(nb::handle array, Access access) {
    nb::python_error failure;
    if (!failure.matches(PyExc_ValueError) || !is_numpy(array) || !nb::hasattr(array, "dtype")) {
        refuse_failed_export(failure);
    }
    const std::string dtype = utf8_of(array.attr("dtype"));
    if (dtype != "bfloat16") {
        refuse_dtype(dtype);
    }
    if (!get_buffer(array.attr("view")("uint16"), access)) {
        throw nb::python_error();
    }
    dtype_ = HBN_BFLOAT16;
}

// False for what hbn doesn't know.
bool Lent::find_type(const char *format, Py_ssize_t itemsize) {
    constexpr char native = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>';
    if (*format == '@' || *format == '=' || *format == native) {
        format++;
    }
    const char kind = format[0] && !format[1] ? format[0] : 0;
    if (kind == 'f') {
        dtype_ = HBN_FLOAT32;
    } else if (kind == 'd') {
        dtype_ = HBN_FLOAT64;
    } else if (kind == 'e') {
        dtype_ = HBN_FLOAT16;
    } else if (kind == 'B' || (kind == '?' && holds_ == Holds::mask)) {
        dtype_ = HBN_UINT8;
    } else if ((kind == 'l' || kind == 'q') && itemsize == 8) {
        dtype_ = HBN_INT64;
    } else {
        return false;
    }
    return true;
}

void Lent::describe_buffer() {
    const Py_buffer &buffer = held_.buffer;
    const char *const format = buffer.format ? buffer.format : "B";
    const Py_ssize_t bytes = element_size(dtype_);
    if (buffer.itemsize != bytes) {
        raise(PyExc_TypeError, "%s has elements of %zd bytes, but buffer format '%s' is of %zd",
              name_, buffer.itemsize, format, bytes);
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
        const std::string type = utf8_of(nb::type_name(array.type()));
        // multiprocessing.Array and Value, which lock what lends memory.
        raise(PyExc_TypeError,
              "%s must be an array (NumPy's, or any with __dlpack__ or a buffer), got %s%s", name_,
              type.c_str(),
              nb::hasattr(array, "get_obj") ? ": give what its get_obj() returns" : "");
    }
    nb::object capsule;
    try {
        capsule = capsule_of(array, access);
    } catch (nb::python_error &e) {
        refuse_failed_export(e);
    }
    uint64_t flags = 0;
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
        flags = m.flags;
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
    if (access != Access::read && (flags & kReadOnly || is_immutable(array))) {
        refuse("is read-only, but is to be written");
    }
    if (access != Access::read && flags & kIsCopied) {
        refuse("lends a copy, but is to be written");
    }
}

Lent::Lent(nb::handle array, const char *name, Access access, Holds holds)
    : name_(name), access_(access), holds_(holds) {
    if (lend_by_exchange(array, access)) {
        return;
    }
    if (!is_plain_numpy(array) && is_a(array, "MaskedArray", "numpy.ma")) {
        raise(PyExc_TypeError,
              "%s is a masked array, of which hbn would not see the mask: fill it first, or give "
              "its data",
              name_);
    }
    if (!lend_by_buffer(array, access)) {
        lend_by_dlpack(array, access);
    }
}

Lent::~Lent() = default;

nb::tuple Lent::described() const {
    const auto tuple_of = [this](const int64_t *values) {
        nb::list list;
        for (int d = 0; d < ndim_; d++) {
            list.append(values[d]);
        }
        return nb::tuple(list);
    };
    return nb::make_tuple(tuple_of(sizes_), tuple_of(strides_), internal::dtype_name(dtype_));
}

void Lent::check_requires_no_grad() const {
    if (torch_tensor_ && requires_grad(torch_tensor_)) {
        refuse(
            "requires grad, which functions of hbn do not record: use hbn.torch, or detach() it "
            "first");
    }
}

PyObject *Lent::updated_torch_tensor() const {
    return access_ == Access::update && torch_tensor_ && !is_view(torch_tensor_) ? torch_tensor_
                                                                                 : nullptr;
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
        if (&t == *tensors && t.ndim_ < 2) {
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
