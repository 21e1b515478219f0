// ARM: NEON's 128-bit registers, 32 of them, and caches of 32 KB and up.
//
// A first schedule: the shape of x86's with vectors of four floats and eight float64 sums side by
// side, and smaller parallel tasks.
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_arm(ChannelPipeline pipeline, const Halide::Target &) {
    ScheduleParameters &parameters = *pipeline.parameters;
    parameters.channel_lanes.set_default(8);
    parameters.column_lanes.set_default(8);
    parameters.run_lanes.set_default(4);
    parameters.row_lanes.set_default(pipeline.standalone ? 16 : 8);
    parameters.rows_per_column.set_default(4);
    schedule_vectorized(pipeline);
}

}  // namespace hbn
