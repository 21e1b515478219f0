// How much scratch memory kernels ask for.
#ifndef HBN_RUNTIME_SCRATCH_BOUND_H
#define HBN_RUNTIME_SCRATCH_BOUND_H

#include <hbn/hbn.h>

namespace hbn::internal {

struct ScratchBytes {
    int64_t caller;  // for the thread that calls the kernel, which runs tasks, too
    int64_t task;    // for each other thread that runs tasks
};

// Upper bounds for any kernel over `channels` channels of `per_channel` values (N*H*W) of this dtype, and for any
// kernel over smaller parts of such a tensor. `per_channel` is 0 for kernels over (C) alone.
//
// Device builds allocate what they please, from the context's allocator.
ScratchBytes scratch_bytes(int64_t channels, int64_t per_channel, hbn_dtype dtype);

}  // namespace hbn::internal

#endif
