#ifndef HBN_RUNTIME_GRADIENT_SUMS_H
#define HBN_RUNTIME_GRADIENT_SUMS_H

#include "pieces.h"

namespace hbn::internal {

// sum(dy) and sum(dy * (x - center)) of a block of channels, dense float64, over its pieces; and from these the
// parameters' gradients in the statistic type, the weight's times `scale`. Takes two vectors from the workspace.
hbn_status reduce_gradients(const hbn_tensor &grad_output, const hbn_tensor &x,
                            const Pieces &pieces, const hbn_vector &center, const hbn_vector &scale,
                            const hbn_vector &sum_dy, const hbn_vector &sum_dy_xmu,
                            const hbn_vector &grad_weight, const hbn_vector &grad_bias);

}  // namespace hbn::internal

#endif
