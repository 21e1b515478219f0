// The library against PyTorch 2.13: golden/make_golden.py recorded what PyTorch computes and, from
// the same inputs, the float64 truth. Results are held to the truth within bounds from analysis,
// and to PyTorch's own output loosely: what is computed is compared there, not how it is rounded.
//
// The bounds, with u = 2^-24 (2^-53 for float64), M = N*H*W, spread = 1 + |mean| * invstd, and
// S = M * 2^-53 for float64 (each addition of a sum of M values rounds), else 0 (sums run in
// float64):
//
//   y             (8u + S * spread) * max(1, |weight * xhat| + |bias|)
//                 design.md's bound. spread: a float64 mean has no low part, so |mean| ulps of
//                 error in it are seen through invstd. Running statistics are inputs: spread is 0.
//   mean          2u * |mean| + (4u + S * spread) / invstd
//   invstd        (4u + S * spread) * invstd
//   running       each step: 4u + S of |(1 - f) * old| + |f * batch| (for the mean, with f standard
//                 deviations, where it cancels), and one rounding to the buffer's dtype
//   grad_bias     2u * |sum dy| + M * 2^-53 * sum |dy|
//   grad_weight   4u * |sum dy*xhat| + 2M * 2^-53 * max(1, spread) * sum |dy*xhat|
//                 + (shift + S * spread) * |sum dy|
//                 shift = u * |mean| * invstd is how far rounding the saved mean moves every xhat;
//                 an error common to all values adds it times sum dy exactly. 0 in inference.
//   grad_input    |weight * invstd| * ((8u + S) * (|dy| + |A| + |xhat * B|)
//                                      + (shift + S * |mean| * invstd) * (|B| + |xhat * A|)
//                                      + 2^-52 max(1, spread) * (sum |dy| + |xhat| sum |dy*xhat|))
//                 A = mean of dy, B = mean of dy*xhat; in inference only 8u * |dy| is left
//
// and for results in bfloat16 and float16 half an ulp of theirs on top.
#include "golden.h"
#include "oracle.h"
#include "tensors.h"

#include <hbn/batch_norm_2d.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>

#ifndef HBN_GOLDEN_DIR
#error "HBN_GOLDEN_DIR is to be the folder of golden.bin, as a string"
#endif

