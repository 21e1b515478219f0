#include "generators/batch_norm.h"

#include <cmath>
#include <functional>
#include <utility>

namespace hbn {

using namespace Halide;

namespace {

// Of a >= 0. Not (a + b - 1) / b: Halide folds that, where b is such a quotient itself, into products that
// overflow.
Expr ceil_div(const Expr &a, const Expr &b) {
    return (a - 1) / b + 1;
}

// What the sums over a tile's n values come to, d being the distance from its pivot.
Tuple moments_from_pivot(const Expr &pivot, const Expr &sum_d, const Expr &sum_dd, const Expr &n) {
    const Expr mean_d = sum_d / n;
    // Rounding alone could leave less than nothing of a constant channel.
    return {pivot + mean_d, max(sum_dd - sum_d * mean_d, f64(0))};
}

// {sum of dy, sum of dy * (x - center)}, with the mean for the center.
Tuple from_center(const std::vector<Expr> &sums, const Expr &center, const Expr &mean) {
    if (center.type() == mean.type()) {
        return {sums[0], sums[1]};
    }
    return {sums[0], sums[1] + sums[0] * exact_order(f64(center) - mean)};
}

// Of as many values of a tile, some for a pivot: enough for what Pivot says.
Expr sample_of(const Expr &values) {
    return ceil_div(values, 64);
}

}  // namespace

Cut standalone_cut(const Expr &width, const Expr &samples, int most) {
    const Expr units = ceil_div(min(width, most), Cut::unit);
    const Expr w = min(units * Cut::unit, width);
    const Expr n = clamp(most / w, 1, samples);
    const Expr sampled = ceil_div(sample_of(w * n), Cut::sample_unit);
    const Expr sample_units = clamp(w / Cut::sample_unit, 1, sampled);
    const Expr sample_n = clamp(ceil_div(sampled, sample_units), 1, n);
    return {units,        1, n,       ceil_div(width, units * Cut::unit), 1, ceil_div(samples, n),
            sample_units, 1, sample_n};
}

PlaneTiling::PlaneTiling(const Expr &width, const Expr &height, const Expr &samples, const Cut &cut,
                         int lanes, bool in_groups)
    : width(width),
      height(height),
      samples(samples),
      cut(cut),
      w(cut.units * Cut::unit),
      h(cut.h),
      n(cut.n),
      tiles(0, cut.tiles_w, 0, cut.tiles_h, 0, cut.tiles_n, "tiles"),
      lanes(lanes),
      in_groups(in_groups) {
}

RDom PlaneTiling::sample() const {
    RDom sample(0, cut.sample_units * (Cut::sample_unit / lanes), 0, cut.sample_h, 0, cut.sample_n,
                "sample");
    sample.where(sample.x < tile_w() / lanes && sample.y < tile_h() && sample.z < tile_n());
    return sample;
}

Expr PlaneTiling::sample_count() const {
    return f64(min(cut.sample_units * (Cut::sample_unit / lanes), tile_w() / lanes) *
               min(cut.sample_h, tile_h()) * min(cut.sample_n, tile_n()) * lanes);
}

Expr PlaneTiling::count(const Expr &tw, const Expr &th, const Expr &tn) const {
    return f64(min(w, width - tw * w)) * f64(min(h, height - th * h)) *
           f64(min(n, samples - tn * n));
}

Expr PlaneTiling::count_before(const Expr &tw, const Expr &th, const Expr &tn) const {
    const Expr in_samples = f64(min(n, samples - tn * n));
    const Expr in_rows = f64(min(h, height - th * h));
    return f64(tn * n) * f64(height) * f64(width) +
           in_samples * (f64(th * h) * f64(width) + in_rows * f64(tw * w));
}

ColumnTiling::ColumnTiling(const Expr &columns, const Expr &rows, const Expr &plane,
                           const Expr &channels, const Expr &folds, const Cut &cut)
    : columns(columns),
      rows(rows),
      plane(plane),
      channels(channels),
      folds(folds),
      tile_rows(cut.units * row_group),
      tiles(0, cut.tiles_w, "tiles"),
      members(0, plane, 0, channels, 0, folds, "members") {
}

RDom ColumnTiling::inside() const {
    RDom inside(0, tile_rows, "inside");
    inside.where(likely(first_row(t) + inside.x < rows));
    return inside;
}

RDom ColumnTiling::sample() const {
    RDom sample(0, plane, 0, folds, 0, sample_of(tile_rows), "sample");
    sample.where(sample.z < rows_of(t));
    return sample;
}

Expr ColumnTiling::sample_count() const {
    return f64(plane) * f64(folds) * f64(min(sample_of(tile_rows), rows_of(t)));
}

Expr ColumnTiling::count(const Expr &t) const {
    return f64(plane) * f64(folds) * f64(rows_of(t));
}

Expr ColumnTiling::count_before(const Expr &t) const {
    // Before tile t come the rows after its last.
    return f64(plane) * f64(folds) * f64(max(rows - first_row(t) - tile_rows, 0));
}

Func ColumnTiling::spread(const Func &per_channel, const std::string &name) const {
    std::vector<Var> rest = per_channel.args();
    rest.erase(rest.begin());
    std::vector<Expr> any = {column}, to = {member_column()}, from = {members.y};
    for (const Var &v : rest) {
        any.emplace_back(v);
        to.emplace_back(v);
        from.emplace_back(v);
    }
    std::vector<Var> args = {column};
    args.insert(args.end(), rest.begin(), rest.end());
    Func spread(name);
    std::vector<Expr> nothing, value;
    for (int i = 0; i < per_channel.outputs(); i++) {
        nothing.push_back(undef(per_channel.types()[i]));
        value.push_back(per_channel.outputs() > 1 ? Expr(per_channel(from)[i])
                                                  : Expr(per_channel(from)));
    }
    spread(args) = Tuple(nothing);
    spread(to) = Tuple(value);
    return spread;
}

Moments merge(const Moments &a, const Expr &na, const Moments &b, const Expr &nb) {
    // Not in exact_order: Halide 21 moves strict_float expressions of a Tuple's update across its own
    // stores, so m2 would see the new mean.
    const Expr share = nb / (na + nb);
    const Expr d = b.mean - a.mean;
    return {a.mean + d * share, a.m2 + (b.m2 + d * d * (na * share))};
}

namespace {

// Two terms of the value at a place in a tile, in the type that they are to be summed in.
using PlaneTerms =
    std::function<std::vector<Expr>(const Expr &i, const Expr &j, const Expr &l, Type type)>;
using RowTerms = std::function<std::vector<Expr>(const Expr &row, Type type)>;

// Whether sums over groups of such values, and of their products, may leave float32's range. They are then
// guarded: beside both sums there is the largest magnitude that any group's had.
bool guards(Type tensor) {
    return tensor != Float(16);
}

void start(Func sums, const std::vector<Var> &at, bool guarded = false) {
    std::vector<Expr> zeros = {f64(0), f64(0)};
    if (guarded) {
        zeros.emplace_back(uint32_t(0));
    }
    sums(at) = Tuple(zeros);
}

// Of float32, in the order of magnitudes, infinities and NaN the largest. As bits, since LLVM takes it that
// arithmetic never gives those.
Expr magnitude(const Expr &value) {
    return reinterpret<uint32_t>(value) & Expr(uint32_t(0x7fffffff));
}

void add(Func sums, const std::vector<Var> &at, const std::vector<Expr> &terms) {
    const FuncRef so_far = sums(at);
    std::vector<Expr> added = {so_far[0] + f64(terms[0]), so_far[1] + f64(terms[1])};
    if (sums.outputs() == 3) {
        // Terms of float64 need no guard.
        const Expr so_far_largest = so_far[2];
        added.push_back(terms.size() == 3 ? max(so_far_largest, terms[2])
                        : terms[0].type() == Float(32)
                            ? max(so_far_largest, max(magnitude(terms[0]), magnitude(terms[1])))
                            : so_far_largest);
    }
    sums(at) = Tuple(added);
}

std::vector<Expr> all_of(const FuncRef &tuple, int size) {
    std::vector<Expr> elements;
    for (int i = 0; i < size; i++) {
        elements.push_back(tuple[i]);
    }
    return elements;
}

// What guarded sums come to is worth nothing where a group overflowed, or where products may have lost bits
// below float32's least normal number that matter beside their sum.
Expr out_of_range(const FuncRef &sums) {
    const float largest = std::ldexp(1.0f, 126);
    const double least = std::ldexp(1.0, -100);
    return sums[2] >= reinterpret<uint32_t>(Expr(largest)) ||
           (sums[2] > 0 && abs(sums[1]) < Expr(least));
}

// float32 sums over one group.
void add_up_group(Func group, const std::vector<Var> &at, const std::vector<Expr> &terms) {
    group(at) = Tuple(0.0f, 0.0f);
    const FuncRef so_far = group(at);
    group(at) = Tuple(so_far[0] + terms[0], so_far[1] + terms[1]);
}

// By lane, then over lanes; what `over`'s updates add to each lane comes from the function's argument.
Reduction::Sweep sweep_by_lane(const PlaneTiling &t, const std::vector<RDom> &over, bool guarded,
                               const std::function<std::vector<Expr>(size_t update)> &terms) {
    const std::vector<Var> at = t.tile_at();
    Reduction::Sweep sweep;
    sweep.sums = Func("tile_sums");
    sweep.over = over;
    sweep.by_lane = Func("lane_sums");
    sweep.lane = t.lane;
    sweep.lanes = RDom(0, t.lanes, "lanes");
    std::vector<Var> lane_at = {t.lane};
    lane_at.insert(lane_at.end(), at.begin(), at.end());
    start(sweep.by_lane, lane_at, guarded);
    for (size_t i = 0; i < over.size(); i++) {
        add(sweep.by_lane, lane_at, terms(i));
    }
    start(sweep.sums, at, guarded);
    std::vector<Expr> one_lane(lane_at.begin(), lane_at.end());
    one_lane[0] = sweep.lanes.x;
    add(sweep.sums, at, all_of(sweep.by_lane(one_lane), sweep.by_lane.outputs()));
    return sweep;
}

// Over a tile: in groups, of float32, or in float64. It is summed again, as it were, `where` this holds.
Reduction::Sweep sweep_tile(const PlaneTiling &t, bool in_groups, bool guarded, const Expr &where,
                            const PlaneTerms &terms) {
    // What one step along w takes of each lane.
    const int values = in_groups ? group_values : 1, step = t.lanes * values;
    RDom whole(0, t.cut.units * (Cut::unit / step), 0, t.h, 0, t.n, "whole");
    whole.where(likely(t.tw * t.w + whole.x * step + (step - 1) < t.width) &&
                whole.y < t.tile_h() && whole.z < t.tile_n() && where);
    // Tiles are whole steps, but the last, which ends in vectors: the last of those ends where the row does,
    // and leaves out what the one before it had.
    const Expr left = t.width % step;
    RDom rest(0, ceil_div(left, t.lanes), 0, t.h, 0, t.n, "rest");
    rest.where(t.width - t.tw * t.w <= t.w && t.width >= t.lanes && rest.y < t.tile_h() &&
               rest.z < t.tile_n() && where);
    const Expr due = t.width - left + rest.x * t.lanes;
    const Expr first = min(due, t.width - t.lanes);
    // Rows shorter than a vector.
    RDom narrow(0, t.h, 0, t.n, "narrow");
    narrow.where(t.width < t.lanes && t.lane < t.width && narrow.x < t.tile_h() &&
                 narrow.y < t.tile_n() && where);

    Var i("i"), j("j"), l("l");
    std::vector<Var> group_at = {t.lane, i, j, l};
    std::vector<Expr> this_group = {t.lane, whole.x, whole.y, whole.z};
    for (const Var &v : t.tile_at()) {
        group_at.push_back(v);
        this_group.emplace_back(v);
    }
    Func group_sums("group_sums");
    const RDom in_group(0, values, "in_group");
    if (in_groups) {
        add_up_group(group_sums, group_at,
                     terms(i * step + in_group * t.lanes + t.lane, j, l, Float(32)));
    }
    // Without one lane more than a row has, nothing is left, and no row is too short.
    const std::vector<RDom> over =
        step == 1 ? std::vector<RDom>{whole} : std::vector<RDom>{whole, rest, narrow};
    Reduction::Sweep sweep = sweep_by_lane(t, over, guarded, [&](size_t update) {
        switch (update) {
        case 0: {
            if (!in_groups) {
                return terms(whole.x * step + t.lane, whole.y, whole.z, Float(64));
            }
            const FuncRef sums = group_sums(this_group);
            return std::vector<Expr>{sums[0], sums[1]};
        }
        case 1: {
            std::vector<Expr> last = terms(first - t.tw * t.w + t.lane, rest.y, rest.z, Float(64));
            for (Expr &term : last) {
                term = select(first + t.lane >= due, term, f64(0));
            }
            return last;
        }
        default:
            return terms(t.lane, narrow.x, narrow.y, Float(64));
        }
    });
    if (in_groups) {
        sweep.group = group_sums;
        sweep.in_group = in_group;
    }
    return sweep;
}

// The tile's sums of both terms, of values of this `tensor`; adds the sweeps that they take.
std::vector<Expr> sum_tile(const PlaneTiling &t, Type tensor, const PlaneTerms &terms,
                           Reduction &r) {
    const std::vector<Var> at = t.tile_at();
    const bool guarded = t.in_groups && guards(tensor);
    r.sweeps.push_back(sweep_tile(t, t.in_groups, guarded, Internal::const_true(), terms));
    const FuncRef sums = r.sweeps.back().sums(at);
    if (!guarded) {
        return {sums[0], sums[1]};
    }
    Func again("again");
    again(at) = out_of_range(sums);
    r.per_tile.push_back(again);
    r.sweeps.push_back(sweep_tile(t, false, false, again(at), terms));
    const FuncRef wide = r.sweeps.back().sums(at);
    return {select(again(at), wide[0], sums[0]), select(again(at), wide[1], sums[1])};
}

}  // namespace

Reduction reduce_moments(const Func &x, const PlaneTiling &t, Pivot from) {
    const Var &c = t.c;
    const std::vector<Var> at = t.tile_at();
    const Expr n = t.count(t.tw, t.th, t.tn);
    Reduction r;
    Func pivot("pivot");
    if (from == Pivot::first_value) {
        pivot(at) = f64(t.at(x, 0, 0, 0));
    } else if (from == Pivot::tile_mean) {
        const PlaneTerms value = [&](const Expr &i, const Expr &j, const Expr &l, Type type) {
            return std::vector<Expr>{cast(type, t.at(x, i, j, l)), cast(type, 0)};
        };
        r.sweeps = {sweep_tile(t, false, false, Internal::const_true(), value)};
        pivot(at) = r.sweeps[0].sums(at)[0] / n;
    } else {
        const RDom over = t.sample();
        r.sweeps = {sweep_by_lane(t, {over}, false, [&](size_t) {
            return std::vector<Expr>{t.at(x, over.x * t.lanes + t.lane, over.y, over.z), f64(0)};
        })};
        // Where there is no vector there is no group either, and any value will do.
        pivot(at) = cast<float>(select(t.tile_w() < t.lanes, f64(t.at(x, 0, 0, 0)),
                                       r.sweeps[0].sums(at)[0] / t.sample_count()));
    }
    r.per_tile = {pivot};

    const PlaneTerms deviation = [&](const Expr &i, const Expr &j, const Expr &l, Type type) {
        const Expr d = exact_order(cast(type, t.at(x, i, j, l)) - cast(type, pivot(at)));
        return std::vector<Expr>{d, d * d};
    };
    const auto sums = sum_tile(t, x.type(), deviation, r);
    r.tile = Func("tile_moments");
    r.tile(at) = moments_from_pivot(f64(pivot(at)), sums[0], sums[1], n);

    const Expr tw = t.tiles.x, th = t.tiles.y, tn = t.tiles.z;
    r.merged = Func("moments");
    r.merged(c) = Tuple(f64(0), f64(0));
    const FuncRef tile = r.tile(c, tw, th, tn);
    const Moments merged = merge({r.merged(c)[0], r.merged(c)[1]}, t.count_before(tw, th, tn),
                                 {tile[0], tile[1]}, t.count(tw, th, tn));
    r.merged(c) = Tuple(merged.mean, merged.m2);
    r.set_walk(t.tiles, c, t.tw, t.th, t.tn);
    return r;
}

Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const PlaneTiling &t) {
    const Var &c = t.c;
    const std::vector<Var> at = t.tile_at();
    const Expr center = t.in_groups ? cast<float>(mean(c)) : mean(c);
    const PlaneTerms product = [&](const Expr &i, const Expr &j, const Expr &l, Type type) {
        const Expr dy = exact_order(cast(type, t.at(grad_output, i, j, l)));
        const Expr xmu = exact_order(cast(type, t.at(x, i, j, l)) - cast(type, center));
        return std::vector<Expr>{dy, dy * xmu};
    };
    Reduction r;
    const auto sums = sum_tile(t, x.type(), product, r);
    r.tile = Func("tile_gradients");
    r.tile(at) = from_center(sums, center, mean(c));

    const FuncRef tile = r.tile(c, t.tiles.x, t.tiles.y, t.tiles.z);
    r.merged = Func("sums");
    r.merged(c) = Tuple(f64(0), f64(0));
    r.merged(c) = Tuple(r.merged(c)[0] + tile[0], r.merged(c)[1] + tile[1]);
    r.set_walk(t.tiles, c, t.tw, t.th, t.tn);
    return r;
}

