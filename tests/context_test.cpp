// Contexts: what they are made of, that they work side by side, and what executors can do wrong.
#include "oracle.h"
#include "runtime/context.h"
#include "runtime/halide/threads.h"

#include <hbn/context.h>
#include <hbn/functional.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>

#ifdef __unix__
#include <sys/wait.h>
#include <unistd.h>
#endif

#ifdef HBN_TEST_COVERAGE
extern "C" void __gcov_dump();
#endif

namespace hbn::test {
namespace {

// Until `condition`, or false after a time that only a deadlock needs.
template<typename Condition>
bool wait_for(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) {
            return false;
        }
        std::this_thread::yield();
    }
    return true;
}

// A parallel loop as a kernel's, in a call of this thread's context.
hbn_status run_loop(int size, const std::function<void(int)> &body) {
    // Large enough to be shared out.
    const hbn_tensor x{nullptr, HBN_FLOAT32, HBN_CPU, 4, {1, 1, 1024, 1024}, {1, 1, 1024, 1}};
    internal::Call call;
    const hbn_status status = call.begin(0, 1, &x);
    if (status != HBN_OK) {
        return status;
    }
    std::function<void(int)> copy = body;
    internal::run_parallel(
        nullptr,
        [](void *, int i, uint8_t *closure) {
            (*reinterpret_cast<std::function<void(int)> *>(closure))(i);
            return 0;
        },
        0, size, reinterpret_cast<uint8_t *>(&copy));
    return internal::check_loops();
}

Context context_of(int threads) {
    ContextOptions options;
    options.num_threads = threads;
    return Context(options);
}

// That `size` tasks run at the same time.
bool runs_side_by_side(int size) {
    std::atomic<int> inside{0}, met{0};
    run_loop(size, [&](int) {
        inside++;
        met += wait_for([&] { return inside == size; });
    });
    return met == size;
}

TEST(Contexts, have_threads_of_their_own) {
    const Context two = context_of(2), five = context_of(5);
    std::atomic<bool> first_is_in{false}, second_is_done{false};
    std::thread first([&] {
        const UseContext use(two);
        // Keeps both of its threads busy until the other context's five have met.
        run_loop(2, [&](int) {
            first_is_in = true;
            EXPECT_TRUE(wait_for([&] { return second_is_done.load(); }));
        });
    });
    EXPECT_TRUE(wait_for([&] { return first_is_in.load(); }));
    {
        const UseContext use(five);
        EXPECT_TRUE(runs_side_by_side(5));
    }
    second_is_done = true;
    first.join();
}

TEST(Contexts, serve_several_callers_at_once) {
    const Context four = context_of(4);
    std::atomic<bool> first_is_in{false}, second_is_done{false};
    std::thread first([&] {
        const UseContext use(four);
        run_loop(2, [&](int) {
            first_is_in = true;
            EXPECT_TRUE(wait_for([&] { return second_is_done.load(); }));
        });
    });
    EXPECT_TRUE(wait_for([&] { return first_is_in.load(); }));
    {
        const UseContext use(four);
        // By this thread and one of those that the first caller has no tasks for.
        EXPECT_TRUE(runs_side_by_side(2));
    }
    second_is_done = true;
    first.join();
}

TEST(Contexts, run_every_task_once_for_many_callers) {
    const Context three = context_of(3), one = context_of(1);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 6; caller++) {
        callers.emplace_back([&, caller] {
            const UseContext use(caller % 3 == 2 ? one : three);
            for (int repeat = 0; repeat < 200; repeat++) {
                const int size = 1 + (repeat * 7 + caller) % 40;
                std::vector<std::atomic<int>> runs(static_cast<size_t>(size));
                EXPECT_EQ(run_loop(size, [&](int i) { runs[size_t(i)]++; }), HBN_OK);
                for (const std::atomic<int> &times : runs) {
                    EXPECT_EQ(times, 1);
                }
            }
        });
    }
    for (std::thread &caller : callers) {
        caller.join();
    }
}

TEST(Contexts, nest_and_restore) {
    const Context a = context_of(1), b = context_of(1);
    EXPECT_EQ(hbn_use_context(nullptr), nullptr);
    {
        const UseContext use_a(a);
        {
            const UseContext use_b(b);
            EXPECT_EQ(hbn_use_context(b.get()), b.get());
        }
        EXPECT_EQ(hbn_use_context(a.get()), a.get());
    }
    EXPECT_EQ(hbn_use_context(nullptr), nullptr);
}

TEST(Contexts, are_forgotten_by_the_thread_that_destroys_its_current_one) {
    hbn_context *context = nullptr;
    ASSERT_EQ(hbn_context_create(nullptr, &context), HBN_OK);
    hbn_use_context(context);
    hbn_context_destroy(context);
    EXPECT_EQ(hbn_use_context(nullptr), nullptr);
    hbn_context_destroy(nullptr);
}

