#include "kernels.h"

#include "layout.h"
#include "runtime/checks.h"
#include "runtime/halide/device.h"
#include "runtime/halide/threads.h"

#include <atomic>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <string_view>

// ---- kernels this library was built with

extern "C" {
#define HBN_BUILT_KERNEL(kernel, dtype, layout)            \
    int hbn_##kernel##_##dtype##_##layout##_argv(void **); \
    const halide_filter_metadata_t *hbn_##kernel##_##dtype##_##layout##_metadata();
#define HBN_BUILT_VECTOR_KERNEL(kernel, dtype)  \
    int hbn_##kernel##_##dtype##_argv(void **); \
    const halide_filter_metadata_t *hbn_##kernel##_##dtype##_metadata();
#define HBN_BUILT_CONVERSION(from, to) int hbn_convert_##from##_##to##_argv(void **);
#include <hbn_kernels.h>
#define HBN_TUNED_KERNEL(kernel, dtype, layout, number)                     \
    int hbn_##kernel##_##dtype##_##layout##_tuned_##number##_argv(void **); \
    const halide_filter_metadata_t *hbn_##kernel##_##dtype##_##layout##_tuned_##number##_metadata();
#include <hbn_tuned.h>
}

namespace hbn::internal {

namespace {

constexpr int dtype_named(std::string_view name) {
    constexpr std::string_view names[kDTypes] = {"float32", "float64", "bfloat16", "float16"};
    int i = 0;
    while (names[i] != name) {
        i++;  // an unknown name leaves the array, which a constant expression may not
    }
    return i;
}

// What one kernel is compiled to for one dtype.
struct Variants {
    CompiledKernel of_layout[kLayouts];  // of a kernel on vectors the first alone
    std::bitset<kLayouts> layouts;
    std::atomic<const Signature *> signature{nullptr};
};

constexpr int kTunedEntries = 0
#define HBN_TUNED_ENTRY(...) +1
#include <hbn_tuned.h>
    ;

struct ThresholdValue {
    int64_t Thresholds::*member;
    int64_t value;
};

[[maybe_unused]] Thresholds with(std::initializer_list<ThresholdValue> values) {
    Thresholds thresholds;
    for (const ThresholdValue &v : values) {
        thresholds.*v.member = v.value;
    }
    return thresholds;
}

struct Registry {
    Variants kernels[kKernels][kDTypes];
    int (*conversions[kDTypes][kDTypes])(void **) = {};
    std::bitset<kLayouts> layouts[kDTypes];  // of any kernel on tensors
    bool complete = true;
    TunedEntry tuned[kTunedEntries + 1];
    int num_tuned = 0;

