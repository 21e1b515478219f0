#include "pack.h"

/* With an addition: the residual, and which elements passed. */
#if HBN_ADD
#define RESIDUAL const hbn_element *residual,
#define MASK uint8_t *mask,
#define ADDED_SPANS , hbn_pack_tensor(residual, shape, 0), hbn_pack_mask(mask, shape, 1)
#define TENSORS b + 8, b + 5, b + 9
#else
#define RESIDUAL
#define MASK
#define ADDED_SPANS
#define TENSORS b + 5
#endif

hbn_status HBN_FUNCTION(hbn_shape shape, const hbn_element *x, RESIDUAL const float *weight,
                        const float *bias, float *running_mean, float *running_var, double momentum,
                        double eps, hbn_element *y, MASK double *save_mean, double *save_invstd) {
    span spans[] = {hbn_pack_tensor(x, shape, 0),
                    hbn_pack_vector(weight, shape.c, sizeof(float), 0),
                    hbn_pack_vector(bias, shape.c, sizeof(float), 0),
                    hbn_pack_vector(running_mean, shape.c, sizeof(float), 1),
                    hbn_pack_vector(running_var, shape.c, sizeof(float), 1),
                    hbn_pack_tensor(y, shape, 1),
                    hbn_pack_vector(save_mean, shape.c, sizeof(double), 1),
                    hbn_pack_vector(save_invstd, shape.c, sizeof(double), 1) ADDED_SPANS};
    call c;
    halide_buffer_t *b = c.buffers;
#if HBN_ADD
    /* y is written before the mask is found from x and residual. */
    spans[5].shares = 0;
#endif
    HBN_TRY(hbn_pack_check(shape, spans, HBN_COUNT(spans)));
    if (shape.n == 1 && shape.h == 1 && shape.w == 1) {
        return HBN_INVALID_SHAPE;
    }
    if (!hbn_pack_is_eps(eps) || !hbn_pack_is_momentum(momentum)) {
        return HBN_INVALID_NUMBER;
    }
    hbn_pack_start(&c, shape, spans, HBN_COUNT(spans));
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, momentum, eps, TENSORS, b + 6, b + 7, b + 3, b + 4);
    return HBN_OK;
}
