/// @file tensor_view.h
/// Non-owning views of the caller's memory, and the two owning containers hbn returns.
#ifndef HBN_TENSOR_VIEW_H
#define HBN_TENSOR_VIEW_H

#include <hbn/error.h>
#include <hbn/hbn.h>
#include <hbn/version.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

/// Batch normalization in C++.
namespace hbn {

/// The type of each element.
enum class DType {
    float32 = HBN_FLOAT32,    ///< float
    float64 = HBN_FLOAT64,    ///< double
    bfloat16 = HBN_BFLOAT16,  ///< the upper half of a float32
    float16 = HBN_FLOAT16,    ///< IEEE 754 binary16
    int64 = HBN_INT64,        ///< num_batches_tracked only
    uint8 = HBN_UINT8,        ///< masks only
};

/// Whose memory a tensor is in.
enum class Device {
    cpu = HBN_CPU,        ///< the host's; what a library with GPU kernels is given, too
    opencl = HBN_OPENCL,  ///< not supported yet: UnsupportedError
    cuda = HBN_CUDA,      ///< not supported yet: UnsupportedError
};

/// The order of a dense tensor's dimensions, as torch.memory_format.
enum class MemoryFormat {
    contiguous,     ///< NCHW
    channels_last,  ///< NHWC
};

/// N, C, H, W.
using Shape = std::array<int64_t, 4>;

/// What headers share among themselves; not for users.
namespace internal {

/// Enables a conversion of what is written to what is only read.
template<typename Void, typename Other>
using EnableIfConstOf =
    std::enable_if_t<std::is_const_v<Void> && std::is_same_v<Void, const Other>>;

/// Of sizes and strides, which a caller may have made up: INT64_MAX where the product is larger, which every operation
/// refuses, and 0 where a factor is negative.
inline int64_t saturating_product(int64_t a, int64_t b) {
    if (a <= 0 || b <= 0) {
        return 0;
    }
#ifdef __GNUC__
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
#else
    return a > INT64_MAX / b ? INT64_MAX : a * b;
#endif
}

}  // namespace internal

/// @param dtype  any
/// @return the bytes of one element
std::size_t size_of(DType dtype);

/// @param dtype  any
/// @return PyTorch's name: "float32", "bfloat16", ...
const char *name_of(DType dtype);

/// Strides of a dense tensor.
/// @param sizes   N, C, H, W
/// @param format  the order of dimensions
/// @return strides in elements, in the order N, C, H, W
Shape dense_strides(const Shape &sizes, MemoryFormat format = MemoryFormat::contiguous);

/// A (N, C, H, W) tensor in memory somebody else owns. Copying copies the view, not the data.
/// @tparam Void  void, or const void for a tensor that is only read
template<typename Void>
struct BasicTensorView {
    Void *data = nullptr;          ///< of element (0, 0, 0, 0)
    DType dtype = DType::float32;  ///< of each element
    Device device = Device::cpu;   ///< where data points to
    Shape sizes{};                 ///< N, C, H, W
    Shape strides{};  ///< in elements, same order; zero for expanded dimensions, never negative
    int ndim = 4;     ///< what the source had; anything but 4 is refused by every operation

    /// Of no elements.
    BasicTensorView() = default;
    /// Of any layout.
    /// @param data, dtype, sizes, strides, device  the members of these names
    BasicTensorView(Void *data, DType dtype, const Shape &sizes, const Shape &strides,
                    Device device = Device::cpu)
        : data(data), dtype(dtype), device(device), sizes(sizes), strides(strides) {
    }
    /// Dense.
    /// @param data, dtype, sizes, device  the members of these names
    /// @param format  gives the strides
    BasicTensorView(Void *data, DType dtype, const Shape &sizes,
                    MemoryFormat format = MemoryFormat::contiguous, Device device = Device::cpu)
        : BasicTensorView(data, dtype, sizes, dense_strides(sizes, format), device) {
    }
    /// A TensorView as a ConstTensorView.
    /// @tparam Other  void, where Void is const void
    /// @param other  of the same memory
    template<typename Other, typename = internal::EnableIfConstOf<Void, Other>>
    BasicTensorView(const BasicTensorView<Other> &other)
        : data(other.data),
          dtype(other.dtype),
          device(other.device),
          sizes(other.sizes),
          strides(other.strides),
          ndim(other.ndim) {
    }

