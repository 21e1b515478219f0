// Every activation, alone and after an addition, by the functions and by the module, against the composition of plain
// loops over long double.
#include "activations.h"
#include "oracle.h"
#include "runtime/engine/table.h"

#include <hbn/batch_norm_2d.h>

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

Activation of(const ActivationOracle &oracle) {
    const hbn_activation &a = oracle.activation;
    return {a.kind, a.alpha, a.beta};
}

std::vector<DType> dtypes() {
#ifdef HBN_TEST_FLOAT32_ONLY
    return {DType::float32};
#else
    return {DType::float32, DType::float64, DType::bfloat16, DType::float16};
#endif
}

struct Case {
    ActivationOracle function;
    DType dtype;
    Layout layout;
    bool add;
    bool training;
};

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const ActivationOracle &function : activation_oracles()) {
        for (DType dtype : dtypes()) {
            for (Layout layout : {Layout::nchw, Layout::nhwc, Layout::strided}) {
                for (bool add : {false, true}) {
                    for (bool training : {false, true}) {
                        all.push_back({function, dtype, layout, add, training});
                    }
                }
            }
        }
    }
    return all;
}

class Activated : public ::testing::TestWithParam<Case> {
protected:
    const Case &p = GetParam();
    const Activation activation = of(p.function);
    const Shape sizes{6, 5, 7, 9};
    const DType parameters = statistic_dtype(p.dtype);
    Normal normal{23};
    TestTensor x{p.dtype, sizes, p.layout}, residual{p.dtype, sizes, p.layout};
    TestTensor dy{p.dtype, sizes, p.layout}, y{p.dtype, sizes, p.layout};
    TestTensor dx{p.dtype, sizes, p.layout}, dr{p.dtype, sizes, p.layout};
    TestVector weight{parameters, normal.values(5, 2, 0.5)}, bias{parameters, normal.values(5)};
    TestVector mean{parameters, normal.values(5)}, var{parameters, normal.values(5, 4, 0.5)};

    void SetUp() override {
        x.fill([&](int64_t c) { return normal(double(c) - 2, 1 + double(c) / 2); });
        residual.fill([&](int64_t) { return normal(); });
        dy.fill([&](int64_t) { return normal(0.25); });
    }

    ChannelOracle statistics(int64_t c) const {
        return p.training
                   ? ChannelOracle(x, c, kEps)
                   : ChannelOracle(Real(mean[c]), 1 / std::sqrt(Real(var[c]) + Real(kEps)), 378);
    }
    Real z(int64_t n, int64_t c, int64_t h, int64_t w, const ChannelOracle &s) const {
        return (Real(x.get(n, c, h, w)) - s.mean) * s.invstd * Real(weight[c]) + Real(bias[c]) +
               (p.add ? Real(residual.get(n, c, h, w)) : 0);
    }
    // Some roundings to the tensor's dtype, where no kernel fuses the activation, and of what precedes.
    Real roundoff() const {
        return is_16_bit(p.dtype) ? 4 * Real(unit_roundoff(p.dtype))
                                  : 64 * Real(unit_roundoff(p.dtype));
    }

