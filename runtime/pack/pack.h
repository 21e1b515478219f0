/* What the functions of a pack share: checks, and what kernels are handed. hbn_pack.h, made by cmake/pack.py, says
   which sizes are fixed. Freestanding: nothing of a C library but memcpy and memset. */
#ifndef HBN_RUNTIME_PACK_H
#define HBN_RUNTIME_PACK_H

#include "hbn.h"
#include "hbn_pack.h"

#include <HalideRuntime.h>
#include <stddef.h>

/* Memory that an argument names. */
typedef struct span {
    const void *data;
    size_t bytes;
    uint8_t alignment;
    uint8_t written;
    uint8_t is_tensor; /* not a vector */
    uint8_t shares;    /* an output may be the memory of an input */
} span;

span hbn_pack_tensor(const hbn_element *data, hbn_shape shape, int written);
span hbn_pack_mask(const uint8_t *data, hbn_shape shape, int written);
span hbn_pack_vector(const void *data, int32_t channels, size_t value_bytes, int written);

hbn_status hbn_pack_check(hbn_shape shape, const span *spans, int count);
/* eps is positive and finite; momentum finite. */
int hbn_pack_is_eps(double eps);
int hbn_pack_is_momentum(double momentum);

/* What kernels read of their arguments: pointers, and the sizes that are not fixed. */
typedef struct call {
    halide_buffer_t buffers[10];
#if HBN_PACK_ANY_FREE
    halide_dimension_t tensor_dims[4], vector_dims[1];
#endif
} call;

void hbn_pack_start(call *c, hbn_shape shape, const span *spans, int count);

#define HBN_TRY(expression)                   \
    do {                                      \
        const hbn_status status = expression; \
        if (status != HBN_OK) {               \
            return status;                    \
        }                                     \
    } while (0)

#define HBN_COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

#endif
