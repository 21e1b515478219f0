// Tuned entries: for shapes of one kernel and dtype, the thresholds and the kernel to use in place of the defaults.
// schedules/tuned/ has them; those that were measured on this machine's processor are used. Of callers' tensors they are
// for dense ones, NCHW or NHWC.
#ifndef HBN_RUNTIME_ENGINE_TUNING_H
#define HBN_RUNTIME_ENGINE_TUNING_H

#include "layout.h"

#include <HalideRuntime.h>

namespace hbn::internal {

// The float dtypes, which tables of kernels are indexed by.
constexpr int kDTypes = 4;
static_assert(HBN_FLOAT32 == 0 && HBN_FLOAT16 == kDTypes - 1, "float dtypes come first");

// A kernel for one layout; none where `call` is null.
struct CompiledKernel {
    int (*call)(void **) = nullptr;
    const halide_filter_metadata_t *(*metadata)() = nullptr;
};

// What to do in place of the defaults.
struct Tuning {
    Thresholds thresholds;
    CompiledKernel kernels[kLayouts];  // the library's own, where there is none

    const CompiledKernel &kernel(Layout layout) const {
        return kernels[int(layout)];
    }
};
inline constexpr Tuning kDefaultTuning;

// ---- for the tuner and for tests. Not thread-safe: no call may be in progress.

// From now on every call of this kernel on dense tensors of this dtype does so; no entry is looked for. Without thresholds
// and kernels that is the default. Fails, and changes nothing, where a threshold is out of range, where the library lacks
// the kernel, or where one of `tuning.kernels` takes other arguments than the library's. Kernels must not be unloaded
// before clear_tunings(). last_view() tells whether one was used.
hbn_status set_tuning(Kernel kernel, hbn_dtype dtype, const Tuning &tuning);
// Ends what set_tuning() did, for all kernels.
void clear_tunings();

// Sets the threshold of this name, as `name=value` has it. That of `layout` may be a name of layouts.def, or -1. Fails with
// what is allowed.
hbn_status set_threshold(const char *name, const char *value, Thresholds *thresholds);

// As entries name this machine's processor: "GenuineIntel 6 207".
const char *processor_name();
// Has entries for this processor used in place of this machine's own; null: for its own again. The name must live on.
void set_processor_name(const char *name);

// ---- thresholds by name

struct ThresholdRow {
    const char *name;
    int64_t Thresholds::*member;
    int64_t least, most;
};
inline constexpr ThresholdRow kThresholdRows[] = {
#define HBN_THRESHOLD(name, initial, least, most, description) \
    {#name, &Thresholds::name, least, most},
#include "thresholds.def"
};

// The least and the most that any call may have of each, with the entries and tunings that are in use.
struct ThresholdRange {
    Thresholds least, most;
};
const ThresholdRange &thresholds_in_use();

// ---- entries

// One of schedules/tuned/; see its schema.
struct TunedEntry {
    Kernel kernel;
    hbn_dtype dtype;
    const char *kernel_name;    // of its tuned kernel; null where it has none
    bool nchw, nhwc;            // which dense tensors it is for
    int64_t least[3], most[3];  // of N, C and H * W
    const char *processor;      // null: any
    int instruction_set;        // its index in hbn_instruction_sets(); -1: any
    const char *place;          // the file and line
    double ratio;               // the default's time / its own, as measured
    Tuning tuning;
    const TunedEntry *next = nullptr;  // of its kernel, dtype and processor

    bool is_for(bool in_nhwc, const int64_t *sizes) const {
        const int64_t mine[3] = {sizes[0], sizes[1], sizes[2] * sizes[3]};
        bool is = in_nhwc ? nhwc : nchw;
        for (int i = 0; i < 3; i++) {
            is = is && mine[i] >= least[i] && mine[i] <= most[i];
        }
        return is;
    }
};

// Those that this library was built with, whatever their processor (kernels.cpp).
struct TunedEntries {
    TunedEntry *first;
    int count;
};

// Chooses of all entries those for this processor. Once, before the first call.
void load_tuned_entries(TunedEntries all);
TunedEntries all_tuned_entries();

// The first entry in use of each kernel and dtype.
extern const TunedEntry *first_tuned_entries[kKernels][kDTypes];
const TunedEntry *find_tuned_entry(const TunedEntry *first, const hbn_tensor *const *tensors,
                                   int count);

// That for a call; null for none. Kernels and dtypes without entries pay for one branch.
inline const TunedEntry *tuned_entry(Kernel kernel, hbn_dtype dtype,
                                     const hbn_tensor *const *tensors, int count) {
    const TunedEntry *first = first_tuned_entries[int(kernel)][dtype];
    return first ? find_tuned_entry(first, tensors, count) : nullptr;
}
inline const Tuning &tuning_of(const TunedEntry *entry) {
    return entry ? entry->tuning : kDefaultTuning;
}

// ---- for hbn-info: what a call on dense tensors of these sizes, at aligned addresses, does

struct Explanation {
    KernelView view;
    bool serial;              // whether one thread runs it
    const TunedEntry *entry;  // null for none
    const char *why_none;     // null where there is one
};
// Fails where the library lacks the kernel, or cuts such tensors into pieces.
hbn_status explain_call(Kernel kernel, hbn_dtype dtype, const int64_t (&sizes)[4], bool in_nhwc,
                        Explanation *explanation);

}  // namespace hbn::internal

#endif
