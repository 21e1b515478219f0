// Every operation x dtype x layout x shape against the oracle: the suite that each target and each instruction
// set of a target must pass.
#include "oracle.h"

namespace hbn::test {
namespace {

using functional::GradMask;

struct Case {
    DType dtype;
    Layout layout;
    Shape sizes;
    bool affine;
};

std::string case_name(const ::testing::TestParamInfo<Case> &info) {
    const Case &p = info.param;
    return std::string(name_of(p.dtype)) + "_" + name_of_layout(p.layout) + "_" +
           shape_name(p.sizes) + (p.affine ? "_affine" : "_plain");
}

std::vector<Case> cases_of(const std::vector<Shape> &shapes) {
    std::vector<Case> all;
    for (DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::float16}) {
#ifdef HBN_TEST_FLOAT32_ONLY
        if (dtype != DType::float32) {
            continue;
        }
#endif
        for (Layout layout : {Layout::nchw, Layout::nhwc, Layout::strided}) {
            for (const Shape &sizes : shapes) {
                all.push_back({dtype, layout, sizes, true});
                all.push_back({dtype, layout, sizes, false});
            }
        }
    }
    return all;
}

std::vector<Case> cases() {
    // Planes of 1, 49, 196 and 1575 pixels, channels of 1, 3, 17, 100 and 2048, and several tiles a channel.
    return cases_of({{2, 17, 7, 7},
                     {3, 3, 14, 14},
                     {2, 1, 35, 45},
                     {5, 100, 1, 1},
                     {2, 2048, 1, 3},
                     {12, 3, 28, 28},
                     {24, 17, 7, 7}});
}

constexpr double kEps = 1e-5;

class Conformance : public ::testing::TestWithParam<Case> {
protected:
    const Case &p = GetParam();
    const DType statistics = statistic_dtype(p.dtype);
    const int64_t channels = p.sizes[1];
    Normal normal{uint32_t(channels + p.sizes[3])};
    TestTensor x{p.dtype, p.sizes, p.layout}, dy{p.dtype, p.sizes, p.layout};
    TestTensor y{p.dtype, p.sizes, p.layout}, dx{p.dtype, p.sizes, p.layout};
    TestVector weight_values{statistics, normal.values(channels, 1, 0.5)};
    TestVector bias_values{statistics, normal.values(channels)};
    TestVector running_mean{statistics, normal.values(channels)};
    TestVector running_var{statistics, normal.values(channels, 4, 0.5)};
    VectorView weight, bias;

    void SetUp() override {
        x.fill([&](int64_t c) { return normal(double(c % 5) - 2, 1 + double(c % 3)); });
        dy.fill([&](int64_t) { return normal(0.25); });
        if (p.affine) {
            weight = weight_values;
            bias = bias_values;
        }
    }

    Real weight_of(int64_t c) const {
        return p.affine ? weight_values[c] : 1;
    }
    Real bias_of(int64_t c) const {
        return p.affine ? bias_values[c] : 0;
    }
    Real count() const {
        return Real(p.sizes[0] * p.sizes[2] * p.sizes[3]);
    }
    // What a derivative is given: forward's, or running statistics.
    ChannelOracle statistics_of(const functional::ForwardResult &saved, int64_t c,
                                bool training) const {
        return training ? ChannelOracle(get(saved.mean, c), get(saved.invstd, c), count())
                        : ChannelOracle(running_mean[c],
                                        1 / std::sqrt(Real(running_var[c]) + Real(kEps)), count());
    }

    void expect_near(double actual, Real expected, Real relative) const {
        expect_bounded(actual, relative_to(expected, relative));
    }
};

class Derivatives : public Conformance {};

TEST_P(Conformance, forward_training) {
    const TestVector old_mean = running_mean, old_var = running_var;
    const auto result = functional::batch_norm_forward(x, weight, bias, running_mean, running_var,
                                                       true, 0.1, kEps, y.view());
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle s(x, c, kEps);
        expect_normalized(x, y, c, s, weight_of(c), bias_of(c));
        expect_bounded(get(result.mean, c), bounded_mean(p.dtype, s));
        expect_bounded(get(result.invstd, c), bounded_invstd(p.dtype, s));
        expect_bounded(running_mean[c], bounded_running_mean(p.dtype, s, old_mean[c], 0.1L));
        expect_bounded(running_var[c], bounded_running_var(p.dtype, s, old_var[c], 0.1L));
    }
    EXPECT_TRUE(y.only_elements_written());
}

