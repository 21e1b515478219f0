#include "generators/batch_norm.h"

#include <cmath>
#include <limits>

namespace hbn {

using namespace Halide;

namespace {

// Halide simplifies and LLVM reassociates floating-point expressions unless told not to; what is
// wrapped here relies on its own rounding.
Expr exact_order(const Expr &e) {
    return strict_float(e);
}

// Of a >= 1. Not (a + b - 1) / b: Halide folds that, where b is such a quotient itself, into products that
// overflow.
Expr ceil_div(const Expr &a, const Expr &b) {
    return (a - 1) / b + 1;
}

// Of the fewest parts that have at most `most` each: a last part that is much smaller than the others
// would cost as much.
Expr even_share(const Expr &all, const Expr &most) {
    return ceil_div(all, ceil_div(all, most));
}

// Values of a tile. Where channels are dense a tile is rows of all channels.
Expr tile_elements(const Expr &channels, Layout layout) {
    return layout == Layout::nhwc ? max(65536 / channels, 16) : Expr(32768);
}

// What the sums over a tile's n values come to, d being the distance from its pivot.
Tuple moments_from_pivot(const Expr &pivot, const Expr &sum_d, const Expr &sum_dd, const Expr &n) {
    const Expr mean_d = sum_d / n;
    // Rounding alone could leave less than nothing of a constant channel.
    return {pivot + mean_d, max(sum_dd - sum_d * mean_d, f64(0))};
}

}  // namespace

Expr round_to(Type type, const Expr &value) {
    const Expr rounded = cast(type, value);
    if (type.bits() != 16) {
        return rounded;
    }
    const uint16_t quiet_nan = type.is_bfloat() ? 0x7fc0 : 0x7e00;
    return reinterpret(type,
                       select(is_nan(value), Expr(quiet_nan), reinterpret(UInt(16), rounded)));
}

Expr round_to_bfloat16(const Expr &value) {
    // Halide's own conversion does the same, but keeps what it converts from using fused multiply-add.
    const Expr bits = reinterpret(UInt(32), value);
    const Expr rounded = bits + (Expr(uint32_t(0x7fff)) + ((bits >> 16) & Expr(uint32_t(1))));
    return reinterpret(BFloat(16), cast<uint16_t>(rounded >> 16));
}

Expr with_plain_nan(const Expr &value) {
    return select(is_nan(value), Expr(std::numeric_limits<float>::quiet_NaN()), value);
}

PlaneTiling::PlaneTiling(const Expr &width, const Expr &height, const Expr &samples,
                         const Expr &channels, Layout layout)
    : width(width), height(height), samples(samples) {
    const Expr budget = tile_elements(channels, layout);
    // Whole vectors of any width up to 32 lanes; `where` cuts the last tile along each axis.
    w = ceil_div(even_share(width, budget), 32) * 32;
    h = even_share(height, max(budget / min(w, width), 1));
    n = even_share(samples, max(budget / (min(w, width) * h), 1));
    inside = RDom(0, w, 0, h, 0, n, "inside");
    inside.where(likely(tw * w + inside.x < width) && inside.y < tile_h() && inside.z < tile_n());
    tiles = RDom(0, ceil_div(width, w), 0, ceil_div(height, h), 0, ceil_div(samples, n), "tiles");
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
                           const Expr &channels, Layout layout)
    : columns(columns),
      rows(rows),
      plane(plane),
      channels(channels),
      folds(columns / (plane * channels)) {
    // Enough rows to outweigh what is done once for each column of a tile; where tiles are what
    // runs in parallel, few enough to have many.
    const Expr enough =
        layout == Layout::rows ? max(65536 / columns, 128) : max(1048576 / columns, 512);
    tile_rows = ceil_div(even_share(rows, enough), row_group) * row_group;
    inside = RDom(0, tile_rows, "inside");
    tiles = RDom(0, ceil_div(rows, tile_rows), "tiles");
    inside.where(likely(first_row(t) + inside.x < rows));
    members = RDom(0, plane, 0, channels, 0, folds, "members");
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

Reduction reduce_moments(const Func &x, const PlaneTiling &t, Pivot from) {
    const Var &c = t.c;
    const std::vector<Var> at = {c, t.tw, t.th, t.tn};
    const Expr value = f64(t.at(x, t.inside.x, t.inside.y, t.inside.z));
    const Expr n = t.count(t.tw, t.th, t.tn);
    Reduction r;
    Func pivot("pivot");
    if (from == Pivot::tile_mean) {
        Func total("tile_total");
        total(at) = f64(0);
        total(at) += value;
        pivot(at) = total(at) / n;
        r.sweeps = {total};
    } else {
        pivot(at) = f64(t.at(x, 0, 0, 0));
    }
    r.per_tile = {pivot};

    const Expr d = exact_order(value - pivot(at));
    Func sums("tile_sums");
    sums(at) = Tuple(f64(0), f64(0));
    sums(at) = Tuple(sums(at)[0] + d, sums(at)[1] + d * d);
    r.sweeps.push_back(sums);
    r.tile = Func("tile_moments");
    r.tile(at) = moments_from_pivot(pivot(at), sums(at)[0], sums(at)[1], n);

    const Expr tw = t.tiles.x, th = t.tiles.y, tn = t.tiles.z;
    r.merged = Func("moments");
    r.merged(c) = Tuple(f64(0), f64(0));
    const FuncRef tile = r.tile(c, tw, th, tn);
    const Moments merged = merge({r.merged(c)[0], r.merged(c)[1]}, t.count_before(tw, th, tn),
                                 {tile[0], tile[1]}, t.count(tw, th, tn));
    r.merged(c) = Tuple(merged.mean, merged.m2);
    r.set_walk(t.inside, t.tiles, c, t.tw, t.th, t.tn);
    return r;
}

Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const PlaneTiling &t) {
    const Var &c = t.c;
    const std::vector<Var> at = {c, t.tw, t.th, t.tn};
    const Expr dy = exact_order(f64(t.at(grad_output, t.inside.x, t.inside.y, t.inside.z)));
    const Expr xmu = exact_order(f64(t.at(x, t.inside.x, t.inside.y, t.inside.z)) - mean(c));

    Reduction r;
    Func sums("tile_sums");
    sums(at) = Tuple(f64(0), f64(0));
    sums(at) = Tuple(sums(at)[0] + dy, sums(at)[1] + dy * xmu);
    r.sweeps = {sums};
    r.tile = Func("tile_gradients");
    r.tile(at) = Tuple(sums(at)[0], sums(at)[1]);

    const FuncRef tile = r.tile(c, t.tiles.x, t.tiles.y, t.tiles.z);
    r.merged = Func("sums");
    r.merged(c) = Tuple(f64(0), f64(0));
    r.merged(c) = Tuple(r.merged(c)[0] + tile[0], r.merged(c)[1] + tile[1]);
    r.set_walk(t.inside, t.tiles, c, t.tw, t.th, t.tn);
    return r;
}

namespace {

// Two sums of the tile's rows, `first` and `second` at (column, block, t) and the tile's rows: for each
// column, then for each channel.
ColumnReduction::Sweep sum_rows(const Expr &first, const Expr &second, const ColumnTiling &tiling) {
    const Var &column = tiling.column, &block = tiling.block, &k = tiling.k, &t = tiling.t;
    ColumnReduction::Sweep s;
    s.by_column = Func("column_sums");
    const FuncRef sum = s.by_column(column, block, t);
    s.by_column(column, block, t) = Tuple(f64(0), f64(0));
    s.by_column(column, block, t) = Tuple(sum[0] + first, sum[1] + second);

    s.channel_columns = RDom(0, tiling.plane, 0, tiling.folds, "channel_columns");
    const Expr member =
        s.channel_columns.x + tiling.plane * (k + tiling.channels * s.channel_columns.y);
    s.by_channel = Func("channel_sums");
    const FuncRef total = s.by_channel(k, block, t), part = s.by_column(member, block, t);
    s.by_channel(k, block, t) = Tuple(f64(0), f64(0));
    s.by_channel(k, block, t) = Tuple(total[0] + part[0], total[1] + part[1]);
    return s;
}

}  // namespace

ColumnReduction reduce_moments(const Func &x, const ColumnTiling &tiling, Pivot from) {
    const Var &column = tiling.column, &block = tiling.block, &k = tiling.k, &t = tiling.t;
    const std::vector<Var> at = {k, block, t};
    const Expr value = f64(x(column, block, tiling.first_row(t) + tiling.inside));
    const Expr n = tiling.count(t);
    ColumnReduction r;
    Func pivot("pivot");
    if (from == Pivot::tile_mean) {
        r.sweeps = {sum_rows(value, f64(0), tiling)};
        pivot(at) = r.sweeps[0].by_channel(at)[0] / n;
    } else {
        pivot(at) = f64(x(tiling.plane * k, block, tiling.first_row(t)));
    }
    r.per_column = tiling.spread(pivot, "column_pivot");

    const Expr d = exact_order(value - r.per_column(column, block, t));
    r.sweeps.push_back(sum_rows(d, d * d, tiling));
    const FuncRef sums = r.sweeps.back().by_channel(at);
    r.tile = Func("tile_moments");
    r.tile(at) = moments_from_pivot(pivot(at), sums[0], sums[1], n);

    const Expr i = tiling.tiles.x;
    r.merged = Func("moments");
    const FuncRef so_far = r.merged(k, block), tile = r.tile(k, block, i);
    r.merged(k, block) = Tuple(f64(0), f64(0));
    const Moments merged =
        merge({so_far[0], so_far[1]}, tiling.count_before(i), {tile[0], tile[1]}, tiling.count(i));
    r.merged(k, block) = Tuple(merged.mean, merged.m2);
    r.set_walk(tiling.inside, tiling.tiles, tiling.members, column, block, k, t);
    return r;
}

ColumnReduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                                 const ColumnTiling &tiling) {
    const Var &column = tiling.column, &block = tiling.block, &k = tiling.k, &t = tiling.t;
    ColumnReduction r;
    Func center("center");
    center(k, block) = mean(k, block);
    r.per_column = tiling.spread(center, "column_mean");

    const Expr row = tiling.first_row(t) + tiling.inside.x;
    const Expr dy = exact_order(f64(grad_output(column, block, row)));
    const Expr xmu = exact_order(f64(x(column, block, row)) - r.per_column(column, block));
    r.sweeps = {sum_rows(dy, dy * xmu, tiling)};
    const FuncRef sums = r.sweeps[0].by_channel(k, block, t);
    r.tile = Func("tile_gradients");
    r.tile(k, block, t) = Tuple(sums[0], sums[1]);

    const FuncRef tile = r.tile(k, block, tiling.tiles.x);
    r.merged = Func("sums");
    r.merged(k, block) = Tuple(f64(0), f64(0));
    r.merged(k, block) = Tuple(r.merged(k, block)[0] + tile[0], r.merged(k, block)[1] + tile[1]);
    r.set_walk(tiling.inside, tiling.tiles, tiling.members, column, block, k, t);
    return r;
}

