// The second half of forward training: normalization with moments that may cover many machines.
#include "generators/batch_norm.h"

namespace hbn {

class Normalize : public TensorGenerator<Normalize> {
public:
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<double, 1>> mean{"mean"};
    Input<Halide::Buffer<double, 1>> m2{"m2"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<Halide::Buffer<void, 1>> bias{"bias"};
    Input<double> count{"count"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<void, 4>> y{"y"};

    void configure() {
        x.set_type(dtype);
        y.set_type(dtype);
        weight.set_type(statistics());
        bias.set_type(statistics());
    }

    void generate() {
        const Expr invstd = invstd_from_variance(m2(c) / count, eps);
        const Normalization normalization(c, mean(c), invstd, weight(c), bias(c), statistics());
        coefficients = normalization.coefficients;
        y(w, h, c, n) = round_to(dtype, normalization.apply(x(w, h, c, n), c));
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(y, x);
        promise_vectors(x, mean, m2, weight, bias);

        ChannelPipeline p = pipeline();
        p.coefficients = {coefficients};
        p.elementwise = {y};
        hbn::schedule(p, get_target());
    }

private:
    Func coefficients;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::Normalize, normalize)
