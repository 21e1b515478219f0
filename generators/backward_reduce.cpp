// The first half of backward training: plain sums, to be added across machines. Its parameter
// gradients are this machine's share.
#include "generators/batch_norm.h"

namespace hbn {

class BackwardReduce : public TensorGenerator<BackwardReduce> {
public:
    Input<Halide::Buffer<void, 4>> grad_output{"grad_output"};
    Input<Halide::Buffer<void, 4>> x{"x"};
    Input<Halide::Buffer<void, 1>> mean{"mean"};
    Input<Halide::Buffer<void, 1>> invstd{"invstd"};
    Output<Halide::Buffer<double, 1>> sum_dy{"sum_dy"};
    Output<Halide::Buffer<double, 1>> sum_dy_xmu{"sum_dy_xmu"};
    Output<Halide::Buffer<void, 1>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<void, 1>> grad_bias{"grad_bias"};

    void configure() {
        grad_output.set_type(dtype);
        x.set_type(dtype);
        mean.set_type(statistics());
        invstd.set_type(statistics());
        grad_weight.set_type(statistics());
        grad_bias.set_type(statistics());
    }

    void generate() {
        Func wide_mean("wide_mean");
        wide_mean(c) = f64(mean(c));
        reduction = reduce_gradients(grad_output, x, wide_mean,
                                     Tiling(extents_of(x), x.dim(2).extent(), layout));
        sum_dy(c) = reduction.merged(c)[0];
        sum_dy_xmu(c) = reduction.merged(c)[1];
        grad_weight(c) = Halide::cast(statistics(), reduction.merged(c)[1] * f64(invstd(c)));
        grad_bias(c) = Halide::cast(statistics(), reduction.merged(c)[0]);
    }

    void schedule() {
        promise_layout(x);
        promise_layout_like(grad_output, x);
        promise_vectors(x, mean, invstd, sum_dy, sum_dy_xmu, grad_weight, grad_bias);

        ChannelPipeline p = pipeline();
        p.reductions = {reduction};
        p.per_channel = {sum_dy, sum_dy_xmu, grad_weight, grad_bias};
        hbn::schedule(p, get_target());
    }

private:
    Reduction reduction;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardReduce, backward_reduce)
