#include "pack.h"

static int fits(int32_t size, int32_t fixed) {
    return fixed ? size == fixed : size >= 1;
}

static hbn_status check_shape(hbn_shape shape) {
    if (!fits(shape.n, HBN_PACK_N) || !fits(shape.c, HBN_PACK_C) || !fits(shape.h, HBN_PACK_H) ||
        !fits(shape.w, HBN_PACK_W)) {
        return HBN_INVALID_SHAPE;
    }
    if (INT32_MAX / shape.n / shape.c / shape.h / shape.w < 1) {
        return HBN_INVALID_SHAPE;
    }
    return HBN_OK;
}

static size_t bytes(hbn_shape shape, uint8_t kind) {
    const uint32_t others =
        kind & HBN_PACK_TENSOR ? (uint32_t)shape.n * (uint32_t)shape.h * (uint32_t)shape.w : 1;
    return (size_t)others * (uint32_t)shape.c * (kind & HBN_PACK_SIZE);
}

static hbn_status check_memory(hbn_shape shape, const uint8_t *kinds, int count,
                               const halide_buffer_t *buffers) {
    int i, j;
    for (i = 0; i < count; i++) {
        if (!buffers[i].host) {
            return HBN_NULL_POINTER;
        }
        if ((uintptr_t)buffers[i].host % (kinds[i] & HBN_PACK_SIZE)) {
            return HBN_MISALIGNED;
        }
    }
    for (i = 0; i < count; i++) {
        for (j = 0; j < i; j++) {
            const uintptr_t a = (uintptr_t)buffers[i].host, b = (uintptr_t)buffers[j].host;
            const int overlap = a < b + bytes(shape, kinds[j]) && b < a + bytes(shape, kinds[i]);
            const int written = (kinds[i] | kinds[j]) & HBN_PACK_WRITTEN;
            const int in_place = a == b && kinds[i] & kinds[j] & HBN_PACK_IN_PLACE &&
                                 !(kinds[i] & kinds[j] & HBN_PACK_WRITTEN);
            if (overlap && written && !in_place) {
                return HBN_OVERLAP;
            }
        }
    }
    return HBN_OK;
}

static void set_dimension(halide_dimension_t *dimension, int32_t extent, int32_t stride) {
    dimension->min = 0;
    dimension->extent = extent;
    dimension->stride = stride;
    dimension->flags = 0;
}

hbn_status hbn_pack_begin(hbn_shape shape, const uint8_t *kinds, int count, hbn_pack_sizes *sizes,
                          halide_buffer_t *buffers) {
    int i;
    HBN_TRY(check_shape(shape));
    HBN_TRY(check_memory(shape, kinds, count, buffers));
#if HBN_PACK_ANY_FREE
    {
        /* Kernels take H and W as one. */
        const int32_t plane = shape.h * shape.w;
        set_dimension(&sizes->tensor[0], plane, HBN_PACK_NHWC ? shape.c : 1);
        set_dimension(&sizes->tensor[1], 1, plane);
        set_dimension(&sizes->tensor[2], shape.c, HBN_PACK_NHWC ? 1 : plane);
        set_dimension(&sizes->tensor[3], shape.n, plane * shape.c);
        set_dimension(&sizes->vector, shape.c, 1);
    }
#endif
    (void)sizes;
    for (i = 0; i < count; i++) {
        buffers[i].device = 0;
        buffers[i].device_interface = NULL;
        buffers[i].flags = 0;
#if HBN_PACK_ANY_FREE
        buffers[i].dimensions = kinds[i] & HBN_PACK_TENSOR ? 4 : 1;
        buffers[i].dim = kinds[i] & HBN_PACK_TENSOR ? sizes->tensor : &sizes->vector;
#endif
    }
    return HBN_OK;
}

hbn_status hbn_pack_begin_vectors(int32_t num_features, const uint8_t *kinds, int count,
                                  hbn_pack_sizes *sizes, halide_buffer_t *buffers) {
    const hbn_shape shape = {HBN_PACK_N ? HBN_PACK_N : 1, num_features, HBN_PACK_H ? HBN_PACK_H : 1,
                             HBN_PACK_W ? HBN_PACK_W : 1};
    int i;
    HBN_TRY(hbn_pack_begin(shape, kinds, count, sizes, buffers));
    set_dimension(&sizes->vector, num_features, 1);
    for (i = 0; i < count; i++) {
        buffers[i].dimensions = 1;
        buffers[i].dim = &sizes->vector;
    }
    return HBN_OK;
}

hbn_status hbn_pack_check_batch(hbn_shape shape) {
    return shape.n == 1 && shape.h == 1 && shape.w == 1 ? HBN_INVALID_SHAPE : HBN_OK;
}

hbn_status hbn_pack_check_finite(double number) {
    return number - number == 0 ? HBN_OK : HBN_INVALID_NUMBER;
}

hbn_status hbn_pack_check_positive(double number) {
    return number > 0 ? hbn_pack_check_finite(number) : HBN_INVALID_NUMBER;
}

hbn_status hbn_pack_check_order(double low, double high) {
    return low <= high ? HBN_OK : HBN_INVALID_NUMBER;
}
