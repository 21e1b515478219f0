// Every activation, alone and after an addition, forward and backward, by batch and by running statistics, in every
// dtype and layout.
#include "activations.h"
#include "oracle.h"

#include "runtime/engine/table.h"
#include "runtime/internal.h"

#include <set>

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

struct Case {
    DType dtype;
    Layout layout;
    Shape sizes;
    ActivationOracle oracle;
    // Whether x and the residual are crops of NHWC tensors, and copied for kernels; in pieces of so many bytes, if not 0.
    bool crops = false;
    int64_t piece_bytes = 0;

    Shape input_strides() const {
        return crops ? strides_of({sizes[0], sizes[1], sizes[2] + 2, sizes[3] + 3}, Layout::nhwc)
                     : strides_of(sizes, layout);
    }
};

std::string case_name(const ::testing::TestParamInfo<Case> &info) {
    const Case &p = info.param;
    return p.oracle.name + "_" + name_of(p.dtype) + "_" + name_of_layout(p.layout) +
           (p.crops ? "_crop_" : "_") + (p.piece_bytes ? "pieces_" : "") + shape_name(p.sizes);
}

void PrintTo(const Case &p, std::ostream *out) {
    *out << p.oracle.name << " " << name_of(p.dtype) << " " << shape_name(p.sizes);
}

// Limits to a crop's copies, 0 for none: a test for each. Devices have no copies, and under qemu some will do.
std::vector<int64_t> most_copied_bytes([[maybe_unused]] DType dtype) {
#if defined(HBN_TEST_FLOAT32_ONLY)
    return {};
#elif defined(HBN_TEST_EMULATED)
    return dtype == DType::float32 ? std::vector<int64_t>{8192} : std::vector<int64_t>{};
#else
    return {0, 8192};
#endif
}

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const ActivationOracle &oracle : activation_oracles()) {
        for (DType dtype : {DType::float32, DType::float64, DType::bfloat16, DType::float16}) {
#ifdef HBN_TEST_FLOAT32_ONLY
            if (dtype != DType::float32) {
                continue;
            }
#endif
            for (Layout layout : {Layout::nchw, Layout::nhwc, Layout::strided}) {
                for (const Shape &sizes :
                     {Shape{2, 17, 7, 7}, Shape{2, 3, 35, 45}, Shape{5, 100, 1, 1}}) {
#ifdef HBN_TEST_EMULATED
                    // The largest takes most of the time.
                    if (sizes[2] == 35 && dtype != DType::float32) {
                        continue;
                    }
#endif
                    all.push_back({dtype, layout, sizes, oracle});
                }
            }
            for (const Shape &sizes : {Shape{3, 40, 9, 9}, Shape{2, 3, 35, 45}}) {
                for (const int64_t piece_bytes : most_copied_bytes(dtype)) {
                    all.push_back({dtype, Layout::nhwc, sizes, oracle, true, piece_bytes});
                    // In NCHW's order, where blocks are of some channels.
                    all.push_back({dtype, Layout::nchw, sizes, oracle, true, piece_bytes});
                }
            }
        }
    }
    return all;
}

hbn_tensor c_tensor(const TensorView &v) {
    hbn_tensor t{};
    t.data = v.data;
    t.dtype = hbn_dtype(v.dtype);
    t.ndim = 4;
    std::copy(v.sizes.begin(), v.sizes.end(), t.sizes);
    std::copy(v.strides.begin(), v.strides.end(), t.strides);
    return t;
}

hbn_vector c_vector(TestVector &v) {
    const VectorView view = v.view();
    hbn_vector c{};
    c.data = view.data;
    c.dtype = hbn_dtype(view.dtype);
    c.size = view.size;
    c.stride = 1;
    return c;
}

class Activations : public ::testing::TestWithParam<Case> {
protected:
    const Case &p = GetParam();
    const hbn_activation &activation = p.oracle.activation;
    const DType parameters = statistic_dtype(p.dtype);
    const int64_t channels = p.sizes[1];
    const Real count = Real(p.sizes[0] * p.sizes[2] * p.sizes[3]);
    Normal normal{uint32_t(channels + p.sizes[3])};
    TestTensor x{p.dtype, p.sizes, p.input_strides()}, dy{p.dtype, p.sizes, p.layout};
    TestTensor residual{p.dtype, p.sizes, p.input_strides()}, y{p.dtype, p.sizes, p.layout};
    TestTensor dx{p.dtype, p.sizes, p.layout}, dr{p.dtype, p.sizes, p.layout};
    std::vector<uint8_t> mask_bytes = std::vector<uint8_t>(x.bytes().size(), 0xa5);
    TensorView mask{mask_bytes.data(), DType::uint8, p.sizes, x.view().strides};
    TestVector weight{parameters, normal.values(channels, 1, 0.5)};
    TestVector bias{parameters, normal.values(channels)};
    TestVector running_mean{parameters, normal.values(channels)};
    TestVector running_var{parameters, normal.values(channels, 4, 0.5)};
    TestVector mean{DType::float64, std::vector<double>(channels)};
    TestVector invstd{DType::float64, std::vector<double>(channels)};
    TestVector grad_weight{parameters, std::vector<double>(channels)};
    TestVector grad_bias{parameters, std::vector<double>(channels)};
    bool training = true, adds = false;

