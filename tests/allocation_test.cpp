// In the steady state no call allocates, on any thread; and where malloc fails, a call has changed nothing.
#include "every_operation.h"
#include "oracle.h"
#include "runtime/engine/tuning.h"

#include <hbn/batch_norm_2d.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <optional>
#include <thread>

// Sanitizers have an allocator of their own in the place of this one.
#if defined(HBN_TEST_SANITIZED)
#define HBN_TEST_COUNTS_ALLOCATIONS 0
#elif defined(__GLIBC__)
#define HBN_TEST_COUNTS_ALLOCATIONS 1
#else
#define HBN_TEST_COUNTS_ALLOCATIONS 0
#endif

namespace {

std::atomic<int64_t> allocations{0};
std::atomic<size_t> largest_allocation{0};
// Of this thread's: the one to fail, counted from 0; -1 for none.
thread_local int64_t allocation_to_fail = -1;

// False where it is to fail.
[[maybe_unused]] bool count_allocation(size_t bytes) {
    allocations++;
    if (bytes > largest_allocation) {
        largest_allocation = bytes;
    }
    if (allocation_to_fail < 0 || allocation_to_fail-- != 0) {
        return true;
    }
    errno = ENOMEM;
    return false;
}

}  // namespace

#if HBN_TEST_COUNTS_ALLOCATIONS

// In glibc's place; operator new, of any form, comes down to one of these. What follows are its own, under the
// names it keeps for those who replace them.
extern "C" {
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void *malloc(size_t bytes) {
    return count_allocation(bytes) ? __libc_malloc(bytes) : nullptr;
}
void *calloc(size_t count, size_t bytes) {
    return count_allocation(count * bytes) ? __libc_calloc(count, bytes) : nullptr;
}
void *realloc(void *old, size_t bytes) {
    return count_allocation(bytes) ? __libc_realloc(old, bytes) : nullptr;
}
void *memalign(size_t alignment, size_t bytes) {
    return count_allocation(bytes) ? __libc_memalign(alignment, bytes) : nullptr;
}
void *aligned_alloc(size_t alignment, size_t bytes) {
    return memalign(alignment, bytes);
}
int posix_memalign(void **data, size_t alignment, size_t bytes) {
    *data = memalign(alignment, bytes);
    return *data ? 0 : ENOMEM;
}
}  // extern "C"

#endif

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

// Two threads that always take the same halves of a loop, so that both are warm after one call. hbn's own pool
// shares loops out as it comes.
class Halves {
public:
    Halves() : second_([this] { work(); }) {
        hbn_set_parallel_for(
            [](void *self, int size, void (*task)(void *, int), void *context) {
                static_cast<Halves *>(self)->run(size, task, context);
            },
            this);
    }
    ~Halves() {
        hbn_set_parallel_for(nullptr, nullptr);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        changed_.notify_all();
        second_.join();
    }

private:
    void run(int size, void (*task)(void *, int), void *context) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            size_ = size;
            task_ = task;
            context_ = context;
        }
        changed_.notify_all();
        for (int i = 0; i < size; i += 2) {
            task(context, i);
        }
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !task_; });
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            changed_.wait(lock, [&] { return task_ || stopping_; });
            if (stopping_) {
                return;
            }
            lock.unlock();
            for (int i = 1; i < size_; i += 2) {
                task_(context_, i);
            }
            lock.lock();
            task_ = nullptr;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    int size_ = 0;
    void (*task_)(void *, int) = nullptr;
    void *context_ = nullptr;
    bool stopping_ = false;
    std::thread second_;
};

struct Case {
    const char *name;
    Shape sizes, strides;
    internal::Layout kernel;  // of forward_training
};

