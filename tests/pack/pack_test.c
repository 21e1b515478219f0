/* A pack's functions against double arithmetic on the same data, and what they refuse. Compiled by run.py for each
   pack: TEST_N to TEST_W are sizes of tensors, TEST_<DTYPE> and TEST_NHWC say what the pack is of. run.py also writes
   pack_calls.h, from the declarations in hbn.h: a row for each function, and a call of it with `arguments`. */
#include "hbn.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = TEST_N, C = TEST_C, P = TEST_H * TEST_W, SIZE = N * C * P, MOST = 32 };

static const hbn_shape shape = {TEST_N, TEST_C, TEST_H, TEST_W};
static int failures;

/* What any function is called with; each takes some. */
typedef struct arguments {
    hbn_shape shape;
    void *buffers[MOST];
    double eps, momentum;
    double alpha, beta; /* the activation's numbers, in order */
} arguments;

/* Tensors, masks and vectors, by name. */
typedef struct buffer_row {
    const char *name;
    size_t element_bytes;
    int is_tensor; /* or a mask */
    int is_mask;
} buffer_row;

typedef struct function_row {
    const char *name, *operation, *activation;
    int add;
    hbn_status (*call)(const arguments *);
    int buffers; /* how many it takes; which, and whether it writes each */
    int buffer[MOST], written[MOST];
    const char *numbers; /* names, each after a blank */
} function_row;

#include "pack_calls.h"

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
    if (exponent == 31) {
        return fraction ? NAN : e >> 15 ? -INFINITY : INFINITY;
    }
    return (e >> 15 ? -1 : 1) *
           (exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24));
}
static hbn_element store(double value) {
    /* Of normal numbers, rounded down: any value will do. */
    int exponent;
    const double fraction = frexp(fabs(value), &exponent);
    if (value != value) {
        return 0x7e00;
    }
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

/* ---- data */

/* Of the arguments of this name; NULL where no function of the pack takes it. */
static void *buffer(const char *name) {
    static void *all[MOST];
    int i;
    for (i = 0; i < BUFFERS; i++) {
        if (strcmp(buffer_rows[i].name, name) == 0) {
            if (!all[i]) {
                all[i] =
                    malloc((buffer_rows[i].is_tensor ? SIZE : C) * buffer_rows[i].element_bytes);
            }
            return all[i];
        }
    }
    return NULL;
}

static size_t bytes_of(int i) {
    return (buffer_rows[i].is_tensor ? SIZE : C) * buffer_rows[i].element_bytes;
}

static hbn_element x[SIZE], dy[SIZE], residual[SIZE];
static float weight[C], bias[C], running_mean[C], running_var[C];
static double mean[C], variance[C];
static const double eps = 1e-5, momentum = 0.25;

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

/* All inputs as fill() made them, outputs filled with 0xee. */
static arguments all_arguments(void) {
    static const struct {
        const char *name;
        const void *data;
        size_t bytes;
    } inputs[] = {
        {"x", x, sizeof x},
        {"residual", residual, sizeof residual},
        {"grad_output", dy, sizeof dy},
        {"weight", weight, sizeof weight},
        {"bias", bias, sizeof bias},
        {"running_mean", running_mean, sizeof running_mean},
        {"running_var", running_var, sizeof running_var},
    };
    arguments a;
    size_t k;
    int i;
    memset(&a, 0, sizeof a);
    a.shape = shape;
    a.eps = eps;
    a.momentum = momentum;
    for (i = 0; i < BUFFERS; i++) {
        a.buffers[i] = buffer(buffer_rows[i].name);
        memset(a.buffers[i], 0xee, bytes_of(i));
    }
    for (k = 0; k < sizeof inputs / sizeof inputs[0]; k++) {
        if (buffer(inputs[k].name)) {
            memcpy(buffer(inputs[k].name), inputs[k].data, inputs[k].bytes);
        }
    }
    return a;
}

/* ---- what is expected */

static const double roundoff = 8 * 0x1p-24;

/* What rounding to the elements' type adds to `error`. */
static void check(const char *what, size_t index, double actual, double expected, double error) {
    const double bound = error + unit * fabs(expected) + half_denormal + 1e-30;
    if (!(fabs(actual - expected) <= bound)) {
        if (failures++ < 10) {
            printf("%s[%u] is %.9g, expected %.9g within %.3g\n", what, (unsigned)index, actual,
                   expected, bound);
        }
    }
}

static void check_status(const char *function, const char *what, hbn_status actual,
                         hbn_status expected) {
    if (actual != expected && failures++ < 10) {
        printf("%s, %s: status %d, expected %d\n", function, what, (int)actual, (int)expected);
    }
}

static void check_that(int holds, const char *function, const char *what) {
    if (!holds && failures++ < 10) {
        printf("%s: %s\n", function, what);
    }
}

/* An activation with numbers, and its function and derivative. */
typedef struct activation_case {
    const char *activation;
    double alpha, beta;
    double (*value)(double z, double alpha, double beta);
    double (*derivative)(double z, double alpha, double beta);
} activation_case;

#define HBN_TEST_ACTIVATION(name, activation, c_name, alpha_value, beta_value, value, derivative, \
                            ...)                                                                  \
    static double name##_value(double z, double alpha, double beta) {                             \
        (void)z, (void)alpha, (void)beta;                                                         \
        return value;                                                                             \
    }                                                                                             \
    static double name##_derivative(double z, double alpha, double beta) {                        \
        (void)z, (void)alpha, (void)beta;                                                         \
        return derivative;                                                                        \
    }
