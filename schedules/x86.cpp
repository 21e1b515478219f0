// x86: AVX-512, AVX2 and SSE4.1 from one text; the widths follow the target.
//
// Everything a channel needs twice (NCHW) or a tile needs twice (NHWC) is read from L2 the second
// time. Partial sums run side by side in as many vectors as cover the latency of addition on all three. What
// memory is asked for too late by the processor itself is prefetched; what outgrows the cache is streamed.
#include "schedules/passes/lanes.h"
#include "schedules/passes/prefetching.h"
#include "schedules/passes/streaming.h"
#include "schedules/vectorized.h"

#include <algorithm>
#include <set>
#include <string>

namespace hbn {

namespace {

// Names of the Funcs that add up groups of vectors, from the `first` of each sweep on.
std::set<std::string> group_sums(const ChannelPipeline &pipeline, size_t first) {
    std::set<std::string> names;
    for (const Reduction &r : pipeline.reductions) {
        for (const Reduction::Sweep &sweep : r.sweeps) {
            for (size_t i = first; i < sweep.groups.size(); i++) {
                names.insert(sweep.groups[i].sums.name());
            }
        }
    }
    return names;
}

void prefetch(const ChannelPipeline &pipeline, const Halide::Target &target) {
    // Within a page processors foresee what is read, and rows of columns are summed eight at a time, each in a
    // page of its own: enough for them.
    constexpr int a_page = 4096, half_a_page = 2048;
    const bool reduces = !pipeline.reductions.empty() || !pipeline.column_reductions.empty();
    PrefetchParameters ahead{};
    ahead.not_in = group_sums(pipeline, 1);  // what is left of a row
    ahead.sums = pipeline.reductions.empty() ? 0 : a_page;
    // Where nothing is summed before, rows that follow each other in memory are foreseen as they come, unless
    // arithmetic leaves time to do better.
    const bool jumps = pipeline.layout == Layout::blocks ||
                       (pipeline.layout == Layout::rows && pipeline.element_type.bytes() == 2);
    if (reduces || jumps) {
        ahead.outputs = half_a_page;
    }
    if (!reduces && jumps) {
        ahead.inputs = half_a_page;
    }
    // Those chosen otherwise; -1 is for none.
    const auto chosen = [](const ScheduleParameter &parameter, int otherwise) {
        return std::max(parameter.value_or(otherwise), 0);
    };
    const ScheduleParameters &parameters = *pipeline.parameters;
    if (reduces) {
        ahead.sums = chosen(parameters.prefetch_sums, ahead.sums);
    }
    if (!pipeline.elementwise.empty()) {
        ahead.inputs = chosen(parameters.prefetch_inputs, ahead.inputs);
        ahead.outputs = chosen(parameters.prefetch_outputs, ahead.outputs);
    }
    prefetch_ahead(pipeline.pipeline, target, ahead);
}

}  // namespace

void schedule_for_x86(ChannelPipeline pipeline, const Halide::Target &target) {
    ScheduleParameters &parameters = *pipeline.parameters;
    parameters.channel_lanes.set_default(target.natural_vector_size(Halide::Float(32)));
    parameters.column_lanes.set_default(2 * target.natural_vector_size(Halide::Float(32)));
    parameters.run_lanes.set_default(2 * target.natural_vector_size(Halide::Float(64)));
    // A whole cache line, which streaming stores leave complete.
    parameters.row_lanes.set_default(64 / pipeline.element_type.bytes());
    parameters.rows_per_column.set_default(1);
    schedule_vectorized(pipeline);
    if (pipeline.standalone) {
        return;
    }
    // AVX-512 has masked stores of 16 bits, but what bfloat16 is computed from comes in pairs.
    if ((!target.has_feature(Halide::Target::AVX512_Skylake) ||
         pipeline.element_type.is_bfloat()) &&
        pipeline.uses(Pass::tails)) {
        store_tails_by_halves(pipeline.pipeline);
    }
    if (pipeline.element_type.is_bfloat() && pairs_bfloat16(target) &&
        pipeline.uses(Pass::bfloat16_pairs)) {
        // One instruction that selects bits, where there is one, takes the place of a shuffle.
        const Halide::Expr lower_half = target.has_feature(Halide::Target::AVX512_Skylake)
                                            ? pipeline.one * Halide::Expr(uint32_t(0xffff))
                                            : Halide::Expr();
        compute_bfloat16_in_pairs(pipeline.pipeline, group_sums(pipeline, 0), lower_half);
    }
    if (pipeline.uses(Pass::streaming)) {
        for (const Halide::Func &f : pipeline.elementwise) {
            stream_stores(pipeline.pipeline, target, f, pipeline.element_type, pipeline.stream);
        }
    }
    if (pipeline.uses(Pass::prefetching)) {
        prefetch(pipeline, target);
    }
}

}  // namespace hbn
