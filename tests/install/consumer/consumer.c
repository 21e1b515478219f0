/* The C interface of an installed hbn: exit status 0 if it computes what it should. */
#include <hbn/hbn.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "expected.h"

static int failures = 0;

static void check(const char *name, const float *values, const float *expected, int size) {
    for (int i = 0; i < size; i++) {
        if (!(fabs((double)values[i] - expected[i]) <= bound)) {
            printf("%s[%d] is %.9g instead of %.9g\n", name, i, values[i], expected[i]);
            failures++;
        }
    }
}

static void check_status(hbn_status status) {
    if (status != HBN_OK) {
        printf("%s\n", hbn_last_error());
        failures++;
    }
}

static hbn_tensor tensor(float *data) {
    const hbn_tensor view = {data, HBN_FLOAT32, HBN_CPU, 4, {N, C, H, W}, {C * H * W, H * W, W, 1}};
    return view;
}

static hbn_vector vector(float *data) {
    const hbn_vector view = {data, HBN_FLOAT32, C, 1, HBN_CPU};
    return view;
}

static hbn_vector statistic(double *data) {
    const hbn_vector view = {data, HBN_FLOAT64, C, 1, HBN_CPU};
    return view;
}

int main(void) {
    float input[N * C * H * W], dy[N * C * H * W], y[N * C * H * W], dx[N * C * H * W];
    double mean[C], invstd[C];
    float w[C], b[C], grad_weight[C], grad_bias[C];
    float running_mean[C] = {0, 0}, running_var[C] = {1, 1};
    memcpy(input, x, sizeof x);
    memcpy(dy, grad_output, sizeof grad_output);
    memcpy(w, weight, sizeof weight);
    memcpy(b, bias, sizeof bias);

    const hbn_tensor input_view = tensor(input), dy_view = tensor(dy);
    const hbn_tensor y_view = tensor(y), dx_view = tensor(dx);
    const hbn_vector w_view = vector(w), b_view = vector(b);
    const hbn_vector mean_view = statistic(mean), invstd_view = statistic(invstd);
    const hbn_vector running_mean_view = vector(running_mean);
    const hbn_vector running_var_view = vector(running_var);
    const hbn_vector grad_weight_view = vector(grad_weight), grad_bias_view = vector(grad_bias);

    check_status(hbn_batch_norm_forward(&input_view, &w_view, &b_view, &running_mean_view,
                                        &running_var_view, 1, momentum, eps, &y_view, &mean_view,
                                        &invstd_view));
    check("y", y, expected_y, N * C * H * W);
    check("running_mean", running_mean, expected_running_mean, C);
    check("running_var", running_var, expected_running_var, C);

    check_status(hbn_batch_norm_backward(&dy_view, &input_view, &w_view, &mean_view, &invstd_view,
                                         NULL, NULL, 1, eps, &dx_view, &grad_weight_view,
                                         &grad_bias_view));
    check("grad_input", dx, expected_grad_input, N * C * H * W);
    check("grad_weight", grad_weight, expected_grad_weight, C);
    check("grad_bias", grad_bias, expected_grad_bias, C);

    printf("hbn %s in C: %d failures\n", hbn_version(), failures);
    return failures != 0;
}
