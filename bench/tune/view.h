// What the engine would make of a cell's tensors, without a call: how its thresholds make a difference, or none.
#ifndef HBN_BENCH_TUNE_VIEW_H
#define HBN_BENCH_TUNE_VIEW_H

#include "bench/compare/buffers.h"
#include "bench/tune/kernels.h"
#include "runtime/engine/layout.h"

#include <string>

namespace hbn::tune {

// In JSON. Views are equal where all that a kernel is given is.
std::string view_of(const KernelCall &call, const compare::Buffers &buffers,
                    const internal::Thresholds &thresholds);

}  // namespace hbn::tune

#endif
