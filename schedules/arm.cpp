// ARM: NEON's 128-bit registers, 32 of them, and caches of 32 KB and up.
//
// A first schedule: the shape of x86's with vectors of four floats and eight float64 sums side by
// side, and smaller parallel tasks.
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_arm(ChannelPipeline pipeline, const Halide::Target &) {
    VectorParameters parameters;
    parameters.map_lanes = 8;
    parameters.row_lanes = pipeline.standalone ? 16 : 8;
    schedule_vectorized(pipeline, parameters);
}

}  // namespace hbn
