// The kernels that this library was built with: their arguments by name, and calls.
#ifndef HBN_RUNTIME_ENGINE_KERNELS_H
#define HBN_RUNTIME_ENGINE_KERNELS_H

#include "layout.h"
#include "tuning.h"

#include <HalideRuntime.h>

#include <bitset>
#include <new>
#include <type_traits>

namespace hbn::internal {

constexpr int kMostKernelArguments = 32;
constexpr int kMostKernelBuffers = 20;

// A kernel's arguments in the order of its signature, as Halide's metadata of the compiled kernel has them.
struct Signature {
    struct Argument {
        Arg arg;
        Role role;  // the argument's
        bool is_output;
        hbn_dtype dtype;  // of a vector
        halide_type_t type;
        int view_offset;  // of a view number: where KernelView has it, in bytes
    };
    int size = 0;
    Argument arguments[kMostKernelArguments];

    const Argument *begin() const {
        return arguments;
    }
    const Argument *end() const {
        return arguments + size;
    }
};

// Whether this library has the kernel for tensors (or vectors) of this dtype.
bool has_kernel(Kernel kernel, hbn_dtype dtype);
// Whether it has all that operations.def names, so that nothing need be asked before it is called.
bool has_every_kernel();
bool has_conversion(hbn_dtype from, hbn_dtype to);

// The same for all of the kernel's layouts. Fails, with the argument's name, where a kernel takes what operations.def
// doesn't name, or where two layouts' kernels differ. Null where there is no such kernel.
hbn_status signature_of(Kernel kernel, hbn_dtype dtype, const Signature **signature);

// Whether another compiled form of the kernel takes the same arguments. Fails with its name, where it doesn't.
hbn_status check_signature(Kernel kernel, hbn_dtype dtype,
                           const halide_filter_metadata_t &metadata);

// HBN_UNSUPPORTED, with the kernel's name.
hbn_status no_kernel(Kernel kernel, hbn_dtype dtype);

// The layouts that there are kernels for.
std::bitset<kLayouts> layouts_of(Kernel kernel, hbn_dtype dtype);
// Those that there is any kernel on tensors for. `dtype`: one that has kernels.
std::bitset<kLayouts> layouts_of(hbn_dtype dtype);

inline halide_type_t halide_type(hbn_dtype dtype) {
    switch (dtype) {
    case HBN_FLOAT32:
        return halide_type_t(halide_type_float, 32);
    case HBN_BFLOAT16:
        return halide_type_t(halide_type_bfloat, 16);
    case HBN_FLOAT16:
        return halide_type_t(halide_type_float, 16);
    case HBN_UINT8:
        return halide_type_t(halide_type_uint, 8);
    default:
        return halide_type_t(halide_type_float, 64);
    }
}

// A call's arguments in the form that every kernel takes them. Add them in the order of the kernel's signature.
class ArgumentList {
public:
    ArgumentList() {
    }
    // It points into itself.
    ArgumentList(const ArgumentList &) = delete;
    ArgumentList &operator=(const ArgumentList &) = delete;

    // `index`: of the tensor among the view's.
    void add_tensor(const hbn_tensor &t, const KernelView &view, int index, bool is_output) {
        add_buffer(t.data, t.dtype, is_output);
        const int dimensions = view.in_columns() ? 3 : 4;
        for (int d = 0; d < dimensions; d++) {
            add_dimension(view.dimensions[d].size, view.dimensions[d].strides[index]);
        }
    }
    // `view`: null for a kernel on vectors.
    void add_vector(const hbn_vector &v, const KernelView *view, bool is_output) {
        add_buffer(v.data, v.dtype, is_output);
        if (view && view->in_columns()) {
            add_dimension(view->channels, v.stride);
            add_dimension(v.size / view->channels, view->channels * v.stride);
        } else {
            add_dimension(v.size, v.stride);
        }
    }
    void add_number(double value, halide_type_t type) {
        Scalar &scalar = scalars_[num_scalars_++];
        if (type.code == halide_type_float) {
            scalar.number = value;
        } else {
            scalar.boolean = value != 0;
        }
        args_[count_++] = &scalar;
    }
    void add_view_number(int view_offset, const KernelView &view) {
        const char *number = reinterpret_cast<const char *>(&view) + view_offset;
        args_[count_++] = const_cast<char *>(number);
    }

    // The one way into a kernel. `elements` and `streams` tell how to run its parallel loops.
    hbn_status run(Kernel kernel, hbn_dtype dtype, Layout layout, int64_t elements, bool streams,
                   const Tuning &tuning);
    hbn_status run_conversion(hbn_dtype from, hbn_dtype to, int64_t elements);

private:
    void add_buffer(void *data, hbn_dtype dtype, bool is_output) {
        halide_buffer_t &buffer = *new (&buffers_[num_buffers_]) halide_buffer_t{};
        buffer.host = static_cast<uint8_t *>(data);
        buffer.type = halide_type(dtype);
        buffer.dim = reinterpret_cast<halide_dimension_t *>(dims_[num_buffers_]);
        is_output_[num_buffers_++] = is_output;
        args_[count_++] = &buffer;
    }
    // Of the buffer added last.
    void add_dimension(int64_t size, int64_t stride) {
        halide_buffer_t &buffer = this->buffer(num_buffers_ - 1);
        new (&buffer.dim[buffer.dimensions++])
            halide_dimension_t{0, int32_t(size), size > 1 ? int32_t(stride) : 1};
    }
    halide_buffer_t &buffer(int i) {
        return *reinterpret_cast<halide_buffer_t *>(&buffers_[i]);
    }
    hbn_status run(int (*kernel)(void **), const char *name, bool serial, bool streams);

    int count_ = 0, num_buffers_ = 0, num_scalars_ = 0;
    // What is not counted is not initialized: an object of this class costs no more than a call needs.
    void *args_[kMostKernelArguments];
    union Scalar {
        double number;
        int32_t integer;
        bool boolean;
    } scalars_[kMostKernelArguments];
    bool is_output_[kMostKernelBuffers];
    // Halide's types initialize themselves.
    std::aligned_storage_t<sizeof(halide_buffer_t), alignof(halide_buffer_t)>
        buffers_[kMostKernelBuffers];
    std::aligned_storage_t<sizeof(halide_dimension_t), alignof(halide_dimension_t)>
        dims_[kMostKernelBuffers][4];
};

// Copies with conversion between float dtypes.
hbn_status convert(const hbn_vector &from, const hbn_vector &to);

}  // namespace hbn::internal

#endif