#include "../activations.def"
static const activation_case cases[] = {
#define HBN_TEST_ACTIVATION(name, activation, c_name, alpha_value, beta_value, value, derivative, \
                            ...)                                                                  \
    {#activation, alpha_value, beta_value, name##_value, name##_derivative},
#include "../activations.def"
};
enum { CASES = sizeof cases / sizeof cases[0] };

/* A number that is off by so much at most. */
typedef struct result {
    double value, error;
} result;

static result applied(double (*f)(double, double, double), const activation_case *k, result z) {
    const double value = f(z.value, k->alpha, k->beta);
    /* Also where it jumps near z. */
    const double below = fabs(f(z.value - z.error, k->alpha, k->beta) - value);
    const double above = fabs(f(z.value + z.error, k->alpha, k->beta) - value);
    /* Only of arithmetic. */
    const double own = value == 0 || value == 1 || value == z.value ? 0 : fabs(value) + 0.5;
    const result y = {value, fmax(below, above) + 2 * roundoff * own};
    return y;
}

static result with_residual(const function_row *f, size_t i, result z) {
    if (f->add) {
        z.value += load(residual[i]);
        z.error += roundoff * fabs(load(residual[i]));
    }
    return z;
}

/* What an activation is applied to, by these statistics. */
static result normalized(const function_row *f, size_t i, int c, const double *m, const double *v) {
    const double gain = weight[c] / sqrt(v[c] + eps), product = (load(x[i]) - m[c]) * gain;
    result z;
    z.value = product + bias[c];
    z.error = roundoff * (fabs(product) + fabs(m[c] * gain) * 0x1p-20 + fabs(bias[c]));
    return with_residual(f, i, z);
}

static result scaled(const function_row *f, size_t i, int c) {
    const float *scale = buffer("scale"), *shift = buffer("shift");
    result z;
    z.value = load(x[i]) * scale[c] + shift[c];
    z.error = roundoff * (fabs(load(x[i]) * scale[c]) + fabs(shift[c]));
    return with_residual(f, i, z);
}

static void check_y(const function_row *f, const activation_case *k, const double *m,
                    const double *v, const hbn_element *y) {
    int n, c, p;
    for (n = 0; n < N; n++) {
        for (c = 0; c < C; c++) {
            for (p = 0; p < P; p++) {
                const size_t i = at(n, c, p);
                const result z = m ? normalized(f, i, c, m, v) : scaled(f, i, c);
                result y_i = applied(k->value, k, z);
#if defined TEST_INT8
                y_i.value = fmax(fmin(y_i.value, 127), -128);
                y_i.error += 0.5;
#endif
                check(f->name, i, load(y[i]), y_i.value, y_i.error);
            }
        }
    }
}

