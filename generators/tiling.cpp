#include "generators/tiling.h"

namespace hbn {

using namespace Halide;

Expr ceil_div(const Expr &a, const Expr &b) {
    return (a - 1) / b + 1;
}

Expr sample_size(const Expr &values) {
    return ceil_div(values, 64);
}

TileSizes standalone_tile_sizes(const Expr &width, const Expr &batch, int most) {
    const Expr w_units = ceil_div(min(width, most), TileSizes::w_unit);
    const Expr w = min(w_units * TileSizes::w_unit, width);
    const Expr n = clamp(most / w, 1, batch);
    const Expr sample_units = ceil_div(sample_size(w * n), TileSizes::sample_w_unit);
    const Expr sample_w_units = clamp(w / TileSizes::sample_w_unit, 1, sample_units);
    const Expr sample_n = clamp(ceil_div(sample_units, sample_w_units), 1, n);
    return {w_units,
            1,
            n,
            ceil_div(width, w_units * TileSizes::w_unit),
            1,
            ceil_div(batch, n),
            sample_w_units,
            1,
            sample_n};
}

PlaneTiling::PlaneTiling(const Expr &width, const Expr &height, const Expr &batch,
                         const TileSizes &sizes, int lanes, int group_values)
    : width(width),
      height(height),
      batch(batch),
      sizes(sizes),
      w(sizes.w_units * TileSizes::w_unit),
      h(sizes.h),
      n(sizes.n),
      tiles(0, sizes.tiles_w, 0, sizes.tiles_h, 0, sizes.tiles_n, "tiles"),
      lanes(lanes),
      group_values(group_values) {
}

RDom PlaneTiling::sample() const {
    RDom sample(0, sizes.sample_w_units * (TileSizes::sample_w_unit / lanes), 0, sizes.sample_h, 0,
                sizes.sample_n, "sample");
    sample.where(sample.x < tile_w() / lanes && sample.y < tile_h() && sample.z < tile_n());
    return sample;
}

Expr PlaneTiling::sample_count() const {
    return f64(min(sizes.sample_w_units * (TileSizes::sample_w_unit / lanes), tile_w() / lanes) *
               min(sizes.sample_h, tile_h()) * min(sizes.sample_n, tile_n()) * lanes);
}

Expr PlaneTiling::count(const Expr &tw, const Expr &th, const Expr &tn) const {
    return f64(min(w, width - tw * w)) * f64(min(h, height - th * h)) * f64(min(n, batch - tn * n));
}

Expr PlaneTiling::count_before(const Expr &tw, const Expr &th, const Expr &tn) const {
    const Expr planes = f64(min(n, batch - tn * n));
    const Expr rows = f64(min(h, height - th * h));
    return f64(tn * n) * f64(height) * f64(width) +
           planes * (f64(th * h) * f64(width) + rows * f64(tw * w));
}

ColumnTiling::ColumnTiling(const Expr &columns, const Expr &rows, const Expr &plane,
                           const Expr &channels, const Expr &repeats, const Expr &parts,
                           const TileSizes &sizes)
    : columns(columns),
      rows(rows),
      plane(plane),
      channels(channels),
      parts(parts),
      channel_parts(channels * parts),
      part_repeats(repeats / parts),
      tile_rows(sizes.w_units * row_group),
      tiles(0, parts, 0, sizes.tiles_w, "tiles"),
      all_columns(0, plane, 0, channel_parts, 0, part_repeats, "all_columns") {
}

RDom ColumnTiling::tile_row() const {
    RDom row(0, tile_rows, "tile_row");
    row.where(likely(first_row(tile) + row.x < rows));
    return row;
}

RDom ColumnTiling::sample() const {
    RDom sample(0, plane, 0, part_repeats, 0, sample_size(tile_rows), "sample");
    sample.where(sample.z < rows_of(tile));
    return sample;
}

Expr ColumnTiling::sample_count() const {
    return f64(plane) * f64(part_repeats) * f64(min(sample_size(tile_rows), rows_of(tile)));
}

Expr ColumnTiling::count(const Expr &tile) const {
    return f64(plane) * f64(part_repeats) * f64(rows_of(tile));
}

Expr ColumnTiling::count_before(const Expr &tile, const Expr &part) const {
    // The tiles before this one have the rows after its last.
    const Expr in_tiles = f64(plane) * f64(part_repeats) * f64(parts) *
                          f64(max(rows - first_row(tile) - tile_rows, 0));
    return has_parts() ? in_tiles + f64(part) * count(tile) : in_tiles;
}

namespace {

// The function whose update writes the value of per_channel(from, ...) to `to`.
Func spread(const Func &per_channel, const Var &first, const Expr &to, const Expr &from,
            const std::string &name) {
    std::vector<Var> others = per_channel.args();
    others.erase(others.begin());
    std::vector<Var> args = {first};
    std::vector<Expr> to_all = {to}, from_all = {from};
    for (const Var &v : others) {
        args.push_back(v);
        to_all.emplace_back(v);
        from_all.emplace_back(v);
    }
    std::vector<Expr> nothing, value;
    for (int i = 0; i < per_channel.outputs(); i++) {
        nothing.push_back(undef(per_channel.types()[i]));
        value.push_back(per_channel.outputs() > 1 ? Expr(per_channel(from_all)[i])
                                                  : Expr(per_channel(from_all)));
    }
    Func values(name);
    values(args) = Tuple(nothing);
    values(to_all) = Tuple(value);
    return values;
}

}  // namespace

Func ColumnTiling::by_part(const Func &per_channel, const std::string &name) const {
    if (!has_parts()) {
        return per_channel;
    }
    const RDom all_parts(0, channels, 0, parts, "all_parts");
    return spread(per_channel, channel, all_parts.x + channels * all_parts.y, all_parts.x, name);
}

Func ColumnTiling::by_column(const Func &per_part, const std::string &name) const {
    return spread(per_part, column, column_of(all_columns.y, all_columns.x, all_columns.z),
                  all_columns.y, name);
}

}  // namespace hbn
