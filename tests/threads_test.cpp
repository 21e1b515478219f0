// Threads change the time, never a bit of the result; and problems cut into pieces stay within the bound.
#include "oracle.h"
#include "runtime/internal.h"

#include <hbn/batch_norm_2d.h>

#include <atomic>
#include <thread>

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

// Every byte that a forward and a backward pass write.
std::vector<uint8_t> everything(DType dtype, Layout layout, const Shape &sizes) {
    Normal normal{31};
    TestTensor x(dtype, sizes, layout), dy(dtype, sizes, layout), y(dtype, sizes, layout),
        dx(dtype, sizes, layout);
    x.fill([&](int64_t c) { return normal(double(c)); });
    dy.fill([&](int64_t) { return normal(); });
    const auto saved = functional::batch_norm_forward(x, {}, {}, {}, {}, true, 0.1, kEps, y.view());
    const auto g = functional::batch_norm_backward(dy, x, {}, saved.mean, saved.invstd, {}, {},
                                                   true, kEps, {}, dx.view());
    std::vector<uint8_t> bytes = y.bytes();
    bytes.insert(bytes.end(), dx.bytes().begin(), dx.bytes().end());
    for (const VectorView &v :
         {saved.mean.view(), saved.invstd.view(), g.grad_weight.view(), g.grad_bias.view()}) {
        const uint8_t *data = static_cast<const uint8_t *>(v.data);
        bytes.insert(bytes.end(), data, data + v.size * int64_t(size_of(v.dtype)));
    }
    return bytes;
}

class Threads : public ::testing::TestWithParam<std::tuple<DType, Layout>> {
protected:
    void TearDown() override {
        hbn_set_parallel_for(nullptr, nullptr);
        set_num_threads(0);
    }
};

TEST_P(Threads, one_two_and_seven_give_the_same_bits) {
    const auto [dtype, layout] = GetParam();
    const Shape sizes{5, 13, 37, 41};
    set_num_threads(1);
    EXPECT_EQ(get_num_threads(), 1);
    const auto expected = everything(dtype, layout, sizes);
    for (int threads : {2, 7}) {
        set_num_threads(threads);
        EXPECT_EQ(get_num_threads(), threads);
        for (int repeat = 0; repeat < 3; repeat++) {
            EXPECT_EQ(everything(dtype, layout, sizes), expected) << threads << " threads";
        }
    }
}

TEST_P(Threads, a_callers_executor_gives_the_same_bits) {
    const auto [dtype, layout] = GetParam();
    const Shape sizes{5, 13, 37, 41};
    set_num_threads(1);
    const auto expected = everything(dtype, layout, sizes);
    std::atomic<int> tasks{0};
    hbn_set_parallel_for(
        [](void *context, int size, void (*task)(void *, int), void *task_context) {
            *static_cast<std::atomic<int> *>(context) += size;
            for (int i = size - 1; i >= 0; i--) {  // any order will do
                task(task_context, i);
            }
        },
        &tasks);
    set_num_threads(4);
    EXPECT_EQ(everything(dtype, layout, sizes), expected);
    EXPECT_GT(tasks, 0);
}

INSTANTIATE_TEST_SUITE_P(, Threads,
                         ::testing::Combine(::testing::Values(DType::float32, DType::float64,
                                                              DType::bfloat16, DType::float16),
                                            ::testing::Values(Layout::nchw, Layout::nhwc,
                                                              Layout::strided)),
                         [](const auto &info) {
                             return std::string(name_of(std::get<0>(info.param))) + "_" +
                                    name_of_layout(std::get<1>(info.param));
                         });

TEST(Callers, several_threads_at_once) {
    const Shape sizes{4, 8, 33, 35};
    set_num_threads(2);
    const auto expected = everything(DType::float32, Layout::nchw, sizes);
    std::atomic<int> different{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; i++) {
        callers.emplace_back([&] {
            for (int repeat = 0; repeat < 5; repeat++) {
                different += everything(DType::float32, Layout::nchw, sizes) != expected;
            }
        });
    }
    for (std::thread &caller : callers) {
        caller.join();
    }
    set_num_threads(0);
    EXPECT_EQ(different, 0);
}