    void SetUp() override {
        internal::set_max_staged_bytes(p.piece_bytes);
        x.fill([&](int64_t c) { return normal(double(c % 5) - 2, 1 + double(c % 3)); });
        dy.fill([&](int64_t) { return normal(0.25); });
        residual.fill([&](int64_t) { return 2 * normal(); });
    }

    void TearDown() override {
        internal::set_max_staged_bytes(0);
    }

    bool has_mask() const {
        return adds && activation.kind == HBN_RELU;
    }

    hbn_status forward() {
        return forward(x, y);
    }
    hbn_status forward(const TestTensor &from, const TestTensor &to) {
        const hbn_tensor cx = c_tensor(from), cr = c_tensor(residual), cy = c_tensor(to),
                         cm = c_tensor(mask);
        const hbn_vector w = c_vector(weight), b = c_vector(bias), rm = c_vector(running_mean),
                         rv = c_vector(running_var), m = c_vector(mean), s = c_vector(invstd);
        return hbn_batch_norm_activation_forward(&cx, adds ? &cr : nullptr, &w, &b, &rm, &rv,
                                                 training, 0.0, kEps, &activation, &cy,
                                                 has_mask() ? &cm : nullptr, &m, &s);
    }

    hbn_status backward() {
        return backward(dy, dx);
    }
    hbn_status backward(const TestTensor &from, const TestTensor &to) {
        const hbn_tensor cdy = c_tensor(from), cx = c_tensor(x), cr = c_tensor(residual),
                         cm = c_tensor(mask), cdx = c_tensor(to), cdr = c_tensor(dr);
        const hbn_vector w = c_vector(weight), b = c_vector(bias), rm = c_vector(running_mean),
                         rv = c_vector(running_var), m = c_vector(mean), s = c_vector(invstd),
                         gw = c_vector(grad_weight), gb = c_vector(grad_bias);
        return hbn_batch_norm_activation_backward(
            &cdy, &cx, adds && !has_mask() ? &cr : nullptr, has_mask() ? &cm : nullptr, &w, &b, &m,
            &s, &rm, &rv, training, kEps, &activation, &cdx, adds ? &cdr : nullptr, &gw, &gb);
    }

    ChannelOracle statistics(int64_t c) const {
        return training ? ChannelOracle(Real(mean[c]), Real(invstd[c]), count)
                        : ChannelOracle(Real(running_mean[c]),
                                        1 / std::sqrt(Real(running_var[c]) + Real(kEps)), count);
    }

    // z + residual at an element, and what a kernel's may be off by: oracle.h's bound of the normalized value, and the
    // addition's rounding.
    struct Argument {
        Real value, error;
    };
    Argument argument(const ChannelOracle &s, int64_t n, int64_t c, int64_t h, int64_t w) const {
        const Real r = adds ? Real(residual.get(n, c, h, w)) : 0;
        const Real scaled = (Real(x.get(n, c, h, w)) - s.mean) * s.invstd * Real(weight[c]);
        const Real size =
            std::fmax(Real(1), std::fabs(scaled) + std::fabs(Real(bias[c])) + std::fabs(r));
        const Real spread = 1 + std::fabs(s.mean) * s.invstd;
        return {scaled + Real(bias[c]) + r,
                (9 * unit_roundoff(parameters) + sum_error(p.dtype, s.count) * spread) * size};
    }

    // Of a result in the tensors' dtype.
    Real rounding(Real value) const {
        return is_16_bit(p.dtype) ? unit_roundoff(p.dtype) * std::fabs(value) * 1.01 +
                                        Real(smallest_denormal(p.dtype))
                                  : 0;
    }

