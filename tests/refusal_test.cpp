// Bad calls: each gives its text, and leaves every byte it could have written as it was.
#include "oracle.h"
#include "runtime/checks.h"

#include <hbn/batch_norm_2d.h>

#include <cstring>

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

template<typename Void>
Void *one_byte_on(Void *data) {
    return reinterpret_cast<Void *>(reinterpret_cast<uintptr_t>(data) + 1);
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
        Refusal{"input_not_aligned", [](Call &c) { c.input.data = one_byte_on(c.input.data); },
                "x is not aligned: float32 data must be at an address that is a multiple of 4"},
        Refusal{"output_not_aligned", [](Call &c) { c.output.data = one_byte_on(c.output.data); },
                "y is not aligned"},
        Refusal{"weight_not_aligned", [](Call &c) { c.w.data = one_byte_on(c.w.data); },
                "weight is not aligned"},
        Refusal{"running_var_not_aligned", [](Call &c) { c.v.data = one_byte_on(c.v.data); },
                "running_var is not aligned"},
        Refusal{"bias_on_another_device", [](Call &c) { c.b.device = Device::cuda; },
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cpu and cuda!"},
        Refusal{"running_mean_on_an_unknown_device", [](Call &c) { c.m.device = Device(77); },
                "running_mean has an unknown device (77)"},
        Refusal{"unknown_device", [](Call &c) { c.input.device = Device(-1); },
                "x has an unknown device (-1)"},
        Refusal{"unknown_dtype", [](Call &c) { c.input.dtype = DType(77); },
                "x must be float32, float64, bfloat16 or float16, got an unknown dtype"},
        Refusal{"output_of_unknown_dtype", [](Call &c) { c.output.dtype = DType(-1); },
                "y must be float32, float64, bfloat16 or float16, got an unknown dtype"},
        Refusal{"weight_of_unknown_dtype", [](Call &c) { c.w.dtype = DType(4000); },
                "mixed dtype: expected weight to be float32, got an unknown dtype"},
        Refusal{"beyond_the_end_of_memory",
                [](Call &c) { c.input.data = reinterpret_cast<void *>(UINTPTR_MAX - 3); },
                "x is too large: its last element is beyond the end of memory"},
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
        Refusal{"mean_not_aligned", [](Call &c) { c.sm.data = one_byte_on(c.sm.data); },
                "mean is not aligned: float64 data must be at an address that is a multiple of 8"},
        Refusal{"invstd_on_another_device", [](Call &c) { c.si.device = Device::opencl; },
                "found at least two devices, cpu and opencl!"},
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

TEST(SplitRefuses, arrays_that_are_not_aligned) {
    Call c;
    const hbn_tensor x{c.x.view().data,      HBN_FLOAT32,   HBN_CPU, 4,
                       {2, kChannels, 3, 4}, {72, 12, 4, 1}};
    const hbn_vector mean{c.sm.data, HBN_FLOAT64, kChannels, 1, HBN_CPU};
    std::vector<double> values(3 * kChannels, 7);
    const std::vector<double> before = values;
    double *const good = values.data(), *const bad = one_byte_on(good + kChannels);
    hbn_moments moments[2] = {{3, good, bad, kChannels}, {3, bad, good, kChannels}};
    hbn_moments other{3, good + 2 * kChannels, good + 2 * kChannels, kChannels};
    for (hbn_moments &m : moments) {
        EXPECT_EQ(hbn_batch_norm_stats(&x, &m), HBN_INVALID_ARGUMENT);
        EXPECT_NE(std::string(hbn_last_error()).find("moments is not aligned: float64"),
                  std::string::npos);
        EXPECT_EQ(hbn_merge_moments(&m, &other), HBN_INVALID_ARGUMENT);
        EXPECT_EQ(hbn_merge_moments(&other, &m), HBN_INVALID_ARGUMENT);
        EXPECT_EQ(hbn_batch_norm_normalize(&x, &m, nullptr, nullptr, 1e-5, &x),
                  HBN_INVALID_ARGUMENT);
        EXPECT_EQ(hbn_finalize_moments(&m, 0.1, 1e-5, nullptr, nullptr, nullptr, nullptr),
                  HBN_INVALID_ARGUMENT);
    }
    for (const auto &[a, b] : {std::pair(good, bad), std::pair(bad, good)}) {
        EXPECT_EQ(hbn_batch_norm_backward_reduce(&x, &x, &mean, &mean, a, b, nullptr, nullptr),
                  HBN_INVALID_ARGUMENT);
        EXPECT_EQ(hbn_batch_norm_backward_elemt(&x, &x, &mean, &mean, nullptr, a, b, 24, &x),
                  HBN_INVALID_ARGUMENT);
    }
    EXPECT_EQ(values, before);
    hbn_moments negative{3, good, good + kChannels, -1};
    EXPECT_EQ(hbn_merge_moments(&negative, &negative), HBN_INVALID_ARGUMENT);
    EXPECT_STREQ(hbn_last_error(), "into has a negative number of channels: -1");
}

TEST(DeviceRefuses, a_vector_where_the_tensors_are) {
    Call c;
    c.input.device = c.output.device = c.w.device = Device::cuda;
    EXPECT_THROW(c.forward(), UnsupportedError);
}

TEST(Checks, of_dtypes_know_every_number) {
    for (int number = -3; number < 80; number++) {
        hbn_dtype dtype;
        std::memcpy(&dtype, &number, sizeof dtype);
        const bool is_float = number >= HBN_FLOAT32 && number <= HBN_FLOAT16;
        EXPECT_EQ(internal::check_float("weight", dtype), is_float ? HBN_OK : HBN_INVALID_ARGUMENT);
        if (!is_float) {
            EXPECT_EQ(hbn_last_error(),
                      std::string("weight must be float32, float64, bfloat16 or float16, got ") +
                          internal::dtype_name(dtype));
        }
    }
}

TEST(Activations, of_an_unknown_number_are_refused) {
    Call c;
    const hbn_tensor x{c.x.view().data,      HBN_FLOAT32,   HBN_CPU, 4,
                       {2, kChannels, 3, 4}, {72, 12, 4, 1}};
    for (const int number : {-1, 6, 77}) {
        hbn_activation activation{};
        std::memcpy(&activation.kind, &number, sizeof activation.kind);
        EXPECT_EQ(hbn_batch_norm_activation_forward(&x, nullptr, nullptr, nullptr, nullptr, nullptr,
                                                    1, 0.1, 1e-5, &activation, &x, nullptr, nullptr,
                                                    nullptr),
                  HBN_INVALID_ARGUMENT);
        EXPECT_EQ(hbn_last_error(), "unknown activation (" + std::to_string(number) + ")");
    }
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
