// Normalization with running statistics.
#include "generators/batch_norm.h"

namespace hbn {

class ForwardInference : public TensorGenerator<ForwardInference> {
public:
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<Halide::Buffer<void, 1>> bias{"bias"};
    Input<Halide::Buffer<void, 1>> running_mean{"running_mean"};
    Input<Halide::Buffer<void, 1>> running_var{"running_var"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<void, 4>> y{"y"};

    void configure() {
        x.set_type(dtype);
        y.set_type(dtype);
        weight.set_type(statistics());
        bias.set_type(statistics());
        running_mean.set_type(statistics());
        running_var.set_type(statistics());
    }

    void generate() {
        const Expr invstd = invstd_from_variance(f64(running_var(c)), eps);
        const Normalization normalization(c, f64(running_mean(c)), invstd, weight(c), bias(c),
                                          statistics());
        coefficients = normalization.coefficients;
        y(w, h, c, n) = round_to(dtype, normalization.apply(x(w, h, c, n), c));
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(y, x);
        promise_vectors(x, weight, bias, running_mean, running_var);

        ChannelPipeline p = pipeline();
        p.coefficients = {coefficients};
        p.elementwise = {y};
        hbn::schedule(p, get_target());
    }

private:
    Func coefficients;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ForwardInference, forward_inference)
