// Bad calls: each gives its text, and leaves every byte it could have written as it was.
#include "oracle.h"

#include <hbn/batch_norm_2d.h>

namespace hbn::test {
namespace {

constexpr int64_t kChannels = 6;

// A call that is right until a case spoils it.
struct Call {
    TestTensor x{DType::float32, {2, kChannels, 3, 4}}, y{DType::float32, {2, kChannels, 3, 4}};
    TestTensor y2{DType::float32, {2, kChannels, 3, 4}};
    TestTensor dy{DType::float32, {2, kChannels, 3, 4}};
    TestVector weight{DType::float32, std::vector<double>(kChannels, 1)};
    TestVector bias{DType::float32, std::vector<double>(kChannels, 0)};
    TestVector mean{DType::float32, std::vector<double>(kChannels, 0.5)};
    TestVector var{DType::float32, std::vector<double>(kChannels, 2)};
    TestVector saved_mean{DType::float64, std::vector<double>(kChannels, 0.5)};
    TestVector saved_invstd{DType::float64, std::vector<double>(kChannels, 0.7)};
    TensorView input = x, output = y, output2 = y2, grad_output = dy;
    VectorView w = weight, b = bias, m = mean, v = var, sm = saved_mean, si = saved_invstd;
    bool training = true;
    double momentum = 0.1, eps = 1e-5;

