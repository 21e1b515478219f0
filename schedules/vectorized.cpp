#include "schedules/vectorized.h"

namespace hbn {

using namespace Halide;

// Tails are guarded, never shifted inwards: an element must not be computed twice, since the output
// may be the input's own memory.
constexpr TailStrategy guarded = TailStrategy::GuardWithIf;

namespace {

// The loops over channels that hold one reduction each, whichever output owns them.
void fuse_channel_outputs(std::vector<Func> &per_channel, Func owner, const Var &c) {
    for (Func &f : per_channel) {
        if (f.name() != owner.name()) {
            f.parallel(c);
            f.compute_with(owner, c);
        }
    }
}

// Sums along w keep `lanes` partial sums in a vector, for the whole tile, and add them up at its
// end.
void vectorize_tile_sums(Reduction &r, int lanes) {
    for (Func &sum : r.tile_sums) {
        RVar step("step"), lane("lane");
        Var partial_lane("partial_lane");
        sum.compute_at(r.merged, r.tiles.x);
        sum.update().split(r.inside.x, step, lane, lanes);
        Func partial = sum.update().rfactor(lane, partial_lane);
        partial.compute_at(r.merged, r.tiles.x).vectorize(partial_lane);
        partial.update()
            .reorder(partial_lane, step, r.inside.y, r.inside.z)
            .vectorize(partial_lane);
    }
    r.tile.compute_at(r.merged, r.tiles.x);
}

}  // namespace

void schedule_dense_planes(ChannelPipeline p, const VectorParameters &parameters) {
    const auto &[w, h, c, n] = p.vars;
    if (p.reductions.empty()) {
        Func map = p.elementwise[0];
        Var plane("plane");
        map.reorder(w, h, c, n)
            .fuse(c, n, plane)
            .parallel(plane)
            .vectorize(w, parameters.map_lanes, guarded);
        for (Func &f : p.coefficients) {
            f.compute_root();
        }
        return;
    }

    Func owner = p.elementwise.empty() ? p.per_channel[0] : p.elementwise[0];
    if (p.elementwise.empty()) {
        owner.parallel(c);
    } else {
        owner.reorder(w, h, n, c).parallel(c).vectorize(w, parameters.map_lanes, guarded);
    }
    Reduction &r = p.reductions[0];
    r.merged.compute_at(owner, c);
    vectorize_tile_sums(r, parameters.sum_lanes);
    for (Func &f : p.coefficients) {
        f.compute_at(owner, c);
    }
    fuse_channel_outputs(p.per_channel, owner, c);
}

void schedule_dense_channels(ChannelPipeline p, const VectorParameters &parameters) {
    const auto &[w, h, c, n] = p.vars;
    for (Reduction &r : p.reductions) {
        Var tile("tile");
        r.tile.compute_root()
            .fuse(r.tw, r.th, tile)
            .fuse(tile, r.tn, tile)
            .parallel(tile)
            .vectorize(r.c, parameters.channel_lanes, guarded);
        for (Func &sum : r.tile_sums) {
            Var lanes("lanes");
            sum.compute_at(r.tile, tile).vectorize(r.c, parameters.channel_lanes, guarded);
            sum.update()
                .split(r.c, r.c, lanes, parameters.channel_lanes, guarded)
                .reorder(lanes, r.inside.x, r.inside.y, r.inside.z, r.c)
                .vectorize(lanes);
        }
        Var lanes("lanes");
        r.merged.compute_root().vectorize(r.c, parameters.map_lanes, guarded);
        r.merged.update()
            .split(r.c, r.c, lanes, parameters.map_lanes, guarded)
            .reorder(lanes, r.c, r.tiles.x, r.tiles.y, r.tiles.z)
            .vectorize(lanes);
    }
    for (Func &f : p.coefficients) {
        f.compute_root().vectorize(c, parameters.map_lanes, guarded);
    }
    for (Func &f : p.elementwise) {
        Var task("task"), row("row");
        f.split(w, task, row, parameters.rows_per_task, guarded)
            .reorder(c, row, task, h, n)
            .fuse(task, h, task)
            .fuse(task, n, task)
            .parallel(task)
            .vectorize(c, parameters.map_lanes, guarded);
    }
}

}  // namespace hbn