namespace {

// Of the tile's rows in each column, then of each channel's columns.
ColumnReduction::Sweep sweep_rows(const ColumnTiling &tiling, Func by_column,
                                  const std::vector<RDom> &rows) {
    const Var &k = tiling.k, &block = tiling.block, &t = tiling.t;
    ColumnReduction::Sweep s;
    s.by_column = std::move(by_column);
    s.rows = rows;
    s.channel_columns = RDom(0, tiling.plane, 0, tiling.folds, "channel_columns");
    const FuncRef part =
        s.by_column(tiling.column_of(k, s.channel_columns.x, s.channel_columns.y), block, t);
    s.by_channel = Func("channel_sums");
    start(s.by_channel, {k, block, t}, s.by_column.outputs() == 3);
    add(s.by_channel, {k, block, t}, all_of(part, s.by_column.outputs()));
    return s;
}

ColumnReduction::Sweep sweep_rows(const ColumnTiling &tiling, const RDom &over,
                                  const RowTerms &terms) {
    const std::vector<Var> at = {tiling.column, tiling.block, tiling.t};
    Func by_column("column_sums");
    start(by_column, at);
    add(by_column, at, terms(tiling.first_row(tiling.t) + over.x, Float(64)));
    return sweep_rows(tiling, by_column, {over});
}

ColumnReduction::Sweep sweep_rows_in_groups(const ColumnTiling &tiling, const RowTerms &terms,
                                            bool guarded) {
    const Var &t = tiling.t;
    const std::vector<Var> at = {tiling.column, tiling.block, t};
    RDom whole(0, tiling.tile_rows / row_group, "groups");
    whole.where(tiling.first_row(t) + whole.x * row_group + (row_group - 1) < tiling.rows);
    // Tiles are whole groups, but the one with the last rows, which comes first.
    const Expr left = tiling.rows % row_group;
    RDom rest(0, left, "rest");
    rest.where(t == 0);

    Func by_column("column_group_sums");
    start(by_column, at, guarded);
    std::vector<Expr> group = {0.0f, 0.0f};
    for (int row = 0; row < row_group; row++) {
        const std::vector<Expr> values =
            terms(tiling.first_row(t) + whole.x * row_group + row, Float(32));
        group = {group[0] + values[0], group[1] + values[1]};
    }
    add(by_column, at, group);
    add(by_column, at, terms(tiling.rows - left + rest.x, Float(64)));
    ColumnReduction::Sweep sweep = sweep_rows(tiling, by_column, {whole, rest});
    sweep.in_groups = true;
    return sweep;
}

// The tile's sums of both terms, of values of this `tensor`; adds the sweeps that they take.
std::vector<Expr> sum_rows(const ColumnTiling &tiling, bool in_groups, Type tensor,
                           const RowTerms &terms, ColumnReduction &r) {
    const Var &k = tiling.k, &block = tiling.block, &t = tiling.t;
    const bool guarded = in_groups && guards(tensor);
    r.sweeps.push_back(in_groups ? sweep_rows_in_groups(tiling, terms, guarded)
                                 : sweep_rows(tiling, tiling.inside(), terms));
    const FuncRef sums = r.sweeps.back().by_channel(k, block, t);
    if (!guarded) {
        return {sums[0], sums[1]};
    }
    // All columns of a tile are summed again where a channel has to be, but none of the others is changed.
    const RDom channels(0, tiling.channels, "channels");
    r.again = Func("again");
    r.again(block, t) = cast<uint32_t>(0);
    r.again(block, t) =
        max(r.again(block, t),
            cast<uint32_t>(out_of_range(r.sweeps.back().by_channel(channels.x, block, t))));
    r.tile_channels = channels;
    RDom inside = tiling.inside();
    inside.where(r.again(block, t) != 0);
    const Expr again = out_of_range(sums);
    r.sweeps.push_back(sweep_rows(tiling, inside, terms));
    const FuncRef wide = r.sweeps.back().by_channel(k, block, t);
    return {select(again, wide[0], sums[0]), select(again, wide[1], sums[1])};
}

}  // namespace