TEST(Callers, negative_thread_count_is_refused) {
    const int before = get_num_threads();
    EXPECT_THROW(set_num_threads(-1), std::invalid_argument);
    EXPECT_EQ(get_num_threads(), before);
}

// Tensors too large for a kernel's 32-bit indices are cut; a low limit shows it on small ones.
class Pieces : public ::testing::TestWithParam<std::tuple<Layout, int>> {
protected:
    void TearDown() override {
        internal::set_max_elements_per_kernel(0);
    }
};

TEST_P(Pieces, stay_within_the_bound) {
    const auto [layout, limit] = GetParam();
    const Shape sizes{3, 5, 7, 9};
    Normal normal{41};
    TestTensor x(DType::float32, sizes, layout), dy(DType::float32, sizes, layout);
    TestTensor y(DType::float32, sizes, layout), dx(DType::float32, sizes, layout);
    x.fill([&](int64_t c) { return normal(100 * double(c)); });
    dy.fill([&](int64_t) { return normal(); });
    internal::set_max_elements_per_kernel(limit);
    const auto saved = functional::batch_norm_forward(x, {}, {}, {}, {}, true, 0.1, kEps, y.view());
    const auto gradients = functional::batch_norm_backward(dy, x, {}, saved.mean, saved.invstd, {},
                                                           {}, true, kEps, {}, dx.view());
    const Real count = 3 * 7 * 9;
    for (int64_t c = 0; c < 5; c++) {
        expect_normalized(x, y, c, ChannelOracle(x, c, kEps), 1, 0);
        const ChannelOracle s(get(saved.mean, c), get(saved.invstd, c), count);
        const GradientOracle g(dy, x, c, s);
        expect_grad_input(dy, x, dx, c, s, 1, g, true);
        g.expect_parameters(get(gradients.grad_weight, c), get(gradients.grad_bias, c),
                            DType::float32, count);
    }
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_TRUE(dx.only_elements_written());
}

TEST_P(Pieces, of_derivatives_stay_within_the_bound) {
    const auto [layout, limit] = GetParam();
    const Shape sizes{3, 5, 7, 9};
    Normal normal{43};
    TestTensor x(DType::float32, sizes, layout), dy(DType::float32, sizes, layout),
        ddx(DType::float32, sizes, layout), ddy(DType::float32, sizes, layout),
        dx(DType::float32, sizes, layout);
    x.fill([&](int64_t c) { return normal(double(c)); });
    dy.fill([&](int64_t) { return normal(1); });
    ddx.fill([&](int64_t) { return normal(-1); });
    TestVector ddw(DType::float32, normal.values(5)), ddb(DType::float32, normal.values(5));
    const auto saved = functional::batch_norm_forward(x, {}, {}, {}, {}, true, 0.1, kEps);
    internal::set_max_elements_per_kernel(limit);
    const auto gradients =
        functional::batch_norm_double_backward(ddx, ddw, ddb, dy, x, {}, saved.mean, saved.invstd,
                                               {}, {}, true, kEps, ddy.view(), dx.view());
    for (int64_t c = 0; c < 5; c++) {
        const ChannelOracle s(get(saved.mean, c), get(saved.invstd, c), 3 * 7 * 9);
        expect_tangent(ddx, x, ddy, c, s, 1, ddw[c], ddb[c], true);
        expect_double_backward(ddx, dy, x, dx, get(gradients.grad_weight, c), c, s, 1, ddw[c],
                               true);
    }
}

INSTANTIATE_TEST_SUITE_P(, Pieces,
                         ::testing::Combine(::testing::Values(Layout::nchw, Layout::nhwc,
                                                              Layout::strided),
                                            ::testing::Values(1, 8, 40, 100, 333)),
                         [](const auto &info) {
                             return std::string(name_of_layout(std::get<0>(info.param))) + "_of_" +
                                    std::to_string(std::get<1>(info.param));
                         });

}  // namespace
}  // namespace hbn::test
