// Inputs that break other implementations: design.md's bound holds on every one, in every layout.
#include "hard_inputs.h"
#include "oracle.h"

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

class HardInputs : public ::testing::TestWithParam<std::tuple<HardInput, Layout, bool>> {
protected:
    const HardInput input = std::get<0>(GetParam());
    const Layout layout = std::get<1>(GetParam());
    const bool large_parameters = std::get<2>(GetParam());
    HardProblem problem{input, layout, large_parameters};
    const Shape &sizes = problem.sizes;
    TestTensor &x = problem.x;
    TestVector &weight = problem.weight, &bias = problem.bias;
    TestTensor y{DType::float32, sizes, layout};
};

TEST_P(HardInputs, forward_training) {
    functional::batch_norm_forward(x, weight, bias, {}, {}, true, 0.1, kEps, y.view());
    for (int64_t c = 0; c < 8; c++) {
        expect_normalized(x, y, c, ChannelOracle(x, c, kEps), weight[c], bias[c]);
    }
}

TEST_P(HardInputs, split_and_merged) {
    // Four machines of four samples each.
    functional::Moments moments;
    for (int machine = 0; machine < 4; machine++) {
        TensorView part = x;
        part.data = static_cast<char *>(part.data) + machine * 4 * part.strides[0] * 4;
        part.sizes[0] = 4;
        const auto own = functional::batch_norm_stats(part);
        machine == 0 ? moments = own : (moments.merge(own), moments);
    }
    functional::batch_norm_normalize(x, moments, weight, bias, kEps, y.view());
    for (int64_t c = 0; c < 8; c++) {
        expect_normalized(x, y, c, ChannelOracle(x, c, kEps), weight[c], bias[c]);
    }
}

TEST_P(HardInputs, variance_is_never_negative) {
    const auto moments = functional::batch_norm_stats(x);
    for (int64_t c = 0; c < 8; c++) {
        const ChannelOracle s(x, c, kEps);
        EXPECT_GE(moments.m2[c], 0);
        expect_bounded(moments.mean[c], bounded_moments_mean(DType::float32, s));
        expect_bounded(moments.m2[c], bounded_moments_m2(DType::float32, s));
    }
}

INSTANTIATE_TEST_SUITE_P(, HardInputs,
                         ::testing::Combine(::testing::ValuesIn(hard_inputs),
                                            ::testing::Values(Layout::nchw, Layout::nhwc,
                                                              Layout::strided),
                                            ::testing::Bool()),
                         [](const auto &info) {
                             return std::string(std::get<0>(info.param).name) + "_" +
                                    name_of_layout(std::get<1>(info.param)) +
                                    (std::get<2>(info.param) ? "_large_parameters" : "");
                         });

// 16-bit tensors' sums run in float32 around a pivot, whose range bfloat16's may leave: every channel has another
// reason why its sums could go wrong.
struct ManyChannels {
    const char *name;
    Layout layout;
    Shape sizes;
};

const ManyChannels many_channels[] = {
    {"blocks", Layout::nchw, {32, 24, 11, 11}},
    {"blocks_of_few_rows", Layout::nchw, {9, 60, 7, 5}},
    {"nchw", Layout::nchw, {5, 24, 37, 43}},
    {"nchw_one_group", Layout::nchw, {2, 24, 16, 72}},
    {"nchw_less_than_a_group", Layout::nchw, {4, 24, 5, 7}},
    {"nchw_less_than_a_vector", Layout::nchw, {6, 24, 1, 3}},
    {"nchw_few_channels", Layout::nchw, {3, 14, 61, 73}},
    {"rows", Layout::nhwc, {6, 24, 31, 33}},
    {"few_rows", Layout::nhwc, {3, 14, 5, 3}},
    {"strided", Layout::strided, {3, 14, 17, 19}},
};