    Call() {
        Normal normal{1};
        x.fill([&](int64_t) { return normal(); });
        dy.fill([&](int64_t) { return normal(); });
    }
    std::vector<std::vector<uint8_t>> memory() const {
        return {x.bytes(),    y.bytes(),    y2.bytes(),  dy.bytes(),         weight.bytes(),
                bias.bytes(), mean.bytes(), var.bytes(), saved_mean.bytes(), saved_invstd.bytes()};
    }
    void forward() {
        functional::batch_norm_forward(input, w, b, m, v, training, momentum, eps, output);
    }
    void backward() {
        functional::batch_norm_backward(grad_output, input, w, sm, si, m, v, training, eps, {},
                                        output);
    }
    // grad_output is the tangent, or what reached grad_input.
    void jvp() {
        functional::batch_norm_jvp(grad_output, input, w, w, b, sm, si, m, v, training, eps,
                                   output);
    }
    void double_backward() {
        functional::batch_norm_double_backward(grad_output, w, b, input, input, w, sm, si, m, v,
                                               training, eps, output, output2);
    }
};

struct Refusal {
    const char *name;
    void (*spoil)(Call &);
    const char *text;
};

void expect_refused(const Refusal &refusal, void (Call::*operation)()) {
    Call call;
    refusal.spoil(call);
    const auto before = call.memory();
    try {
        (call.*operation)();
        FAIL() << "was not refused";
    } catch (const std::invalid_argument &e) {
        EXPECT_NE(std::string(e.what()).find(refusal.text), std::string::npos) << e.what();
    }
    EXPECT_TRUE(call.memory() == before) << "something was written";
}

std::string refusal_name(const ::testing::TestParamInfo<Refusal> &info) {
    return info.param.name;
}

VectorView shorter(VectorView v) {
    v.size = 4;
    return v;
}

class ForwardRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(ForwardRefuses, with_its_text_and_nothing_written) {
    expect_refused(GetParam(), &Call::forward);
}

const float nan_value = std::numeric_limits<float>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    , ForwardRefuses,
    ::testing::Values(
        Refusal{"three_dimensions", [](Call &c) { c.input.ndim = 3; },
                "expected 4D input (got 3D input)"},
        Refusal{"five_dimensions", [](Call &c) { c.input.ndim = 5; },
                "expected 4D input (got 5D input)"},
        Refusal{"running_mean_size", [](Call &c) { c.m = shorter(c.m); },
                "running_mean should contain 6 elements not 4"},
        Refusal{"running_var_size", [](Call &c) { c.v = shorter(c.v); },
                "running_var should contain 6 elements not 4"},
        Refusal{"weight_size", [](Call &c) { c.w = shorter(c.w); },
                "weight should contain 6 elements not 4"},
        Refusal{"bias_size", [](Call &c) { c.b = shorter(c.b); },
                "bias should contain 6 elements not 4"},
        Refusal{"running_mean_first",
                [](Call &c) {
                    c.m = shorter(c.m);
                    c.v = shorter(c.v);
                    c.w = shorter(c.w);
                },
                "running_mean should contain"},
        Refusal{"running_var_before_weight",
                [](Call &c) {
                    c.v = shorter(c.v);
                    c.w = shorter(c.w);
                },
                "running_var should contain"},
        Refusal{"weight_before_bias",
                [](Call &c) {
                    c.w = shorter(c.w);
                    c.b = shorter(c.b);
                },
                "weight should contain"},
        Refusal{"only_running_mean", [](Call &c) { c.v = {}; },
                "must either both be None or neither"},
        Refusal{"only_running_var", [](Call &c) { c.m = {}; },
                "must either both be None or neither"},
        Refusal{"only_running_mean_in_evaluation",
                [](Call &c) {
                    c.v = {};
                    c.training = false;
                },
                "must either both be None or neither"},
        Refusal{
            "one_value_a_channel",
            [](Call &c) { c.input.sizes = c.output.sizes = {1, kChannels, 1, 1}; },
            "Expected more than 1 value per channel when training, got input size [1, 6, 1, 1]"},
        Refusal{"one_value_in_evaluation_without_buffers",
                [](Call &c) {
                    c.input.sizes = c.output.sizes = {1, kChannels, 1, 1};
                    c.m = c.v = {};
                    c.training = false;
                },
                "Expected more than 1 value per channel"},
        Refusal{"eps_zero_in_training", [](Call &c) { c.eps = 0; }, "eps must be positive"},
        Refusal{"eps_negative", [](Call &c) { c.eps = -1; }, "eps must be positive"},
        Refusal{"eps_nan", [](Call &c) { c.eps = nan_value; }, "eps must be positive"},
        Refusal{"eps_negative_in_evaluation",
                [](Call &c) {
                    c.eps = -1e-9;
                    c.training = false;
                },
                "eps must be non-negative"},
        Refusal{"momentum_nan", [](Call &c) { c.momentum = nan_value; },
                "momentum must not be nan"},
        Refusal{"no_input_data", [](Call &c) { c.input.data = nullptr; }, "x has no data"},
        Refusal{"no_output_data", [](Call &c) { c.output.data = nullptr; }, "y has no data"},
        Refusal{"negative_size", [](Call &c) { c.input.sizes[2] = -3; }, "negative size"},
        Refusal{"negative_stride", [](Call &c) { c.input.strides[3] = -1; },
                "negative strides are not supported"},
        Refusal{"size_overflow",
                [](Call &c) { c.input.sizes[0] = c.output.sizes[0] = int64_t(1) << 62; },
                "overflows 64 bits"},
        Refusal{"output_shape", [](Call &c) { c.output.sizes[3] = 3; }, "y"},
        Refusal{"output_dtype", [](Call &c) { c.output.dtype = DType::float16; },
                "y should have the dtype"},
        Refusal{"input_dtype", [](Call &c) { c.input.dtype = DType::int64; }, "float32, float64"},
        Refusal{"float64_weight", [](Call &c) { c.w.dtype = DType::float64; }, "mixed dtype"},
        Refusal{"bfloat16_bias_beside_float32", [](Call &c) { c.b.dtype = DType::bfloat16; },
                "mixed dtype"},
        Refusal{"output_overlaps_input",
                [](Call &c) { c.output.data = static_cast<float *>(c.input.data) + 1; },
                "refer to a single memory location"},
        Refusal{"output_is_input_transposed",
                [](Call &c) {
                    c.output = c.input;
                    c.output.strides = dense_strides(c.input.sizes, MemoryFormat::channels_last);
                },
                "refer to a single memory location"},
        Refusal{"output_overlaps_weight", [](Call &c) { c.output.data = c.w.data; },
                "refer to a single memory location"},
        Refusal{"output_overlaps_itself", [](Call &c) { c.output.strides[0] = 0; }, "y"},
        Refusal{"running_mean_is_running_var", [](Call &c) { c.v.data = c.m.data; },
                "refer to a single memory location"}),
    refusal_name);

class BackwardRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(BackwardRefuses, with_its_text_and_nothing_written) {
    expect_refused(GetParam(), &Call::backward);
}

INSTANTIATE_TEST_SUITE_P(
    , BackwardRefuses,
    ::testing::Values(
        Refusal{"three_dimensions", [](Call &c) { c.grad_output.ndim = 3; },
                "expected 4D input (got 3D input)"},
        Refusal{"grad_output_shape", [](Call &c) { c.grad_output.sizes[0] = 1; }, "grad_output"},
        Refusal{"grad_output_dtype", [](Call &c) { c.grad_output.dtype = DType::bfloat16; },
                "dtype"},
        Refusal{"no_statistics_in_training", [](Call &c) { c.sm = c.si = {}; },
                "must be defined in training mode"},
        Refusal{"no_statistics_in_evaluation",
                [](Call &c) {
                    c.m = c.v = {};
                    c.training = false;
                },
                "must be defined in evaluation mode"},
        Refusal{"mean_size", [](Call &c) { c.sm = shorter(c.sm); },
                "should contain 6 elements not 4"},
        Refusal{"weight_size", [](Call &c) { c.w = shorter(c.w); },
                "weight should contain 6 elements not 4"},
        Refusal{"grad_input_overlaps_x", [](Call &c) { c.output.data = c.input.data; },
                "refer to a single memory location"},
        Refusal{"grad_input_partly_over_grad_output",
                [](Call &c) { c.output.data = static_cast<float *>(c.grad_output.data) + 4; },
                "refer to a single memory location"},
        Refusal{"eps_negative_in_evaluation",
                [](Call &c) {
                    c.eps = -1;
                    c.training = false;
                },
                "eps must be non-negative"},
        Refusal{"no_data", [](Call &c) { c.grad_output.data = nullptr; },
                "grad_output has no data"}),
    refusal_name);

class DerivativesRefuse : public ::testing::TestWithParam<Refusal> {};

TEST_P(DerivativesRefuse, with_their_text_and_nothing_written) {
    expect_refused(GetParam(), &Call::jvp);
    expect_refused(GetParam(), &Call::double_backward);
}

INSTANTIATE_TEST_SUITE_P(
    , DerivativesRefuse,
    ::testing::Values(
        Refusal{"three_dimensions", [](Call &c) { c.grad_output.ndim = 3; },
                "expected 4D input (got 3D input)"},
        Refusal{"shapes", [](Call &c) { c.grad_output.sizes[0] = 1; }, "should have the shape of"},
        Refusal{"dtypes", [](Call &c) { c.grad_output.dtype = DType::bfloat16; }, "dtype"},
        Refusal{"output_shape", [](Call &c) { c.output.sizes[3] = 3; }, "should have the shape of"},
        Refusal{"no_statistics_in_training", [](Call &c) { c.sm = c.si = {}; },
                "must be defined in training mode"},
        Refusal{"no_statistics_in_evaluation",
                [](Call &c) {
                    c.m = c.v = {};
                    c.training = false;
                },
                "must be defined in evaluation mode"},
        Refusal{"mean_size", [](Call &c) { c.sm = shorter(c.sm); },
                "should contain 6 elements not 4"},
        Refusal{"weight_size", [](Call &c) { c.w = shorter(c.w); },
                "weight should contain 6 elements not 4"},
        Refusal{"bias_tangent_size", [](Call &c) { c.b = shorter(c.b); },
                "should contain 6 elements not 4"},
        Refusal{"weight_dtype", [](Call &c) { c.w.dtype = DType::float64; }, "mixed dtype"},
        Refusal{"output_overlaps_x", [](Call &c) { c.output.data = c.input.data; },
                "refer to a single memory location"},
        Refusal{"output_partly_over_an_input",
                [](Call &c) { c.output.data = static_cast<float *>(c.grad_output.data) + 4; },
                "refer to a single memory location"},
        Refusal{"eps_negative_in_evaluation",
                [](Call &c) {
                    c.eps = -1;
                    c.training = false;
                },
                "eps must be non-negative"},
        Refusal{"no_data", [](Call &c) { c.grad_output.data = nullptr; }, "has no data"}),
    refusal_name);

TEST(DoubleBackwardRefuses, outputs_that_overlap_or_are_read_later) {
    Call both;
    both.output2 = both.output;
    EXPECT_THROW(both.double_backward(), std::invalid_argument);
    // grad_input still needs what grad_grad_output would overwrite.
    Call in_place;
    in_place.output = in_place.grad_output;
    EXPECT_THROW(in_place.double_backward(), std::invalid_argument);
}

TEST(SplitRefuses, moments_of_other_channels) {
    Call c;
    functional::Moments moments = functional::batch_norm_stats(c.input), other = moments;
    other.mean.resize(3);
    other.m2.resize(3);
    EXPECT_THROW(moments.merge(other), std::invalid_argument);
    const auto before = c.memory();
    EXPECT_THROW(functional::batch_norm_normalize(c.input, other, {}, {}, 1e-5, c.output),
                 std::invalid_argument);
    other = moments;
    other.count = 0;
    EXPECT_THROW(functional::batch_norm_normalize(c.input, other, {}, {}, 1e-5, c.output),
                 std::invalid_argument);
    EXPECT_TRUE(c.memory() == before);
}

TEST(DeviceRefuses, one_this_build_has_not) {
    Call c;
    c.input.device = c.output.device = Device::cuda;
    EXPECT_THROW(c.forward(), std::runtime_error);
    EXPECT_NE(std::string(hbn_last_error()).find("without support for device 'cuda'"),
              std::string::npos);
}

TEST(ModuleRefuses, before_counting_the_batch) {
    BatchNorm2d bn(kChannels);
    TestTensor one(DType::float32, {1, kChannels, 1, 1}), other(DType::float32, {2, 5, 3, 3});
    one.fill([](int64_t) { return 1; });
    other.fill([](int64_t) { return 1; });
    EXPECT_THROW(bn.forward(one), std::invalid_argument);
    EXPECT_THROW(bn.forward(other), std::invalid_argument);
    EXPECT_EQ(bn.num_batches_tracked(), 0);
    for (int64_t c = 0; c < kChannels; c++) {
        EXPECT_EQ(get(bn.running_mean(), c), 0);
        EXPECT_EQ(get(bn.running_var(), c), 1);
    }
    EXPECT_THROW(bn.backward(one, one), std::logic_error);
}

}  // namespace
}  // namespace hbn::test
