// What contestants have in common that hbn is held against: grid.py's LIMITS.
#ifndef HBN_BENCH_CONTESTANT_LIMIT_H
#define HBN_BENCH_CONTESTANT_LIMIT_H

#include "bench/contestant_base.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

class Limit : public Contestant {
public:
    // @throws std::invalid_argument for a fused operation
    explicit Limit(const problem &p) : Contestant(p) {
        if (activates()) {
            throw std::invalid_argument("fused operations are measured against unfused ones");
        }
    }

protected:
    size_t tensor_bytes() const {
        return size_t(p.n * p.c * p.h * p.w) * (p.dtype == FLOAT32 ? 4 : 2);
    }
};

// Loops on a team of threads, by ordinary stores or by streaming ones.
class TeamLimit : public Limit {
public:
    explicit TeamLimit(const problem &p) : Limit(p) {
        if (tensor_bytes() < hbn::bench::kFewBytes && p.threads > 1) {
            sizes.push_back(1);
        }
        sizes.push_back(p.threads);
    }

    // The better of both stores, and of both sizes where there are two.
    double run(int repeats) override {
        double best = 1e30;
        for (const int size : sizes) {
            team = &hbn::bench::team_of(size);
            for (const bool streaming : {false, true}) {
                store_by(streaming);
                call();
                best = std::min(best, Contestant::run(repeats));
            }
        }
        return best;
    }

protected:
    // What call() does from here on.
    virtual void store_by(bool streaming) = 0;

    hbn::bench::Team *team = nullptr;

private:
    std::vector<int> sizes;
};

#endif
