// Any target, and any strides: scalar loops over one channel after another, channels in parallel.
//
// What stays in cache is a channel, as in the schedules with vectors; nothing is assumed of the
// processor.
#include "schedules/pipeline.h"

namespace hbn {

using namespace Halide;

namespace {

// Some values in one step of an innermost loop.
template<typename Schedulable, typename Loop>
void unroll(Schedulable &&f, const Loop &loop, int count) {
    if (count > 1) {
        const Loop next("next");
        f.split(loop, loop, next, count, TailStrategy::GuardWithIf).unroll(next);
    }
}

}  // namespace

void schedule_for_any_target(ChannelPipeline p, const Target &) {
    ScheduleParameters &parameters = *p.parameters;
    const Var w = p.element[0], h = p.element[1], c = p.element[2], n = p.element[3];
    Func owner = p.elementwise.empty() ? p.per_channel[0] : p.elementwise[0];
    if (!p.elementwise.empty()) {
        owner.reorder(w, h, n, c);
        if (p.standalone) {
            unroll(owner, w, parameters.map_step.value_or(1));
        }
    }
    share_out(owner, c, p);
    for (Reduction &r : p.reductions) {
        r.merged.compute_at(owner, c);
        r.tile.compute_at(r.merged, r.tiles.x);
        for (Reduction::Sweep &sweep : r.sweeps) {
            sweep.sums.compute_at(r.merged, r.tiles.x);
            sweep.by_lane.compute_at(r.merged, r.tiles.x);
            for (size_t i = 0; i < sweep.over.size(); i++) {
                Stage sum = sweep.by_lane.update(int(i));
                sum.reorder(sweep.lane, sweep.over[i].x);
                if (p.standalone) {
                    // What is left of rows, after the first update, is little.
                    unroll(sum, sweep.over[i].x, i == 0 ? parameters.sum_step.value_or(1) : 1);
                    sum.unroll(sweep.lane);
                }
            }
            if (p.standalone) {
                // Partial sums stay in registers.
                sweep.by_lane.unroll(sweep.lane);
                sweep.sums.update().unroll(sweep.lanes.x);
            }
            for (Reduction::Sweep::Group &group : sweep.groups) {
                group.sums.compute_at(sweep.by_lane, sweep.over[group.update].x);
            }
        }
        for (Func &f : r.per_tile) {
            f.compute_at(r.merged, r.tiles.x);
        }
    }
    compute_coefficients_at_channel(p, owner, c);
    fuse_channel_outputs(p, owner, c);
}

}  // namespace hbn