// Channels 0 to 3 have an infinity, one of the other sign, both, and NaN.
TEST_P(Conformance, infinities_make_means_infinite) {
    const double infinity = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double mean_of[] = {infinity, -infinity, nan, nan};
    const TestVector old_mean = running_mean, old_var = running_var;
    TestVector clean_mean = running_mean, clean_var = running_var;
    functional::batch_norm_forward(x, weight, bias, clean_mean, clean_var, true, 0.1, kEps,
                                   dx.view());
    const int64_t n = p.sizes[0] - 1, h = p.sizes[2] - 1, w = p.sizes[3] - 1;
    for (const bool first : {true, false}) {
        running_mean = old_mean;
        running_var = old_var;
        for (int64_t c = 0; c < std::min<int64_t>(channels, 4); c++) {
            const double other = c == 2 ? -infinity : 0.0;
            x.set(0, c, 0, 0, first ? (c == 2 ? infinity : mean_of[c]) : other);
            x.set(n, c, h, w, first ? other : (c == 2 ? infinity : mean_of[c]));
        }
        const auto saved = functional::batch_norm_forward(x, weight, bias, running_mean,
                                                          running_var, true, 0.1, kEps, y.view());
        for (int64_t c = 0; c < channels; c++) {
            SCOPED_TRACE(c);
            if (c >= 4) {
                EXPECT_EQ(running_mean[c], clean_mean[c]);
                EXPECT_EQ(running_var[c], clean_var[c]);
                EXPECT_EQ(y.get(n, c, h, w), dx.get(n, c, h, w));
                continue;
            }
            for (const double mean : {get(saved.mean, c), running_mean[c]}) {
                EXPECT_TRUE(std::isnan(mean_of[c]) ? std::isnan(mean) : mean == mean_of[c]) << mean;
            }
            for (const double result :
                 {get(saved.invstd, c), running_var[c], y.get(0, c, 0, 0), y.get(n, c, h, w)}) {
                EXPECT_TRUE(std::isnan(result)) << result;
            }
        }
    }
}

TEST_P(Conformance, forward_training_in_place) {
    functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps, y.view());
    functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps, x.view());
    EXPECT_EQ(x.bytes(), y.bytes());
}

TEST_P(Conformance, forward_inference) {
    const TestVector old_mean = running_mean, old_var = running_var;
    functional::batch_norm_forward(x, weight, bias, running_mean, running_var, false, 0.1, kEps,
                                   y.view());
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle s(running_mean[c], 1 / std::sqrt(Real(running_var[c]) + Real(kEps)),
                              count());
        expect_normalized(x, y, c, s, weight_of(c), bias_of(c));
    }
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_EQ(running_mean.bytes(), old_mean.bytes());
    EXPECT_EQ(running_var.bytes(), old_var.bytes());
}

TEST_P(Conformance, backward_training) {
    const auto saved = functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps);
    const auto gradients = functional::batch_norm_backward(dy, x, weight, saved.mean, saved.invstd,
                                                           {}, {}, true, kEps, {}, dx.view());
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle s(get(saved.mean, c), get(saved.invstd, c), count());
        const GradientOracle g(dy, x, c, s);
        expect_grad_input(dy, x, dx, c, s, weight_of(c), g, true);
        g.expect_parameters(get(gradients.grad_weight, c), get(gradients.grad_bias, c), p.dtype,
                            count());
    }
    EXPECT_TRUE(dx.only_elements_written());
    // In place: grad_input over grad_output.
    functional::batch_norm_backward(dy, x, weight, saved.mean, saved.invstd, {}, {}, true, kEps, {},
                                    dy.view());
    EXPECT_EQ(dy.bytes(), dx.bytes());
}