// Large enough to be shared out among threads.
const Case cases[] = {
    {"nchw", {8, 32, 40, 40}, dense_strides({8, 32, 40, 40}), internal::Layout::nchw},
    {"nchw_few_channels",
     {4, 3, 80, 80},
     dense_strides({4, 3, 80, 80}),
     internal::Layout::nchw_few_channels},
    {"blocks", {64, 128, 7, 7}, dense_strides({64, 128, 7, 7}), internal::Layout::blocks},
    {"rows",
     {8, 64, 28, 28},
     dense_strides({8, 64, 28, 28}, MemoryFormat::channels_last),
     internal::Layout::rows},
    {"rows_of_many_channels",
     {8, 2048, 7, 7},
     dense_strides({8, 2048, 7, 7}, MemoryFormat::channels_last),
     internal::Layout::rows},
    {"strided",
     {8, 16, 28, 28},
     strides_of({8, 16, 28, 28}, Layout::strided),
     internal::Layout::rows},  // of copies
};

enum class Parallel { one_thread, two_threads, pool_of_two };

const char *name_of_parallel(Parallel parallel) {
    static const char *const names[] = {"one_thread", "two_threads", "pool_of_two"};
    return names[int(parallel)];
}

class Allocation : public ::testing::TestWithParam<std::tuple<Case, DType, Parallel>> {
protected:
    const Case &p = std::get<0>(GetParam());
    const DType dtype = std::get<1>(GetParam());
    const Parallel parallel = std::get<2>(GetParam());
    const DType statistics = statistic_dtype(dtype);
    const int64_t channels = p.sizes[1];
    Normal normal{17};
    TestTensor x{dtype, p.sizes, p.strides}, dy{dtype, p.sizes, p.strides};
    TestTensor y{dtype, p.sizes, p.strides}, dx{dtype, p.sizes, p.strides};
    // In the statistic type, and in the tensors' own, which takes conversions.
    TestVector weight{dtype, normal.values(channels)}, bias{statistics, normal.values(channels)};
    TestVector running_mean{dtype, normal.values(channels)};
    TestVector running_var{statistics, normal.values(channels, 4, 0.5)};
    TestVector mean{DType::float64, normal.values(channels)};
    TestVector invstd{DType::float64, normal.values(channels, 1, 0.1)};
    TestVector grad_weight{dtype, normal.values(channels)};
    TestVector grad_bias{statistics, normal.values(channels)};

    void SetUp() override {
#if !HBN_TEST_COUNTS_ALLOCATIONS
        GTEST_SKIP() << "malloc can be counted with glibc's own allocator only, not a sanitizer's";
#endif
        // Any values do; normal ones would take most of the time.
        x.fill([&](int64_t i) { return double(i % 61) / 32 - 1; });
        dy.fill([&](int64_t i) { return double(i % 53) / 32 - 1; });
        hbn_set_num_threads(parallel == Parallel::one_thread ? 1 : 2);
        if (parallel == Parallel::two_threads) {
            halves_.emplace();
        }
    }
    void TearDown() override {
        halves_.reset();
        hbn_set_num_threads(0);
    }

    template<typename Call>
    static int64_t allocations_of(Call call) {
        largest_allocation = 0;
        const int64_t before = allocations;
        call();
        return allocations - before;
    }

    template<typename Call>
    void expect_steady(const char *name, Call call, int64_t expected = 0) {
        call();
        call();
        int64_t count = allocations_of(call);
        // The pool's second thread may join only in a later call, and is warm after some; then a call allocates
        // no more than ever.
        for (int i = 0; i < 100 && count > expected && parallel == Parallel::pool_of_two; i++) {
            count = allocations_of(call);
        }
        EXPECT_EQ(count, expected) << name << ", the largest of " << largest_allocation << " bytes";
    }

private:
    std::optional<Halves> halves_;
};

hbn_tensor c_tensor(const TestTensor &t) {
    const TensorView &v = t.view();
    hbn_tensor c{v.data, hbn_dtype(v.dtype), HBN_CPU, 4, {}, {}};
    std::copy(v.sizes.begin(), v.sizes.end(), c.sizes);
    std::copy(v.strides.begin(), v.strides.end(), c.strides);
    return c;
}

hbn_vector c_vector(TestVector &vector) {
    const VectorView v = vector;
    return {v.data, hbn_dtype(v.dtype), v.size, v.stride, HBN_CPU};
}

