#include "dispatch.h"

#include "checks.h"
#include "halide/device.h"
#include "halide/threads.h"
#include "layout.h"

#include <HalideRuntime.h>

#include <algorithm>
#include <bitset>
#include <cstdlib>
#include <cstring>
#include <string>

// ---- kernels this library was built with

extern "C" {
#define HBN_TENSOR_KERNEL(operation, dtype, layout) \
    int hbn_##operation##_##dtype##_##layout##_argv(void **);
#define HBN_CHANNEL_KERNEL(operation, dtype) int hbn_##operation##_##dtype##_argv(void **);
#include <hbn_kernels.h>
#undef HBN_TENSOR_KERNEL
#undef HBN_CHANNEL_KERNEL
}

namespace hbn::internal {

namespace {

using Kernel = int (*)(void **);

constexpr int kOperations = int(Operation::convert) + 1;
constexpr int kDTypes = 4;

const char *const kOperationNames[kOperations] = {
    "forward_training",
    "forward_inference",
    "stats",
    "normalize",
    "backward_training",
    "backward_inference",
    "backward_inference_input",
    "backward_reduce",
    "backward_elemt",
    "jvp_elemt",
    "double_backward_elemt",
    "forward_training_relu",
    "forward_training_add_relu",
    "forward_inference_relu",
    "forward_inference_add_relu",
    "forward_inference_add_relu_mask",
    "backward_training_relu",
    "backward_training_add_relu",
    "backward_inference_relu",
    "backward_inference_add_relu",
    "finalize_moments",
    "merge_moments",
    "invstd_from_variance",
    "double_backward_product",
    "convert",
};

// Null where the kernel was left out of the build.
struct Kernels {
    Kernel tensor[kOperations][kDTypes][kLayouts] = {};
    Layouts layouts[kOperations][kDTypes];  // that `tensor` has kernels for
    Kernel channel[kOperations][kDTypes] = {};
    Kernel conversion[kDTypes][kDTypes] = {};

