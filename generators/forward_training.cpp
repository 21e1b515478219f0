// Batch statistics and normalization in one operation, and what may be fused into it; the moments come
// out for the running buffers.
#include "generators/batch_norm.h"

namespace hbn {

class ForwardTraining : public ActivatedGenerator<ForwardTraining> {
public:
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> bias{"bias"};
    Input<double> eps{"eps"};
    Output<Func> y{"y"};
    Output<Halide::Buffer<>> mean{"mean"};
    Output<Halide::Buffer<>> m2{"m2"};

    void configure() {
        declare_tensors(x);
        declare_forward(y);
        declare_vectors(weight, bias);
        declare_float64_vectors(mean, m2);
    }

    void generate() {
        set_shape(x, mean);
        const auto ch = channel();
        const auto moments = moments_of(x);
        mean(ch) = moments[0];
        m2(ch) = moments[1];

        const Expr invstd = invstd_from_variance(moments[1] / count(), eps);
        const auto coefficients = once_a_channel(
            normalization_coefficients(moments[0], invstd, weight(ch), bias(ch), dtype));
        define_forward(y, x, coefficients);
    }

    void schedule() {
        promise_tensors(x, y);
        promise_activation();
        promise_vectors(weight, bias, mean, m2);
        work.elementwise = {y};
        work.per_channel = {mean, m2};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ForwardTraining, forward_training)
