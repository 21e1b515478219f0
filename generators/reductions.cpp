#include "generators/reductions.h"

#include <cmath>
#include <functional>
#include <limits>
#include <utility>

namespace hbn {

using namespace Halide;

Moments merge(const Moments &a, const Expr &count_a, const Moments &b, const Expr &count_b,
              Type tensor) {
    // Not in exact_order(): Halide 21 moves strict_float expressions of a Tuple's update across the update's own
    // stores, so that m2 would be computed with the new mean.
    const Expr share = count_b / (count_a + count_b);
    const Expr d = b.mean - a.mean;
    // An infinite mean is at no distance from others: it is what adding it to them gives.
    const auto infinite = [](const Expr &mean) { return zero_where(is_number(mean), mean); };
    Expr otherwise = infinite(a.mean) + infinite(b.mean);
    if (tensor == Float(64)) {
        // Twice the mean of halves, which are taken of the bits: LLVM would take half of the overflowing distance.
        const auto half = [](const Expr &large) {
            const Expr exponent_of_2 = Expr(uint64_t(1) << 52);
            return reinterpret<double>(reinterpret<uint64_t>(large) - exponent_of_2);
        };
        const Expr half_mean = half(a.mean) + (half(b.mean) - half(a.mean)) * share;
        otherwise = select_bits(is_number(a.mean) && is_number(b.mean), half_mean * 2, otherwise);
    }
    const Expr mean = select_bits(is_number(d), a.mean + d * share, otherwise);
    // The square of a distance from nothing may be infinite, too, and 0 times that is NaN.
    const Expr apart = select(count_a > 0, d, f64(0));
    return {mean, a.m2 + (b.m2 + apart * apart * (count_a * share))};
}

namespace {

// A value as it is added up for a tile's mean: those of float64 are made so small that their sum can't overflow. What
// vanishes by that comes back with the sum of distances from the mean.
constexpr double float64_sum_scale = 0x1p-64;

Expr term_of_tile_mean(const Expr &value) {
    return value.type() == Float(64) ? value * Expr(float64_sum_scale) : f64(value);
}

// A tile's mean, for a pivot, from the sum of those over its n values, of which `first` is one.
Expr tile_mean(const Expr &sum, const Expr &n, const Expr &first) {
    const Expr mean = exact_order(sum / n);
    if (first.type() != Float(64)) {
        return mean;
    }
    // Rounding alone could make it larger than the largest value.
    const Expr most = Expr(std::numeric_limits<double>::max() * float64_sum_scale);
    const Expr unscaled = clamp(mean, -most, most) * Expr(1 / float64_sum_scale);
    // And in a constant channel of 1e200 put it so far off that the square of a distance from it overflows. A value that
    // is as near to the mean as rounding takes the sum is as good (see Pivot).
    const Expr roundoff = abs(mean) * (n * Expr(std::ldexp(1.0, -53)));
    const Expr is_first = abs(term_of_tile_mean(first) - mean) <= roundoff;
    return select_bits(is_number(mean), select_bits(is_first, first, unscaled), mean);
}

Expr finite_pivot(const Expr &value) {
    return zero_where(!is_number(value), value);
}

// How far a value is from the pivot (or center). In float64, where additions and fused multiply-adds may wait for different
// ports, it is one of the latter: what is added up afterwards are the former. With a 1 that compilers know there is none.
Expr distance(const Expr &value, const Expr &pivot, Type type, const Expr &one) {
    const Expr wide = cast(type, value), from = cast(type, pivot);
    return type == Float(64) && value.type() == Float(32) && !Internal::is_const(one)
               ? wide * cast(type, one) - from
               : exact_order(wide - from);
}

// A tile's moments, from the sums of d and d^2 over its n values, d being the distance from the pivot.
Tuple moments_from_pivot(Pivot from, const Expr &pivot, const Expr &sum_d, const Expr &sum_dd,
                         const Expr &n) {
    const Expr mean_d = exact_order(sum_d / n);
    // Distances that are no numbers come from an infinite mean, or are too large for float64 beside a finite one.
    const Expr sum = exact_order(pivot + mean_d);
    const Expr mean = from == Pivot::tile_mean ? select_bits(is_number(mean_d), sum, pivot) : sum;
    const Expr m2 = exact_order(sum_dd - sum_d * mean_d);
    // Infinity or NaN. (Halide 21's OpenCL has no such constants of float64, only their bits.)
    const Expr beyond = reinterpret<double>(select(
        is_number(mean), Expr(uint64_t(0x7ff0000000000000)), Expr(uint64_t(0x7ff8000000000000))));
    // Rounding alone could make m2 of a constant channel negative.
    return {mean, select_bits(is_number(m2), max(m2, f64(0)), beyond)};
}

// {sum of dy, sum of dy * (x - mean)}, from the same sums about a center, which is the mean rounded to float32 where
// sums run in groups.
Tuple gradient_sums_from_center(const std::vector<Expr> &sums, const Expr &center,
                                const Expr &mean) {
    if (center.type() == mean.type()) {
        return {sums[0], sums[1]};
    }
    // An infinite mean is its own center, and infinite gradients need none.
    const Expr correction = exact_order(sums[0] * (f64(center) - mean));
    return {sums[0], sums[1] + zero_where(!is_number(correction), correction)};
}

// The two terms to be summed of the element at a place in a tile, in the type that the sum has.
using PlaneTerms =
    std::function<std::vector<Expr>(const Expr &i, const Expr &j, const Expr &l, Type type)>;
using RowTerms = std::function<std::vector<Expr>(const Expr &row, Type type)>;

// Whether float32 sums over groups of such elements, and of their products, may leave float32's range (see Pivot). They
// are then guarded: beside the two sums there is the largest magnitude of any group's sum.
bool needs_guard(Type tensor) {
    return tensor != Float(16);
}

void set_to_zero(Func sums, const std::vector<Var> &at, bool guarded = false) {
    std::vector<Expr> zeros = {f64(0), f64(0)};
    if (guarded) {
        zeros.emplace_back(uint32_t(0));
    }
    sums(at) = Tuple(zeros);
}

// A number in the order of a float32's magnitude, in which infinities and NaN are the largest. It is made of bits, since
// LLVM assumes that arithmetic gives neither.
Expr magnitude(const Expr &value) {
    return reinterpret<uint32_t>(value) & Expr(uint32_t(0x7fffffff));
}

void add(Func sums, const std::vector<Var> &at, const std::vector<Expr> &terms) {
    const FuncRef so_far = sums(at);
    std::vector<Expr> added = {so_far[0] + f64(terms[0]), so_far[1] + f64(terms[1])};
    if (sums.outputs() == 3) {
        // Only terms in float32 can have overflowed. Guarded sums have their own largest magnitude.
        const Expr so_far_largest = so_far[2];
        added.push_back(terms.size() == 3 ? max(so_far_largest, terms[2])
                        : terms[0].type() == Float(32)
                            ? max(so_far_largest, max(magnitude(terms[0]), magnitude(terms[1])))
                            : so_far_largest);
    }
    sums(at) = Tuple(added);
}

std::vector<Expr> elements_of(const FuncRef &tuple, int size) {
    std::vector<Expr> elements;
    for (int i = 0; i < size; i++) {
        elements.push_back(tuple[i]);
    }
    return elements;
}

// Whether guarded sums are to be taken in float64 instead: a group overflowed or came near to it, or products may have
// lost bits below float32's least normal number that count beside their sum.
Expr out_of_range(const FuncRef &sums) {
    const float largest = std::ldexp(1.0f, 126);
    const double least = std::ldexp(1.0, -100);
    return sums[2] >= reinterpret<uint32_t>(Expr(largest)) ||
           (sums[2] > 0 && abs(sums[1]) < Expr(least));
}

// The two float32 sums over one group.
void sum_group(Func group, const std::vector<Var> &at, const std::vector<Expr> &terms) {
    group(at) = Tuple(0.0f, 0.0f);
    const FuncRef so_far = group(at);
    group(at) = Tuple(so_far[0] + terms[0], so_far[1] + terms[1]);
}

// Sums each lane, then all lanes. terms(i) are what the update over `over[i]` adds to a lane.
Reduction::Sweep sweep_by_lane(const PlaneTiling &tiling, const std::vector<RDom> &over,
                               bool guarded,
                               const std::function<std::vector<Expr>(size_t update)> &terms) {
    const std::vector<Var> at = tiling.tile_args();
    Reduction::Sweep sweep;
    sweep.sums = Func("tile_sums");
    sweep.over = over;
    sweep.by_lane = Func("lane_sums");
    sweep.lane = tiling.lane;
    sweep.lanes = RDom(0, tiling.lanes, "lanes");
    sweep.lane_count = tiling.lanes;
    std::vector<Var> lane_at = {tiling.lane};
    lane_at.insert(lane_at.end(), at.begin(), at.end());
    set_to_zero(sweep.by_lane, lane_at, guarded);
    for (size_t i = 0; i < over.size(); i++) {
        add(sweep.by_lane, lane_at, terms(i));
    }
    set_to_zero(sweep.sums, at, guarded);
    std::vector<Expr> one_lane(lane_at.begin(), lane_at.end());
    one_lane[0] = sweep.lanes.x;
    add(sweep.sums, at, elements_of(sweep.by_lane(one_lane), sweep.by_lane.outputs()));
    return sweep;
}

// The vectors at the end of a row that are less than a step. The last ends where the row does, and leaves out the
// elements that the one before it had.
struct RestOfRow {
    const PlaneTiling &tiling;
    Expr left;