ColumnReduction reduce_moments(const Func &x, const ColumnTiling &tiling, Pivot from) {
    const Var &column = tiling.column, &block = tiling.block, &k = tiling.k, &t = tiling.t;
    const std::vector<Var> at = {k, block, t};
    const Expr n = tiling.count(t);
    ColumnReduction r;
    Func pivot("pivot");
    if (from == Pivot::tile_mean) {
        const RowTerms value = [&](const Expr &row, Type type) {
            return std::vector<Expr>{cast(type, x(column, block, row)), cast(type, 0)};
        };
        r.sweeps = {sweep_rows(tiling, tiling.inside(), value)};
        pivot(at) = r.sweeps[0].by_channel(at)[0] / n;
    } else if (from == Pivot::sample_mean) {
        ColumnReduction::Sweep s;
        s.channel_columns = tiling.sample();
        s.by_channel = Func("sample_sums");
        const RDom &over = s.channel_columns;
        start(s.by_channel, at);
        add(s.by_channel, at,
            {x(tiling.column_of(k, over.x, over.y), block, tiling.first_row(t) + over.z), f64(0)});
        pivot(at) = cast<float>(s.by_channel(at)[0] / tiling.sample_count());
        r.sweeps = {s};
    } else {
        pivot(at) = f64(x(tiling.plane * k, block, tiling.first_row(t)));
    }
    r.per_column = tiling.spread(pivot, "column_pivot");

    const RowTerms deviation = [&](const Expr &row, Type type) {
        const Expr d = exact_order(cast(type, x(column, block, row)) -
                                   cast(type, r.per_column(column, block, t)));
        return std::vector<Expr>{d, d * d};
    };
    const auto sums = sum_rows(tiling, from == Pivot::sample_mean, x.type(), deviation, r);
    r.tile = Func("tile_moments");
    r.tile(at) = moments_from_pivot(f64(pivot(at)), sums[0], sums[1], n);

    const Expr i = tiling.tiles.x;
    r.merged = Func("moments");
    const FuncRef so_far = r.merged(k, block), tile = r.tile(k, block, i);
    r.merged(k, block) = Tuple(f64(0), f64(0));
    const Moments merged =
        merge({so_far[0], so_far[1]}, tiling.count_before(i), {tile[0], tile[1]}, tiling.count(i));
    r.merged(k, block) = Tuple(merged.mean, merged.m2);
    r.set_walk(tiling.tiles, tiling.members, column, block, k, t);
    return r;
}

ColumnReduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                                 const ColumnTiling &tiling, bool in_groups) {
    const Var &column = tiling.column, &block = tiling.block, &k = tiling.k, &t = tiling.t;
    ColumnReduction r;
    r.tensors = 2;
    Func center("center");
    center(k, block) = in_groups ? cast<float>(mean(k, block)) : mean(k, block);
    r.per_column = tiling.spread(center, "column_mean");

    const RowTerms product = [&](const Expr &row, Type type) {
        const Expr dy = exact_order(cast(type, grad_output(column, block, row)));
        const Expr xmu = exact_order(cast(type, x(column, block, row)) -
                                     cast(type, r.per_column(column, block)));
        return std::vector<Expr>{dy, dy * xmu};
    };
    const auto sums = sum_rows(tiling, in_groups, x.type(), product, r);
    r.tile = Func("tile_gradients");
    r.tile(k, block, t) = from_center(sums, center(k, block), mean(k, block));

    const FuncRef tile = r.tile(k, block, tiling.tiles.x);
    r.merged = Func("sums");
    r.merged(k, block) = Tuple(f64(0), f64(0));
    r.merged(k, block) = Tuple(r.merged(k, block)[0] + tile[0], r.merged(k, block)[1] + tile[1]);
    r.set_walk(tiling.tiles, tiling.members, column, block, k, t);
    return r;
}

