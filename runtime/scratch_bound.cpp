// The terms are those of schedules/vectorized.cpp; a kernel's .stmt file, beside it in the build folder, lists its
// allocations. tests/scratch_test.cpp fails where one goes beyond this.
#include "scratch_bound.h"

#include "halide/scratch.h"

#include <algorithm>

namespace hbn::internal {

namespace {

// Allocations of a kernel that are alive at once, and of one of its tasks: at most 36 today.
constexpr int64_t kAllocations = 48;
// What layout.cpp makes of small planes and of small numbers of channels: rows of so many columns, at most; of 16-bit
// values that outgrow the cache, twice as many.
constexpr int64_t kColumns = 1024;
// Sums of a tile, or of a channel: three of 8 bytes.
constexpr int64_t kSums = 3 * 8;
// Coefficients, of a channel, spread to columns, and, of bfloat16, those again in pairs.
constexpr int64_t kCoefficients = 8 * 8, kSpread = 8 * 8, kPaired = 8 * 2 * 4;
// In each block of channels pairs are rounded up to whole vectors, of 16 at most, and there is one more.
constexpr int64_t kPairedPadding = 32 * kPaired;
// Sums of columns, of channels and of samples, for each column of a task.
constexpr int64_t kTaskSums = 12 * 8;
// Kernels reach no further; larger tensors are cut.
constexpr int64_t kMostElements = int64_t(1) << 31;

// Tiles of all channels together. In planes a tile has 4096 elements or is the whole; in rows of channels at least 64
// rows, and 32768 elements unless rows are the longer (layout.cpp's budgets, cut evenly, which may halve them).
int64_t tiles(int64_t channels, int64_t elements) {
    const int64_t of_rows = std::min(elements / 64, elements / 32768 * channels + channels);
    return channels + std::max(elements / 4096, of_rows);
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
    const bool narrow = dtype == HBN_BFLOAT16 || dtype == HBN_FLOAT16;
    const bool paired = dtype == HBN_BFLOAT16;
    const int64_t by_column = kSpread + (paired ? kPaired : 0);
    const int64_t padding = paired ? kPairedPadding : 0;

    const int64_t columns = std::min((narrow ? 2 : 1) * kColumns, elements);
    const int64_t task =
        overhead + padding + columns * (by_column + kCoefficients + kSums + kTaskSums);

    // Channels that rows are too short for are in blocks: of one channel each, where their number is prime.
    const int64_t blocks = channels > kColumns ? channels : 1;
    const int64_t root = overhead + blocks * padding + std::max(channels, columns) * by_column +
                         channels * (kCoefficients + kSums) + tiles(channels, elements) * kSums;
    return {root + task, task};
}

}  // namespace hbn::internal