    void expect_y() const {
        for (int64_t c = 0; c < sizes[1]; c++) {
            const ChannelOracle s = statistics(c);
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const Real in = z(n, c, h, w, s),
                           expected = p.function.value(in, p.function.activation);
                ASSERT_LE(std::fabs(y.get(n, c, h, w) - expected),
                          roundoff() * (2 + std::fabs(in) + std::fabs(Real(bias[c]))))
                    << "at " << n << " " << c << " " << h << " " << w;
            });
        }
    }

    template<typename AnyGradients>
    void expect_gradients(const AnyGradients &gradients) const {
        for (int64_t c = 0; c < sizes[1]; c++) {
            const ChannelOracle s = statistics(c);
            const auto g_of = [&](int64_t n, int64_t h, int64_t w) {
                return p.function.derivative(z(n, c, h, w, s), p.function.activation) *
                       Real(dy.get(n, c, h, w));
            };
            Real sum = 0, sum_xhat = 0, magnitude = 0, magnitude_xhat = 0;
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const Real g = g_of(n, h, w), xhat = (x.get(n, c, h, w) - s.mean) * s.invstd;
                sum += g;
                sum_xhat += g * xhat;
                magnitude += std::fabs(Real(dy.get(n, c, h, w)));
                magnitude_xhat += std::fabs(Real(dy.get(n, c, h, w)) * xhat);
            });
            EXPECT_LE(std::fabs(get(gradients.grad_bias, c) - sum), roundoff() * magnitude);
            EXPECT_LE(std::fabs(get(gradients.grad_weight, c) - sum_xhat),
                      roundoff() * magnitude_xhat);
            const Real gain = Real(weight[c]) * s.invstd;
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                const Real g = g_of(n, h, w), xhat = (x.get(n, c, h, w) - s.mean) * s.invstd;
                const Real batch = p.training ? sum / s.count + xhat * sum_xhat / s.count : Real(0);
                const Real size = 1 + std::fabs(Real(dy.get(n, c, h, w))) +
                                  (magnitude + std::fabs(xhat) * magnitude_xhat) / s.count;
                ASSERT_LE(std::fabs(dx.get(n, c, h, w) - gain * (g - batch)),
                          roundoff() * std::fabs(gain) * size)
                    << "at " << n << " " << c << " " << h << " " << w;
                if (p.add) {
                    ASSERT_LE(std::fabs(dr.get(n, c, h, w) - g),
                              roundoff() * (1 + std::fabs(Real(dy.get(n, c, h, w)))));
                }
            });
        }
    }

    BatchNorm2d module() {
        BatchNorm2dOptions options;
        options.activation = activation;
        options.dtype = parameters;
        BatchNorm2d bn(5, options);
        ConstStateDict state;
        for (auto &[name, values] :
             {std::pair("weight", &weight), std::pair("bias", &bias),
              std::pair("running_mean", &mean), std::pair("running_var", &var)}) {
            state[name] = {values->bytes().data(), parameters, {5}};
        }
        bn.load_state_dict(state);
        bn.train(p.training);
        return bn;
    }
};

TEST_P(Activated, as_functions) {
    std::optional<ConstTensorView> added;
    if (p.add) {
        added = residual;
    }
    const auto saved = functional::batch_norm_activation_forward(
        x, added, weight, bias, mean, var, p.training, 0, kEps, activation, y.view());
    EXPECT_TRUE(saved.y.empty());
    expect_y();
    EXPECT_TRUE(y.only_elements_written());
    const bool relu_after_addition = p.add && activation.kind == HBN_RELU;
    EXPECT_EQ(saved.mask.empty(), !(relu_after_addition && p.training));
    for (const Vector *v : {&saved.mean, &saved.invstd}) {
        EXPECT_EQ(bool(*v), p.training);
        EXPECT_TRUE(!*v || v->view().dtype == DType::float64);
    }

    Tensor mask = Tensor::like(x, DType::uint8);
    std::optional<ConstTensorView> given_mask;
    if (relu_after_addition) {
        const TestTensor again(y);
        functional::batch_norm_activation_forward(x, added, weight, bias, mean, var, p.training, 0,
                                                  kEps, activation, y.view(), mask);
        EXPECT_EQ(again.bytes(), y.bytes()) << "a mask changes y";
        given_mask = mask;
    }
    std::optional<TensorView> residual_out;
    if (p.add) {
        residual_out = dr;
    }
    const auto gradients = functional::batch_norm_activation_backward(
        dy, x, relu_after_addition ? std::nullopt : added, given_mask, weight, bias, saved.mean,
        saved.invstd, mean, var, p.training, kEps, activation, {}, dx.view(), residual_out);
    expect_gradients(gradients);
    EXPECT_TRUE(dx.only_elements_written());
    EXPECT_TRUE(dr.only_elements_written());
    EXPECT_TRUE(gradients.grad_input.empty());
    EXPECT_TRUE(gradients.grad_residual.empty());
}