/* ---- operations */

/* With y in the memory of one of its inputs. */
static void test_in_place(const function_row *f, const activation_case *k, const arguments *a,
                          const double *m, const double *v, const char *input) {
    arguments in_place = *a;
    int i;
    for (i = 0; i < f->buffers; i++) {
        const int b = f->buffer[i];
        if (strcmp(buffer_rows[b].name, input) == 0) {
            in_place.buffers[b] = buffer("y");
            memcpy(buffer("y"), buffer(input), sizeof x);
            check_status(f->name, input, f->call(&in_place), HBN_OK);
            check_y(f, k, m, v, buffer("y"));
        }
    }
}

/* Where every dtype has NaN. */
static void test_nan(const function_row *f, const arguments *a) {
#if !defined TEST_INT8
    hbn_element *input = buffer("x");
    const hbn_element *y = buffer("y");
    const hbn_element before = input[SIZE / 2], neighbour = y[SIZE / 2 - 1];
    input[SIZE / 2] = store(NAN);
    check_status(f->name, "NaN", f->call(a), HBN_OK);
    check_that(load(y[SIZE / 2]) != load(y[SIZE / 2]), f->name, "NaN does not pass");
    check_that(load(y[SIZE / 2 - 1]) == load(neighbour), f->name, "NaN reaches its neighbour");
    input[SIZE / 2] = before;
#else
    (void)f, (void)a;
#endif
}

static void test_inference(const function_row *f, const activation_case *k, arguments *a) {
    double m[C], v[C];
    int c;
    for (c = 0; c < C; c++) {
        m[c] = running_mean[c];
        v[c] = running_var[c];
    }
    check_status(f->name, "inference", f->call(a), HBN_OK);
    check_y(f, k, m, v, buffer("y"));
    test_nan(f, a);
    test_in_place(f, k, a, m, v, "x");
    test_in_place(f, k, a, m, v, "residual");
}

static void test_folded(const function_row *f, const activation_case *k, arguments *a) {
    float *scale = buffer("scale"), *shift = buffer("shift");
    int c;
    for (c = 0; c < C; c++) {
        scale[c] = (float)(weight[c] / sqrt(running_var[c] + eps));
        shift[c] = bias[c] - running_mean[c] * scale[c];
#if defined TEST_INT8
        scale[c] *= 3; /* some saturate */
#endif
    }
    check_status(f->name, "folded", f->call(a), HBN_OK);
    check_y(f, k, NULL, NULL, buffer("y"));
    test_nan(f, a);
    test_in_place(f, k, a, NULL, NULL, "x");
    test_in_place(f, k, a, NULL, NULL, "residual");
}

static void test_fold(const function_row *f, const activation_case *k, arguments *a) {
    const float *scale = buffer("scale"), *shift = buffer("shift");
    int c;
    (void)k;
    check_status(f->name, "fold", f->call(a), HBN_OK);
    for (c = 0; c < C; c++) {
        const double gain = weight[c] / sqrt(running_var[c] + eps);
        check("scale", c, scale[c], gain, roundoff * fabs(gain));
        check("shift", c, shift[c], bias[c] - running_mean[c] * gain,
              roundoff * (fabs(bias[c]) + fabs(running_mean[c] * gain)));
    }
}

static int writes_mask(const function_row *f) {
    int i;
    for (i = 0; i < f->buffers; i++) {
        if (buffer_rows[f->buffer[i]].is_mask) {
            return 1;
        }
    }
    return 0;
}

