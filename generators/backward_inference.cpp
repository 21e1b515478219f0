// All gradients, where forward used running statistics, which are constants to it, through what was fused
// into it.
#include "generators/activated_generator.h"

namespace hbn {

class BackwardInference : public ActivatedGenerator<BackwardInference> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> running_mean{"running_mean"};
    Input<Halide::Buffer<>> running_var{"running_var"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<double> eps{"eps"};
    Output<Func> grad_input{"grad_input"};
    Output<Halide::Buffer<>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<>> grad_bias{"grad_bias"};

    void configure() {
        declare_backward(grad_input);
        declare_vectors(running_mean, running_var, weight, grad_weight, grad_bias);
        declare_tensors(grad_output, x);
    }

    void generate() {
        set_shape(x, weight);
        const auto at = element(), ch = channel();
        const Expr mean = f64(running_mean(ch));
        const Expr invstd = invstd_from_variance(f64(running_var(ch)), eps);
        const auto dz = gradient_of_z(grad_output, x, mean, invstd, weight(ch));
        const auto sums = gradient_sums_of(dz.in_sums, x, mean);
        grad_weight(ch) = Halide::cast(statistics(), sums[1] * invstd);
        grad_bias(ch) = Halide::cast(statistics(), sums[0]);

        const auto gain = once_a_channel({Halide::cast(statistics(), f64(weight(ch)) * invstd)});
        define_backward(grad_input, Halide::cast(statistics(), dz.at_element(at)) * gain[0], dz,
                        grad_output);
    }

    void schedule() {
        promise_tensors(grad_output, x, grad_input);
        promise_activation();
        promise_vectors(running_mean, running_var, weight, grad_weight, grad_bias);
        work.elementwise = {grad_input};
        work.per_channel = {grad_weight, grad_bias};
        schedule_work();
    }
};

// grad_input alone needs no sums, and x is not read.
class BackwardInferenceInput : public TensorGenerator<BackwardInferenceInput> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> running_var{"running_var"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<>> grad_input{"grad_input"};

    void configure() {
        declare_vectors(running_var, weight);
        declare_tensors(grad_output, grad_input);
    }

    void generate() {
        set_shape(grad_output, weight);
        const auto at = element(), ch = channel();
        const Expr invstd = invstd_from_variance(f64(running_var(ch)), eps);
        const auto gain = once_a_channel({Halide::cast(statistics(), f64(weight(ch)) * invstd)});
        grad_input(at) = rounded(Halide::cast(statistics(), grad_output(at)) * gain[0]);
    }

    void schedule() {
        promise_tensors(grad_output, grad_input);
        promise_vectors(running_var, weight);
        work.elementwise = {grad_input};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardInference, backward_inference)
HALIDE_REGISTER_GENERATOR(hbn::BackwardInferenceInput, backward_inference_input)
