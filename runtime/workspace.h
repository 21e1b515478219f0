// Vectors of one value a channel that an operation needs for itself, in the memory that its Call booked.
#ifndef HBN_RUNTIME_WORKSPACE_H
#define HBN_RUNTIME_WORKSPACE_H

#include <hbn/hbn.h>

namespace hbn::internal {

class Workspace {
public:
    // For the next block of channels: take() hands out `vectors` vectors of `channels` values, neither of them more
    // than Call::begin() was told. What was taken before is void.
    static hbn_status begin(int vectors, int64_t channels);

    // Dense, 64-byte aligned, uninitialized.
    static hbn_vector take(hbn_dtype dtype);
};

}  // namespace hbn::internal

#endif
