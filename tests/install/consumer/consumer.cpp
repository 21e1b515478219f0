// The C++ interface of an installed hbn: exit status 0 if it computes what it should.
#include <hbn/batch_norm_2d.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "expected.h"

namespace {

int failures = 0;

void check(const char *name, const void *data, const float *expected, int size) {
    const float *values = static_cast<const float *>(data);
    for (int i = 0; i < size; i++) {
        if (!(std::fabs(double(values[i]) - expected[i]) <= bound)) {
            std::printf("%s[%d] is %.9g instead of %.9g\n", name, i, values[i], expected[i]);
            failures++;
        }
    }
}

}  // namespace

int main() {
    hbn::BatchNorm2dOptions options;
    options.momentum = momentum;
    options.eps = eps;
    hbn::BatchNorm2d bn(C, options);
    std::copy(weight, weight + C, static_cast<float *>(bn.weight().data));
    std::copy(bias, bias + C, static_cast<float *>(bn.bias().data));

    // Inputs may be const.
    const hbn::ConstTensorView view(x, hbn::DType::float32, {N, C, H, W});
    const hbn::ConstTensorView dy_view(grad_output, hbn::DType::float32, {N, C, H, W});

    const hbn::Tensor y = bn(view);
    check("y", y.data<float>(), expected_y, N * C * H * W);
    check("running_mean", bn.running_mean().data, expected_running_mean, C);
    check("running_var", bn.running_var().data, expected_running_var, C);

    const hbn::functional::Gradients gradients = bn.backward(dy_view, view);
    check("grad_input", gradients.grad_input.data<float>(), expected_grad_input, N * C * H * W);
    check("grad_weight", gradients.grad_weight.data<float>(), expected_grad_weight, C);
    check("grad_bias", gradients.grad_bias.data<float>(), expected_grad_bias, C);

    // Errors are exceptions that pass from the library into the program.
    const hbn::ConstTensorView too_many_channels(x, hbn::DType::float32, {1, C + 1, 1, 1});
    try {
        bn(too_many_channels);
        std::printf("a wrong number of channels was not refused\n");
        failures++;
    } catch (const hbn::Error &e) {
        std::printf("refused: %s\n", e.what());
    }

    if (HBN_VERSION != std::string(hbn_version())) {
        std::printf("the headers are of %s\n", HBN_VERSION);
        failures++;
    }
    std::printf("hbn %s in C++: %d failures\n", hbn_version(), failures);
    return failures != 0;
}
