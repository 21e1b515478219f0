// ReLU and addition fused into batch normalization: values against the oracle, what passes against y itself,
// exactly, in forward and in backward.
#include "hard_inputs.h"
#include "oracle.h"

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

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

std::vector<DType> dtypes() {
#ifdef HBN_TEST_FLOAT32_ONLY
    return {DType::float32};
#else
    return {DType::float32, DType::float64, DType::bfloat16, DType::float16};
#endif
}

std::vector<Case> cases() {
    // As in conformance_test.cpp: every kernel, and several tiles a channel.
    const Shape shapes[] = {{2, 17, 7, 7},  {24, 17, 7, 7},  {2, 1, 35, 45},
                            {5, 100, 1, 1}, {2, 2048, 1, 3}, {12, 3, 28, 28}};
    std::vector<Case> all;
    for (DType dtype : dtypes()) {
        for (Layout layout : {Layout::nchw, Layout::nhwc, Layout::strided}) {
            for (const Shape &sizes : shapes) {
                all.push_back({dtype, layout, sizes, true});
                all.push_back({dtype, layout, sizes, false});
            }
        }
    }
    return all;
}

template<typename Visit>
void for_each_element(const TestTensor &t, Visit visit) {
    for (int64_t c = 0; c < t.sizes()[1]; c++) {
        t.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) { visit(n, c, h, w); });
    }
}

// A mask in the layout of a tensor, every byte of which is visible.
class Mask {
public:
    explicit Mask(const TestTensor &x)
        : bytes_(x.bytes().size(), 0xa5),
          view_(bytes_.data(), DType::uint8, x.sizes(), x.view().strides) {
    }
    operator TensorView() const {
        return view_;
    }
    operator ConstTensorView() const {
        return view_;
    }
    uint8_t &at(int64_t n, int64_t c, int64_t h, int64_t w) {
        const Shape &s = view_.strides;
        return bytes_[size_t(n * s[0] + c * s[1] + h * s[2] + w * s[3])];
    }
    const std::vector<uint8_t> &bytes() const {
        return bytes_;
    }

private:
    std::vector<uint8_t> bytes_;
    TensorView view_;
};

class Fused : public ::testing::TestWithParam<Case> {
protected:
    const Case &p = GetParam();
    const DType statistics = statistic_dtype(p.dtype);
    const int64_t channels = p.sizes[1];
    Normal normal{uint32_t(channels + p.sizes[3])};
    TestTensor x{p.dtype, p.sizes, p.layout}, dy{p.dtype, p.sizes, p.layout};
    TestTensor residual{p.dtype, p.sizes, p.layout}, y{p.dtype, p.sizes, p.layout};
    TestTensor dx{p.dtype, p.sizes, p.layout}, dr{p.dtype, p.sizes, p.layout};
    Mask mask{x};
    TestVector weight_values{statistics, normal.values(channels, 1, 0.5)};
    TestVector bias_values{statistics, normal.values(channels)};
    TestVector running_mean{statistics, normal.values(channels)};
    TestVector running_var{statistics, normal.values(channels, 4, 0.5)};
    VectorView weight, bias;

    void SetUp() override {
        x.fill([&](int64_t c) { return normal(double(c % 5) - 2, 1 + double(c % 3)); });
        dy.fill([&](int64_t) { return normal(0.25); });
        residual.fill([&](int64_t) { return normal(); });
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
    ChannelOracle running(int64_t c) const {
        return {Real(running_mean[c]), 1 / std::sqrt(Real(running_var[c]) + Real(kEps)),
                Real(p.sizes[0] * p.sizes[2] * p.sizes[3])};
    }
    ChannelOracle saved(const Vector &mean, const Vector &invstd, int64_t c) const {
        return {Real(get(mean, c)), Real(get(invstd, c)),
                Real(p.sizes[0] * p.sizes[2] * p.sizes[3])};
    }

    void expect_activated(int64_t c, const ChannelOracle &s, bool add) const {
        const ReluBounds<> bounds(p.dtype, s, weight_of(c), bias_of(c));
        expect_elements("y", y, c, [&](int64_t n, int64_t h, int64_t w) {
            return bounds(x.get(n, c, h, w), add ? residual.get(n, c, h, w) : 0);
        });
    }

    void expect_mask() {
        for_each_element(x, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
            ASSERT_EQ(int(mask.at(n, c, h, w)), int(y.get(n, c, h, w) > 0));
            mask.at(n, c, h, w) = 0xa5;
        });
        for (uint8_t between : mask.bytes()) {
            ASSERT_EQ(between, 0xa5);
        }
    }

