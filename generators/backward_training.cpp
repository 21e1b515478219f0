// All three gradients, where forward used the batch's own statistics.
#include "generators/batch_norm.h"

namespace hbn {

class BackwardTraining : public TensorGenerator<BackwardTraining> {
public:
    Input<Halide::Buffer<void, 4>> grad_output{"grad_output"};
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<void, 1>> mean{"mean"};
    Input<Halide::Buffer<void, 1>> invstd{"invstd"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Output<Halide::Buffer<void, 4>> grad_input{"grad_input"};
    Output<Halide::Buffer<void, 1>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<void, 1>> grad_bias{"grad_bias"};

    void configure() {
        grad_output.set_type(dtype);
        x.set_type(dtype);
        grad_input.set_type(dtype);
        mean.set_type(statistics());
        invstd.set_type(statistics());
        weight.set_type(statistics());
        grad_weight.set_type(statistics());
        grad_bias.set_type(statistics());
    }

    void generate() {
        const ChannelExtents extents = extents_of(x);
        Func wide_mean("wide_mean");
        wide_mean(c) = f64(mean(c));
        reduction =
            reduce_gradients(grad_output, x, wide_mean, Tiling(extents, x.dim(2).extent(), layout));
        const Expr sum_dy = reduction.merged(c)[0], sum_dy_xmu = reduction.merged(c)[1];
        grad_weight(c) = Halide::cast(statistics(), sum_dy_xmu * f64(invstd(c)));
        grad_bias(c) = Halide::cast(statistics(), sum_dy);

        const InputGradient gradient(c, mean(c), invstd(c), weight(c), sum_dy, sum_dy_xmu,
                                     extents.count(), statistics());
        coefficients = gradient.coefficients;
        grad_input(w, h, c, n) =
            round_to(dtype, gradient.apply(grad_output(w, h, c, n), x(w, h, c, n), c));
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(grad_output, x);
        promise_layout_like(grad_input, x);
        promise_vectors(x, mean, invstd, weight, grad_weight, grad_bias);

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

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardTraining, backward_training)
