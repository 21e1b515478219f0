#include "gradient_sums.h"

#include "dispatch.h"
#include "vectors.h"
#include "workspace.h"

namespace hbn::internal {

hbn_status reduce_gradients(const hbn_tensor &grad_output, const hbn_tensor &x,
                            const Pieces &pieces, const hbn_vector &center, const hbn_vector &scale,
                            const hbn_vector &sum_dy, const hbn_vector &sum_dy_xmu,
                            const hbn_vector &grad_weight, const hbn_vector &grad_bias) {
    if (pieces.one()) {
        return call(Operation::backward_reduce,
                    {in(grad_output), in(x), in(center), in(scale), out(sum_dy), out(sum_dy_xmu),
                     out(grad_weight), out(grad_bias)});
    }
    const hbn_vector piece_dy = Workspace::take(HBN_FLOAT64);
    const hbn_vector piece_dy_xmu = Workspace::take(HBN_FLOAT64);
    fill_zero(&sum_dy);
    fill_zero(&sum_dy_xmu);
    HBN_TRY(pieces.for_each([&](auto cut) {
        HBN_TRY(call(Operation::backward_reduce,
                     {in(cut(grad_output)), in(cut(x)), in(center), in(scale), out(piece_dy),
                      out(piece_dy_xmu), out(grad_weight), out(grad_bias)}));
        for (int64_t c = 0; c < sum_dy.size; c++) {
            store(sum_dy, c, load(sum_dy, c) + load(piece_dy, c));
            store(sum_dy_xmu, c, load(sum_dy_xmu, c) + load(piece_dy_xmu, c));
        }
        return HBN_OK;
    }));
    for (int64_t c = 0; c < sum_dy.size; c++) {
        store(grad_weight, c, load(sum_dy_xmu, c) * load(scale, c));
        store(grad_bias, c, load(sum_dy, c));
    }
    return HBN_OK;
}

}  // namespace hbn::internal