    // grad_output where y is positive: what an operation of its own would hand on.
    TestTensor passed() const {
        TestTensor g(dy);
        for_each_element(g, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
            if (!(y.get(n, c, h, w) > 0)) {
                g.set(n, c, h, w, 0);
            }
        });
        return g;
    }

    template<typename AnyGradients>
    void expect_gradients(const TestTensor &g, const AnyGradients &gradients, int64_t c,
                          const ChannelOracle &s, bool training) const {
        const GradientOracle sums(g, x, c, s);
        expect_grad_input(g, x, dx, c, s, weight_of(c), sums, training);
        sums.expect_parameters(get(gradients.grad_weight, c), get(gradients.grad_bias, c), p.dtype,
                               s.count);
    }
};

TEST_P(Fused, relu_training) {
    const TestVector old_mean = running_mean, old_var = running_var;
    functional::batch_norm_forward(x, weight, bias, running_mean, running_var, true, 0.1, kEps,
                                   dx.view());
    TestVector fused_mean = old_mean, fused_var = old_var;
    const auto s = functional::batch_norm_activation_forward(
        x, {}, weight, bias, fused_mean, fused_var, true, 0.1, kEps, Activation::relu(), y.view());
    for (int64_t c = 0; c < channels; c++) {
        // Two kernels may contract their float64 arithmetic differently.
        EXPECT_NEAR(fused_mean[c], running_mean[c], 4 * unit_roundoff(statistics));
        EXPECT_NEAR(fused_var[c], running_var[c], 4 * unit_roundoff(statistics) * running_var[c]);
    }
    const TestTensor g = passed();
    const auto gradients = functional::batch_norm_activation_backward(
        dy, x, {}, {}, weight, bias, s.mean, s.invstd, {}, {}, true, kEps, Activation::relu(), {},
        dx.view());
    for (int64_t c = 0; c < channels; c++) {
        expect_activated(c, ChannelOracle(x, c, kEps), false);
        expect_gradients(g, gradients, c, saved(s.mean, s.invstd, c), true);
    }
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_TRUE(dx.only_elements_written());
}

TEST_P(Fused, relu_inference) {
    functional::batch_norm_activation_forward(x, {}, weight, bias, running_mean, running_var, false,
                                              0.1, kEps, Activation::relu(), y.view());
    const TestTensor g = passed();
    const auto gradients = functional::batch_norm_activation_backward(
        dy, x, {}, {}, weight, bias, {}, {}, running_mean, running_var, false, kEps,
        Activation::relu(), {}, dx.view());
    for (int64_t c = 0; c < channels; c++) {
        expect_activated(c, running(c), false);
        expect_gradients(g, gradients, c, running(c), false);
    }
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_TRUE(dx.only_elements_written());
}

TEST_P(Fused, add_relu_training) {
    const auto s = functional::batch_norm_activation_forward(
        x, residual, weight, bias, running_mean, running_var, true, 0.1, kEps, Activation::relu(),
        y.view(), mask);
    const TestTensor g = passed();
    const auto gradients = functional::batch_norm_activation_backward(
        dy, x, {}, mask, weight, {}, s.mean, s.invstd, {}, {}, true, kEps, Activation::relu(), {},
        dx.view(), dr.view());
    EXPECT_EQ(dr.bytes(), g.bytes());
    for (int64_t c = 0; c < channels; c++) {
        expect_activated(c, ChannelOracle(x, c, kEps), true);
        expect_gradients(g, gradients, c, saved(s.mean, s.invstd, c), true);
    }
    expect_mask();
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_TRUE(dx.only_elements_written());
}

TEST_P(Fused, add_relu_inference) {
    functional::batch_norm_activation_forward(x, residual, weight, bias, running_mean, running_var,
                                              false, 0.1, kEps, Activation::relu(), dx.view());
    functional::batch_norm_activation_forward(x, residual, weight, bias, running_mean, running_var,
                                              false, 0.1, kEps, Activation::relu(), y.view(), mask);
    EXPECT_EQ(dx.bytes(), y.bytes()) << "the mask changes y";
    const TestTensor g = passed();
    const auto gradients = functional::batch_norm_activation_backward(
        dy, x, {}, mask, weight, {}, {}, {}, running_mean, running_var, false, kEps,
        Activation::relu(), {}, dx.view(), dr.view());
    EXPECT_EQ(dr.bytes(), g.bytes());
    for (int64_t c = 0; c < channels; c++) {
        expect_activated(c, running(c), true);
        expect_gradients(g, gradients, c, running(c), false);
    }
    expect_mask();
}

