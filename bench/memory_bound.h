// The memory bound: how fast this machine moves an operation's compulsory bytes, with nothing computed.
//
// Hand-vectorized, since it is the yardstick that kernels are held against. Each call measures one round; take
// minima over rounds interleaved with the contestants'.
#ifndef HBN_BENCH_MEMORY_BOUND_H
#define HBN_BENCH_MEMORY_BOUND_H

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace hbn::bench {

inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Threads that are ready at once for a round that follows soon after another, and asleep otherwise: whoever is
// measured in between has the processors to itself.
class Team {
public:
    explicit Team(int size) : size_(size) {
        for (int i = 1; i < size; i++) {
            threads_.emplace_back([this, i] { serve(i); });
        }
    }
    ~Team() {
        quit_ = true;
        announce();
        for (std::thread &t : threads_) {
            t.join();
        }
    }
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    // Calls work(context, index, size) on every member.
    void run(void (*work)(void *context, int index, int size), void *context) {
        work_ = work;
        context_ = context;
        done_ = 0;
        announce();
        work(context, 0, size_);
        for (long spins = 0; done_ < size_ - 1; spins++) {
            yield_after(spins);
        }
    }

    // Wakes the members, so that the next round starts without delay.
    void wake() {
        run([](void *, int, int) {}, nullptr);
    }

private:
    static constexpr long kSpins = 20000;

    // More members than processors would otherwise wait for one another.
    static void yield_after(long spins) {
        if (spins > kSpins) {
            std::this_thread::yield();
        }
    }

    // Linux may start a thread on the processor of the one that woke it, and leave it there for a while.
    static int processor() {
#ifdef __linux__
        return sched_getcpu();
#else
        return -1;
#endif
    }
    static void leave(int taken) {
#ifdef __linux__
        thread_local const cpu_set_t allowed = [] {
            cpu_set_t set;
            CPU_ZERO(&set);
            sched_getaffinity(0, sizeof(set), &set);
            return set;
        }();
        if (taken >= 0 && taken == processor() && CPU_COUNT(&allowed) > 1) {
            cpu_set_t others = allowed;
            CPU_CLR(taken, &others);
            sched_setaffinity(0, sizeof(others), &others);
        }
#else
        (void)taken;
#endif
    }

    void announce() {
        announcer_ = processor();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            round_.fetch_add(1);
        }
        wake_.notify_all();
    }

    void serve(int index) {
        for (int seen = 0;;) {
            for (long spins = 0; round_ == seen && spins < kSpins; spins++) {
            }
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return round_ != seen; });
            lock.unlock();
            leave(announcer_);
            seen = round_;
            if (quit_) {
                return;
            }
            work_(context_, index, size_);
            done_.fetch_add(1);
        }
    }

    const int size_;
    std::atomic<int> round_{0}, done_{0}, announcer_{-1};
    std::atomic<bool> quit_{false};
    void (*work_)(void *, int, int) = nullptr;
    void *context_ = nullptr;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

// One team per size for the life of the process: a new one's threads would start cold.
inline Team &team_of(int size) {
    static std::map<int, Team> teams;
    return teams.try_emplace(size, size).first->second;
}

// Of fewer bytes, telling others takes longer than the work: one thread may be faster.
constexpr size_t kFewBytes = 1 << 20;

namespace detail {

struct Move {
    // Of `bytes` of each, whole steps of move_part().
    Move(const void *a, const void *b, void *out, size_t bytes, bool streaming)
        : a(static_cast<const float *>(a)),
          b(static_cast<const float *>(b)),
          out(static_cast<float *>(out)),
          floats(bytes / 4 / 16 * 16),
          streaming(streaming) {
    }

    const float *a, *b;  // b may be null: one read instead of two
    float *out;
    size_t floats;
    bool streaming;
};

#if defined(__x86_64__)
__attribute__((target("avx"))) inline void move_part(const Move &m, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += 16) {
        __m256 low = _mm256_loadu_ps(m.a + i), high = _mm256_loadu_ps(m.a + i + 8);
        if (m.b) {
            low = _mm256_add_ps(low, _mm256_loadu_ps(m.b + i));
            high = _mm256_add_ps(high, _mm256_loadu_ps(m.b + i + 8));
        }
        if (m.streaming) {
            _mm256_stream_ps(m.out + i, low);
            _mm256_stream_ps(m.out + i + 8, high);
        } else {
            _mm256_storeu_ps(m.out + i, low);
            _mm256_storeu_ps(m.out + i + 8, high);
        }
    }
    _mm_sfence();
}
#else
inline void move_part(const Move &m, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        m.out[i] = m.b ? m.a[i] + m.b[i] : m.a[i];
    }
}
#endif

inline void move_share(void *context, int index, int size) {
    const Move &m = *static_cast<const Move *>(context);
    const size_t share = (m.floats / size + 15) / 16 * 16;
    const size_t begin = std::min(m.floats, share * index);
    move_part(m, begin, std::min(m.floats, begin + share));
}

}  // namespace detail

// Seconds of one round that reads `bytes` of a (and of b, when given) and writes `bytes` of out, with the
// better of ordinary and streaming stores. Pointers are 64-byte aligned, bytes a multiple of 64.
inline double memory_bound_round(Team &team, const void *a, const void *b, void *out,
                                 size_t bytes) {
    double best = 1e30;
    for (bool streaming : {false, true}) {
        detail::Move move(a, b, out, bytes, streaming);
        team.wake();
        const double start = seconds_now();
        team.run(detail::move_share, &move);
        best = std::min(best, seconds_now() - start);
    }
    return best;
}

}  // namespace hbn::bench

#endif
