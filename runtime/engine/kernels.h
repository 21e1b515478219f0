// The kernels that this library was built with: their arguments by name, and calls.
#ifndef HBN_RUNTIME_ENGINE_KERNELS_H
#define HBN_RUNTIME_ENGINE_KERNELS_H

#include "table.h"

#include <HalideRuntime.h>

#include <bitset>

namespace hbn::internal {

struct KernelView;

// The float dtypes, which tables of kernels are indexed by.
constexpr int kDTypes = 4;
static_assert(HBN_FLOAT32 == 0 && HBN_FLOAT16 == kDTypes - 1, "float dtypes come first");

constexpr int kMostTensors = 5;
constexpr int kMostKernelArguments = 32;
constexpr int kMostKernelBuffers = 20;

// A kernel's arguments in the order of its signature, as Halide's metadata of the compiled kernel has them.
struct Signature {
    struct Argument {
        Arg arg;
        bool is_output;
        halide_type_t type;
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

// HBN_UNSUPPORTED, with the kernel's name.
hbn_status no_kernel(Kernel kernel, hbn_dtype dtype);

// The layouts that there are kernels for.
std::bitset<kLayouts> layouts_of(Kernel kernel, hbn_dtype dtype);

// The dtype of hbn's that Halide's is; vectors' arguments are of no other.
hbn_dtype dtype_of(halide_type_t type);

// A call's arguments in the form that every kernel takes them. Add them in the order of the kernel's signature.
class ArgumentList {
public:
    ArgumentList() = default;
    // It points into itself.
    ArgumentList(const ArgumentList &) = delete;
    ArgumentList &operator=(const ArgumentList &) = delete;

    // `index`: of the tensor among the view's.
    void add_tensor(const hbn_tensor &t, const KernelView &view, int index, bool is_output);
    // `view`: null for a kernel on vectors.
    void add_vector(const hbn_vector &v, const KernelView *view, bool is_output);
    void add_number(double value, halide_type_t type);
    void add_view_number(Arg arg, const KernelView &view);

    // The one way into a kernel. `elements` and `streams` tell how to run its parallel loops.
    hbn_status run(Kernel kernel, hbn_dtype dtype, Layout layout, int64_t elements, bool streams);
    hbn_status run_conversion(hbn_dtype from, hbn_dtype to, int64_t elements);

private:
    void add_buffer(void *data, hbn_dtype dtype, bool is_output);
    void add_dimension(int64_t size, int64_t stride);
    hbn_status run(int (*kernel)(void **), const char *name, int64_t elements, bool streams);

    int count_ = 0, num_buffers_ = 0, num_scalars_ = 0;
    // What is not counted is not initialized: an object of this class costs no more than a call needs.
    void *args_[kMostKernelArguments];
    union Scalar {
        double number;
        int32_t integer;
        bool boolean;
    } scalars_[kMostKernelArguments];
    bool is_output_[kMostKernelBuffers];
    halide_buffer_t buffers_[kMostKernelBuffers];
    halide_dimension_t dims_[kMostKernelBuffers][4];
};

// Copies with conversion between float dtypes.
hbn_status convert(const hbn_vector &from, const hbn_vector &to);

}  // namespace hbn::internal

#endif
