// The loops of arithmetic.h for this processor, and what contestants compute with.
#ifndef HBN_BENCH_ARITHMETIC_IN_USE_H
#define HBN_BENCH_ARITHMETIC_IN_USE_H

#include "bench/arithmetic.h"
#include "bench/contestant.h"

#include <hbn/hbn.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace hbn::bench {

// First those of the instruction set in use; then those of AVX2 beside AVX-512: narrower vectors have more ports on some
// processors.
// @throws std::invalid_argument where there are none
inline std::vector<const ArithmeticLoops *> loops_in_use() {
    const std::string instruction_set = hbn_instruction_set();
    std::vector<const ArithmeticLoops *> loops;
    for (const auto *set :
         {&arithmetic_loops_avx512, &arithmetic_loops_avx2, &arithmetic_loops_sse41}) {
        if (instruction_set == set->instruction_set ||
            (instruction_set == "avx512" && set == &arithmetic_loops_avx2)) {
            loops.push_back(set);
        }
    }
    if (loops.empty()) {
        throw std::invalid_argument("no loops of arithmetic for " + instruction_set);
    }
    return loops;
}

// A cell's first channel's; with gradients' means that are anything.
inline Coefficients coefficients_of(const problem &p) {
    return {p.mean[0], 1, p.mean[0], 1, p.weight[0] * p.invstd[0], p.bias[0], 0.01f, 0.01f};
}

}  // namespace hbn::bench

#endif
