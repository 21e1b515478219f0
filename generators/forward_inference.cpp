// Normalization with running statistics, and what may be fused into it.
#include "generators/activated_generator.h"

namespace hbn {

class ForwardInference : public ActivatedGenerator<ForwardInference> {
public:
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> bias{"bias"};
    Input<Halide::Buffer<>> running_mean{"running_mean"};
    Input<Halide::Buffer<>> running_var{"running_var"};
    Input<double> eps{"eps"};
    Output<Func> y{"y"};

    void configure() {
        declare_forward(y);
        declare_vectors(weight, bias, running_mean, running_var);
        declare_tensors(x);
    }

    void generate() {
        set_shape(x, weight);
        const auto ch = channel();
        const Expr invstd = invstd_from_variance(f64(running_var(ch)), eps);
        define_forward(y, x, f64(running_mean(ch)), invstd, weight(ch), bias(ch));
    }

    void schedule() {
        promise_tensors(x, y);
        promise_activation();
        promise_vectors(weight, bias, running_mean, running_var);
        work.elementwise = {y};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ForwardInference, forward_inference)
