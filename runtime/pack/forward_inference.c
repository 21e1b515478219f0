#include "pack.h"

#if HBN_ADD
#define RESIDUAL const hbn_element *residual,
#define RESIDUAL_SPAN hbn_pack_tensor(residual, shape, 0),
#define OUTPUTS b + 5, b + 6
#else
#define RESIDUAL
#define RESIDUAL_SPAN
#define OUTPUTS b + 5
#endif

hbn_status HBN_FUNCTION(hbn_shape shape, const hbn_element *x, RESIDUAL const float *weight,
                        const float *bias, const float *running_mean, const float *running_var,
                        double eps, hbn_element *y) {
    const span spans[] = {hbn_pack_tensor(x, shape, 0),
                          hbn_pack_vector(weight, shape.c, sizeof(float), 0),
                          hbn_pack_vector(bias, shape.c, sizeof(float), 0),
                          hbn_pack_vector(running_mean, shape.c, sizeof(float), 0),
                          hbn_pack_vector(running_var, shape.c, sizeof(float), 0),
                          RESIDUAL_SPAN hbn_pack_tensor(y, shape, 1)};
    call c;
    halide_buffer_t *b = c.buffers;
    HBN_TRY(hbn_pack_check(shape, spans, HBN_COUNT(spans)));
    if (!hbn_pack_is_eps(eps)) {
        return HBN_INVALID_NUMBER;
    }
    hbn_pack_start(&c, shape, spans, HBN_COUNT(spans));
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, eps, OUTPUTS);
    return HBN_OK;
}
