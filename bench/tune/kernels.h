// Which call of hbn's C interface runs a kernel, so that the tuner can measure and check it there.
#ifndef HBN_BENCH_TUNE_KERNELS_H
#define HBN_BENCH_TUNE_KERNELS_H

#include "bench/compare/operations.h"
#include "runtime/engine/kernels.h"

#include <string>
#include <vector>

namespace hbn::tune {

// What a kernel's results are held to.
enum class Results { forward, stats, normalize, backward, backward_reduce, backward_elemt };

struct KernelCall {
    internal::Kernel kernel;
    const char *operation;  // of compare/operations.h; it calls no other kernel on tensors
    Results results;
    bool training = false;  // by batch statistics
    bool relu = false;
    bool add = false;
    bool mask = false;  // forward: whether it writes one
};

// All that the tuner serves.
const std::vector<KernelCall> &kernel_calls();

// @throws std::runtime_error for another name, with those that there are
const KernelCall &kernel_call_of(const std::string &kernel);

struct KernelTensor {
    compare::BufferMember buffer;
    bool is_output;
};

// Those that the kernel itself reads and writes.
// @throws std::runtime_error where this library lacks it
std::vector<KernelTensor> tensors_of(internal::Kernel kernel, hbn_dtype dtype);

}  // namespace hbn::tune

#endif