namespace hbn::test {
namespace {

using functional::ForwardResult;
using functional::Gradients;
using functional::Moments;

const Golden &golden() {
    static const Golden data(HBN_GOLDEN_DIR "/golden.bin");
    return data;
}

enum class Operation {
    forward_training,
    forward_inference,
    backward_training,
    backward_inference,
    split,
    module,
};

struct Case {
    Operation operation;
    std::string name;  // as recorded: float32_affine_tracking_2x17x7x7
    Layout layout;
};

const char *name_of_operation(Operation operation) {
    static const char *const names[] = {"forward_training",
                                        "forward_inference",
                                        "backward_training",
                                        "backward_inference",
                                        "split",
                                        "module"};
    return names[int(operation)];
}

std::string name_of_case(const Case &c) {
    return std::string(name_of_operation(c.operation)) + "_" + c.name + "_" +
           name_of_layout(c.layout);
}

void PrintTo(const Case &c, std::ostream *out) {
    *out << name_of_case(c);
}

std::vector<Case> all_cases() {
    std::vector<Case> all;
    for (const auto &[path, record] : golden().records()) {
        const std::string suffix = "/eps";
        if (path.size() < suffix.size() ||
            path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0) {
            continue;
        }
        const std::string name = path.substr(0, path.size() - suffix.size());
#ifdef HBN_TEST_FLOAT32_ONLY
        if (name.compare(0, 7, "float32") != 0) {
            continue;
        }
#endif
        for (Layout layout : {Layout::nchw, Layout::nhwc, Layout::strided}) {
            for (Operation operation : {Operation::forward_training, Operation::forward_inference,
                                        Operation::backward_training, Operation::backward_inference,
                                        Operation::split, Operation::module}) {
                const bool inference = operation == Operation::forward_inference ||
                                       operation == Operation::backward_inference;
                if (!inference || golden().has(name + "/true/eval/y")) {
                    all.push_back({operation, name, layout});
                }
            }
        }
    }
    return all;
}

// Within `bound` of `expected`, and half an ulp of dtype where that is narrower than the bound.
// Reports the first failures of many.
class Judge {
public:
    explicit Judge(const std::string &what) : what_(what) {
    }
    ~Judge() {
        if (failures_ > kShown) {
            ADD_FAILURE() << what_ << ": " << failures_ - kShown
                          << " more are wrong, the worst off by " << worst_ << " times the bound";
        }
    }
    void expect(size_t index, double actual, double expected, double bound, DType dtype) {
        if (dtype == DType::bfloat16 || dtype == DType::float16) {
            bound +=
                unit_roundoff(dtype) * (std::fabs(expected) + bound) + smallest_denormal(dtype);
        }
        const double error = std::fabs(actual - expected);
        if (!(error <= bound)) {
            worst_ = std::max(worst_, error / bound);
            if (failures_++ < kShown) {
                ADD_FAILURE() << what_ << "[" << index << "] is " << actual << ", expected "
                              << expected << ", off by " << error / bound << " times the bound";
            }
        }
    }

private:
    static constexpr int kShown = 3;
    std::string what_;
    int failures_ = 0;
    double worst_ = 0;
};

// What one channel's bounds are made of.
struct Channel {
    double weight, bias, mean, invstd, spread;
    double sum_dy = 0, sum_dy_xhat = 0, sum_abs_dy = 0, sum_abs_dy_xhat = 0;
};

class GoldenTest : public ::testing::TestWithParam<Case> {
protected:
    GoldenTest()
        : name_(GetParam().name),
          dtype_(golden().at(data_name("x2")).dtype),
          sizes_(shape_of(data_name("x2"))),
          count_(double(sizes_[0] * sizes_[2] * sizes_[3])),
          eps_(golden().values(name_ + "/eps")[0]),
          affine_(golden().has(name_ + "/weight")),
          tracking_(golden().has(name_ + "/running_mean_before")),
          u_(unit_roundoff(statistic_dtype(dtype_))),
          sum_(dtype_ == DType::float64 ? count_ * std::ldexp(1.0, -53) : 0) {
        if (golden().has(name_ + "/momentum")) {
            momentum_ = golden().values(name_ + "/momentum")[0];
        }
        steps_ =
            momentum_ ? std::vector<std::string>{"x2"} : std::vector<std::string>{"x0", "x1", "x2"};
    }

    // ---- the case's inputs

