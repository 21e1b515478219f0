#include "pack.h"

/* A fused ReLU's gradient takes the bias, to compute again what forward did; that of an addition and a ReLU the mask
   that forward kept. */
#if HBN_ADD
#define MORE_INPUT const uint8_t *mask,
#define MORE_INPUT_SPAN hbn_pack_mask(mask, shape, 0)
#define GRAD_RESIDUAL hbn_element *grad_residual,
#elif HBN_RELU
#define MORE_INPUT const float *bias,
#define MORE_INPUT_SPAN hbn_pack_vector(bias, shape.c, sizeof(float), 0)
#define GRAD_RESIDUAL
#else
#define MORE_INPUT
#define GRAD_RESIDUAL
#endif

hbn_status HBN_FUNCTION(hbn_shape shape, const hbn_element *grad_output, const hbn_element *x,
                        const double *save_mean, const double *save_invstd, const float *weight,
                        MORE_INPUT hbn_element *grad_input, GRAD_RESIDUAL float *grad_weight,
                        float *grad_bias) {
    span spans[] = {
        hbn_pack_tensor(grad_output, shape, 0),
        hbn_pack_tensor(x, shape, 0),
        hbn_pack_vector(save_mean, shape.c, sizeof(double), 0),
        hbn_pack_vector(save_invstd, shape.c, sizeof(double), 0),
        hbn_pack_vector(weight, shape.c, sizeof(float), 0),
        hbn_pack_vector(grad_weight, shape.c, sizeof(float), 1),
        hbn_pack_vector(grad_bias, shape.c, sizeof(float), 1),
        hbn_pack_tensor(grad_input, shape, 1),
#if HBN_RELU
        MORE_INPUT_SPAN,
#endif
#if HBN_ADD
        hbn_pack_tensor(grad_residual, shape, 1),
#endif
    };
    call c;
    halide_buffer_t *b = c.buffers;
#if HBN_ADD
    /* Both outputs are written before all of grad_output has been read. */
    spans[7].shares = spans[9].shares = 0;
#endif
    HBN_TRY(hbn_pack_check(shape, spans, HBN_COUNT(spans)));
    hbn_pack_start(&c, shape, spans, HBN_COUNT(spans));
#if HBN_ADD
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, b + 8, b + 7, b + 9, b + 5, b + 6);
#elif HBN_RELU
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, b + 8, b + 7, b + 5, b + 6);
#else
    HBN_KERNEL(b, b + 1, b + 2, b + 3, b + 4, b + 7, b + 5, b + 6);
#endif
    return HBN_OK;
}
