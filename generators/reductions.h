// Sums over channels: moments, and what backward takes of gradients.
#ifndef HBN_GENERATORS_REDUCTIONS_H
#define HBN_GENERATORS_REDUCTIONS_H

#include "generators/tiling.h"

namespace hbn {

// Sums over a tile run over d = x - pivot, in float64, and m2 = sum(d^2) - sum(d)^2 / n. A pivot far from the mean costs
// bits by cancellation. The tile's first value is one of its n values, and so can't be further off than
// m2 = sum((x - mean)^2) >= (pivot - mean)^2. Then sum(d^2) <= (n + 1) * m2, and adding it up in chains of length
// `chain` loses at most chain * (n + 1) units of 2^-53. A tile has n <= 2^15 and chain <= 2^12, which leaves 26 bits or
// more whatever the data, and usually about 50: enough for float32 with one sweep over the data. For float64, and where
// chains are long, the pivot is the tile's mean, which takes a sweep of its own.
//
// Sums of 16-bit tensors run in float32 over groups, in which a value goes through at most 10 additions: of 8 vectors, their
// halves and what is left of a row, or of 8 rows and 4 such groups. Over groups they run in float64. The pivot is the mean
// of a sample of m of the tile's values. It can't be further off than (pivot - mean)^2 <= m2 / m, so that
// sum(d^2) <= (1 + n / m) * m2, of which groups lose at most 13 units of 2^-24, and sum(d)^2 / n loses 22. n / m is at most
// 64, which leaves 12 bits whatever the data, and usually about 20; a float16 has 11 bits, a bfloat16 has 8. Gradients' sums
// are off by at most 12 units of 2^-24 of the sum of their magnitudes.
//
// Sums of float16 can't leave float32's range, but those of bfloat16 can. They are guarded: a tile is summed once more
// in float64 where a group's sum came near to overflow, or where sum(d^2), or the sum of products, is so small (2^-100)
// that terms below float32's least normal number may count. The one thing lost then is terms that vanished altogether,
// beside groups that all add up to zero: n * 2^-150 at most.
//
// Values that are infinite or NaN make a channel's mean what adding them up would give, and its m2 NaN: a pivot is finite
// where anything is subtracted from it that counts. In float64, m2 is infinite where squares leave its range, and the mean
// is right up to the largest values.
enum class Pivot { first_value, sample_mean, tile_mean };

// mean and m2, the sum of squared deviations from mean, of a channel's values, in float64.
struct Moments {
    Expr mean, m2;
};

// Moments of two sets of count_a and count_b values joined (Chan, Golub and LeVeque 1979), values of this type. count_a
// may be 0.
Moments merge(const Moments &a, const Expr &count_a, const Moments &b, const Expr &count_b,
              Type tensor);

// Moments of x's channels. `one` is 1, as a uint32 that the compiler had better not know.
Reduction reduce_moments(const Func &x, const PlaneTiling &tiling, Pivot pivot, const Expr &one);
ColumnReduction reduce_moments(const Func &x, const ColumnTiling &tiling, Pivot pivot,
                               const Expr &one);

// {sum of dy, sum of dy * (x - mean)}: plain sums over each tile, and tiles added in order.
Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const PlaneTiling &tiling, const Expr &one);
ColumnReduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                                 const ColumnTiling &tiling, bool in_groups, const Expr &one);

}  // namespace hbn

#endif
