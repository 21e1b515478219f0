// An allocation that fails gives HBN_OUT_OF_MEMORY and changes nothing, whichever of a call's allocations it is.
#include "every_operation.h"
#include "runtime/context.h"
#include "tensors.h"

#include <hbn/context.h>
#include <hbn/functional.h>

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

namespace hbn::test {
namespace {

// Fails at one request, and checks that what it gave comes back as it was given.
class Allocator {
public:
    // Counted from 0; a negative number never fails.
    void fail_at(int64_t request) {
        std::lock_guard<std::mutex> lock(mutex_);
        countdown_ = request;
    }
    size_t live() const {
        return blocks_.size();
    }
    int64_t requests() const {
        return requests_;
    }

    static void *allocate(void *self, size_t size, size_t alignment) {
        return static_cast<Allocator *>(self)->take(size, alignment);
    }
    static void *allocate_or_throw(void *self, size_t size, size_t alignment) {
        void *data = static_cast<Allocator *>(self)->take(size, alignment);
        if (!data) {
            throw std::bad_alloc();
        }
        return data;
    }
    static void deallocate(void *self, void *data, size_t size, size_t alignment) {
        static_cast<Allocator *>(self)->give_back(data, size, alignment);
    }

private:
    void *take(size_t size, size_t alignment) {
        std::lock_guard<std::mutex> lock(mutex_);
        requests_++;
        if (countdown_ >= 0 && countdown_-- == 0) {
            return nullptr;
        }
        void *data = nullptr;
        EXPECT_EQ(posix_memalign(&data, alignment, size), 0);
        blocks_[data] = {size, alignment};
        return data;
    }

    void give_back(void *data, size_t size, size_t alignment) {
        std::lock_guard<std::mutex> lock(mutex_);
        ASSERT_EQ(blocks_.count(data), 1u);
        EXPECT_EQ(blocks_[data], std::make_pair(size, alignment));
        blocks_.erase(data);
        std::free(data);
    }

