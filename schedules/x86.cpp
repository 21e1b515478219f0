// x86: AVX-512, AVX2 and SSE4.1 from one text; the widths follow the target.
//
// Everything a channel needs twice (NCHW) or a tile needs twice (NHWC) is read from L2 the second
// time. Four vectors of float64 sums run side by side, which covers the latency of addition on all
// three.
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_x86(ChannelPipeline pipeline, const Halide::Target &target) {
    VectorParameters parameters;
    parameters.map_lanes = target.natural_vector_size(Halide::Float(32));
    parameters.sum_lanes = 4 * target.natural_vector_size(Halide::Float(64));
    parameters.channel_lanes = 4 * target.natural_vector_size(Halide::Float(64));
    parameters.rows_per_task = 64;
    if (pipeline.layout == Layout::nchw) {
        schedule_dense_planes(pipeline, parameters);
    } else {
        schedule_dense_channels(pipeline, parameters);
    }
}

}  // namespace hbn
