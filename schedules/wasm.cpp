// WebAssembly's 128-bit vectors. Engines assign registers when they compile it; few values at a time suit the smallest.
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_wasm(ChannelPipeline pipeline, const Halide::Target &) {
    VectorParameters parameters;
    parameters.map_lanes = 4;
    parameters.row_lanes = 8;
    schedule_vectorized(pipeline, parameters);
}

}  // namespace hbn
