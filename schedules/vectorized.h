// CPU schedules over vectors, parameterized by what differs between CPUs.
#ifndef HBN_SCHEDULES_VECTORIZED_H
#define HBN_SCHEDULES_VECTORIZED_H

#include "schedules/pipeline.h"

namespace hbn {

// Those that have values suit vectors of 128 bits.
struct VectorParameters {
    int map_lanes;         // elements a vector of the elementwise map
    int column_lanes = 8;  // columns whose float64 accumulators stay in registers over a row group
    int run_lanes = 4;     // columns of one channel added up side by side
    int row_lanes;         // columns mapped at a time, in as many rows as:
    int rows_per_column = 4;
};

void schedule_vectorized(ChannelPipeline pipeline, const VectorParameters &parameters);

}  // namespace hbn

#endif