    /// @return N * C * H * W; 0 where a size is negative, the largest number where that overflows
    int64_t num_elements() const {
        int64_t elements = 1;
        for (const int64_t size : sizes) {
            elements = internal::saturating_product(elements, size);
        }
        return elements;
    }
};
/// What operations write to.
using TensorView = BasicTensorView<void>;
/// What operations read. TensorView and Tensor convert to it.
using ConstTensorView = BasicTensorView<const void>;

/// One value per channel (or any 1-D state) in memory somebody else owns. data == nullptr means
/// absent.
/// @tparam Void  void, or const void for a vector that is only read
template<typename Void>
struct BasicVectorView {
    Void *data = nullptr;          ///< of value 0
    DType dtype = DType::float32;  ///< of each value
    int64_t size = 0;              ///< the number of values
    int64_t stride = 1;            ///< in elements
    Device device = Device::cpu;   ///< where data points to; any other is refused

    /// Absent.
    BasicVectorView() = default;
    /// Present, unless data is null.
    /// @param data, dtype, size, stride, device  the members of these names
    BasicVectorView(Void *data, DType dtype, int64_t size, int64_t stride = 1,
                    Device device = Device::cpu)
        : data(data), dtype(dtype), size(size), stride(stride), device(device) {
    }
    /// Absent.
    BasicVectorView(std::nullopt_t) {
    }
    /// A VectorView as a ConstVectorView.
    /// @tparam Other  void, where Void is const void
    /// @param other  of the same memory
    template<typename Other, typename = internal::EnableIfConstOf<Void, Other>>
    BasicVectorView(const BasicVectorView<Other> &other)
        : data(other.data),
          dtype(other.dtype),
          size(other.size),
          stride(other.stride),
          device(other.device) {
    }

    /// Whether it is present.
    explicit operator bool() const {
        return data != nullptr;
    }
};
/// What operations write to.
using VectorView = BasicVectorView<void>;
/// What operations read. VectorView and Vector convert to it.
using ConstVectorView = BasicVectorView<const void>;

/// Frees what Tensor and Vector allocate.
struct AlignedDelete {
    /// @param data  the memory to free, or null
    void operator()(void *data) const noexcept;
};
/// Memory that Tensor and Vector own.
using AlignedStorage = std::unique_ptr<void, AlignedDelete>;

/// A dense tensor that owns 64-byte aligned, uninitialized memory. Move-only.
class Tensor {
public:
    /// Empty.
    Tensor() = default;
    /// @param dtype   of each element
    /// @param sizes   N, C, H, W
    /// @param format  the order of dimensions
    /// @throws InvalidArgument for a negative size, OutOfMemory
    Tensor(DType dtype, const Shape &sizes, MemoryFormat format = MemoryFormat::contiguous);
    /// As torch.empty_like.
    /// @param other  gives sizes, dtype and the order of dimensions
    /// @return a dense tensor: of a channels_last one channels_last
    static Tensor like(const ConstTensorView &other);
    /// The same with another dtype.
    /// @param other  gives sizes and the order of dimensions
    /// @param dtype  of each element
    /// @return a dense tensor
    static Tensor like(const ConstTensorView &other, DType dtype);

    /// Takes over the memory.
    /// @param other  becomes empty
    Tensor(Tensor &&other) noexcept
        : storage_(std::move(other.storage_)), view_(std::exchange(other.view_, {})) {
    }
    /// Takes over the memory, and frees its own.
    /// @param other  becomes empty
    /// @return this
    Tensor &operator=(Tensor &&other) noexcept {
        storage_ = std::move(other.storage_);
        view_ = std::exchange(other.view_, {});
        return *this;
    }

    /// @return a view, valid as long as this tensor
    const TensorView &view() const {
        return view_;
    }
    /// The same, wherever a view is wanted.
    operator TensorView() const {
        return view_;
    }
    /// The same, wherever a view to read is wanted.
    operator ConstTensorView() const {
        return view_;
    }
    /// @return whether it has no elements
    bool empty() const {
        return view_.num_elements() == 0;
    }
    /// @tparam T  what dtype says: float for float32
    /// @return the first element
    template<typename T>
    T *data() const {
        return static_cast<T *>(view_.data);
    }

private:
    AlignedStorage storage_;
    TensorView view_;
};

/// A dense vector that owns its memory, zero-filled. Move-only.
class Vector {
public:
    /// Absent.
    Vector() = default;
    /// @param dtype  of each value
    /// @param size   the number of values
    /// @throws InvalidArgument for a negative size, OutOfMemory
    Vector(DType dtype, int64_t size);

