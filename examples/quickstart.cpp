// BatchNorm2d in C++: training, evaluation, gradients and the state, on memory of your own.
#include <hbn/batch_norm_2d.h>

#include <cstdio>
#include <vector>

int main() {
    const hbn::Shape sizes = {20, 100, 35, 45};  // N, C, H, W
    std::vector<float> input(20 * 100 * 35 * 45);
    for (size_t i = 0; i < input.size(); i++) {
        input[i] = float(i * 7919 % 1000) / 100;
    }
    const hbn::ConstTensorView x(input.data(), hbn::DType::float32, sizes);

    hbn::BatchNorm2d bn(100);
    const hbn::Tensor y = bn(x);               // batch statistics; running ones are updated
    const auto gradients = bn.backward(y, x);  // any tensor of y's shape is a grad_output

    bn.eval();
    const hbn::Tensor z = bn(x);  // running statistics

    std::printf("%s\n", bn.repr().c_str());
    std::printf("x[0] = %.4f  training y[0] = %.4f  evaluation y[0] = %.4f\n", input[0],
                y.data<float>()[0], z.data<float>()[0]);
    std::printf("grad_input[0] = %.2e  grad_weight[0] = %.1f  grad_bias[0] = %.1e\n",
                gradients.grad_input.data<float>()[0], gradients.grad_weight.data<float>()[0],
                gradients.grad_bias.data<float>()[0]);
    for (const auto &[name, entry] : bn.state_dict()) {
        std::printf("state: %s%s\n", name.c_str(), entry.shape.empty() ? "" : " [100]");
    }
}