Expr invstd_from_variance(const Expr &variance, const Expr &eps) {
    // The same bits wherever it is computed: a fused ReLU's backward relies on it.
    return exact_order(f64(1) / sqrt(variance + eps));
}

Expr range_scale(const Expr &invstd) {
    // Clearing the significand of a positive float64 leaves the power of two at or below it.
    const Expr exponent = cast<uint64_t>(Expr(uint64_t(0x7ff0000000000000)));
    const Expr power = reinterpret<double>(reinterpret<uint64_t>(invstd) & exponent);
    return select(power < f64(1), power, f64(1));
}

std::vector<Expr> normalization_coefficients(const Expr &mean, const Expr &invstd,
                                             const Expr &weight, const Expr &bias,
                                             Type compute_type) {
    const auto rounded = [&](const Expr &e) { return cast(compute_type, e); };
    const Expr scale = range_scale(invstd);
    const Expr gain = f64(weight) * invstd;
    // The mean as a pair: x - mean_high is exact near the mean. What is left, at most |x -
    // mean_high| itself since mean_high is the float nearest to the mean, goes into the bias.
    const Expr mean_high = rounded(mean);
    const Expr mean_low = exact_order(mean - f64(mean_high));
    return {rounded(scale), rounded(scale) * mean_high, rounded(gain / scale),
            rounded(exact_order(f64(bias) - mean_low * gain))};
}

