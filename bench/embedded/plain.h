/* The operations of a pack as plain loops, for a compiler to do with what it can. NCHW; arithmetic as hbn's: sums in
   double around the channel's first value, elements in float. */
#ifndef HBN_BENCH_EMBEDDED_PLAIN_H
#define HBN_BENCH_EMBEDDED_PLAIN_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined COST_INT8
typedef int8_t element;
#elif defined COST_FLOAT16
typedef __fp16 element;
#else
typedef float element;
#endif

void plain_forward_inference(int n, int c, int plane, const element *x, const float *weight,
                             const float *bias, const float *running_mean, const float *running_var,
                             double eps, element *y);
void plain_forward_training(int n, int c, int plane, const element *x, const float *weight,
                            const float *bias, float *running_mean, float *running_var,
                            double momentum, double eps, element *y, double *save_mean,
                            double *save_invstd);
void plain_backward(int n, int c, int plane, const element *grad_output, const element *x,
                    const double *save_mean, const double *save_invstd, const float *weight,
                    element *grad_input, float *grad_weight, float *grad_bias);
void plain_forward_folded(int n, int c, int plane, const element *x, const float *scale,
                          const float *shift, element *y);

#ifdef __cplusplus
}
#endif

#endif
