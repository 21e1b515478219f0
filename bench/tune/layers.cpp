#include "bench/tune/layers.h"

#include <unistd.h>

#include <algorithm>

namespace hbn::tune {

namespace {

int64_t cache_bytes(int name, int64_t otherwise) {
    const long bytes = sysconf(name);
    return bytes > 0 ? bytes : otherwise;
}

// Tensors that lie so many bytes apart in time find little in the cache that cores share.
constexpr int64_t kMostBytesApart = 256 << 20;

}  // namespace

Layers::Layers(Problem &problem, int threads) {
    if (problem.bytes() <= threads * cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20)) {
        all_ = {&problem};
        return;
    }
    const int64_t apart = std::min(cache_bytes(_SC_LEVEL3_CACHE_SIZE, 32 << 20), kMostBytesApart);
    const bool passes_on = problem.passes_on(), keeps = problem.keeps_what_it_reads();
    const int64_t tensor = problem.tensor_bytes(), passed = passes_on ? 2 * tensor : 0;
    const int64_t own = problem.bytes() - passed + (keeps ? tensor : 0);
    size_t count = kReused;
    while (own > 0 && int64_t(count) * own < apart) {
        count += kReused;
    }
    for (size_t i = 0; passes_on && i < (keeps ? count : kReused); i++) {
        passed_.push_back(std::make_unique<compare::Buffer>());
        passed_.back()->copy(problem.input());
    }
    for (size_t i = 0; i < count; i++) {
        if (passed_.empty()) {
            copies_.push_back(std::make_unique<Problem>(problem));
        } else {
            copies_.push_back(std::make_unique<Problem>(problem, *passed_[i % passed_.size()],
                                                        *passed_[(i + 1) % passed_.size()]));
        }
        all_.push_back(copies_.back().get());
    }
}

}  // namespace hbn::tune
