// Cutting a problem to what a kernel's 32-bit indices reach: blocks of channels, which are
// independent of each other, and within a block pieces along N, H and W, whose statistics merge.
// Nearly every problem is one block of one piece.
#ifndef HBN_RUNTIME_ENGINE_PIECES_H
#define HBN_RUNTIME_ENGINE_PIECES_H

#include "values.h"

#include "runtime/checks.h"

#include <algorithm>
#include <array>

namespace hbn::internal {

inline hbn_tensor slice(hbn_tensor t, int dimension, int64_t begin, int64_t size) {
    t.data = static_cast<char *>(t.data) + begin * t.strides[dimension] * element_size(t.dtype);
    t.sizes[dimension] = size;
    return t;
}
inline hbn_vector slice(hbn_vector v, int64_t begin, int64_t size) {
    v.data = static_cast<char *>(v.data) + begin * v.stride * element_size(v.dtype);
    v.size = size;
    return v;
}

// Channels per block for the tensors, all of one shape, and the vectors that are given.
int64_t channels_per_block(const Values &values, int64_t channels);

// Calls run(begin, size) for each block of channels.
template<typename Run>
hbn_status for_each_block(int64_t channels, int64_t per_block, Run run) {
    for (int64_t begin = 0; begin < channels; begin += per_block) {
        HBN_TRY(run(begin, std::min(per_block, channels - begin)));
    }
    return HBN_OK;
}

// The cut of N, H and W of a block of channels.
class Pieces {
public:
    // Of tensors of one shape, of which there is one at least. `most`: a piece's sizes along N, H and W at most; null
    // for no such limit.
    explicit Pieces(const Values &values, const std::array<int64_t, 3> *most = nullptr);

    bool one() const {
        return one_;
    }

    // Calls run(cut) for each piece, in a fixed order; cut(tensor) is the tensor's part in it.
    template<typename Run>
    hbn_status for_each(Run run) const {
        for (int64_t n = 0; n < counts_[0]; n++) {
            for (int64_t h = 0; h < counts_[1]; h++) {
                for (int64_t w = 0; w < counts_[2]; w++) {
                    HBN_TRY(run([&](const hbn_tensor &t) { return cut(t, n, h, w); }));
                }
            }
        }
        return HBN_OK;
    }

private:
    hbn_tensor cut(const hbn_tensor &t, int64_t n, int64_t h, int64_t w) const;

    int64_t sizes_[3];   // of a piece along N, H, W; the last of each may be smaller
    int64_t counts_[3];  // number of pieces
    bool one_;
};

}  // namespace hbn::internal

#endif
