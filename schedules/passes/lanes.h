// Vectors' stores, written anew in terms of some of their lanes.
#ifndef HBN_SCHEDULES_PASSES_LANES_H
#define HBN_SCHEDULES_PASSES_LANES_H

#include <Halide.h>

#include <set>
#include <string>

namespace hbn {

// Both are for a generator's schedule(), with its get_pipeline(), before stream_stores(). Neither changes a
// result.

// For processors whose masked stores are slow, or not for 16 bits, where LLVM stores one element at a time. What is
// left of a row after its last whole vector is stored in vectors half as long each time.
void store_tails_by_halves(Halide::Pipeline pipeline);

// Where vectors of bfloat16 are computed from vectors of bfloat16, from what is the same for all lanes, and from
// paired coefficients, even and odd lanes are computed apart: as halves of 32-bit words they come and go without a
// shuffle. After store_tails_by_halves(), so that it has tails, too. The same for sums of such vectors; those in Funcs with
// `lanes_in_any_order` are left there with even lanes first. `lower_half`: 0xffff in a form that the compiler doesn't know, for
// targets that have one instruction for selecting bits; undefined for others.
void compute_bfloat16_in_pairs(Halide::Pipeline pipeline,
                               const std::set<std::string> &lanes_in_any_order,
                               const Halide::Expr &lower_half);

}  // namespace hbn

#endif
