// The arithmetic of an operation as a contestant: how long its elements take the processors when nothing has to come from
// memory. Each thread goes over 4 KB of each tensor, again and again, and the slowest one's time for a byte is scaled to
// the cell's share of bytes.
#include "bench/arithmetic_in_use.h"
#include "bench/contestant_limit.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace {

namespace bench = hbn::bench;

constexpr size_t kTensorBytes = 4096;
static_assert(kTensorBytes % bench::kArithmeticStep == 0);
// Enough that clocks and the start of a loop don't count: some 100 microseconds.
constexpr int kPasses = 512;

// One thread's tensors, all in L1.
struct alignas(4096) Memory {
    char x[kTensorBytes], grad_output[kTensorBytes], out[kTensorBytes];
    double seconds;
    bench::ArithmeticSums sums;
};

class Arithmetic : public Limit {
public:
    explicit Arithmetic(const problem &p) : Limit(p), memory(p.threads) {
        const size_t bytes = tensor_bytes();
        for (Memory &m : memory) {
            // A cell's own numbers, as often as they fit.
            for (size_t at = 0; at < kTensorBytes; at += std::min(bytes, kTensorBytes)) {
                const size_t size = std::min(bytes, kTensorBytes - at);
                std::memcpy(m.x + at, p.x, size);
                std::memcpy(m.grad_output + at, p.grad_output, size);
            }
        }
        share = double(bytes) / p.threads;
    }

    // The best of all loops for the same.
    double run(int repeats) override {
        double sums = 1e30, map = 1e30;
        for (const bench::ArithmeticLoops *set : bench::loops_in_use()) {
            const auto &of_sums = p.operation == BACKWARD ? set->backward_sums : set->forward_sums;
            for (const bench::Subtraction by : {bench::BY_SUBTRACTION, bench::BY_FMA}) {
                sum = of_sums[by][p.dtype];
                sums = std::min(sums, p.operation == FORWARD_INFERENCE ? 0 : slowest(&sum_share));
            }
            elements =
                (p.operation == BACKWARD ? set->backward_map
                                         : set->forward_map)[bench::ORDINARY_STORES][p.dtype];
            map = std::min(map, slowest(&map_share));
        }
        return repeats * (sums + map) * (share / (double(kPasses) * kTensorBytes));
    }

protected:
    void call() override {
        run(1);
    }

private:
    // Seconds of the slowest thread.
    double slowest(void (*work)(Arithmetic &, Memory &)) {
        loop = work;
        bench::team_of(p.threads).run(
            [](void *context, int index, int) {
                Arithmetic &self = *static_cast<Arithmetic *>(context);
                Memory &m = self.memory[index];
                const double start = bench::seconds_now();
                self.loop(self, m);
                m.seconds = bench::seconds_now() - start;
            },
            this);
        double seconds = 0;
        for (const Memory &m : memory) {
            seconds = std::max(seconds, m.seconds);
        }
        return seconds;
    }
    static void sum_share(Arithmetic &self, Memory &m) {
        m.sums = self.sum(tensors(m), self.c, kPasses);
    }
    static void map_share(Arithmetic &self, Memory &m) {
        self.elements(tensors(m), self.c, kPasses);
    }
    static bench::ArithmeticTensors tensors(Memory &m) {
        return {m.x, m.grad_output, m.out, kTensorBytes};
    }

    std::vector<Memory> memory;  // one thread's each
    double share;                // of a tensor's bytes, a thread
    const bench::Coefficients c = bench::coefficients_of(p);
    bench::ArithmeticLoops::Sums sum;
    bench::ArithmeticLoops::Map elements;
    void (*loop)(Arithmetic &, Memory &);
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    return std::make_unique<Arithmetic>(p);
}

std::string contestant_version() {
    std::string text = "sums and map of data in L1:";
    for (const bench::ArithmeticLoops *set : bench::loops_in_use()) {
        text += std::string(" ") + set->instruction_set;
    }
    return text;
}
