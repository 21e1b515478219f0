/* A batch normalization small enough to do by hand. Each channel has mean 4 and variance 5; with eps = 4,
 * invstd is 1/3, and weight 3 takes that back. */
#ifndef EXPECTED_H
#define EXPECTED_H

enum { N = 2, C = 2, H = 1, W = 2 };
static const double momentum = 0.5, eps = 4;
static const float weight[C] = {3, -3}, bias[C] = {0, 10};
/* Channel 0 has 1, 3, 5, 7; channel 1 the same, backwards. */
static const float x[N * C * H * W] = {1, 3, 7, 5, 5, 7, 3, 1};
static const float expected_y[N * C * H * W] = {-3, -1, 7, 9, 1, 3, 11, 13};
/* Halfway from 0 to 4, and from 1 to 20/3, the variance over one value less. */
static const float expected_running_mean[C] = {2, 2},
                   expected_running_var[C] = {23.f / 6, 23.f / 6};

/* Of one value only, in channel 0. */
static const float grad_output[N * C * H * W] = {3, 0, 0, 0, 0, 0, 0, 0};
static const float expected_grad_input[N * C * H * W] = {1.5, -1, 0, 0, -0.5, 0, 0, 0};
static const float expected_grad_weight[C] = {-3, 0}, expected_grad_bias[C] = {3, 0};

/* Some roundings of float32 at the largest value. */
static const double bound = 4e-6;

#endif
