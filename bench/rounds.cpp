#include "bench/rounds.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <thread>
#include <utility>

namespace hbn::bench {

namespace {

// A block of calls is long enough for the clock, and short enough to fit between two interrupts.
constexpr double kBlockSeconds = 3e-4;
constexpr int kMinRounds = 6, kMaxRounds = 1000;
// A shortest time counts once a second one came this close to it; so many rounds wait for that.
constexpr double kSteady = 1.02;
constexpr int kMaxUnsteadyRounds = 40;
// After a pause of some milliseconds, a processor of a virtual machine is slow for about as long as this.
constexpr double kWarmUpSeconds = 1.5e-3;

double wall_seconds() {
    using Clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

double processor_seconds() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Waits until other threads, which spin after a loop, sleep.
void settle() {
    const double deadline = wall_seconds() + 0.02;
    while (wall_seconds() < deadline) {
        const double wall = wall_seconds(), processor = processor_seconds();
        std::this_thread::sleep_for(std::chrono::microseconds(500));
        if (processor_seconds() - processor < 0.4 * (wall_seconds() - wall)) {
            return;
        }
    }
}

void take_turn(Timed &contestant, int repeats, const RoundOptions &options) {
    contestant.prepare();
    if (options.threads > 1 && options.own_threads) {
        settle();
        contestant.warm_up(kWarmUpSeconds);
    } else if (repeats > 1) {
        contestant.warm_up(0);
    }
    contestant.run(options.calls_before);
    contestant.sample(repeats);
}

}  // namespace

Timed::Timed(std::function<void()> call, int threads)
    : call_(std::move(call)), clock_(threads > 1 ? wall_seconds : processor_seconds) {
}

double Timed::run(int repeats) {
    const double start = clock_();
    for (int i = 0; i < repeats; i++) {
        call_();
    }
    return clock_() - start;
}

void Timed::warm_up(double seconds) {
    const double start = wall_seconds();
    do {
        run(1);
    } while (wall_seconds() - start < seconds);
}

double Timed::sample(int repeats) {
    const double seconds = run(repeats) / repeats;
    samples_.push_back(seconds);
    if (seconds < fastest_) {
        second_fastest_ = fastest_;
        fastest_ = seconds;
    } else {
        second_fastest_ = std::min(second_fastest_, seconds);
    }
    return seconds;
}

bool Timed::is_steady() const {
    return second_fastest_ <= kSteady * fastest_;
}

int choose_repeats(const std::vector<Timed *> &contestants) {
    int repeats = 1;
    while (repeats < 100000) {
        double seconds = std::numeric_limits<double>::infinity();
        for (Timed *contestant : contestants) {
            contestant->prepare();
            seconds = std::min(seconds, contestant->run(repeats));
        }
        if (seconds >= kBlockSeconds) {
            break;
        }
        const double wanted = repeats * kBlockSeconds / std::max(seconds, 1e-9);
        repeats = int(std::clamp(wanted * 1.1, repeats + 1.0, repeats * 10.0));
    }
    return repeats;
}

void run_rounds(const std::vector<Timed *> &contestants, int repeats, const RoundOptions &options) {
    const double start = wall_seconds();
    const auto is_done = [&](int rounds) {
        if (rounds % 2 || rounds < kMinRounds) {
            return false;
        }
        const bool steady = std::all_of(contestants.begin(), contestants.end(),
                                        [](const Timed *t) { return t->is_steady(); });
        const double taken = wall_seconds() - start;
        return rounds >= kMaxRounds || taken >= options.most_seconds ||
               (taken >= options.seconds && (steady || rounds >= kMaxUnsteadyRounds));
    };
    std::vector<Timed *> order = contestants;
    for (int rounds = 0; !is_done(rounds); rounds++) {
        for (Timed *contestant : order) {
            take_turn(*contestant, repeats, options);
        }
        std::reverse(order.begin(), order.end());
    }
}

std::vector<double> ratios(const Timed &first, const Timed &second) {
    std::vector<double> all;
    for (size_t i = 0; i < first.samples().size(); i++) {
        all.push_back(first.samples()[i] / second.samples()[i]);
    }
    return all;
}

double median(std::vector<double> numbers) {
    std::sort(numbers.begin(), numbers.end());
    return std::sqrt(numbers[(numbers.size() - 1) / 2] * numbers[numbers.size() / 2]);
}

}  // namespace hbn::bench