    // data/<dtype>_<shape>/..., from the first and last part of the case's name.
    std::string data_name(const std::string &tensor) const {
        std::string dtype = name_.substr(0, name_.find('_'));
        if (dtype.size() > 3 && dtype.compare(dtype.size() - 3, 3, "own") == 0) {
            dtype.resize(dtype.size() - 3);
        }
        return "data/" + dtype + name_.substr(name_.rfind('_')) + "/" + tensor;
    }
    static Shape shape_of(const std::string &record) {
        const std::vector<int64_t> &shape = golden().at(record).shape;
        return {shape.at(0), shape.at(1), shape.at(2), shape.at(3)};
    }
    size_t index(int64_t n, int64_t c, int64_t h, int64_t w) const {
        return size_t(((n * sizes_[1] + c) * sizes_[2] + h) * sizes_[3] + w);
    }
    template<typename Visit>
    void for_each(Visit visit) const {
        for (int64_t n = 0; n < sizes_[0]; n++) {
            for (int64_t c = 0; c < sizes_[1]; c++) {
                for (int64_t h = 0; h < sizes_[2]; h++) {
                    for (int64_t w = 0; w < sizes_[3]; w++) {
                        visit(n, c, h, w);
                    }
                }
            }
        }
    }
    TestTensor empty() const {
        return TestTensor(dtype_, sizes_, GetParam().layout);
    }
    TestTensor data(const std::string &tensor) const {
        const std::vector<double> values = golden().values(data_name(tensor));
        TestTensor result = empty();
        for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
            result.set(n, c, h, w, values[index(n, c, h, w)]);
        });
        return result;
    }
    std::vector<double> dense(const TensorView &tensor) const {
        std::vector<double> values(static_cast<size_t>(tensor.num_elements()));
        const Shape &s = tensor.strides;
        for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
            const int64_t offset = n * s[0] + c * s[1] + h * s[2] + w * s[3];
            values[index(n, c, h, w)] =
                load(tensor.dtype,
                     static_cast<const uint8_t *>(tensor.data) + offset * int64_t(size_of(dtype_)));
        });
        return values;
    }
    // A recorded vector the library may write to; absent when it is not recorded.
    struct State {
        std::optional<TestVector> vector;
        VectorView view() {
            return vector ? vector->view() : VectorView();
        }
    };
    State state(const std::string &record) const {
        if (!golden().has(name_ + "/" + record)) {
            return {};
        }
        const DType dtype = golden().at(name_ + "/" + record).dtype;
        return {TestVector(dtype, golden().values(name_ + "/" + record))};
    }
    // The factor of the new value in step i.
    double factor(size_t i) const {
        return momentum_ ? *momentum_ : 1.0 / double(i + 1);
    }

    // ---- what the bounds need

    std::vector<Channel> channels(bool training) const {
        std::vector<Channel> all(static_cast<size_t>(sizes_[1]));
        const auto vector = [&](const std::string &record, double absent) {
            return golden().has(name_ + record) ? golden().values(name_ + record)
                                                : std::vector<double>(all.size(), absent);
        };
        const std::vector<double> weight = vector("/weight", 1), bias = vector("/bias", 0);
        const std::vector<double> mean =
            golden().values(name_ + (training ? "/true/train/mean" : "/torch/train/running_mean"));
        const std::vector<double> other =
            golden().values(name_ + (training ? "/true/train/invstd" : "/torch/train/running_var"));
        for (size_t c = 0; c < all.size(); c++) {
            const double invstd = training ? other[c] : 1 / std::sqrt(other[c] + eps_);
            // Running statistics are inputs: nothing was summed, nothing is off.
            const double spread = training ? 1 + std::fabs(mean[c]) * invstd : 0;
            all[c] = {weight[c], bias[c], mean[c], invstd, spread};
        }
        const std::vector<double> x = golden().values(data_name("x2"));
        const std::vector<double> dy = golden().values(data_name("dy"));
        for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
            Channel &s = all[size_t(c)];
            const size_t i = index(n, c, h, w);
            const double xhat = (x[i] - s.mean) * s.invstd;
            s.sum_dy += dy[i];
            s.sum_dy_xhat += dy[i] * xhat;
            s.sum_abs_dy += std::fabs(dy[i]);
            s.sum_abs_dy_xhat += std::fabs(dy[i] * xhat);
        });
        return all;
    }

    // ---- comparisons: with the truth, and with PyTorch within `loose` of the same size

    static std::string mode(bool training) {
        return training ? "/train/" : "/eval/";
    }
    // Roundings of a few operations in PyTorch's order of them, in the narrowest dtype at hand.
    double loose(DType dtype) const {
        return (size_of(dtype) == 2 ? 8 : 64) * unit_roundoff(dtype);
    }

    void expect_y(const std::vector<double> &y, bool training) const {
        const std::vector<double> expected =
            golden().values(name_ + "/true" + mode(training) + "y");
        const std::vector<double> theirs = golden().values(name_ + "/torch" + mode(training) + "y");
        const std::vector<Channel> all = channels(training);
        Judge truth("y"), torch("y beside PyTorch's");
        for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
            const size_t i = index(n, c, h, w);
            const Channel &s = all[size_t(c)];
            const double size = std::max(1.0, std::fabs(expected[i] - s.bias) + std::fabs(s.bias));
            truth.expect(i, y[i], expected[i], (8 * u_ + sum_ * s.spread) * size, dtype_);
            torch.expect(i, y[i], theirs[i], loose(dtype_) * (1 + s.spread) * size, dtype_);
        });
    }

    void expect_saved(const ConstVectorView &mean, const ConstVectorView &invstd) const {
        ASSERT_TRUE(mean && invstd);
        EXPECT_EQ(mean.dtype, DType::float64);
        EXPECT_EQ(invstd.dtype, DType::float64);
        const std::vector<double> their_mean = golden().values(name_ + "/torch/train/mean");
        const std::vector<double> their_invstd = golden().values(name_ + "/torch/train/invstd");
        // PyTorch saves in the parameters' dtype.
        const double slack = loose(golden().at(name_ + "/torch/train/mean").dtype);
        const std::vector<Channel> all = channels(true);
        Judge judge_mean("mean"), judge_invstd("invstd");
        Judge torch_mean("mean beside PyTorch's"), torch_invstd("invstd beside PyTorch's");
        for (size_t c = 0; c < all.size(); c++) {
            const Channel &s = all[c];
            const double sums = sum_ * s.spread;
            judge_mean.expect(c, get(mean, int64_t(c)), s.mean,
                              2 * u_ * std::fabs(s.mean) + (4 * u_ + sums) / s.invstd, mean.dtype);
            judge_invstd.expect(c, get(invstd, int64_t(c)), s.invstd, (4 * u_ + sums) * s.invstd,
                                invstd.dtype);
            torch_mean.expect(c, get(mean, int64_t(c)), their_mean[c],
                              slack * (std::fabs(s.mean) + 1 / s.invstd), mean.dtype);
            torch_invstd.expect(c, get(invstd, int64_t(c)), their_invstd[c], slack * s.invstd,
                                invstd.dtype);
        }
    }

    void expect_running(const ConstVectorView &mean, const ConstVectorView &var) const {
        if (!tracking_) {
            EXPECT_FALSE(mean || var);
            return;
        }
        // The size of each step's terms and results, to see how far roundings may have led.
        std::vector<double> old[2] = {golden().values(name_ + "/running_mean_before"),
                                      golden().values(name_ + "/running_var_before")};
        std::vector<double> bounds[2] = {std::vector<double>(old[0].size()),
                                         std::vector<double>(old[0].size())};
        const DType buffer = golden().at(name_ + "/running_mean_before").dtype;
        for (size_t i = 0; i < steps_.size(); i++) {
            const std::vector<double> x = golden().values(data_name(steps_[i]));
            std::vector<double> batch[2] = {std::vector<double>(old[0].size()),
                                            std::vector<double>(old[0].size())};
            for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
                batch[0][size_t(c)] += x[index(n, c, h, w)] / count_;
            });
            for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
                const double d = x[index(n, c, h, w)] - batch[0][size_t(c)];
                batch[1][size_t(c)] += d * d / (count_ - 1);
            });
            const double f = factor(i);
            for (int which = 0; which < 2; which++) {
                for (size_t c = 0; c < old[0].size(); c++) {
                    const double stay = (1 - f) * old[which][c], come = f * batch[which][c];
                    const double sizes = std::fabs(stay) + std::fabs(come) +
                                         (which == 0 ? f * std::sqrt(batch[1][c]) : 0);
                    old[which][c] = stay + come;
                    bounds[which][c] = (1 - f) * bounds[which][c] + (4 * u_ + sum_) * sizes +
                                       unit_roundoff(buffer) * 1.01 * std::fabs(stay + come);
                }
            }
        }
        for (int which = 0; which < 2; which++) {
            const std::string record = which == 0 ? "running_mean" : "running_var";
            const std::vector<double> expected = golden().values(name_ + "/true/train/" + record);
            const std::vector<double> theirs = golden().values(name_ + "/torch/train/" + record);
            const ConstVectorView &actual = which == 0 ? mean : var;
            ASSERT_TRUE(actual) << record;
            EXPECT_EQ(actual.dtype, buffer);
            Judge truth(record), torch(record + " beside PyTorch's");
            for (size_t c = 0; c < expected.size(); c++) {
                // float64's own bound: its buffer's dtype is the statistic's, no half ulp on top.
                truth.expect(c, get(actual, int64_t(c)), expected[c], bounds[which][c],
                             DType::float64);
                torch.expect(c, get(actual, int64_t(c)), theirs[c],
                             loose(buffer) * (1 + std::fabs(expected[c])), DType::float64);
            }
        }
    }

    void expect_grad_parameters(const ConstVectorView &grad_weight,
                                const ConstVectorView &grad_bias, bool training) const {
        ASSERT_TRUE(grad_weight && grad_bias);
        const std::vector<Channel> all = channels(training);
        const std::string truth = name_ + "/true" + mode(training);
        const std::string torch = name_ + "/torch" + mode(training);
        Judge judge_weight("grad_weight"), judge_bias("grad_bias");
        Judge torch_weight("grad_weight beside PyTorch's"),
            torch_bias("grad_bias beside PyTorch's");
        for (size_t c = 0; c < all.size(); c++) {
            const Channel &s = all[c];
            const double sum = double(plain_sum_error(dtype_, count_));
            const double shift = training ? u_ * std::fabs(s.mean) * s.invstd : 0;
            // Without weight PyTorch has no such gradient; the sums are the same.
            const double weight =
                affine_ ? golden().values(truth + "grad_weight")[c] : s.sum_dy_xhat;
            const double bias = affine_ ? golden().values(truth + "grad_bias")[c] : s.sum_dy;
            const double actual_weight = get(grad_weight, int64_t(c));
            const double actual_bias = get(grad_bias, int64_t(c));
            // Running statistics have no spread, but x - mean and the sum round all the same.
            judge_weight.expect(
                c, actual_weight, weight,
                4 * u_ * std::fabs(weight) + 2 * sum * std::max(1.0, s.spread) * s.sum_abs_dy_xhat +
                    shift * std::fabs(s.sum_dy) + sum_ * s.spread * std::fabs(s.sum_dy),
                grad_weight.dtype);
            judge_bias.expect(c, actual_bias, bias, 2 * u_ * std::fabs(bias) + sum * s.sum_abs_dy,
                              grad_bias.dtype);
            if (affine_) {
                const double slack = loose(golden().at(torch + "grad_weight").dtype);
                torch_weight.expect(c, actual_weight, golden().values(torch + "grad_weight")[c],
                                    slack * (1 + s.spread) * (s.sum_abs_dy_xhat + s.sum_abs_dy),
                                    grad_weight.dtype);
                torch_bias.expect(c, actual_bias, golden().values(torch + "grad_bias")[c],
                                  slack * s.sum_abs_dy, grad_bias.dtype);
            }
        }
    }

    void expect_grad_input(const std::vector<double> &dx, bool training) const {
        const std::vector<Channel> all = channels(training);
        const std::vector<double> x = golden().values(data_name("x2"));
        const std::vector<double> dy = golden().values(data_name("dy"));
        const std::string record = mode(training) + "grad_input";
        const std::vector<double> expected = golden().values(name_ + "/true" + record);
        const std::vector<double> theirs = golden().values(name_ + "/torch" + record);
        Judge truth("grad_input"), torch("grad_input beside PyTorch's");
        for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) {
            const size_t i = index(n, c, h, w);
            const Channel &s = all[size_t(c)];
            const double gain = std::fabs(s.weight * s.invstd);
            const double xhat = std::fabs((x[i] - s.mean) * s.invstd);
            const double a = training ? std::fabs(s.sum_dy) / count_ : 0;
            const double b = training ? std::fabs(s.sum_dy_xhat) / count_ : 0;
            const double sums = training ? (s.sum_abs_dy + xhat * s.sum_abs_dy_xhat) / count_ : 0;
            const double shift = (u_ + sum_) * std::fabs(s.mean) * s.invstd;
            const double sum = double(plain_sum_error(dtype_, count_));
            const double size = std::fabs(dy[i]) + a + xhat * b;
            truth.expect(i, dx[i], expected[i],
                         gain * ((8 * u_ + (training ? sum_ : 0)) * size + shift * (b + xhat * a) +
                                 2 * sum * std::max(1.0, s.spread) * sums),
                         dtype_);
            torch.expect(i, dx[i], theirs[i], loose(dtype_) * (1 + s.spread) * gain * (size + sums),
                         dtype_);
        });
    }

    std::string name_;
    DType dtype_;
    Shape sizes_;
    double count_;  // M
    double eps_;
    bool affine_, tracking_;
    double u_, sum_;
    std::optional<double> momentum_;  // none: the case's steps are averaged
    std::vector<std::string> steps_;

    // ---- the operations

    void forward_training() {
        State weight = state("weight"), bias = state("bias");
        State mean = state("running_mean_before"), var = state("running_var_before");
        for (size_t i = 0; i < steps_.size(); i++) {
            const TestTensor x = data(steps_[i]);
            TestTensor y = empty();
            const ForwardResult result =
                functional::batch_norm_forward(x, weight.view(), bias.view(), mean.view(),
                                               var.view(), true, factor(i), eps_, y.view());
            if (i + 1 == steps_.size()) {
                expect_y(dense(y), true);
                EXPECT_TRUE(y.only_elements_written());
                expect_saved(result.mean, result.invstd);
            }
        }
        expect_running(mean.view(), var.view());
        if (!tracking_) {  // evaluation uses the batch's statistics then
            const Tensor y = functional::batch_norm(data("x2"), {}, {}, weight.view(), bias.view(),
                                                    false, 0.1, eps_);
            expect_y(dense(y), true);
        }
    }

    void forward_inference() {
        State weight = state("weight"), bias = state("bias");
        State mean = state("torch/train/running_mean"), var = state("torch/train/running_var");
        const std::vector<uint8_t> mean_before = mean.vector->bytes();
        const std::vector<uint8_t> var_before = var.vector->bytes();
        const TestTensor x = data("x2");
        TestTensor y = empty();
        const ForwardResult result = functional::batch_norm_forward(
            x, weight.view(), bias.view(), mean.view(), var.view(), false, 0.1, eps_, y.view());
        expect_y(dense(y), false);
        EXPECT_TRUE(y.only_elements_written());
        EXPECT_EQ(mean.vector->bytes(), mean_before);
        EXPECT_EQ(var.vector->bytes(), var_before);
        EXPECT_FALSE(result.mean || result.invstd);
    }

    void backward(bool training) {
        State weight = state("weight"), bias = state("bias");
        State mean, var;
        const TestTensor x = data("x2"), dy = data("dy");
        ForwardResult saved;
        if (training) {
            saved = functional::batch_norm_forward(x, weight.view(), bias.view(), {}, {}, true, 0,
                                                   eps_);
        } else {
            mean = state("torch/train/running_mean");
            var = state("torch/train/running_var");
        }
        TestTensor dx = empty();
        const Gradients gradients =
            functional::batch_norm_backward(dy, x, weight.view(), saved.mean, saved.invstd,
                                            mean.view(), var.view(), training, eps_, {}, dx.view());
        expect_grad_input(dense(dx), training);
        EXPECT_TRUE(dx.only_elements_written());
        expect_grad_parameters(gradients.grad_weight, gradients.grad_bias, training);
    }

    void split() {
        State weight = state("weight"), bias = state("bias");
        State mean = state("running_mean_before"), var = state("running_var_before");
        for (size_t i = 0; i + 1 < steps_.size(); i++) {
            functional::update_running_stats(functional::batch_norm_stats(data(steps_[i])),
                                             factor(i), mean.view(), var.view());
        }
        const TestTensor x = data("x2"), dy = data("dy");
        const Moments moments = functional::batch_norm_stats(x);
        EXPECT_EQ(moments.count, count_);
        functional::update_running_stats(moments, factor(steps_.size() - 1), mean.view(),
                                         var.view());
        expect_running(mean.view(), var.view());

        TestTensor y = empty();
        functional::batch_norm_normalize(x, moments, weight.view(), bias.view(), eps_, y.view());
        expect_y(dense(y), true);
        EXPECT_TRUE(y.only_elements_written());

        const auto [saved_mean, saved_invstd] = functional::mean_and_invstd(moments, eps_);
        expect_saved(saved_mean, saved_invstd);
        const functional::BackwardSums sums =
            functional::batch_norm_backward_reduce(dy, x, saved_mean, saved_invstd);
        expect_grad_parameters(sums.grad_weight, sums.grad_bias, true);
        TestTensor dx = empty();
        functional::batch_norm_backward_elemt(dy, x, saved_mean, saved_invstd, weight.view(), sums,
                                              count_, dx.view());
        expect_grad_input(dense(dx), true);
        EXPECT_TRUE(dx.only_elements_written());
    }

    void module() {
        BatchNorm2dOptions options;
        options.eps = eps_;
        options.momentum = momentum_;
        options.affine = affine_;
        options.track_running_stats = tracking_;
        // "own" cases have buffers of the tensor's dtype, the others' are the statistic's.
        options.dtype =
            tracking_ ? golden().at(name_ + "/running_mean_before").dtype : statistic_dtype(dtype_);
        BatchNorm2d module(sizes_[1], options);
        load_state(module, "", "_before");
        const TestTensor x = data("x2"), dy = data("dy");
        for (const std::string &step : steps_) {
            const TestTensor input = data(step);
            const Tensor y = module(input);
            if (step == "x2") {
                expect_y(dense(y), true);
            }
        }
        expect_saved(module.saved_mean(), module.saved_invstd());
        expect_running(module.running_mean(), module.running_var());
        if (tracking_) {
            EXPECT_EQ(module.num_batches_tracked(),
                      golden().get<int64_t>(name_ + "/torch/train/num_batches_tracked")[0]);
        }
        expect_module_gradients(module.backward(dy, x), true);

        if (tracking_) {  // the recorded evaluation is with PyTorch's buffers
            load_state(module, "torch/train/", "");
        }
        module.eval();
        expect_y(dense(module(x)), !tracking_);
        expect_module_gradients(module.backward(dy, x), !tracking_);
    }

    void expect_module_gradients(const Gradients &gradients, bool training) {
        expect_grad_input(dense(gradients.grad_input), training);
        if (affine_) {
            expect_grad_parameters(gradients.grad_weight, gradients.grad_bias, training);
        }
    }

    void load_state(BatchNorm2d &module, const std::string &before, const std::string &after) {
        std::map<std::string, Golden::Record> copies;
        for (const char *name : {"weight", "bias"}) {
            if (affine_) {
                copies[name] = golden().at(name_ + "/" + name);
            }
        }
        for (const char *name : {"running_mean", "running_var", "num_batches_tracked"}) {
            if (tracking_) {
                copies[name] = golden().at(name_ + "/" + before + name + after);
            }
        }
        StateDict state;
        for (auto &[name, record] : copies) {
            state[name] = {record.bytes.data(), record.dtype, record.shape};
        }
        module.load_state_dict(state);
    }
};

