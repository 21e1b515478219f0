// How a channel's values are split into tiles. A tile is summed while it is in cache, and tiles are merged in order, so
// that results are the same bits for any number of threads.
#ifndef HBN_GENERATORS_TILING_H
#define HBN_GENERATORS_TILING_H

#include <Halide.h>

#include <string>
#include <vector>

#include "generators/rounding.h"
#include "runtime/tile_units.h"
#include "schedules/pipeline.h"

namespace hbn {

using Halide::Func;
using Halide::RDom;
using Halide::Var;

// The sizes of tiles, which the caller chooses so that tiles are about equally large (runtime/engine/layout.cpp). Where
// tensors are rows of columns, a unit of w is row_group rows, and h and n are 1.
struct TileSizes {
    static constexpr int w_unit = tile_width_unit, sample_w_unit = sample_width_unit;

    Expr w_units, h, n;              // extents of a whole tile; its width is w_units * w_unit
    Expr tiles_w, tiles_h, tiles_n;  // how many tiles there are along each axis
    Expr sample_w_units, sample_h, sample_n;  // how many of a tile's values to sample for the pivot
};

// How many of a tile's `values` to sample for the pivot: 1 in 64 (see Pivot).
Expr sample_size(const Expr &values);

// The sizes for standalone kernels, whose tensors are `batch` planes of `width` elements a channel: tiles of about
// `most` values.
TileSizes standalone_tile_sizes(const Expr &width, const Expr &batch, int most);

// Tiles of tensors in four dimensions, (w, h, c, n).
struct PlaneTiling {
    Expr width, height, batch;  // the channel's extents
    TileSizes sizes;
    Expr w, h, n;  // extents of a whole tile
    RDom tiles;    // which tile, along w, h and n
    // How many partial sums run side by side along w: a power of two, and at most sample_w_unit where in_groups().
    int lanes;
    // How many vectors, each of twice as many lanes, are added up in float32 at a time, see Pivot; 1 where sums are of
    // float64. A power of two, and with all lanes at most w_unit.
    int group_values;
    Var lane{"lane"}, c{"c"}, tw{"tw"}, th{"th"}, tn{"tn"};

    PlaneTiling(const Expr &width, const Expr &height, const Expr &batch, const TileSizes &sizes,
                int lanes, int group_values);

    bool in_groups() const {
        return group_values > 1;
    }

    // Element (i, j, l) of x within the tile.
    Expr at(const Func &x, const Expr &i, const Expr &j, const Expr &l) const {
        return x(tw * w + i, th * h + j, c, tn * n + l);
    }
    // The tile's vectors to sample for the pivot, along w, h and n, and how many values they have.
    RDom sample() const;
    Expr sample_count() const;

    // What a function of tiles is a function of.
    std::vector<Var> tile_args() const {
        return {c, tw, th, tn};
    }
    // Extents of this tile: the last along each axis may be smaller.
    Expr tile_w() const {
        return min(w, width - tw * w);
    }
    Expr tile_h() const {
        return min(h, height - th * h);
    }
    Expr tile_n() const {
        return min(n, batch - tn * n);
    }

    // How many values a tile has, and all the tiles before it in the order of `tiles`.
    Expr count(const Expr &tw, const Expr &th, const Expr &tn) const;
    Expr count_before(const Expr &tw, const Expr &th, const Expr &tn) const;
};

// Tiles of tensors that are rows of columns, (column, channel block, row), with stride 1 along columns. A channel block
// is `channels` whole channels side by side. A channel has `plane` columns in a run, and as many runs in a row as
// `repeats` says: column = p + plane * (channel + channels * repeat).
//
//   NCHW with small planes: blocks of some channels, plane = H * W, 1 repeat, a row for each n
//   NHWC: 1 block of all channels, plane = 1, a repeat for each of a few pixels side by side, then rows of those
//
// Within a tile few channels are summed in `parts` each, as if a row had that many more channels and fewer repeats:
// column = p + plane * (part + channel_parts * repeat), where part = channel + channels * i. There are channel_parts, with
// part_repeats each.
struct ColumnTiling {
    Expr columns, rows, plane, channels, parts, channel_parts, part_repeats;
    Expr tile_rows;  // of a whole tile
    // How many groups of rows are added up in float32 before they are added in float64, where sums run in groups, see
    // Pivot.
    int groups_in_set = 4;
    RDom tiles;        // which of a channel's parts, and which tile
    RDom all_columns;  // a block's columns: p, part, repeat
    Var column{"column"}, channel_block{"block"}, channel{"k"}, tile{"t"};

    ColumnTiling(const Expr &columns, const Expr &rows, const Expr &plane, const Expr &channels,
                 const Expr &repeats, const Expr &parts, const TileSizes &sizes);

    // The rows of the tile.
    RDom tile_row() const;
    // A part's values to sample for the pivot (p, repeat, row), and how many there are.
    RDom sample() const;
    Expr sample_count() const;

    // How many rows a tile has: the last may have fewer than the others.
    Expr rows_of(const Expr &tile) const {
        return min(tile_rows, rows - first_row(tile));
    }
    // Tiles go from the last rows to the first. A map that goes from first to last then finds in cache what was
    // reduced last.
    Expr first_row(const Expr &tile) const {
        return (tiles.y.extent() - 1 - tile) * tile_rows;
    }
    Expr column_of(const Expr &part, const Expr &p, const Expr &repeat) const {
        return p + plane * (part + channel_parts * repeat);
    }

    // How many values of a part a tile has, and how many of its channel come before it in the order of `tiles`.
    Expr count(const Expr &tile) const;
    Expr count_before(const Expr &tile, const Expr &part) const;

    bool has_parts() const {
        return !Halide::Internal::is_const_one(parts);
    }
    // For each part the value of its channel, and for each column that of its part: a function of (part, ...) from one of
    // (channel, ...), and one of (column, ...) from that. The first is the same function where channels have no parts.
    Func by_part(const Func &per_channel, const std::string &name) const;
    Func by_column(const Func &per_part, const std::string &name) const;
};

// Of a >= 0. Halide folds (a + b - 1) / b, where b is such a quotient itself, into products that overflow.
Expr ceil_div(const Expr &a, const Expr &b);

}  // namespace hbn

#endif