TEST_P(Fused, in_place) {
    const auto s = functional::batch_norm_activation_forward(x, {}, weight, bias, {}, {}, true, 0.1,
                                                             kEps, Activation::relu(), y.view());
    functional::batch_norm_activation_backward(dy, x, {}, {}, weight, bias, s.mean, s.invstd, {},
                                               {}, true, kEps, Activation::relu(), {}, dx.view());
    functional::batch_norm_activation_backward(dy, x, {}, {}, weight, bias, s.mean, s.invstd, {},
                                               {}, true, kEps, Activation::relu(), {}, dy.view());
    EXPECT_EQ(dy.bytes(), dx.bytes());
    TestTensor copy(x);
    functional::batch_norm_activation_forward(copy, {}, weight, bias, {}, {}, true, 0.1, kEps,
                                              Activation::relu(), copy.view());
    EXPECT_EQ(copy.bytes(), y.bytes());
    functional::batch_norm_activation_forward(x, residual, weight, bias, running_mean, running_var,
                                              false, 0.1, kEps, Activation::relu(), y.view());
    functional::batch_norm_activation_forward(x, residual, weight, bias, running_mean, running_var,
                                              false, 0.1, kEps, Activation::relu(), x.view());
    EXPECT_EQ(x.bytes(), y.bytes());
}

INSTANTIATE_TEST_SUITE_P(, Fused, ::testing::ValuesIn(cases()), case_name);

// ---- what passes, where it is hardest to tell

// Sums of whole numbers are exact: grad_bias tells whether backward let pass what forward did.
void expect_backward_agrees(const TestTensor &x, VectorView weight, VectorView bias,
                            VectorView running_mean, VectorView running_var, bool training,
                            double eps) {
    const DType dtype = x.view().dtype;
    const Shape &sizes = x.sizes();
    TestTensor y(dtype, sizes, x.view().strides), dy(dtype, sizes, x.view().strides);
    const auto s =
        functional::batch_norm_activation_forward(x, {}, weight, bias, running_mean, running_var,
                                                  training, 0, eps, Activation::relu(), y.view());
    int64_t i = 0;
    dy.fill([&](int64_t) { return double(i++ * 7919 % 251) - 100; });
    const auto gradients = functional::batch_norm_activation_backward(
        dy, x, {}, {}, weight, bias, s.mean, s.invstd, running_mean, running_var, training, eps,
        Activation::relu());
    for (int64_t c = 0; c < sizes[1]; c++) {
        double expected = 0;
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            expected += y.get(n, c, h, w) <= 0 ? 0 : dy.get(n, c, h, w);
        });
        EXPECT_EQ(get(gradients.grad_bias, c), expected) << "channel " << c;
    }
}

using HardCase = std::tuple<HardInput, Layout, bool>;
class FusedHard : public ::testing::TestWithParam<HardCase> {};

TEST_P(FusedHard, backward_lets_pass_what_forward_did) {
    const auto &[input, layout, large_parameters] = GetParam();
    HardProblem p(input, layout, large_parameters);
    expect_backward_agrees(p.x, p.weight, p.bias, {}, {}, true, kEps);
}

INSTANTIATE_TEST_SUITE_P(, FusedHard,
                         ::testing::Combine(::testing::ValuesIn(hard_inputs),
                                            ::testing::Values(Layout::nchw, Layout::nhwc,
                                                              Layout::strided),
                                            ::testing::Bool()),
                         [](const ::testing::TestParamInfo<HardCase> &info) {
                             return std::string(std::get<0>(info.param).name) + "_" +
                                    name_of_layout(std::get<1>(info.param)) +
                                    (std::get<2>(info.param) ? "_large" : "");
                         });

class FusedDType : public ::testing::TestWithParam<DType> {
protected:
    const DType dtype = GetParam();
    const DType statistics = statistic_dtype(dtype);
};

