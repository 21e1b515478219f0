// How a kernel sees its tensors: which of the layouts that kernels were built for suits a shape.
#ifndef HBN_RUNTIME_ENGINE_LAYOUT_H
#define HBN_RUNTIME_ENGINE_LAYOUT_H

#include "runtime/tile_units.h"

#include "table.h"

#include <bitset>

namespace hbn::internal {

using Layouts = std::bitset<kLayouts>;

// thresholds.def, whose rows say what each is, with the defaults.
struct Thresholds {
#define HBN_THRESHOLD(name, initial, least, most, description) int64_t name = initial;
#include "thresholds.def"
};
inline constexpr Thresholds kDefaultThresholds;

// Those about copies of tensors that are not dense.
namespace copy_thresholds {
#define HBN_COPY_THRESHOLD(name, value, description) constexpr int64_t name = value;
#include "thresholds.def"
}  // namespace copy_thresholds

// How each channel is cut into tiles, the unit of summing; what generators/tiling.h calls TileSizes. Extents are of a
// whole tile: the last along each axis may be smaller.
struct Cut {
    int32_t units = 1, h = 1, n = 1;
    int32_t tiles_w = 1, tiles_h = 1, tiles_n = 1;
    int32_t sample_units = 1, sample_h = 1, sample_n = 1;
};

// Where channels of a row are summed in parts, there are so many parts in it at most.
constexpr int64_t kMostParts = 64;

// The dimensions that a kernel is given, innermost first: (w, h, c, n), or (column, block, row) in
// columns. Strides are in elements, one for each tensor of the call.
struct KernelView {
    struct Dimension {
        int64_t size = 1;
        int64_t strides[kMostTensors];  // any where size is 1
    };

    Layout layout = Layout::strided;
    Dimension dimensions[4];
    int32_t plane = 1;     // in columns: neighbouring columns of one channel
    int64_t channels = 1;  // in columns: of a block
    int32_t folds = 1;     // in columns: of a block's channels
    int32_t parts = 1;     // in rows: of a channel's folds, which are summed apart
    Cut cut;               // where the operation takes sums
    bool stream = false;   // whether the output outgrows the cache

    bool in_columns() const {
        return layout == Layout::blocks || layout == Layout::rows;
    }
};

// For tensors of one shape. The choice depends on the shape, strides, dtype and thresholds alone: a result does not depend
// on the number of threads, nor on the machine but for its tuned entries. `reduces`: whether the operation takes sums over
// channels. `streamable` are the tensors that are written and may bypass the cache. `view` is as constructed.
void choose_view(const hbn_tensor *const *tensors, int count, std::bitset<kMostTensors> streamable,
                 bool reduces, Layouts available, const Thresholds &thresholds, KernelView *view);

// Whether kernels are about as fast on these tensors, of one shape, as on dense ones, or faster than they and copies are
// together. `reduces`: whether there are sums to take, which short rows slow down more than they do maps.
bool suit_kernels(const hbn_tensor *const *tensors, int count, bool reduces, Layouts available);

// What this thread chose last, for tests.
struct Choice {
    Layout layout;
    bool stream;
    bool staged;        // whether any of the tensors was a copy (staging.h)
    bool tuned;         // whether its thresholds are not the defaults (tuning.h)
    bool tuned_kernel;  // whether its kernel is not the library's own for the layout
};
Choice last_view();
void record_staging(bool staged);
void record_tuning(bool tuned, bool tuned_kernel);

}  // namespace hbn::internal

#endif
