// The small operations on one value a channel, between the large ones: float64 moments in, what
// users keep out.
#include "generators/coefficients.h"
#include "generators/reductions.h"
#include "generators/rounding.h"

namespace hbn {

// A generator of 1-D outputs over c. The wrapper passes buffers of any stride.
template<typename Derived>
class ChannelGenerator : public Halide::Generator<Derived> {
public:
    using Base = Halide::Generator<Derived>;
    template<typename T>
    using Input = typename Base::template Input<T>;
    template<typename T>
    using Output = typename Base::template Output<T>;

    Halide::GeneratorParam<Type> dtype{"dtype", Halide::Float(32)};  // of parameters and statistics

    Var c{"c"};

protected:
    template<typename Model, typename... Vectors>
    void promise_vectors(Model &model, Vectors &...vectors) {
        const Expr channels = model.dim(0).extent();
        model.dim(0).set_min(0).set_stride(Expr());
        (vectors.dim(0).set_bounds(0, channels).set_stride(Expr()), ...);
    }
};

// invstd for backward, whose mean is the moments' own, and the running buffers' new values:
// running = (1 - momentum) * running + momentum * batch, the variance over count - 1.
class FinalizeMoments : public ChannelGenerator<FinalizeMoments> {
public:
    Input<Halide::Buffer<double, 1>> m2{"m2"};
    Input<Halide::Buffer<double, 1>> mean{"mean"};
    Input<Halide::Buffer<void, 1>> running_mean{"running_mean"};
    Input<Halide::Buffer<void, 1>> running_var{"running_var"};
    Input<double> count{"count"};
    Input<double> eps{"eps"};
    Input<double> momentum{"momentum"};
    Output<Halide::Buffer<double, 1>> invstd{"invstd"};
    Output<Halide::Buffer<void, 1>> new_running_mean{"new_running_mean"};
    Output<Halide::Buffer<void, 1>> new_running_var{"new_running_var"};

    void configure() {
        running_mean.set_type(dtype);
        running_var.set_type(dtype);
        new_running_mean.set_type(dtype);
        new_running_var.set_type(dtype);
    }

    void generate() {
        invstd(c) = invstd_from_variance(m2(c) / count, eps);
        new_running_mean(c) = moved_to_batch(running_mean(c), mean(c), momentum);
        new_running_var(c) = moved_to_batch(running_var(c), m2(c) / (count - 1), momentum);
    }

    void schedule() {
        promise_vectors(m2, mean, running_mean, running_var, invstd, new_running_mean,
                        new_running_var);
    }
};

class MergeMoments : public ChannelGenerator<MergeMoments> {
public:
    Input<Halide::Buffer<double, 1>> mean_a{"mean_a"};
    Input<Halide::Buffer<double, 1>> m2_a{"m2_a"};
    Input<Halide::Buffer<double, 1>> mean_b{"mean_b"};
    Input<Halide::Buffer<double, 1>> m2_b{"m2_b"};
    Input<double> count_a{"count_a"};
    Input<double> count_b{"count_b"};
    Output<Halide::Buffer<double, 1>> mean{"mean"};
    Output<Halide::Buffer<double, 1>> m2{"m2"};

    void generate() {
        const Moments m =
            merge({mean_a(c), m2_a(c)}, count_a, {mean_b(c), m2_b(c)}, count_b, Halide::Float(64));
        merged(c) = Halide::Tuple(m.mean, m.m2);
        mean(c) = merged(c)[0];
        m2(c) = merged(c)[1];
    }

