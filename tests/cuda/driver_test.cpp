// What hbn asks of the CUDA driver. It runs on a stand-in (driver.c), so that no result means anything here.
#include "tests/cuda/driver.h"
#include "tests/tensors.h"

#include <hbn/hbn.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <ostream>
#include <string>
#include <vector>

namespace hbn {
namespace {

struct Shape {
    const char *name;
    std::array<int64_t, 4> sizes;
};

struct Case {
    Shape shape;
    test::Layout layout;
};

std::string name_of(const Case &c) {
    return std::string(c.shape.name) + "_" + test::name_of_layout(c.layout);
}

void PrintTo(const Case &c, std::ostream *out) {
    *out << name_of(c);
}

// Dense tensors of float32 and vectors of a channel each, in memory of their own.
class Call {
public:
    explicit Call(const Case &c) : channels_(c.shape.sizes[1]) {
        const auto [n, channels, h, w] = c.shape.sizes;
        values_.resize(size_t(n * channels * h * w), 1.0f);
        others_ = outputs_ = values_;
        vectors_.resize(4, std::vector<double>(size_t(channels), 1.0));
        tensor_ = {nullptr, HBN_FLOAT32,         HBN_CPU,
                   4,       {n, channels, h, w}, {channels * h * w, h * w, w, 1}};
        if (c.layout == test::Layout::nhwc) {
            const int64_t strides[] = {channels * h * w, 1, w * channels, channels};
            std::copy(strides, strides + 4, tensor_.strides);
        }
    }

    hbn_status forward(bool training) {
        const hbn_tensor x = tensor(values_), y = tensor(outputs_);
        if (training) {
            return hbn_batch_norm_forward(&x, nullptr, nullptr, nullptr, nullptr, 1, 0.1, 1e-5, &y,
                                          nullptr, nullptr);
        }
        std::vector<float> mean(size_t(channels_), 0.0f), var(size_t(channels_), 1.0f);
        const hbn_vector running_mean = {mean.data(), HBN_FLOAT32, channels_, 1, HBN_CPU};
        const hbn_vector running_var = {var.data(), HBN_FLOAT32, channels_, 1, HBN_CPU};
        return hbn_batch_norm_forward(&x, nullptr, nullptr, &running_mean, &running_var, 0, 0.1,
                                      1e-5, &y, nullptr, nullptr);
    }
    hbn_status backward() {
        const hbn_tensor dy = tensor(others_), x = tensor(values_), dx = tensor(outputs_);
        const hbn_vector mean = vector(0), invstd = vector(1);
        return hbn_batch_norm_backward(&dy, &x, nullptr, &mean, &invstd, nullptr, nullptr, 1, 1e-5,
                                       &dx, nullptr, nullptr);
    }

private:
    hbn_tensor tensor(std::vector<float> &data) const {
        hbn_tensor t = tensor_;
        t.data = data.data();
        return t;
    }
    hbn_vector vector(int i) {
        return {vectors_[size_t(i)].data(), HBN_FLOAT64, channels_, 1, HBN_CPU};
    }

    int64_t channels_;
    std::vector<float> values_, others_, outputs_;
    std::vector<std::vector<double>> vectors_;
    hbn_tensor tensor_;
};

class Driver : public ::testing::TestWithParam<Case> {};

std::vector<Case> cases() {
    // Past 65,535 each: samples, channels, samples of all channels, pixels, rows of all planes.
    const Shape shapes[] = {{"few", {4, 64, 8, 8}},         {"samples", {65536, 4, 2, 2}},
                            {"channels", {2, 65537, 2, 2}}, {"planes", {256, 257, 2, 2}},
                            {"pixels", {1, 3, 257, 257}},   {"narrow", {64, 64, 65, 2}}};
    std::vector<Case> all;
    for (const Shape &shape : shapes) {
        all.push_back({shape, test::Layout::nchw});
        all.push_back({shape, test::Layout::nhwc});
    }
    return all;
}

TEST_P(Driver, takes_every_launch) {
    Call call(GetParam());
    take_driver_calls();
    EXPECT_EQ(call.forward(true), HBN_OK) << hbn_last_error();
    EXPECT_EQ(call.forward(false), HBN_OK) << hbn_last_error();
    EXPECT_EQ(call.backward(), HBN_OK) << hbn_last_error();
    EXPECT_GT(take_driver_calls().launches, 0);
}

TEST_P(Driver, copies_a_dense_tensor_at_once) {
    Call call(GetParam());
    take_driver_calls();
    // The tensor; that of a channel which there may be: weight, bias, mean, invstd, running statistics.
    ASSERT_EQ(call.forward(true), HBN_OK) << hbn_last_error();
    const driver_calls forward = take_driver_calls();
    EXPECT_GE(forward.copies_to_device, 1);
    EXPECT_LE(forward.copies_to_device, 1 + 6);
    EXPECT_GE(forward.copies_to_host, 1);
    EXPECT_LE(forward.copies_to_host, 1 + 4);
    ASSERT_EQ(call.backward(), HBN_OK) << hbn_last_error();
    const driver_calls backward = take_driver_calls();
    EXPECT_LE(backward.copies_to_device, 2 + 6);
    EXPECT_LE(backward.copies_to_host, 1 + 4);
}

INSTANTIATE_TEST_SUITE_P(, Driver, ::testing::ValuesIn(cases()),
                         [](const auto &info) { return name_of(info.param); });

}  // namespace
}  // namespace hbn
