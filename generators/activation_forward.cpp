// Normalization with given statistics, the addition of a residual if there is one, and an activation; rounded once.
// y may be the memory of x or of residual, but not with_mask: x is read again for the mask.
#include "generators/preactivation.h"

namespace hbn {

class ActivationForward : public PreactivationGenerator<ActivationForward> {
public:
    Output<Func> y{"y"};

    void configure() {
        check_mask();
        declare_preactivation();
        y.set_type(with_mask ? std::vector<Type>{dtype, Halide::UInt(8)}
                             : std::vector<Type>{dtype});
        y.set_dimensions(in_columns() ? 3 : 4);
        declare_tensors();
    }

    void generate() {
        set_shape(*x, *mean);
        const Expr z = preactivation();
        const Expr value = rounded(definition().value(z, parameters(), dtype));
        if (with_mask) {
            const Expr stops = relu_stops(z, dtype);
            y(element()) = Halide::Tuple(value, select(stops, Expr(uint8_t(0)), Expr(uint8_t(1))));
        } else {
            y(element()) = value;
        }
    }

    void schedule() {
        promise_preactivation();
        promise_tensors(y);
        work.elementwise = {y};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ActivationForward, activation_forward)
