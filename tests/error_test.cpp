// What is thrown: by its own name, by the standard library's, and as hbn::Error; and the version of the headers.
#include "oracle.h"
#include "runtime/api/errors.h"
#include "runtime/checks.h"

#include <hbn/batch_norm_2d.h>

namespace hbn::test {
namespace {

// `call` throws a Thrown, which is a Standard and an Error, too, with one text and this status.
template<typename Thrown, typename Standard, typename Call>
void expect_thrown(const std::string &text, hbn_status status, Call call) {
    try {
        call();
        ADD_FAILURE() << "nothing was thrown: " << text;
    } catch (const Thrown &e) {
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
        EXPECT_EQ(e.status(), status);
    }
    try {
        call();
    } catch (const Standard &e) {
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
    try {
        call();
    } catch (const Error &e) {
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
        EXPECT_EQ(e.status(), status);
    }
    EXPECT_THROW(call(), std::exception);
}

TEST(Errors, invalid_argument) {
    expect_thrown<InvalidArgument, std::invalid_argument>("number of threads must not be negative",
                                                          HBN_INVALID_ARGUMENT,
                                                          [] { set_num_threads(-1); });
    expect_thrown<InvalidArgument, std::invalid_argument>(
        "negative dimension -2: [1, -2, 3, 4]", HBN_INVALID_ARGUMENT,
        [] { Tensor(DType::float32, {1, -2, 3, 4}); });
    expect_thrown<InvalidArgument, std::invalid_argument>(
        "negative dimension -1: [-1]", HBN_INVALID_ARGUMENT, [] { Vector(DType::float32, -1); });
    const int64_t most = std::numeric_limits<int64_t>::max();
    expect_thrown<InvalidArgument, std::invalid_argument>(
        "overflows 64 bits", HBN_INVALID_ARGUMENT,
        [&] { Tensor(DType::float32, {2, most, 3, 4}); });
    BatchNorm2dOptions options;
    options.dtype = DType::int64;
    expect_thrown<InvalidArgument, std::invalid_argument>("must be float32", HBN_INVALID_ARGUMENT,
                                                          [&] { BatchNorm2d(3, options); });
}

TEST(Errors, invalid_state) {
    expect_thrown<InvalidState, std::logic_error>("backward() needs a forward()",
                                                  HBN_INVALID_ARGUMENT, [] {
                                                      TestTensor x(DType::float32, {2, 3, 4, 5});
                                                      BatchNorm2d(3).backward(x, x);
                                                  });
}

TEST(Errors, unsupported) {
    BatchNorm2dOptions options;
    options.device = Device::cuda;
    expect_thrown<UnsupportedError, std::runtime_error>("device 'cuda'", HBN_UNSUPPORTED,
                                                        [&] { BatchNorm2d(3, options); });
}

TEST(Errors, device) {
    internal::fail(HBN_DEVICE_ERROR, "a device failed");
    const auto call = [] { internal::throw_on_error(HBN_DEVICE_ERROR); };
    expect_thrown<DeviceError, std::runtime_error>("a device failed", HBN_DEVICE_ERROR, call);
    try {
        call();
    } catch (const UnsupportedError &) {
        ADD_FAILURE() << "unsupported and device errors are not apart";
    } catch (const Error &) {
    }
}

TEST(Errors, out_of_memory) {
#if defined(HBN_TEST_SANITIZED)
    GTEST_SKIP() << "a sanitizer's allocator stops the program";
#endif
    expect_thrown<OutOfMemory, std::bad_alloc>("out of memory", HBN_OUT_OF_MEMORY, [] {
        Tensor(DType::float64, {int64_t(1) << 20, 1 << 20, 1 << 10, 1 << 8});
    });
    expect_thrown<OutOfMemory, std::bad_alloc>("out of memory", HBN_OUT_OF_MEMORY,
                                               [] { Vector(DType::uint8, int64_t(1) << 60); });
    // An expanded tensor may have more channels than memory has room for values of, or than 32 bits count.
    float value = 0;
    const ConstTensorView expanded(&value, DType::float32, {1, (int64_t(1) << 56) + 3, 2, 1},
                                   {0, 0, 0, 0});
    expect_thrown<OutOfMemory, std::bad_alloc>("out of memory", HBN_OUT_OF_MEMORY,
                                               [&] { functional::batch_norm_stats(expanded); });
    const std::string long_text(1000, 'x');
    EXPECT_EQ(std::string(OutOfMemory(long_text.c_str()).what()), long_text.substr(0, 127));
}

TEST(Errors, of_split_operations) {
    const auto refused = [](const char *text, const std::function<void()> &call) {
        expect_thrown<InvalidArgument, std::invalid_argument>(text, HBN_INVALID_ARGUMENT, call);
    };
    TestTensor x(DType::float32, {2, 3, 4, 5});
    x.fill([](int64_t c) { return double(c); });
    const functional::Moments moments = functional::batch_norm_stats(x);
    functional::Moments uneven = moments;
    uneven.m2.pop_back();
    refused("m2 should contain 3 elements not 2",
            [&] { functional::batch_norm_normalize(x, uneven, {}, {}, 1e-5); });
    refused("eps must be positive", [&] { functional::mean_and_invstd(moments, 0); });
    const auto [mean, invstd] = functional::mean_and_invstd(moments, 1e-5);
    EXPECT_EQ(mean.view().dtype, DType::float64);
    EXPECT_EQ(invstd.view().dtype, DType::float64);
    const auto &saved_mean = mean;
    const auto &saved_invstd = invstd;
    functional::BackwardSums sums =
        functional::batch_norm_backward_reduce(x, x, saved_mean, saved_invstd);
    sums.sum_dy_xmu.resize(7);
    refused("sum_dy_xmu should contain 3 elements not 7", [&] {
        functional::batch_norm_backward_elemt(x, x, saved_mean, saved_invstd, {}, sums, 40);
    });
    sums.sum_dy_xmu.resize(3);
    refused("count must be positive", [&] {
        functional::batch_norm_backward_elemt(x, x, saved_mean, saved_invstd, {}, sums, 0);
    });
    TestVector variance(DType::float32, {1, 1, 1});
    refused("must either both be None or neither",
            [&] { functional::update_running_stats(moments, 0.1, {}, variance); });
    refused("momentum must not be nan",
            [&] { functional::update_running_stats(moments, std::nan(""), {}, {}); });
}

TEST(Errors, of_inference_without_statistics) {
    TestTensor x(DType::float32, {2, 3, 4, 5}), y(DType::float32, {2, 3, 4, 5});
    const TestVector mean(DType::float32, {0, 0, 0});
    const auto before = y.bytes();
    expect_thrown<InvalidArgument, std::invalid_argument>(
        "running_mean must be defined in evaluation mode", HBN_INVALID_ARGUMENT,
        [&] { functional::batch_norm_inference(x, {}, {}, {}, {}, 1e-5, {}, {}, y.view()); });
    expect_thrown<InvalidArgument, std::invalid_argument>(
        "running_var must be defined in evaluation mode", HBN_INVALID_ARGUMENT,
        [&] { functional::batch_norm_inference(x, {}, {}, mean, {}, 1e-5, {}, {}, y.view()); });
    EXPECT_EQ(y.bytes(), before);
}

TEST(Version, of_the_headers_is_the_librarys) {
    EXPECT_STREQ(HBN_VERSION, hbn_version());
    EXPECT_EQ(std::to_string(HBN_VERSION_MAJOR) + "." + std::to_string(HBN_VERSION_MINOR) + "." +
                  std::to_string(HBN_VERSION_PATCH),
              HBN_VERSION);
}

}  // namespace
}  // namespace hbn::test
