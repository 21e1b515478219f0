// No kernel asks for more scratch memory than was booked for it, whatever the operation, dtype, layout and shape.
#include "every_operation.h"
#include "tensors.h"
#include "runtime/context.h"
#include "runtime/internal.h"
#include "runtime/scratch_bound.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>

namespace hbn::test {
namespace {

// The largest part of what was booked that was used: a bound that is far from it wastes memory.
struct Use {
    double caller = 0, task = 0;

    void add(const hbn_context &context) {
        for (const internal::CallMemory *m = context.memories; m; m = m->next) {
            caller = std::max(caller, double(m->caller.peak()) / double(m->caller.booked()));
            for (int i = 0; i < m->num_tasks; i++) {
                task = std::max(task, double(m->tasks[i].peak()) / double(m->tasks[i].booked()));
            }
        }
    }
} use;

void run_all(hbn_context *context, hbn_dtype dtype, const int64_t (&sizes)[4],
             const int64_t (&strides)[4]) {
    const bool wide = dtype == HBN_FLOAT64;
    // One that is fused, and one of those that are maps: the others' kernels ask for as much.
    EveryOperation all(dtype, sizes, strides, wide ? HBN_FLOAT64 : HBN_FLOAT32,
                       {HBN_RELU, HBN_SILU});
    for (const Operation &operation : all.operations) {
        const int64_t before = internal::scratch_overflows();
        const hbn_status status = operation.call();
        // Fused forms of what is cut to pieces.
        ASSERT_TRUE(status == HBN_OK || status == HBN_UNSUPPORTED)
            << operation.name << ": " << hbn_last_error();
        use.add(*context);
        ASSERT_EQ(internal::scratch_overflows(), before)
            << operation.name << ", dtype " << dtype << ", sizes " << sizes[0] << " " << sizes[1]
            << " " << sizes[2] << " " << sizes[3] << ", strides " << strides[0] << " " << strides[1]
            << " " << strides[2] << " " << strides[3];
    }
}

enum class Order { nchw, nhwc, crop_of_nchw, crop_of_nhwc, strided };
constexpr Order kOrders[] = {Order::nchw, Order::nhwc, Order::crop_of_nchw, Order::crop_of_nhwc,
                             Order::strided};

void run_shape(hbn_context *context, hbn_dtype dtype, Order order, const int64_t (&sizes)[4]) {
    const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
    int64_t strides[4] = {c * h * w, h * w, w, 1};
    switch (order) {
    case Order::nchw:
        break;
    case Order::nhwc:
        std::copy_n(std::initializer_list<int64_t>{c * h * w, 1, c * w, c}.begin(), 4, strides);
        break;
    case Order::crop_of_nchw:
        std::copy_n(
            std::initializer_list<int64_t>{c * h * (w + 1) + 3, h * (w + 1), w + 1, 1}.begin(), 4,
            strides);
        break;
    case Order::crop_of_nhwc:
        std::copy_n(
            std::initializer_list<int64_t>{(c + 1) * h * w + 5, 1, (c + 1) * w, c + 1}.begin(), 4,
            strides);
        break;
    case Order::strided:
        std::copy_n(std::initializer_list<int64_t>{3 * w * h * c, 3, 3 * w * c, 3 * c}.begin(), 4,
                    strides);
        break;
    }
    run_all(context, dtype, sizes, strides);
}

class Scratch : public ::testing::TestWithParam<hbn_dtype> {
protected:
    void SetUp() override {
        hbn_context_options options{};
        options.num_threads = 3;
        ASSERT_EQ(hbn_context_create(&options, &context_), HBN_OK) << hbn_last_error();
        before_ = hbn_use_context(context_);
    }
    void TearDown() override {
        internal::set_max_elements_per_kernel(0);
        std::printf("at most %.2f of the caller's, %.2f of a task's\n", use.caller, use.task);
        use = {};
        hbn_use_context(before_);
        hbn_context_destroy(context_);
    }

