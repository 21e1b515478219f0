// The gradient by z, what the activation was applied to, which is also the residual's: batch normalization's own
// backward takes it for its grad_output. z is computed again, or, with_mask, what passes is read from relu's mask.
// grad_z may be the memory of grad_output.
#include "generators/preactivation.h"

namespace hbn {

class ActivationBackward : public PreactivationGenerator<ActivationBackward> {
public:
    Input<Halide::Buffer<>> grad_output{"grad_output"};
    Output<Halide::Buffer<>> grad_z{"grad_z"};

    void configure() {
        check_mask();
        if (with_mask) {
            mask = add_tensor("mask", Halide::UInt(8));
        } else {
            declare_preactivation();
        }
        declare_tensors(grad_output, grad_z);
    }

    void generate() {
        const auto at = element();
        if (with_mask) {
            set_shape(grad_output);
            grad_z(at) = zero_where((*mask)(at) == 0, grad_output(at));
            return;
        }
        set_shape(grad_output, *mean);
        const Expr gradient = definition().gradient(Halide::cast(statistics(), grad_output(at)),
                                                    preactivation(), parameters(), dtype);
        grad_z(at) = rounded(gradient);
    }

    void schedule() {
        promise_tensors(grad_output, grad_z);
        if (with_mask) {
            promise_tensors(*mask);
        } else {
            promise_preactivation();
        }
        work.elementwise = {grad_z};
        schedule_work();
    }

private:
    Input<Halide::Buffer<>> *mask = nullptr;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ActivationBackward, activation_backward)