TEST_P(GoldenTest, AgreesWithPyTorch) {
    switch (GetParam().operation) {
    case Operation::forward_training:
        return forward_training();
    case Operation::forward_inference:
        return forward_inference();
    case Operation::backward_training:
        return backward(true);
    case Operation::backward_inference:
        return backward(false);
    case Operation::split:
        return split();
    case Operation::module:
        return module();
    }
}

INSTANTIATE_TEST_SUITE_P(, GoldenTest, ::testing::ValuesIn(all_cases()),
                         [](const ::testing::TestParamInfo<Case> &info) {
                             return name_of_case(info.param);
                         });

// The 16-bit conversions that tests judge by, exhaustively.
TEST(Half, every_value_survives_and_middles_go_to_even) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        for (DType dtype : {DType::bfloat16, DType::float16}) {
            const uint16_t half = uint16_t(bits),
                           infinity = dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
            const auto narrow = [&](double value) {
                uint16_t narrowed;
                store(dtype, value, &narrowed);
                return narrowed;
            };
            const double value = load(dtype, &half);
            if ((half & 0x7fff) > infinity) {
                EXPECT_TRUE(std::isnan(value));
                EXPECT_GT(narrow(value) & 0x7fff, infinity);
                continue;
            }
            ASSERT_EQ(narrow(value), half);
            if ((half & 0x7fff) + 1 < infinity) {
                const uint16_t next = uint16_t(half + 1);
                const double middle = (value + load(dtype, &next)) / 2;
                ASSERT_EQ(narrow(middle), half & 1 ? next : half) << middle;
            }
        }
    }
}

}  // namespace
}  // namespace hbn::test
