// The first half of forward training: each channel's moments, to be merged across machines.
#include "generators/batch_norm.h"

namespace hbn {

class Stats : public TensorGenerator<Stats> {
public:
    Input<Halide::Buffer<void, 4>> x{"x"};
    Output<Halide::Buffer<double, 1>> mean{"mean"};
    Output<Halide::Buffer<double, 1>> m2{"m2"};

    void configure() {
        x.set_type(dtype);
    }

    void generate() {
        reduction = reduce_moments(x, Tiling(extents_of(x), x.dim(2).extent(), layout));
        mean(c) = reduction.merged(c)[0];
        m2(c) = reduction.merged(c)[1];
    }

    void schedule() {
        promise_layout(x);
        promise_vectors(x, mean, m2);

        ChannelPipeline p = pipeline();
        p.reductions = {reduction};
        p.per_channel = {mean, m2};
        hbn::schedule(p, get_target());
    }

private:
    Reduction reduction;
};

}  // namespace hbn

HALIDE_REGISTER_GENERATOR(hbn::Stats, stats)
