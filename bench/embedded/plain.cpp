#include "plain.h"

#include <cmath>

void plain_forward_folded(int n, int c, int plane, const element *__restrict x, const float *scale,
                          const float *shift, element *__restrict y) {
    for (int k = 0; k < c; k++) {
        const float a = scale[k], b = shift[k];
        for (int i = 0; i < n; i++) {
            const element *from = x + (i * c + k) * plane;
            element *to = y + (i * c + k) * plane;
            for (int j = 0; j < plane; j++) {
                const float z = float(from[j]) * a + b;
#ifdef COST_INT8
                const float most = z < -128 ? -128 : z > 127 ? 127 : z;
                to[j] = element(int(std::nearbyint(most)));
#else
                to[j] = element(z);
#endif
            }
        }
    }
}

#ifndef COST_INT8

void plain_forward_inference(int n, int c, int plane, const element *__restrict x,
                             const float *weight, const float *bias, const float *running_mean,
                             const float *running_var, double eps, element *__restrict y) {
    for (int k = 0; k < c; k++) {
        const float mean = running_mean[k], b = bias[k];
        const float gain = float(weight[k] / std::sqrt(running_var[k] + eps));
        for (int i = 0; i < n; i++) {
            const element *from = x + (i * c + k) * plane;
            element *to = y + (i * c + k) * plane;
            for (int j = 0; j < plane; j++) {
                to[j] = element((float(from[j]) - mean) * gain + b);
            }
        }
    }
}

void plain_forward_training(int n, int c, int plane, const element *__restrict x,
                            const float *weight, const float *bias, float *running_mean,
                            float *running_var, double momentum, double eps, element *__restrict y,
                            double *save_mean, double *save_invstd) {
    const double count = double(n) * plane;
    for (int k = 0; k < c; k++) {
        const double pivot = x[k * plane];
        double sum = 0, squares = 0;
        for (int i = 0; i < n; i++) {
            const element *from = x + (i * c + k) * plane;
            for (int j = 0; j < plane; j++) {
                const double d = double(from[j]) - pivot;
                sum += d;
                squares += d * d;
            }
        }
        const double mean = pivot + sum / count, m2 = squares - sum * sum / count;
        const double invstd = 1 / std::sqrt(m2 / count + eps);
        save_mean[k] = mean;
        save_invstd[k] = invstd;
        running_mean[k] = float((1 - momentum) * running_mean[k] + momentum * mean);
        running_var[k] = float((1 - momentum) * running_var[k] + momentum * m2 / (count - 1));
        const float center = float(mean), gain = float(weight[k] * invstd), b = bias[k];
        for (int i = 0; i < n; i++) {
            const element *from = x + (i * c + k) * plane;
            element *to = y + (i * c + k) * plane;
            for (int j = 0; j < plane; j++) {
                to[j] = element((float(from[j]) - center) * gain + b);
            }
        }
    }
}

void plain_backward(int n, int c, int plane, const element *__restrict grad_output,
                    const element *__restrict x, const double *save_mean, const double *save_invstd,
                    const float *weight, element *__restrict grad_input, float *grad_weight,
                    float *grad_bias) {
    const double count = double(n) * plane;
    for (int k = 0; k < c; k++) {
        const double mean = save_mean[k], invstd = save_invstd[k];
        double sum = 0, products = 0;
        for (int i = 0; i < n; i++) {
            const element *dy = grad_output + (i * c + k) * plane, *from = x + (i * c + k) * plane;
            for (int j = 0; j < plane; j++) {
                sum += double(dy[j]);
                products += double(dy[j]) * (double(from[j]) - mean);
            }
        }
        grad_weight[k] = float(products * invstd);
        grad_bias[k] = float(sum);
        const float center = float(mean), slope = float(products * invstd * invstd / count);
        const float offset = float(sum / count), gain = float(weight[k] * invstd);
        for (int i = 0; i < n; i++) {
            const element *dy = grad_output + (i * c + k) * plane, *from = x + (i * c + k) * plane;
            element *to = grad_input + (i * c + k) * plane;
            for (int j = 0; j < plane; j++) {
                to[j] = element((float(dy[j]) - offset - (float(from[j]) - center) * slope) * gain);
            }
        }
    }
}

#endif
