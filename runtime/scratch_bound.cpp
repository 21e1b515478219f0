// The terms are those of schedules/vectorized.cpp; a kernel's .stmt file, beside it in the build folder, lists its
// allocations. tests/scratch_test.cpp fails where one goes beyond this.
#include "scratch_bound.h"

#include "checks/dtypes.h"
#include "engine/tuning.h"
#include "halide/scratch.h"

#include <algorithm>

namespace hbn::internal {

namespace {

// Allocations of a kernel that are alive at once, and of one of its tasks: at most 36 today.
constexpr int64_t kAllocations = 48;
// Sums of a tile, or of a channel: three of 8 bytes.
constexpr int64_t kSums = 3 * 8;
// Coefficients, of a channel, spread to its parts and to columns, and, of bfloat16, those again in pairs.
constexpr int64_t kCoefficients = 8 * 8, kSpread = 8 * 8, kPaired = 8 * 2 * 4;
// In each block of channels pairs are rounded up to whole vectors, of 16 at most, and there is one more.
constexpr int64_t kPairedPadding = 32 * kPaired;
// Sums of columns, of sets of their rows, of channels and of samples, for each column of a task.
constexpr int64_t kTaskSums = 13 * 8;
// Kernels reach no further; larger tensors are cut.
constexpr int64_t kMostElements = int64_t(1) << 31;

// What layout.cpp makes of small planes and of small numbers of channels: rows of so many columns, at most.
int64_t most_columns(const Thresholds &most, hbn_dtype dtype) {
    return std::max({most.nhwc_columns, most.block_columns,
                     most.block_bytes_to_stream / element_size(dtype), most.block_plane_to_sum,
                     most.narrow_block_plane_to_sum, most.block_plane_to_map,
                     most.block_plane_to_stream});
}

// Tiles of all channels together. In planes a tile has an eighth of the elements that layout.cpp allows it (it cuts
// evenly, along each of three dimensions, which may halve them) or is the whole; in rows of channels at least half of the
// rows, and half of the elements unless rows are the longer.
int64_t tiles(const Thresholds &least, int64_t channels, int64_t elements) {
    const int64_t rows = std::min(least.row_tile_rows, least.block_tile_rows) / 2;
    const int64_t in_rows = std::min(least.row_tile_elements, least.block_tile_elements) / 2;
    const int64_t parts = std::max(channels, kMostParts);
    const int64_t of_rows = std::min(elements / rows, elements / in_rows * parts + parts);
    return channels + std::max(elements / (least.tile_elements / 8), of_rows);
}

}  // namespace

ScratchBytes scratch_bytes(int64_t channels, int64_t per_channel, hbn_dtype dtype) {
    const int64_t overhead = kAllocations * int64_t(ScratchArena::kOverhead);
    if (per_channel == 0) {
        return {overhead + channels * kSums, overhead};
    }
    int64_t elements;
    if (__builtin_mul_overflow(channels, per_channel, &elements) || elements > kMostElements) {
        elements = kMostElements;
    }
    const ThresholdRange &thresholds = thresholds_in_use();
    const bool paired = dtype == HBN_BFLOAT16;
    const int64_t by_column = kSpread + (paired ? kPaired : 0);
    const int64_t padding = paired ? kPairedPadding : 0;

    const int64_t columns = std::min(most_columns(thresholds.most, dtype), elements);
    const int64_t task =
        overhead + padding + columns * (by_column + kCoefficients + kSums + kTaskSums);

    // Channels that rows are too short for are in blocks: of one channel each, where their number is prime.
    const int64_t blocks = channels > thresholds.least.nhwc_columns ? channels : 1;
    const int64_t root = overhead + blocks * padding + std::max(channels, columns) * by_column +
                         std::max(channels, kMostParts) * (kCoefficients + kSpread + kSums) +
                         tiles(thresholds.least, channels, elements) * kSums;
    return {root + task, task};
}

}  // namespace hbn::internal
