#include "pack.h"

hbn_status HBN_FUNCTION(hbn_shape shape, const hbn_element *x, const float *scale,
                        const float *shift, hbn_element *y) {
    const span spans[] = {
        hbn_pack_tensor(x, shape, 0), hbn_pack_vector(scale, shape.c, sizeof(float), 0),
        hbn_pack_vector(shift, shape.c, sizeof(float), 0), hbn_pack_tensor(y, shape, 1)};
    call c;
    halide_buffer_t *b = c.buffers;
    HBN_TRY(hbn_pack_check(shape, spans, HBN_COUNT(spans)));
    hbn_pack_start(&c, shape, spans, HBN_COUNT(spans));
    HBN_KERNEL(b, b + 1, b + 2, b + 3);
    return HBN_OK;
}
