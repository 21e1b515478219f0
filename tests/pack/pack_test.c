/* A pack's functions against double arithmetic on the same data, and what they refuse. Compiled by run.py for each
   pack: TEST_N to TEST_W are sizes of tensors, TEST_<DTYPE> and TEST_NHWC say what the pack is of, HAS_<OPERATION>
   what it holds. */
#include "hbn.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = TEST_N, C = TEST_C, P = TEST_H * TEST_W, SIZE = N * C * P };

static const hbn_shape shape = {TEST_N, TEST_C, TEST_H, TEST_W};
static const double eps = 1e-5;
static int failures;

#if TEST_HOOK
static int tasks;

/* Backwards: nothing may depend on the order. */
void hbn_parallel_for(void (*task)(int i, void *context), int count, void *context) {
    tasks += count;
    while (count-- > 0) {
        task(count, context);
    }
}
#endif

/* ---- elements */

#if defined TEST_FLOAT32
static const double unit = 0x1p-24, half_denormal = 0;
static double load(hbn_element e) {
    return e;
}
static hbn_element store(double value) {
    return (float)value;
}
#elif defined TEST_FLOAT16
static const double unit = 0x1p-11, half_denormal = 0x1p-25;
static double load(hbn_element e) {
    const int exponent = e >> 10 & 31, fraction = e & 1023;
    const double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return e >> 15 ? -value : value;
}
static hbn_element store(double value) {
    /* Of normal numbers, rounded down: any value will do. */
    int exponent;
    const double fraction = frexp(fabs(value), &exponent);
    if (exponent < -13) {
        return 0;
    }
    return (hbn_element)((value < 0) << 15 | (exponent + 14) << 10 |
                         ((int)(fraction * 2048) & 1023));
}
#elif defined TEST_BFLOAT16
static const double unit = 0x1p-8, half_denormal = 0;
static double load(hbn_element e) {
    const uint32_t bits = (uint32_t)e << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static hbn_element store(double value) {
    const float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof bits);
    return (hbn_element)(bits >> 16);
}
#else
static const double unit = 0, half_denormal = 0;
static double load(hbn_element e) {
    return e;
}
static hbn_element store(double value) {
    return (hbn_element)(value * 30);
}
#endif

static size_t at(int n, int c, int p) {
#ifdef TEST_NHWC
    return ((size_t)n * P + p) * C + c;
#else
    return ((size_t)n * C + c) * P + p;
#endif
}

/* ---- data, and what is expected of it */

static hbn_element x[SIZE], y[SIZE], dy[SIZE], dx[SIZE], residual[SIZE], grad_residual[SIZE];
static uint8_t mask[SIZE];
static float weight[C], bias[C], running_mean[C], running_var[C], grad_weight[C], grad_bias[C];
static double mean[C], variance[C];
static double expected_y[SIZE], y_scale[SIZE];

static double uniform(void) {
    static uint32_t state = 12345;
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) * 0x1p-23 - 1;
}

static void fill(void) {
    int n, c, p;
    for (c = 0; c < C; c++) {
        weight[c] = (float)(uniform() * 2);
        bias[c] = (float)uniform();
        running_mean[c] = (float)uniform();
        running_var[c] = (float)(uniform() + 1.5);
    }
    for (n = 0; n < N; n++) {
        for (c = 0; c < C; c++) {
            for (p = 0; p < P; p++) {
                x[at(n, c, p)] = store(uniform() * (1 + c % 3) + c % 5 - 2);
                dy[at(n, c, p)] = store(uniform());
                residual[at(n, c, p)] = store(uniform());
            }
        }
    }
    for (c = 0; c < C; c++) {
        double sum = 0, squares = 0;
        for (n = 0; n < N; n++) {
            for (p = 0; p < P; p++) {
                sum += load(x[at(n, c, p)]);
            }
        }
        mean[c] = sum / (N * P);
        for (n = 0; n < N; n++) {
            for (p = 0; p < P; p++) {
                const double d = load(x[at(n, c, p)]) - mean[c];
                squares += d * d;
            }
        }
        variance[c] = squares / (N * P);
    }
}

/* Arithmetic is float's; the result is rounded to the element's type, denormal where it is small. */
static void check(const char *what, size_t index, double actual, double expected, double scale) {
    const double bound = 8 * 0x1p-24 * scale + unit * fabs(expected) + half_denormal + 1e-30;
    if (!(fabs(actual - expected) <= bound)) {
        if (failures++ < 10) {
            printf("%s[%u] is %.9g, expected %.9g within %.3g\n", what, (unsigned)index, actual,
                   expected, bound);
        }
    }
}

