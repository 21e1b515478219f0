// A loop is published to its context's pool under one mutex; workers join and leave it under that mutex, and claim
// task indices from an atomic in between. Which thread runs which index is arbitrary; kernels never let results
// depend on it. Several loops may be published at once, each by a thread of its own; workers join the one that has the
// fewest of them.
#include "threads.h"

#include "runtime/checks.h"

#include <HalideRuntime.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace hbn::internal {

namespace {

struct Loop {
    Task task;
    void *user_context;
    int min, size;
    uint8_t *closure;
    const bool streams;
    CallMemory *const call;  // null outside of calls
    std::atomic<int> next{0};
    std::atomic<int> result{0};
    std::atomic<int> workers_inside{0};  // written under the pool's mutex
    int run = 1;                         // how many tasks a thread claims at a time
    Loop *next_loop = nullptr;           // in the pool's list

    Loop(Task task, void *user_context, int min, int size, uint8_t *closure)
        : task(task),
          user_context(user_context),
          min(min),
          size(size),
          closure(closure),
          streams(thread_state.streams),
          call(thread_state.call) {
    }

    void run_one(int i) {
        const int code = task(user_context, min + i, closure);
        int none = 0;
        if (code != 0) {
            result.compare_exchange_strong(none, code);
        }
    }

    // Neighbouring tasks go to one thread: what the hardware fetches ahead of one, the next one uses.
    void run_available() {
        for (int i = next.fetch_add(run); i < size; i = next.fetch_add(run)) {
            for (int j = i; j < i + run && j < size; j++) {
                run_one(j);
            }
        }
        fence();
    }

    // Once this thread's share is done.
    void fence() const {
        if (streams) {
            hbn_stream_fence();
        }
    }
};

// While one lives, this thread runs tasks of a call, whoever's it is: by itself, with scratch memory from `arena`.
class TaskScope {
public:
    TaskScope(CallMemory *call, ScratchArena *arena, bool streams)
        : call_before_(thread_state.call),
          arena_before_(thread_state.arena),
          kernel_(true, streams) {
        thread_state.call = call;
        thread_state.arena = arena;
    }
    ~TaskScope() {
        thread_state.call = call_before_;
        thread_state.arena = arena_before_;
    }
    TaskScope(const TaskScope &) = delete;
    TaskScope &operator=(const TaskScope &) = delete;

private:
    CallMemory *call_before_;
    ScratchArena *arena_before_;
    KernelScope kernel_;
};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Some hundred microseconds: the gap between the kernels of one network's layers, and longer than it takes to
// wake a thread, so that a loop too short to wait for one is the last of which that is true.
constexpr int kSpins = 10000;

int current_processor() {
#ifdef __linux__
    return sched_getcpu();
#else
    return -1;
#endif
}

// Moves a pool's thread off the processor of the thread that woke it. Linux may start it there, though others
// are idle, and takes milliseconds to move it: longer than most loops run.
class Elsewhere {
public:
#ifdef __linux__
    Elsewhere() {
        known_ = sched_getaffinity(0, sizeof(allowed_), &allowed_) == 0 && CPU_COUNT(&allowed_) > 1;
    }
    void leave(int processor) {
        if (known_ && processor >= 0 && processor == current_processor()) {
            cpu_set_t others = allowed_;
            CPU_CLR(processor, &others);
            sched_setaffinity(0, sizeof(others), &others);
        }
    }

private:
    cpu_set_t allowed_;
    bool known_;
#else
    void leave(int) {
    }
#endif
};

}  // namespace

class Pool {
public:
    // Runs the loop on this thread and on workers that have nothing else to do.
    void run(Loop &loop, int threads) {
        resize(threads - 1);
        processor_ = current_processor();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            loop.next_loop = loops_;
            loops_ = &loop;
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        loop.run_available();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            // Nobody joins from here on.
            Loop **link = &loops_;
            while (*link != &loop) {
                link = &(*link)->next_loop;
            }
            *link = loop.next_loop;
        }
        for (int i = 0; i < kSpins && loop.workers_inside != 0; i++) {
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return loop.workers_inside == 0; });
    }

    void finish() {
        std::lock_guard<std::mutex> lock(resizing_);
        stop_workers();
        finished_ = true;
    }

    Pool *replaced = nullptr;

