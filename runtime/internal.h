// What tests may reach into.
#ifndef HBN_RUNTIME_INTERNAL_H
#define HBN_RUNTIME_INTERNAL_H

#include <cstdint>

namespace hbn::internal {

// Kernels index with 32 bits; larger problems are cut into pieces that stay below this many
// elements (and whose strides reach no further). Tests lower it to cut small ones; 0 restores the
// default. Not thread-safe.
void set_max_elements_per_kernel(int64_t elements);

// Of one tensor's copy (runtime/engine/staging.h). Tests lower it to cut small tensors; 0 restores the default. Not
// thread-safe.
void set_max_staged_bytes(int64_t bytes);

}  // namespace hbn::internal

#endif