    /// Takes over the memory.
    /// @param other  becomes absent
    Vector(Vector &&other) noexcept
        : storage_(std::move(other.storage_)), view_(std::exchange(other.view_, {})) {
    }
    /// Takes over the memory, and frees its own.
    /// @param other  becomes absent
    /// @return this
    Vector &operator=(Vector &&other) noexcept {
        storage_ = std::move(other.storage_);
        view_ = std::exchange(other.view_, {});
        return *this;
    }

    /// @return a view, valid as long as this vector
    const VectorView &view() const {
        return view_;
    }
    /// The same, wherever a view is wanted.
    operator VectorView() const {
        return view_;
    }
    /// The same, wherever a view to read is wanted.
    operator ConstVectorView() const {
        return view_;
    }
    /// Whether it is present.
    explicit operator bool() const {
        return bool(view_);
    }
    /// @tparam T  what dtype says: float for float32
    /// @return the first element
    template<typename T>
    T *data() const {
        return static_cast<T *>(view_.data);
    }

private:
    AlignedStorage storage_;
    VectorView view_;
};

namespace internal {

// Whether a type has DLManagedTensor's, and DLManagedTensorVersioned's, members.
template<typename T, typename = void>
struct IsManagedDlpack : std::false_type {};
template<typename T>
struct IsManagedDlpack<T, std::void_t<decltype(std::declval<const T &>().dl_tensor)>>
    : std::true_type {};
template<typename T, typename = void>
struct IsVersionedDlpack : std::false_type {};
template<typename T>
struct IsVersionedDlpack<T, std::void_t<decltype(std::declval<const T &>().version.major)>>
    : std::true_type {};

template<typename DLTensor>
TensorView view_of_dlpack(const DLTensor &tensor) {
    enum {
        kDLUInt = 1,
        kDLFloat = 2,
        kDLBfloat = 4,
        kDLBool = 6,
        kDLCPU = 1,
        kDLCUDA = 2,
        kDLCUDAHost = 3,
        kDLOpenCL = 4
    };
    TensorView view;
    const int code = tensor.dtype.code, bits = tensor.dtype.bits;
    if (tensor.dtype.lanes != 1) {
        throw InvalidArgument("from_dlpack: vector types are not supported");
    } else if (code == kDLFloat && bits == 32) {
        view.dtype = DType::float32;
    } else if (code == kDLFloat && bits == 64) {
        view.dtype = DType::float64;
    } else if (code == kDLFloat && bits == 16) {
        view.dtype = DType::float16;
    } else if (code == kDLBfloat && bits == 16) {
        view.dtype = DType::bfloat16;
    } else if ((code == kDLUInt || code == kDLBool) && bits == 8) {
        view.dtype = DType::uint8;
    } else {
        throw InvalidArgument("from_dlpack: unsupported dtype (code " + std::to_string(code) +
                              ", " + std::to_string(bits) + " bits)");
    }
    // A number that is none of DLPack's enumerators must not be read as one.
    int32_t device;
    static_assert(sizeof device == sizeof tensor.device.device_type, "DLPack has 32 bits for it");
    std::memcpy(&device, &tensor.device.device_type, sizeof device);
    switch (device) {
    case kDLCPU:
    case kDLCUDAHost:
        view.device = Device::cpu;
        break;
    case kDLCUDA:
        view.device = Device::cuda;
        break;
    case kDLOpenCL:
        view.device = Device::opencl;
        break;
    default:
        throw InvalidArgument("from_dlpack: unsupported device type " + std::to_string(device));
    }
    if (tensor.ndim < 0) {
        throw InvalidArgument("from_dlpack: negative number of dimensions: " +
                              std::to_string(tensor.ndim));
    }
    if (tensor.ndim > 0 && !tensor.shape) {
        throw InvalidArgument("from_dlpack: no shape");
    }
    if (tensor.data) {
        const uintptr_t address = reinterpret_cast<uintptr_t>(tensor.data);
        if (tensor.byte_offset > UINTPTR_MAX - address) {
            throw InvalidArgument("from_dlpack: byte_offset is beyond the end of memory: " +
                                  std::to_string(tensor.byte_offset));
        }
        view.data = reinterpret_cast<void *>(address + uintptr_t(tensor.byte_offset));
    }
    view.ndim = tensor.ndim;
    if (tensor.ndim > 4) {
        return view;
    }
    int64_t dense_stride = 1;
    for (int d = tensor.ndim - 1; d >= 0; d--) {
        view.sizes[size_t(d)] = tensor.shape[d];
        view.strides[size_t(d)] = tensor.strides ? tensor.strides[d] : dense_stride;
        dense_stride = saturating_product(dense_stride, tensor.shape[d]);
    }
    return view;
}

}  // namespace internal

/// View to read of a DLPack `DLTensor`, `DLManagedTensor` or `DLManagedTensorVersioned` (any type with their
/// members; include dlpack.h yourself). Lends, does not own: the tensor must outlive the view, and a managed one's
/// deleter is the caller's to call. Strides may be null (dense, C order). A tensor of another rank keeps its ndim,
/// for the operation to refuse. Whatever else an operation can't take, such as negative sizes or data that is not
/// aligned, it refuses, too.
/// @param tensor  a DLTensor, or a managed one
/// @return a view of its memory
/// @throws InvalidArgument for a dtype or device hbn does not know, for what is no tensor (a negative ndim, a null
///         shape, a byte_offset beyond the end of memory) and for versions of DLPack other than 1
template<typename DLTensor>
ConstTensorView const_from_dlpack(const DLTensor &tensor) {
    if constexpr (internal::IsVersionedDlpack<DLTensor>::value) {
        // Another major version may have moved every other member.
        if (tensor.version.major != 1) {
            throw InvalidArgument("from_dlpack: unsupported version of DLPack: " +
                                  std::to_string(tensor.version.major) + "." +
                                  std::to_string(tensor.version.minor));
        }
    }
    if constexpr (internal::IsManagedDlpack<DLTensor>::value) {
        return internal::view_of_dlpack(tensor.dl_tensor);
    } else {
        return internal::view_of_dlpack(tensor);
    }
}

/// The same to write to.
/// @param tensor  a DLTensor, or a managed one
/// @return a view of its memory
/// @throws InvalidArgument as const_from_dlpack, and for a DLManagedTensorVersioned that is read-only
template<typename DLTensor>
TensorView from_dlpack(const DLTensor &tensor) {
    const ConstTensorView view = const_from_dlpack(tensor);
    if constexpr (internal::IsVersionedDlpack<DLTensor>::value) {
        enum : uint64_t { kReadOnly = 1 };  // DLPACK_FLAG_BITMASK_READ_ONLY
        if (tensor.flags & kReadOnly) {
            throw InvalidArgument(
                "from_dlpack: the tensor is read-only: const_from_dlpack takes it");
        }
    }
    TensorView writable(const_cast<void *>(view.data), view.dtype, view.sizes, view.strides,
                        view.device);
    writable.ndim = view.ndim;
    return writable;
}

/// View of a `Halide::Runtime::Buffer` (any type with its members), whose dimensions are taken in
/// Halide's order, innermost first: (W, H, C, N). Lends, does not own. A buffer of another rank keeps its number of
/// dimensions as ndim, for the operation to refuse.
/// @param buffer  on the host: what is dirty on a device is not fetched
/// @return a view of its memory: to read, if the buffer's elements are const
/// @throws InvalidArgument for a type hbn does not know
template<typename HalideBuffer>
auto from_halide(const HalideBuffer &buffer) {
    enum { kUInt = 1, kFloat = 2, kBfloat = 4 };
    using Element = std::remove_pointer_t<decltype(buffer.data())>;
    BasicTensorView<std::conditional_t<std::is_const_v<Element>, const void, void>> view;
    const int code = int(buffer.type().code), bits = int(buffer.type().bits);
    if (buffer.type().lanes != 1) {
        throw InvalidArgument("from_halide: vector types are not supported");
    } else if (code == kFloat && bits == 32) {
        view.dtype = DType::float32;
    } else if (code == kFloat && bits == 64) {
        view.dtype = DType::float64;
    } else if (code == kFloat && bits == 16) {
        view.dtype = DType::float16;
    } else if (code == kBfloat && bits == 16) {
        view.dtype = DType::bfloat16;
    } else if (code == kUInt && bits == 8) {
        view.dtype = DType::uint8;
    } else {
        throw InvalidArgument("from_halide: unsupported type (code " + std::to_string(code) + ", " +
                              std::to_string(bits) + " bits)");
    }
    view.ndim = buffer.dimensions();
    // Of element (min, min, ...), whatever the strides are.
    view.data = buffer.data();
    for (int d = 0; d < view.ndim && view.ndim <= 4; d++) {
        const int from = view.ndim - 1 - d;
        view.sizes[size_t(d)] = buffer.dim(from).extent();
        view.strides[size_t(d)] = buffer.dim(from).stride();
    }
    return view;
}

}  // namespace hbn

#endif