static void check_backward(const function_row *f, const activation_case *k,
                           const hbn_element *grad_input) {
    const float *grad_weight = buffer("grad_weight"), *grad_bias = buffer("grad_bias");
    const hbn_element *grad_residual = buffer("grad_residual");
    int n, c, p;
    for (c = 0; c < C; c++) {
        const double inverse = 1 / sqrt(variance[c] + eps), gain = weight[c] * inverse;
        /* Sums, and the same of magnitudes and of errors. */
        double sum = 0, products = 0, magnitudes = 0, product_magnitudes = 0;
        double errors = 0, product_errors = 0;
        int pass;
        for (pass = 0; pass < 2; pass++) {
            for (n = 0; n < N; n++) {
                for (p = 0; p < P; p++) {
                    const size_t i = at(n, c, p);
                    const result z = normalized(f, i, c, mean, variance);
                    const result derivative = applied(k->derivative, k, z);
                    const double g = load(dy[i]) * derivative.value;
                    const double g_error = fabs(load(dy[i])) * derivative.error;
                    const double xhat = (load(x[i]) - mean[c]) * inverse;
                    if (pass == 0) {
                        sum += g;
                        products += g * xhat;
                        magnitudes += fabs(g);
                        product_magnitudes += fabs(g * xhat);
                        errors += g_error;
                        product_errors += g_error * fabs(xhat);
                        continue;
                    }
                    check(f->name, i, load(grad_input[i]),
                          gain * (g - sum / (N * P) - xhat * products / (N * P)),
                          fabs(gain) *
                              (roundoff * (fabs(g) + 2 * magnitudes / (N * P) +
                                           fabs(xhat) * 2 * product_magnitudes / (N * P)) +
                               g_error + errors / (N * P) + fabs(xhat) * product_errors / (N * P)));
                    if (f->add) {
                        check("grad_residual", i, load(grad_residual[i]), g, g_error);
                    }
                }
            }
        }
        /* In groups of float, sums are off by 9 units of their magnitudes. */
        check("grad_bias", c, grad_bias[c], sum, roundoff * (2 * magnitudes + fabs(sum)) + errors);
        check("grad_weight", c, grad_weight[c], products,
              roundoff * 2 * product_magnitudes + product_errors);
    }
}

/* Exactly: neither is the result of arithmetic. */
static void check_mask(const function_row *f) {
    const uint8_t *mask = buffer("mask");
    const hbn_element *y = buffer("y"), *grad_residual = buffer("grad_residual");
    size_t i;
    for (i = 0; i < SIZE; i++) {
        const int passes = load(y[i]) > 0;
        if (mask[i] != passes || load(grad_residual[i]) != (passes ? load(dy[i]) : 0)) {
            check_that(0, f->name, "mask");
            return;
        }
    }
}

static void test_training(const function_row *f, const activation_case *k, arguments *a) {
    const float *new_mean = buffer("running_mean"), *new_var = buffer("running_var");
    const double *save_mean = buffer("save_mean"), *save_invstd = buffer("save_invstd");
    const double count = N * P;
    float before[2][C];
    int c;
    check_status(f->name, "training", f->call(a), HBN_OK);
    check_y(f, k, mean, variance, buffer("y"));
    for (c = 0; c < C; c++) {
        const double inverse = 1 / sqrt(variance[c] + eps);
        check("save_mean", c, save_mean[c], mean[c],
              roundoff * (fabs(mean[c]) + sqrt(variance[c])));
        check("save_invstd", c, save_invstd[c], inverse, roundoff * inverse);
        check("running_mean", c, new_mean[c], 0.75 * running_mean[c] + 0.25 * mean[c],
              roundoff * (fabs(running_mean[c]) + fabs(mean[c])));
        check("running_var", c, new_var[c],
              0.75 * running_var[c] + 0.25 * variance[c] * count / (count - 1),
              roundoff * (running_var[c] + variance[c]));
    }
    /* A momentum of 0 changes no running statistics. */
    memcpy(before[0], new_mean, sizeof before[0]);
    memcpy(before[1], new_var, sizeof before[1]);
    a->momentum = 0;
    check_status(f->name, "momentum", f->call(a), HBN_OK);
    check_y(f, k, mean, variance, buffer("y"));
    if (!writes_mask(f)) {
        test_in_place(f, k, a, mean, variance, "x");
        test_in_place(f, k, a, mean, variance, "residual");
    }
    check_that(memcmp(before[0], new_mean, sizeof before[0]) == 0 &&
                   memcmp(before[1], new_var, sizeof before[1]) == 0,
               f->name, "a momentum of 0 changed running statistics");
    a->momentum = momentum;
}

