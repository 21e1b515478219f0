// The algebra every operation shares: what a channel's statistics are, how they merge, and how they
// become an output. No schedule and no target here; see schedules/ for how it is computed.
#ifndef HBN_GENERATORS_BATCH_NORM_H
#define HBN_GENERATORS_BATCH_NORM_H

#include <Halide.h>

#include <map>
#include <string>
#include <vector>

#include "schedules/pipeline.h"

namespace hbn {

using Halide::Expr;
using Halide::Func;
using Halide::RDom;
using Halide::Type;
using Halide::Var;

const std::map<std::string, Layout> layout_names = {
    {"nchw", Layout::nchw}, {"nhwc", Layout::nhwc}, {"strided", Layout::strided}};

// Parameters and saved statistics: float64 beside float64 tensors, float32 beside all others.
inline Type statistic_type(Type tensor) {
    return tensor.is_float() && tensor.bits() == 64 ? Halide::Float(64) : Halide::Float(32);
}

inline Expr f64(const Expr &e) {
    return Halide::cast<double>(e);
}

// Rounds to nearest even, in any type. Halide's own conversion to the 16-bit types turns NaN into
// infinity or zero where the target has no instruction for it.
Expr round_to(Type type, const Expr &value);

// The extents of a channel's values, and their number M. Each is a run-time value of the input
// buffer.
struct ChannelExtents {
    Expr w, h, n;

    Expr count() const {
        return f64(w) * f64(h) * f64(n);
    }
};

// A channel cut into tiles small enough to be still in cache when they are read again. The cut
// depends on the shape alone, never on the number of threads: that keeps results bitwise the same.
struct Tiling {
    ChannelExtents extents;
    Expr w, h, n;  // extents of a whole tile
    RDom inside;   // w, h, n within a tile
    RDom tiles;    // which tile, along w, h, n
    Var tw{"tw"}, th{"th"}, tn{"tn"};

    Tiling(const ChannelExtents &extents, const Expr &channels, Layout layout);

    // Coordinates of a tile's element, and whether the last tile along each axis has it.
    Expr at_w() const {
        return tw * w + inside.x;
    }
    Expr at_h() const {
        return th * h + inside.y;
    }
    Expr at_n() const {
        return tn * n + inside.z;
    }

    // Values in a tile, and in all the tiles before it in the order of `tiles`.
    Expr count(const Expr &tw, const Expr &th, const Expr &tn) const;
    Expr count_before(const Expr &tw, const Expr &th, const Expr &tn) const;
};

// mean and m2 (the sum of squared deviations from mean) of a channel; float64.
struct Moments {
    Expr mean, m2;
};

// Two samples of na and nb values joined (Chan, Golub and LeVeque 1979). na may be 0.
Moments merge(const Moments &a, const Expr &na, const Moments &b, const Expr &nb);

// Moments of x's channels: two passes over each tile, tiles merged in order.
Reduction reduce_moments(const Func &x, const Tiling &tiling);

// {sum of dy, sum of dy * (x - mean)}: plain sums over each tile, tiles added in order.
Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const Tiling &tiling);

Expr invstd_from_variance(const Expr &variance, const Expr &eps);

// The power of two that brings a channel of this invstd to a spread near 1, at most 1: x *
// range_scale is exact, cannot overflow, and neither can (x - mean) * range_scale, even for values
// of 1e38.
Expr range_scale(const Expr &invstd);

// y = (x - mean) * (weight * invstd) + bias, for every finite x. `coefficients` holds what is
// computed once a channel; `apply` is the work per element, in compute_type.
struct Normalization {
    Func coefficients{"coefficients"};

    Normalization(const Var &c, const Expr &mean, const Expr &invstd, const Expr &weight,
                  const Expr &bias, Type compute_type);
    Expr apply(const Expr &x, const Expr &c) const;
};

// grad_input = weight * invstd * (dy - sum_dy / M - xhat * sum(dy * xhat) / M).
struct InputGradient {
    Func coefficients{"coefficients"};

    InputGradient(const Var &c, const Expr &mean, const Expr &invstd, const Expr &weight,
                  const Expr &sum_dy, const Expr &sum_dy_xmu, const Expr &count, Type compute_type);
    Expr apply(const Expr &grad_output, const Expr &x, const Expr &c) const;
};

// What all generators of (N, C, H, W) tensors have in common.
template<typename Derived>
class TensorGenerator : public Halide::Generator<Derived> {
public:
    using Base = Halide::Generator<Derived>;
    template<typename T>
    using Input = typename Base::template Input<T>;
    template<typename T>
    using Output = typename Base::template Output<T>;

    Halide::GeneratorParam<Type> dtype{"dtype", Halide::Float(32)};  // of the tensors
    Halide::GeneratorParam<Layout> layout{"layout", Layout::nchw, layout_names};

    Var w{"w"}, h{"h"}, c{"c"}, n{"n"};

protected:
    // Fixes the unit stride that a layout promises; schedules rely on it for dense vectors.
    template<typename TensorBuffer>
    void promise_layout(TensorBuffer &tensor) const {
        tensor.dim(0).set_stride(layout == Layout::nchw ? Expr(1) : Expr());
        if (layout == Layout::nhwc) {
            tensor.dim(2).set_stride(1);
        }
        for (int d = 0; d < 4; d++) {
            tensor.dim(d).set_min(0);
        }
    }

    // The same for a tensor whose shape is that of `model`.
    template<typename TensorBuffer, typename ModelBuffer>
    void promise_layout_like(TensorBuffer &tensor, const ModelBuffer &model) const {
        promise_layout(tensor);
        for (int d = 0; d < 4; d++) {
            tensor.dim(d).set_extent(model.dim(d).extent());
        }
    }

    // One value a channel, at any stride: 0 where the wrapper stands in for an absent weight or
    // bias.
    template<typename ModelBuffer, typename... VectorBuffers>
    void promise_vectors(const ModelBuffer &model, VectorBuffers &...vectors) const {
        (vectors.dim(0).set_bounds(0, model.dim(2).extent()).set_stride(Expr()), ...);
    }

    Type statistics() const {
        return statistic_type(dtype);
    }

    ChannelPipeline pipeline() const {
        ChannelPipeline p;
        p.layout = layout;
        p.vars = {w, h, c, n};
        p.element_type = dtype;
        return p;
    }

    template<typename TensorBuffer>
    static ChannelExtents extents_of(const TensorBuffer &tensor) {
        return {tensor.dim(0).extent(), tensor.dim(1).extent(), tensor.dim(3).extent()};
    }
};

}  // namespace hbn

#endif
