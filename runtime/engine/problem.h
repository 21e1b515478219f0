// An operation's arguments once they have been checked: the problem that blocks.cpp and recipes.cpp solve.
#ifndef HBN_RUNTIME_ENGINE_PROBLEM_H
#define HBN_RUNTIME_ENGINE_PROBLEM_H

#include "values.h"

#include <initializer_list>

namespace hbn::internal {

struct Problem {
    Operation operation;
    // What is given, used and wanted: nothing that the operation would ignore.
    Values values;
    int64_t channels = 0;
    double count = 0;                         // of values in a channel
    hbn_dtype tensor_dtype = HBN_FLOAT32;     // of all tensors but masks
    hbn_dtype parameter_dtype = HBN_FLOAT32;  // that kernels take parameters in
    bool has_tensors = true;
    bool batch_statistics = false;
    bool updates_running_statistics = false;
    Activation activation = Activation::identity;
    bool adds_residual = false;
    bool is_solved = false;  // nothing is left to compute: x is empty, or nothing is wanted

    bool wants(Arg output) const {
        return values.has(output);
    }
    // Whether there is neither an activation nor an addition.
    bool is_plain() const {
        return activation == Activation::identity && !adds_residual;
    }
};

// Every check of an operation, in PyTorch's order; of what is wrong nothing has been written. Where x is empty, writes
// what its results are.
hbn_status check(Operation operation, const Given *given, Problem *problem);

// Checks and solves. `given` are the operation's arguments, all of them, in the order of its row.
hbn_status run(Operation operation, const Given *given);
inline hbn_status run(Operation operation, std::initializer_list<Given> given) {
    return run(operation, given.begin());
}

// The whole body of an entry point: the operation and the function's parameters, whose names and order are the
// operation's in operations.def.
#define HBN_RUN(operation, ...)                                                              \
    static_assert(                                                                           \
        names_match(Operation::operation, #__VA_ARGS__),                                     \
        "these are not the arguments that operations.def has, in its order: " #__VA_ARGS__); \
    return run(Operation::operation, {__VA_ARGS__})

}  // namespace hbn::internal

#endif
