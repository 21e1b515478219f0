#include "schedules/vectorized.h"

#include <algorithm>

namespace hbn {

using namespace Halide;

// Tails are guarded, never shifted inwards: an element must not be computed twice, since the output
// may be the input's own memory.
constexpr TailStrategy guarded = TailStrategy::GuardWithIf;

namespace {

// `inner`, then the dimensions of `over`.
std::vector<VarOrRVar> with_inner(const Var &inner, const RDom &over) {
    std::vector<VarOrRVar> order = {inner};
    for (int d = 0; d < over.dimensions(); d++) {
        order.emplace_back(over[d]);
    }
    return order;
}

// Of an update that adds up `lanes` partial sums: as a tree, so that additions wait less for each other.
template<typename Loop>
void add_lanes_as_tree(Func sums, RVar lane, int lanes, Func consumer, const Loop &loop) {
    while (lanes > 2) {
        const int fewer = std::max(lanes / 4, 2);
        RVar step("step"), rest("rest");
        Var partial_lane("partial_lane");
        sums.update().split(lane, step, rest, fewer);
        Func partial = sums.update().rfactor(rest, partial_lane);
        partial.compute_at(consumer, loop).vectorize(partial_lane);
        partial.update().reorder(partial_lane, step).vectorize(partial_lane).unroll(step);
        lane = rest;
        lanes = fewer;
    }
}

// What is computed for each tile of a reduction, at `consumer`'s loop. Partial sums stay in vectors for the
// whole tile.
template<typename Loop>
void compute_tiles_at(Reduction &r, Func consumer, const Loop &loop) {
    for (Reduction::Sweep &sweep : r.sweeps) {
        sweep.sums.compute_at(consumer, loop);
        add_lanes_as_tree(sweep.sums, sweep.lanes.x, sweep.lane_count, consumer, loop);
        sweep.by_lane.compute_at(consumer, loop).vectorize(sweep.lane);
        for (size_t i = 0; i < sweep.over.size(); i++) {
            sweep.by_lane.update(int(i))
                .reorder(with_inner(sweep.lane, sweep.over[i]))
                .vectorize(sweep.lane);
        }
        for (Reduction::Sweep::Group &group : sweep.groups) {
            group.sums.compute_at(sweep.by_lane, sweep.over[group.update].x).vectorize(group.lane);
            group.sums.update().reorder(group.lane, group.vectors.x).vectorize(group.lane);
        }
        if (!sweep.groups.empty()) {
            sweep.groups[0].sums.update().unroll(sweep.groups[0].vectors.x);
        }
    }
    for (Func &f : r.per_tile) {
        f.compute_at(consumer, loop);
    }
}

// Some vectors in one step of a map's innermost loop, which is over `vectors`.
void unroll_map(Func &f, const Var &vectors, const Var &next, int count) {
    if (count > 1) {
        f.split(vectors, vectors, next, count, guarded).unroll(next);
    }
}

void map_plane(Func &f, const Var &w, const ScheduleParameters &parameters) {
    f.vectorize(w, parameters.row_lanes, guarded);
    unroll_map(f, w, Var("next_vector"), parameters.map_unroll);
}

// NCHW: one parallel loop over channels. A channel is reduced, its coefficients derived and its
// elements mapped before the next, so what the reduction read is mapped from cache.
void schedule_channel_after_channel(ChannelPipeline &p, const ScheduleParameters &parameters) {
    const Var w = p.element[0], h = p.element[1], c = p.element[2], n = p.element[3];
    Func owner = p.elementwise.empty() ? p.per_channel[0] : p.elementwise[0];
    if (!p.elementwise.empty()) {
        owner.reorder(w, h, n, c);
        map_plane(owner, w, parameters);
    }
    share_out(owner, c, p);
    for (Reduction &r : p.reductions) {
        r.merged.compute_at(owner, c);
        r.tile.compute_at(r.merged, r.tiles.x);
        compute_tiles_at(r, r.merged, r.tiles.x);
    }
    compute_coefficients_at_channel(p, owner, c);
    fuse_channel_outputs(p, owner, c);
}

// NHWC where one thread does all, in little code: as many channels as there are lanes, one such group after the
// other. Sums and coefficients stay in registers.
void schedule_channels_side_by_side(ChannelPipeline &p, const ScheduleParameters &parameters) {
    const Var w = p.element[0], h = p.element[1], c = p.element[2], n = p.element[3];
    Func owner = p.elementwise.empty() ? p.per_channel[0] : p.elementwise[0];
    Var group("group"), lane("lane");
    // Where their number is not known, one by one: what is left over would take most of the code, and memory.
    const int lanes = Internal::is_const(p.num_features) ? parameters.channel_lanes : 1;
    std::vector<Func> outputs = p.elementwise;
    outputs.insert(outputs.end(), p.per_channel.begin(), p.per_channel.end());
    for (Func &f : outputs) {
        f.split(c, group, lane, lanes, guarded).vectorize(lane);
        share_out(f, group, p);
        if (f.name() != owner.name()) {
            f.compute_with(owner, group);
        }
    }
    if (!p.elementwise.empty()) {
        owner.reorder(lane, w, h, n, group);
    }
    for (Reduction &r : p.reductions) {
        r.merged.compute_at(owner, group).vectorize(r.c, lanes, guarded);
        r.merged.update()
            .reorder(r.c, r.tiles.x, r.tiles.y, r.tiles.z)
            .vectorize(r.c, lanes, guarded);
        std::vector<Func> at_tile = r.per_tile;
        at_tile.push_back(r.tile);
        for (Reduction::Sweep &sweep : r.sweeps) {
            at_tile.push_back(sweep.sums);
            at_tile.push_back(sweep.by_lane);
            sweep.sums.update().reorder(r.c, sweep.lanes.x).vectorize(r.c, lanes, guarded);
            for (size_t i = 0; i < sweep.over.size(); i++) {
                sweep.by_lane.update(int(i))
                    .reorder(with_inner(r.c, sweep.over[i]))
                    .vectorize(r.c, lanes, guarded);
            }
            for (Reduction::Sweep::Group &group : sweep.groups) {
                group.sums.compute_at(sweep.by_lane, sweep.over[group.update].x)
                    .vectorize(r.c, lanes, guarded);
                group.sums.update().reorder(r.c, group.vectors.x).vectorize(r.c, lanes, guarded);
            }
        }
        for (Func &f : at_tile) {
            f.compute_at(r.merged, r.tiles.x).vectorize(r.c, lanes, guarded);
        }
    }
    for (Func &f : p.coefficients) {
        f.compute_at(owner, group).vectorize(c, lanes, guarded);
    }
}

// NCHW where channels are too few to share out, or there is nothing to reduce: tiles of all channels
// in parallel, then parts of planes.
void schedule_all_channels(ChannelPipeline &p, const ScheduleParameters &parameters) {
    const Var w = p.element[0], h = p.element[1], c = p.element[2], n = p.element[3];
    Var task("task");
    for (Reduction &r : p.reductions) {
        r.tile.compute_root()
            .reorder(r.tw, r.th, r.c, r.tn)
            .fuse(r.tw, r.th, task)
            .fuse(task, r.c, task)
            .fuse(task, r.tn, task)
            .parallel(task);
        compute_tiles_at(r, r.tile, task);
        r.merged.compute_root();
    }
    for (Func &f : p.coefficients) {
        f.compute_root();
    }
    for (Func &f : p.elementwise) {
        Var part("part"), channel("channel");
        const int task_elements = parameters.task_elements;
        const int step = int(parameters.row_lanes) * int(parameters.map_unroll);
        // Even parts, in whole steps; in a form that Halide does not fold into products that overflow.
        const Expr parts = (p.row_elements - 1) / task_elements + 1;
        const Expr part_elements = ((p.row_elements - 1) / (parts * step) + 1) * step;
        // Of small planes several, one after the other as they lie in memory.
        const Expr channels = max(task_elements / p.row_elements, 1);
        f.split(w, part, w, part_elements, guarded)
            .split(c, c, channel, channels, guarded)
            .reorder(w, h, channel, part, c, n)
            .fuse(part, c, task)
            .fuse(task, n, task)
            .parallel(task);
        map_plane(f, w, parameters);
    }
}

// Of what is written to each column from its channel.
void schedule_by_column(Func &f, const RDom &all_columns, Layout layout,
                        const ScheduleParameters &parameters) {
    // A run of columns is a channel's plane, or in NHWC all channels.
    const RVar run = layout == Layout::blocks ? all_columns.x : all_columns.y;
    f.update().allow_race_conditions().vectorize(run, parameters.channel_lanes, guarded);
}

// Of what is written to each part of a channel.
void schedule_by_part(Func &f, const ScheduleParameters &parameters) {
    f.update().allow_race_conditions().vectorize(f.rvars()[0], parameters.channel_lanes, guarded);
}

// Sums of each channel's columns, `over` columns of a channel first.
template<typename Loop>
void compute_channel_sums_at(Func sums, const RDom &over, const ColumnReduction &r, Func consumer,
                             const Loop &loop, const ChannelPipeline &p,
                             const ScheduleParameters &parameters) {
    sums.compute_at(consumer, loop);
    RVar step("step"), lane("lane");
    Var partial_lane("partial_lane");
    std::vector<VarOrRVar> order = {over[0], over[1]};
    if (over.dimensions() == 3) {
        order.emplace_back(over[2]);
    }
    if (p.layout == Layout::rows) {
        sums.vectorize(r.channel, parameters.channel_lanes, guarded);
        order.insert(order.begin(), r.channel);
        sums.update().reorder(order).vectorize(r.channel, parameters.channel_lanes, guarded);
        return;
    }
    // A channel's columns are a run.
    sums.update().split(over[0], step, lane, parameters.run_lanes);
    Func partial = sums.update().rfactor(lane, partial_lane);
    partial.compute_at(sums, r.channel).vectorize(partial_lane);
    order[0] = step;
    order.insert(order.begin(), partial_lane);
    partial.update().reorder(order).vectorize(partial_lane);
    add_lanes_as_tree(sums, lane, parameters.run_lanes, sums, r.channel);
}

// What is computed for each tile of a reduction, at `consumer`'s loop. Rows are taken in groups: a
// vector of columns stays in registers through a group.
template<typename Loop>
void compute_column_tiles_at(ColumnReduction &r, Func consumer, const Loop &loop,
                             const ChannelPipeline &p, const ScheduleParameters &parameters) {
    schedule_by_column(r.per_column, r.all_columns, p.layout, parameters);
    r.per_column.compute_at(consumer, loop);
    if (r.per_part.defined()) {
        schedule_by_part(r.per_part, parameters);
        r.per_part.compute_at(consumer, loop);
    }
    if (r.use_float64.defined()) {
        r.use_float64.compute_at(consumer, loop);
        r.use_float64.update().atomic().vectorize(r.tile_channels.x, parameters.channel_lanes,
                                                  guarded);
    }
    for (ColumnReduction::Sweep &s : r.sweeps) {
        compute_channel_sums_at(s.by_channel, s.channel_columns, r, consumer, loop, p, parameters);
        if (!s.by_column.defined()) {
            continue;
        }
        s.by_column.compute_at(consumer, loop)
            .vectorize(r.column, parameters.column_lanes, guarded);
        if (s.set.defined()) {
            Var lanes("lanes");
            s.set.compute_at(s.by_column, s.rows[0].x)
                .vectorize(r.column, parameters.column_lanes, guarded);
            s.set.update()
                .split(r.column, r.column, lanes, parameters.column_lanes, guarded)
                .reorder(lanes, r.column, s.in_set.x)
                .vectorize(lanes);
        }
        for (size_t i = 0; i < s.rows.size(); i++) {
            Var lanes("lanes");
            Stage sum = s.by_column.update(int(i));
            sum.split(r.column, r.column, lanes, parameters.column_lanes, guarded);
            if (s.set.defined()) {
                sum.reorder(lanes, r.column, s.rows[i].x).vectorize(lanes);
                continue;
            }
            RVar group("group"), row("row");
            // Two tensors' rows share cache sets where they are likely a multiple of 4 KB apart.
            const int unroll_rows = parameters.unroll_rows.value_or(row_group / r.tensors);
            sum.split(s.rows[i].x, group, row, unroll_rows)
                .reorder(lanes, row, r.column, group)
                .vectorize(lanes)
                .unroll(row);
        }
    }
}

// The loops within `outer` ones: a vector of columns, with its coefficients, through a few rows. Not where
// rows are likely a multiple of 4 KB apart: a load of the next row would then wait for this one's store.
void map_rows(Func &f, const Var &column, const Var &row, const std::vector<Var> &outer,
              int rows_at_a_time, const ScheduleParameters &parameters) {
    Var lanes("lanes"), next("next");
    std::vector<VarOrRVar> order = {lanes, next, column, row};
    order.insert(order.end(), outer.begin(), outer.end());
    f.split(row, row, next, rows_at_a_time, guarded)
        .split(column, column, lanes, parameters.row_lanes, guarded)
        .reorder(order)
        .vectorize(lanes)
        .unroll(next);
    unroll_map(f, column, Var("next_vector"), parameters.map_unroll);
}

// Columns in blocks, one parallel loop over them: as channel after channel, many at a time.
void schedule_block_after_block(ChannelPipeline &p, const ScheduleParameters &parameters) {
    const Var block = p.channel[1];
    Func owner = p.elementwise.empty() ? p.per_channel[0] : p.elementwise[0];
    if (!p.elementwise.empty()) {
        const int rows_at_a_time = parameters.rows_per_column.value_or(1);
        map_rows(owner, p.element[0], p.element[2], {block}, rows_at_a_time, parameters);
    }
    share_out(owner, block, p);
    for (ColumnReduction &r : p.column_reductions) {
        r.merged.compute_at(owner, block);
        r.tile.compute_at(r.merged, r.tiles.y);
        compute_column_tiles_at(r, r.merged, r.tiles.y, p, parameters);
        r.merged.update().reorder(r.channel, r.tiles.x, r.tiles.y);
    }
    for (Func &f : p.coefficients) {
        f.compute_at(owner, block);
    }
    for (Func &f : p.column_coefficients) {
        schedule_by_column(f, p.all_columns, p.layout, parameters);
        f.compute_at(owner, block);
    }
    for (Func &f : p.paired_coefficients) {
        f.compute_at(owner, block).vectorize(f.args()[0], parameters.channel_lanes);
    }
    fuse_channel_outputs(p, owner, block);
}

// Many rows: tiles of rows in parallel, merged in order, then rows are mapped in parallel.
void schedule_rows(ChannelPipeline &p, const ScheduleParameters &parameters) {
    Var task("task");
    for (ColumnReduction &r : p.column_reductions) {
        r.tile.compute_root()
            .fuse(r.channel_block, r.tile_var, task)
            .vectorize(r.channel, parameters.channel_lanes, guarded);
        share_out(r.tile, task, p);
        compute_column_tiles_at(r, r.tile, task, p, parameters);
        r.merged.compute_root().vectorize(r.channel, parameters.channel_lanes, guarded);
        r.merged.update()
            .reorder(r.channel, r.tiles.x, r.tiles.y, r.channel_block)
            .vectorize(r.channel, parameters.channel_lanes, guarded);
    }
    for (Func &f : p.coefficients) {
        f.compute_root().vectorize(p.channel[0], parameters.channel_lanes, guarded);
    }
    for (Func &f : p.part_coefficients) {
        schedule_by_part(f, parameters);
        f.compute_root();
    }
    for (Func &f : p.column_coefficients) {
        schedule_by_column(f, p.all_columns, p.layout, parameters);
        f.compute_root();
    }
    for (Func &f : p.paired_coefficients) {
        f.compute_root().vectorize(f.args()[0], parameters.channel_lanes);
    }
    for (Func &f : p.elementwise) {
        const Var column = p.element[0], block = p.element[1], row = p.element[2];
        const int rows_at_a_time = parameters.rows_per_column;
        const Expr rows = max(int(parameters.task_elements) / p.row_elements, 1) * rows_at_a_time;
        f.split(row, task, row, rows, guarded);
        map_rows(f, column, row, {block, task}, rows_at_a_time, parameters);
        f.fuse(block, task, task);
        share_out(f, task, p);
    }
}

}  // namespace

void schedule_vectorized(ChannelPipeline p) {
    ScheduleParameters &parameters = *p.parameters;
    parameters.map_unroll.set_default(1);
    // Enough to outweigh a task's start.
    parameters.task_elements.set_default(16384);
    switch (p.layout) {
    case Layout::nchw:
        if (!p.reductions.empty() || p.standalone) {
            return schedule_channel_after_channel(p, parameters);
        }
        return schedule_all_channels(p, parameters);
    case Layout::nhwc:
        return schedule_channels_side_by_side(p, parameters);
    case Layout::nchw_few_channels:
        return schedule_all_channels(p, parameters);
    case Layout::blocks:
        return schedule_block_after_block(p, parameters);
    default:
        return schedule_rows(p, parameters);
    }
}

}  // namespace hbn