Expr invstd_from_variance(const Expr &variance, const Expr &eps) {
    // The same bits wherever it is computed: a fused ReLU's backward relies on it.
    return exact_order(f64(1) / sqrt(variance + eps));
}

Expr moved_to_batch(const Expr &running, const Expr &batch, const Expr &momentum) {
    const Expr updated = (1 - momentum) * f64(running) + momentum * batch;
    return select(momentum == 0, running, cast(running.type(), updated));
}

namespace {

Expr range_scale(const Expr &invstd) {
    // Clearing the significand of a positive float64 leaves the power of two at or below it.
    const Expr exponent = cast<uint64_t>(Expr(uint64_t(0x7ff0000000000000)));
    const Expr power = reinterpret<double>(reinterpret<uint64_t>(invstd) & exponent);
    // A normal float32, since some processors take others for zero; values up to 2^128 times that are
    // still small.
    return select(power < f64(1), max(power, f64(std::ldexp(1.0f, -126))), f64(1));
}

// x - mean, to scale; the coefficients are those that come first.
std::vector<Expr> deviation_coefficients(const Expr &mean, const Expr &scale, const Arithmetic &a) {
    const Expr rounded = cast(statistic_type(a.tensor), mean);
    const Expr rounded_scale = cast(statistic_type(a.tensor), scale);
    return deviation_size(a) == 1 ? std::vector<Expr>{rounded}
                                  : std::vector<Expr>{rounded_scale * rounded, rounded_scale};
}

Expr deviation(const Expr &x, const std::vector<Expr> &k, const Arithmetic &a) {
    const Expr wide = cast(k[0].type(), x);
    return exact_order((deviation_size(a) == 1 ? wide : wide * k[1]) - k[0]);
}

Expr scale_of(const Expr &invstd, const Arithmetic &a) {
    return deviation_size(a) == 1 ? f64(1) : range_scale(invstd);
}

// deviation() is the distance from the mean rounded to the arithmetic's type: x - mean_high is exact near the
// mean. What rounding leaves, mean_low, is at most as large as x - mean_high, since mean_high is the value
// nearest to the mean. This is the constant that makes constant + slope * (x - mean_high) what `constant` makes
// constant + slope * (x - mean); all in float64.
Expr with_mean_low(const Expr &constant, const Expr &slope, const Expr &mean, const Arithmetic &a) {
    const Type type = statistic_type(a.tensor);
    if (mean.type() == type) {
        return constant;
    }
    const Expr mean_low = exact_order(mean - f64(cast(type, mean)));
    return constant - slope * mean_low;
}

}  // namespace

