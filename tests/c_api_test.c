/* The whole C interface from C99, on values small enough to check by hand. */
#include <hbn/hbn.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: %s is false (last error: %s)\n", __FILE__, __LINE__, \
                    #condition, hbn_last_error());                                       \
            failures++;                                                                  \
        }                                                                                \
    } while (0)

static int near(double a, double b) {
    return fabs(a - b) <= 1e-6 * (1 + fabs(b));
}

static hbn_tensor tensor(float *data) {
    const hbn_tensor t = {data, HBN_FLOAT32, HBN_CPU, 4, {2, 2, 1, 2}, {4, 2, 2, 1}};
    return t;
}

static hbn_vector vector(float *data) {
    const hbn_vector v = {data, HBN_FLOAT32, 2, 1, HBN_CPU};
    return v;
}

static hbn_vector statistic(double *data) {
    const hbn_vector v = {data, HBN_FLOAT64, 2, 1, HBN_CPU};
    return v;
}

/* Channel 0 holds 1 3 5 7: mean 4, m2 20, biased variance 5. Channel 1 holds 2 2 4 4: mean 3, m2 4, variance 1. */
static float x_values[8] = {1, 3, 2, 2, 5, 7, 4, 4};

static void forward(void) {
    float y[8], m[2] = {0, 0}, v[2] = {1, 1}, w[2] = {2, 1}, b[2] = {0, 10};
    double save_mean[2], save_invstd[2];
    const hbn_tensor x = tensor(x_values), out = tensor(y);
    const hbn_vector weight = vector(w), bias = vector(b), mean = vector(m), var = vector(v);
    const hbn_vector saved[2] = {statistic(save_mean), statistic(save_invstd)};
    CHECK(hbn_batch_norm_forward(&x, &weight, &bias, &mean, &var, 1, 0.5, 4, &out, &saved[0],
                                 &saved[1]) == HBN_OK);
    CHECK(near(y[0], -2) && near(y[5], 2)); /* (1 - 4) / 3 * 2, (7 - 4) / 3 * 2 */
    CHECK(near(y[2], 10 - 1 / sqrt(5)));
    CHECK(near(save_mean[0], 4) && near(save_invstd[0], 1.0 / 3));
    CHECK(near(m[1], 1.5) && near(v[0], 0.5 + 0.5 * 20 / 3));
    CHECK(hbn_batch_norm_forward(&x, NULL, NULL, &mean, &var, 0, 0, 0, &out, NULL, NULL) == HBN_OK);
    CHECK(near(y[0], (1 - m[0]) / sqrt(v[0])));
}

static void backward(void) {
    float dy[8] = {1, 0, 1, 0, 0, 0, 0, 0}, dx[8], dw[2], db[2], m[2] = {4, 3}, v[2] = {0.5f, 1};
    double save_mean[2] = {4, 3}, save_invstd[2] = {0.5, 1};
    const hbn_tensor x = tensor(x_values), g = tensor(dy), out = tensor(dx);
    const hbn_vector mean = statistic(save_mean), invstd = statistic(save_invstd),
                     running_mean = vector(m), running_var = vector(v), grad_weight = vector(dw),
                     grad_bias = vector(db);
    CHECK(hbn_batch_norm_backward(&g, &x, NULL, &mean, &invstd, NULL, NULL, 1, 1, &out,
                                  &grad_weight, &grad_bias) == HBN_OK);
    CHECK(near(db[0], 1) && near(dw[0], -1.5)); /* xhat of the first is (1 - 4) / 2 */
    CHECK(near(dx[0], 0.5 * (1 - 0.25 - 1.5 * 1.5 / 4)));
    float split[8];
    double sum_dy[2], sum_dy_xmu[2];
    const hbn_tensor split_out = tensor(split);
    CHECK(hbn_batch_norm_backward_reduce(&g, &x, &mean, &invstd, sum_dy, sum_dy_xmu, NULL, NULL) ==
          HBN_OK);
    CHECK(near(sum_dy[0], 1) && near(sum_dy_xmu[0], -3));
    CHECK(hbn_batch_norm_backward_elemt(&g, &x, &mean, &invstd, NULL, sum_dy, sum_dy_xmu, 4,
                                        &split_out) == HBN_OK);
    for (int i = 0; i < 8; i++) {
        CHECK(near(split[i], dx[i]));
    }
    CHECK(hbn_batch_norm_backward(&g, &x, NULL, NULL, NULL, &running_mean, &running_var, 0, 0, &out,
                                  NULL, NULL) == HBN_OK);
    CHECK(near(dx[0], 1 / sqrt(0.5)));
}

