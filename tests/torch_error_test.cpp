// No further from the truth than PyTorch, on the inputs that break implementations: golden/torch_errors.csv has
// PyTorch's errors on the same data.
#include "hard_inputs.h"
#include "oracle.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

// Both are given a saved mean rounded to float32, which can be nearly all of grad_input's error.
constexpr double kSameError = 1.01;
// Of the oracle that PyTorch was measured with; long double may be wider here.
constexpr double kOracleError = 0x1p-64;

struct TorchErrors {
    std::string checksum;
    double y, grad_input;
};

TorchErrors torch_errors(const std::string &input, Layout layout, bool large_parameters) {
    std::ifstream file(HBN_GOLDEN_DIR "/torch_errors.csv");
    const std::string row =
        input + "," + name_of_layout(layout) + "," + (large_parameters ? "1000" : "1") + ",";
    for (std::string line; std::getline(file, line);) {
        if (line.compare(0, row.size(), row) == 0) {
            std::istringstream rest(line.substr(row.size()));
            std::string checksum, y, grad_input;
            std::getline(rest, checksum, ',');
            std::getline(rest, y, ',');
            std::getline(rest, grad_input);
            return {checksum, std::stod(y), std::stod(grad_input)};
        }
    }
    throw std::out_of_range("no golden error of " + row);
}

// FNV-1a, 64 bits.
class Checksum {
public:
    void add(double value) {
        const float narrow = float(value);
        uint32_t bits;
        std::memcpy(&bits, &narrow, 4);
        for (int i = 0; i < 4; i++) {
            state_ = (state_ ^ (bits >> 8 * i & 0xff)) * 0x100000001b3;
        }
    }
    std::string text() const {
        char text[17];
        std::snprintf(text, sizeof text, "%016llx", (unsigned long long)state_);
        return text;
    }

private:
    uint64_t state_ = 0xcbf29ce484222325;
};

class TorchError : public ::testing::TestWithParam<std::tuple<HardInput, Layout, bool>> {
protected:
    const Layout layout = std::get<1>(GetParam());
    HardProblem problem{std::get<0>(GetParam()), layout, std::get<2>(GetParam())};
    const TorchErrors theirs =
        torch_errors(std::get<0>(GetParam()).name, layout, std::get<2>(GetParam()));
    TestTensor &x = problem.x;
    TestTensor dy{DType::float32, problem.sizes, layout},
        out{DType::float32, problem.sizes, layout};

    void SetUp() override {
        Normal normal{12};
        dy.fill([&](int64_t) { return normal(); });
    }

    template<typename Add>
    void for_each(Add add) const {
        for (int64_t c = 0; c < 8; c++) {
            x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) { add(n, c, h, w); });
        }
    }

    // The largest error of `out` in units of `size`; both functions are of an element and its xhat.
    template<typename Expected, typename Size>
    double largest_error(int64_t c, const ChannelOracle &s, Expected expected, Size size) const {
        double largest = 0;
        x.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            const Real xhat = (Real(x.get(n, c, h, w)) - s.mean) * s.invstd;
            const Real g = dy.get(n, c, h, w);
            const Real error = std::fabs(Real(out.get(n, c, h, w)) - expected(xhat, g));
            EXPECT_TRUE(std::isfinite(error));
            largest = std::max(largest, error == 0 ? 0 : double(error / size(xhat, g)));
        });
        return largest;
    }
};

TEST_P(TorchError, is_of_the_same_data) {
    Checksum checksum;
    for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) { checksum.add(x.get(n, c, h, w)); });
    for (const TestVector *v : {&problem.weight, &problem.bias}) {
        for (int64_t c = 0; c < 8; c++) {
            checksum.add((*v)[c]);
        }
    }
    for_each([&](int64_t n, int64_t c, int64_t h, int64_t w) { checksum.add(dy.get(n, c, h, w)); });
    EXPECT_EQ(checksum.text(), theirs.checksum);
}

TEST_P(TorchError, of_y_is_no_smaller) {
    functional::batch_norm_forward(x, problem.weight, problem.bias, {}, {}, true, 0.1, kEps,
                                   out.view());
    double ours = 0;
    for (int64_t c = 0; c < 8; c++) {
        const Real weight = problem.weight[c], bias = problem.bias[c];
        ours = std::max(
            ours,
            largest_error(
                c, ChannelOracle(x, c, kEps), [&](Real xhat, Real) { return xhat * weight + bias; },
                [&](Real xhat, Real) {
                    return std::fmax(Real(1), std::fabs(xhat * weight) + std::fabs(bias));
                }));
    }
    EXPECT_LE(ours, theirs.y + kOracleError);
}

TEST_P(TorchError, of_grad_input_is_no_smaller) {
    const auto saved =
        functional::batch_norm_forward(x, problem.weight, problem.bias, {}, {}, true, 0.1, kEps);
    functional::batch_norm_backward(dy, x, problem.weight, saved.mean, saved.invstd, {}, {}, true,
                                    kEps, {}, out.view());
    double ours = 0;
    for (int64_t c = 0; c < 8; c++) {
        const ChannelOracle s(x, c, kEps);
        const GradientOracle g(dy, x, c, s);
        const Real gain = Real(problem.weight[c]) * s.invstd;
        const Real a = g.sum_dy / s.count, b = g.sum_dy_xhat / s.count;
        ours =
            std::max(ours, largest_error(
                               c, s, [&](Real xhat, Real dy) { return gain * (dy - a - xhat * b); },
                               [&](Real xhat, Real dy) {
                                   return std::fabs(gain) *
                                          (std::fabs(dy) + std::fabs(a) + std::fabs(xhat * b));
                               }));
    }
    EXPECT_LE(ours, theirs.grad_input * kSameError);
}

INSTANTIATE_TEST_SUITE_P(, TorchError,
                         ::testing::Combine(::testing::ValuesIn(hard_inputs),
                                            ::testing::Values(Layout::nchw, Layout::nhwc),
                                            ::testing::Bool()),
                         [](const auto &info) {
                             return std::string(std::get<0>(info.param).name) + "_" +
                                    name_of_layout(std::get<1>(info.param)) +
                                    (std::get<2>(info.param) ? "_large_parameters" : "");
                         });

}  // namespace
}  // namespace hbn::test
