// The first half of backward training: plain sums, to be added across machines. Its parameter
// gradients are this machine's share.
#include "generators/tensor_generator.h"

namespace hbn {

class BackwardReduce : public TensorGenerator<BackwardReduce> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> invstd{"invstd"};
    Output<Halide::Buffer<>> sum_dy{"sum_dy"};
    Output<Halide::Buffer<>> sum_dy_xmu{"sum_dy_xmu"};
    Output<Halide::Buffer<>> grad_weight{"grad_weight"};
    Output<Halide::Buffer<>> grad_bias{"grad_bias"};

    void configure() {
        declare_vectors(grad_weight, grad_bias);
        declare_float64_vectors(mean, invstd, sum_dy, sum_dy_xmu);
        declare_tensors(grad_output, x);
    }

    void generate() {
        set_shape(x, mean);
        const auto ch = channel();
        const auto sums = gradient_sums_of(grad_output, x, mean(ch));
        sum_dy(ch) = sums[0];
        sum_dy_xmu(ch) = sums[1];
        grad_weight(ch) = Halide::cast(statistics(), sums[1] * invstd(ch));
        grad_bias(ch) = Halide::cast(statistics(), sums[0]);
    }

    void schedule() {
        promise_tensors(grad_output, x);
        promise_vectors(mean, invstd, grad_weight, grad_bias, sum_dy, sum_dy_xmu);
        work.per_channel = {sum_dy, sum_dy_xmu, grad_weight, grad_bias};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::BackwardReduce, backward_reduce)