TEST_P(Activated, of_a_module) {
    BatchNorm2d bn = module();
    functional::ActivationGradients gradients;
    if (p.add) {
        bn.forward_add(x, residual, y);
        std::optional<ConstTensorView> again;
        if (!(activation.kind == HBN_RELU && p.training)) {
            EXPECT_THROW(bn.backward_add(dy, x), InvalidArgument) << "without the residual";
            again = residual;
        }
        gradients = bn.backward_add(dy, x, again, {}, dx.view(), dr.view());
        const BatchNorm2d copy = bn.clone();
    } else {
        bn.forward(x, y);
        functional::Gradients plain = bn.backward(dy, x, {}, dx);
        gradients.grad_weight = std::move(plain.grad_weight);
        gradients.grad_bias = std::move(plain.grad_bias);
    }
    expect_y();
    expect_gradients(gradients);
    EXPECT_EQ(bn.num_batches_tracked(), p.training);
    // What is returned is the same.
    bn.train(p.training);
    const Tensor returned = p.add ? bn.forward_add(x, residual) : bn.forward(x);
    const auto element = [&](int64_t n, int64_t c, int64_t h, int64_t w) {
        const Shape &s = returned.view().strides;
        return load(p.dtype, returned.data<char>() + (n * s[0] + c * s[1] + h * s[2] + w * s[3]) *
                                                         int64_t(size_of(p.dtype)));
    };
    if (p.training) {
        for (int64_t c = 0; c < sizes[1]; c++) {
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                ASSERT_EQ(element(n, c, h, w), y.get(n, c, h, w));
            });
        }
    }
}

TEST_P(Activated, only_the_gradients_asked_for) {
    BatchNorm2d bn = module();
    const auto before = dx.bytes();
    const functional::GradMask only_bias{false, false, true};
    if (p.add) {
        bn.forward_add(x, residual, y);
        const auto gradients = bn.backward_add(dy, x,
                                               activation.kind == HBN_RELU && p.training
                                                   ? std::optional<ConstTensorView>()
                                                   : std::optional<ConstTensorView>(residual),
                                               only_bias, dx.view(), dr.view());
        EXPECT_TRUE(gradients.grad_input.empty());
        EXPECT_FALSE(gradients.grad_weight);
        EXPECT_TRUE(gradients.grad_bias);
    } else {
        bn.forward(x, y);
        const auto gradients = bn.backward(dy, x, only_bias, dx);
        EXPECT_TRUE(gradients.grad_input.empty());
        EXPECT_FALSE(gradients.grad_weight);
        EXPECT_TRUE(gradients.grad_bias);
    }
    EXPECT_EQ(dx.bytes(), before) << "grad_input was written";
}

TEST_P(Activated, inference_of_const_statistics) {
    if (p.training) {
        return;
    }
    const TestVector &const_mean = mean, &const_var = var;
    std::optional<ConstTensorView> added;
    if (p.add) {
        added = residual;
    }
    functional::batch_norm_inference(x, weight, bias, const_mean, const_var, kEps, activation,
                                     added, y.view());
    expect_y();
    const Tensor returned = functional::batch_norm_inference(x, weight, bias, const_mean, const_var,
                                                             kEps, activation, added);
    EXPECT_EQ(returned.view().sizes, sizes);
}

INSTANTIATE_TEST_SUITE_P(, Activated, ::testing::ValuesIn(cases()), [](const auto &info) {
    const Case &p = info.param;
    return p.function.name + "_" + name_of(p.dtype) + "_" + name_of_layout(p.layout) +
           (p.add ? "_add" : "") + (p.training ? "_training" : "_inference");
});

TEST(ModuleMask, follows_the_x_of_each_forward) {
    BatchNorm2dOptions options;
    options.activation = Activation::relu();
    BatchNorm2d bn(3, options);
    Normal normal{5};
    for (const auto &[sizes, layout] :
         {std::pair(Shape{2, 3, 4, 5}, Layout::nchw), std::pair(Shape{2, 3, 4, 5}, Layout::nhwc),
          std::pair(Shape{4, 3, 2, 5}, Layout::nchw), std::pair(Shape{4, 3, 2, 5}, Layout::nchw)}) {
        TestTensor x(DType::float32, sizes, layout), r(x), dy(x), dr(x), dx(x);
        x.fill([&](int64_t) { return normal(); });
        r.fill([&](int64_t) { return normal(); });
        dy.fill([&](int64_t) { return normal(); });
        TestTensor y(x);
        bn.forward_add(x, r, y);
        BatchNorm2d copy = bn.clone();
        for (BatchNorm2d *module : {&bn, &copy}) {
            module->backward_add(dy, x, {}, {}, dx.view(), dr.view());
            for (int64_t c = 0; c < 3; c++) {
                x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                    EXPECT_EQ(dr.get(n, c, h, w), y.get(n, c, h, w) > 0 ? dy.get(n, c, h, w) : 0);
                });
            }
        }
    }
}

