#ifndef HBN_RUNTIME_MOMENTS_H
#define HBN_RUNTIME_MOMENTS_H

#include "pieces.h"

namespace hbn::internal {

// mean and m2 (dense float64) of a block of channels, over its pieces.
hbn_status reduce_moments(const hbn_tensor &x, const Pieces &pieces, const hbn_vector &mean,
                          const hbn_vector &m2);

// Kernels that reduce_moments needs.
hbn_status require_moments(const hbn_tensor &x);

// From moments of a block to what the caller keeps (absent vectors are not wanted). The running
// buffers are untouched when momentum is 0.
hbn_status finalize(const hbn_vector &moments_mean, const hbn_vector &moments_m2, double count,
                    double momentum, double eps, hbn_dtype dtype, const hbn_vector &running_mean,
                    const hbn_vector &running_var, const hbn_vector &mean,
                    const hbn_vector &invstd);

}  // namespace hbn::internal

#endif
