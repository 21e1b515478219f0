// Random operands of one dtype, shape and strides, and what forward and backward make of them.
#ifndef HBN_TESTS_OPERANDS_H
#define HBN_TESTS_OPERANDS_H

#include "oracle.h"

namespace hbn::test {

struct Operands {
    static constexpr double kEps = 1e-5;

    DType dtype;
    Shape sizes, strides;
    int64_t channels = sizes[1];
    Normal normal{uint32_t(channels)};
    DType statistics = statistic_dtype(dtype);
    TestTensor x{dtype, sizes, strides}, dy{dtype, sizes, strides};
    TestTensor y{dtype, sizes, strides}, dx{dtype, sizes, strides};
    TestVector weight{statistics, normal.values(channels, 1, 0.5)};
    TestVector bias{statistics, normal.values(channels)};
    TestVector running_mean{statistics, normal.values(channels)};
    TestVector running_var{statistics, normal.values(channels, 4, 0.5)};

    Operands(DType dtype, const Shape &sizes, MemoryFormat format)
        : Operands(dtype, sizes, dense_strides(sizes, format)) {
    }
    Operands(DType dtype, const Shape &sizes, const Shape &strides)
        : dtype(dtype), sizes(sizes), strides(strides) {
        x.fill([&](int64_t c) { return normal(double(c % 5) - 2, 1 + double(c % 3)); });
        dy.fill([&](int64_t) { return normal(0.25); });
    }

    ChannelOracle oracle(int64_t c, bool training) const {
        return training ? ChannelOracle(x, c, kEps)
                        : ChannelOracle(running_mean[c],
                                        1 / std::sqrt(Real(running_var[c]) + Real(kEps)),
                                        Real(sizes[0] * sizes[2] * sizes[3]));
    }

    // Each expects right results, and nothing written beside them.
    functional::ForwardResult forward(bool training) {
        auto saved = functional::batch_norm_forward(x, weight, bias, running_mean, running_var,
                                                    training, 0.0, kEps, y.view());
        for (int64_t c = 0; c < channels; c++) {
            expect_normalized(x, y, c, oracle(c, training), weight[c], bias[c]);
        }
        EXPECT_TRUE(y.only_elements_written());
        return saved;
    }

    void backward(bool training, const functional::ForwardResult &saved) {
        const auto gradients =
            functional::batch_norm_backward(dy, x, weight, saved.mean, saved.invstd, running_mean,
                                            running_var, training, kEps, {}, dx.view());
        for (int64_t c = 0; c < channels; c++) {
            // Backward is given the rounded statistics: it is judged by what it was given.
            ChannelOracle s = oracle(c, training);
            if (training) {
                s.mean = get(saved.mean, c);
                s.invstd = get(saved.invstd, c);
            }
            const GradientOracle g(dy, x, c, s);
            expect_grad_input(dy, x, dx, c, s, weight[c], g, training);
            g.expect_parameters(get(gradients.grad_weight, c), get(gradients.grad_bias, c), dtype,
                                s.count);
        }
        EXPECT_TRUE(dx.only_elements_written());
    }
};

}  // namespace hbn::test

#endif
