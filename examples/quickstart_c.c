/* Batch normalization from C99: plain pointers, a status for each call, nothing allocated for you. */
#include <hbn/hbn.h>

#include <stdio.h>

enum { N = 4, C = 3, H = 5, W = 7 };

int main(void) {
    static float x[N * C * H * W], y[N * C * H * W];
    float running_mean[C] = {0, 0, 0}, running_var[C] = {1, 1, 1};
    for (int i = 0; i < N * C * H * W; i++) {
        x[i] = (float)(i % 11);
    }
    const hbn_tensor input = {x, HBN_FLOAT32, HBN_CPU, 4, {N, C, H, W}, {C * H * W, H * W, W, 1}};
    hbn_tensor output = input;
    output.data = y;
    const hbn_vector mean = {running_mean, HBN_FLOAT32, C, 1, HBN_CPU};
    const hbn_vector var = {running_var, HBN_FLOAT32, C, 1, HBN_CPU};

    /* No weight, no bias, no saved statistics: NULL. */
    if (hbn_batch_norm_forward(&input, NULL, NULL, &mean, &var, 1, 0.1, 1e-5, &output, NULL,
                               NULL) != HBN_OK) {
        fprintf(stderr, "%s\n", hbn_last_error());
        return 1;
    }
    printf("x[0] = %.4f  y[0] = %.4f  running_mean[0] = %.4f  running_var[0] = %.4f\n", x[0], y[0],
           running_mean[0], running_var[0]);
    return 0;
}