    std::mutex mutex_;
    int64_t countdown_ = -1, requests_ = 0;
    std::map<void *, std::pair<size_t, size_t>> blocks_;
};

void in_order(void *, int size, void (*task)(void *, int), void *context) {
    for (int i = 0; i < size; i++) {
        task(context, i);
    }
}

struct Case {
    const char *name;
    hbn_dtype dtype, vectors;
    int64_t sizes[4], strides[4];
    int threads;
    bool executor, throws;
};

const Case cases[] = {
    {"small", HBN_FLOAT32, HBN_FLOAT32, {2, 3, 4, 5}, {60, 20, 5, 1}, 1, false, false},
    {"pool", HBN_FLOAT32, HBN_FLOAT32, {4, 16, 32, 32}, {16384, 1024, 32, 1}, 3, false, false},
    {"rows_bfloat16",
     HBN_BFLOAT16,
     HBN_BFLOAT16,
     {4, 64, 16, 16},
     {16384, 1, 1024, 64},
     2,
     false,
     true},
    {"executor_float64",
     HBN_FLOAT64,
     HBN_FLOAT64,
     {4, 3, 64, 64},
     {12288, 4096, 64, 1},
     3,
     true,
     false},
    {"strided", HBN_FLOAT16, HBN_FLOAT32, {4, 16, 32, 32}, {32768, 2048, 64, 2}, 2, false, true},
};

class OutOfMemory : public ::testing::TestWithParam<Case> {};

TEST_P(OutOfMemory, changes_nothing_and_leaks_nothing) {
    const Case &p = GetParam();
    EveryOperation all(p.dtype, p.sizes, p.strides, p.vectors);
    for (const Operation &operation : all.operations) {
        Allocator allocator;
        ContextOptions options;
        options.num_threads = p.threads;
        options.parallel_for = p.executor ? in_order : nullptr;
        options.allocate = p.throws ? Allocator::allocate_or_throw : Allocator::allocate;
        options.deallocate = Allocator::deallocate;
        options.allocator_context = &allocator;
        int64_t failures = 0;
        {
            Context context(options);
            const UseContext use(context);
            const std::vector<uint64_t> before = all.bits();
            hbn_status status = HBN_OUT_OF_MEMORY;
            for (; status != HBN_OK; failures++) {
                ASSERT_LT(failures, 1000);
                // From nothing each time, so that each request of a first call is the one to fail.
                context.release_scratch();
                allocator.fail_at(failures);
                status = operation.call();
                allocator.fail_at(-1);
                if (status != HBN_OK) {
                    ASSERT_EQ(status, HBN_OUT_OF_MEMORY) << operation.name << hbn_last_error();
                    ASSERT_EQ(all.bits(), before) << operation.name << ", request " << failures;
                }
            }
            // Its memory is there now: it allocates no more.
            const int64_t requests = allocator.requests();
            EXPECT_EQ(operation.call(), HBN_OK);
            EXPECT_EQ(allocator.requests(), requests) << operation.name;
        }
        EXPECT_GT(failures, 1) << operation.name << " asked for no memory";
        EXPECT_EQ(allocator.live(), 0u) << operation.name;
    }
}

INSTANTIATE_TEST_SUITE_P(, OutOfMemory, ::testing::ValuesIn(cases),
                         [](const auto &info) { return std::string(info.param.name); });

TEST(OutOfMemoryOfAContext, is_reported) {
    Allocator allocator;
    hbn_context_options options{};
    options.allocate = Allocator::allocate;
    options.deallocate = Allocator::deallocate;
    options.allocator_context = &allocator;
    allocator.fail_at(0);
    hbn_context *context = nullptr;
    EXPECT_EQ(hbn_context_create(&options, &context), HBN_OUT_OF_MEMORY);
    EXPECT_EQ(context, nullptr);
    EXPECT_EQ(hbn_context_create(&options, &context), HBN_OK);
    hbn_context_destroy(context);
    EXPECT_EQ(allocator.live(), 0u);
}

TEST(OutOfMemoryInCpp, is_bad_alloc) {
    Allocator allocator;
    ContextOptions options;
    options.allocate = Allocator::allocate;
    options.deallocate = Allocator::deallocate;
    options.allocator_context = &allocator;
    Context context(options);
    const UseContext use(context);
    TestTensor x(DType::float32, {2, 3, 4, 5});
    x.fill([](int64_t c) { return double(c); });
    allocator.fail_at(0);
    EXPECT_THROW(functional::batch_norm_stats(x), std::bad_alloc);
    EXPECT_NO_THROW(functional::batch_norm_stats(x));
}

TEST(Deallocators, that_throw_stop_nothing) {
    ContextOptions options;
    options.allocate = [](void *, size_t size, size_t alignment) {
        return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    };
    options.deallocate = [](void *, void *data, size_t, size_t) {
        std::free(data);
        throw std::runtime_error("freed already");
    };
    Context context(options);
    const UseContext use(context);
    TestTensor x(DType::float32, {2, 3, 4, 5});
    x.fill([](int64_t c) { return double(c); });
    EXPECT_NO_THROW(functional::batch_norm_stats(x));
    EXPECT_NO_THROW(context.release_scratch());
    EXPECT_NO_THROW(functional::batch_norm_stats(x));
}

// What no kernel does: scratch_bytes() bounds what they ask for. In a process of its own, since every test's main()
// fails where it happened; GoogleTest runs suites of this name first, before there are threads.
TEST(ScratchDeathTest, beyond_what_was_booked_is_memory_still) {
    const auto run = [] {
        Allocator allocator;
        hbn_context_options options{};
        options.allocate = Allocator::allocate;
        options.deallocate = Allocator::deallocate;
        options.allocator_context = &allocator;
        options.num_threads = 1;
        hbn_context *own = nullptr;
        bool works = hbn_context_create(&options, &own) == HBN_OK;
        hbn_use_context(own);
        {
            internal::Call call;
            works = works && call.begin(1, 1, nullptr) == HBN_OK;
            const size_t bytes = 10 << 20;
            for (const int64_t failing : {-1, 0}) {
                // Where the context's allocator has none, the C library does.
                allocator.fail_at(failing);
                const size_t live = allocator.live();
                void *data = internal::allocate_scratch(bytes);
                allocator.fail_at(-1);
                works = works && reinterpret_cast<uintptr_t>(data) % 128 == 0 &&
                        allocator.live() == live + (failing < 0);
                std::memset(data, 1, bytes);
                internal::free_scratch(data);
                works = works && allocator.live() == live;
            }
            works = works && internal::scratch_overflows() == 2;
        }
        hbn_use_context(nullptr);
        hbn_context_destroy(own);
        works = works && allocator.live() == 0;
        std::exit(works ? 0 : 1);
    };
    EXPECT_EXIT(run(), ::testing::ExitedWithCode(0), "");
}

TEST(Scratch, of_no_call_is_the_c_librarys) {
    void *data = internal::allocate_scratch(1000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 128, 0u);
    std::memset(data, 1, 1000);
    internal::free_scratch(data);
    internal::free_scratch(nullptr);
    EXPECT_EQ(internal::scratch_overflows(), 0);
}

}  // namespace
}  // namespace hbn::test
