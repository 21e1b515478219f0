/// @file tensor_view.h
/// Non-owning views of the caller's memory, and the two owning containers hbn returns.
#ifndef HBN_TENSOR_VIEW_H
#define HBN_TENSOR_VIEW_H

#include <hbn/hbn.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace hbn {

enum class DType {
    float32 = HBN_FLOAT32,
    float64 = HBN_FLOAT64,
    bfloat16 = HBN_BFLOAT16,
    float16 = HBN_FLOAT16,
    int64 = HBN_INT64,
    uint8 = HBN_UINT8,  ///< masks
};

enum class Device {
    cpu = HBN_CPU,
    opencl = HBN_OPENCL,
    cuda = HBN_CUDA,
};

enum class MemoryFormat {
    contiguous,     ///< NCHW
    channels_last,  ///< NHWC
};

using Shape = std::array<int64_t, 4>;

/// Bytes of one element.
std::size_t size_of(DType dtype);

/// "float32", "bfloat16", ...
const char *name_of(DType dtype);

/// Element strides of a dense tensor of this shape.
Shape dense_strides(const Shape &sizes, MemoryFormat format = MemoryFormat::contiguous);

/// A (N, C, H, W) tensor in memory somebody else owns. Copying copies the view, not the data.
struct TensorView {
    void *data = nullptr;
    DType dtype = DType::float32;
    Device device = Device::cpu;
    Shape sizes{};    ///< N, C, H, W
    Shape strides{};  ///< in elements, same order; zero for expanded dimensions, never negative
    int ndim = 4;     ///< what the source had; anything but 4 is refused by every operation

    TensorView() = default;
    TensorView(void *data, DType dtype, const Shape &sizes, const Shape &strides,
               Device device = Device::cpu)
        : data(data), dtype(dtype), device(device), sizes(sizes), strides(strides) {
    }
    TensorView(void *data, DType dtype, const Shape &sizes,
               MemoryFormat format = MemoryFormat::contiguous, Device device = Device::cpu)
        : TensorView(data, dtype, sizes, dense_strides(sizes, format), device) {
    }

    int64_t num_elements() const {
        return sizes[0] * sizes[1] * sizes[2] * sizes[3];
    }
};

/// One value per channel (or any 1-D state) in memory somebody else owns. data == nullptr means
/// absent.
struct VectorView {
    void *data = nullptr;
    DType dtype = DType::float32;
    int64_t size = 0;
    int64_t stride = 1;  ///< in elements

    VectorView() = default;
    VectorView(void *data, DType dtype, int64_t size, int64_t stride = 1)
        : data(data), dtype(dtype), size(size), stride(stride) {
    }
    VectorView(std::nullopt_t) {
    }

    explicit operator bool() const {
        return data != nullptr;
    }
};

/// Frees what Tensor and Vector allocate.
struct AlignedDelete {
    void operator()(void *data) const noexcept;
};
using AlignedStorage = std::unique_ptr<void, AlignedDelete>;

/// A dense tensor that owns 64-byte aligned, uninitialized memory. Move-only.
class Tensor {
public:
    Tensor() = default;
    Tensor(DType dtype, const Shape &sizes, MemoryFormat format = MemoryFormat::contiguous);
    /// Dense, with the dimension order of `strides` (channels_last stays channels_last).
    static Tensor like(const TensorView &other);
    static Tensor like(const TensorView &other, DType dtype);

    const TensorView &view() const {
        return view_;
    }
    operator TensorView() const {
        return view_;
    }
    bool empty() const {
        return view_.num_elements() == 0;
    }
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
    Vector() = default;
    Vector(DType dtype, int64_t size);

    const VectorView &view() const {
        return view_;
    }
    operator VectorView() const {
        return view_;
    }
    explicit operator bool() const {
        return bool(view_);
    }
    template<typename T>
    T *data() const {
        return static_cast<T *>(view_.data);
    }

private:
    AlignedStorage storage_;
    VectorView view_;
};

/// View of a DLPack `DLTensor` (any type with its members; include dlpack.h yourself). Lends, does
/// not own: the tensor must outlive the view. Strides may be null (dense, C order). A tensor of
/// another rank keeps its ndim, for the operation to refuse.
/// @throws std::invalid_argument for a dtype or device hbn does not know
template<typename DLTensor>
TensorView from_dlpack(const DLTensor &tensor) {
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
        throw std::invalid_argument("from_dlpack: vector types are not supported");
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
        throw std::invalid_argument("from_dlpack: unsupported dtype (code " + std::to_string(code) +
                                    ", " + std::to_string(bits) + " bits)");
    }
    switch (int(tensor.device.device_type)) {
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
        throw std::invalid_argument("from_dlpack: unsupported device type " +
                                    std::to_string(int(tensor.device.device_type)));
    }
    view.data = tensor.data ? static_cast<char *>(tensor.data) + tensor.byte_offset : nullptr;
    view.ndim = tensor.ndim;
    int64_t dense_stride = 1;
    for (int d = tensor.ndim - 1; d >= 0; d--) {
        if (d < 4) {
            view.sizes[d] = tensor.shape[d];
            view.strides[d] = tensor.strides ? tensor.strides[d] : dense_stride;
        }
        dense_stride *= tensor.shape[d];
    }
    return view;
}

/// View of a `Halide::Runtime::Buffer` (any type with its members), whose dimensions are taken in
/// Halide's order, innermost first: (W, H, C, N). Lends, does not own.
/// @throws std::invalid_argument for a type hbn does not know
template<typename HalideBuffer>
TensorView from_halide(const HalideBuffer &buffer) {
    enum { kUInt = 1, kFloat = 2, kBfloat = 4 };
    TensorView view;
    const int code = int(buffer.type().code), bits = int(buffer.type().bits);
    if (code == kFloat && bits == 32) {
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
        throw std::invalid_argument("from_halide: unsupported type (code " + std::to_string(code) +
                                    ", " + std::to_string(bits) + " bits)");
    }
    view.ndim = buffer.dimensions();
    // begin() is the lowest address, which is where element (min, min, ...) lies when no stride is
    // negative; operations refuse negative strides.
    view.data = const_cast<void *>(static_cast<const void *>(buffer.begin()));
    for (int d = 0; d < view.ndim && d < 4; d++) {
        const int from = view.ndim - 1 - d;
        view.sizes[d] = buffer.dim(from).extent();
        view.strides[d] = buffer.dim(from).stride();
    }
    return view;
}

}  // namespace hbn

#endif
