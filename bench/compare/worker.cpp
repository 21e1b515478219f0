// Times two builds of hbn against each other, for compare.py.
//
//     compare_worker --operations      prints the operations' names, each with 1 if it has tensors, else 0
//     compare_worker BASE.so NEW.so    first prints a line about each library, then reads cells, one a line:
//         OPERATION DTYPE LAYOUT N C H W THREADS SECONDS
//     and prints a line of JSON for each.
#include "bench/compare/buffers.h"
#include "bench/compare/library.h"
#include "bench/compare/operations.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <exception>
#include <iomanip>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace hbn::compare;

// A block of calls is long enough for the clock, and short enough to fit between two interrupts.
constexpr double kBlockSeconds = 3e-4;
constexpr int kMinRounds = 6, kMaxRounds = 1000;
// A shortest time counts once a second one came this close to it; so many rounds wait for that.
constexpr double kSteady = 1.02;
constexpr int kMaxUnsteadyRounds = 40;
// After a pause of some milliseconds, a processor of a virtual machine is slow for about as long as this.
constexpr double kWarmUpSeconds = 1.5e-3;

double seconds_now() {
    using Clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

double processor_seconds() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Cell {
    std::string operation, dtype, layout;
    int64_t sizes[4];
    int threads;
    double seconds;
};

// One library's part in a cell.
class Side {
public:
    explicit Side(const Library &library) : library_(library) {
    }

    // Makes one call on fresh numbers, and keeps its outputs' hashes. False if the library refuses.
    bool prepare(const Operation &operation, Buffers &buffers, int threads) {
        operation_ = &operation;
        clock_ = threads > 1 ? seconds_now : processor_seconds;
        hashes.clear();
        error.clear();
        fastest = second_fastest_ = std::numeric_limits<double>::infinity();
        if (library_.set_num_threads(threads) != kOk) {
            error = library_.last_error();
            return false;
        }
        for (const Convention &tried : operation.conventions) {
            for (const Output &output : operation.outputs) {
                (buffers.*output.buffer).poison();
            }
            buffers.reset_vectors();
            arguments_.emplace(buffers, tried);
            const int status = operation.call(library_, *arguments_);
            if (status == kOk) {
                convention = tried;
                error.clear();
                for (const Output &output : operation.outputs) {
                    hashes.push_back((buffers.*output.buffer).hash());
                }
                return true;
            }
            if (error.empty()) {  // the first convention's, which is the current one
                error = status == kMissing ? "no such function" : library_.last_error();
            }
        }
        return false;
    }

    double run(int repeats) {
        const double start = clock_();
        for (int i = 0; i < repeats; i++) {
            operation_->call(library_, *arguments_);
        }
        return clock_() - start;
    }

    void warm_up(double seconds) {
        const double start = seconds_now();
        do {
            run(1);
        } while (seconds_now() - start < seconds);
    }

    // Returns the seconds of a call.
    double sample(int repeats) {
        const double seconds = run(repeats) / repeats;
        if (seconds < fastest) {
            second_fastest_ = fastest;
            fastest = seconds;
        } else {
            second_fastest_ = std::min(second_fastest_, seconds);
        }
        return seconds;
    }

    bool is_steady() const {
        return second_fastest_ <= kSteady * fastest;
    }

    Convention convention;
    std::vector<uint64_t> hashes;  // of the operation's outputs
    std::string error;             // why the library refused
    double fastest = 0;            // seconds of a call

private:
    const Library &library_;
    const Operation *operation_ = nullptr;
    std::optional<Arguments> arguments_;
    double second_fastest_ = 0;
    // With one thread, the processor time of all threads: other programs that interrupt a call don't count.
    double (*clock_)() = seconds_now;
};

// Waits until the other library's threads, which spin after a loop, sleep.
void settle() {
    const double deadline = seconds_now() + 0.02;
    while (seconds_now() < deadline) {
        const double wall = seconds_now(), processor = processor_seconds();
        std::this_thread::sleep_for(std::chrono::microseconds(500));
        if (processor_seconds() - processor < 0.4 * (seconds_now() - wall)) {
            return;
        }
    }
}

// As many calls as fill a block, of the faster library.
int choose_repeats(Side &base, Side &changed) {
    int repeats = 1;
    while (repeats < 100000) {
        const double seconds = std::min(base.run(repeats), changed.run(repeats));
        if (seconds >= kBlockSeconds) {
            break;
        }
        const double wanted = repeats * kBlockSeconds / std::max(seconds, 1e-9);
        repeats = int(std::clamp(wanted * 1.1, repeats + 1.0, repeats * 10.0));
    }
    return repeats;
}

// Alternates the libraries, and which of them is first; in pairs of rounds, so that each is first as often.
// Returns the ratio of each round: base / new.
std::vector<double> run_rounds(Side &base, Side &changed, int repeats, const Cell &cell) {
    const double start = seconds_now();
    std::vector<double> ratios;
    const auto is_done = [&](int rounds) {
        if (rounds % 2 || rounds < kMinRounds) {
            return false;
        }
        const bool steady = base.is_steady() && changed.is_steady();
        return rounds >= kMaxRounds ||
               (seconds_now() - start >= cell.seconds && (steady || rounds >= kMaxUnsteadyRounds));
    };
    for (int rounds = 0; !is_done(rounds); rounds++) {
        const auto sample = [&](Side &side) {
            if (cell.threads > 1) {
                settle();
                side.warm_up(kWarmUpSeconds);
            } else if (repeats > 1) {
                side.warm_up(0);
            }
            return side.sample(repeats);
        };
        if (rounds % 2) {
            const double seconds = sample(changed);
            ratios.push_back(sample(base) / seconds);
        } else {
            const double seconds = sample(base);
            ratios.push_back(seconds / sample(changed));
        }
    }
    return ratios;
}

// Of at least one ratio. Between the two in the middle it takes the geometric mean, which treats base / new and
// new / base alike.
double median(std::vector<double> ratios) {
    std::sort(ratios.begin(), ratios.end());
    return std::sqrt(ratios[(ratios.size() - 1) / 2] * ratios[ratios.size() / 2]);
}

// Names of the outputs that have other bits. Saved statistics of two dtypes can't be compared.
std::string differences(const Operation &operation, const Side &base, const Side &changed) {
    std::ostringstream names;
    for (size_t i = 0; i < operation.outputs.size(); i++) {
        const Output &output = operation.outputs[i];
        const bool saved =
            output.buffer == &Buffers::saved_mean || output.buffer == &Buffers::saved_invstd;
        if (saved && base.convention.saved != changed.convention.saved) {
            continue;
        }
        if (base.hashes[i] != changed.hashes[i]) {
            names << (names.tellp() ? ", " : "") << std::quoted(output.name);
        }
    }
    return names.str();
}

void measure(const Cell &cell, Buffers &buffers, Side &base, Side &changed) {
    const Operation &operation = operation_of(cell.operation);
    TensorForm form;
    form.dtype = dtype_of(cell.dtype);
    form.layout = layout_of(cell.layout);
    std::copy_n(cell.sizes, 4, form.sizes);
    buffers.prepare(form);
    const bool base_does = base.prepare(operation, buffers, cell.threads);
    const bool changed_does = changed.prepare(operation, buffers, cell.threads);
    std::cout << "{\"base_error\": " << std::quoted(base.error)
              << ", \"new_error\": " << std::quoted(changed.error);
    if (base_does && changed_does) {
        buffers.reset_vectors();
        const int repeats = choose_repeats(base, changed);
        const std::vector<double> ratios = run_rounds(base, changed, repeats, cell);
        std::cout << ", \"base_us\": " << base.fastest * 1e6
                  << ", \"new_us\": " << changed.fastest * 1e6 << ", \"repeats\": " << repeats
                  << ", \"rounds\": " << ratios.size() << ", \"median_ratio\": " << median(ratios)
                  << ", \"base_convention\": " << std::quoted(base.convention.description())
                  << ", \"new_convention\": " << std::quoted(changed.convention.description())
                  << ", \"differing\": [" << differences(operation, base, changed) << "]";
    }
    std::cout << "}" << std::endl;
}

// Two copies of the library in one process must not share anything: neither threads nor settings.
void check_apart(const Library &base, const Library &changed) {
    base.set_num_threads(1);
    changed.set_num_threads(2);
    if (base.get_num_threads() != 1 || changed.get_num_threads() != 2) {
        throw std::runtime_error(
            "the two libraries share their state: a symbol of one binds to the other");
    }
}

void work(const char *base_path, const char *new_path) {
    // What the libraries allocate themselves is on ordinary pages, too.
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    const Library base_library(base_path), new_library(new_path);
    check_apart(base_library, new_library);
    std::cout << base_library.description() << '\n' << new_library.description() << std::endl;
    Buffers buffers;
    Side base(base_library), changed(new_library);
    std::string line;
    while (std::getline(std::cin, line)) {
        Cell cell;
        std::istringstream words(line);
        words >> cell.operation >> cell.dtype >> cell.layout;
        words >> cell.sizes[0] >> cell.sizes[1] >> cell.sizes[2] >> cell.sizes[3];
        words >> cell.threads >> cell.seconds;
        if (!words) {
            throw std::runtime_error("not a cell: " + line);
        }
        measure(cell, buffers, base, changed);
    }
}

}  // namespace

int main(int argc, char **argv) {
    try {
        if (argc == 2 && std::string(argv[1]) == "--operations") {
            for (const Operation &operation : operations()) {
                std::cout << operation.name << ' ' << operation.has_tensors << '\n';
            }
        } else if (argc == 3) {
            work(argv[1], argv[2]);
        } else {
            std::cerr << "usage: compare_worker --operations | BASE.so NEW.so\n";
            return 2;
        }
    } catch (const std::exception &e) {
        std::cerr << "compare_worker: " << e.what() << '\n';
        return 1;
    }
    return 0;
}