class SixteenBits : public ::testing::TestWithParam<std::tuple<DType, ManyChannels>> {
protected:
    const DType dtype = std::get<0>(GetParam());
    const ManyChannels p = std::get<1>(GetParam());
    const int64_t channels = p.sizes[1];
    const double largest = dtype == DType::float16 ? 65504 : 3.3895313892515355e38;
    const double tiny = dtype == DType::float16 ? 6e-8 : 1e-30;
    Normal normal{21};
    TestTensor x{dtype, p.sizes, p.layout}, dy{dtype, p.sizes, p.layout};

    double value(int64_t c, int64_t i, int64_t last) {
        switch (c % 14) {
        case 1:
            return 1000;
        case 2:
            return normal(100);
        case 3:
            return i == 0 ? 60000 : normal();
        case 4:
            return i == last ? -60000 : normal();
        case 5:
            return i % 2 ? largest : -largest;
        case 6:
            return largest;
        case 7:
            return i % 7 ? normal() : largest;
        case 8:
            return normal(0, tiny);
        case 9:
            return normal() * std::pow(10.0, double(i % 9) - 4);
        case 10:
            return i == last ? 2 : 1;
        case 12:
            return 0;
        case 13:
            return i / 5 % 2 ? tiny : -tiny;
        default:
            return normal();
        }
    }

    void SetUp() override {
        const int64_t last = p.sizes[0] * p.sizes[2] * p.sizes[3] - 1;
        for (int64_t c = 0; c < channels; c++) {
            int64_t i = 0;
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                x.set(n, c, h, w, value(c, i, last));
                dy.set(n, c, h, w, value(c + c / 14 + 1, i++, last));
            });
        }
    }
};

TEST_P(SixteenBits, moments) {
    const auto moments = functional::batch_norm_stats(x);
    for (int64_t c = 0; c < channels; c++) {
        SCOPED_TRACE(c % 14);
        const ChannelOracle s(x, c, kEps);
        expect_bounded(moments.mean[c], bounded_moments_mean(dtype, s));
        expect_bounded(moments.m2[c], bounded_moments_m2(dtype, s));
    }
}

TEST_P(SixteenBits, forward_training) {
    TestTensor y{dtype, p.sizes, p.layout};
    functional::batch_norm_forward(x, {}, {}, {}, {}, true, 0.1, 1e-60, y.view());
    for (int64_t c = 0; c < channels; c++) {
        SCOPED_TRACE(c % 14);
        expect_normalized(x, y, c, ChannelOracle(x, c, 1e-60), 1, 0);
    }
}

TEST_P(SixteenBits, gradient_sums) {
    const auto moments = functional::batch_norm_stats(x);
    TestVector mean{DType::float64, moments.mean};
    TestVector invstd{DType::float64, std::vector<double>(size_t(channels), 1)};
    const auto sums = functional::batch_norm_backward_reduce(dy, x, mean, invstd);
    for (int64_t c = 0; c < channels; c++) {
        SCOPED_TRACE(c % 14);
        const ChannelOracle s(mean[c], 1, moments.count);
        const GradientOracle g(dy, x, c, s);
        expect_bounded(sums.sum_dy[c], g.float64_sum_dy(dtype, s.count));
        expect_bounded(sums.sum_dy_xmu[c], g.float64_sum_dy_xhat(dtype, s.count));
    }
}

INSTANTIATE_TEST_SUITE_P(, SixteenBits,
                         ::testing::Combine(::testing::Values(DType::bfloat16, DType::float16),
                                            ::testing::ValuesIn(many_channels)),
                         [](const auto &info) {
                             return std::string(name_of(std::get<0>(info.param))) + "_" +
                                    std::get<1>(info.param).name;
                         });

class NotFinite : public ::testing::TestWithParam<std::tuple<DType, Layout, double>> {};

