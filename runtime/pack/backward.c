#include "pack.h"

/* A fused ReLU's gradient takes the bias, too: it computes again what forward did. */
#if HBN_WITH_BIAS
#define BIAS_PARAMETER const float *bias,
#define BIAS_SPAN hbn_pack_vector(bias, shape.c, sizeof(float), 0),
#else
#define BIAS_PARAMETER
#define BIAS_SPAN
#endif

hbn_status HBN_FUNCTION(hbn_shape shape, const hbn_element *grad_output, const hbn_element *x,
                        const HBN_SAVED *save_mean, const HBN_SAVED *save_invstd,
                        const float *weight, BIAS_PARAMETER hbn_element *grad_input,
                        float *grad_weight, float *grad_bias) {
    const span spans[] = {hbn_pack_tensor(grad_output, shape, 0),
                          hbn_pack_tensor(x, shape, 0),
                          hbn_pack_vector(save_mean, shape.c, sizeof(HBN_SAVED), 0),
                          hbn_pack_vector(save_invstd, shape.c, sizeof(HBN_SAVED), 0),
                          hbn_pack_vector(weight, shape.c, sizeof(float), 0),
                          BIAS_SPAN hbn_pack_tensor(grad_input, shape, 1),
                          hbn_pack_vector(grad_weight, shape.c, sizeof(float), 1),
                          hbn_pack_vector(grad_bias, shape.c, sizeof(float), 1)};
    call c;
    halide_buffer_t *b = c.buffers;
    HBN_TRY(hbn_pack_check(shape, spans, HBN_COUNT(spans)));
    hbn_pack_start(&c, shape, spans, HBN_COUNT(spans));
#if HBN_WITH_BIAS
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, b + 5, b + 6, b + 7, b + 8);
#else
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, b + 5, b + 6, b + 7);
#endif
    return HBN_OK;
}
