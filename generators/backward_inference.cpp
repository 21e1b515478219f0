// All three gradients, where forward used running statistics, which are constants to it.
#include "generators/batch_norm.h"

namespace hbn {

class BackwardInference : public TensorGenerator<BackwardInference> {
public:
    Input<Halide::Buffer<void, 4>> grad_output{"grad_output"};
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<void, 1>> running_mean{"running_mean"};
    Input<Halide::Buffer<void, 1>> running_var{"running_var"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<void, 4>> grad_input{"grad_input"};
    Output<Halide::Buffer<void, 1>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<void, 1>> grad_bias{"grad_bias"};

    void configure() {
        grad_output.set_type(dtype);
        x.set_type(dtype);
        grad_input.set_type(dtype);
        running_mean.set_type(statistics());
        running_var.set_type(statistics());
        weight.set_type(statistics());
        grad_weight.set_type(statistics());
        grad_bias.set_type(statistics());
    }

    void generate() {
        Func wide_mean("wide_mean");
        wide_mean(c) = f64(running_mean(c));
        reduction = reduce_gradients(grad_output, x, wide_mean,
                                     Tiling(extents_of(x), x.dim(2).extent(), layout));
        const Expr sum_dy = reduction.merged(c)[0], sum_dy_xmu = reduction.merged(c)[1];
        const Expr invstd = invstd_from_variance(f64(running_var(c)), eps);
        grad_weight(c) = Halide::cast(statistics(), sum_dy_xmu * invstd);
        grad_bias(c) = Halide::cast(statistics(), sum_dy);

        coefficients = Func("coefficients");
        coefficients(c) = Halide::cast(statistics(), f64(weight(c)) * invstd);
        grad_input(w, h, c, n) =
            round_to(dtype, Halide::cast(statistics(), grad_output(w, h, c, n)) * coefficients(c));
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(grad_output, x);
        promise_layout_like(grad_input, x);
        promise_vectors(x, running_mean, running_var, weight, grad_weight, grad_bias);

        ChannelPipeline p = pipeline();
        p.reductions = {reduction};
        p.coefficients = {coefficients};
        p.elementwise = {grad_input};
        p.per_channel = {grad_weight, grad_bias};
        hbn::schedule(p, get_target());
    }

private:
    Reduction reduction;
    Func coefficients;
};

// grad_input alone needs no sums, and x is not read.
class BackwardInferenceInput : public TensorGenerator<BackwardInferenceInput> {
public:
    Input<Halide::Buffer<void, 4>> grad_output{"grad_output"};
    Input<Halide::Buffer<void, 1>> running_var{"running_var"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<void, 4>> grad_input{"grad_input"};

    void configure() {
        grad_output.set_type(dtype);
        grad_input.set_type(dtype);
        running_var.set_type(statistics());
        weight.set_type(statistics());
    }

    void generate() {
        coefficients = Func("coefficients");
        coefficients(c) = Halide::cast(
            statistics(), f64(weight(c)) * invstd_from_variance(f64(running_var(c)), eps));
        grad_input(w, h, c, n) =
            round_to(dtype, Halide::cast(statistics(), grad_output(w, h, c, n)) * coefficients(c));
    }

    void schedule() {
        promise_layout(grad_output);
        promise_layout_like(grad_input, grad_output);
        promise_vectors(grad_output, running_var, weight);

        ChannelPipeline p = pipeline();
        p.coefficients = {coefficients};
        p.elementwise = {grad_input};
        hbn::schedule(p, get_target());
    }

private:
    Func coefficients;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardInference, backward_inference)
HALIDE_REGISTER_GENERATOR(hbn::BackwardInferenceInput, backward_inference_input)