Expr normalize(const Expr &x, const std::vector<Expr> &k) {
    const Expr scale = k[0], mean = k[1];
    const Expr deviation = exact_order(cast(scale.type(), x) * scale - mean);
    return deviation * k[2] + k[3];
}

Expr normalize_in_exact_order(const Expr &x, const std::vector<Expr> &k) {
    return exact_order(normalize(x, k));
}

Expr relu_stops(const Expr &z, Type tensor) {
    // The largest that is rounded to zero: half of the least denormal, a tie, which goes to even.
    const double rounds_to_zero = tensor.is_bfloat()    ? std::ldexp(1.0, -134)
                                  : tensor.bits() == 16 ? std::ldexp(1.0, -25)
                                                        : 0;
    const Expr largest = cast(z.type(), Expr(rounds_to_zero));
    // LLVM takes z <= largest for !(z > largest), which is something else for NaN.
    return exact_order(z <= largest) && !is_nan(z);
}

Expr zero_where(const Expr &condition, const Expr &value) {
    // As bits: a select among floats LLVM may take for a maximum, and lose NaN.
    const Type type = value.type(), bits = UInt(type.bits());
    return reinterpret(type, select(condition, cast(bits, 0), reinterpret(bits, value)));
}

std::vector<Expr> input_gradient_coefficients(const Expr &mean, const Expr &invstd,
                                              const Expr &weight, const Expr &sum_dy,
                                              const Expr &sum_dy_xmu, const Expr &count,
                                              Type compute_type) {
    const auto rounded = [&](const Expr &e) { return cast(compute_type, e); };
    const Expr wide_invstd = f64(invstd);
    const Expr scale = range_scale(wide_invstd);
    const Expr mean_dy_xhat = sum_dy_xmu * wide_invstd / count;
    Expr mean_dy = sum_dy / count;
    if (mean.type().bits() > compute_type.bits()) {
        // What rounding the mean leaves of it.
        const Expr mean_low = exact_order(mean - f64(rounded(mean)));
        mean_dy -= mean_dy_xhat * wide_invstd * mean_low;
    }
    return {rounded(scale), rounded(scale) * rounded(mean),
            rounded(mean_dy_xhat * (wide_invstd / scale)), rounded(mean_dy),
            rounded(f64(weight) * wide_invstd)};
}

Expr input_gradient(const Expr &grad_output, const Expr &x, const std::vector<Expr> &k) {
    const Expr scale = k[0], mean = k[1], mean_dy = k[3];
    const Expr deviation = exact_order(cast(scale.type(), x) * scale - mean);
    const Expr centred = exact_order(cast(scale.type(), grad_output) - mean_dy);
    // In this order wherever it is compiled: an output's bits don't depend on how it is stored.
    return exact_order((centred - deviation * k[2]) * k[4]);
}

}  // namespace hbn
