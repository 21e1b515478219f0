// Prefetches for loops that read or write what no cache near the processor holds.
#ifndef HBN_SCHEDULES_PASSES_PREFETCHING_H
#define HBN_SCHEDULES_PASSES_PREFETCHING_H

#include <Halide.h>

#include <set>
#include <string>

namespace hbn {

// In bytes ahead; 0 for not at all.
struct PrefetchParameters {
    int sums;                      // what loops that only read are about to read
    int inputs;                    // what loops that write are about to read
    int outputs;                   // what they are about to write, unless they stream
    std::set<std::string> not_in;  // Funcs whose loops are too short to pay for it
};

// Call from a generator's schedule(), with its get_pipeline(), after stream_stores(). Innermost loops over
// dense vectors prefetch what they will come to that many bytes later; past a loop's end, that is where the
// next iteration of the loop around it begins: processors foresee how a row goes on, but not where the next
// one is. Changes no result, and reads nothing that the loops do not.
void prefetch_ahead(Halide::Pipeline pipeline, const Halide::Target &target,
                    const PrefetchParameters &parameters);

}  // namespace hbn

#endif
