// The first half of forward training: each channel's moments, to be merged across machines.
#include "generators/tensor_generator.h"

namespace hbn {

class Stats : public TensorGenerator<Stats> {
public:
    Input<Halide::Buffer<>> x{"x"};
    Output<Halide::Buffer<>> mean{"mean"};
    Output<Halide::Buffer<>> m2{"m2"};

    void configure() {
        declare_float64_vectors(mean, m2);
        declare_tensors(x);
    }

    void generate() {
        set_shape(x, mean);
        const auto moments = moments_of(x);
        mean(channel()) = moments[0];
        m2(channel()) = moments[1];
    }

    void schedule() {
        promise_tensors(x);
        promise_vectors(mean, m2);
        work.per_channel = {mean, m2};
        schedule_work();
    }
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::Stats, stats)