    Expr vectors() const {
        return ceil_div(left, tiling.lanes);
    }
    // Whether there are any in this tile.
    Expr here() const {
        return tiling.width - tiling.tw * tiling.w <= tiling.w && tiling.width >= tiling.lanes;
    }
    std::vector<Expr> terms(const PlaneTerms &all, const Expr &vector, const Expr &j, const Expr &l,
                            Type type) const {
        const Expr next = tiling.width - left + vector * tiling.lanes;
        const Expr first = min(next, tiling.width - tiling.lanes);
        std::vector<Expr> last = all(first - tiling.tw * tiling.w + tiling.lane, j, l, type);
        for (Expr &term : last) {
            term = select(first + tiling.lane >= next, term, cast(type, 0));
        }
        return last;
    }
};

// Rows that are shorter than a vector are summed with some lanes idle.
RDom narrow_rows(const PlaneTiling &tiling, const Expr &where) {
    RDom narrow(0, tiling.h, 0, tiling.n, "narrow");
    narrow.where(tiling.width < tiling.lanes && tiling.lane < tiling.width &&
                 narrow.x < tiling.tile_h() && narrow.y < tiling.tile_n() && where);
    return narrow;
}

// Sums over a tile, all in float64. Nothing is summed unless `where` holds.
Reduction::Sweep sweep_tile(const PlaneTiling &tiling, const Expr &where, const PlaneTerms &terms) {
    const int step = tiling.lanes;
    RDom whole(0, tiling.sizes.w_units * (TileSizes::w_unit / step), 0, tiling.h, 0, tiling.n,
               "whole");
    whole.where(likely(tiling.tw * tiling.w + whole.x * step + (step - 1) < tiling.width) &&
                whole.y < tiling.tile_h() && whole.z < tiling.tile_n() && where);
    const RestOfRow rest_of_row{tiling, tiling.width % step};
    RDom rest(0, rest_of_row.vectors(), 0, tiling.h, 0, tiling.n, "rest");
    rest.where(rest_of_row.here() && rest.y < tiling.tile_h() && rest.z < tiling.tile_n() && where);
    const RDom narrow = narrow_rows(tiling, where);
    // With steps of a single element nothing is left over, and no row is too short.
    const std::vector<RDom> over =
        step == 1 ? std::vector<RDom>{whole} : std::vector<RDom>{whole, rest, narrow};
    return sweep_by_lane(tiling, over, false, [&](size_t update) {
        switch (update) {
        case 0:
            return terms(whole.x * step + tiling.lane, whole.y, whole.z, Float(64));
        case 1:
            return rest_of_row.terms(terms, rest.x, rest.y, rest.z, Float(64));
        default:
            return terms(tiling.lane, narrow.x, narrow.y, Float(64));
        }
    });
}

// The same in groups, of float32.
Reduction::Sweep sweep_tile_in_groups(const PlaneTiling &tiling, bool guarded,
                                      const PlaneTerms &terms) {
    // A group has twice as many lanes: sums that don't wait for each other, and whole words of 16-bit elements.
    const int group_lanes = 2 * tiling.lanes, step = group_lanes * tiling.group_values;
    RDom whole(0, tiling.sizes.w_units * (TileSizes::w_unit / step), 0, tiling.h, 0, tiling.n,
               "whole");
    whole.where(likely(tiling.tw * tiling.w + whole.x * step + (step - 1) < tiling.width) &&
                whole.y < tiling.tile_h() && whole.z < tiling.tile_n());
    const RestOfRow rest_of_row{tiling, tiling.width % step};
    RDom ends(0, tiling.h, 0, tiling.n, "ends");
    ends.where(rest_of_row.here() && rest_of_row.left > 0 && ends.x < tiling.tile_h() &&
               ends.y < tiling.tile_n());

    Var group_lane("group_lane"), i("i"), j("j"), l("l");
    std::vector<Var> group_at = {group_lane, i, j, l}, end_at = {group_lane, j, l},
                     tail_at = {tiling.lane, j, l};
    std::vector<Expr> this_group = {tiling.lane, whole.x, whole.y, whole.z};
    std::vector<Expr> this_end = {tiling.lane, ends.x, ends.y};
    for (const Var &v : tiling.tile_args()) {
        group_at.push_back(v);
        end_at.push_back(v);
        tail_at.push_back(v);
        this_group.emplace_back(v);
        this_end.emplace_back(v);
    }
    // Halves are added up in this order, so that no value goes through more additions than said of Pivot.
    const auto halves = [&](const Func &sums, const std::vector<Expr> &first) {
        std::vector<Expr> second = first, both;
        second[0] = first[0] + tiling.lanes;
        for (int value = 0; value < 2; value++) {
            both.push_back(exact_order(sums(first)[value] + sums(second)[value]));
        }
        return both;
    };

    Func group("group_sums"), end("end_sums"), tail("tail_sums");
    const RDom in_group(0, tiling.group_values, "in_group");
    sum_group(group, group_at,
              terms(i * step + in_group * group_lanes + group_lane, j, l, Float(32)));
    // What is left of a row: whole vectors of a group, and up to two of half as many lanes.
    const RDom whole_vectors(0, rest_of_row.left / group_lanes, "whole_vectors");
    sum_group(end, end_at,
              terms(tiling.width - rest_of_row.left - tiling.tw * tiling.w +
                        whole_vectors.x * group_lanes + group_lane,
                    j, l, Float(32)));
    const RestOfRow rest_of_vectors{tiling, tiling.width % group_lanes};
    RDom last(0, 2, "last");
    last.where(last.x < rest_of_vectors.vectors());
    sum_group(tail, tail_at, rest_of_vectors.terms(terms, last.x, j, l, Float(32)));

    const RDom narrow = narrow_rows(tiling, Internal::const_true());
    Reduction::Sweep sweep =
        sweep_by_lane(tiling, {whole, ends, narrow}, guarded, [&](size_t update) {
            if (update == 0) {
                return halves(group, this_group);
            }
            if (update == 2) {
                return terms(tiling.lane, narrow.x, narrow.y, Float(64));
            }
            std::vector<Expr> both = halves(end, this_end);
            for (int value = 0; value < 2; value++) {
                both[value] = exact_order(both[value] + tail(this_end)[value]);
            }
            return both;
        });
    sweep.groups = {{group, in_group, group_lane, 0},
                    {end, whole_vectors, group_lane, 1},
                    {tail, last, tiling.lane, 1}};
    return sweep;
}

// The sums of both terms over a tile of a tensor of this type. Adds the sweeps that this takes to r.
std::vector<Expr> sum_tile(const PlaneTiling &tiling, Type tensor, const PlaneTerms &terms,
                           Reduction &r) {
    const std::vector<Var> at = tiling.tile_args();
    const bool guarded = tiling.in_groups() && needs_guard(tensor);
    r.sweeps.push_back(tiling.in_groups() ? sweep_tile_in_groups(tiling, guarded, terms)
                                          : sweep_tile(tiling, Internal::const_true(), terms));
    const FuncRef sums = r.sweeps.back().sums(at);
    if (!guarded) {
        return {sums[0], sums[1]};
    }
    Func use_float64("use_float64");
    use_float64(at) = out_of_range(sums);
    r.per_tile.push_back(use_float64);
    r.sweeps.push_back(sweep_tile(tiling, use_float64(at), terms));
    const FuncRef wide = r.sweeps.back().sums(at);
    return {select(use_float64(at), wide[0], sums[0]), select(use_float64(at), wide[1], sums[1])};
}

}  // namespace

Reduction reduce_moments(const Func &x, const PlaneTiling &tiling, Pivot from, const Expr &one) {
    const Var &c = tiling.c;
    const std::vector<Var> at = tiling.tile_args();
    const Expr n = tiling.count(tiling.tw, tiling.th, tiling.tn);
    Reduction r;
    Func pivot("pivot");
    if (from == Pivot::first_value) {
        pivot(at) = finite_pivot(f64(tiling.at(x, 0, 0, 0)));
    } else if (from == Pivot::tile_mean) {
        const PlaneTerms value = [&](const Expr &i, const Expr &j, const Expr &l, Type type) {
            return std::vector<Expr>{term_of_tile_mean(tiling.at(x, i, j, l)), cast(type, 0)};
        };
        r.sweeps = {sweep_tile(tiling, Internal::const_true(), value)};
        pivot(at) = tile_mean(r.sweeps[0].sums(at)[0], n, tiling.at(x, 0, 0, 0));
    } else {
        const RDom over = tiling.sample();
        r.sweeps = {sweep_by_lane(tiling, {over}, false, [&](size_t) {
            return std::vector<Expr>{
                tiling.at(x, over.x * tiling.lanes + tiling.lane, over.y, over.z), f64(0)};
        })};
        // Rows without a whole vector have no sample. They have no group either, so that any value will do for a pivot.
        const Expr mean = exact_order(r.sweeps[0].sums(at)[0] / tiling.sample_count());
        pivot(at) = finite_pivot(
            cast<float>(select(tiling.tile_w() < tiling.lanes, f64(tiling.at(x, 0, 0, 0)), mean)));
    }
    r.per_tile = {pivot};

    const PlaneTerms deviation = [&](const Expr &i, const Expr &j, const Expr &l, Type type) {
        const Expr d = distance(tiling.at(x, i, j, l), pivot(at), type, one);
        return std::vector<Expr>{d, d * d};
    };
    const auto sums = sum_tile(tiling, x.type(), deviation, r);
    r.tile = Func("tile_moments");
    r.tile(at) = moments_from_pivot(from, f64(pivot(at)), sums[0], sums[1], n);

    const Expr tw = tiling.tiles.x, th = tiling.tiles.y, tn = tiling.tiles.z;
    r.merged = Func("moments");
    r.merged(c) = Tuple(f64(0), f64(0));
    const FuncRef tile = r.tile(c, tw, th, tn);
    const Moments merged = merge({r.merged(c)[0], r.merged(c)[1]}, tiling.count_before(tw, th, tn),
                                 {tile[0], tile[1]}, tiling.count(tw, th, tn), x.type());
    r.merged(c) = Tuple(merged.mean, merged.m2);
    r.set_loops(tiling.tiles, c, tiling.tw, tiling.th, tiling.tn);
    return r;
}

Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const PlaneTiling &tiling, const Expr &one) {
    const Var &c = tiling.c;
    const std::vector<Var> at = tiling.tile_args();
    const Expr center = tiling.in_groups() ? cast<float>(mean(c)) : mean(c);
    const PlaneTerms product = [&](const Expr &i, const Expr &j, const Expr &l, Type type) {
        const Expr dy = exact_order(cast(type, tiling.at(grad_output, i, j, l)));
        const Expr xmu = distance(tiling.at(x, i, j, l), center, type, one);
        return std::vector<Expr>{dy, dy * xmu};
    };
    Reduction r;
    const auto sums = sum_tile(tiling, x.type(), product, r);
    r.tile = Func("tile_gradients");
    r.tile(at) = gradient_sums_from_center(sums, center, mean(c));

    const FuncRef tile = r.tile(c, tiling.tiles.x, tiling.tiles.y, tiling.tiles.z);
    r.merged = Func("sums");
    r.merged(c) = Tuple(f64(0), f64(0));
    r.merged(c) = Tuple(r.merged(c)[0] + tile[0], r.merged(c)[1] + tile[1]);
    r.set_loops(tiling.tiles, c, tiling.tw, tiling.th, tiling.tn);
    return r;
}

