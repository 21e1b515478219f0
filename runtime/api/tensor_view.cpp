#include <hbn/tensor_view.h>

#include "errors.h"
#include "runtime/checks.h"
#include "runtime/engine/staging.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>

namespace hbn {

namespace {

constexpr size_t kAlignment = 64;

template<size_t rank>
int64_t checked_bytes(DType dtype, const std::array<int64_t, rank> &sizes) {
    for (const int64_t size : sizes) {
        if (size < 0) {
            std::string text;
            for (const int64_t each : sizes) {
                text += (text.empty() ? "" : ", ") + std::to_string(each);
            }
            internal::throw_on_error(internal::fail(HBN_INVALID_ARGUMENT,
                                                    internal::text::negative_dimension,
                                                    (long long)size, text.c_str()));
        }
    }
    int64_t bytes = int64_t(size_of(dtype));
    bool overflows = false;
    for (const int64_t size : sizes) {
        overflows = __builtin_mul_overflow(bytes, size, &bytes) || overflows;
    }
    if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) {
        return 0;
    }
    if (overflows) {
        internal::throw_on_error(
            internal::fail(HBN_INVALID_ARGUMENT, internal::text::size_overflow, "tensor"));
    }
    return bytes;
}

// Empty ones own a little memory too: a null pointer would mean absent.
//
// Aligned by hand, since the aligned operator new takes allocators ten times as long for small vectors, of which
// every training call makes two. Where the block starts is kept just before the data.
AlignedStorage allocate(int64_t bytes) {
    const size_t room = kAlignment + sizeof(void *);
    const uint64_t all = uint64_t(std::max<int64_t>(bytes, 64)) + room;
    void *block = all <= SIZE_MAX ? ::operator new(size_t(all), std::nothrow) : nullptr;
    if (!block) {
        throw OutOfMemory("out of memory");
    }
    const uintptr_t data = (reinterpret_cast<uintptr_t>(block) + room) / kAlignment * kAlignment;
    reinterpret_cast<void **>(data)[-1] = block;
    return AlignedStorage(reinterpret_cast<void *>(data));
}

}  // namespace

std::size_t size_of(DType dtype) {
    return size_t(internal::element_size(hbn_dtype(dtype)));
}

const char *name_of(DType dtype) {
    return internal::dtype_name(hbn_dtype(dtype));
}

Shape dense_strides(const Shape &sizes, MemoryFormat format) {
    const auto times = internal::saturating_product;
    const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
    if (format == MemoryFormat::channels_last) {
        return {times(h, times(w, c)), 1, times(w, c), c};
    }
    return {times(c, times(h, w)), times(h, w), w, 1};
}

void AlignedDelete::operator()(void *data) const noexcept {
    if (data) {
        ::operator delete(static_cast<void **>(data)[-1]);
    }
}

Tensor::Tensor(DType dtype, const Shape &sizes, MemoryFormat format)
    : storage_(allocate(checked_bytes(dtype, sizes))), view_(storage_.get(), dtype, sizes, format) {
}

Tensor Tensor::like(const ConstTensorView &other) {
    return like(other, other.dtype);
}

Tensor Tensor::like(const ConstTensorView &other, DType dtype) {
    Tensor result(dtype, other.sizes);
    int64_t stride = 1;
    for (const int d : internal::dimension_order(other.sizes.data(), other.strides.data())) {
        result.view_.strides[d] = stride;
        stride = internal::saturating_product(stride, std::max<int64_t>(other.sizes[d], 1));
    }
    return result;
}

Vector::Vector(DType dtype, int64_t size) {
    const int64_t bytes = checked_bytes(dtype, std::array<int64_t, 1>{size});
    storage_ = allocate(bytes);
    std::memset(storage_.get(), 0, size_t(bytes));
    view_ = VectorView(storage_.get(), dtype, size);
}

}  // namespace hbn