    Kernels() {
#define HBN_TENSOR_KERNEL(operation, dtype, layout)                               \
    tensor[int(Operation::operation)][dtype_named(#dtype)][int(Layout::layout)] = \
        hbn_##operation##_##dtype##_##layout##_argv;                              \
    layouts[int(Operation::operation)][dtype_named(#dtype)].set(size_t(Layout::layout));
#define HBN_CHANNEL_KERNEL(operation, dtype) \
    add_channel_kernel(Operation::operation, #dtype, hbn_##operation##_##dtype##_argv);
#include <hbn_kernels.h>
#undef HBN_TENSOR_KERNEL
#undef HBN_CHANNEL_KERNEL
    }

private:
    static int dtype_named(const std::string &name) {
        for (int i = 0; i < kDTypes; i++) {
            if (name == dtype_name(hbn_dtype(i))) {
                return i;
            }
        }
        std::abort();  // a row of hbn_kernels.h that this file doesn't know
    }

    // Conversions are named after both dtypes: "bfloat16_float32".
    void add_channel_kernel(Operation operation, const std::string &name, Kernel kernel) {
        if (operation != Operation::convert) {
            channel[int(operation)][dtype_named(name)] = kernel;
        } else {
            const size_t separator = name.find('_');
            conversion[dtype_named(name.substr(0, separator))]
                      [dtype_named(name.substr(separator + 1))] = kernel;
        }
    }
};

const Kernels &kernels() {
    static const Kernels all;
    return all;
}

Kernel find_kernel(Operation operation, hbn_dtype dtype, Layout layout) {
    return kernels().tensor[int(operation)][dtype][int(layout)];
}

// ---- calls

halide_type_t halide_type(hbn_dtype dtype) {
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

// The text of halide_error() during this thread's current call.
thread_local char halide_message[256] = "";

constexpr int kMostArguments = 28, kMostBuffers = 16, kMostScalars = 4;

// A kernel's argument list in Halide's uniform form.
class ArgumentList {
public:
    // Of an operation over (C).
    explicit ArgumentList(std::initializer_list<Argument> arguments) {
        for (const Argument &a : arguments) {
            if (a.kind == Argument::Kind::scalar) {
                add_scalar(a.scalar);
            } else {
                add_buffer(a.vector->data, a.vector->dtype, a.output);
                add_dim(a.vector->size, a.vector->stride);
            }
        }
    }

    // Of an operation over (N, C, H, W): last among the inputs are those that all their kernels share.
    ArgumentList(std::initializer_list<Argument> arguments, const KernelView &view)
        : plane_(int32_t(view.plane)),
          folds_(int32_t(view.folds)),
          cut_(view.cut),
          stream_(view.stream) {
        int tensors = 0;
        bool inputs = true;
        const int dimensions = view.in_columns() ? 3 : 4;
        for (const Argument &a : arguments) {
            if (inputs && a.output) {
                inputs = false;
                add_shared();
            }
            if (a.kind == Argument::Kind::scalar) {
                add_scalar(a.scalar);
            } else if (a.absent()) {
                continue;
            } else if (a.kind == Argument::Kind::tensor) {
                add_buffer(a.tensor->data, a.tensor->dtype, a.output);
                for (int d = 0; d < dimensions; d++) {
                    add_dim(view.dimensions[d].size, view.dimensions[d].strides[tensors]);
                }
                tensors++;
            } else {
                const hbn_vector &v = *a.vector;
                add_buffer(v.data, v.dtype, a.output);
                if (view.in_columns()) {
                    add_dim(view.channels, v.stride);
                    add_dim(v.size / view.channels, view.channels * v.stride);
                } else {
                    add_dim(v.size, v.stride);
                }
            }
        }
    }

    // It points into itself.
    ArgumentList(const ArgumentList &) = delete;
    ArgumentList &operator=(const ArgumentList &) = delete;

    int run(Kernel kernel) {
        return run_kernel(kernel, args_, buffers_, output_, num_buffers_);
    }

private:
    void add_shared() {
        for (int32_t *shared :
             {&plane_, &folds_, &cut_.units, &cut_.h, &cut_.n, &cut_.tiles_w, &cut_.tiles_h,
              &cut_.tiles_n, &cut_.sample_units, &cut_.sample_h, &cut_.sample_n}) {
            args_[count_++] = shared;
        }
        args_[count_++] = &stream_;
    }

    void add_scalar(double scalar) {
        scalars_[num_scalars_] = scalar;
        args_[count_++] = &scalars_[num_scalars_++];
    }

    void add_buffer(void *data, hbn_dtype dtype, bool output) {
        halide_buffer_t &buffer = buffers_[num_buffers_];
        buffer = {};
        buffer.host = static_cast<uint8_t *>(data);
        buffer.type = halide_type(dtype);
        buffer.dim = dims_[num_buffers_];
        output_[num_buffers_++] = output;
        args_[count_++] = &buffer;
    }

    // Of the buffer added last.
    void add_dim(int64_t size, int64_t stride) {
        halide_buffer_t &buffer = buffers_[num_buffers_ - 1];
        buffer.dim[buffer.dimensions++] = {0, int32_t(size), size > 1 ? int32_t(stride) : 1};
    }

    int count_ = 0, num_buffers_ = 0, num_scalars_ = 0;
    int32_t plane_ = 1, folds_ = 1;
    Cut cut_;
    bool stream_ = false;
    // What is not counted is not initialized: an object of this class costs no more than a call needs.
    void *args_[kMostArguments];
    double scalars_[kMostScalars];
    bool output_[kMostBuffers];
    halide_buffer_t buffers_[kMostBuffers];
    halide_dimension_t dims_[kMostBuffers][4];
};

hbn_status run(Kernel kernel, const char *name, int64_t elements, bool streams,
               ArgumentList &&list) {
    const KernelScope scope(elements < kSerialElements, streams);
    halide_message[0] = '\0';
    const int code = list.run(kernel);
    HBN_TRY(check_loops());
    // Kernels have no assertions: what a device's runtime complained of shows in the message alone.
    if (code == 0 && !halide_message[0]) {
        return HBN_OK;
    }
    const hbn_status status =
        code == halide_error_code_out_of_memory ? HBN_OUT_OF_MEMORY : HBN_DEVICE_ERROR;
    return fail(status, text::kernel_failed, name, code, halide_message[0] ? ": " : "",
                halide_message);
}

bool reduces(Operation operation) {
    switch (operation) {
    case Operation::forward_inference:
    case Operation::forward_inference_relu:
    case Operation::forward_inference_add_relu:
    case Operation::forward_inference_add_relu_mask:
    case Operation::normalize:
    case Operation::backward_inference_input:
    case Operation::backward_elemt:
    case Operation::jvp_elemt:
    case Operation::double_backward_elemt:
        return false;
    default:
        return true;
    }
}

hbn_status no_kernel(Operation operation, hbn_dtype dtype) {
    return fail(HBN_UNSUPPORTED, text::no_kernel, kOperationNames[int(operation)],
                dtype_name(dtype));
}

}  // namespace

hbn_status require(Operation operation, const hbn_tensor &x) {
    // The strided kernel serves any layout.
    return find_kernel(operation, x.dtype, Layout::strided) ? HBN_OK
                                                            : no_kernel(operation, x.dtype);
}

hbn_status require(Operation operation, hbn_dtype dtype) {
    return kernels().channel[int(operation)][dtype] ? HBN_OK : no_kernel(operation, dtype);
}

hbn_status require_conversion(hbn_dtype from, hbn_dtype to) {
    return from == to || kernels().conversion[from][to] ? HBN_OK
                                                        : no_kernel(Operation::convert, from);
}

hbn_status call(Operation operation, std::initializer_list<Argument> arguments) {
    const hbn_tensor *tensors[kMostTensors];
    int count = 0;
    std::bitset<kMostTensors> streamable;
    for (const Argument &a : arguments) {
        if (a.kind == Argument::Kind::tensor && !a.absent()) {
            streamable.set(count, a.output && a.tensor->dtype != HBN_UINT8);
            tensors[count++] = a.tensor;
        }
    }
    const hbn_dtype dtype = tensors[0]->dtype;
    const int64_t *sizes = tensors[0]->sizes;
    const int64_t elements = sizes[0] * sizes[1] * sizes[2] * sizes[3];
    KernelView view;
    choose_view(tensors, count, streamable, reduces(operation),
                kernels().layouts[int(operation)][dtype], &view);
    const Kernel kernel = find_kernel(operation, dtype, view.layout);
    if (!kernel) {
        return no_kernel(operation, dtype);
    }
    return run(kernel, kOperationNames[int(operation)], elements, view.stream,
               ArgumentList(arguments, view));
}

hbn_status call(Operation operation, hbn_dtype dtype, std::initializer_list<Argument> arguments) {
    HBN_TRY(require(operation, dtype));
    return run(kernels().channel[int(operation)][dtype], kOperationNames[int(operation)],
               arguments.begin()->vector->size, false, ArgumentList(arguments));
}

hbn_status convert(const hbn_vector &from, const hbn_vector &to) {
    if (from.size == 0) {
        return HBN_OK;
    }
    if (from.dtype == to.dtype) {
        const int bytes = element_size(from.dtype);
        for (int64_t i = 0; i < from.size; i++) {
            std::memmove(static_cast<char *>(to.data) + i * to.stride * bytes,
                         static_cast<const char *>(from.data) + i * from.stride * bytes, bytes);
        }
        return HBN_OK;
    }
    HBN_TRY(require_conversion(from.dtype, to.dtype));
    return run(kernels().conversion[from.dtype][to.dtype], "convert", from.size, false,
               ArgumentList({in(from), out(to)}));
}

}  // namespace hbn::internal

extern "C" {

void halide_error(void *, const char *message) {
    std::strncpy(hbn::internal::halide_message, message, sizeof(hbn::internal::halide_message) - 1);
}

}  // extern "C"