static void split_statistics(void) {
    double means[4], m2s[4];
    float y[8], m[2] = {0, 0}, v[2] = {0, 0};
    double save_mean[2], save_invstd[2];
    hbn_moments first = {0, means, m2s, 2}, second = {0, means + 2, m2s + 2, 2};
    hbn_tensor x = tensor(x_values), half = x;
    const hbn_tensor out = tensor(y);
    half.sizes[0] = 1;
    CHECK(hbn_batch_norm_stats(&half, &first) == HBN_OK);
    half.data = x_values + 4;
    CHECK(hbn_batch_norm_stats(&half, &second) == HBN_OK);
    CHECK(first.count == 2 && near(means[0], 2) && near(m2s[0], 2) && near(means[2], 6));
    CHECK(hbn_merge_moments(&first, &second) == HBN_OK);
    CHECK(first.count == 4 && near(means[0], 4) && near(m2s[0], 20) && near(m2s[1], 4));
    const hbn_vector mean = vector(m), var = vector(v),
                     saved[2] = {statistic(save_mean), statistic(save_invstd)};
    CHECK(hbn_finalize_moments(&first, 1, 4, &mean, &var, &saved[0], &saved[1]) == HBN_OK);
    CHECK(near(m[0], 4) && near(v[0], 20.0 / 3) && near(save_invstd[0], 1.0 / 3));
    CHECK(hbn_batch_norm_normalize(&x, &first, NULL, NULL, 4, &out) == HBN_OK);
    CHECK(near(y[0], -1));
}

static void errors(void) {
    float y[8];
    const hbn_tensor x = tensor(x_values), out = tensor(y);
    hbn_tensor bad = x;
    bad.ndim = 3;
    CHECK(hbn_batch_norm_forward(&bad, NULL, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL) ==
          HBN_INVALID_ARGUMENT);
    CHECK(strcmp(hbn_last_error(), "expected 4D input (got 3D input)") == 0);
    bad = x;
    bad.device = HBN_CUDA;
    CHECK(hbn_batch_norm_forward(&bad, NULL, NULL, NULL, NULL, 1, 0.1, 1e-5, &bad, NULL, NULL) ==
          HBN_UNSUPPORTED);
    CHECK(hbn_batch_norm_forward(NULL, NULL, NULL, NULL, NULL, 1, 0.1, 1e-5, &out, NULL, NULL) ==
          HBN_INVALID_ARGUMENT);
    CHECK(hbn_set_num_threads(-1) == HBN_INVALID_ARGUMENT);
    CHECK(hbn_set_instruction_set("none such") == HBN_INVALID_ARGUMENT);
}

static void run_serially(void *context, int size, void (*task)(void *, int), void *task_context) {
    *(int *)context += size;
    for (int i = 0; i < size; i++) {
        task(task_context, i);
    }
}

static void threads_and_instruction_sets(void) {
    static float big[2 * 3 * 128 * 128];
    int tasks = 0;
    const hbn_tensor x = {big, HBN_FLOAT32,      HBN_CPU,
                          4,   {2, 3, 128, 128}, {3 * 128 * 128, 128 * 128, 128, 1}};
    CHECK(hbn_set_num_threads(2) == HBN_OK && hbn_get_num_threads() == 2);
    hbn_set_parallel_for(run_serially, &tasks);
    CHECK(hbn_batch_norm_forward(&x, NULL, NULL, NULL, NULL, 1, 0.1, 1e-5, &x, NULL, NULL) ==
          HBN_OK);
    hbn_set_parallel_for(NULL, NULL);
    CHECK(tasks > 0);
    CHECK(strstr(hbn_instruction_sets(), hbn_instruction_set()) != NULL);
    CHECK(hbn_set_instruction_set(hbn_instruction_set()) == HBN_OK);
    CHECK(strlen(hbn_version()) >= 5);
}

int main(void) {
    forward();
    backward();
    split_statistics();
    errors();
    threads_and_instruction_sets();
    return failures != 0;
}