private:
    // Not where another caller is about it; nor does a loop need all of its workers.
    void resize(int workers) {
        std::unique_lock<std::mutex> lock(resizing_, std::try_to_lock);
        if (!lock.owns_lock() || finished_ || workers == asked_for_) {
            return;
        }
        stop_workers();
        asked_for_ = workers;
        {
            std::lock_guard<std::mutex> loops(mutex_);
            stopping_ = false;
        }
        try {
            while (int(workers_.size()) < workers) {
                workers_.emplace_back([this, index = int(workers_.size())] { work(index); });
            }
        } catch (const std::exception &) {
            // The system has no more threads or memory to give; those that started do.
        }
    }

    // Workers finish what they are in, others' loops included.
    void stop_workers() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (std::thread &worker : workers_) {
            worker.join();
        }
        workers_.clear();
    }

    // A loop with tasks that nobody has claimed and scratch memory for this worker; null if there is none.
    Loop *neediest(int index) const {
        Loop *found = nullptr;
        for (Loop *loop = loops_; loop; loop = loop->next_loop) {
            if (loop->next < loop->size && index < loop->call->num_tasks &&
                (!found || loop->workers_inside < found->workers_inside)) {
                found = loop;
            }
        }
        return found;
    }

    void work(int index) {
        Elsewhere elsewhere;
        uint64_t seen = 0;
        while (true) {
            for (int i = 0; i < kSpins && epoch_.load(std::memory_order_acquire) == seen; i++) {
                pause();
            }
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
            lock.unlock();
            elsewhere.leave(processor_);
            lock.lock();
            while (!stopping_) {
                seen = epoch_.load(std::memory_order_relaxed);
                Loop *loop = neediest(index);
                if (!loop) {
                    break;
                }
                loop->workers_inside++;
                lock.unlock();
                {
                    const TaskScope tasks(loop->call, &loop->call->tasks[index], loop->streams);
                    loop->run_available();
                }
                lock.lock();
                if (--loop->workers_inside == 0) {
                    done_.notify_all();
                }
            }
            if (stopping_) {
                return;
            }
        }
    }

    std::mutex resizing_;  // guards workers_, asked_for_ and finished_
    std::vector<std::thread> workers_;
    int asked_for_ = 0;  // of which workers_ has fewer, where the system had no more to give
    bool finished_ = false;
    std::atomic<int> processor_{-1};  // of the thread that published the last loop

    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    Loop *loops_ = nullptr;
    bool stopping_ = false;
    std::atomic<uint64_t> epoch_{1};  // written under mutex_, read also by spinning workers
};

// A loop as an executor sees it. Its memory outlives the loop: an executor that returns early, or throws, may call
// tasks later, which then do nothing.
class ExecutorLoop {
public:
    // The arenas' order is a stack, in `free`, of `count`.
    ExecutorLoop(ScratchArena *arenas, ScratchArena **free, int count)
        : free_(free), num_free_(count), num_arenas(count) {
        for (int i = 0; i < count; i++) {
            free_[i] = &arenas[i];
        }
    }

    // False where not every task was run once; then this object must not be used again.
    bool run(Loop &loop, const Executor &executor) {
        CallMemory &call = *loop.call;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            loop_ = &loop;
            count_ = sum_ = squares_ = 0;
            stray_ = false;
        }
        const char *thrown = nullptr;
        char what[100];
        try {
            executor.parallel_for(executor.context, loop.size, run_task, this);
        } catch (const std::exception &e) {
            std::snprintf(what, sizeof(what), "%s", e.what());
            thrown = what;
        } catch (...) {
            thrown = "an exception of no known type";
        }
        std::unique_lock<std::mutex> lock(mutex_);
        loop_ = nullptr;  // no task starts from here on
        changed_.wait(lock, [&] { return inside_ == 0; });
        const uint64_t n = uint64_t(loop.size);
        const bool complete =
            !stray_ && count_ == n && sum_ == n * (n - 1) / 2 && squares_ == sum_of_squares(n);
        if (thrown) {
            std::snprintf(call.failure_text, sizeof(call.failure_text), text::executor_threw,
                          thrown);
        } else if (!complete) {
            std::snprintf(call.failure_text, sizeof(call.failure_text), text::executor_tasks,
                          (unsigned long long)count_, loop.size);
        }
        if (thrown || !complete) {
            call.failure = HBN_EXECUTOR_ERROR;
            return false;
        }
        return true;
    }

private:
    ScratchArena **free_;  // those that no task is using
    int num_free_;

public:
    const int num_arenas;
    ExecutorLoop *next_abandoned = nullptr;

