// What a schedule sees of an operation: the Funcs the algorithm consists of, by role.
//
// Every operation on (N, C, H, W) is at most three steps: reduce each channel to a few sums, derive
// a few coefficients a channel, map each element. A target family schedules these three roles, not
// operations.
#ifndef HBN_SCHEDULES_PIPELINE_H
#define HBN_SCHEDULES_PIPELINE_H

#include <Halide.h>

#include <vector>

namespace hbn {

enum class Layout {
    nchw,     // stride of w is 1
    nhwc,     // stride of c is 1
    strided,  // any strides
};

struct PipelineVars {
    Halide::Var w, h, c, n;
};

// A reduction of each channel in tiles. tile_sums(c, tw, th, tn) are sums over `inside` (w, h, n of
// a tile), each in update 0, each after the first reading the same tile again; tile is what a tile
// comes to, and the only thing that merged(c) reads: it joins the tiles in update 0, in the order
// of `tiles` (tw, th, tn).
struct Reduction {
    std::vector<Halide::Func> tile_sums;
    Halide::Func tile;
    Halide::Func merged;
    Halide::RDom inside, tiles;
    Halide::Var c, tw, th, tn;
};

struct ChannelPipeline {
    Layout layout = Layout::nchw;
    PipelineVars vars;
    std::vector<Reduction> reductions;       // none or one
    std::vector<Halide::Func> coefficients;  // (c), read by elementwise; none or one
    std::vector<Halide::Func> elementwise;   // (w, h, c, n), an output; none or one
    std::vector<Halide::Func> per_channel;   // (c), outputs derived from the reduction

    Halide::Type element_type;
};

// Applies the schedule of the target's family. One file each in schedules/.
void schedule(ChannelPipeline pipeline, const Halide::Target &target);

void schedule_for_x86(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_arm(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_gpu(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_any_target(ChannelPipeline pipeline, const Halide::Target &target);

}  // namespace hbn

#endif
