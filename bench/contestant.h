// What bench.py asks of every contestant: a shared library with these functions.
#ifndef HBN_BENCH_CONTESTANT_H
#define HBN_BENCH_CONTESTANT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum operation {
    FORWARD_TRAINING,
    FORWARD_INFERENCE,
    BACKWARD,  // of training
    // With what is fused into them; only in a run of bench.py --fused.
    FORWARD_TRAINING_RELU,
    FORWARD_TRAINING_ADD_RELU,
    FORWARD_INFERENCE_RELU,
    FORWARD_INFERENCE_ADD_RELU,
    BACKWARD_RELU,
    BACKWARD_ADD_RELU
};
enum layout { NCHW, NHWC };
enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

// One cell of the grid. The memory is the benchmark's: the same for every contestant, aligned,
// touched. Parameters and statistics are float32, c of each, whatever the dtype of the tensors.
struct problem {
    int32_t operation, layout, dtype, threads;
    int64_t n, c, h, w;
    void *x, *grad_output;
    void *out;  // y, or grad_input
    float *weight, *bias;
    float *mean, *invstd;               // of the batch: what BACKWARD reads
    float *running_mean, *running_var;  // FORWARD_TRAINING updates them
    double momentum, eps;
    // For fused operations; null otherwise.
    void *residual, *grad_residual;
    void *mask;  // a byte an element
};

// Does once what a user does once for many calls: views, descriptors, primitives, and one call.
// NULL if this contestant cannot; why() then says so.
void *prepare(const struct problem *problem);
const char *why(void);

// Seconds that `repeats` calls take, one right after the other.
double run(void *prepared, int repeats);

void release(void *prepared);

// The contestant's version, and what it says of the processor.
const char *version(void);

#ifdef __cplusplus
}
#endif

#endif
