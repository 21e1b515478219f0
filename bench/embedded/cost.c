/* Calls one function of a pack, or of plain.h (PLAIN), once. bench/embedded.py follows what it executes. */
#include "hbn.h"
#include "plain.h"

#include <string.h>

enum { N = COST_N, C = COST_C, P = COST_H * COST_W, SIZE = N * C * P };

static element x[SIZE], y[SIZE], grad_output[SIZE];
static float weight[C], bias[C], running_mean[C], running_var[C], grad_weight[C], grad_bias[C];
static double save_mean[C], save_invstd[C];

#ifdef PLAIN
#define CALL(name, ...) plain_##name(N, C, P, __VA_ARGS__)
#define ELEMENTS(array) array
#else
#define CALL(name, ...) hbn_##name((hbn_shape){N, C, COST_H, COST_W}, __VA_ARGS__)
#define ELEMENTS(array) (hbn_element *)(void *)array
#endif

int main(void) {
    int i;
    for (i = 0; i < SIZE; i++) {
        x[i] = (element)(i * 7919 % 101 - 50);
        grad_output[i] = (element)(i * 31 % 17 - 8);
    }
    for (i = 0; i < C; i++) {
        weight[i] = running_var[i] = save_invstd[i] = 1;
    }
#if defined COST_forward_inference
    CALL(forward_inference, ELEMENTS(x), weight, bias, running_mean, running_var, 1e-5,
         ELEMENTS(y));
#elif defined COST_forward_training
    CALL(forward_training, ELEMENTS(x), weight, bias, running_mean, running_var, 0.1, 1e-5,
         ELEMENTS(y), save_mean, save_invstd);
#elif defined COST_backward
    CALL(backward, ELEMENTS(grad_output), ELEMENTS(x), save_mean, save_invstd, weight, ELEMENTS(y),
         grad_weight, grad_bias);
#else
    CALL(forward_folded, ELEMENTS(x), weight, bias, ELEMENTS(y));
#endif
    return 0;
}
