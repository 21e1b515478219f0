/* Batch normalization without an operating system: a training step, and inference with what it learned. Every result
   is printed as the bits of its floats, for a computer to compare. The pack was made with SHAPE=2,4,5,6. */
#include "console.h"
#include "data.h"
#include "hbn.h"

#include <stdint.h>

enum { SIZE = DATA_N * DATA_C * DATA_H * DATA_W };

static const hbn_shape shape = {DATA_N, DATA_C, DATA_H, DATA_W};
static float y[SIZE], grad_input[SIZE];
static float running_mean[DATA_C], running_var[DATA_C] = {1, 1, 1, 1};
static double save_mean[DATA_C], save_invstd[DATA_C];
static float grad_weight[DATA_C], grad_bias[DATA_C];

static void print(const char *name, const float *values, int count) {
    char line[] = " 00000000";
    int i, digit;
    console_write(name);
    for (i = 0; i < count; i++) {
        union {
            float value;
            uint32_t bits;
        } word;
        word.value = values[i];
        for (digit = 0; digit < 8; digit++) {
            line[8 - digit] = "0123456789abcdef"[word.bits >> 4 * digit & 15];
        }
        console_write(line);
    }
    console_write("\n");
}

int main(void) {
    hbn_status status = hbn_forward_training(shape, data_x, data_weight, data_bias, running_mean,
                                             running_var, 0.1, 1e-5, y, save_mean, save_invstd);
    if (status == HBN_OK) {
        print("y", y, SIZE);
        print("running_mean", running_mean, DATA_C);
        print("running_var", running_var, DATA_C);
        status = hbn_backward(shape, data_grad_output, data_x, save_mean, save_invstd, data_weight,
                              grad_input, grad_weight, grad_bias);
    }
    if (status == HBN_OK) {
        print("grad_input", grad_input, SIZE);
        print("grad_weight", grad_weight, DATA_C);
        print("grad_bias", grad_bias, DATA_C);
        status = hbn_forward_inference(shape, data_x, data_weight, data_bias, running_mean,
                                       running_var, 1e-5, y);
    }
    if (status == HBN_OK) {
        print("inference", y, SIZE);
    }
    /* Nothing is written where a call is refused. */
    if (hbn_forward_inference(shape, 0, data_weight, data_bias, running_mean, running_var, 1e-5,
                              y) != HBN_NULL_POINTER) {
        status = HBN_NULL_POINTER;
    }
    console_write(status == HBN_OK ? "ok\n" : "failed\n");
    return (int)status;
}
