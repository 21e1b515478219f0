// ARM: NEON's 128-bit registers, 32 of them, and caches of 32 KB and up.
//
// A first schedule: the shape of x86's with vectors of four floats and eight float64 sums side by
// side, and smaller parallel tasks.
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_arm(ChannelPipeline pipeline, const Halide::Target &) {
    VectorParameters parameters;
    parameters.map_lanes = 8;
    parameters.sum_lanes = 8;
    parameters.channel_lanes = 8;
    parameters.rows_per_task = 32;
    if (pipeline.layout == Layout::nchw) {
        schedule_dense_planes(pipeline, parameters);
    } else {
        schedule_dense_channels(pipeline, parameters);
    }
}

}  // namespace hbn