/* With what the training function of the same form saved. */
static void test_backward(const function_row *f, const activation_case *k, arguments *a) {
    int i;
    for (i = 0; i < FUNCTIONS; i++) {
        const function_row *forward = &function_rows[i];
        if (strcmp(forward->operation, "forward_training") == 0 &&
            strcmp(forward->activation, f->activation) == 0 && forward->add == f->add) {
            break;
        }
    }
    check_that(i < FUNCTIONS, f->name, "the pack has no forward for it");
    if (i == FUNCTIONS) {
        return;
    }
    check_status(f->name, "forward", function_rows[i].call(a), HBN_OK);
    check_status(f->name, "backward", f->call(a), HBN_OK);
    check_backward(f, k, buffer("grad_input"));
    if (writes_mask(&function_rows[i])) {
        check_mask(f);
    }
    if (!f->add) {
        const char *const inputs[] = {"grad_output", "x"};
        int j, b;
        for (j = 0; j < 2; j++) {
            arguments in_place = *a;
            for (b = 0; b < BUFFERS; b++) {
                if (strcmp(buffer_rows[b].name, inputs[j]) == 0) {
                    memcpy(buffer("grad_input"), a->buffers[b], sizeof x);
                    in_place.buffers[b] = buffer("grad_input");
                }
            }
            check_status(f->name, inputs[j], f->call(&in_place), HBN_OK);
            check_backward(f, k, buffer("grad_input"));
        }
    }
}

/* ---- refusals */

static int output_tensors(const function_row *f) {
    int i, count = 0;
    for (i = 0; i < f->buffers; i++) {
        count += f->written[i] && buffer_rows[f->buffer[i]].is_tensor;
    }
    return count;
}

static int may_be_in_place(const function_row *f, int i, int j) {
    const buffer_row *a = &buffer_rows[f->buffer[i]], *b = &buffer_rows[f->buffer[j]];
    return a->is_tensor && b->is_tensor && !a->is_mask && !b->is_mask &&
           f->written[i] != f->written[j] && output_tensors(f) == 1;
}

static void refuses_memory(const function_row *f, const arguments *valid) {
    int i, j;
    for (i = 0; i < f->buffers; i++) {
        const int b = f->buffer[i];
        arguments a = *valid;
        a.buffers[b] = NULL;
        check_status(f->name, buffer_rows[b].name, f->call(&a), HBN_NULL_POINTER);
        if (buffer_rows[b].element_bytes > 1) {
            a.buffers[b] = (char *)valid->buffers[b] + buffer_rows[b].element_bytes / 2;
            check_status(f->name, buffer_rows[b].name, f->call(&a), HBN_MISALIGNED);
        }
        for (j = 0; j < f->buffers; j++) {
            if (j == i || !(f->written[i] || f->written[j])) {
                continue;
            }
            /* Vectors of one or two channels end there. */
            if (bytes_of(f->buffer[j]) > 8) {
                a.buffers[b] = (char *)valid->buffers[f->buffer[j]] + 8;
                check_status(f->name, buffer_rows[b].name, f->call(&a), HBN_OVERLAP);
            }
            if (!may_be_in_place(f, i, j)) {
                a.buffers[b] = valid->buffers[f->buffer[j]];
                check_status(f->name, buffer_rows[b].name, f->call(&a), HBN_OVERLAP);
            }
        }
    }
}

static void refuses_shapes(const function_row *f, const arguments *valid) {
    arguments a = *valid;
    a.shape.c = TEST_FIXED ? C + 1 : 0;
    check_status(f->name, "c", f->call(&a), HBN_INVALID_SHAPE);
    if (strcmp(f->operation, "fold") == 0) {
        return;
    }
    a = *valid;
    a.shape.w = TEST_FIXED ? a.shape.w + 1 : 0;
    check_status(f->name, "w", f->call(&a), HBN_INVALID_SHAPE);
    a = *valid;
    a.shape.n = TEST_FIXED ? a.shape.n + 1 : -1;
    check_status(f->name, "n", f->call(&a), HBN_INVALID_SHAPE);
    if (!TEST_FIXED) {
        a.shape.n = a.shape.h = a.shape.w = 1 << 11;
        check_status(f->name, "size", f->call(&a), HBN_INVALID_SHAPE);
        a.shape.n = a.shape.h = a.shape.w = 1;
        if (strcmp(f->operation, "forward_training") == 0) {
            check_status(f->name, "one value", f->call(&a), HBN_INVALID_SHAPE);
        }
    }
}

