// WebAssembly's 128-bit vectors. Engines assign registers when they compile it; few values at a time suit the smallest.
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_wasm(ChannelPipeline pipeline, const Halide::Target &) {
    ScheduleParameters &parameters = *pipeline.parameters;
    parameters.channel_lanes.set_default(4);
    parameters.column_lanes.set_default(8);
    parameters.run_lanes.set_default(4);
    parameters.row_lanes.set_default(8);
    parameters.rows_per_column.set_default(4);
    schedule_vectorized(pipeline);
}

}  // namespace hbn
