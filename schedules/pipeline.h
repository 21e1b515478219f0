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

// How a kernel sees its tensors. The first four are what CPUs with vectors are fastest on; the
// wrapper chooses among them by shape.
enum class Layout {
    nchw,               // (w, h, c, n), stride of w is 1: one channel after another
    nchw_few_channels,  // the same: all channels' sums, then all elements
    blocks,             // (column, block, row), see ColumnTiling: one block after another
    rows,               // the same: all sums, then all elements
    nhwc,               // (w, h, c, n), stride of c is 1
    strided,            // (w, h, c, n), any strides
};

// Rows of columns are summed in groups of this many.
constexpr int row_group = 8;

// Where planes are summed in groups, a group is so many vectors.
constexpr int group_values = 8;

// A reduction of each channel in tiles, where tensors are (w, h, c, n). Everything but merged is at
// (c, tw, th, tn). sweeps read a tile each; per_tile is what the later ones need to know first; tile is
// what a tile comes to, and the only thing that merged(c) reads: it joins the tiles in update 0, in the
// order of `tiles` (tw, th, tn).
struct Reduction {
    struct Sweep {
        Halide::Func sums;  // adds up `lanes` of by_lane
        Halide::RDom lanes;
        Halide::Func by_lane;  // (lane, c, tw, th, tn): partial sums side by side along w
        Halide::Var lane;
        std::vector<Halide::RDom> over;  // what each of by_lane's updates sums over
        // Where by_lane's first update adds up groups of vectors, one group's sums, along in_group.
        Halide::Func group;
        Halide::RDom in_group;
    };
    std::vector<Sweep> sweeps;           // one to three
    std::vector<Halide::Func> per_tile;  // none to two
    Halide::Func tile;
    Halide::Func merged;
    Halide::RDom tiles;
    Halide::Var c, tw, th, tn;

    void set_walk(const Halide::RDom &tiles_, const Halide::Var &c_, const Halide::Var &tw_,
                  const Halide::Var &th_, const Halide::Var &tn_) {
        tiles = tiles_;
        c = c_;
        tw = tw_;
        th = th_;
        tn = tn_;
    }
};

// The same where tensors are (column, block, row). per_column(column, block[, t]) is what the last sweep
// needs to know first, scattered over `members` in update 0.
struct ColumnReduction {
    struct Sweep {
        Halide::Func by_column;  // (column, block, t), absent where channels are summed at once
        // What each of its updates sums over: rows of a tile, or groups of row_group rows.
        std::vector<Halide::RDom> rows;
        bool in_groups = false;   // the first update's
        Halide::Func by_channel;  // (k, block, t), over channel_columns
        Halide::RDom channel_columns;
    };
    std::vector<Sweep> sweeps;  // one to three
    int tensors = 1;            // that sweeps read
    // (block, t), over tile_channels: whether the last sweep is needed; undefined where it always is.
    Halide::Func again;
    Halide::RDom tile_channels;
    Halide::Func per_column;
    Halide::Func tile;    // (k, block, t)
    Halide::Func merged;  // (k, block), over `tiles`
    Halide::RDom tiles, members;
    Halide::Var column, block, k, t;

    void set_walk(const Halide::RDom &tiles_, const Halide::RDom &members_,
                  const Halide::Var &column_, const Halide::Var &block_, const Halide::Var &k_,
                  const Halide::Var &t_) {
        tiles = tiles_;
        members = members_;
        column = column_;
        block = block_;
        k = k_;
        t = t_;
    }
};

struct ChannelPipeline {
    Layout layout = Layout::nchw;
    std::vector<Halide::Var> element;                // (w, h, c, n) or (column, block, row)
    std::vector<Halide::Var> channel;                // (c) or (k, block)
    std::vector<Reduction> reductions;               // none or one
    std::vector<ColumnReduction> column_reductions;  // none or one
    std::vector<Halide::Func> coefficients;          // at channel, read by elementwise; none or one
    std::vector<Halide::Func> spread_coefficients;   // (column, block), scattered in update 0
    std::vector<Halide::Func> paired_coefficients;   // (pair, odd, block), where pairs_bfloat16()
    Halide::RDom members;                            // of the scatter, as in ColumnReduction
    std::vector<Halide::Func> elementwise;           // at element, an output; none or one
    std::vector<Halide::Func> per_channel;  // at channel, outputs derived from the reduction

    Halide::Pipeline pipeline;
    Halide::Type element_type;
    Halide::Expr stream;        // whether elementwise outgrows the cache
    Halide::Expr row_elements;  // extent of the innermost dimension
    Halide::Expr num_features;
    bool standalone = false;  // little code, and no memory but the stack
    bool parallel = true;
};

// Applies the schedule of the target's family. One file each in schedules/.
void schedule(ChannelPipeline pipeline, const Halide::Target &target);

// Whether the target has an instruction that rounds float32 to float16, which keeps NaN.
bool rounds_float16(const Halide::Target &target);

// Whether even and odd columns of bfloat16 are computed apart.
bool pairs_bfloat16(const Halide::Target &target);

// ---- what schedules for processors share

// `tasks` in parallel, unless one thread is to do all.
void share_out(Halide::Func f, const Halide::Var &tasks, const ChannelPipeline &p);

// The loops over channels (or blocks of them) that hold one reduction each, whichever output owns
// them.
void fuse_channel_outputs(ChannelPipeline &p, Halide::Func owner, const Halide::Var &outer);

// Within owner's loop over channels, one after another.
void compute_coefficients_at_channel(ChannelPipeline &p, Halide::Func owner, const Halide::Var &c);

// ---- one for each family of targets

void schedule_for_x86(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_arm(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_wasm(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_gpu(ChannelPipeline pipeline, const Halide::Target &target);
void schedule_for_any_target(ChannelPipeline pipeline, const Halide::Target &target);

}  // namespace hbn

#endif
