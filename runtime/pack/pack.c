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

static int may_share(const span *a, const span *b) {
    return a->data == b->data && a->shares && b->shares && !(a->written && b->written);
}

static int overlap(const span *a, const span *b) {
    const uintptr_t first = (uintptr_t)a->data, second = (uintptr_t)b->data;
    return first < second + b->bytes && second < first + a->bytes;
}

hbn_status hbn_pack_check(hbn_shape shape, const span *spans, int count) {
    int i, j;
    HBN_TRY(check_shape(shape));
    for (i = 0; i < count; i++) {
        if (!spans[i].data) {
            return HBN_NULL_POINTER;
        }
        if ((uintptr_t)spans[i].data % spans[i].alignment) {
            return HBN_MISALIGNED;
        }
    }
    for (i = 0; i < count; i++) {
        for (j = 0; j < i; j++) {
            if ((spans[i].written || spans[j].written) && overlap(&spans[i], &spans[j]) &&
                !may_share(&spans[i], &spans[j])) {
                return HBN_OVERLAP;
            }
        }
    }
    return HBN_OK;
}

int hbn_pack_is_momentum(double momentum) {
    return momentum - momentum == 0;
}

int hbn_pack_is_eps(double eps) {
    return eps > 0 && eps - eps == 0;
}

static span values(const void *data, uint32_t count, size_t value_bytes, int written) {
    span s;
    s.data = data;
    s.bytes = count * value_bytes;
    s.alignment = (uint8_t)value_bytes;
    s.written = (uint8_t)written;
    s.is_tensor = 0;
    s.shares = 0;
    return s;
}

/* Of a shape that check_shape() refuses, any number will do. */
static uint32_t elements(hbn_shape shape) {
    return (uint32_t)shape.n * (uint32_t)shape.c * (uint32_t)shape.h * (uint32_t)shape.w;
}

span hbn_pack_tensor(const hbn_element *data, hbn_shape shape, int written) {
    span s = values(data, elements(shape), sizeof(hbn_element), written);
    s.is_tensor = 1;
    s.shares = 1;
    return s;
}

span hbn_pack_mask(const uint8_t *data, hbn_shape shape, int written) {
    span s = values(data, elements(shape), 1, written);
    s.is_tensor = 1;
    return s;
}

span hbn_pack_vector(const void *data, int32_t channels, size_t value_bytes, int written) {
    return values(data, (uint32_t)channels, value_bytes, written);
}

void hbn_pack_start(call *c, hbn_shape shape, const span *spans, int count) {
    int i;
#if HBN_PACK_ANY_FREE
    /* Kernels take H and W as one. */
    const int32_t plane = shape.h * shape.w;
    const int32_t sizes[4] = {plane, 1, shape.c, shape.n};
    const int32_t strides[4] = {HBN_PACK_NHWC ? shape.c : 1, plane, HBN_PACK_NHWC ? 1 : plane,
                                plane * shape.c};
    for (i = 0; i < 4; i++) {
        c->tensor_dims[i].min = 0;
        c->tensor_dims[i].extent = sizes[i];
        c->tensor_dims[i].stride = strides[i];
        c->tensor_dims[i].flags = 0;
    }
    c->vector_dims[0] = c->tensor_dims[2];
    c->vector_dims[0].stride = 1;
#else
    (void)shape;
#endif
    for (i = 0; i < count; i++) {
        halide_buffer_t *buffer = &c->buffers[i];
        buffer->device = 0;
        buffer->device_interface = NULL;
        buffer->host = (uint8_t *)spans[i].data;
        buffer->flags = 0;
#if HBN_PACK_ANY_FREE
        buffer->dimensions = spans[i].is_tensor ? 4 : 1;
        buffer->dim = spans[i].is_tensor ? c->tensor_dims : c->vector_dims;
#endif
    }
}
