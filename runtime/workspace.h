// Per-channel scratch. Grows to the largest call of a thread and stays, so that steady-state calls
// allocate nothing.
#ifndef HBN_RUNTIME_WORKSPACE_H
#define HBN_RUNTIME_WORKSPACE_H

#include <hbn/hbn.h>

namespace hbn::internal {

class Workspace {
public:
    // Room for `vectors` vectors of `channels` values of any dtype, which take() hands out; what an
    // earlier call of this thread took is void. Fails before anything is written, with
    // HBN_OUT_OF_MEMORY.
    static hbn_status begin(int vectors, int64_t channels, int64_t staging_bytes = 0);

    // Dense, 64-byte aligned, uninitialized.
    static hbn_vector take(hbn_dtype dtype);

    // The `staging_bytes` that begin() made room for, 64-byte aligned.
    static char *staging();
};

}  // namespace hbn::internal

#endif
