// Tuned entries: for shapes of one kernel and dtype, the thresholds and the kernel to use in place of the defaults.
// schedules/tuned/ has them; those that were measured on this machine's processor are used. Of the callers' tensors they
// are for dense ones, NCHW or NHWC.
#ifndef HBN_RUNTIME_ENGINE_TUNING_H
#define HBN_RUNTIME_ENGINE_TUNING_H

#include "layout.h"

#include <HalideRuntime.h>

namespace hbn::internal {

// A kernel for one layout; none where `call` is null.
struct CompiledKernel {
    int (*call)(void **) = nullptr;
    const halide_filter_metadata_t *(*metadata)() = nullptr;
};

// What to do in place of the defaults.
struct Tuning {
    Thresholds thresholds;
    CompiledKernel kernels[kLayouts];  // the library's own, where there is none
};

// ---- for the tuner and for tests. Not thread-safe: no call may be in progress.

// From now on every call of this kernel on dense tensors of this dtype does so; no entry is looked for. Without thresholds
// and kernels that is the default. Fails, and changes nothing, where a threshold is out of range, where the library lacks
// the kernel, or where one of `tuning.kernels` takes other arguments than the library's. Kernels must not be unloaded
// before clear_tunings(). last_view() tells whether one was used.
hbn_status set_tuning(Kernel kernel, hbn_dtype dtype, const Tuning &tuning);
// Ends what set_tuning() did for all kernels.
void clear_tunings();

// Sets the threshold of this name, as `name=value` has it. That of `layout` may be a name of layouts.def, or -1. Fails with
// what is allowed.
hbn_status set_threshold(const char *name, const char *value, Thresholds *thresholds);

// As entries name this machine's processor: "GenuineIntel 6 207".
const char *processor_name();

}  // namespace hbn::internal

#endif
