// What double backward gives x: the gradient, by x, of what backward computes. The sums are backward_reduce's, of
// grad_output and of grad_grad_input; product is double_backward_product's. With statistics that are constants all of
// them are 0.
#include "generators/tensor_generator.h"

namespace hbn {

class DoubleBackwardElemt : public TensorGenerator<DoubleBackwardElemt> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> grad_grad_input{"grad_grad_input"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> invstd{"invstd"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> grad_grad_weight{"grad_grad_weight"};
    Input<Halide::Buffer<>> sum_dy{"sum_dy"};
    Input<Halide::Buffer<>> sum_dy_xmu{"sum_dy_xmu"};
    Input<Halide::Buffer<>> sum_ddx{"sum_ddx"};
    Input<Halide::Buffer<>> sum_ddx_xmu{"sum_ddx_xmu"};
    Input<Halide::Buffer<>> product{"product"};
    Input<double> total_count{"total_count"};
    Output<Halide::Buffer<>> grad_input{"grad_input"};

    void configure() {
        declare_vectors(weight, grad_grad_weight);
        declare_float64_vectors(mean, invstd, sum_dy, sum_dy_xmu, sum_ddx, sum_ddx_xmu, product);
        declare_tensors(grad_output, grad_grad_input, x, grad_input);
    }

    void generate() {
        set_shape(x, mean);
        const auto at = element(), ch = channel();
        const auto coefficients = once_a_channel(double_backward_coefficients(
            mean(ch), invstd(ch), weight(ch), grad_grad_weight(ch), {sum_dy(ch), sum_dy_xmu(ch)},
            {sum_ddx(ch), sum_ddx_xmu(ch)}, product(ch), total_count, arithmetic()));
        grad_input(at) = rounded(double_backward(grad_output(at), grad_grad_input(at), x(at),
                                                 coefficients, arithmetic()));
    }

    void schedule() {
        promise_tensors(grad_output, grad_grad_input, x, grad_input);
        promise_vectors(mean, invstd, weight, grad_grad_weight, sum_dy, sum_dy_xmu, sum_ddx,
                        sum_ddx_xmu, product);
        work.elementwise = {grad_input};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::DoubleBackwardElemt, double_backward_elemt)
