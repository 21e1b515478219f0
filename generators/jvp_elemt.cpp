// The derivative of y along tangents of x, weight and bias, from sums of x's tangent (backward_reduce's); also what
// double backward gives grad_output. With statistics that are constants the sums are 0.
#include "generators/tensor_generator.h"

namespace hbn {

class JvpElemt : public TensorGenerator<JvpElemt> {
public:
    Input<Halide::Buffer<>> x_tangent{"x_tangent"};
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> invstd{"invstd"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> weight_tangent{"weight_tangent"};
    Input<Halide::Buffer<>> bias_tangent{"bias_tangent"};
    Input<Halide::Buffer<>> sum{"sum"};
    Input<Halide::Buffer<>> sum_xmu{"sum_xmu"};
    Input<double> total_count{"total_count"};
    Output<Halide::Buffer<>> y_tangent{"y_tangent"};

    void configure() {
        declare_vectors(weight, weight_tangent, bias_tangent);
        declare_float64_vectors(mean, invstd, sum, sum_xmu);
        declare_tensors(x_tangent, x, y_tangent);
    }

    void generate() {
        set_shape(x, mean);
        const auto at = element(), ch = channel();
        const auto coefficients = once_a_channel(tangent_coefficients(
            mean(ch), invstd(ch), weight(ch), weight_tangent(ch), bias_tangent(ch),
            {sum(ch), sum_xmu(ch)}, total_count, arithmetic()));
        y_tangent(at) = rounded(tangent(x_tangent(at), x(at), coefficients, arithmetic()));
    }

    void schedule() {
        promise_tensors(x_tangent, x, y_tangent);
        promise_vectors(mean, invstd, weight, weight_tangent, bias_tangent, sum, sum_xmu);
        work.elementwise = {y_tangent};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::JvpElemt, jvp_elemt)
