// All gradients, where forward used the batch's own statistics, through what was fused into it.
#include "generators/activated_generator.h"

namespace hbn {

class BackwardTraining : public ActivatedGenerator<BackwardTraining> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> invstd{"invstd"};
    Input<Halide::Buffer<>> weight{"weight"};
    Output<Func> grad_input{"grad_input"};
    Output<Halide::Buffer<>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<>> grad_bias{"grad_bias"};

    void configure() {
        declare_backward(grad_input);
        declare_vectors(weight, grad_weight, grad_bias);
        declare_float64_vectors(mean, invstd);
        declare_tensors(grad_output, x);
    }

    void generate() {
        set_shape(x, mean);
        const auto at = element(), ch = channel();
        const auto dz = gradient_of_z(grad_output, x, mean(ch), invstd(ch), weight(ch));
        const auto sums = gradient_sums_of(dz.in_sums, x, mean(ch));
        grad_weight(ch) = Halide::cast(statistics(), sums[1] * invstd(ch));
        grad_bias(ch) = Halide::cast(statistics(), sums[0]);

        const auto coefficients = gradient_coefficients(input_gradient_coefficients(
            mean(ch), invstd(ch), weight(ch), sums[0], sums[1], count(), arithmetic()));
        define_backward(grad_input,
                        input_gradient(dz.at_element(at), x(at), coefficients, arithmetic()), dz,
                        grad_output);
    }

    void schedule() {
        promise_tensors(grad_output, x, grad_input);
        promise_activation();
        promise_vectors(mean, invstd, weight, grad_weight, grad_bias);
        work.elementwise = {grad_input};
        work.per_channel = {grad_weight, grad_bias};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardTraining, backward_training)
