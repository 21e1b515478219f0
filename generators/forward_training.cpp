// Batch statistics and normalization in one operation; the moments come out for the running
// buffers.
#include "generators/batch_norm.h"

namespace hbn {

class ForwardTraining : public TensorGenerator<ForwardTraining> {
public:
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<Halide::Buffer<void, 1>> bias{"bias"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<void, 4>> y{"y"};
    Output<Halide::Buffer<double, 1>> mean{"mean"};
    Output<Halide::Buffer<double, 1>> m2{"m2"};

    void configure() {
        x.set_type(dtype);
        y.set_type(dtype);
        weight.set_type(statistics());
        bias.set_type(statistics());
    }

    void generate() {
        const ChannelExtents extents = extents_of(x);
        reduction = reduce_moments(x, Tiling(extents, x.dim(2).extent(), layout));
        const Func &moments = reduction.merged;
        mean(c) = moments(c)[0];
        m2(c) = moments(c)[1];

        const Expr invstd = invstd_from_variance(moments(c)[1] / extents.count(), eps);
        const Normalization normalization(c, moments(c)[0], invstd, weight(c), bias(c),
                                          statistics());
        coefficients = normalization.coefficients;
        y(w, h, c, n) = round_to(dtype, normalization.apply(x(w, h, c, n), c));
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(y, x);
        promise_vectors(x, weight, bias, mean, m2);

        ChannelPipeline p = pipeline();
        p.reductions = {reduction};
        p.coefficients = {coefficients};
        p.elementwise = {y};
        p.per_channel = {mean, m2};
        hbn::schedule(p, get_target());
    }

private:
    Reduction reduction;
    Func coefficients;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ForwardTraining, forward_training)
