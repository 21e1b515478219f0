#include "pieces.h"

#include "runtime/internal.h"

namespace hbn::internal {

namespace {

// Kernels round extents up to whole vectors and tiles; the margin keeps that within 31 bits.
constexpr int64_t kDefaultLimit = (int64_t(1) << 31) - (int64_t(1) << 20);

int64_t limit = kDefaultLimit;

constexpr int kReduced[3] = {0, 2, 3};  // N, H, W

int64_t largest_stride(const Values &values, int dimension) {
    int64_t largest = 1;
    values.for_each_tensor(
        [&](Arg a) { largest = std::max(largest, values.tensor(a).strides[dimension]); });
    return largest;
}

const hbn_tensor &any_tensor(const Values &values) {
    Arg any = Arg::none;
    values.for_each_tensor([&](Arg a) { any = a; });
    return values.tensor(any);
}

}  // namespace

void set_max_elements_per_kernel(int64_t elements) {
    limit = elements > 0 ? std::min(elements, kDefaultLimit) : kDefaultLimit;
}

// Half of the reach is the channels', half is left to the pieces.
int64_t channels_per_block(const Values &values, int64_t channels) {
    int64_t stride = largest_stride(values, 1);
    values.for_each_vector([&](Arg a) { stride = std::max(stride, values.vector(a).stride); });
    return std::min(channels, limit / 2 / stride + 1);
}

Pieces::Pieces(const Values &values, const std::array<int64_t, 3> *most) {
    const hbn_tensor &shape = any_tensor(values);
    int64_t strides[3];
    for (int d = 0; d < 3; d++) {
        sizes_[d] = shape.sizes[kReduced[d]];
        if (most) {
            sizes_[d] = std::min(sizes_[d], (*most)[size_t(d)]);
        }
        strides[d] = largest_stride(values, kReduced[d]);
    }
    // What is left to reach; a stride at least 1 also bounds the number of elements along each
    // dimension.
    const int64_t channels = shape.sizes[1];
    const int64_t reach = (channels - 1) * largest_stride(values, 1);
    const auto fits = [&] {
        int64_t last = reach, elements = channels;
        for (int d = 0; d < 3; d++) {
            last += (sizes_[d] - 1) * strides[d];
            elements *= sizes_[d];
        }
        return last < limit && elements <= limit;
    };
    while (!fits()) {
        int longest = 0;
        for (int d = 1; d < 3; d++) {
            if ((sizes_[d] - 1) * strides[d] > (sizes_[longest] - 1) * strides[longest]) {
                longest = d;
            }
        }
        if (sizes_[longest] == 1) {
            break;  // single pixels: only a test's tiny limit gets here
        }
        sizes_[longest] = (sizes_[longest] + 1) / 2;
    }
    one_ = true;
    for (int d = 0; d < 3; d++) {
        const int64_t size = shape.sizes[kReduced[d]];
        counts_[d] = size == sizes_[d] ? 1 : (size + sizes_[d] - 1) / sizes_[d];
        one_ = one_ && counts_[d] == 1;
    }
}

hbn_tensor Pieces::cut(const hbn_tensor &t, int64_t n, int64_t h, int64_t w) const {
    if (one_) {
        return t;
    }
    const int64_t index[3] = {n, h, w};
    hbn_tensor piece = t;
    for (int d = 0; d < 3; d++) {
        const int64_t begin = index[d] * sizes_[d];
        piece = slice(piece, kReduced[d], begin, std::min(sizes_[d], t.sizes[kReduced[d]] - begin));
    }
    return piece;
}

}  // namespace hbn::internal
