/* What the functions of a pack share: checks, and what kernels are handed. cmake/packs writes those functions, and
   hbn_pack.h, which says which sizes are fixed. Freestanding: nothing of a C library but memcpy and memset. */
#ifndef HBN_RUNTIME_PACK_H
#define HBN_RUNTIME_PACK_H

#include "hbn.h"
#include "hbn_pack.h"

#include <HalideRuntime.h>
#include <stddef.h>

/* What a function says of a tensor or vector: its element's size in bytes, which is also its alignment, and some of
   these. */
enum {
    HBN_PACK_SIZE = 15,
    HBN_PACK_TENSOR = 16, /* not a vector */
    HBN_PACK_WRITTEN = 32,
    HBN_PACK_IN_PLACE = 64 /* an output that may be the memory of an input, or such an input */
};

/* The extents and strides that are not fixed, as kernels read them. */
typedef struct hbn_pack_sizes {
#if HBN_PACK_ANY_FREE
    halide_dimension_t tensor[4];
#endif
    halide_dimension_t vector;
} hbn_pack_sizes;

/* Checks `count` buffers, of which `host` is set and `kinds` has what they are, and sets the rest of each. They point
   to `sizes`. */
hbn_status hbn_pack_begin(hbn_shape shape, const uint8_t *kinds, int count, hbn_pack_sizes *sizes,
                          halide_buffer_t *buffers);
/* The same where all are vectors, whose kernels take sizes from their buffers, whatever is fixed. */
hbn_status hbn_pack_begin_vectors(int32_t num_features, const uint8_t *kinds, int count,
                                  hbn_pack_sizes *sizes, halide_buffer_t *buffers);

/* More than one value a channel. */
hbn_status hbn_pack_check_batch(hbn_shape shape);
/* Numbers: finite, finite and positive, low <= high. */
hbn_status hbn_pack_check_finite(double number);
hbn_status hbn_pack_check_positive(double number);
hbn_status hbn_pack_check_order(double low, double high);

#define HBN_TRY(expression)                   \
    do {                                      \
        const hbn_status status = expression; \
        if (status != HBN_OK) {               \
            return status;                    \
        }                                     \
    } while (0)

#endif
