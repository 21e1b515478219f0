#include "pack.h"

hbn_status HBN_FUNCTION(int32_t num_features, const float *weight, const float *bias,
                        const float *running_mean, const float *running_var, double eps,
                        float *scale, float *shift) {
    const hbn_shape shape = {HBN_PACK_N ? HBN_PACK_N : 1, num_features, HBN_PACK_H ? HBN_PACK_H : 1,
                             HBN_PACK_W ? HBN_PACK_W : 1};
    const span spans[] = {hbn_pack_vector(weight, num_features, sizeof(float), 0),
                          hbn_pack_vector(bias, num_features, sizeof(float), 0),
                          hbn_pack_vector(running_mean, num_features, sizeof(float), 0),
                          hbn_pack_vector(running_var, num_features, sizeof(float), 0),
                          hbn_pack_vector(scale, num_features, sizeof(float), 1),
                          hbn_pack_vector(shift, num_features, sizeof(float), 1)};
    /* The kernel takes its size and stride from here, whatever is fixed. */
    halide_dimension_t dim = {0, num_features, 1, 0};
    call c;
    halide_buffer_t *b = c.buffers;
    int i;
    HBN_TRY(hbn_pack_check(shape, spans, HBN_COUNT(spans)));
    if (!hbn_pack_is_eps(eps)) {
        return HBN_INVALID_NUMBER;
    }
    hbn_pack_start(&c, shape, spans, HBN_COUNT(spans));
    for (i = 0; i < HBN_COUNT(spans); i++) {
        b[i].dimensions = 1;
        b[i].dim = &dim;
    }
    HBN_KERNEL(b, b + 1, b + 2, b + 3, eps, b + 4, b + 5);
    return HBN_OK;
}