std::vector<Expr> normalization_coefficients(const Expr &mean, const Expr &invstd,
                                             const Expr &weight, const Expr &bias,
                                             const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr gain = f64(weight) * invstd;
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(gain / scale));
    coefficients.push_back(rounded(exact_order(with_mean_low(f64(bias), gain, mean, a))));
    return coefficients;
}

Expr normalize(const Expr &x, const std::vector<Expr> &k, const Arithmetic &a) {
    const int next = deviation_size(a);
    return deviation(x, k, a) * k[next] + k[next + 1];
}

Expr normalize_in_exact_order(const Expr &x, const std::vector<Expr> &k, const Arithmetic &a) {
    return exact_order(normalize(x, k, a));
}

std::vector<Expr> input_gradient_coefficients(const Expr &mean, const Expr &invstd,
                                              const Expr &weight, const Expr &sum_dy,
                                              const Expr &sum_dy_xmu, const Expr &count,
                                              const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr mean_dy_xhat = sum_dy_xmu * invstd / count;
    // Both are subtracted from dy.
    const Expr mean_dy = with_mean_low(sum_dy / count, mean_dy_xhat * invstd, mean, a);
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(mean_dy_xhat * (invstd / scale)));
    coefficients.push_back(rounded(mean_dy));
    coefficients.push_back(rounded(f64(weight) * invstd));
    return coefficients;
}

