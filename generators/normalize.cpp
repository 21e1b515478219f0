// The second half of forward training: normalization with moments that may cover many machines.
#include "generators/tensor_generator.h"

namespace hbn {

class Normalize : public TensorGenerator<Normalize> {
public:
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> mean{"mean"};
    Input<Halide::Buffer<>> m2{"m2"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> bias{"bias"};
    Input<double> total_count{"total_count"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<>> y{"y"};

    void configure() {
        declare_vectors(weight, bias);
        declare_float64_vectors(mean, m2);
        declare_tensors(x, y);
    }

    void generate() {
        set_shape(x, weight);
        const auto at = element(), ch = channel();
        const Expr invstd = invstd_from_variance(m2(ch) / total_count, eps);
        const auto coefficients = once_a_channel(
            normalization_coefficients(mean(ch), invstd, weight(ch), bias(ch), arithmetic()));
        y(at) = rounded(hbn::normalize(x(at), coefficients, arithmetic()));
    }

    void schedule() {
        promise_tensors(x, y);
        promise_vectors(weight, bias, mean, m2);
        work.elementwise = {y};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::Normalize, normalize)