TEST_P(Conformance, backward_inference) {
    const auto gradients = functional::batch_norm_backward(dy, x, weight, {}, {}, running_mean,
                                                           running_var, false, kEps, {}, dx.view());
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle s(running_mean[c], 1 / std::sqrt(Real(running_var[c]) + Real(kEps)),
                              count());
        const GradientOracle g(dy, x, c, s);
        expect_grad_input(dy, x, dx, c, s, weight_of(c), g, false);
        g.expect_parameters(get(gradients.grad_weight, c), get(gradients.grad_bias, c), p.dtype,
                            count());
    }
    EXPECT_TRUE(dx.only_elements_written());
}

TEST_P(Derivatives, jvp) {
    TestVector weight_tangent{statistics, normal.values(channels)};
    TestVector bias_tangent{statistics, normal.values(channels)};
    const auto saved = functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps);
    for (bool training : {true, false}) {
        functional::batch_norm_jvp(dy, x, weight, p.affine ? weight_tangent.view() : VectorView(),
                                   p.affine ? bias_tangent.view() : VectorView(), saved.mean,
                                   saved.invstd, running_mean, running_var, training, kEps,
                                   y.view());
        for (int64_t c = 0; c < channels; c++) {
            expect_tangent(dy, x, y, c, statistics_of(saved, c, training), weight_of(c),
                           p.affine ? weight_tangent[c] : 0, p.affine ? bias_tangent[c] : 0,
                           training);
        }
        EXPECT_TRUE(y.only_elements_written());
    }
}

TEST_P(Derivatives, double_backward) {
    TestTensor ddx(p.dtype, p.sizes, p.layout);
    ddx.fill([&](int64_t) { return normal(-0.5); });
    TestVector ddw{statistics, normal.values(channels)};
    TestVector ddb{statistics, normal.values(channels)};
    const auto saved = functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps);
    for (bool training : {true, false}) {
        const auto gradients = functional::batch_norm_double_backward(
            ddx, p.affine ? ddw.view() : VectorView(), p.affine ? ddb.view() : VectorView(), dy, x,
            weight, saved.mean, saved.invstd, running_mean, running_var, training, kEps, y.view(),
            dx.view());
        for (int64_t c = 0; c < channels; c++) {
            const ChannelOracle s = statistics_of(saved, c, training);
            const Real to_weight = p.affine ? ddw[c] : 0, to_bias = p.affine ? ddb[c] : 0;
            expect_tangent(ddx, x, y, c, s, weight_of(c), to_weight, to_bias, training);
            expect_double_backward(ddx, dy, x, dx, get(gradients.grad_weight, c), c, s,
                                   weight_of(c), to_weight, training);
        }
        EXPECT_TRUE(y.only_elements_written());
        EXPECT_TRUE(dx.only_elements_written());
    }
}

// A wanted gradient does not depend on which others are wanted.
TEST_P(Conformance, grad_masks) {
    const auto saved = functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps);
    for (bool training : {true, false}) {
        const auto backward = [&](const GradMask &mask, const TestTensor &out) {
            return functional::batch_norm_backward(
                dy, x, weight, training ? saved.mean.view() : VectorView(),
                training ? saved.invstd.view() : VectorView(), running_mean, running_var, training,
                kEps, mask, mask.input ? std::optional<TensorView>(out) : std::nullopt);
        };
        const auto all = backward({}, dx);
        for (int bits = 0; bits < 7; bits++) {
            const GradMask mask{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
            TestTensor out(p.dtype, p.sizes, p.layout);
            const auto some = backward(mask, out);
            if (mask.input) {
                EXPECT_EQ(out.bytes(), dx.bytes());
            }
            ASSERT_EQ(bool(some.grad_weight), mask.weight);
            ASSERT_EQ(bool(some.grad_bias), mask.bias);
            for (int64_t c = 0; c < channels; c++) {
                if (mask.weight) {
                    const double full = get(all.grad_weight, c);
                    // invstd is rounded once more where it is a buffer of its own.
                    expect_near(get(some.grad_weight, c), full, 4 * unit_roundoff(statistics));
                }
                if (mask.bias) {
                    EXPECT_EQ(get(some.grad_bias, c), get(all.grad_bias, c));
                }
            }
        }
    }
}