TEST_P(Allocation, none_through_the_c_api) {
    const hbn_tensor c_x = c_tensor(x), c_y = c_tensor(y), c_dy = c_tensor(dy), c_dx = c_tensor(dx);
    const hbn_vector w = c_vector(weight), b = c_vector(bias), rm = c_vector(running_mean),
                     rv = c_vector(running_var), m = c_vector(mean), s = c_vector(invstd),
                     gw = c_vector(grad_weight), gb = c_vector(grad_bias);
    hbn_status status = HBN_OK;
    expect_steady("forward, training", [&] {
        status = hbn_batch_norm_forward(&c_x, &w, &b, &rm, &rv, 1, 0.1, kEps, &c_y, &m, &s);
    });
    EXPECT_EQ(status, HBN_OK) << hbn_last_error();
    EXPECT_EQ(internal::last_view().layout, p.kernel);
    expect_steady("forward, inference", [&] {
        status =
            hbn_batch_norm_forward(&c_x, &w, &b, &rm, &rv, 0, 0.1, kEps, &c_y, nullptr, nullptr);
    });
    EXPECT_EQ(status, HBN_OK) << hbn_last_error();
    for (const bool input : {true, false}) {
        const hbn_tensor *to = input ? &c_dx : nullptr;
        expect_steady("backward, training", [&] {
            status = hbn_batch_norm_backward(&c_dy, &c_x, &w, &m, &s, nullptr, nullptr, 1, kEps, to,
                                             &gw, &gb);
        });
        EXPECT_EQ(status, HBN_OK) << hbn_last_error();
        expect_steady("backward, inference", [&] {
            status = hbn_batch_norm_backward(&c_dy, &c_x, &w, nullptr, nullptr, &rm, &rv, 0, kEps,
                                             to, &gw, &gb);
        });
        EXPECT_EQ(status, HBN_OK) << hbn_last_error();
    }
}

TEST_P(Allocation, none_where_an_entry_is_looked_for) {
    const hbn_tensor c_x = c_tensor(x), c_y = c_tensor(y), c_dy = c_tensor(dy), c_dx = c_tensor(dx);
    const hbn_vector w = c_vector(weight), m = c_vector(mean), s = c_vector(invstd);
    internal::Tuning tuning;
    tuning.thresholds.serial_elements = 1024;
    tuning.thresholds.nhwc_columns = 2048;
    for (const auto kernel :
         {internal::Kernel::forward_training, internal::Kernel::backward_training}) {
        ASSERT_EQ(set_tuning(kernel, c_x.dtype, tuning), HBN_OK) << hbn_last_error();
    }
    hbn_status status = HBN_OK;
    expect_steady("forward", [&] {
        status =
            hbn_batch_norm_forward(&c_x, &w, nullptr, nullptr, nullptr, 1, 0.1, kEps, &c_y, &m, &s);
    });
    EXPECT_EQ(status, HBN_OK) << hbn_last_error();
    expect_steady("backward", [&] {
        status = hbn_batch_norm_backward(&c_dy, &c_x, &w, &m, &s, nullptr, nullptr, 1, kEps, &c_dx,
                                         nullptr, nullptr);
    });
    EXPECT_EQ(status, HBN_OK) << hbn_last_error();
    internal::clear_tunings();
}

