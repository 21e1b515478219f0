// The memory bound as a contestant: the kernel's compulsory bytes on the kernel's own tensors, and nothing else.
#ifndef HBN_BENCH_TUNE_BOUND_H
#define HBN_BENCH_TUNE_BOUND_H

#include "bench/compare/buffers.h"
#include "bench/tune/kernels.h"

namespace hbn::tune {

class Bound {
public:
    // Whether there is one: for kernels that read one or two tensors and write one.
    static bool exists(const KernelCall &call, hbn_dtype dtype);

    Bound(const KernelCall &call, hbn_dtype dtype, int threads, bool streaming);

    // Moves the bytes once.
    void run(const compare::Buffers &buffers);

private:
    compare::BufferMember inputs_[2] = {}, output_ = nullptr;
    int threads_;
    bool streaming_;
};

}  // namespace hbn::tune

#endif