// In place of grad_output, grad_input and the sums that are taken of it are the same.
TEST_P(Conformance, backward_in_place) {
    const auto saved = functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps);
    for (bool training : {true, false}) {
        const auto backward = [&](const TestTensor &g, const TestTensor &out) {
            return functional::batch_norm_backward(
                g, x, weight, training ? saved.mean.view() : VectorView(),
                training ? saved.invstd.view() : VectorView(), running_mean, running_var, training,
                kEps, {}, out.view());
        };
        const auto apart = backward(dy, dx);
        TestTensor both(dy);
        const auto in_place = backward(both, both);
        EXPECT_EQ(both.bytes(), [&] {
            TestTensor expected(dy);
            for (int64_t c = 0; c < channels; c++) {
                x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                    expected.set(n, c, h, w, dx.get(n, c, h, w));
                });
            }
            return expected.bytes();
        }());
        for (int64_t c = 0; c < channels; c++) {
            EXPECT_EQ(get(in_place.grad_bias, c), get(apart.grad_bias, c));
            const double weight_gradient = get(apart.grad_weight, c);
            EXPECT_NEAR(get(in_place.grad_weight, c), weight_gradient,
                        4 * unit_roundoff(statistics) * std::fabs(weight_gradient));
        }
    }
}

// The split operations over two halves of the batch agree with the whole: what two machines do.
TEST_P(Conformance, split_across_machines) {
    const int64_t first = p.sizes[0] / 2;
    const auto part = [&](const TestTensor &t, int64_t begin, int64_t size) {
        TensorView v = t;
        v.data = static_cast<uint8_t *>(v.data) + begin * v.strides[0] * int64_t(size_of(v.dtype));
        v.sizes[0] = size;
        return v;
    };
    const int64_t bounds[] = {0, first, p.sizes[0]};

    functional::Moments moments;
    for (int machine = 0; machine < 2; machine++) {
        const auto own = functional::batch_norm_stats(
            part(x, bounds[machine], bounds[machine + 1] - bounds[machine]));
        machine == 0 ? moments = own : (moments.merge(own), moments);
    }
    EXPECT_EQ(Real(moments.count), count());
    const auto [mean, invstd] = functional::mean_and_invstd(moments, kEps);
    functional::BackwardSums sums;
    for (int machine = 0; machine < 2; machine++) {
        const int64_t begin = bounds[machine], size = bounds[machine + 1] - begin;
        functional::batch_norm_normalize(part(x, begin, size), moments, weight, bias, kEps,
                                         part(y, begin, size));
        auto own = functional::batch_norm_backward_reduce(part(dy, begin, size),
                                                          part(x, begin, size), mean, invstd);
        if (machine == 0) {
            sums = std::move(own);
        } else {
            for (int64_t c = 0; c < channels; c++) {
                sums.sum_dy[c] += own.sum_dy[c];
                sums.sum_dy_xmu[c] += own.sum_dy_xmu[c];
            }
        }
    }
    for (int machine = 0; machine < 2; machine++) {
        const int64_t begin = bounds[machine], size = bounds[machine + 1] - begin;
        functional::batch_norm_backward_elemt(part(dy, begin, size), part(x, begin, size), mean,
                                              invstd, weight, sums, double(count()),
                                              part(dx, begin, size));
    }
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle s(x, c, kEps);
        expect_normalized(x, y, c, s, weight_of(c), bias_of(c));
        const ChannelOracle saved(get(mean, c), get(invstd, c), count());
        expect_grad_input(dy, x, dx, c, saved, weight_of(c), GradientOracle(dy, x, c, saved), true);
    }
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_TRUE(dx.only_elements_written());
}

INSTANTIATE_TEST_SUITE_P(, Conformance, ::testing::ValuesIn(cases()), case_name);
// Their sums are backward_reduce's, of which Conformance has every shape; one for each kernel of the maps.
INSTANTIATE_TEST_SUITE_P(
    , Derivatives, ::testing::ValuesIn(cases_of({{2, 17, 7, 7}, {2, 1, 35, 45}, {5, 100, 1, 1}})),
    case_name);

}  // namespace
}  // namespace hbn::test
