// A contestant in C++. Each library defines the two functions at the end; contestant.cpp does the
// rest.
#ifndef HBN_BENCH_CONTESTANT_BASE_H
#define HBN_BENCH_CONTESTANT_BASE_H

#include "bench/contestant.h"
#include "bench/memory_bound.h"

#include <memory>
#include <string>

class Contestant {
public:
    explicit Contestant(const problem &p) : p(p) {
    }
    virtual ~Contestant() = default;

    virtual double run(int repeats) {
        const double start = hbn::bench::seconds_now();
        for (int i = 0; i < repeats; i++) {
            call();
        }
        finish();
        return hbn::bench::seconds_now() - start;
    }

    // What a cell's operation does.
    bool is_backward() const {
        return p.operation == BACKWARD || p.operation == BACKWARD_RELU ||
               p.operation == BACKWARD_ADD_RELU;
    }
    bool is_training() const {
        return p.operation == FORWARD_TRAINING || p.operation == FORWARD_TRAINING_RELU ||
               p.operation == FORWARD_TRAINING_ADD_RELU;
    }
    bool adds() const {
        return p.operation == FORWARD_TRAINING_ADD_RELU ||
               p.operation == FORWARD_INFERENCE_ADD_RELU || p.operation == BACKWARD_ADD_RELU;
    }
    bool activates() const {
        return p.operation > BACKWARD;
    }

protected:
    virtual void call() = 0;
    // Waits for calls that only queue work.
    virtual void finish() {
    }

    const problem p;
};

// @throws std::exception saying why this contestant cannot do the problem
std::unique_ptr<Contestant> make_contestant(const problem &p);
std::string contestant_version();

#endif
