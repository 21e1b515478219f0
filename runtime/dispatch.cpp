#include "dispatch.h"

#include "checks.h"
#include "device.h"
#include "small_sort.h"
#include "threads.h"

#include <HalideRuntime.h>

#include <algorithm>
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

enum class Layout { nchw, nhwc, strided };

using Kernel = int (*)(void **);

constexpr int kOperations = int(Operation::convert) + 1;
constexpr int kDTypes = 4;
constexpr int kLayouts = 3;

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
    "finalize_moments",
    "merge_moments",
    "invstd_from_variance",
    "convert",
};

// Null where the kernel was left out of the build.
struct Kernels {
    Kernel tensor[kOperations][kDTypes][kLayouts] = {};
    Kernel channel[kOperations][kDTypes] = {};
    Kernel conversion[kDTypes][kDTypes] = {};

    Kernels() {
#define HBN_TENSOR_KERNEL(operation, dtype, layout)                               \
    tensor[int(Operation::operation)][dtype_named(#dtype)][int(Layout::layout)] = \
        hbn_##operation##_##dtype##_##layout##_argv;
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

// ---- shapes

constexpr int kMostTensors = 3;

// The reduced dimensions N, H, W of all tensors of a call in the fewest dimensions that describe
// them: they are interchangeable, and adjacent ones merge where every tensor steps evenly through
// both.
struct Geometry {
    struct Dimension {
        int64_t size;
        int64_t strides[kMostTensors];
    };
    int tensors = 0;
    Dimension reduced[3] = {};  // outermost first
    int num_reduced = 0;
    Dimension channels = {};
    Layout layout = Layout::strided;

    void add(const hbn_tensor &t) {
        static const int kReduced[3] = {0, 2, 3};
        channels.size = t.sizes[1];
        channels.strides[tensors] = t.strides[1];
        for (int d = 0; d < 3; d++) {
            reduced[d].size = t.sizes[kReduced[d]];
            reduced[d].strides[tensors] = t.strides[kReduced[d]];
        }
        tensors++;
    }

    void simplify() {
        num_reduced = int(
            std::remove_if(reduced, reduced + 3, [](const Dimension &d) { return d.size == 1; }) -
            reduced);
        small_sort(reduced, num_reduced, [](const Dimension &a, const Dimension &b) {
            return a.strides[0] > b.strides[0];
        });
        for (int inner = num_reduced - 1; inner > 0; inner--) {
            if (mergeable(reduced[inner - 1], reduced[inner])) {
                reduced[inner].size *= reduced[inner - 1].size;
                std::copy(reduced + inner, reduced + num_reduced, reduced + inner - 1);
                num_reduced--;
            }
        }
        if (channels.size > 1 && unit_stride(channels)) {
            layout = Layout::nhwc;
        } else if (num_reduced == 0 || unit_stride(reduced[num_reduced - 1])) {
            layout = Layout::nchw;
        }
    }

private:
    bool mergeable(const Dimension &outer, const Dimension &inner) const {
        for (int i = 0; i < tensors; i++) {
            if (outer.strides[i] != inner.size * inner.strides[i]) {
                return false;
            }
        }
        return true;
    }

    bool unit_stride(const Dimension &d) const {
        return std::all_of(d.strides, d.strides + tensors, [](int64_t s) { return s == 1; });
    }
};

Kernel find_kernel(Operation operation, hbn_dtype dtype, Layout layout) {
    const Kernel *by_layout = kernels().tensor[int(operation)][dtype];
    // The strided kernel serves any layout.
    return by_layout[int(layout)] ? by_layout[int(layout)] : by_layout[int(Layout::strided)];
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
    default:
        return halide_type_t(halide_type_float, 64);
    }
}

// Below this many elements starting threads costs more than it gains.
constexpr int64_t kSerialElements = 16384;

// The text of halide_error() during this thread's current call.
thread_local char halide_message[256] = "";

constexpr int kMostArguments = 12;

// A kernel's argument list in Halide's uniform form.
class ArgumentList {
public:
    ArgumentList(std::initializer_list<Argument> arguments, const Geometry *geometry) {
        int tensors = 0;
        for (const Argument &a : arguments) {
            switch (a.kind) {
            case Argument::Kind::scalar:
                scalars_[count_] = a.scalar;
                args_[count_] = &scalars_[count_];
                break;
            case Argument::Kind::vector:
                set(a.vector.data, a.vector.dtype, 1);
                dims_[count_][0] = {0, int32_t(a.vector.size),
                                    stride(a.vector.size, a.vector.stride)};
                break;
            case Argument::Kind::tensor:
                set(a.tensor.data, a.tensor.dtype, 4);
                set_dims(*geometry, tensors++);
                break;
            }
            output_[count_++] = a.output;
        }
    }

    int run(Kernel kernel) {
        return run_kernel(kernel, args_, buffers_, output_, count_);
    }

private:
    static int32_t stride(int64_t size, int64_t stride) {
        return size > 1 ? int32_t(stride) : 1;
    }

    void set(void *data, hbn_dtype dtype, int dimensions) {
        halide_buffer_t &buffer = buffers_[count_];
        buffer.host = static_cast<uint8_t *>(data);
        buffer.type = halide_type(dtype);
        buffer.dimensions = dimensions;
        buffer.dim = dims_[count_];
        args_[count_] = &buffer;
    }

    // Halide's order (w, h, c, n): the innermost reduced dimension is w, the outermost n.
    void set_dims(const Geometry &g, int tensor) {
        halide_dimension_t *dims = dims_[count_];
        const auto dimension = [&](const Geometry::Dimension &d) {
            return halide_dimension_t(0, int32_t(d.size), stride(d.size, d.strides[tensor]));
        };
        const halide_dimension_t one(0, 1, 1);
        const int n = g.num_reduced;
        dims[0] = n > 0 ? dimension(g.reduced[n - 1]) : one;
        dims[1] = n > 2 ? dimension(g.reduced[1]) : one;
        dims[2] = dimension(g.channels);
        dims[3] = n > 1 ? dimension(g.reduced[0]) : one;
    }

    int count_ = 0;
    void *args_[kMostArguments];
    bool output_[kMostArguments];
    double scalars_[kMostArguments];
    halide_buffer_t buffers_[kMostArguments] = {};
    halide_dimension_t dims_[kMostArguments][4];
};

hbn_status run(Kernel kernel, const char *name, int64_t elements,
               std::initializer_list<Argument> arguments, const Geometry *geometry) {
    ArgumentList list(arguments, geometry);
    SerialScope serial(elements < kSerialElements);
    halide_message[0] = '\0';
    const int code = list.run(kernel);
    // Kernels have no assertions: what a device's runtime complained of shows in the message alone.
    if (code == 0 && !halide_message[0]) {
        return HBN_OK;
    }
    const hbn_status status =
        code == halide_error_code_out_of_memory ? HBN_OUT_OF_MEMORY : HBN_DEVICE_ERROR;
    return fail(status, text::kernel_failed, name, code, halide_message[0] ? ": " : "",
                halide_message);
}

hbn_status no_kernel(Operation operation, hbn_dtype dtype) {
    return fail(HBN_UNSUPPORTED, text::no_kernel, kOperationNames[int(operation)],
                dtype_name(dtype));
}

}  // namespace

hbn_status require(Operation operation, std::initializer_list<hbn_tensor> tensors) {
    Geometry geometry;
    for (const hbn_tensor &t : tensors) {
        geometry.add(t);
    }
    geometry.simplify();
    const hbn_dtype dtype = tensors.begin()->dtype;
    return find_kernel(operation, dtype, geometry.layout) ? HBN_OK : no_kernel(operation, dtype);
}

hbn_status require(Operation operation, hbn_dtype dtype) {
    return kernels().channel[int(operation)][dtype] ? HBN_OK : no_kernel(operation, dtype);
}

hbn_status require_conversion(hbn_dtype from, hbn_dtype to) {
    return from == to || kernels().conversion[from][to] ? HBN_OK
                                                        : no_kernel(Operation::convert, from);
}

hbn_status call(Operation operation, std::initializer_list<Argument> arguments) {
    Geometry geometry;
    hbn_dtype dtype = HBN_FLOAT32;
    int64_t elements = 0;
    for (const Argument &a : arguments) {
        if (a.kind == Argument::Kind::tensor) {
            if (geometry.tensors == 0) {
                const int64_t *sizes = a.tensor.sizes;
                elements = sizes[0] * sizes[1] * sizes[2] * sizes[3];
                dtype = a.tensor.dtype;
            }
            geometry.add(a.tensor);
        }
    }
    geometry.simplify();
    const Kernel kernel = find_kernel(operation, dtype, geometry.layout);
    if (!kernel) {
        return no_kernel(operation, dtype);
    }
    return run(kernel, kOperationNames[int(operation)], elements, arguments, &geometry);
}

hbn_status call(Operation operation, hbn_dtype dtype, std::initializer_list<Argument> arguments) {
    HBN_TRY(require(operation, dtype));
    return run(kernels().channel[int(operation)][dtype], kOperationNames[int(operation)],
               arguments.begin()->vector.size, arguments, nullptr);
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
    return run(kernels().conversion[from.dtype][to.dtype], "convert", from.size,
               {in(from), out(to)}, nullptr);
}

}  // namespace hbn::internal

extern "C" {

void halide_error(void *, const char *message) {
    std::strncpy(hbn::internal::halide_message, message, sizeof(hbn::internal::halide_message) - 1);
}

}  // extern "C"