TEST_P(Allocation, none_with_an_activation) {
    const hbn_tensor c_x = c_tensor(x), c_y = c_tensor(y), c_dy = c_tensor(dy), c_dx = c_tensor(dx);
    const hbn_vector w = c_vector(weight), b = c_vector(bias), rm = c_vector(running_mean),
                     rv = c_vector(running_var), gw = c_vector(grad_weight),
                     gb = c_vector(grad_bias);
    std::vector<double> mean_values(size_t(rm.size)), invstd_values(size_t(rm.size));
    const hbn_vector m{mean_values.data(), HBN_FLOAT64, rm.size, 1, HBN_CPU};
    const hbn_vector s{invstd_values.data(), HBN_FLOAT64, rm.size, 1, HBN_CPU};
    const TestTensor residual_gradient(x), mask_memory(x);
    const hbn_tensor c_dr = c_tensor(residual_gradient);
    hbn_tensor c_mask = c_tensor(mask_memory);
    c_mask.dtype = HBN_UINT8;
    hbn_status status = HBN_OK;
    const hbn_activation relu{HBN_RELU, 0, 0};
    for (const int training : {1, 0}) {
        expect_steady("relu forward", [&] {
            status = hbn_batch_norm_activation_forward(&c_x, nullptr, &w, &b, &rm, &rv, training,
                                                       0.1, kEps, &relu, &c_y, nullptr, &m, &s);
        });
        EXPECT_EQ(status, HBN_OK) << hbn_last_error();
        expect_steady("relu backward", [&] {
            status = hbn_batch_norm_activation_backward(&c_dy, &c_x, nullptr, nullptr, &w, &b, &m,
                                                        &s, &rm, &rv, training, kEps, &relu, &c_dx,
                                                        nullptr, &gw, &gb);
        });
        EXPECT_EQ(status, HBN_OK) << hbn_last_error();
        expect_steady("add_relu forward", [&] {
            status = hbn_batch_norm_activation_forward(&c_x, &c_dy, &w, &b, &rm, &rv, training, 0.1,
                                                       kEps, &relu, &c_y, &c_mask, &m, &s);
        });
        EXPECT_EQ(status, HBN_OK) << hbn_last_error();
        expect_steady("add_relu backward", [&] {
            status = hbn_batch_norm_activation_backward(&c_dy, &c_x, nullptr, &c_mask, &w, nullptr,
                                                        &m, &s, &rm, &rv, training, kEps, &relu,
                                                        &c_dx, &c_dr, &gw, &gb);
        });
        EXPECT_EQ(status, HBN_OK) << hbn_last_error();
    }
}

TEST_P(Allocation, only_what_is_returned_through_cpp) {
    const VectorView w = weight, b = bias, rm = running_mean, rv = running_var, m = mean,
                     s = invstd;
    // The saved mean and invstd.
    expect_steady(
        "forward, training",
        [&] { functional::batch_norm_forward(x, w, b, rm, rv, true, 0.1, kEps, y.view()); }, 2);
    expect_steady("forward, inference", [&] {
        functional::batch_norm_forward(x, w, b, rm, rv, false, 0.1, kEps, y.view());
    });
    for (const bool training : {true, false}) {
        const char *name = training ? "backward, training" : "backward, inference";
        const auto backward = [&](bool parameters) {
            functional::batch_norm_backward(dy, x, w, m, s, rm, rv, training, kEps,
                                            {true, parameters, parameters}, dx.view());
        };
        expect_steady(name, [&] { backward(false); });
        // grad_weight and grad_bias.
        expect_steady(name, [&] { backward(true); }, 2);
    }
}

TEST_P(Allocation, none_by_a_modules_forward) {
    for (const Activation &activation : {Activation::none(), Activation::relu()}) {
        BatchNorm2dOptions options;
        options.dtype = statistics;
        options.activation = activation;
        BatchNorm2d bn(channels, options);
        for (const bool training : {true, false}) {
            bn.train(training);
            expect_steady("forward", [&] { bn.forward(x, y); });
            expect_steady("forward_add", [&] { bn.forward_add(x, dy, y); });
        }
    }
}

INSTANTIATE_TEST_SUITE_P(, Allocation,
                         ::testing::Combine(::testing::ValuesIn(cases),
                                            ::testing::Values(DType::float32, DType::bfloat16),
                                            ::testing::Values(Parallel::one_thread,
                                                              Parallel::two_threads,
                                                              Parallel::pool_of_two)),
                         [](const auto &info) {
                             return std::string(std::get<0>(info.param).name) + "_" +
                                    name_of(std::get<1>(info.param)) + "_" +
                                    name_of_parallel(std::get<2>(info.param));
                         });

