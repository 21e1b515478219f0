// Copies of tensors from one order in memory to another.
#ifndef HBN_RUNTIME_ENGINE_COPY_H
#define HBN_RUNTIME_ENGINE_COPY_H

#include <hbn/hbn.h>

namespace hbn::internal {

// to[n, c, h, w] = from[n, c, h, w], in parallel. Both are of one shape and dtype, of any strides, and share no memory;
// the elements of `to` don't share any among themselves.
hbn_status copy(const hbn_tensor &from, const hbn_tensor &to);

}  // namespace hbn::internal

#endif
