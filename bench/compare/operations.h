// Every operation of hbn's C interface, as one call on the shared buffers.
#ifndef HBN_BENCH_COMPARE_OPERATIONS_H
#define HBN_BENCH_COMPARE_OPERATIONS_H

#include "bench/compare/buffers.h"
#include "bench/compare/library.h"

#include <string>
#include <vector>

namespace hbn::compare {

constexpr double kMomentum = 0.1;

// What builds differ in: the dtype of saved statistics, and whether a fused operation takes a mask or,
// backward, the residual again.
struct Convention {
    DType saved = FLOAT64;
    bool mask = false;
    bool residual = false;

    std::string description() const;
};

// The descriptors that one library's calls take. They point into the buffers.
struct Arguments {
    Arguments(const Buffers &buffers, const Convention &convention);

    Tensor x, grad_output, residual, mask, out, second_out, out_mask;
    Vector weight, bias, weight_tangent, bias_tangent, running_mean, running_var, grad_weight,
        grad_bias;
    Vector mean, invstd;              // what backward reads
    Vector saved_mean, saved_invstd;  // what forward writes
    Moments moments, other;
    Activation relu;
    double *sum_dy, *sum_dy_xmu;
    double count;
    // Null where the convention goes without.
    const Tensor *mask_or_null = nullptr;
    const Tensor *out_mask_or_null = nullptr;
    const Tensor *residual_or_null = nullptr;
};

struct Output {
    const char *name;
    Buffer Buffers::*buffer;
};

struct Operation {
    const char *name;
    int (*call)(const Library &library, Arguments &a);  // returns hbn's status, or kMissing
    std::vector<Output> outputs;
    bool has_tensors = true;  // else only the number of channels matters
    // Tried in turn until a library accepts one.
    std::vector<Convention> conventions = {{FLOAT64}, {FLOAT32}};
};

const std::vector<Operation> &operations();

// @throws std::runtime_error for an unknown name
const Operation &operation_of(const std::string &name);

}  // namespace hbn::compare

#endif