    void expect_forward() {
        expect_forward(y);
    }
    void expect_forward(const TestTensor &y) {
        for (int64_t c = 0; c < channels; c++) {
            const ChannelOracle s = statistics(c);
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const Argument z = argument(s, n, c, h, w);
                const Real expected = p.oracle.value(z.value, activation);
                // Exponentials and the few operations after them: 8 roundoffs.
                const Real bound = p.oracle.slope * z.error +
                                   8 * unit_roundoff(parameters) * std::fabs(expected) +
                                   rounding(expected);
                ASSERT_LE(std::fabs(y.get(n, c, h, w) - expected), bound)
                    << "at " << n << " " << c << " " << h << " " << w << ", z is "
                    << double(z.value);
            });
        }
        EXPECT_TRUE(y.only_elements_written());
    }

    // The residual's gradient is dy * derivative; where there is none, kernels are the same as with a residual of 0.
    void expect_grad_residual() {
        for (int64_t c = 0; c < channels; c++) {
            const ChannelOracle s = statistics(c);
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const Argument z = argument(s, n, c, h, w);
                for (const double jump : p.oracle.jumps) {
                    if (std::fabs(z.value - jump) <= z.error) {
                        return;
                    }
                }
                const Real derivative = p.oracle.derivative(z.value, activation);
                const Real g = dy.get(n, c, h, w), expected = g * derivative;
                const Real bound =
                    std::fabs(g) * (p.oracle.curvature * z.error +
                                    16 * unit_roundoff(parameters) *
                                        (std::fabs(derivative) + p.oracle.curvature)) +
                    rounding(expected);
                ASSERT_LE(std::fabs(dr.get(n, c, h, w) - expected), bound)
                    << "at " << n << " " << c << " " << h << " " << w << ", z is "
                    << double(z.value);
            });
        }
        EXPECT_TRUE(dr.only_elements_written());
    }

    void expect_gradients_from(const TestTensor &g) {
        for (int64_t c = 0; c < channels; c++) {
            const ChannelOracle s = statistics(c);
            const GradientOracle sums(g, x, c, s);
            expect_grad_input(g, x, dx, c, s, Real(weight[c]), sums, training);
            sums.expect_parameters(grad_weight[c], grad_bias[c], p.dtype, count);
        }
        EXPECT_TRUE(dx.only_elements_written());
    }
};

TEST_P(Activations, after_an_addition) {
    adds = true;
    for (const bool mode : {true, false}) {
        training = mode;
        ASSERT_EQ(forward(), HBN_OK) << hbn_last_error();
        expect_forward();
        ASSERT_EQ(backward(), HBN_OK) << hbn_last_error();
        expect_grad_residual();
        expect_gradients_from(dr);
    }
}

TEST_P(Activations, alone) {
    for (const bool mode : {true, false}) {
        training = mode;
        adds = false;
        ASSERT_EQ(forward(), HBN_OK) << hbn_last_error();
        expect_forward();
        ASSERT_EQ(backward(), HBN_OK) << hbn_last_error();
        const std::vector<uint8_t> alone = dx.bytes();
        // An addition of nothing changes nothing.
        residual.fill([](int64_t) { return 0; });
        adds = true;
        ASSERT_EQ(forward(), HBN_OK) << hbn_last_error();
        ASSERT_EQ(backward(), HBN_OK) << hbn_last_error();
        expect_grad_residual();
        expect_gradients_from(dr);
        // Copied tensors are cut differently where there is a residual.
        if (activation.kind != HBN_RELU && !p.crops) {
            EXPECT_TRUE(alone == dx.bytes() || activation.kind == HBN_IDENTITY);
        }
    }
}

TEST_P(Activations, in_place) {
    for (const bool mode : {true, false}) {
        training = mode;
        const TestTensor in_x = x, in_dy = dy;
        ASSERT_EQ(forward(in_x, in_x), HBN_OK) << hbn_last_error();
        expect_forward(in_x);
        ASSERT_EQ(backward(), HBN_OK) << hbn_last_error();
        ASSERT_EQ(backward(in_dy, in_dy), HBN_OK) << hbn_last_error();
        if (!p.crops) {
            EXPECT_TRUE(in_dy.bytes() == dx.bytes());
        }
        for (int64_t c = 0; c < channels; c++) {
            double largest = 0;
            dy.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                largest = std::fmax(largest, std::fabs(dx.get(n, c, h, w)));
            });
            dy.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                ASSERT_NEAR(in_dy.get(n, c, h, w), dx.get(n, c, h, w),
                            4 * unit_roundoff(p.dtype) * largest);
            });
        }
        EXPECT_TRUE(in_dy.only_elements_written());
    }
}