/* Which the library refuses, too. */
static void refuses_numbers(const function_row *f, const arguments *valid) {
    static const double none[] = {NAN, INFINITY, -INFINITY};
    arguments a;
    int i;
    for (i = 0; i < 3; i++) {
        if (strstr(f->numbers, " eps")) {
            a = *valid;
            a.eps = none[i];
            check_status(f->name, "eps", f->call(&a), HBN_INVALID_NUMBER);
            a.eps = -i;
            check_status(f->name, "eps", f->call(&a), HBN_INVALID_NUMBER);
        }
        if (strstr(f->numbers, " momentum")) {
            a = *valid;
            a.momentum = none[i];
            check_status(f->name, "momentum", f->call(&a), HBN_INVALID_NUMBER);
        }
        if (strstr(f->numbers, " slope")) {
            a = *valid;
            a.alpha = none[i];
            check_status(f->name, "slope", f->call(&a), HBN_INVALID_NUMBER);
        }
    }
    if (strstr(f->numbers, " low high")) {
        static const double limits[][2] = {{NAN, 1}, {0, NAN}, {NAN, NAN}, {1, 0.5}, {INFINITY, 6}};
        for (i = 0; i < 5; i++) {
            a = *valid;
            a.alpha = limits[i][0];
            a.beta = limits[i][1];
            check_status(f->name, "limits", f->call(&a), HBN_INVALID_NUMBER);
        }
    }
}

/* Nothing is written. */
static void test_refusals(const function_row *f, const arguments *a) {
    static uint8_t *before[MOST];
    int i;
    for (i = 0; i < f->buffers; i++) {
        const int b = f->buffer[i];
        before[b] = before[b] ? before[b] : malloc(bytes_of(b));
        memcpy(before[b], a->buffers[b], bytes_of(b));
    }
    refuses_memory(f, a);
    refuses_shapes(f, a);
    refuses_numbers(f, a);
    for (i = 0; i < f->buffers; i++) {
        const int b = f->buffer[i];
        check_that(memcmp(before[b], a->buffers[b], bytes_of(b)) == 0, f->name,
                   "wrote where it refused");
    }
}

/* ---- all of them */

static void test(const function_row *f) {
    static const struct {
        const char *operation;
        void (*run)(const function_row *, const activation_case *, arguments *);
    } tests[] = {
        {"forward_inference", test_inference}, {"forward_training", test_training},
        {"backward", test_backward},           {"fold", test_fold},
        {"forward_folded", test_folded},
    };
    size_t t;
    int i, count = 0;
    for (t = 0; t < sizeof tests / sizeof tests[0]; t++) {
        for (i = 0; strcmp(tests[t].operation, f->operation) == 0 && i < CASES; i++) {
            if (strcmp(cases[i].activation, f->activation) == 0) {
                arguments a = all_arguments();
                a.alpha = cases[i].alpha;
                a.beta = cases[i].beta;
                tests[t].run(f, &cases[i], &a);
                if (count++ == 0) {
                    test_refusals(f, &a);
                }
            }
        }
    }
    check_that(count > 0, f->name, "nothing says what is expected of it");
}

#ifdef TEST_ONLY_CALLS
/* Just a call of each function, for who follows what is executed. */
int main(void) {
    arguments a;
    int i;
    fill();
    a = all_arguments();
    for (i = 0; i < FUNCTIONS; i++) {
        check_status(function_rows[i].name, "call", function_rows[i].call(&a), HBN_OK);
    }
    return failures != 0;
}
#else
int main(void) {
    int i;
    fill();
    for (i = 0; i < FUNCTIONS; i++) {
        test(&function_rows[i]);
    }
#if TEST_HOOK
    check_that(tasks > 0, "hbn_parallel_for", "it was not called");
#endif
    printf("%d failures\n", failures);
    return failures != 0;
}
#endif
