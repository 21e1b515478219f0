// What a schedule sees of an operation: the Funcs the algorithm consists of, by role.
//
// Every operation on (N, C, H, W) is at most three steps: reduce each channel to a few sums, derive
// a few coefficients a channel, map each element. A target family schedules these three roles, not
// operations.
#ifndef HBN_SCHEDULES_PIPELINE_H
#define HBN_SCHEDULES_PIPELINE_H

#include "schedules/parameters.h"
#include "runtime/tile_units.h"
#include "schedules/passes/passes.h"

#include <Halide.h>

#include <set>
#include <string>
#include <vector>

namespace hbn {

// How a kernel sees its tensors.
enum class Layout {
#define HBN_LAYOUT(name, purpose) name,
#include "runtime/layouts.def"
};

// Tiles of rows of columns consist of so many rows at a time, a group, which is summed at once.
constexpr int row_group = tile_row_unit;

// A reduction of each channel in tiles, where tensors are (w, h, c, n). All Funcs but `merged` are functions of a tile,
// (c, tw, th, tn). A sweep sums over a tile; per_tile is what later sweeps need to know first. `tile` is the result for a
// tile, and the only Func that merged(c) reads: its update 0 merges the tiles in the order of `tiles` (tw, th, tn).
struct Reduction {
    struct Sweep {
        Halide::Func sums;  // adds up `lanes` of by_lane
        Halide::RDom lanes;
        int lane_count = 1;
        Halide::Func by_lane;  // (lane, c, tw, th, tn): partial sums side by side along w
        Halide::Var lane;
        std::vector<Halide::RDom> over;  // what each of by_lane's updates sums over
        // Where by_lane's updates add up groups of vectors: the sums of one group, along its vectors, and which update
        // reads them. The first is the one that there are many of.
        struct Group {
            Halide::Func sums;
            Halide::RDom vectors;
            Halide::Var lane;
            int update;
        };
        std::vector<Group> groups;
    };
    std::vector<Sweep> sweeps;           // one to three
    std::vector<Halide::Func> per_tile;  // none to two
    Halide::Func tile;
    Halide::Func merged;
    Halide::RDom tiles;
    Halide::Var c, tw, th, tn;

    void set_loops(const Halide::RDom &tiles_, const Halide::Var &c_, const Halide::Var &tw_,
                   const Halide::Var &th_, const Halide::Var &tn_) {
        tiles = tiles_;
        c = c_;
        tw = tw_;
        th = th_;
        tn = tn_;
    }
};

// The same where tensors are (column, channel block, row). per_column(column, channel block[, tile]) is what the last
// sweep needs to know first; its update 0 writes it to all_columns from each channel.
struct ColumnReduction {
    struct Sweep {
        // (column, channel block, tile); undefined where each channel is summed at once.
        Halide::Func by_column;
        // What each of by_column's updates sums over: rows of a tile, or sets of groups of rows.
        std::vector<Halide::RDom> rows;
        // Where by_column's first update adds up sets: the sums of one, (column, channel block, tile, set), over its groups.
        Halide::Func set;
        Halide::RDom in_set;
        Halide::Func by_channel;  // (channel, channel block, tile), over channel_columns
        Halide::RDom channel_columns;
    };
    std::vector<Sweep> sweeps;  // one to three
    int tensors = 1;            // how many tensors sweeps read
    // (channel block, tile), over tile_channels: whether the last sweep, in float64, is needed. Undefined where it always
    // is.
    Halide::Func use_float64;
    Halide::RDom tile_channels;
    Halide::Func per_column;
    // What that is made of where channels are summed in parts: (part, channel block), over channels and their parts.
    // Undefined where nothing need be known of channels, or they have no parts.
    Halide::Func per_part;
    // (part, channel block, tile), and so are by_channel and pivots; a part is a channel where channels have no parts
    Halide::Func tile;
    Halide::Func merged;  // (channel, channel block), over a channel's parts and tiles, `tiles`
    Halide::RDom tiles, all_columns;
    Halide::Var column, channel_block, channel, tile_var;

    void set_loops(const Halide::RDom &tiles_, const Halide::RDom &all_columns_,
                   const Halide::Var &column_, const Halide::Var &channel_block_,
                   const Halide::Var &channel_, const Halide::Var &tile_) {
        tiles = tiles_;
        all_columns = all_columns_;
        column = column_;
        channel_block = channel_block_;
        channel = channel_;
        tile_var = tile_;
    }
};

struct ChannelPipeline {
    Layout layout = Layout::nchw;
    std::vector<Halide::Var> element;                // (w, h, c, n) or (column, channel block, row)
    std::vector<Halide::Var> channel;                // (c) or (channel, channel block)
    std::vector<Reduction> reductions;               // none or one
    std::vector<ColumnReduction> column_reductions;  // none or one
    std::vector<Halide::Func> coefficients;  // of a channel, read by elementwise; none or one
    // The same of a column, (column, channel block): update 0 writes it to all_columns.
    std::vector<Halide::Func> column_coefficients;
    // Where channels have parts, the same of a part, (part, channel block), which those read.
    std::vector<Halide::Func> part_coefficients;
    std::vector<Halide::Func>
        paired_coefficients;  // (pair, odd, channel block), where pairs_bfloat16()
    Halide::RDom all_columns;
    std::vector<Halide::Func> elementwise;  // of an element, an output; none or one
    std::vector<Halide::Func> per_channel;  // of a channel, outputs derived from the reduction

    Halide::Pipeline pipeline;
    Halide::Type element_type;
    Halide::Expr stream;        // whether elementwise outgrows the cache
    Halide::Expr row_elements;  // extent of the innermost dimension
    Halide::Expr num_features;
    Halide::Expr one;         // a uint32 that is 1, which the compiler doesn't know
    bool standalone = false;  // little code, and no memory but the stack
    bool parallel = true;
    std::set<Pass> without;  // passes to leave out
    ScheduleParameters *parameters = nullptr;

    bool uses(Pass pass) const {
        return without.count(pass) == 0;
    }
};

// The family of a target, for tensors of this layout: one file each in schedules/.
std::string family_of(const Halide::Target &target, Layout layout);

// Applies the schedule of the target's family.
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