static void check_status(const char *what, hbn_status actual, hbn_status expected) {
    if (actual != expected) {
        failures++;
        printf("%s: status %d, expected %d\n", what, (int)actual, (int)expected);
    }
}

/* What is fused into an operation. */
enum { NOTHING, RELU, ADD_RELU };

#if !defined TEST_INT8
static void expect_forward(const double *m, const double *v, int fused) {
    int n, c, p;
    for (n = 0; n < N; n++) {
        for (c = 0; c < C; c++) {
            const double gain = weight[c] / sqrt(v[c] + eps);
            for (p = 0; p < P; p++) {
                const size_t i = at(n, c, p);
                expected_y[i] = (load(x[i]) - m[c]) * gain + bias[c];
                y_scale[i] =
                    fabs((load(x[i]) - m[c]) * gain) + fabs(m[c] * gain) * 0x1p-20 + fabs(bias[c]);
                if (fused == ADD_RELU) {
                    expected_y[i] += load(residual[i]);
                    y_scale[i] += fabs(load(residual[i]));
                }
                if (fused && expected_y[i] < 0) {
                    expected_y[i] = 0;
                }
            }
        }
    }
}

static void check_forward(const char *what) {
    size_t i;
    for (i = 0; i < SIZE; i++) {
        check(what, i, load(y[i]), expected_y[i], y_scale[i]);
    }
}
#endif

/* ---- operations */

#if defined HAS_FORWARD_INFERENCE || defined HAS_FORWARD_INFERENCE_RELU
typedef hbn_status inference_function(hbn_shape, const hbn_element *, const float *, const float *,
                                      const float *, const float *, double, hbn_element *);

static void test_inference(const char *name, inference_function *run, int fused) {
    double m[C], v[C];
    static hbn_element before[SIZE]; /* more than some stacks */
    hbn_shape other = shape;
    int c;
    for (c = 0; c < C; c++) {
        m[c] = running_mean[c];
        v[c] = running_var[c];
    }
    expect_forward(m, v, fused);
    check_status(name, run(shape, x, weight, bias, running_mean, running_var, eps, y), HBN_OK);
    check_forward(name);

    /* In place. */
    memcpy(y, x, sizeof x);
    check_status(name, run(shape, y, weight, bias, running_mean, running_var, eps, y), HBN_OK);
    check_forward(name);

    memcpy(before, y, sizeof y);
    other.c++;
    other.n = TEST_FIXED ? other.n : -1;
    check_status("shape", run(other, x, weight, bias, running_mean, running_var, eps, y),
                 HBN_INVALID_SHAPE);
    other = shape;
    other.w = TEST_FIXED ? other.w + 1 : 0;
    check_status("width", run(other, x, weight, bias, running_mean, running_var, eps, y),
                 HBN_INVALID_SHAPE);
    if (!TEST_FIXED) {
        other.n = other.c = other.h = other.w = 1 << 10;
        check_status("size", run(other, x, weight, bias, running_mean, running_var, eps, y),
                     HBN_INVALID_SHAPE);
    }
    check_status("x", run(shape, NULL, weight, bias, running_mean, running_var, eps, y),
                 HBN_NULL_POINTER);
    check_status("bias", run(shape, x, weight, NULL, running_mean, running_var, eps, y),
                 HBN_NULL_POINTER);
    check_status("y", run(shape, x, weight, bias, running_mean, running_var, eps, NULL),
                 HBN_NULL_POINTER);
    check_status(
        "weight",
        run(shape, x, (float *)((char *)weight + 1), bias, running_mean, running_var, eps, y),
        HBN_MISALIGNED);
    check_status("overlap", run(shape, y + 1, weight, bias, running_mean, running_var, eps, y),
                 HBN_OVERLAP);
    check_status("overlap",
                 run(shape, x, (float *)(void *)y, bias, running_mean, running_var, eps, y),
                 HBN_OVERLAP);
    check_status("eps", run(shape, x, weight, bias, running_mean, running_var, 0, y),
                 HBN_INVALID_NUMBER);
    check_status("eps", run(shape, x, weight, bias, running_mean, running_var, NAN, y),
                 HBN_INVALID_NUMBER);
    check_status("eps", run(shape, x, weight, bias, running_mean, running_var, INFINITY, y),
                 HBN_INVALID_NUMBER);
    if (memcmp(before, y, sizeof y) != 0) {
        failures++;
        printf("%s wrote where it refused\n", name);
    }
}
#endif

#if defined HAS_BACKWARD
/* What of grad_output comes through what is fused. Where it hangs on roundoff, forward's result decides. */
static double passed(size_t i, int fused) {
    return fused && load(y[i]) <= 0 ? 0 : load(dy[i]);
}