TEST(Contexts, move) {
    Context a = context_of(1), b = context_of(2);
    hbn_context *const of_a = a.get();
    b = std::move(a);
    EXPECT_EQ(b.get(), of_a);
    const Context c = std::move(b);
    EXPECT_EQ(c.get(), of_a);
}

TEST(Contexts, refuse_what_makes_no_sense) {
    hbn_context *const nothing = nullptr;
    const auto refused = [&](hbn_status expected, auto change) {
        hbn_context_options options{};
        change(options);
        hbn_context *context = nothing;
        EXPECT_EQ(hbn_context_create(&options, &context), expected);
        EXPECT_EQ(context, nothing);
        return std::string(hbn_last_error());
    };
    EXPECT_EQ(refused(HBN_INVALID_ARGUMENT, [](auto &o) { o.num_threads = -2; }),
              "number of threads must not be negative, got -2");
    EXPECT_EQ(refused(HBN_INVALID_ARGUMENT, [](auto &o) { o.instruction_set = "abacus"; }),
              std::string("unknown instruction set 'abacus': this library has kernels for ") +
                  hbn_instruction_sets());
    EXPECT_EQ(refused(HBN_INVALID_ARGUMENT,
                      [](auto &o) {
                          o.allocate = [](void *, size_t, size_t) -> void * { return nullptr; };
                      }),
              "allocate and deallocate must either both be None or neither be None");
    EXPECT_EQ(refused(HBN_UNSUPPORTED, [](auto &o) { o.device = HBN_CUDA; }),
              "hbn was built without support for device 'cuda'");
    refused(HBN_UNSUPPORTED, [](auto &o) { o.device_ordinal = 1; });
    refused(HBN_UNSUPPORTED, [](auto &o) { o.stream = &o; });
    EXPECT_EQ(hbn_context_create(nullptr, nullptr), HBN_INVALID_ARGUMENT);
    EXPECT_STREQ(hbn_last_error(), "context is required");
}

TEST(Contexts, have_an_instruction_set_of_their_own) {
    const std::string sets = hbn_instruction_sets();
    const std::string lowest = sets.substr(sets.rfind(',') + 1);
    ContextOptions options;
    options.instruction_set = lowest.c_str();
    const Context context(options);
    const UseContext use(context);
    TestTensor x(DType::float32, {2, 3, 4, 5});
    x.fill([](int64_t c) { return double(c); });
    EXPECT_NO_THROW(functional::batch_norm_stats(x));
}

TEST(Contexts, release_scratch_while_others_call) {
    Context context = context_of(2);
    TestTensor x(DType::float32, {4, 16, 32, 32});
    Normal normal{3};
    x.fill([&](int64_t) { return normal(); });
    const auto expected = functional::batch_norm_stats(x);
    std::atomic<bool> done{false};
    std::thread releasing([&] {
        while (!done) {
            context.release_scratch();
            hbn_context_release_scratch(nullptr);
        }
    });
    const UseContext use(context);
    for (int i = 0; i < 100; i++) {
        const auto moments = functional::batch_norm_stats(x);
        EXPECT_EQ(moments.mean, expected.mean);
        EXPECT_EQ(moments.m2, expected.m2);
    }
    done = true;
    releasing.join();
}

// ---- executors

using Body = std::function<void(int size, void (*task)(void *, int), void *context)>;

Context context_with(Body *body, int threads) {
    ContextOptions options;
    options.num_threads = threads;
    options.parallel_for = [](void *context, int size, void (*task)(void *, int), void *tasks) {
        (*static_cast<Body *>(context))(size, task, tasks);
    };
    options.parallel_for_context = body;
    return Context(options);
}