    void schedule() {
        promise_vectors(mean_a, m2_a, mean_b, m2_b, mean, m2);
        // Both outputs may be the buffers of a: all is read before either is written.
        merged.compute_root();
    }

private:
    Func merged{"merged"};
};

class InvstdFromVariance : public ChannelGenerator<InvstdFromVariance> {
public:
    Input<Halide::Buffer<void, 1>> variance{"variance"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<double, 1>> invstd{"invstd"};

    void configure() {
        variance.set_type(dtype);
    }

    void generate() {
        invstd(c) = invstd_from_variance(f64(variance(c)), eps);
    }

    void schedule() {
        promise_vectors(variance, invstd);
    }
};

// Of double backward: what joins grad_output and grad_grad_input, and the gradient that weight gets from it.
class DoubleBackwardProduct : public ChannelGenerator<DoubleBackwardProduct> {
public:
    Input<Halide::Buffer<double, 1>> sum_dy_ddx{"sum_dy_ddx"};
    Input<Halide::Buffer<double, 1>> center{"center"};
    Input<Halide::Buffer<double, 1>> invstd{"invstd"};
    Input<Halide::Buffer<double, 1>> sum_dy{"sum_dy"};
    Input<Halide::Buffer<double, 1>> sum_dy_xmu{"sum_dy_xmu"};
    Input<Halide::Buffer<double, 1>> sum_ddx{"sum_ddx"};
    Input<Halide::Buffer<double, 1>> sum_ddx_xmu{"sum_ddx_xmu"};
    Input<double> count{"count"};
    Output<Halide::Buffer<double, 1>> product{"product"};
    Output<Halide::Buffer<void, 1>> grad_weight{"grad_weight"};

    void configure() {
        grad_weight.set_type(dtype);
    }

    void generate() {
        const Expr value =
            double_backward_product(sum_dy_ddx(c), center(c), invstd(c), {sum_dy(c), sum_dy_xmu(c)},
                                    {sum_ddx(c), sum_ddx_xmu(c)}, count);
        product(c) = value;
        grad_weight(c) = Halide::cast(dtype, invstd(c) * value);
    }

    void schedule() {
        promise_vectors(sum_dy_ddx, center, invstd, sum_dy, sum_dy_xmu, sum_ddx, sum_ddx_xmu,
                        product, grad_weight);
    }
};

// scale and shift such that batch normalization with these statistics is x * scale + shift.
class Fold : public ChannelGenerator<Fold> {
public:
    Input<Halide::Buffer<void, 1>> weight{"weight"};
    Input<Halide::Buffer<void, 1>> bias{"bias"};
    Input<Halide::Buffer<void, 1>> running_mean{"running_mean"};
    Input<Halide::Buffer<void, 1>> running_var{"running_var"};
    Input<double> eps{"eps"};
    Output<Halide::Buffer<void, 1>> scale{"scale"};
    Output<Halide::Buffer<void, 1>> shift{"shift"};

    void configure() {
        for (auto *vector : {&weight, &bias, &running_mean, &running_var}) {
            vector->set_type(dtype);
        }
        scale.set_type(dtype);
        shift.set_type(dtype);
    }

    void generate() {
        const Expr gain = f64(weight(c)) * invstd_from_variance(f64(running_var(c)), eps);
        scale(c) = Halide::cast(dtype, gain);
        shift(c) = Halide::cast(dtype, f64(bias(c)) - f64(running_mean(c)) * gain);
    }

    void schedule() {
        promise_vectors(weight, bias, running_mean, running_var, scale, shift);
    }
};

// Parameters kept in the tensor's own half type, to and from the type the kernels take.
class Convert : public ChannelGenerator<Convert> {
public:
    Halide::GeneratorParam<Type> to{"to", Halide::Float(32)};
    Input<Halide::Buffer<void, 1>> source{"source"};
    Output<Halide::Buffer<void, 1>> converted{"converted"};

    void configure() {
        source.set_type(dtype);
        converted.set_type(to);
    }

    void generate() {
        converted(c) = round_to(to, source(c));
    }

    void schedule() {
        promise_vectors(source, converted);
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::FinalizeMoments, finalize_moments)
HALIDE_REGISTER_GENERATOR(hbn::MergeMoments, merge_moments)
HALIDE_REGISTER_GENERATOR(hbn::InvstdFromVariance, invstd_from_variance)
HALIDE_REGISTER_GENERATOR(hbn::DoubleBackwardProduct, double_backward_product)
HALIDE_REGISTER_GENERATOR(hbn::Fold, fold)
HALIDE_REGISTER_GENERATOR(hbn::Convert, convert)
