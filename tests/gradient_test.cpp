// Gradients against central differences of the forward pass in float64.
#include "oracle.h"

namespace hbn::test {
namespace {

class FiniteDifferences : public ::testing::TestWithParam<std::tuple<Layout, bool>> {};

TEST_P(FiniteDifferences, agree) {
    const Layout layout = std::get<0>(GetParam());
    const bool in_training = std::get<1>(GetParam());
    const Shape sizes{3, 2, 3, 2};
    const double eps = 1e-3, step = 1e-5;
    Normal normal{21};
    TestTensor x(DType::float64, sizes, layout), g(DType::float64, sizes, layout);
    x.fill([&](int64_t) { return normal(1, 2); });
    g.fill([&](int64_t) { return normal(); });
    TestVector weight(DType::float64, normal.values(2)), bias(DType::float64, normal.values(2));
    TestVector mean(DType::float64, {0.5, 1.5}), var(DType::float64, {2, 3});

    // The scalar whose gradients backward gives for grad_output g.
    const auto loss = [&] {
        TestTensor y(DType::float64, sizes, layout);
        functional::batch_norm_forward(x, weight, bias, mean, var, in_training, 0.0, eps, y.view());
        double sum = 0;
        for (int64_t c = 0; c < 2; c++) {
            y.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                sum += y.get(n, c, h, w) * g.get(n, c, h, w);
            });
        }
        return sum;
    };
    const auto saved =
        functional::batch_norm_forward(x, weight, bias, mean, var, in_training, 0.0, eps);
    TestTensor dx(DType::float64, sizes, layout);
    const auto gradients = functional::batch_norm_backward(
        g, x, weight, saved.mean, saved.invstd, mean, var, in_training, eps, {}, dx.view());
    // Truncation is of order step^2, cancellation of 2^-53 / step: both below 1e-8 of values near 1.
    const double tolerance = 1e-7;
    for (int64_t c = 0; c < 2; c++) {
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            const double old = x.get(n, c, h, w);
            x.set(n, c, h, w, old + step);
            const double above = loss();
            x.set(n, c, h, w, old - step);
            const double below = loss();
            x.set(n, c, h, w, old);
            EXPECT_NEAR(dx.get(n, c, h, w), (above - below) / (2 * step), tolerance);
        });
        for (auto [parameter, gradient] : {std::make_pair(&weight, gradients.grad_weight.view()),
                                           std::make_pair(&bias, gradients.grad_bias.view())}) {
            double *value = static_cast<double *>(parameter->view().data) + c;
            const double old = *value;
            *value = old + step;
            const double above = loss();
            *value = old - step;
            const double below = loss();
            *value = old;
            EXPECT_NEAR(get(gradient, c), (above - below) / (2 * step), tolerance);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(, FiniteDifferences,
                         ::testing::Combine(::testing::Values(Layout::nchw, Layout::nhwc,
                                                              Layout::strided),
                                            ::testing::Bool()),
                         [](const auto &info) {
                             return std::string(name_of_layout(std::get<0>(info.param))) +
                                    (std::get<1>(info.param) ? "_training" : "_inference");
                         });

}  // namespace
}  // namespace hbn::test