TEST(Executors, run_as_many_tasks_at_once_as_there_are_threads) {
    Body body = [](int size, void (*task)(void *, int), void *context) {
        std::vector<std::thread> threads;
        for (int i = 0; i < size; i++) {
            threads.emplace_back([=] { task(context, i); });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
    };
    const Context context = context_with(&body, 3);
    const UseContext use(context);
    std::atomic<int> inside{0}, most{0};
    EXPECT_EQ(run_loop(30,
                       [&](int) {
                           const int now = ++inside;
                           int before = most;
                           while (before < now && !most.compare_exchange_weak(before, now)) {
                           }
                           std::this_thread::sleep_for(std::chrono::milliseconds(1));
                           inside--;
                       }),
              HBN_OK);
    EXPECT_LE(most, 3);
}

void expect_executor_error(Body body, const char *text) {
    const Context context = context_with(&body, 2);
    const UseContext use(context);
    EXPECT_EQ(run_loop(6, [](int) {}), HBN_EXECUTOR_ERROR);
    EXPECT_STREQ(hbn_last_error(), text);
    TestTensor x(DType::float32, {4, 16, 32, 32});
    x.fill([](int64_t c) { return double(c); });
    EXPECT_THROW(functional::batch_norm_stats(x), std::runtime_error);
    // One that has come to its senses is trusted again.
    body = [](int size, void (*task)(void *, int), void *context) {
        for (int i = 0; i < size; i++) {
            task(context, i);
        }
    };
    EXPECT_EQ(run_loop(6, [](int) {}), HBN_OK);
    EXPECT_NO_THROW(functional::batch_norm_stats(x));
}

TEST(Executors, that_throw_give_an_error) {
    expect_executor_error(
        [](int, void (*)(void *, int), void *) { throw std::logic_error("no thread to spare"); },
        "parallel_for threw an exception: no thread to spare");
    expect_executor_error([](int, void (*)(void *, int), void *) { throw 7; },
                          "parallel_for threw an exception: an exception of no known type");
    expect_executor_error(
        [](int size, void (*task)(void *, int), void *context) {
            for (int i = 0; i < size; i++) {
                task(context, i);
            }
            throw std::runtime_error("late");
        },
        "parallel_for threw an exception: late");
}

TEST(Executors, that_lose_or_repeat_tasks_give_an_error) {
    expect_executor_error(
        [](int size, void (*task)(void *, int), void *context) {
            for (int i = 1; i < size; i++) {
                task(context, i);
            }
        },
        "parallel_for ran 5 tasks, or some twice, instead of each of 6");
    expect_executor_error(
        [](int size, void (*task)(void *, int), void *context) {
            for (int i = 0; i <= size; i++) {
                task(context, i < size ? i : 0);
            }
        },
        "parallel_for ran 7 tasks, or some twice, instead of each of 6");
    // As many as there are, and their sum, too.
    expect_executor_error(
        [](int size, void (*task)(void *, int), void *context) {
            const int wrong[] = {0, 0, 3, 3, 4, 5};
            for (int i = 0; i < 6 && size >= 6; i++) {
                task(context, wrong[i]);
            }
        },
        "parallel_for ran 6 tasks, or some twice, instead of each of 6");
    expect_executor_error(
        [](int size, void (*task)(void *, int), void *context) {
            for (int i = 0; i < size; i++) {
                task(context, i);
            }
            task(context, size);
            task(context, -1);
        },
        "parallel_for ran 6 tasks, or some twice, instead of each of 6");
}

TEST(Executors, may_call_tasks_after_they_gave_up) {
    void (*late_task)(void *, int) = nullptr;
    void *late_context = nullptr;
    Body body = [&](int, void (*task)(void *, int), void *context) {
        late_task = task;
        late_context = context;
    };
    const Context context = context_with(&body, 2);
    const UseContext use(context);
    std::atomic<int> runs{0};
    EXPECT_EQ(run_loop(4, [&](int) { runs++; }), HBN_EXECUTOR_ERROR);
    late_task(late_context, 0);
    EXPECT_EQ(runs, 0);
    body = [&](int size, void (*task)(void *, int), void *context) {
        late_task(late_context, 1);
        for (int i = 0; i < size; i++) {
            task(context, i);
        }
    };
    EXPECT_EQ(run_loop(4, [&](int) { runs++; }), HBN_OK);
    EXPECT_EQ(runs, 4);
}

// One that waits for its tasks by running others, of whichever call: scratch memory stays each call's own.
TEST(Executors, may_run_other_calls_within_a_task) {
    TestTensor x(DType::bfloat16, {4, 64, 16, 16}, Layout::nhwc);
    Normal normal{3};
    x.fill([&](int64_t) { return normal(); });
    const auto expected = functional::batch_norm_stats(x);
    bool nested = false;
    Body body = [&](int size, void (*task)(void *, int), void *context) {
        for (int i = 0; i < size; i++) {
            task(context, i);
            if (!nested) {
                nested = true;
                EXPECT_EQ(functional::batch_norm_stats(x).m2, expected.m2);
                nested = false;
            }
        }
    };
    const Context context = context_with(&body, 2);
    const UseContext use(context);
    EXPECT_EQ(functional::batch_norm_stats(x).m2, expected.m2);
}

#ifdef __unix__
TEST(Forks, leave_the_child_contexts_that_work) {
#if defined(HBN_TEST_THREAD_SANITIZED)
    GTEST_SKIP() << "ThreadSanitizer lets no child start threads";
#elif defined(HBN_TEST_EMULATED)
    GTEST_SKIP() << "qemu-user has no child of a process with threads start threads: it stops with "
                    "an assertion";
#endif
    const Context context = context_of(3);
    const UseContext use(context);
    ASSERT_TRUE(runs_side_by_side(3));
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        bool works = runs_side_by_side(3);
        hbn_use_context(nullptr);
        std::atomic<int> runs{0};
        works = works && run_loop(8, [&](int) { runs++; }) == HBN_OK && runs == 8;
#ifdef HBN_TEST_COVERAGE
        __gcov_dump();
#endif
        _exit(works ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT_TRUE(runs_side_by_side(3));
}
#endif

}  // namespace
}  // namespace hbn::test
