// What Halide makes of vectors of 16-bit floats, made better.
#ifndef HBN_SCHEDULES_SIXTEEN_BITS_H
#define HBN_SCHEDULES_SIXTEEN_BITS_H

#include <Halide.h>

namespace hbn {

// Both are for a generator's schedule(), with its get_pipeline(), before stream_stores(). Neither changes a
// result.

// Where vectors of bfloat16 are computed from vectors of bfloat16 and from what is the same for all lanes, even
// and odd lanes are computed apart: as halves of 32-bit words they come and go without a shuffle.
void compute_bfloat16_in_pairs(Halide::Pipeline pipeline);

// For processors whose masked stores are not for 16 bits. The rest of a row, which is no whole vector, is stored
// in vectors half as long each time, where such a store would be done an element at a time.
void store_tails_by_halves(Halide::Pipeline pipeline);

}  // namespace hbn

#endif
