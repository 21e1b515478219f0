// A kernel of a program's own, which asks for scratch memory and checks its buffers.
#include <Halide.h>

namespace {

class TwiceReversed : public Halide::Generator<TwiceReversed> {
public:
    Input<Buffer<int32_t, 1>> input{"input"};
    Output<Buffer<int32_t, 1>> output{"output"};

    void generate() {
        Halide::Var i;
        Halide::Func twice;
        twice(i) = 2 * input(i);
        output(i) = twice(output.dim(0).max() - i);
        twice.compute_root();
        output.parallel(i);
    }
};

}  // namespace

HALIDE_REGISTER_GENERATOR(TwiceReversed, twice_reversed)