    Registry() {
#define HBN_BUILT_KERNEL(kernel, dtype, layout)              \
    add(Kernel::kernel, dtype_named(#dtype), Layout::layout, \
        {hbn_##kernel##_##dtype##_##layout##_argv, hbn_##kernel##_##dtype##_##layout##_metadata});
#define HBN_BUILT_VECTOR_KERNEL(kernel, dtype)          \
    add(Kernel::kernel, dtype_named(#dtype), Layout(0), \
        {hbn_##kernel##_##dtype##_argv, hbn_##kernel##_##dtype##_metadata});
#define HBN_BUILT_CONVERSION(from, to) \
    conversions[dtype_named(#from)][dtype_named(#to)] = hbn_convert_##from##_##to##_argv;
#include <hbn_kernels.h>
        find_out_whether_complete();
        // A tuned kernel is its entry's, which is the row before.
#define HBN_TUNED_ENTRY(kernel, dtype, layout, nchw, nhwc, n0, n1, c0, c1, plane0, plane1, \
                        processor, set, place, ratio, ...)                                 \
    tuned[num_tuned++] = {Kernel::kernel,                                                  \
                          hbn_dtype(dtype_named(#dtype)),                                  \
                          nullptr,                                                         \
                          nchw,                                                            \
                          nhwc,                                                            \
                          {n0, c0, plane0},                                                \
                          {n1, c1, plane1},                                                \
                          processor,                                                       \
                          set,                                                             \
                          place,                                                           \
                          ratio,                                                           \
                          {with({__VA_ARGS__}), {}}};
#define HBN_TUNED_KERNEL(kernel, dtype, layout, number)                                         \
    tuned[num_tuned - 1].kernel_name = "hbn_" #kernel "_" #dtype "_" #layout "_tuned_" #number; \
    tuned[num_tuned - 1].tuning.kernels[int(Layout::layout)] = {                                \
        hbn_##kernel##_##dtype##_##layout##_tuned_##number##_argv,                              \
        hbn_##kernel##_##dtype##_##layout##_tuned_##number##_metadata};
#include <hbn_tuned.h>
        load_tuned_entries({tuned, num_tuned});
    }

private:
    void add(Kernel kernel, int dtype, Layout layout, CompiledKernel compiled) {
        Variants &variants = kernels[int(kernel)][dtype];
        variants.of_layout[int(layout)] = compiled;
        variants.layouts.set(size_t(layout));
        if (row(kernel).kind != KernelKind::vectors) {
            layouts[dtype].set(size_t(layout));
        }
    }

    void find_out_whether_complete() {
#define HBN_KERNEL(name, generator, parameters, activation, kind, layouts) \
    require(Kernel::name, "");
#include "runtime/operations.def"
#define HBN_VECTOR_KERNEL(name, dtypes) require(Kernel::name, #dtypes);
#include "runtime/operations.def"
        for (int from = 0; from < kDTypes; from++) {
            for (int to = 0; to < kDTypes; to++) {
                complete = complete && (from == to || conversions[from][to]);
            }
        }
    }

    // `dtypes`: separated by spaces; all if empty. Conversions are looked at by themselves.
    void require(Kernel kernel, std::string_view dtypes) {
        for (int dtype = 0; dtype < kDTypes && kernel != Kernel::convert; dtype++) {
            const bool wanted =
                dtypes.empty() || dtypes.find(dtype_name(hbn_dtype(dtype))) != dtypes.npos;
            complete = complete && (!wanted || kernels[int(kernel)][dtype].layouts.any());
        }
    }
};

static_assert(std::is_trivially_destructible_v<Registry>);

Registry &registry() {
    // In static memory, without a destructor: the first call allocates nothing, and static objects' destructors may
    // still call hbn.
    static Registry all;
    return all;
}

// Null for a dtype that has no kernels.
Variants *variants_of(Kernel kernel, hbn_dtype dtype) {
    return kernel < Kernel::none && dtype >= 0 && dtype < kDTypes
               ? &registry().kernels[int(kernel)][dtype]
               : nullptr;
}

Arg kernel_argument_named(std::string_view name) {
    struct Tuple {
        const char *first;
        Arg second;
    };
    constexpr Tuple tuples[] = {
#define HBN_TUPLE(first, second) {#first, Arg::second},
#include "runtime/operations.def"
    };
    if (name.size() > 2 && name[name.size() - 2] == '.') {
        const bool second = name.back() == '1';
        name.remove_suffix(2);
        for (const Tuple &tuple : tuples) {
            if (second && name == tuple.first) {
                return tuple.second;
            }
        }
    }
    return argument_named(name);
}

// Of a vector's elements.
hbn_dtype dtype_of(halide_type_t type) {
    return type.code == halide_type_bfloat ? HBN_BFLOAT16
           : type.bits == 16               ? HBN_FLOAT16
           : type.bits == 32               ? HBN_FLOAT32
           : type.code == halide_type_uint ? HBN_UINT8
                                           : HBN_FLOAT64;
}

// Where KernelView has it, in bytes; 0 for what is not the view's.
int view_offset(Arg arg) {
    switch (arg) {
#define HBN_ARGUMENT_view(name, member) \
    case Arg::name:                     \
        return offsetof(KernelView, member);
#define HBN_ARGUMENT_tensor(...)
#define HBN_ARGUMENT_mask(...)
#define HBN_ARGUMENT_parameter(...)
#define HBN_ARGUMENT_statistic(...)
#define HBN_ARGUMENT_activation(...)
#define HBN_ARGUMENT_number(...)
#define HBN_ARGUMENT(role, ...) HBN_ARGUMENT_##role(__VA_ARGS__)
#include "runtime/operations.def"
    default:
        return 0;
    }
}

hbn_status read_signature(const halide_filter_metadata_t &metadata, Signature *signature) {
    int buffers = 0, tensors = 0;
    for (int i = 0; i < metadata.num_arguments; i++) {
        const halide_filter_argument_t &argument = metadata.arguments[i];
        const Arg arg = kernel_argument_named(argument.name);
        const bool is_buffer = argument.kind != halide_argument_kind_input_scalar;
        if (arg == Arg::none || is_buffer != (is_tensor(arg) || is_vector(arg)) ||
            role(arg) == Role::activation) {
            return fail(HBN_UNSUPPORTED, text::unknown_kernel_argument, metadata.name,
                        argument.name);
        }
        buffers += is_buffer;
        tensors += is_tensor(arg);
        if (i >= kMostKernelArguments || buffers > kMostKernelBuffers || tensors > kMostTensors) {
            return fail(HBN_UNSUPPORTED, text::too_many_kernel_arguments, metadata.name);
        }
        signature->arguments[signature->size++] = {
            arg,
            role(arg),
            argument.kind == halide_argument_kind_output_buffer,
            dtype_of(argument.type),
            argument.type,
            view_offset(arg)};
    }
    return HBN_OK;
}

bool same(const Signature &a, const Signature &b) {
    if (a.size != b.size) {
        return false;
    }
    for (int i = 0; i < a.size; i++) {
        const Signature::Argument &x = a.arguments[i], &y = b.arguments[i];
        if (x.arg != y.arg || x.is_output != y.is_output || x.type != y.type) {
            return false;
        }
    }
    return true;
}

hbn_status check_same(const Signature &signature, const halide_filter_metadata_t &metadata) {
    Signature other;
    HBN_TRY(read_signature(metadata, &other));
    return same(signature, other)
               ? HBN_OK
               : fail(HBN_UNSUPPORTED, text::kernel_arguments_differ, metadata.name);
}

hbn_status read_signature(const Variants &variants, Signature *signature) {
    bool first = true;
    for (const CompiledKernel &compiled : variants.of_layout) {
        if (!compiled.call) {
            continue;
        }
        const halide_filter_metadata_t &metadata = *compiled.metadata();
        HBN_TRY(first ? read_signature(metadata, signature) : check_same(*signature, metadata));
        first = false;
    }
    return HBN_OK;
}

// The text of halide_error() during this thread's current call.
thread_local char halide_message[256] = "";

}  // namespace

bool has_kernel(Kernel kernel, hbn_dtype dtype) {
    const Variants *variants = variants_of(kernel, dtype);
    return variants && variants->layouts.any();
}

bool has_every_kernel() {
    return registry().complete;
}

bool has_conversion(hbn_dtype from, hbn_dtype to) {
    const auto in_table = [](hbn_dtype dtype) { return dtype >= 0 && dtype < kDTypes; };
    return in_table(from) && in_table(to) && (from == to || registry().conversions[from][to]);
}

hbn_status no_kernel(Kernel kernel, hbn_dtype dtype) {
    return fail(HBN_UNSUPPORTED, text::no_kernel,
                kernel < Kernel::none ? row(kernel).name : "a kernel", dtype_name(dtype));
}

std::bitset<kLayouts> layouts_of(Kernel kernel, hbn_dtype dtype) {
    return variants_of(kernel, dtype)->layouts;
}

std::bitset<kLayouts> layouts_of(hbn_dtype dtype) {
    return registry().layouts[dtype];
}

hbn_status signature_of(Kernel kernel, hbn_dtype dtype, const Signature **signature) {
    Variants *variants = variants_of(kernel, dtype);
    if (!variants || variants->layouts.none()) {
        return no_kernel(kernel, dtype);
    }
    *signature = variants->signature.load(std::memory_order_acquire);
    if (*signature) {
        return HBN_OK;
    }
    static std::mutex reading;
    static Signature all[kKernels][kDTypes];
    const std::lock_guard<std::mutex> lock(reading);
    Signature &mine = all[int(kernel)][dtype];
    if (!variants->signature.load(std::memory_order_relaxed)) {
        mine = {};
        HBN_TRY(read_signature(*variants, &mine));
        for (const TunedEntry *entry = first_tuned_entries[int(kernel)][dtype]; entry;
             entry = entry->next) {
            for (const CompiledKernel &tuned : entry->tuning.kernels) {
                if (tuned.call) {
                    HBN_TRY(check_same(mine, *tuned.metadata()));
                }
            }
        }
        variants->signature.store(&mine, std::memory_order_release);
    }
    *signature = &mine;
    return HBN_OK;
}

hbn_status check_signature(Kernel kernel, hbn_dtype dtype,
                           const halide_filter_metadata_t &metadata) {
    const Signature *signature;
    HBN_TRY(signature_of(kernel, dtype, &signature));
    return check_same(*signature, metadata);
}

// ---- calls

hbn_status ArgumentList::run(int (*kernel)(void **), const char *name, bool serial, bool streams) {
    const KernelScope scope(serial, streams);
    halide_message[0] = '\0';
    const int code = run_kernel(kernel, args_, &buffer(0), is_output_, num_buffers_);
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

hbn_status ArgumentList::run(Kernel kernel, hbn_dtype dtype, Layout layout, int64_t elements,
                             bool streams, const Tuning &tuning) {
    const Variants *variants = variants_of(kernel, dtype);
    if (!variants || !variants->of_layout[int(layout)].call) {
        return no_kernel(kernel, dtype);
    }
    const CompiledKernel &own = variants->of_layout[int(layout)], &tuned = tuning.kernel(layout);
    return run(tuned.call ? tuned.call : own.call, row(kernel).name,
               elements < tuning.thresholds.serial_elements, streams);
}

hbn_status ArgumentList::run_conversion(hbn_dtype from, hbn_dtype to, int64_t elements) {
    if (!has_conversion(from, to)) {
        return no_kernel(Kernel::convert, from);
    }
    return run(registry().conversions[from][to], row(Kernel::convert).name,
               elements < kDefaultThresholds.serial_elements, false);
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
    ArgumentList list;
    list.add_vector(from, nullptr, false);
    list.add_vector(to, nullptr, true);
    return list.run_conversion(from.dtype, to.dtype, from.size);
}

}  // namespace hbn::internal

extern "C" {

void halide_error(void *, const char *message) {
    std::strncpy(hbn::internal::halide_message, message, sizeof(hbn::internal::halide_message) - 1);
}

}  // extern "C"
