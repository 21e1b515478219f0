// Functions that allocate their results return, bit for bit, what those write that are given memory for them.
#include "oracle.h"

#include <hbn/error.h>

namespace hbn::test {
namespace {

struct Operands {
    TestTensor x{DType::float32, {3, 5, 4, 6}, Layout::nhwc}, dy{x}, y{x};
    TestVector weight{DType::float32, {1, 2, 0.5, -1, 3}}, bias{DType::float32, {0, 1, 2, 3, 4}};

    Operands() {
        Normal normal{29};
        x.fill([&](int64_t) { return normal(3, 2); });
        dy.fill([&](int64_t) { return normal(); });
    }
    // That `made` has x's strides, and the same values as y.
    void expect_same(const Tensor &made) const {
        EXPECT_EQ(made.view().sizes, x.view().sizes);
        EXPECT_EQ(made.view().strides, x.view().strides);
        const float *mine = static_cast<const float *>(made.view().data);
        for (int64_t c = 0; c < 5; c++) {
            y.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const Shape &s = made.view().strides;
                EXPECT_EQ(mine[n * s[0] + c * s[1] + h * s[2] + w * s[3]],
                          float(y.get(n, c, h, w)));
            });
        }
    }
};

TEST(Functional, normalize) {
    const Operands o;
    const functional::Moments moments = functional::batch_norm_stats(o.x);
    functional::batch_norm_normalize(o.x, moments, o.weight, o.bias, 1e-5, o.y);
    o.expect_same(functional::batch_norm_normalize(o.x, moments, o.weight, o.bias, 1e-5));
}

TEST(Functional, backward_elemt) {
    const Operands o;
    const auto saved = functional::batch_norm_forward(o.x, o.weight, o.bias, {}, {}, true, 0, 1e-5);
    const auto sums = functional::batch_norm_backward_reduce(o.dy, o.x, saved.mean, saved.invstd);
    functional::batch_norm_backward_elemt(o.dy, o.x, saved.mean, saved.invstd, o.weight, sums, 72,
                                          o.y);
    o.expect_same(functional::batch_norm_backward_elemt(o.dy, o.x, saved.mean, saved.invstd,
                                                        o.weight, sums, 72));
}

TEST(Functional, jvp) {
    const Operands o;
    const auto saved = functional::batch_norm_forward(o.x, o.weight, o.bias, {}, {}, true, 0, 1e-5);
    const auto jvp = [&](const std::optional<TensorView> &out) {
        return functional::batch_norm_jvp(o.dy, o.x, o.weight, o.bias, o.weight, saved.mean,
                                          saved.invstd, {}, {}, true, 1e-5, out);
    };
    jvp(o.y);
    o.expect_same(jvp(std::nullopt));
}

TEST(Functional, stats_of_more_channels_than_a_vector_holds) {
    const ConstTensorView empty(nullptr, DType::float32, {0, int64_t(1) << 61, 1, 1});
    EXPECT_THROW(functional::batch_norm_stats(empty), OutOfMemory);
}

}  // namespace
}  // namespace hbn::test
