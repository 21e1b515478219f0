// The arithmetic of an operation as a contestant: how long its elements take the processors when nothing has to come from
// memory. Each thread goes over 4 KB of each tensor, again and again, and the slowest one's time for a byte is scaled to
// the cell's share of bytes.
#include "bench/arithmetic.h"
#include "bench/contestant_base.h"

#include <hbn/hbn.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

namespace bench = hbn::bench;

const bench::ArithmeticLoops &loops_in_use() {
    for (const auto *loops : {&bench::arithmetic_loops_avx512, &bench::arithmetic_loops_avx2,
                              &bench::arithmetic_loops_sse41}) {
        if (std::string(loops->instruction_set) == hbn_instruction_set()) {
            return *loops;
        }
    }
    throw std::invalid_argument(std::string("no arithmetic for ") + hbn_instruction_set());
}

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

class Arithmetic : public Contestant {
public:
    explicit Arithmetic(const problem &p) : Contestant(p), memory(p.threads) {
        const size_t bytes = size_t(p.n * p.c * p.h * p.w) * (p.dtype == FLOAT32 ? 4 : 2);
        for (Memory &m : memory) {
            // A cell's own numbers, as often as they fit.
            for (size_t at = 0; at < kTensorBytes; at += std::min(bytes, kTensorBytes)) {
                const size_t size = std::min(bytes, kTensorBytes - at);
                std::memcpy(m.x + at, p.x, size);
                std::memcpy(m.grad_output + at, p.grad_output, size);
            }
        }
        share = double(bytes) / p.threads;
        c = {p.mean[0], 1, p.mean[0], 1, p.weight[0] * p.invstd[0], p.bias[0], 0.01f, 0.01f};
    }

    double run(int repeats) override {
        call();
        double seconds = 0;
        for (const Memory &m : memory) {
            seconds = std::max(seconds, m.seconds);
        }
        return repeats * seconds * (share / (double(kPasses) * kTensorBytes));
    }

protected:
    void call() override {
        bench::team_of(p.threads).run(
            [](void *self, int index, int) {
                static_cast<Arithmetic *>(self)->measure(index);
            },
            this);
    }

private:
    void measure(int index) {
        Memory &m = memory[index];
        const bench::ArithmeticTensors tensors = {m.x, m.grad_output, m.out, kTensorBytes};
        const double start = bench::seconds_now();
        if (p.operation == FORWARD_TRAINING) {
            m.sums = loops.forward_sums[p.dtype](tensors, c, kPasses);
        } else if (p.operation == BACKWARD) {
            m.sums = loops.backward_sums[p.dtype](tensors, c, kPasses);
        }
        (p.operation == BACKWARD ? loops.backward_map : loops.forward_map)[p.dtype](tensors, c,
                                                                                   kPasses);
        m.seconds = bench::seconds_now() - start;
    }

    const bench::ArithmeticLoops &loops = loops_in_use();
    std::vector<Memory> memory;
    double share;  // of a tensor's bytes, a thread
    bench::Coefficients c;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    if (p.operation > BACKWARD) {
        throw std::invalid_argument("fused operations are measured against unfused ones");
    }
    return std::make_unique<Arithmetic>(p);
}

std::string contestant_version() {
    return std::string("sums and map of data in L1, ") + loops_in_use().instruction_set;
}