// Positive values that y's dtype has no denormal for become 0, and stop the gradient.
TEST_P(FusedDType, values_that_round_to_zero_do_not_pass) {
    TestTensor x(dtype, {4, 3, 8, 9});
    int64_t i = 0;
    x.fill([&](int64_t) { return double(++i % 17 - 8) / 4; });
    const double least = smallest_denormal(dtype);
    TestVector weight(statistics, {least, least, least}), bias(statistics, {0, 0, least / 2});
    TestVector mean(statistics, {0, 0.25, 0}), var(statistics, {1, 1, 1});
    expect_backward_agrees(x, weight, bias, mean, var, false, 0);
    TestTensor y(dtype, {4, 3, 8, 9});
    Mask mask(x);
    TestTensor nothing(dtype, {4, 3, 8, 9});
    nothing.fill([](int64_t) { return 0; });
    functional::batch_norm_activation_forward(x, nothing, weight, bias, mean, var, false, 0, 0,
                                              Activation::relu(), y.view(), mask);
    int zeros = 0;
    for_each_element(x, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
        EXPECT_EQ(int(mask.at(n, c, h, w)), int(y.get(n, c, h, w) > 0));
        zeros += x.get(n, c, h, w) > mean[c] && y.get(n, c, h, w) == 0;
    });
    EXPECT_GT(zeros, 0);
}

TEST_P(FusedDType, nan_passes_and_infinity_is_kept) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const double infinity = std::numeric_limits<double>::infinity();
    const double values[] = {nan, infinity, -infinity, 1, -1, 0};
    TestTensor x(dtype, {3, 2, 5, 6}), y(dtype, {3, 2, 5, 6}), residual(dtype, {3, 2, 5, 6});
    TestTensor dy(dtype, {3, 2, 5, 6}), dx(dtype, {3, 2, 5, 6});
    residual.fill([](int64_t) { return 0; });
    dy.fill([](int64_t) { return 2; });
    int64_t i = 0;
    x.fill([&](int64_t) { return values[i++ % 6]; });
    TestVector mean(statistics, {0, 0}), var(statistics, {1, 1});
    Mask mask(x);
    const auto expect_y = [&] {
        for_each_element(x, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
            const double in = x.get(n, c, h, w), out = y.get(n, c, h, w);
            EXPECT_TRUE(std::isnan(in) ? std::isnan(out) : out == std::fmax(in, 0.0))
                << in << " became " << out;
        });
    };
    functional::batch_norm_activation_forward(x, {}, {}, {}, mean, var, false, 0, 0,
                                              Activation::relu(), y.view());
    expect_y();
    functional::batch_norm_activation_backward(dy, x, {}, {}, {}, {}, {}, {}, mean, var, false, 0,
                                               Activation::relu(), {}, dx.view());
    functional::batch_norm_activation_forward(x, residual, {}, {}, mean, var, false, 0, 0,
                                              Activation::relu(), y.view(), mask);
    expect_y();
    for_each_element(x, [&](int64_t n, int64_t c, int64_t h, int64_t w) {
        const bool passes = !(x.get(n, c, h, w) <= 0);
        EXPECT_EQ(int(mask.at(n, c, h, w)), int(passes));
        EXPECT_EQ(dx.get(n, c, h, w), passes ? 2 : 0);
    });
}

TEST_P(FusedDType, empty_tensors) {
    const TestTensor x(dtype, {0, 3, 4, 5}), y(dtype, {0, 3, 4, 5});
    const auto s = functional::batch_norm_activation_forward(x, x, {}, {}, {}, {}, true, 0.1, kEps,
                                                             Activation::relu());
    EXPECT_EQ(get(s.mean, 2), 0);
    const auto g = functional::batch_norm_activation_backward(
        y, x, {}, s.mask, {}, {}, s.mean, s.invstd, {}, {}, true, kEps, Activation::relu());
    EXPECT_EQ(get(g.grad_bias, 2), 0);
}

INSTANTIATE_TEST_SUITE_P(, FusedDType, ::testing::ValuesIn(dtypes()),
                         [](const ::testing::TestParamInfo<DType> &info) {
                             return std::string(name_of(info.param));
                         });

// ---- threads