Expr input_gradient(const Expr &grad_output, const Expr &x, const std::vector<Expr> &k,
                    const Arithmetic &a) {
    const int next = deviation_size(a);
    const Expr centred = exact_order(cast(k[0].type(), grad_output) - k[next + 1]);
    // In this order wherever it is compiled: an output's bits don't depend on how it is stored.
    return exact_order((centred - deviation(x, k, a) * k[next]) * k[next + 2]);
}

std::vector<Expr> tangent_coefficients(const Expr &mean, const Expr &invstd, const Expr &weight,
                                       const Expr &weight_tangent, const Expr &bias_tangent,
                                       const GradientSums &sums, const Expr &count,
                                       const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr gain = f64(weight) * invstd;
    const Expr of_xhat = f64(weight_tangent) - gain * (sums.xmu * invstd / count);
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(gain));
    coefficients.push_back(rounded(sums.plain / count));
    coefficients.push_back(rounded(of_xhat * (invstd / scale)));
    coefficients.push_back(rounded(with_mean_low(f64(bias_tangent), of_xhat * invstd, mean, a)));
    return coefficients;
}

Expr tangent(const Expr &x_tangent, const Expr &x, const std::vector<Expr> &k,
             const Arithmetic &a) {
    const int next = deviation_size(a);
    const Expr centred = exact_order(cast(k[0].type(), x_tangent) - k[next + 1]);
    return exact_order(centred * k[next] + (deviation(x, k, a) * k[next + 2] + k[next + 3]));
}

