// The second half of backward training: grad_input from sums that may cover many machines.
#include "generators/tensor_generator.h"

namespace hbn {

class BackwardElemt : public TensorGenerator<BackwardElemt> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> invstd{"invstd"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> sum_dy{"sum_dy"};
    Input<Halide::Buffer<>> sum_dy_xmu{"sum_dy_xmu"};
    Input<double> total_count{"total_count"};
    Output<Halide::Buffer<>> grad_input{"grad_input"};

    void configure() {
        declare_vectors(weight);
        declare_float64_vectors(mean, invstd, sum_dy, sum_dy_xmu);
        declare_tensors(grad_output, x, grad_input);
    }

    void generate() {
        set_shape(x, mean);
        const auto at = element(), ch = channel();
        const auto coefficients =
            once_a_channel(input_gradient_coefficients(mean(ch), invstd(ch), weight(ch), sum_dy(ch),
                                                       sum_dy_xmu(ch), total_count, arithmetic()));
        grad_input(at) =
            rounded(input_gradient(grad_output(at), x(at), coefficients, arithmetic()));
    }

    void schedule() {
        promise_tensors(grad_output, x, grad_input);
        promise_vectors(mean, invstd, weight, sum_dy, sum_dy_xmu);
        work.elementwise = {grad_input};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardElemt, backward_elemt)