namespace {

// From sums over the tile's rows in each column, those over each channel's columns.
ColumnReduction::Sweep sweep_rows(const ColumnTiling &tiling, Func by_column,
                                  const std::vector<RDom> &rows) {
    const Var &channel = tiling.channel, &channel_block = tiling.channel_block, &tile = tiling.tile;
    ColumnReduction::Sweep s;
    s.by_column = std::move(by_column);
    s.rows = rows;
    s.channel_columns = RDom(0, tiling.plane, 0, tiling.part_repeats, "channel_columns");
    const FuncRef part = s.by_column(
        tiling.column_of(channel, s.channel_columns.x, s.channel_columns.y), channel_block, tile);
    s.by_channel = Func("channel_sums");
    set_to_zero(s.by_channel, {channel, channel_block, tile}, s.by_column.outputs() == 3);
    add(s.by_channel, {channel, channel_block, tile}, elements_of(part, s.by_column.outputs()));
    return s;
}

ColumnReduction::Sweep sweep_rows(const ColumnTiling &tiling, const RDom &over,
                                  const RowTerms &terms) {
    const std::vector<Var> at = {tiling.column, tiling.channel_block, tiling.tile};
    Func by_column("column_sums");
    set_to_zero(by_column, at);
    add(by_column, at, terms(tiling.first_row(tiling.tile) + over.x, Float(64)));
    return sweep_rows(tiling, by_column, {over});
}

ColumnReduction::Sweep sweep_rows_in_groups(const ColumnTiling &tiling, const RowTerms &terms,
                                            bool guarded) {
    const Var &tile = tiling.tile;
    const std::vector<Var> at = {tiling.column, tiling.channel_block, tile};
    // The tile's whole groups, and sets of them. In float32 a set's groups are added up one after the other.
    const Expr groups = min(tiling.tile_rows, tiling.rows - tiling.first_row(tile)) / row_group;
    RDom sets(0, ceil_div(tiling.tile_rows, row_group * tiling.groups_in_set), "sets");
    sets.where(sets.x * tiling.groups_in_set < groups);
    // A tile consists of whole groups of rows, but the one with the last rows, which is the first tile, may have more.
    const Expr left = tiling.rows % row_group;
    RDom rest(0, left, "rest");
    rest.where(tile == 0);

    Var set("set");
    std::vector<Var> set_at = at;
    set_at.push_back(set);
    RDom in_set(0, tiling.groups_in_set, "in_set");
    const Expr this_group = set * tiling.groups_in_set + in_set.x;
    in_set.where(this_group < groups);
    std::vector<Expr> group = {0.0f, 0.0f};
    for (int row = 0; row < row_group; row++) {
        const std::vector<Expr> values =
            terms(tiling.first_row(tile) + this_group * row_group + row, Float(32));
        group = {group[0] + values[0], group[1] + values[1]};
    }
    Func set_sums("set_sums");
    // Groups are added up in this order, so that no value goes through more additions than said of Pivot.
    set_sums(set_at) = Tuple(0.0f, 0.0f);
    const FuncRef so_far = set_sums(set_at);
    const auto with_group = [&](int value) {
        return exact_order_around(group[value],
                                  [&](const Expr &sum) { return so_far[value] + sum; });
    };
    set_sums(set_at) = Tuple(with_group(0), with_group(1));

    Func by_column("column_group_sums");
    set_to_zero(by_column, at, guarded);
    std::vector<Expr> this_set(at.begin(), at.end());
    this_set.emplace_back(sets.x);
    add(by_column, at, elements_of(set_sums(this_set), 2));
    add(by_column, at, terms(tiling.rows - left + rest.x, Float(64)));
    ColumnReduction::Sweep sweep = sweep_rows(tiling, by_column, {sets, rest});
    sweep.set = set_sums;
    sweep.in_set = in_set;
    return sweep;
}

// The sums of both terms over a tile of a tensor of this type. Adds the sweeps that this takes to r.
std::vector<Expr> sum_rows(const ColumnTiling &tiling, bool in_groups, Type tensor,
                           const RowTerms &terms, ColumnReduction &r) {
    const Var &channel = tiling.channel, &channel_block = tiling.channel_block, &tile = tiling.tile;
    const bool guarded = in_groups && needs_guard(tensor);
    r.sweeps.push_back(in_groups ? sweep_rows_in_groups(tiling, terms, guarded)
                                 : sweep_rows(tiling, tiling.tile_row(), terms));
    const FuncRef sums = r.sweeps.back().by_channel(channel, channel_block, tile);
    if (!guarded) {
        return {sums[0], sums[1]};
    }
    // Where one channel needs it, all of the tile's columns are summed in float64, but only that channel's sums change.
    const RDom channels(0, tiling.channel_parts, "channels");
    r.use_float64 = Func("use_float64");
    r.use_float64(channel_block, tile) = cast<uint32_t>(0);
    r.use_float64(channel_block, tile) = max(
        r.use_float64(channel_block, tile),
        cast<uint32_t>(out_of_range(r.sweeps.back().by_channel(channels.x, channel_block, tile))));
    r.tile_channels = channels;
    RDom row = tiling.tile_row();
    row.where(r.use_float64(channel_block, tile) != 0);
    const Expr in_float64 = out_of_range(sums);
    r.sweeps.push_back(sweep_rows(tiling, row, terms));
    const FuncRef wide = r.sweeps.back().by_channel(channel, channel_block, tile);
    return {select(in_float64, wide[0], sums[0]), select(in_float64, wide[1], sums[1])};
}

}  // namespace