std::vector<Expr> double_backward_coefficients(const Expr &mean, const Expr &invstd,
                                               const Expr &weight, const Expr &ddw,
                                               const GradientSums &of_dy,
                                               const GradientSums &of_ddx, const Expr &product,
                                               const Expr &count, const Arithmetic &a) {
    const auto rounded = [&](const Expr &e) { return cast(statistic_type(a.tensor), e); };
    const Expr scale = scale_of(invstd, a);
    const Expr gain = f64(weight) * invstd * invstd / count;
    const Expr sum_dy_xhat = of_dy.xmu * invstd, sum_ddx_xhat = of_ddx.xmu * invstd;
    const Expr of_projected_dy = f64(ddw) * invstd - gain * sum_ddx_xhat;
    const Expr of_projected_ddx = -gain * sum_dy_xhat;
    const Expr of_xhat = -gain * product - of_projected_dy * (sum_dy_xhat / count) -
                         of_projected_ddx * (sum_ddx_xhat / count);
    std::vector<Expr> coefficients = deviation_coefficients(mean, scale, a);
    coefficients.push_back(rounded(of_projected_dy));
    coefficients.push_back(rounded(of_dy.plain / count));
    coefficients.push_back(rounded(of_projected_ddx));
    coefficients.push_back(rounded(of_ddx.plain / count));
    coefficients.push_back(rounded(of_xhat * (invstd / scale)));
    coefficients.push_back(rounded(with_mean_low(f64(0), of_xhat * invstd, mean, a)));
    return coefficients;
}

Expr double_backward(const Expr &dy, const Expr &ddx, const Expr &x, const std::vector<Expr> &k,
                     const Arithmetic &a) {
    const int next = deviation_size(a);
    const Expr centred_dy = exact_order(cast(k[0].type(), dy) - k[next + 1]);
    const Expr centred_ddx = exact_order(cast(k[0].type(), ddx) - k[next + 3]);
    return exact_order(centred_dy * k[next] + (centred_ddx * k[next + 2] +
                                               (deviation(x, k, a) * k[next + 4] + k[next + 5])));
}

Expr double_backward_product(const Expr &sum_dy_ddx, const Expr &center, const Expr &invstd,
                             const GradientSums &of_dy, const GradientSums &of_ddx,
                             const Expr &count) {
    const Expr centred = sum_dy_ddx - of_dy.plain * (of_ddx.plain / count - center);
    return centred - (of_dy.xmu * invstd) * (of_ddx.xmu * invstd / count);
}

}  // namespace hbn
