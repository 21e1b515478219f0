// The arithmetic of an operation with nothing else around it: how fast a processor computes what hbn's algorithm needs,
// on data in L1. With the memory bound it makes the limit that kernels are held against.
#ifndef HBN_BENCH_ARITHMETIC_H
#define HBN_BENCH_ARITHMETIC_H

#include <cstddef>
#include <cstdint>

namespace hbn::bench {

// What elements are computed with, once a channel: see generators/reductions.h and coefficients.h.
struct Coefficients {
    double pivot;    // what sums are about: forward's pivot, or backward's mean
    double one = 1;  // unknown to the compiler
    float mean,
        range_scale;  // x - mean is x * range_scale - mean where the dtype has float32's range
    float slope, constant;        // y = (x - mean) * slope + constant
    float mean_dy, mean_dy_xhat;  // dx = (dy - mean_dy - (x - mean) * mean_dy_xhat) * slope
};

// Bytes of a multiple of kArithmeticStep, aligned to 64.
struct ArithmeticTensors {
    const void *x, *grad_output;
    void *out;
    size_t bytes;
};
constexpr size_t kArithmeticStep = 2048;

// Of d and d^2, or of dy and dy * (x - mean).
struct ArithmeticSums {
    double first, second;
    uint32_t largest;  // bits of the largest magnitude of a group's sum, where groups are guarded
};

// How a sum's loop subtracts its pivot: where conversions and additions share their ports, as they do on AMD's processors,
// an fma with 1 is faster, and has the same bits.
enum Subtraction { BY_SUBTRACTION, BY_FMA };

// How a map stores: streaming stores bypass the cache.
enum Stores { ORDINARY_STORES, STREAMING_STORES };

// The loops for one instruction set; arrays have an element for each dtype of contestant.h. Each goes over the tensors
// `passes` times.
struct ArithmeticLoops {
    const char *instruction_set;  // as hbn names it
    using Sums = ArithmeticSums (*)(const ArithmeticTensors &, const Coefficients &, int passes);
    using Map = void (*)(const ArithmeticTensors &, const Coefficients &, int passes);
    Sums forward_sums[2][3], backward_sums[2][3];  // by Subtraction, and dtype
    Map forward_map[2][3], backward_map[2][3];     // by Stores, and dtype
};

extern const ArithmeticLoops arithmetic_loops_avx512, arithmetic_loops_avx2, arithmetic_loops_sse41;

}  // namespace hbn::bench

#endif