TEST_P(NotFinite, stays_in_its_channel) {
    const auto [dtype, layout, value] = GetParam();
    const Shape sizes{3, 19, 9, 11};
    const int64_t bad_channel = 7;
    Normal normal{3};
    TestTensor x(dtype, sizes, layout), dy(dtype, sizes, layout);
    x.fill([&](int64_t) { return normal(); });
    dy.fill([&](int64_t) { return normal(); });
    const DType statistics = statistic_dtype(dtype);

    const auto run = [&](TestTensor &y, TestTensor &dx) {
        TestVector mean(statistics, std::vector<double>(19, 0.5));
        TestVector var(statistics, std::vector<double>(19, 2));
        const auto saved =
            functional::batch_norm_forward(x, {}, {}, mean, var, true, 0.1, kEps, y.view());
        functional::batch_norm_backward(dy, x, {}, saved.mean, saved.invstd, {}, {}, true, kEps, {},
                                        dx.view());
        std::vector<double> all;
        for (int64_t c = 0; c < 19; c++) {
            all.insert(all.end(), {get(saved.mean, c), get(saved.invstd, c), mean[c], var[c]});
        }
        return all;
    };
    TestTensor y(dtype, sizes, layout), dx(dtype, sizes, layout);
    const auto clean = run(y, dx);
    TestTensor bad_y(dtype, sizes, layout), bad_dx(dtype, sizes, layout);
    x.set(1, bad_channel, 4, 5, value);
    const auto dirty = run(bad_y, bad_dx);

    for (int64_t c = 0; c < 19; c++) {
        if (c == bad_channel) {
            EXPECT_TRUE(std::isnan(bad_y.get(0, c, 0, 0)));
            EXPECT_TRUE(std::isnan(dirty[4 * c + 3]));
            // As if the channel's values were added up.
            for (const int mean : {0, 2}) {
                EXPECT_TRUE(std::isnan(value) ? std::isnan(dirty[4 * c + mean])
                                              : dirty[4 * c + mean] == value);
            }
            continue;
        }
        for (int i = 0; i < 4; i++) {
            EXPECT_EQ(clean[4 * c + i], dirty[4 * c + i]) << "statistic " << i << " of " << c;
        }
        int different = 0;
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            different += y.get(n, c, h, w) != bad_y.get(n, c, h, w) ||
                         dx.get(n, c, h, w) != bad_dx.get(n, c, h, w);
        });
        EXPECT_EQ(different, 0) << "in channel " << c;
    }
}

TEST_P(NotFinite, momentum_zero_keeps_running_statistics) {
    const auto [dtype, layout, value] = GetParam();
    TestTensor x(dtype, {2, 5, 3, 3}, layout);
    x.fill([number = value](int64_t) { return number; });
    TestVector mean(statistic_dtype(dtype), {1, -0.0, 3, 1e-40, 5});
    TestVector var(statistic_dtype(dtype), {1, 2, 3, 4, 1e-40});
    const TestVector old_mean = mean, old_var = var;
    functional::batch_norm(x, mean, var, {}, {}, true, 0.0, kEps);
    EXPECT_EQ(mean.bytes(), old_mean.bytes());
    EXPECT_EQ(var.bytes(), old_var.bytes());
}

INSTANTIATE_TEST_SUITE_P(
    , NotFinite,
    ::testing::Combine(::testing::Values(DType::float32, DType::float64, DType::bfloat16,
                                         DType::float16),
                       ::testing::Values(Layout::nchw, Layout::nhwc, Layout::strided),
                       ::testing::Values(std::numeric_limits<double>::quiet_NaN(),
                                         std::numeric_limits<double>::infinity(),
                                         -std::numeric_limits<double>::infinity())),
    [](const auto &info) {
        const double value = std::get<2>(info.param);
        return std::string(name_of(std::get<0>(info.param))) + "_" +
               name_of_layout(std::get<1>(info.param)) +
               (std::isnan(value) ? "_nan"
                : value < 0       ? "_minus_inf"
                                  : "_inf");
    });

