// GPUs, through OpenCL or CUDA.
//
// A first schedule: one thread reduces one tile of one channel, one thread merges a channel's tiles in
// order, one thread maps one element.
// Neighbouring threads take neighbouring elements of whichever dimension is dense. Blocks are numbered along one
// dimension: CUDA's grids have at most 65,535 along the other two.
#include "schedules/pipeline.h"

namespace hbn {

using namespace Halide;

namespace {

constexpr TailStrategy guarded = TailStrategy::GuardWithIf;

void one_thread_a_channel(Func &f, const Var &c, int threads_per_block) {
    Var group("group"), thread("thread");
    f.compute_root().gpu_tile(c, group, thread, threads_per_block, guarded);
}

void schedule_reduction(Reduction &r, int threads_per_block) {
    Var tile("tile"), group("group"), thread("thread"), block("block");
    r.tile.compute_root()
        .fuse(r.tw, r.th, tile)
        .fuse(tile, r.tn, tile)
        .split(r.c, group, thread, threads_per_block, guarded)
        .reorder(thread, group, tile)
        .fuse(group, tile, block)
        .gpu_threads(thread)
        .gpu_blocks(block);
    for (Reduction::Sweep &sweep : r.sweeps) {
        sweep.sums.compute_at(r.tile, thread);
        sweep.by_lane.compute_at(r.tile, thread);
    }
    for (Func &f : r.per_tile) {
        f.compute_at(r.tile, thread);
    }
    one_thread_a_channel(r.merged, r.c, threads_per_block);
    Var update_group("update_group"), update_thread("update_thread");
    r.merged.update()
        .split(r.c, update_group, update_thread, threads_per_block, guarded)
        .reorder(r.tiles.x, r.tiles.y, r.tiles.z, update_thread, update_group)
        .gpu_threads(update_thread)
        .gpu_blocks(update_group);
}

// A thread maps `items` elements, each threads_per_block elements after the one before it.
void schedule_map(Func &f, const std::vector<Var> &element, Layout layout, int threads_per_block,
                  int items) {
    const Var &w = element[0], &h = element[1], &c = element[2], &n = element[3];
    Var group("group"), item("item"), thread("thread"), rest("rest"), block("block");
    const bool dense_channels = layout == Layout::nhwc;
    const Var inner = dense_channels ? c : w, outer = dense_channels ? w : c;
    f.compute_root()
        .reorder(inner, h, outer, n)
        .fuse(h, outer, rest)
        .fuse(rest, n, rest)
        .split(inner, group, thread, threads_per_block * items, guarded)
        .reorder(thread, group, rest)
        .fuse(group, rest, block);
    if (items > 1) {
        f.split(thread, item, thread, threads_per_block).reorder(item, thread);
    }
    f.gpu_threads(thread).gpu_blocks(block);
}

}  // namespace

void schedule_for_gpu(ChannelPipeline p, const Target &) {
    p.parameters->gpu_block.set_default(64);
    p.parameters->gpu_items.set_default(1);
    const int threads_per_block = p.parameters->gpu_block;
    for (Reduction &r : p.reductions) {
        schedule_reduction(r, threads_per_block);
    }
    for (Func &f : p.coefficients) {
        one_thread_a_channel(f, p.channel[0], threads_per_block);
    }
    for (Func &f : p.elementwise) {
        schedule_map(f, p.element, p.layout, threads_per_block, p.parameters->gpu_items);
    }
    for (Func &f : p.per_channel) {
        one_thread_a_channel(f, p.channel[0], threads_per_block);
    }
}

}  // namespace hbn
