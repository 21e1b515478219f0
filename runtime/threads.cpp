// Parallel loops of the kernels: hbn's own thread pool, or the caller's.
//
// A loop is published to the pool under one mutex; workers join and leave it under that mutex, and
// claim task indices from an atomic in between. Which thread runs which index is arbitrary; kernels
// never let results depend on it.
#include "threads.h"

#include "checks.h"

#include <HalideRuntime.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HBN_HAS_FORK 1
#endif

namespace hbn::internal {

namespace {

// Of a thread's parallel loops; set in pool threads, in tasks, and by KernelScope.
struct Mode {
    bool serial, streams;
};
thread_local Mode mode{false, false};

struct Loop {
    halide_task_t task;
    void *user_context;
    int min, size;
    uint8_t *closure;
    const bool streams;
    std::atomic<int> next{0};
    std::atomic<int> result{0};
    std::atomic<int> workers_inside{0};  // written under the pool's mutex
    int run = 1;                         // how many tasks a thread claims at a time

    Loop(halide_task_t task, void *user_context, int min, int size, uint8_t *closure, bool streams)
        : task(task),
          user_context(user_context),
          min(min),
          size(size),
          closure(closure),
          streams(streams) {
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

class Pool {
public:
    // False when another thread is using the pool: then the caller had better run the loop itself.
    bool run(Loop &loop, int threads) {
        std::unique_lock<std::mutex> use(in_use_, std::try_to_lock);
        if (!use.owns_lock() || finished_) {
            return false;
        }
        resize(threads - 1);
        processor_ = current_processor();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            loop_ = &loop;
            epoch_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        loop.run_available();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            loop_ = nullptr;  // nobody joins from here on
        }
        for (int i = 0; i < kSpins && loop.workers_inside != 0; i++) {
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return loop.workers_inside == 0; });
        return true;
    }

    void finish() {
        std::lock_guard<std::mutex> use(in_use_);
        stop_workers();
        finished_ = true;
    }

    // In the child of a fork only the forking thread lives on, and this pool's threads and locks
    // mean nothing. A fresh pool takes over; the old one is kept only for leak checkers to find.
    static Pool *replace(Pool *lost) {
        Pool *fresh = new Pool;
        fresh->replaced_ = lost;
        return fresh;
    }

private:
    void resize(int workers) {
        if (int(workers_.size()) == workers) {
            return;
        }
        stop_workers();
        stopping_ = false;
        try {
            while (int(workers_.size()) < workers) {
                workers_.emplace_back([this] { work(); });
            }
        } catch (const std::exception &) {
            // The system has no more threads to give; those that started do.
        }
    }

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

    void work() {
        mode.serial = true;
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
            seen = epoch_.load(std::memory_order_relaxed);
            if (stopping_) {
                return;
            }
            Loop *loop = loop_;
            if (!loop) {
                continue;
            }
            loop->workers_inside++;
            lock.unlock();
            loop->run_available();
            lock.lock();
            if (--loop->workers_inside == 0) {
                done_.notify_one();
            }
        }
    }

    std::mutex in_use_;  // by the thread whose loop it is; guards workers_, finished_
    std::vector<std::thread> workers_;
    bool finished_ = false;
    Pool *replaced_ = nullptr;
    std::atomic<int> processor_{-1};  // of the thread that published the last loop

    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    Loop *loop_ = nullptr;
    bool stopping_ = false;
    std::atomic<uint64_t> epoch_{1};  // written under mutex_, read also by spinning workers
};

Pool &pool() {
    // Never destroyed, so that other static objects' destructors may still call hbn; its threads
    // are joined at exit.
    static Pool *instance = [] {
        std::atexit([] { instance->finish(); });
#ifdef HBN_HAS_FORK
        pthread_atfork(nullptr, nullptr, [] { instance = Pool::replace(instance); });
#endif
        return new Pool;
    }();
    return *instance;
}

int num_processors() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
        return CPU_COUNT(&set);
    }
#endif
    const unsigned threads = std::thread::hardware_concurrency();
    return threads > 0 ? int(threads) : 1;
}

constexpr int kMostThreads = 1024;

// Some claims a thread, so that all end at about the same time. With the most threads, the last claims still
// don't carry Loop::next past an int.
int tasks_per_claim(int tasks, int threads) {
    constexpr int kClaims = 8, kMost = 512;
    const int share = tasks / (threads * kClaims);
    return share < 1 ? 1 : share > kMost ? kMost : share;
}

int default_num_threads() {
    static const int threads = [] {
        const char *text = std::getenv("HBN_NUM_THREADS");
        const long asked = text ? std::strtol(text, nullptr, 10) : 0;
        return asked > 0 ? int(asked < kMostThreads ? asked : kMostThreads) : num_processors();
    }();
    return threads;
}

std::atomic<int> chosen_num_threads{0};  // 0: default

hbn_parallel_for custom_parallel_for = nullptr;
void *custom_context = nullptr;

// Runs on whatever thread the caller's executor has.
void run_custom_task(void *context, int i) {
    Loop &loop = *static_cast<Loop *>(context);
    const KernelScope nested(true, loop.streams);
    loop.run_one(i);
    loop.fence();
}

}  // namespace

KernelScope::KernelScope(bool serial, bool streams) {
    Mode &mine = mode;
    serial_before_ = mine.serial;
    streams_before_ = mine.streams;
    mine = {serial || mine.serial, streams};
}

KernelScope::~KernelScope() {
    mode = {serial_before_, streams_before_};
}

}  // namespace hbn::internal

using namespace hbn::internal;

extern "C" {

hbn_status hbn_set_num_threads(int num_threads) {
    if (num_threads < 0) {
        return fail(HBN_INVALID_ARGUMENT, text::num_threads, num_threads);
    }
    chosen_num_threads = num_threads < kMostThreads ? num_threads : kMostThreads;
    return HBN_OK;
}

int hbn_get_num_threads(void) {
    const int chosen = chosen_num_threads;
    return chosen > 0 ? chosen : default_num_threads();
}

void hbn_set_parallel_for(hbn_parallel_for parallel_for, void *context) {
    custom_parallel_for = parallel_for;
    custom_context = context;
}

int halide_do_task(void *user_context, halide_task_t f, int index, uint8_t *closure) {
    return f(user_context, index, closure);
}

int halide_do_par_for(void *user_context, halide_task_t task, int min, int size, uint8_t *closure) {
    const Mode mine = mode;
    Loop loop(task, user_context, min, size, closure, mine.streams);
    if (size > 1 && !mine.serial) {
        if (custom_parallel_for) {
            custom_parallel_for(custom_context, size, run_custom_task, &loop);
            return loop.result;
        }
        const int threads = hbn_get_num_threads();
        loop.run = tasks_per_claim(size, threads);
        const KernelScope nested(true, mine.streams);
        if (threads > 1 && pool().run(loop, threads)) {
            return loop.result;
        }
    }
    if (mine.serial) {
        loop.run_available();
    } else {
        const KernelScope nested(true, mine.streams);
        loop.run_available();
    }
    return loop.result;
}

}  // extern "C"