std::vector<uint8_t> everything(DType dtype, Layout layout) {
    const Shape sizes{5, 13, 37, 41};
    Normal normal{31};
    TestTensor x(dtype, sizes, layout), dy(x), r(x), y(x), dx(x), dr(x);
    x.fill([&](int64_t c) { return normal(double(c)); });
    dy.fill([&](int64_t) { return normal(); });
    r.fill([&](int64_t) { return normal(); });
    Mask mask(x);
    std::vector<uint8_t> bytes;
    const auto keep = [&](const std::vector<uint8_t> &b) {
        bytes.insert(bytes.end(), b.begin(), b.end());
    };
    const auto s = functional::batch_norm_activation_forward(x, {}, {}, {}, {}, {}, true, 0.1, kEps,
                                                             Activation::relu(), y.view());
    functional::batch_norm_activation_backward(dy, x, {}, {}, {}, {}, s.mean, s.invstd, {}, {},
                                               true, kEps, Activation::relu(), {}, dx.view());
    keep(y.bytes());
    keep(dx.bytes());
    functional::batch_norm_activation_forward(x, r, {}, {}, {}, {}, true, 0.1, kEps,
                                              Activation::relu(), y.view(), mask);
    functional::batch_norm_activation_backward(dy, x, {}, mask, {}, {}, s.mean, s.invstd, {}, {},
                                               true, kEps, Activation::relu(), {}, dx.view(),
                                               dr.view());
    keep(y.bytes());
    keep(mask.bytes());
    keep(dx.bytes());
    keep(dr.bytes());
    return bytes;
}

TEST_P(FusedDType, threads_change_no_bit) {
    for (Layout layout : {Layout::nchw, Layout::nhwc, Layout::strided}) {
        set_num_threads(1);
        const auto expected = everything(dtype, layout);
        for (int threads : {2, 7}) {
            set_num_threads(threads);
            EXPECT_EQ(everything(dtype, layout), expected) << threads << " threads";
        }
    }
    set_num_threads(0);
}

// ---- bad calls

struct Call {
    const Shape sizes{2, 6, 3, 4};
    TestTensor x{DType::float32, sizes}, y{DType::float32, sizes}, dy{DType::float32, sizes};
    TestTensor dx{DType::float32, sizes}, dr{DType::float32, sizes};
    Mask mask_memory{x};
    TestVector mean{DType::float64, std::vector<double>(6, 0.5)}, invstd = mean;
    TestVector narrow{DType::float32, std::vector<double>(6, 0.5)};
    TensorView input = x, residual = dy, output = y, mask = mask_memory, grad_output = dy;
    TensorView grad_input = dx, grad_residual = dr;
    VectorView m = mean, s = invstd;

    Call() {
        x.fill([](int64_t) { return 1; });
        dy.fill([](int64_t) { return 1; });
    }
    std::vector<std::vector<uint8_t>> memory() const {
        return {x.bytes(),  y.bytes(),           dy.bytes(),   dx.bytes(),
                dr.bytes(), mask_memory.bytes(), mean.bytes(), invstd.bytes()};
    }
    void forward() {
        functional::batch_norm_activation_forward(input, residual, {}, {}, {}, {}, true, 0.1, kEps,
                                                  Activation::relu(), output, mask);
    }
    void backward() {
        functional::batch_norm_activation_backward(grad_output, input, {}, mask, {}, {}, m, s, {},
                                                   {}, true, kEps, Activation::relu(), {},
                                                   grad_input, grad_residual);
    }
    void relu_backward() {
        functional::batch_norm_activation_backward(grad_output, input, {}, {}, {}, {}, m, s, {}, {},
                                                   true, kEps, Activation::relu(), {}, grad_input);
    }
};

TensorView resized(TensorView t) {
    t.sizes[2] = 2;
    return t;
}

TensorView without_data(TensorView t) {
    t.data = nullptr;
    return t;
}

