// Batch statistics and normalization in one operation, and what may be fused into it; the moments come
// out for the running buffers.
#include "generators/activated_generator.h"

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
        declare_forward(y);
        declare_vectors(weight, bias);
        declare_float64_vectors(mean, m2);
        declare_tensors(x);
    }

    void generate() {
        set_shape(x, mean);
        const auto ch = channel();
        const auto moments = moments_of(x);
        mean(ch) = moments[0];
        m2(ch) = moments[1];

        const Expr invstd = invstd_from_variance(moments[1] / count(), eps);
        define_forward(y, x, moments[0], invstd, weight(ch), bias(ch));
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

// The same with what is done to moments afterwards: a pack has no wrapper to do it. The new running buffers may be
// the old ones.
class ForwardTrainingWhole : public ActivatedGenerator<ForwardTrainingWhole> {
public:
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> weight{"weight"};
    Input<Halide::Buffer<>> bias{"bias"};
    Input<Halide::Buffer<>> running_mean{"running_mean"};
    Input<Halide::Buffer<>> running_var{"running_var"};
    Input<double> momentum{"momentum"};
    Input<double> eps{"eps"};
    Output<Func> y{"y"};
    Output<Halide::Buffer<>> save_mean{"save_mean"};
    Output<Halide::Buffer<>> save_invstd{"save_invstd"};
    Output<Halide::Buffer<>> new_running_mean{"new_running_mean"};
    Output<Halide::Buffer<>> new_running_var{"new_running_var"};

    void configure() {
        declare_forward(y);
        declare_vectors(weight, bias, running_mean, running_var, new_running_mean, new_running_var);
        declare_float64_vectors(save_mean, save_invstd);
        declare_tensors(x);
    }

    void generate() {
        set_shape(x, weight);
        const auto ch = channel();
        const auto moments = moments_of(x);
        const Expr invstd = invstd_from_variance(moments[1] / count(), eps);
        save_mean(ch) = moments[0];
        save_invstd(ch) = invstd;
        new_running_mean(ch) = moved_to_batch(running_mean(ch), moments[0], momentum);
        new_running_var(ch) = moved_to_batch(running_var(ch), moments[1] / (count() - 1), momentum);

        define_forward(y, x, moments[0], invstd, weight(ch), bias(ch));
    }

    void schedule() {
        promise_tensors(x, y);
        promise_activation();
        promise_vectors(weight, bias, running_mean, running_var, save_mean, save_invstd,
                        new_running_mean, new_running_var);
        work.elementwise = {y};
        work.per_channel = {save_mean, save_invstd, new_running_mean, new_running_var};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ForwardTraining, forward_training)
HALIDE_REGISTER_GENERATOR(hbn::ForwardTrainingWhole, forward_training_whole)