private:
    // Of 0 to n - 1.
    static uint64_t sum_of_squares(uint64_t n) {
        // n is below 2^31. One of the factors is even and one a multiple of 3; 2n - 1 is neither of the first two.
        const uint64_t product = n * (n - 1) / 2;
        return product % 3 == 0 ? product / 3 * (2 * n - 1) : product * ((2 * n - 1) / 3);
    }

    // Runs on whatever thread the executor has.
    static void run_task(void *self, int i) {
        static_cast<ExecutorLoop *>(self)->run(i);
    }

    void run(int i) {
        std::unique_lock<std::mutex> lock(mutex_);
        Loop *loop = loop_;
        if (!loop) {
            return;
        }
        if (i < 0 || i >= loop->size) {
            stray_ = true;
            return;
        }
        inside_++;
        // Tasks wait for nothing themselves, so one will be free.
        changed_.wait(lock, [&] { return num_free_ > 0; });
        ScratchArena *arena = free_[--num_free_];
        lock.unlock();
        {
            const TaskScope task(loop->call, arena, loop->streams);
            loop->run_one(i);
            loop->fence();
        }
        lock.lock();
        free_[num_free_++] = arena;
        inside_--;
        count_++;
        sum_ += uint64_t(i);
        squares_ += uint64_t(i) * uint64_t(i);
        changed_.notify_all();
    }

    std::mutex mutex_;  // guards all of it
    std::condition_variable changed_;
    Loop *loop_ = nullptr;
    int inside_ = 0;
    // Of the tasks that were run. Where one was left out for another, sum_ shows it; squares_, where several were.
    uint64_t count_ = 0, sum_ = 0, squares_ = 0;
    bool stray_ = false;  // whether there was an index outside of the loop
};

namespace {

// Some claims a thread, so that all end at about the same time. With the most threads, the last claims still
// don't carry Loop::next past an int.
int tasks_per_claim(int tasks, int threads) {
    constexpr int kClaims = 8, kMost = 512;
    const int share = tasks / (threads * kClaims);
    return share < 1 ? 1 : share > kMost ? kMost : share;
}

// The memory of an executor's loop: the object, then its stack of arenas.
constexpr size_t kLoopBytes = (sizeof(ExecutorLoop) + alignof(std::max_align_t) - 1) /
                              alignof(std::max_align_t) * alignof(std::max_align_t);

size_t executor_loop_bytes(int count) {
    return kLoopBytes + size_t(count) * sizeof(ScratchArena *);
}

}  // namespace

Pool *pool_of(hbn_context &context) {
    Pool *pool = context.pool;
    if (pool) {
        return pool;
    }
    Pool *fresh = new (std::nothrow) Pool;
    if (fresh && !context.pool.compare_exchange_strong(pool, fresh)) {
        delete fresh;
        return pool;
    }
    return fresh;
}

void destroy_pool(Pool *pool) {
    // What a fork lost stays: its locks may be held.
    pool->finish();
    delete pool;
}

void finish_pool(Pool *pool) {
    pool->finish();
}

Pool *replace_pool(Pool *lost) {
    Pool *fresh = new (std::nothrow) Pool;
    if (fresh) {
        fresh->replaced = lost;
    }
    return fresh;
}

ExecutorLoop *make_executor_loop(const Allocator &allocator, ScratchArena *tasks, int count) {
    void *memory = allocator.take(executor_loop_bytes(count), GrowingBlock::kAlignment);
    if (!memory) {
        return nullptr;
    }
    auto *free = reinterpret_cast<ScratchArena **>(static_cast<char *>(memory) + kLoopBytes);
    return new (memory) ExecutorLoop(tasks, free, count);
}

void destroy_executor_loop(const Allocator &allocator, ExecutorLoop *loop) {
    if (loop) {
        const size_t bytes = executor_loop_bytes(loop->num_arenas);
        loop->~ExecutorLoop();
        allocator.give_back(loop, bytes, GrowingBlock::kAlignment);
    }
}

ExecutorLoop *&next_abandoned(ExecutorLoop &loop) {
    return loop.next_abandoned;
}

int run_parallel(void *user_context, Task task, int min, int size, uint8_t *closure) {
    const ThreadState &mine = thread_state;
    CallMemory *call = mine.call;
    if (call && call->failure != HBN_OK) {
        return halide_error_code_generic_error;  // what the kernel computes is lost anyway
    }
    if (mine.serial || size < 2 || !call || call->num_tasks == 0) {
        // Without Loop's atomics, which small calls would notice.
        const KernelScope nested(true, mine.streams);
        int result = 0;
        for (int i = min; i < min + size; i++) {
            const int code = task(user_context, i, closure);
            result = result != 0 ? result : code;
        }
        if (mine.streams) {
            hbn_stream_fence();
        }
        return result;
    }
    Loop loop(task, user_context, min, size, closure);
    if (call->executor.parallel_for) {
        if (!call->executor_loop->run(loop, call->executor)) {
            next_abandoned(*call->executor_loop) = call->abandoned_loops;
            call->abandoned_loops = call->executor_loop;
            call->executor_loop = nullptr;
        }
        return loop.result;
    }
    const KernelScope nested(true, loop.streams);
    loop.run = tasks_per_claim(size, call->threads);
    if (Pool *pool = call->context->pool) {
        pool->run(loop, call->threads);
    } else {
        loop.run_available();
    }
    return loop.result;
}

}  // namespace hbn::internal

extern "C" {

int halide_do_par_for(void *user_context, halide_task_t task, int min, int size, uint8_t *closure) {
    return hbn::internal::run_parallel(user_context, task, min, size, closure);
}

}  // extern "C"