static void check_backward(const char *name, const double *inverse, int fused) {
    int n, c, p;
    for (c = 0; c < C; c++) {
        double sum = 0, products = 0, magnitudes = 0, product_magnitudes = 0;
        for (n = 0; n < N; n++) {
            for (p = 0; p < P; p++) {
                const size_t i = at(n, c, p);
                const double g = passed(i, fused);
                const double xhat = (load(x[i]) - mean[c]) * inverse[c];
                sum += g;
                products += g * xhat;
                magnitudes += fabs(g);
                product_magnitudes += fabs(g * xhat);
            }
        }
        /* In groups of float, sums are off by 9 units of their magnitudes. */
        check("grad_bias", c, grad_bias[c], sum, 2 * magnitudes + fabs(sum));
        check("grad_weight", c, grad_weight[c], products, 2 * product_magnitudes);
        for (n = 0; n < N; n++) {
            for (p = 0; p < P; p++) {
                const size_t i = at(n, c, p);
                const double g = passed(i, fused);
                const double xhat = (load(x[i]) - mean[c]) * inverse[c];
                const double gain = weight[c] * inverse[c];
                const double expected = gain * (g - sum / (N * P) - xhat * products / (N * P));
                const double scale = fabs(gain) * (fabs(g) + 2 * magnitudes / (N * P) +
                                                   fabs(xhat) * 2 * product_magnitudes / (N * P));
                check(name, i, load(dx[i]), expected, scale);
            }
        }
    }
}
#endif

#if defined HAS_FORWARD_TRAINING && defined HAS_BACKWARD
/* What forward saves for backward. */
static double save_mean[C], save_invstd[C];

static hbn_status forward(int fused, double momentum) {
#ifdef HAS_FORWARD_TRAINING_RELU
    if (fused == RELU) {
        return hbn_forward_training_relu(shape, x, weight, bias, running_mean, running_var,
                                         momentum, eps, y, save_mean, save_invstd);
    }
#endif
#ifdef HAS_FORWARD_TRAINING_ADD_RELU
    if (fused == ADD_RELU) {
        return hbn_forward_training_add_relu(shape, x, residual, weight, bias, running_mean,
                                             running_var, momentum, eps, y, mask, save_mean,
                                             save_invstd);
    }
#endif
    return hbn_forward_training(shape, x, weight, bias, running_mean, running_var, momentum, eps, y,
                                save_mean, save_invstd);
}

static hbn_status backward(int fused, const hbn_element *grad_output) {
#ifdef HAS_BACKWARD_RELU
    if (fused == RELU) {
        return hbn_backward_relu(shape, grad_output, x, save_mean, save_invstd, weight, bias, dx,
                                 grad_weight, grad_bias);
    }
#endif
#ifdef HAS_BACKWARD_ADD_RELU
    if (fused == ADD_RELU) {
        return hbn_backward_add_relu(shape, grad_output, x, save_mean, save_invstd, weight, mask,
                                     dx, grad_residual, grad_weight, grad_bias);
    }
#endif
    return hbn_backward(shape, grad_output, x, save_mean, save_invstd, weight, dx, grad_weight,
                        grad_bias);
}

/* Exactly: neither is the result of arithmetic. */
static void check_mask(void) {
    size_t i;
    for (i = 0; i < SIZE; i++) {
        if (mask[i] != (load(y[i]) > 0) || load(grad_residual[i]) != passed(i, ADD_RELU)) {
            failures++;
            printf("mask[%u] is %d where y is %g\n", (unsigned)i, mask[i], load(y[i]));
            return;
        }
    }
}

static void test_training(const char *name, int fused) {
    float old_mean[C], old_var[C];
    double inverse[C];
    const double count = N * P;
    int c;
    memcpy(old_mean, running_mean, sizeof running_mean);
    memcpy(old_var, running_var, sizeof running_var);
    expect_forward(mean, variance, fused);
    check_status(name, forward(fused, 0.25), HBN_OK);
    check_forward(name);
    for (c = 0; c < C; c++) {
        inverse[c] = 1 / sqrt(variance[c] + eps);
        check("save_mean", c, save_mean[c], mean[c], fabs(mean[c]) + sqrt(variance[c]));
        check("save_invstd", c, save_invstd[c], inverse[c], inverse[c]);
        check("running_mean", c, running_mean[c], 0.75 * old_mean[c] + 0.25 * mean[c],
              fabs(old_mean[c]) + fabs(mean[c]));
        check("running_var", c, running_var[c],
              0.75 * old_var[c] + 0.25 * variance[c] * count / (count - 1),
              old_var[c] + variance[c]);
    }

    /* Neither a refusal nor a momentum of 0 changes the running statistics. */
    memcpy(old_mean, running_mean, sizeof running_mean);
    memcpy(old_var, running_var, sizeof running_var);
    check_status("momentum", forward(fused, NAN), HBN_INVALID_NUMBER);
    check_status("save_invstd",
                 hbn_forward_training(shape, x, weight, bias, running_mean, running_var, 0.25, eps,
                                      y, save_mean, save_mean),
                 HBN_OVERLAP);
    check_status(name, forward(fused, 0), HBN_OK);
    check_forward(name);
    if (memcmp(old_mean, running_mean, sizeof old_mean) != 0 ||
        memcmp(old_var, running_var, sizeof old_var) != 0) {
        failures++;
        printf("%s changed running statistics\n", name);
    }

    check_status("backward", backward(fused, dy), HBN_OK);
    check_backward("backward", inverse, fused);
    if (fused == ADD_RELU) {
        check_mask();
        check_status("grad_output", backward(fused, dx), HBN_OVERLAP);
    } else {
        memcpy(dx, dy, sizeof dy);
        check_status("in place", backward(fused, dx), HBN_OK);
        check_backward("in place", inverse, fused);
    }
}
#endif

