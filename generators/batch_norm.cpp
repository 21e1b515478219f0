#include "generators/batch_norm.h"

namespace hbn {

using namespace Halide;

namespace {

// Halide simplifies and LLVM reassociates floating-point expressions unless told not to; what is
// wrapped here relies on its own rounding.
Expr exact_order(const Expr &e) {
    return strict_float(e);
}

Expr ceil_div(const Expr &a, const Expr &b) {
    return (a + b - 1) / b;
}

// The tile's budget: 8192 values are 32 KB of float32. Where all channels are swept together a tile
// is the rows of 64K values.
Expr tile_elements(const Expr &channels, Layout layout) {
    return layout == Layout::nhwc ? max(65536 / channels, 16) : Expr(8192);
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

Tiling::Tiling(const ChannelExtents &extents, const Expr &channels, Layout layout)
    : extents(extents) {
    const Expr budget = tile_elements(channels, layout);
    // Whole vectors of any width up to 64 lanes; `where` cuts the last tile along each axis.
    w = ceil_div(min(extents.w, budget), 64) * 64;
    h = min(extents.h, max(budget / min(w, extents.w), 1));
    n = min(extents.n, max(budget / (min(w, extents.w) * h), 1));
    inside = RDom(0, w, 0, h, 0, n, "inside");
    inside.where(likely(at_w() < extents.w) && at_h() < extents.h && at_n() < extents.n);
    tiles = RDom(0, ceil_div(extents.w, w), 0, ceil_div(extents.h, h), 0, ceil_div(extents.n, n),
                 "tiles");
}

Expr Tiling::count(const Expr &tw, const Expr &th, const Expr &tn) const {
    return f64(min(w, extents.w - tw * w)) * f64(min(h, extents.h - th * h)) *
           f64(min(n, extents.n - tn * n));
}

Expr Tiling::count_before(const Expr &tw, const Expr &th, const Expr &tn) const {
    const Expr samples = f64(min(n, extents.n - tn * n));
    const Expr rows = f64(min(h, extents.h - th * h));
    return f64(tn * n) * f64(extents.h) * f64(extents.w) +
           samples * (f64(th * h) * f64(extents.w) + rows * f64(tw * w));
}

Moments merge(const Moments &a, const Expr &na, const Moments &b, const Expr &nb) {
    // Not in exact_order: Halide 21 moves strict_float expressions of a Tuple's update across its own
    // stores, so m2 would see the new mean.
    const Expr share = nb / (na + nb);
    const Expr d = b.mean - a.mean;
    return {a.mean + d * share, a.m2 + (b.m2 + d * d * (na * share))};
}

Reduction reduce_moments(const Func &x, const Tiling &t) {
    Var c("c");
    const Expr value = f64(x(t.at_w(), t.at_h(), c, t.at_n()));

    Func sum("tile_sum"), m2("tile_m2"), tile("tile_moments"), moments("moments");
    sum(c, t.tw, t.th, t.tn) = f64(0);
    sum(c, t.tw, t.th, t.tn) += value;

    const Expr mean = sum(c, t.tw, t.th, t.tn) / t.count(t.tw, t.th, t.tn);
    const Expr deviation = exact_order(value - mean);
    m2(c, t.tw, t.th, t.tn) = f64(0);
    m2(c, t.tw, t.th, t.tn) += deviation * deviation;

    tile(c, t.tw, t.th, t.tn) = Tuple(mean, m2(c, t.tw, t.th, t.tn));

    const Expr tw = t.tiles.x, th = t.tiles.y, tn = t.tiles.z;
    moments(c) = Tuple(f64(0), f64(0));
    const Moments merged =
        merge({moments(c)[0], moments(c)[1]}, t.count_before(tw, th, tn),
              {tile(c, tw, th, tn)[0], tile(c, tw, th, tn)[1]}, t.count(tw, th, tn));
    moments(c) = Tuple(merged.mean, merged.m2);

    return {{sum, m2}, tile, moments, t.inside, t.tiles, c, t.tw, t.th, t.tn};
}

Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const Tiling &t) {
    Var c("c");
    const Expr dy = f64(grad_output(t.at_w(), t.at_h(), c, t.at_n()));
    const Expr xmu = exact_order(f64(x(t.at_w(), t.at_h(), c, t.at_n())) - mean(c));

    Func tile_sums("tile_sums"), tile("tile_gradients"), sums("sums");
    tile_sums(c, t.tw, t.th, t.tn) = Tuple(f64(0), f64(0));
    tile_sums(c, t.tw, t.th, t.tn) =
        Tuple(tile_sums(c, t.tw, t.th, t.tn)[0] + dy, tile_sums(c, t.tw, t.th, t.tn)[1] + dy * xmu);
    tile(c, t.tw, t.th, t.tn) = tile_sums(c, t.tw, t.th, t.tn);

    const Expr tw = t.tiles.x, th = t.tiles.y, tn = t.tiles.z;
    sums(c) = Tuple(f64(0), f64(0));
    sums(c) = Tuple(sums(c)[0] + tile(c, tw, th, tn)[0], sums(c)[1] + tile(c, tw, th, tn)[1]);

    return {{tile_sums}, tile, sums, t.inside, t.tiles, c, t.tw, t.th, t.tn};
}

Expr invstd_from_variance(const Expr &variance, const Expr &eps) {
    return f64(1) / sqrt(variance + eps);
}

Expr range_scale(const Expr &invstd) {
    // Clearing the significand of a positive float64 leaves the power of two at or below it.
    const Expr exponent = cast<uint64_t>(Expr(uint64_t(0x7ff0000000000000)));
    const Expr power = reinterpret<double>(reinterpret<uint64_t>(invstd) & exponent);
    return select(power < f64(1), power, f64(1));
}

Normalization::Normalization(const Var &c, const Expr &mean, const Expr &invstd, const Expr &weight,
                             const Expr &bias, Type compute_type) {
    const auto rounded = [&](const Expr &e) { return cast(compute_type, e); };
    const Expr scale = range_scale(invstd);
    const Expr gain = f64(weight) * invstd;
    // The mean as a pair: x - mean_high is exact near the mean. What is left, at most |x -
    // mean_high| itself since mean_high is the float nearest to the mean, goes into the bias.
    const Expr mean_high = rounded(mean);
    const Expr mean_low = exact_order(mean - f64(mean_high));
    coefficients(c) = Tuple(rounded(scale), rounded(scale) * mean_high, rounded(gain / scale),
                            rounded(f64(bias) - mean_low * gain));
}

Expr Normalization::apply(const Expr &x, const Expr &c) const {
    const FuncRef k = coefficients(c);
    const Expr scale = k[0], mean = k[1];
    const Expr deviation = exact_order(cast(scale.type(), x) * scale - mean);
    return deviation * k[2] + k[3];
}

InputGradient::InputGradient(const Var &c, const Expr &mean, const Expr &invstd, const Expr &weight,
                             const Expr &sum_dy, const Expr &sum_dy_xmu, const Expr &count,
                             Type compute_type) {
    const auto rounded = [&](const Expr &e) { return cast(compute_type, e); };
    const Expr wide_invstd = f64(invstd);
    const Expr scale = range_scale(wide_invstd);
    const Expr mean_dy_xhat = sum_dy_xmu * wide_invstd / count;
    coefficients(c) = Tuple(rounded(scale), rounded(scale) * rounded(mean),
                            rounded(mean_dy_xhat * (wide_invstd / scale)), rounded(sum_dy / count),
                            rounded(f64(weight) * wide_invstd));
}

Expr InputGradient::apply(const Expr &grad_output, const Expr &x, const Expr &c) const {
    const FuncRef k = coefficients(c);
    const Expr scale = k[0], mean = k[1], mean_dy = k[3];
    const Expr deviation = exact_order(cast(scale.type(), x) * scale - mean);
    const Expr centred = exact_order(cast(scale.type(), grad_output) - mean_dy);
    return (centred - deviation * k[2]) * k[4];
}

}  // namespace hbn
