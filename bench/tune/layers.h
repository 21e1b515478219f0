// What is timed: calls that follow each other as layers of a network do.
#ifndef HBN_BENCH_TUNE_LAYERS_H
#define HBN_BENCH_TUNE_LAYERS_H

#include "bench/tune/problem.h"

#include <memory>
#include <vector>

namespace hbn::tune {

// A problem whose tensors stay in a core's L2 is called again and again. Of a larger one there are copies that take turns, and
// what one of them writes is what the next one reads: whether that is still in cache then is part of what a call costs a
// network, which a call that writes past the cache would not tell by itself.
//
//     forward, training    each writes memory of its own: backward will need what it read
//     forward, inference   three tensors are enough for all layers, as for an allocator that reuses them
//     backward             gradients are such, and x, which forward read long ago, each has of its own
//     sums alone           each reads memory of its own
class Layers {
public:
    // Refers to `problem`, and copies it.
    Layers(Problem &problem, int threads);
    Layers(const Layers &) = delete;
    Layers &operator=(const Layers &) = delete;

    // Whose turn it is.
    Problem &next() {
        turn_ = turn_ + 1 < all_.size() ? turn_ + 1 : 0;
        return *all_[turn_];
    }
    size_t count() const {
        return all_.size();
    }
    // After so many calls in a row by one contestant, those of others before it make no difference to the next.
    int calls_to_settle() const {
        return all_.size() > 1 ? int(kReused) : 0;
    }

private:
    // Tensors that layers share where none is kept. An even number would let the same ones always be read, and the others
    // always be written.
    static constexpr size_t kReused = 3;

    std::vector<std::unique_ptr<compare::Buffer>> passed_;
    std::vector<std::unique_ptr<Problem>> copies_;
    std::vector<Problem *> all_;
    size_t turn_ = 0;
};

}  // namespace hbn::tune

#endif
