// All three gradients, where forward used the batch's own statistics.
#include "generators/batch_norm.h"

namespace hbn {

class BackwardTraining : public TensorGenerator<BackwardTraining> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> invstd{"invstd"};
    Input<Halide::Buffer<>> weight{"weight"};
    Output<Halide::Buffer<>> grad_input{"grad_input"};
    Output<Halide::Buffer<>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<>> grad_bias{"grad_bias"};

    void configure() {
        declare_tensors(grad_output, x, grad_input);
        declare_vectors(mean, invstd, weight, grad_weight, grad_bias);
    }

    void generate() {
        set_shape(x, mean);
        const auto at = element(), ch = channel();
        const auto sums = gradient_sums_of(grad_output, x, mean(ch));
        grad_weight(ch) = Halide::cast(statistics(), sums[1] * f64(invstd(ch)));
        grad_bias(ch) = Halide::cast(statistics(), sums[0]);

        const auto coefficients = once_a_channel(input_gradient_coefficients(
            mean(ch), invstd(ch), weight(ch), sums[0], sums[1], count(), statistics()));
        grad_input(at) = rounded(input_gradient(grad_output(at), x(at), coefficients));
    }

    void schedule() {
        promise_tensors(grad_output, x, grad_input);
        promise_vectors(mean, invstd, weight, grad_weight, grad_bias);
        work.elementwise = {grad_input};
        work.per_channel = {grad_weight, grad_bias};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardTraining, backward_training)