// A thread that has served other shapes before is no different.
TEST(AllocationOfOneThread, none_after_other_shapes) {
#if !HBN_TEST_COUNTS_ALLOCATIONS
    GTEST_SKIP() << "malloc can be counted with glibc's own allocator only, not a sanitizer's";
#endif
    hbn_set_num_threads(1);
    for (const Case &p : cases) {
        const TestTensor x(DType::float32, p.sizes, p.strides), y = x, dx = x;
        TestVector v(DType::float32, std::vector<double>(size_t(p.sizes[1]), 1));
        const hbn_tensor c_x = c_tensor(x), c_y = c_tensor(y), c_dx = c_tensor(dx);
        TestVector wide(DType::float64, std::vector<double>(size_t(p.sizes[1]), 1));
        const hbn_vector c_v = c_vector(v), c_wide = c_vector(wide);
        for (int i = 0; i < 4; i++) {
            const int64_t before = allocations;
            hbn_batch_norm_forward(&c_x, nullptr, nullptr, nullptr, nullptr, 1, 0.1, kEps, &c_y,
                                   nullptr, nullptr);
            hbn_batch_norm_backward(&c_x, &c_x, &c_v, &c_wide, &c_wide, nullptr, nullptr, 1, kEps,
                                    &c_dx, nullptr, nullptr);
            if (i >= 2) {
                EXPECT_EQ(allocations - before, 0) << p.name;
            }
        }
    }
    hbn_set_num_threads(0);
}

// Whichever of a first call's allocations fails, threads' included: the call fails and has changed nothing, or does
// without a thread and succeeds.
TEST(Malloc, that_fails_changes_nothing) {
#if !HBN_TEST_COUNTS_ALLOCATIONS
    GTEST_SKIP() << "malloc can be counted with glibc's own allocator only, not a sanitizer's";
#endif
    const int64_t sizes[4] = {4, 16, 32, 32}, strides[4] = {16384, 1024, 32, 1};
    EveryOperation all(HBN_BFLOAT16, sizes, strides, HBN_BFLOAT16);
    for (const Operation &operation : all.operations) {
        bool failed = true;
        for (int64_t request = 0; failed; request++) {
            ASSERT_LT(request, 1000);
            // The other tests' threads go, so that this call starts some; or doesn't.
            hbn_set_num_threads(2 + int(request % 2));
            hbn_context_release_scratch(nullptr);
            const std::vector<uint64_t> before = all.bits();
            allocation_to_fail = request;
            const hbn_status status = operation.call();
            failed = allocation_to_fail < 0;
            allocation_to_fail = -1;
            if (status != HBN_OK) {
                ASSERT_TRUE(failed);
                ASSERT_EQ(status, HBN_OUT_OF_MEMORY) << operation.name << ": " << hbn_last_error();
                ASSERT_EQ(all.bits(), before) << operation.name << ", request " << request;
            }
        }
    }
    hbn_set_num_threads(0);
}

// That the counter sees every way to allocate.
TEST(Counter, sees_every_allocation) {
#if !HBN_TEST_COUNTS_ALLOCATIONS
    GTEST_SKIP() << "malloc can be counted with glibc's own allocator only, not a sanitizer's";
#endif
    // Where the compiler can't see them to be unused.
    static void *volatile kept[8];
    const int64_t before = allocations;
    kept[0] = std::malloc(1);
    kept[1] = std::calloc(1, 1);
    kept[2] = std::realloc(nullptr, 1);
    kept[3] = std::aligned_alloc(64, 64);
    void *aligned = nullptr;
    ASSERT_EQ(posix_memalign(&aligned, 64, 64), 0);
    kept[4] = aligned;
    kept[5] = ::operator new(1);
    kept[6] = ::operator new(1, std::align_val_t(64));
    kept[7] = ::operator new(1, std::nothrow);
    EXPECT_EQ(allocations - before, 8);
    for (void *data : kept) {
        std::free(data);
    }
}

}  // namespace
}  // namespace hbn::test
