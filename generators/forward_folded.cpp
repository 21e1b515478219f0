// Inference with batch normalization folded ahead of time into a scale and a shift for each channel (Fold, in
// per_channel.cpp): y = x * scale + shift. For small devices: nothing but float32 arithmetic, whatever the dtype.
//
// int8 is oneDNN's: arithmetic in float32, rounded to nearest even, saturated. Tensors are quantized with scale 1
// and zero point 0; others' go into scale and shift.
#include "generators/activated_generator.h"

namespace hbn {

namespace {

// Without the C library's rounding functions, which small devices may not have.
Expr rounded_to_int8(const Expr &value) {
    // Adding this leaves no bits for a fraction, and the last eight are those of an int8: 1.5 * 2^23.
    const Expr whole = 12582912.0f;
    return Halide::cast<int8_t>(
        Halide::reinterpret<int32_t>(Halide::clamp(value, -128.0f, 127.0f) + whole));
}

}  // namespace

class ForwardFolded : public ActivatedGenerator<ForwardFolded> {
public:
    Input<Halide::Buffer<>> x{"x"};
    Input<Halide::Buffer<>> scale{"scale"};
    Input<Halide::Buffer<>> shift{"shift"};
    Output<Func> y{"y"};

    void configure() {
        declare_forward(y);
        declare_vectors(scale, shift);
        declare_tensors(x);
    }

    void generate() {
        set_shape(x, scale);
        const auto k = once_a_channel({scale(channel()), shift(channel())});
        const Expr z = Halide::cast<float>(x(element())) * k[0] + k[1];
        const Expr value = activated(plus_residual(z));
        y(element()) = Type(dtype).is_int() ? rounded_to_int8(value) : rounded(value);
    }

    void schedule() {
        promise_tensors(x, y);
        promise_activation();
        promise_vectors(scale, shift);
        work.elementwise = {y};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::ForwardFolded, forward_folded)
