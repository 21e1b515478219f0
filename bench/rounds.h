// Times contestants in one process against each other, interleaved in rounds, so that what else the machine does falls on all
// of them alike. For programs whose contestants share their memory: compare/worker.cpp and tune/worker.cpp.
#ifndef HBN_BENCH_ROUNDS_H
#define HBN_BENCH_ROUNDS_H

#include <functional>
#include <limits>
#include <vector>

namespace hbn::bench {

// One contestant's calls, and the times they took.
class Timed {
public:
    // `call`: once what is timed. `threads`: how many it runs on. With one thread, the processor time of all
    // threads counts: other programs that interrupt a call don't.
    Timed(std::function<void()> call, int threads);

    // Called before this contestant's turn, and not timed.
    std::function<void()> prepare = [] {};

    // The seconds of `repeats` calls.
    double run(int repeats);
    // Calls for so long, once at least.
    void warm_up(double seconds);
    // Keeps and returns the seconds of a call.
    double sample(int repeats);
    // Whether the shortest time was not a single accident.
    bool is_steady() const;

    double fastest() const {
        return fastest_;
    }
    const std::vector<double> &samples() const {
        return samples_;
    }

private:
    std::function<void()> call_;
    double (*clock_)();
    std::vector<double> samples_;
    double fastest_ = std::numeric_limits<double>::infinity();
    double second_fastest_ = std::numeric_limits<double>::infinity();
};

struct RoundOptions {
    int threads = 1;
    double seconds = 0;  // so long, at least
    // Whether each contestant has threads of its own, which spin after a loop and must sleep before the next one's turn.
    bool own_threads = false;
    // Calls that are not timed before each turn, beside those that threads and short calls need: where what a call finds in
    // cache is what the calls before it left there.
    int calls_before = 0;
    // No longer, but for the fewest rounds that there must be.
    double most_seconds = std::numeric_limits<double>::infinity();
};

// As many calls as fill a block, of the fastest contestant.
int choose_repeats(const std::vector<Timed *> &contestants);

// Each contestant has one turn a round. Every other round is in the opposite order, and there is an even number of them, so
// that each is as often before as behind any other. The times are in samples(), one a round.
void run_rounds(const std::vector<Timed *> &contestants, int repeats, const RoundOptions &options);

// The first's time divided by the second's, of each round.
std::vector<double> ratios(const Timed &first, const Timed &second);

// Of at least one number. Between the two in the middle it takes the geometric mean, which treats a ratio and its inverse
// alike.
double median(std::vector<double> numbers);

}  // namespace hbn::bench

#endif