// Tensors beyond a kernel's reach are cut into pieces, to which no fused kernel applies.
TEST_P(Activations, alone_in_pieces) {
    for (const bool mode : {true, false}) {
        training = mode;
        ASSERT_EQ(forward(), HBN_OK) << hbn_last_error();
        ASSERT_EQ(backward(), HBN_OK) << hbn_last_error();
        const TestTensor whole = dx;
        internal::set_max_elements_per_kernel(p.crops ? 4999 : 97);
        const hbn_status forward_status = forward();
        const hbn_status backward_status = backward();
        internal::set_max_elements_per_kernel(0);
        ASSERT_EQ(forward_status, HBN_OK) << hbn_last_error();
        ASSERT_EQ(backward_status, HBN_OK) << hbn_last_error();
        expect_forward();
        if (activation.kind != HBN_RELU) {
            continue;  // of others the activation's gradient is rounded between operations
        }
        for (int64_t c = 0; c < channels; c++) {
            dy.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const double expected = whole.get(n, c, h, w);
                ASSERT_NEAR(dx.get(n, c, h, w), expected,
                            256 * unit_roundoff(p.dtype) * (1 + std::fabs(expected)));
            });
        }
    }
}

TEST_P(Activations, in_pieces) {
    adds = true;
    for (const bool mode : {true, false}) {
        training = mode;
        internal::set_max_elements_per_kernel(97);
        const hbn_status forward_status = forward();
        const hbn_status backward_status = backward();
        internal::set_max_elements_per_kernel(0);
        ASSERT_EQ(forward_status, HBN_OK) << hbn_last_error();
        ASSERT_EQ(backward_status, HBN_OK) << hbn_last_error();
        expect_forward();
        expect_grad_residual();
        expect_gradients_from(dr);
    }
}

INSTANTIATE_TEST_SUITE_P(, Activations, ::testing::ValuesIn(cases()), case_name);

// z is x itself: mean 0, variance 1, eps 0.
TEST(ActivationValues, all_have_an_oracle) {
    std::set<int> kinds;
    for (const ActivationOracle &oracle : activation_oracles()) {
        kinds.insert(oracle.activation.kind);
    }
    EXPECT_EQ(int(kinds.size()), internal::kActivations);
}

TEST(ActivationValues, are_those_of_the_formula_at_special_values) {
    const double infinity = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double values[] = {0,    -0.0, 1,     -1,   3,     -3,       6,         100,
                             -100, 1000, -1000, 1e30, -1e30, infinity, -infinity, nan};
    constexpr int64_t size = int64_t(sizeof(values) / sizeof(*values));
    for (const ActivationOracle &oracle : activation_oracles()) {
        for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16}) {
#ifdef HBN_TEST_FLOAT32_ONLY
            if (dtype != DType::float32) {
                continue;
            }
#endif
            TestTensor x(dtype, {1, 1, 1, size}), y(dtype, {1, 1, 1, size});
            TestVector mean(statistic_dtype(dtype), {0}), var(statistic_dtype(dtype), {1});
            int64_t i = 0;
            x.fill([&](int64_t) { return values[i++]; });
            const hbn_tensor cx = c_tensor(x), cy = c_tensor(y);
            const hbn_vector m = c_vector(mean), v = c_vector(var);
            ASSERT_EQ(hbn_batch_norm_activation_forward(&cx, nullptr, nullptr, nullptr, &m, &v, 0,
                                                        0, 0, &oracle.activation, &cy, nullptr,
                                                        nullptr, nullptr),
                      HBN_OK)
                << hbn_last_error();
            for (int64_t w = 0; w < size; w++) {
                const double z = x.get(0, 0, 0, w), actual = y.get(0, 0, 0, w);
                // As PyTorch's formula: z / (1 + exp(-z)) of -infinity is -infinity / infinity, and a hard swish's 0 *
                // -infinity is no number either.
                if (std::isnan(z) || std::isnan(oracle.value(z, oracle.activation))) {
                    EXPECT_TRUE(std::isnan(actual)) << oracle.name << " of " << z << ": " << actual;
                    continue;
                }
                const double expected = round_to(dtype, double(oracle.value(z, oracle.activation)));
                const double bound =
                    (16 * unit_roundoff(statistic_dtype(dtype)) + 2 * unit_roundoff(dtype)) *
                        std::fabs(expected) +
                    1e-30;
                EXPECT_TRUE(actual == expected || std::fabs(actual - expected) <= bound)
                    << oracle.name << " of " << z << " in " << name_of(dtype) << " is " << actual
                    << ", not " << expected;
            }
        }
    }
}

}  // namespace
}  // namespace hbn::test