TEST(FusedRefuses, with_its_text_and_nothing_written) {
    struct Refusal {
        void (Call::*operation)();
        void (*spoil)(Call &);
        const char *text;
    };
    const Refusal refusals[] = {
        {&Call::forward, [](Call &c) { c.mask.dtype = DType::float32; }, "mask must be uint8"},
        {&Call::forward, [](Call &c) { c.mask = resized(c.mask); },
         "mask should have the shape of x"},
        {&Call::forward, [](Call &c) { c.mask = without_data(c.mask); }, "mask has no data"},
        {&Call::forward, [](Call &c) { c.mask.strides[0] = 0; }, "written-to tensor (mask)"},
        {&Call::forward, [](Call &c) { c.mask.ndim = 3; }, "expected 4D input (got 3D input)"},
        {&Call::forward, [](Call &c) { c.residual = resized(c.residual); },
         "residual should have the shape of x"},
        {&Call::forward, [](Call &c) { c.residual.dtype = DType::float16; },
         "residual should have the dtype of x"},
        {&Call::forward, [](Call &c) { c.output = c.input; }, "input tensor (x)"},
        {&Call::forward, [](Call &c) { c.output = c.residual; }, "input tensor (residual)"},
        {&Call::forward, [](Call &c) { c.mask.data = c.output.data; }, "y and mask"},
        {&Call::backward, [](Call &c) { c.mask.dtype = DType::int64; }, "mask must be uint8"},
        {&Call::backward, [](Call &c) { c.m = c.narrow; }, "expected mean to be float64"},
        {&Call::backward, [](Call &c) { c.s = c.narrow; }, "expected invstd to be float64"},
        {&Call::backward, [](Call &c) { c.m = {}; }, "mean must be defined in training mode"},
        {&Call::backward, [](Call &c) { c.grad_residual = c.grad_output; }, "grad_residual"},
        {&Call::backward, [](Call &c) { c.grad_input = c.grad_output; }, "grad_input"},
        {&Call::backward, [](Call &c) { c.grad_residual = c.grad_input; },
         "grad_input and grad_residual"},
        {&Call::backward, [](Call &c) { c.grad_residual = resized(c.grad_residual); },
         "grad_residual should have the shape of x"},
        {&Call::relu_backward, [](Call &c) { c.m = c.narrow; }, "expected mean to be float64"},
        {&Call::relu_backward, [](Call &c) { c.grad_input = c.input; }, "grad_input"},
    };
    for (const Refusal &refusal : refusals) {
        Call call;
        refusal.spoil(call);
        const auto before = call.memory();
        try {
            (call.*refusal.operation)();
            ADD_FAILURE() << "was not refused: " << refusal.text;
        } catch (const std::invalid_argument &e) {
            EXPECT_NE(std::string(e.what()).find(refusal.text), std::string::npos) << e.what();
        }
        EXPECT_TRUE(call.memory() == before) << "something was written: " << refusal.text;
    }
}

TEST(FusedRefuses, what_the_c_interface_can_leave_out) {
    Call call;
    const auto c = [](const TensorView &v) {
        hbn_tensor t{v.data, hbn_dtype(v.dtype), HBN_CPU, 4, {}, {}};
        std::copy(v.sizes.begin(), v.sizes.end(), t.sizes);
        std::copy(v.strides.begin(), v.strides.end(), t.strides);
        return t;
    };
    const hbn_tensor x = c(call.x), y = c(call.y), dy = c(call.dy), mask = c(call.mask);
    const hbn_tensor dx = c(call.dx);
    const hbn_vector mean{call.m.data, HBN_FLOAT64, 6, 1, HBN_CPU},
        invstd{call.s.data, HBN_FLOAT64, 6, 1, HBN_CPU};
    const auto before = call.memory();
    const auto expect = [&](hbn_status status, const char *text) {
        EXPECT_EQ(status, HBN_INVALID_ARGUMENT);
        EXPECT_STREQ(hbn_last_error(), text);
    };
    const hbn_activation relu{HBN_RELU, 0, 0};
    EXPECT_EQ(hbn_batch_norm_activation_forward(&x, nullptr, nullptr, nullptr, nullptr, nullptr, 1,
                                                0.1, kEps, &relu, &y, &mask, nullptr, nullptr),
              HBN_INVALID_ARGUMENT);
    expect(hbn_batch_norm_activation_forward(&x, &dy, nullptr, nullptr, nullptr, nullptr, 1, 0.1,
                                             kEps, &relu, &y, nullptr, nullptr, nullptr),
           "mask is required");
    expect(hbn_batch_norm_activation_backward(&dy, &x, nullptr, &mask, nullptr, nullptr, &mean,
                                              &invstd, nullptr, nullptr, 1, kEps, &relu, &dx,
                                              nullptr, nullptr, nullptr),
           "grad_residual is required");
    expect(hbn_batch_norm_activation_backward(&dy, &x, nullptr, nullptr, nullptr, nullptr, &mean,
                                              &invstd, nullptr, nullptr, 1, kEps, &relu, nullptr,
                                              nullptr, nullptr, nullptr),
           "grad_input is required");
    EXPECT_TRUE(call.memory() == before);
}

}  // namespace
}  // namespace hbn::test
