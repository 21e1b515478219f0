// The loops of arithmetic.h over the cell's own tensors, in the order that statistics force: a channel's sums, then its map,
// in NCHW; all sums, then all maps, in NHWC. It shows what memory and arithmetic come to together, since a map can't begin
// before its sum ends. It does nothing else: no tails, no accumulators for each column, nothing once a channel. Its results
// are of no use.
#include "bench/arithmetic_in_use.h"
#include "bench/contestant_limit.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace {

namespace bench = hbn::bench;

size_t whole_steps(size_t bytes) {
    return bytes / bench::kArithmeticStep * bench::kArithmeticStep;
}

class Loops : public TeamLimit {
public:
    explicit Loops(const problem &p) : TeamLimit(p) {
        const size_t bytes = tensor_bytes(), plane = bytes / (p.n * p.c);
        by_channel = p.operation != FORWARD_INFERENCE && p.layout == NCHW;
        rows = by_channel ? p.n : 1;
        row_bytes = bytes / rows / 64 * 64;
        // Small planes of several channels at once, as hbn takes them.
        const size_t several = std::min<size_t>(16384, 524288 / p.n);
        width = by_channel ? std::max(plane, several) : 65536;
        // Enough blocks for threads to share evenly.
        width = std::min(width, std::max<size_t>(row_bytes / (8 * p.threads), 4096));
        width = whole_steps(std::min(width, row_bytes));
        if (width == 0) {
            throw std::invalid_argument("less than a step of the loops");
        }
        blocks = row_bytes / width;
        part = double(blocks * width * rows) / double(bytes);
        const bool backward = p.operation == BACKWARD;
        if (p.operation != FORWARD_INFERENCE) {
            const auto &sums = backward ? loops.backward_sums : loops.forward_sums;
            const bool by_fma = seconds_of(sums[bench::BY_FMA][p.dtype]) <
                                seconds_of(sums[bench::BY_SUBTRACTION][p.dtype]);
            sum = sums[by_fma ? bench::BY_FMA : bench::BY_SUBTRACTION][p.dtype];
        }
    }

    // As if the loops had gone over all bytes.
    double run(int repeats) override {
        return TeamLimit::run(repeats) / part;
    }

protected:
    void store_by(bool streaming) override {
        const auto &maps = p.operation == BACKWARD ? loops.backward_map : loops.forward_map;
        map = maps[streaming ? bench::STREAMING_STORES : bench::ORDINARY_STORES][p.dtype];
    }
    void call() override {
        if (by_channel) {
            team->run(each_block<&Loops::sum_and_map>, this);
            return;
        }
        if (sum) {
            team->run(each_block<&Loops::sum_block>, this);
        }
        team->run(each_block<&Loops::map_block>, this);
    }

private:
    template<void (Loops::*work)(size_t block)>
    static void each_block(void *context, int index, int size) {
        Loops &self = *static_cast<Loops *>(context);
        const size_t share = (self.blocks + size - 1) / size;
        for (size_t i = share * index; i < std::min(self.blocks, share * (index + 1)); i++) {
            (self.*work)(i);
        }
    }

    // Of sums in L1.
    double seconds_of(bench::ArithmeticLoops::Sums sums) const {
        double best = 1e30;
        for (int i = 0; i < 10; i++) {
            const double start = bench::seconds_now();
            sums({p.x, p.grad_output, p.out, bench::kArithmeticStep}, c, 100);
            best = std::min(best, bench::seconds_now() - start);
        }
        return best;
    }

    void sum_and_map(size_t block) {
        sum_block(block);
        map_block(block);
    }
    void sum_block(size_t block) {
        for (size_t row = 0; row < rows; row++) {
            // In NHWC from the last to the first: the map then finds in cache what was summed last.
            const size_t i = by_channel ? block : blocks - 1 - block;
            const bench::ArithmeticSums sums = sum(tensors(row, i), c, 1);
            volatile double used = sums.first + sums.second;
            (void)used;
        }
    }
    void map_block(size_t block) {
        for (size_t row = 0; row < rows; row++) {
            map(tensors(row, block), c, 1);
        }
    }
    bench::ArithmeticTensors tensors(size_t row, size_t block) const {
        const auto at = [&](void *data) {
            return static_cast<char *>(data) + row * row_bytes + block * width;
        };
        return {at(p.x), at(p.grad_output), at(p.out), width};
    }

    const bench::ArithmeticLoops &loops = *bench::loops_in_use().front();
    const bench::Coefficients c = bench::coefficients_of(p);
    bool by_channel;
    size_t rows, row_bytes, width, blocks;  // width and row_bytes in bytes
    double part;                            // of the bytes, that whole blocks are
    bench::ArithmeticLoops::Sums sum = nullptr;
    bench::ArithmeticLoops::Map map = nullptr;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    return std::make_unique<Loops>(p);
}

std::string contestant_version() {
    return std::string("sums, then map, ") + bench::loops_in_use().front()->instruction_set;
}