#if defined HAS_FOLD && defined HAS_FORWARD_FOLDED
static void test_folded(void) {
    float scale[C], shift[C];
    int n, c, p;
    check_status("fold", hbn_fold(C, weight, bias, running_mean, running_var, eps, scale, shift),
                 HBN_OK);
    check_status("fold", hbn_fold(C, weight, bias, running_mean, running_var, -1, scale, shift),
                 HBN_INVALID_NUMBER);
    check_status("fold", hbn_fold(C, weight, bias, running_mean, running_var, eps, weight, shift),
                 HBN_OVERLAP);
    for (c = 0; c < C; c++) {
        const double gain = weight[c] / sqrt(running_var[c] + eps);
        check("scale", c, scale[c], gain, fabs(gain));
        check("shift", c, shift[c], bias[c] - running_mean[c] * gain,
              fabs(bias[c]) + fabs(running_mean[c] * gain));
#if defined TEST_INT8
        scale[c] *= 3; /* some saturate */
#endif
    }
    check_status("forward_folded", hbn_forward_folded(shape, x, scale, shift, y), HBN_OK);
    for (n = 0; n < N; n++) {
        for (c = 0; c < C; c++) {
            for (p = 0; p < P; p++) {
                const size_t i = at(n, c, p);
                double expected = load(x[i]) * scale[c] + shift[c];
#if defined TEST_INT8
                const double off = 0.5;
                expected = expected < -128 ? -128 : expected > 127 ? 127 : expected;
#else
                const double off = 0;
#endif
                /* Rounding to int8 is off by `off` at most: its share of check()'s bound. */
                check("forward_folded", i, load(y[i]), expected,
                      fabs(load(x[i]) * scale[c]) + fabs(shift[c]) + off / (8 * 0x1p-24));
            }
        }
    }
    check_status("forward_folded", hbn_forward_folded(shape, x, NULL, shift, y), HBN_NULL_POINTER);
}
#endif

#ifdef HAS_FORWARD_INFERENCE_ADD_RELU
static hbn_status add_relu(hbn_shape s, const hbn_element *input, const float *w, const float *b,
                           const float *m, const float *v, double e, hbn_element *output) {
    return hbn_forward_inference_add_relu(s, input, residual, w, b, m, v, e, output);
}
#endif

int main(void) {
    fill();
#ifdef HAS_FORWARD_INFERENCE
    test_inference("forward_inference", hbn_forward_inference, NOTHING);
#endif
#ifdef HAS_FORWARD_INFERENCE_RELU
    test_inference("forward_inference_relu", hbn_forward_inference_relu, RELU);
#endif
#ifdef HAS_FORWARD_INFERENCE_ADD_RELU
    test_inference("forward_inference_add_relu", add_relu, ADD_RELU);
#endif
#if defined HAS_FORWARD_TRAINING && defined HAS_BACKWARD
    test_training("forward_training", NOTHING);
#endif
#if defined HAS_FORWARD_TRAINING_RELU && defined HAS_BACKWARD_RELU
    test_training("forward_training_relu", RELU);
#endif
#if defined HAS_FORWARD_TRAINING_ADD_RELU && defined HAS_BACKWARD_ADD_RELU
    test_training("forward_training_add_relu", ADD_RELU);
#endif
#if defined HAS_FOLD && defined HAS_FORWARD_FOLDED
    test_folded();
#endif
#if TEST_HOOK
    if (tasks == 0) {
        failures++;
        printf("hbn_parallel_for() was not called\n");
    }
#endif
    printf("%d failures\n", failures);
    return failures != 0;
}