    hbn_context *context_ = nullptr;

private:
    hbn_context *before_ = nullptr;
};

// Few and many channels, rows and columns, on both sides of the sizes at which layout.cpp decides.
const int64_t kShapes[][4] = {
    {1, 1, 1, 2},     {2, 1, 1, 1},      {12, 4, 8, 8},    {3, 5, 7, 9},     {1, 1, 300, 400},
    {50, 1, 30, 40},  {1, 15, 129, 255}, {1, 3, 1, 65537}, {1, 2, 65537, 1}, {20000, 2, 1, 2},
    {20, 16, 30, 30}, {2, 64, 28, 28},   {33, 128, 7, 7},  {1, 256, 16, 16}, {1, 100, 31, 33},
    {2, 1021, 5, 5},  {2, 1024, 7, 7},   {2, 1025, 7, 5},  {1, 2048, 8, 8},  {1, 5000, 3, 3},
    {2, 5003, 1, 5},  {30, 5003, 1, 1},  {3, 1, 1, 40000}, {1, 30000, 1, 2}, {20000, 7, 1, 1},
    {400, 600, 1, 1}, {64, 33, 1, 17},   {1, 3, 224, 224}, {17, 97, 10, 13}, {1, 10007, 2, 1},
};

TEST_P(Scratch, stays_within_what_was_booked) {
    for (const auto &sizes : kShapes) {
        for (const Order order : kOrders) {
            run_shape(context_, GetParam(), order, sizes);
            if (HasFatalFailure()) {
                return;
            }
        }
    }
}

// Beyond the cache, where blocks of channels are wider.
TEST_P(Scratch, of_large_tensors) {
    for (const Order order : {Order::nchw, Order::nhwc}) {
        run_shape(context_, GetParam(), order, {130, 64, 30, 32});
        run_shape(context_, GetParam(), order, {64, 2048, 7, 7});
    }
}

TEST_P(Scratch, of_random_shapes) {
    std::mt19937 random(7);
    const auto up_to = [&](double most) {
        return int64_t(std::exp(std::uniform_real_distribution<double>(0, std::log(most))(random)));
    };
    for (int i = 0; i < 30; i++) {
        const int64_t n = 1 + up_to(60), c = up_to(3000), h = up_to(300),
                      w = std::max<int64_t>(1, std::min<int64_t>(up_to(300), 100000 / (n * c * h)));
        if (n * c * h * w > 120000) {
            continue;
        }
        run_shape(context_, GetParam(), kOrders[i % 5], {n, c, h, w});
        if (HasFatalFailure()) {
            return;
        }
    }
}

TEST_P(Scratch, of_pieces) {
    for (const int64_t most : {100, 5000, 40000}) {
        internal::set_max_elements_per_kernel(most);
        for (const Order order : kOrders) {
            run_shape(context_, GetParam(), order, {3, 20, 30, 31});
            run_shape(context_, GetParam(), order, {2, 1500, 3, 5});
        }
    }
}

INSTANTIATE_TEST_SUITE_P(, Scratch,
                         ::testing::Values(HBN_FLOAT32, HBN_FLOAT64, HBN_BFLOAT16, HBN_FLOAT16),
                         [](const auto &info) { return std::string(name_of(DType(info.param))); });

// What parts of a problem need is less than what the whole needs: calls book for the whole.
TEST(ScratchBound, grows_with_the_shape) {
    for (const hbn_dtype dtype : {HBN_FLOAT32, HBN_FLOAT64, HBN_BFLOAT16, HBN_FLOAT16}) {
        for (int64_t c = 1; c < 100000; c = c * 3 / 2 + 1) {
            for (int64_t r = 1; r < (int64_t(1) << 36); r = r * 2 + 1) {
                const internal::ScratchBytes all = internal::scratch_bytes(c, r, dtype);
                const internal::ScratchBytes fewer_channels =
                    internal::scratch_bytes((c + 1) / 2, r, dtype);
                const internal::ScratchBytes fewer_values =
                    internal::scratch_bytes(c, (r + 1) / 2, dtype);
                ASSERT_GE(all.caller, fewer_channels.caller) << c << " " << r;
                ASSERT_GE(all.caller, fewer_values.caller) << c << " " << r;
                ASSERT_GE(all.task, fewer_channels.task) << c << " " << r;
                ASSERT_GE(all.task, fewer_values.task) << c << " " << r;
            }
        }
    }
}

}  // namespace
}  // namespace hbn::test
