// What tiles are cut in units of. The engine cuts them (engine/layout.cpp), and kernels rely on it (generators/tiling.h).
#ifndef HBN_RUNTIME_TILE_UNITS_H
#define HBN_RUNTIME_TILE_UNITS_H

namespace hbn {

// Elements along a row of a plane: the most that are summed in one step. Rows of columns, which are a group that is summed
// at once. Elements along a row of a plane that are in a sample.
constexpr int tile_width_unit = 256, tile_row_unit = 8, sample_width_unit = 16;

}  // namespace hbn

#endif