// Means of machines, some of them infinite, merge as sums do.
TEST(Merge, infinite_means) {
    const double infinity = std::numeric_limits<double>::infinity();
    const double values[][2] = {{infinity, 1},  {1, infinity},        {-infinity, 1},
                                {1, -infinity}, {infinity, infinity}, {infinity, -infinity}};
    const double means[] = {infinity, infinity, -infinity, -infinity, infinity, std::nan("")};
    TestTensor a(DType::float32, {2, 6, 1, 3}), b(a);
    for (int64_t c = 0; c < 6; c++) {
        a.set(1, c, 0, 1, values[c][0]);
        b.set(1, c, 0, 1, values[c][1]);
    }
    auto merged = functional::batch_norm_stats(a);
    merged.merge(functional::batch_norm_stats(b));
    for (int64_t c = 0; c < 6; c++) {
        EXPECT_TRUE(std::isnan(means[c]) ? std::isnan(merged.mean[c]) : merged.mean[c] == means[c])
            << merged.mean[c] << " of channel " << c;
        EXPECT_TRUE(std::isnan(merged.m2[c]));
    }
}

// float64's means are right up to its largest values; sums of squares beyond its range are infinite, invstd is then 0,
// and y is bias. (An oracle in long double has no larger range everywhere.)
class LargeFloat64 : public ::testing::TestWithParam<std::tuple<Layout, Shape>> {};

TEST_P(LargeFloat64, agrees_in_all_layouts) {
    const auto [layout, sizes] = GetParam();
    const double largest = std::numeric_limits<double>::max();
    struct Channel {
        double even, odd, mean;  // of equally many
    };
    const Channel all[] = {{1e200, 1e200, 1e200},
                           {1e200, -1e200, 0},
                           {3e200, 1e200, 2e200},
                           {largest, largest, largest},
                           {largest, -largest, 0},
                           {largest, -largest / 2, largest / 4},
                           {1, 1, 1}};
    TestTensor x(DType::float64, sizes, layout), y(x);
    TestVector bias(DType::float64, {1, 2, 3, 4, 5, 6, 7});
    TestVector running_mean(DType::float64, std::vector<double>(7, 0)),
        running_var(DType::float64, std::vector<double>(7, 0));
    for (int64_t c = 0; c < 7; c++) {
        int64_t i = 0;
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            x.set(n, c, h, w, i++ % 2 ? all[c].odd : all[c].even);
        });
    }
    const auto saved = functional::batch_norm_forward(x, {}, bias, running_mean, running_var, true,
                                                      1, kEps, y.view());
    for (int64_t c = 0; c < 7; c++) {
        SCOPED_TRACE(c);
        const bool constant = all[c].even == all[c].odd;
        for (const double mean : {get(saved.mean, c), running_mean[c]}) {
            EXPECT_LE(std::fabs(mean - all[c].mean), constant ? 0 : 1e-12 * all[c].even);
        }
        EXPECT_EQ(running_var[c], constant ? 0 : std::numeric_limits<double>::infinity());
        EXPECT_NEAR(get(saved.invstd, c), constant ? 1 / std::sqrt(kEps) : 0, 1e-10);
        int different = 0;
        x.for_each_in_channel(
            [&](int64_t n, int64_t h, int64_t w) { different += y.get(n, c, h, w) != bias[c]; });
        EXPECT_EQ(different, 0);
    }
}

INSTANTIATE_TEST_SUITE_P(
    , LargeFloat64,
    ::testing::Combine(::testing::Values(Layout::nchw, Layout::nhwc, Layout::strided),
                       ::testing::Values(Shape{2, 7, 9, 11}, Shape{6, 7, 1, 1}, Shape{40, 7, 4, 5},
                                         Shape{2, 7, 130, 131})),
    [](const auto &info) {
        return std::string(name_of_layout(std::get<0>(info.param))) + "_" +
               shape_name(std::get<1>(info.param));
    });

// Running statistics of any size normalize without overflow on the way.
TEST(Inference, extreme_running_statistics) {
    const double means[] = {0, 1e30, -3e38, 1e-40}, vars[] = {0, 1e-40, 1, 3e38};
    for (double mean : means) {
        for (double var : vars) {
            TestTensor x(DType::float32, {2, 1, 3, 5}), y(DType::float32, {2, 1, 3, 5});
            Normal normal{5};
            const double spread = std::sqrt(var + kEps);
            x.fill([&](int64_t) { return normal(mean, spread); });
            TestVector m(DType::float32, {mean}), v(DType::float32, {var});
            functional::batch_norm_forward(x, {}, {}, m, v, false, 0.1, kEps, y.view());
            const ChannelOracle s(m[0], 1 / std::sqrt(Real(v[0]) + Real(kEps)), 30);
            expect_normalized(x, y, 0, s, 1, 0);
        }
    }
}

