// hbn-info: what this build of the library holds, what of it this machine uses, and what a shape gets.
#include "runtime/checks/dtypes.h"
#include "runtime/engine/kernels.h"

#include <hbn/hbn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

using namespace hbn::internal;

constexpr char kUsage[] =
    "usage: hbn-info\n"
    "       hbn-info --shape N,C,H,W [--dtype float32|float64|bfloat16|float16]\n"
    "                [--layout nchw|nhwc] [--cpu NAME]\n"
    "\n"
    "Prints what this build of the library holds and what of it this machine uses. With a\n"
    "shape: for each kernel on dense tensors of that shape, how it sees them, and which tuned\n"
    "entry (schedules/tuned/) it has, or why none. --cpu is for a look at the entries of another\n"
    "CPU: its name as hbn-info prints it there.\n";

void print_build() {
    std::printf("hbn %s\n", hbn_version());
    std::printf("instruction sets: %s (in use: %s)\n", hbn_instruction_sets(),
                hbn_instruction_set());
    std::printf("threads: %d\n", hbn_get_num_threads());
    std::printf("cpu: %s\n", processor_name());
    std::printf("tuned entries: %d\n", all_tuned_entries().count);
    std::printf("kernels:\n");
#define HBN_BUILT_KERNEL(kernel, dtype, layout) \
    std::printf("  %-30s %-10s %s\n", #kernel, #dtype, #layout);
#define HBN_BUILT_VECTOR_KERNEL(kernel, dtype) std::printf("  %-30s %s\n", #kernel, #dtype);
#define HBN_BUILT_CONVERSION(from, to) std::printf("  %-30s %s to %s\n", "convert", #from, #to);
#include <hbn_kernels.h>
}

// What a kernel's loops run over, and the tiles that it sums.
std::string describe(const KernelView &v, bool reduces) {
    const auto size = [&](int d) { return std::to_string(v.dimensions[d].size); };
    const Cut &cut = v.cut;
    std::string text;
    if (v.in_columns()) {
        text = size(2) + " rows of " + size(0) + " columns";
        if (v.dimensions[1].size > 1) {
            text += " in " + size(1) + " blocks";
        }
        if (reduces) {
            text += ", tiles of " +
                    std::to_string(
                        std::min<int64_t>(cut.units * hbn::tile_row_unit, v.dimensions[2].size)) +
                    " rows";
        }
        return text;
    }
    text = size(0);
    if (v.dimensions[1].size > 1) {
        text += "x" + size(1);
    }
    text += " in " + size(2) + " channels of " + size(3);
    if (reduces) {
        const int64_t width =
            std::min<int64_t>(cut.units * hbn::tile_width_unit, v.dimensions[0].size);
        text += ", tiles of " + std::to_string(width) + "x" + std::to_string(cut.h) + "x" +
                std::to_string(cut.n);
    }
    return text;
}

std::string describe_entry(const Explanation &e) {
    if (!e.entry) {
        return std::string("default: ") + e.why_none;
    }
    std::string text = e.entry->place;
    for (const ThresholdRow &row : kThresholdRows) {
        const int64_t value = e.entry->tuning.thresholds.*row.member;
        if (value != kDefaultThresholds.*row.member) {
            text +=
                std::string(" ") + row.name + "=" +
                (row.member == &Thresholds::layout ? kLayoutNames[value] : std::to_string(value));
        }
    }
    if (e.entry->kernel_name) {
        text += std::string(" ") + e.entry->kernel_name;
        if (!e.entry->tuning.kernel(e.view.layout).call) {
            text += " (for another layout: not used)";
        }
    }
    char ratio[64];
    std::snprintf(ratio, sizeof(ratio), ", %.2f times as fast when tuned", e.entry->ratio);
    return text + ratio;
}

int print_shape(const int64_t (&sizes)[4], hbn_dtype dtype, bool in_nhwc, const char *cpu) {
    std::printf("shape %lld,%lld,%lld,%lld %s %s, cpu %s, instruction set %s, threads %d\n",
                (long long)sizes[0], (long long)sizes[1], (long long)sizes[2], (long long)sizes[3],
                dtype_name(dtype), in_nhwc ? "nhwc" : "nchw", cpu, hbn_instruction_set(),
                hbn_get_num_threads());
    if (all_tuned_entries().count == 0) {
        std::printf("all by default: this build has no tuned entries\n");
    }
    for (int k = 0; k < kKernels; k++) {
        const Kernel kernel = Kernel(k);
        const bool reduces = row(kernel).kind == KernelKind::sums;
        if (row(kernel).kind == KernelKind::vectors || !has_kernel(kernel, dtype)) {
            continue;
        }
        Explanation e;
        if (explain_call(kernel, dtype, sizes, in_nhwc, &e) != HBN_OK) {
            std::fprintf(stderr, "hbn-info: %s\n", hbn_last_error());
            return 1;
        }
        std::printf("  %-30s %-16s %-10s %-11s %s\n", row(kernel).name,
                    kLayoutNames[int(e.view.layout)], e.view.stream ? "streamed" : "stored",
                    e.serial ? "one thread" : "threads", describe(e.view, reduces).c_str());
        if (all_tuned_entries().count > 0) {
            std::printf("  %-30s %s\n", "", describe_entry(e).c_str());
        }
    }
    return 0;
}

int fail_usage(const char *text, const char *value) {
    std::fprintf(stderr, "hbn-info: %s, got '%s'\n%s", text, value, kUsage);
    return 2;
}

// Four positive numbers, separated by commas.
bool read_shape(const char *text, int64_t (&sizes)[4]) {
    double elements = 1;
    for (int d = 0; d < 4; d++) {
        char *end;
        const long long size = std::strtoll(text, &end, 10);
        if (end == text || size < 1 || *end != (d < 3 ? ',' : '\0')) {
            return false;
        }
        elements *= double(size);
        sizes[d] = size;
        text = end + 1;
    }
    return elements < 9e18;
}

}  // namespace

int main(int argc, char **argv) {
    int64_t sizes[4];
    bool has_shape = false, in_nhwc = false;
    hbn_dtype dtype = HBN_FLOAT32;
    const char *cpu = processor_name();
    for (int i = 1; i < argc; i += 2) {
        const auto is = [&](const char *option) { return std::strcmp(argv[i], option) == 0; };
        if (is("--help") || is("-h")) {
            std::printf("%s", kUsage);
            return 0;
        }
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (is("--shape")) {
            if (!read_shape(value, sizes)) {
                return fail_usage("--shape expects four positive numbers, N,C,H,W", value);
            }
            has_shape = true;
        } else if (is("--dtype")) {
            int found = 0;
            while (found < kDTypes && std::strcmp(dtype_name(hbn_dtype(found)), value) != 0) {
                found++;
            }
            if (found == kDTypes) {
                return fail_usage("--dtype expects float32, float64, bfloat16 or float16", value);
            }
            dtype = hbn_dtype(found);
        } else if (is("--layout")) {
            in_nhwc = std::strcmp(value, "nhwc") == 0;
            if (!in_nhwc && std::strcmp(value, "nchw") != 0) {
                return fail_usage("--layout expects nchw or nhwc", value);
            }
        } else if (is("--cpu")) {
            if (!*value) {
                return fail_usage("--cpu expects a CPU's name", value);
            }
            cpu = value;
            set_processor_name(value);
        } else {
            return fail_usage("unknown option", argv[i]);
        }
    }
    if (!has_shape) {
        if (argc > 1) {
            return fail_usage("options are for a --shape", argv[1]);
        }
        print_build();
        return 0;
    }
    return print_shape(sizes, dtype, in_nhwc, cpu);
}
