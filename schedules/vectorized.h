// CPU schedules over vectors, parameterized by what differs between CPUs.
#ifndef HBN_SCHEDULES_VECTORIZED_H
#define HBN_SCHEDULES_VECTORIZED_H

#include "schedules/pipeline.h"

namespace hbn {

struct VectorParameters {
    int map_lanes;      // elements a vector of the elementwise map
    int sum_lanes;      // float64 accumulators side by side in a reduction along w
    int channel_lanes;  // float64 accumulators side by side in a reduction over rows of channels
    int rows_per_task;  // pixels a parallel task maps where channels are dense
};

// NCHW: one parallel loop over channels. A channel is reduced, its coefficients derived and its
// elements mapped before the next, so what the reduction read is mapped from cache.
void schedule_dense_planes(ChannelPipeline pipeline, const VectorParameters &parameters);

// NHWC: vectors of channels. Tiles of rows are reduced in parallel, merged in order, then rows are
// mapped.
void schedule_dense_channels(ChannelPipeline pipeline, const VectorParameters &parameters);

}  // namespace hbn

#endif
