// The second half of backward training: grad_input from sums that may cover many machines.
#include "generators/batch_norm.h"

namespace hbn {

class BackwardElemt : public TensorGenerator<BackwardElemt> {
public:
    Input<Halide::Buffer<void, 4>> grad_output{"grad_output"};
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<void, 1>> mean{"mean"};
    Input<Halide::Buffer<void, 1>> invstd{"invstd"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<Halide::Buffer<double, 1>> sum_dy{"sum_dy"};
    Input<Halide::Buffer<double, 1>> sum_dy_xmu{"sum_dy_xmu"};
    Input<double> count{"count"};
    Output<Halide::Buffer<void, 4>> grad_input{"grad_input"};

    void configure() {
        grad_output.set_type(dtype);
        x.set_type(dtype);
        grad_input.set_type(dtype);
        mean.set_type(statistics());
        invstd.set_type(statistics());
        weight.set_type(statistics());
    }

    void generate() {
        const InputGradient gradient(c, mean(c), invstd(c), weight(c), sum_dy(c), sum_dy_xmu(c),
                                     count, statistics());
        coefficients = gradient.coefficients;
        grad_input(w, h, c, n) =
            round_to(dtype, gradient.apply(grad_output(w, h, c, n), x(w, h, c, n), c));
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(grad_output, x);
        promise_layout_like(grad_input, x);
        promise_vectors(x, mean, invstd, weight, sum_dy, sum_dy_xmu);

        ChannelPipeline p = pipeline();
        p.coefficients = {coefficients};
        p.elementwise = {grad_input};
        hbn::schedule(p, get_target());
    }

private:
    Func coefficients;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardElemt, backward_elemt)