// design.md's bounds of what backward gives and of what running statistics become, where the mean is up to 1e7 times the
// deviation: a saved mean of float32 would put grad_input off by its whole size there.
using FarMean = std::tuple<double, Layout, Shape>;
class FarFromZero : public ::testing::TestWithParam<FarMean> {};

TEST_P(FarFromZero, gradients_and_running_statistics) {
    const auto &[mean_distance, layout, sizes] = GetParam();
    const double distance = mean_distance;
    const int64_t channels = sizes[1];
    const Real u = unit_roundoff(DType::float32), count = Real(sizes[0] * sizes[2] * sizes[3]);
    Normal normal{17};
    TestTensor x(DType::float32, sizes, layout), dy(x), dx(x), y(x);
    x.fill([&](int64_t c) {
        const double deviation = std::pow(10.0, double(c % 5) - 2);
        return normal((c % 2 ? -distance : distance) * deviation, deviation);
    });
    dy.fill([&](int64_t) { return normal(0.25); });
    TestVector weight(DType::float32, normal.values(channels, 1, 0.5));
    TestVector running_mean(DType::float32, std::vector<double>(channels, 3));
    TestVector running_var(DType::float32, std::vector<double>(channels, 5));
    const double eps = 1e-5;
    const auto saved = functional::batch_norm_forward(x, weight, {}, running_mean, running_var,
                                                      true, 1, eps, y.view());
    const auto gradients = functional::batch_norm_backward(dy, x, weight, saved.mean, saved.invstd,
                                                           {}, {}, true, eps, {}, dx.view());
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle s(x, c, eps);
        const GradientOracle sums(dy, x, c, s);
        const Real variance = s.m2 / (count - 1);
        EXPECT_LE(std::fabs(running_mean[c] - s.mean),
                  2 * u * (std::fabs(s.mean) + std::sqrt(variance)));
        EXPECT_LE(std::fabs(running_var[c] - variance), 4 * u * variance);
        EXPECT_LE(std::fabs(get(gradients.grad_bias, c) - sums.sum_dy), 4 * u * sums.sum_abs_dy);
        EXPECT_LE(std::fabs(get(gradients.grad_weight, c) - sums.sum_dy_xhat),
                  4 * u * sums.sum_abs_dy_xhat);
        const Real gain = Real(weight[c]) * s.invstd;
        Real worst = 0;
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            const Real xhat = (Real(x.get(n, c, h, w)) - s.mean) * s.invstd;
            const Real direct = dy.get(n, c, h, w), mean_dy = sums.sum_dy / count,
                       slope = xhat * sums.sum_dy_xhat / count;
            const Real bound = 8 * u * std::fabs(gain) *
                               (std::fabs(direct) + std::fabs(mean_dy) + std::fabs(slope));
            worst = std::fmax(
                worst, std::fabs(dx.get(n, c, h, w) - gain * (direct - mean_dy - slope)) / bound);
        });
        EXPECT_LE(worst, 1) << "grad_input of channel " << c << ", in bounds";
    }
}

INSTANTIATE_TEST_SUITE_P(
    , FarFromZero,
    ::testing::Combine(::testing::Values(0.0, 1.0, 1e3, 1e4, 1e5, 1e6, 1e7),
                       ::testing::Values(Layout::nchw, Layout::nhwc, Layout::strided),
                       ::testing::Values(Shape{4, 3, 5, 5}, Shape{24, 17, 7, 7},
                                         Shape{4, 5, 56, 57})),
    [](const ::testing::TestParamInfo<FarMean> &info) {
        return "mean_" + std::to_string(int64_t(std::get<0>(info.param))) + "_" +
               name_of_layout(std::get<1>(info.param)) + "_" + shape_name(std::get<2>(info.param));
    });

}  // namespace
}  // namespace hbn::test
