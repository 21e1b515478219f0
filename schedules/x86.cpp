// x86: AVX-512, AVX2 and SSE4.1 from one text; the widths follow the target.
//
// Everything a channel needs twice (NCHW) or a tile needs twice (NHWC) is read from L2 the second
// time. Four vectors of float64 sums run side by side, which covers the latency of addition on all
// three.
#include "schedules/prefetching.h"
#include "schedules/sixteen_bits.h"
#include "schedules/streaming.h"
#include "schedules/vectorized.h"

namespace hbn {

void schedule_for_x86(ChannelPipeline pipeline, const Halide::Target &target) {
    VectorParameters parameters;
    parameters.map_lanes = target.natural_vector_size(Halide::Float(32));
    parameters.column_lanes = 2 * target.natural_vector_size(Halide::Float(32));
    parameters.run_lanes = 2 * target.natural_vector_size(Halide::Float(64));
    // A whole cache line, which streaming stores leave complete.
    parameters.row_lanes = 64 / pipeline.element_type.bytes();
    parameters.rows_per_column = 1;
    if (getenv("XR")) parameters.rows_per_column = atoi(getenv("XR"));
    if (getenv("XC")) parameters.column_lanes = atoi(getenv("XC"));
    schedule_vectorized(pipeline, parameters);
    if (pipeline.element_type.is_bfloat()) {
        compute_bfloat16_in_pairs(pipeline.pipeline);
    }
    if (!target.has_feature(Halide::Target::AVX512_Skylake)) {
        store_tails_by_halves(pipeline.pipeline);
    }
    for (const Halide::Func &f : pipeline.elementwise) {
        stream_stores(pipeline.pipeline, target, f, pipeline.element_type, pipeline.stream);
    }
    const bool reduces = !pipeline.reductions.empty() || !pipeline.column_reductions.empty();
    PrefetchParameters ahead;
    ahead.sum_bytes = pipeline.reductions.empty() ? 0 : 4096;
    ahead.map_bytes = reduces || pipeline.layout == Layout::blocks ? 2048 : 0;
    ahead.map_inputs = !reduces;
    if (getenv("XS")) ahead.sum_bytes = ahead.sum_bytes ? atoi(getenv("XS")) : 0;
    if (getenv("XM")) ahead.map_bytes = ahead.map_bytes ? atoi(getenv("XM")) : 0;
    prefetch_ahead(pipeline.pipeline, target, ahead);
}

}  // namespace hbn