// A residual of another shape, an activation that is none, limits the wrong way round: nothing is written or counted.
TEST(ActivationRefuses, with_nothing_written) {
    TestTensor x(DType::float32, {2, 3, 4, 5}), y(x), other(DType::float32, {2, 3, 4, 4});
    x.fill([](int64_t c) { return double(c); });
    const auto before = y.bytes();
    for (const Activation &activation :
         {Activation::clip(2, 1), Activation{hbn_activation_kind(internal::kActivations), 0, 0}}) {
        EXPECT_THROW(functional::batch_norm_activation_forward(x, {}, {}, {}, {}, {}, true, 0.1,
                                                               kEps, activation, y.view()),
                     InvalidArgument);
        EXPECT_NE(activation.repr(), "");
        BatchNorm2dOptions options;
        options.activation = activation;
        BatchNorm2d bn(3, options);
        EXPECT_THROW(bn.forward(x, y), InvalidArgument);
        EXPECT_EQ(bn.num_batches_tracked(), 0);
    }
    for (const ActivationOracle &function : activation_oracles()) {
        BatchNorm2dOptions options;
        options.activation = of(function);
        BatchNorm2d bn(3, options);
        EXPECT_THROW(bn.forward_add(x, other, y), InvalidArgument) << function.name;
        EXPECT_EQ(bn.num_batches_tracked(), 0);
        EXPECT_EQ(get(bn.running_var(), 1), 1);
        if (function.activation.kind != HBN_RELU) {
            const Tensor mask = Tensor::like(x, DType::uint8);
            EXPECT_THROW(functional::batch_norm_activation_forward(
                             x, x, {}, {}, {}, {}, true, 0.1, kEps, of(function), y.view(), mask),
                         InvalidArgument)
                << function.name << " has no mask";
        }
    }
    EXPECT_EQ(y.bytes(), before);
}

// What belongs to an addition is given exactly where there was one.
TEST(ActivationRefuses, gradients_of_an_addition_that_was_none) {
    TestTensor x(DType::float32, {2, 3, 4, 5}), dx(x), dr(x), small(DType::float32, {2, 3, 4, 4});
    x.fill([](int64_t c) { return double(c); });
    const TestVector statistics(DType::float64, {1, 2, 3});
    const Tensor mask_memory = Tensor::like(x, DType::uint8);
    std::memset(mask_memory.view().data, 1, 120);
    const std::vector<uint8_t> before[] = {dx.bytes(), dr.bytes()};
    const std::optional<ConstTensorView> absent, residual(x), mask(mask_memory), other(small);
    const auto refused = [&](const Activation &activation,
                             const std::optional<ConstTensorView> &given_residual,
                             const std::optional<ConstTensorView> &given_mask,
                             const std::optional<TensorView> &residual_out) {
        EXPECT_THROW(functional::batch_norm_activation_backward(
                         x, x, given_residual, given_mask, {}, {}, statistics, statistics, {}, {},
                         true, kEps, activation, {}, dx.view(), residual_out),
                     InvalidArgument)
            << activation.repr();
    };
    for (const ActivationOracle &function : activation_oracles()) {
        if (function.activation.kind != HBN_IDENTITY) {  // whose derivative needs no residual
            refused(of(function), absent, absent, dr.view());
        }
        refused(of(function), other, absent, dr.view());
        if (function.activation.kind == HBN_RELU) {
            refused(of(function), residual, absent, dr.view());
            refused(of(function), absent, other, dr.view());
        } else {
            refused(of(function), absent, mask, dr.view());
        }
    }
    EXPECT_EQ(dx.bytes(), before[0]);
    EXPECT_EQ(dr.bytes(), before[1]);
}

}  // namespace
}  // namespace hbn::test