ColumnReduction reduce_moments(const Func &x, const ColumnTiling &tiling, Pivot from,
                               const Expr &one) {
    const Var &column = tiling.column, &channel_block = tiling.channel_block;
    const Var &channel = tiling.channel, &tile = tiling.tile;
    const std::vector<Var> at = {channel, channel_block, tile};
    const Expr n = tiling.count(tile);
    ColumnReduction r;
    Func pivot("pivot");
    if (from == Pivot::tile_mean) {
        const RowTerms value = [&](const Expr &row, Type type) {
            return std::vector<Expr>{term_of_tile_mean(x(column, channel_block, row)),
                                     cast(type, 0)};
        };
        r.sweeps = {sweep_rows(tiling, tiling.tile_row(), value)};
        pivot(at) = tile_mean(r.sweeps[0].by_channel(at)[0], n,
                              x(tiling.plane * channel, channel_block, tiling.first_row(tile)));
    } else if (from == Pivot::sample_mean) {
        ColumnReduction::Sweep s;
        s.channel_columns = tiling.sample();
        s.by_channel = Func("sample_sums");
        const RDom &over = s.channel_columns;
        set_to_zero(s.by_channel, at);
        add(s.by_channel, at,
            {x(tiling.column_of(channel, over.x, over.y), channel_block,
               tiling.first_row(tile) + over.z),
             f64(0)});
        pivot(at) =
            finite_pivot(cast<float>(exact_order(s.by_channel(at)[0] / tiling.sample_count())));
        r.sweeps = {s};
    } else {
        pivot(at) =
            finite_pivot(f64(x(tiling.plane * channel, channel_block, tiling.first_row(tile))));
    }
    r.per_column = tiling.by_column(pivot, "column_pivot");

    const RowTerms deviation = [&](const Expr &row, Type type) {
        const Expr d = distance(x(column, channel_block, row),
                                r.per_column(column, channel_block, tile), type, one);
        return std::vector<Expr>{d, d * d};
    };
    const auto sums = sum_rows(tiling, from == Pivot::sample_mean, x.type(), deviation, r);
    r.tile = Func("tile_moments");
    r.tile(at) = moments_from_pivot(from, f64(pivot(at)), sums[0], sums[1], n);

    const Expr part = tiling.tiles.x, i = tiling.tiles.y;
    r.merged = Func("moments");
    const FuncRef so_far = r.merged(channel, channel_block),
                  tile_sums = r.tile(channel + tiling.channels * part, channel_block, i);
    r.merged(channel, channel_block) = Tuple(f64(0), f64(0));
    const Moments merged = merge({so_far[0], so_far[1]}, tiling.count_before(i, part),
                                 {tile_sums[0], tile_sums[1]}, tiling.count(i), x.type());
    r.merged(channel, channel_block) = Tuple(merged.mean, merged.m2);
    r.set_loops(tiling.tiles, tiling.all_columns, column, channel_block, channel, tile);
    return r;
}

ColumnReduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                                 const ColumnTiling &tiling, bool in_groups, const Expr &one) {
    const Var &column = tiling.column, &channel_block = tiling.channel_block;
    const Var &channel = tiling.channel, &tile = tiling.tile;
    ColumnReduction r;
    r.tensors = 2;
    Func center("center");
    const Func part_mean = tiling.by_part(mean, "part_mean");
    if (tiling.has_parts()) {
        r.per_part = part_mean;
    }
    center(channel, channel_block) = in_groups ? cast<float>(part_mean(channel, channel_block))
                                               : part_mean(channel, channel_block);
    r.per_column = tiling.by_column(center, "column_mean");

    const RowTerms product = [&](const Expr &row, Type type) {
        const Expr dy = exact_order(cast(type, grad_output(column, channel_block, row)));
        const Expr xmu =
            distance(x(column, channel_block, row), r.per_column(column, channel_block), type, one);
        return std::vector<Expr>{dy, dy * xmu};
    };
    const auto sums = sum_rows(tiling, in_groups, x.type(), product, r);
    r.tile = Func("tile_gradients");
    r.tile(channel, channel_block, tile) = gradient_sums_from_center(
        sums, center(channel, channel_block), part_mean(channel, channel_block));

    const FuncRef tile_sums =
        r.tile(channel + tiling.channels * tiling.tiles.x, channel_block, tiling.tiles.y);
    r.merged = Func("sums");
    r.merged(channel, channel_block) = Tuple(f64(0), f64(0));
    r.merged(channel, channel_block) = Tuple(r.merged(channel, channel_block)[0] + tile_sums[0],
                                             r.merged(channel, channel_block)[1] + tile_sums[1]);
    r.set_loops(tiling.tiles, tiling.all_columns, column, channel_block, channel, tile);
    return r;
}

}  // namespace hbn
