// The algebra every operation shares: what a channel's statistics are, how they merge, and how they
// become an output. No schedule and no target here; see schedules/ for how it is computed.
#ifndef HBN_GENERATORS_BATCH_NORM_H
#define HBN_GENERATORS_BATCH_NORM_H

#include <Halide.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "generators/activations.h"
#include "generators/rounding.h"
#include "schedules/pipeline.h"

namespace hbn {

using Halide::Func;
using Halide::RDom;
using Halide::Var;

const std::map<std::string, Layout> layout_names = {
    {"nchw", Layout::nchw},     {"nchw_few_channels", Layout::nchw_few_channels},
    {"blocks", Layout::blocks}, {"rows", Layout::rows},
    {"nhwc", Layout::nhwc},     {"strided", Layout::strided},
};

// Parameters, running statistics and the type of arithmetic: float64 beside float64 tensors, float32 beside all
// others. Saved mean and invstd are float64 beside every dtype.
inline Type statistic_type(Type tensor) {
    return tensor.is_float() && tensor.bits() == 64 ? Halide::Float(64) : Halide::Float(32);
}

// A channel is cut into tiles, whose sums are merged in order.
//
// Sums run over d = x - pivot, in float64, and m2 = sum(d^2) - sum(d)^2 / n. A pivot far from the
// mean costs bits by cancellation. The tile's first value, being one of the n, can't be further off
// than m2 = sum((x - mean)^2) >= (pivot - mean)^2, so sum(d^2) <= (n + 1) * m2: adding it up in
// chains of k loses at most k * (n + 1) units of 2^-53. A tile has n <= 2^15 and k <= 2^12, which
// leaves 26 bits or more whatever the data, and usually about 50: enough for float32 with one sweep
// over the data. For float64, and where chains are long, the pivot is the tile's mean, from a sweep of
// its own.
//
// Sums of 16-bit tensors run in float32 over groups of 8 values, and in float64 over groups. The pivot is the
// mean of k of the tile's values: it can't be further off than (pivot - mean)^2 <= m2 / k, so
// sum(d^2) <= (1 + n / k) * m2, of which groups lose at most 11 units of 2^-24, and sum(d)^2 / n 16.
// n / k is at most 64, which leaves 13 bits whatever the data, and usually about 20; a float16 has 11, a bfloat16
// 8. Gradients' sums are off by at most 9 units of 2^-24 of the sum of their magnitudes.
//
// float16's sums can't leave float32's range; bfloat16's can. They are guarded: a tile is summed again in float64
// where a group's sum came near to overflow, or where sum(d^2), or the sum of products, is so small (2^-100) that
// terms below float32's least normal number may count. Then terms that vanished altogether, beside groups that
// all add up to zero, are the one thing lost: n * 2^-150 at most.
enum class Pivot { first_value, sample_mean, tile_mean };

// How the caller cuts channels into tiles, each about as large as the others: runtime/layout.cpp. Where tensors
// are in columns, a unit is row_group rows, and `h` and `n` are 1.
struct Cut {
    static constexpr int unit = 128, sample_unit = 16;

    Expr units, h, n;                       // extents of a whole tile, along w in units
    Expr tiles_w, tiles_h, tiles_n;         // how many there are along each axis
    Expr sample_units, sample_h, sample_n;  // of a sample of its values, along w in sample_units
};

// For standalone kernels, of planes of `width` elements: tiles of about as many, `most`, as Pivot allows.
Cut standalone_cut(const Expr &width, const Expr &samples, int most);

// Tensors in four dimensions, (w, h, c, n).
struct PlaneTiling {
    Expr width, height, samples;  // the channel's extents
    Cut cut;
    Expr w, h, n;  // extents of a whole tile
    RDom tiles;    // which tile, along w, h, n
    int lanes;  // partial sums side by side along w; a power of two, no more than a sample_unit in groups
    bool in_groups;
    Var lane{"lane"}, c{"c"}, tw{"tw"}, th{"th"}, tn{"tn"};

    PlaneTiling(const Expr &width, const Expr &height, const Expr &samples, const Cut &cut,
                int lanes, bool in_groups);

    // The tile's element (i, j, l) of x.
    Expr at(const Func &x, const Expr &i, const Expr &j, const Expr &l) const {
        return x(tw * w + i, th * h + j, c, tn * n + l);
    }
    // (vector, h, n) of the values that a pivot is the mean of.
    RDom sample() const;
    Expr sample_count() const;
    std::vector<Var> tile_at() const {
        return {c, tw, th, tn};
    }
    // Extents of the tile: the last along each axis may be smaller.
    Expr tile_w() const {
        return min(w, width - tw * w);
    }
    Expr tile_h() const {
        return min(h, height - th * h);
    }
    Expr tile_n() const {
        return min(n, samples - tn * n);
    }

    // Values in a tile, and in all the tiles before it in the order of `tiles`.
    Expr count(const Expr &tw, const Expr &th, const Expr &tn) const;
    Expr count_before(const Expr &tw, const Expr &th, const Expr &tn) const;
};

// Tensors as rows of columns, (column, block, row), with stride 1 along columns. A block is
// `channels` whole channels side by side. Its columns are `folds` times all its channels, each
// `plane` columns in a run: column = p + plane * (k + channels * fold) belongs to channel k.
//
//   NCHW with small planes: block of some channels, plane = H * W, 1 fold, a row for each n
//   NHWC: 1 block of all channels, plane = 1, a few pixels side by side (folds), then rows of those
struct ColumnTiling {
    Expr columns, rows, plane, channels, folds;
    Expr tile_rows;  // of a whole tile
    RDom tiles;      // which tile
    RDom members;    // p, k, fold
    Var column{"column"}, block{"block"}, k{"k"}, t{"t"};

    ColumnTiling(const Expr &columns, const Expr &rows, const Expr &plane, const Expr &channels,
                 const Expr &folds, const Cut &cut);

    // Row within a tile, as far as there are rows.
    RDom inside() const;
    // (p, fold, row) of a channel's values in the rows that a pivot is the mean of.
    RDom sample() const;
    Expr sample_count() const;
    // The tile's rows: the last may have fewer.
    Expr rows_of(const Expr &t) const {
        return min(tile_rows, rows - first_row(t));
    }

    // Tiles go from the last rows to the first, so that a map that goes from first to last finds in
    // cache what was reduced last.
    Expr first_row(const Expr &t) const {
        return (tiles.x.extent() - 1 - t) * tile_rows;
    }
    Expr column_of(const Expr &k, const Expr &p, const Expr &fold) const {
        return p + plane * (k + channels * fold);
    }
    Expr member_column() const {
        return column_of(members.y, members.x, members.z);
    }
    Expr count(const Expr &t) const;
    Expr count_before(const Expr &t) const;

    // Each column's value of what is (k, block, ...) a channel.
    Func spread(const Func &per_channel, const std::string &name) const;
};

// mean and m2 (the sum of squared deviations from mean) of a channel; float64.
struct Moments {
    Expr mean, m2;
};

// Two samples of na and nb values joined (Chan, Golub and LeVeque 1979). na may be 0.
Moments merge(const Moments &a, const Expr &na, const Moments &b, const Expr &nb);

// Moments of x's channels.
Reduction reduce_moments(const Func &x, const PlaneTiling &tiling, Pivot pivot);
ColumnReduction reduce_moments(const Func &x, const ColumnTiling &tiling, Pivot pivot);

// {sum of dy, sum of dy * (x - mean)}: plain sums over each tile, tiles added in order. in_groups: of
// float32, see Pivot.
Reduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                           const PlaneTiling &tiling);
ColumnReduction reduce_gradients(const Func &grad_output, const Func &x, const Func &mean,
                                 const ColumnTiling &tiling, bool in_groups);

Expr invstd_from_variance(const Expr &variance, const Expr &eps);

// (1 - momentum) * running + momentum * batch, in running's type. A momentum of 0 keeps the old value bit for bit,
// whatever the batch holds.
Expr moved_to_batch(const Expr &running, const Expr &batch, const Expr &momentum);

// How elements are computed.
struct Arithmetic {
    Type tensor;
    // Whether values may be as large as the type's largest; without, up to a quarter of that.
    bool whole_range = true;
};

// How many coefficients it takes to say how far x is from the mean: the mean, and for tensors whose range is
// float32's own (or more), range_scale: the power of two that brings a channel to a spread near 1, at most 1. x *
// range_scale is exact and cannot overflow, and neither can (x - mean) * range_scale, even for values of 1e38.
inline int deviation_size(const Arithmetic &a) {
    return a.tensor == Halide::Float(16) || !a.whole_range ? 1 : 2;
}

// y = (x - mean) * (weight * invstd) + bias, for every finite x; here and below mean and invstd are float64. The coefficients are computed once
// a channel; `normalize` is the work per element, in their type.
std::vector<Expr> normalization_coefficients(const Expr &mean, const Expr &invstd,
                                             const Expr &weight, const Expr &bias,
                                             const Arithmetic &arithmetic);
Expr normalize(const Expr &x, const std::vector<Expr> &coefficients, const Arithmetic &arithmetic);
Expr normalize_in_exact_order(const Expr &x, const std::vector<Expr> &coefficients,
                              const Arithmetic &arithmetic);

// grad_input = weight * invstd * (dy - sum_dy / M - xhat * sum(dy * xhat) / M).
std::vector<Expr> input_gradient_coefficients(const Expr &mean, const Expr &invstd,
                                              const Expr &weight, const Expr &sum_dy,
                                              const Expr &sum_dy_xmu, const Expr &count,
                                              const Arithmetic &arithmetic);
Expr input_gradient(const Expr &grad_output, const Expr &x, const std::vector<Expr> &coefficients,
                    const Arithmetic &arithmetic);

// Backward takes a gradient g to weight * invstd * P(g), P(g) = g - sum_g / M - xhat * sum(g * xhat) / M being a
// symmetric projection. {sum of g, sum of g * (x - mean)} over a channel:
struct GradientSums {
    Expr plain, xmu;
};

// y's tangent: weight * invstd * P(x_tangent) + xhat * weight_tangent + bias_tangent.
std::vector<Expr> tangent_coefficients(const Expr &mean, const Expr &invstd, const Expr &weight,
                                       const Expr &weight_tangent, const Expr &bias_tangent,
                                       const GradientSums &sums, const Expr &count,
                                       const Arithmetic &arithmetic);
Expr tangent(const Expr &x_tangent, const Expr &x, const std::vector<Expr> &coefficients,
             const Arithmetic &arithmetic);

// Double backward: the gradient by x of sum(ddx * grad_input) + ddw * grad_weight + ddb * grad_bias, where ddx, ddw and
// ddb (grad_grad_input, ...) are constants. With product = sum(dy * P(ddx)), and by d xhat = invstd * P(dx) and
// d invstd = -invstd^2 * xhat * dx / M, it is
//   ddw * invstd * P(dy)
//   - weight * invstd^2 / M * (product * xhat + sum(dy * xhat) * P(ddx) + sum(ddx * xhat) * P(dy)).
std::vector<Expr> double_backward_coefficients(const Expr &mean, const Expr &invstd,
                                               const Expr &weight, const Expr &ddw,
                                               const GradientSums &of_dy,
                                               const GradientSums &of_ddx, const Expr &product,
                                               const Expr &count, const Arithmetic &arithmetic);
Expr double_backward(const Expr &dy, const Expr &ddx, const Expr &x,
                     const std::vector<Expr> &coefficients, const Arithmetic &arithmetic);
// product, from sum(dy * (ddx - center)), center being a number near ddx's mean.
Expr double_backward_product(const Expr &sum_dy_ddx, const Expr &center, const Expr &invstd,
                             const GradientSums &of_dy, const GradientSums &of_ddx,
                             const Expr &count);

// What all generators of (N, C, H, W) tensors have in common: the tensors' layout, and the walks
// over it.
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

    // Partial sums side by side where planes are summed, for the target's vectors if 0.
    Halide::GeneratorParam<int> lanes{"lanes", 0};

    // For packs: kernels of dense tensors that nothing is chosen for at run time. Not of float64.
    Halide::GeneratorParam<bool> standalone{"standalone", false};
    // Whether it shares channels out through halide_do_par_for().
    Halide::GeneratorParam<bool> parallel{"parallel", false};
    // Sizes of a standalone kernel's tensors, 0 where only the call knows. H * W is one of them.
    Halide::GeneratorParam<int> samples{"samples", 0}, num_features{"num_features", 0},
        plane_size{"plane_size", 0};

protected:
    // Inputs that all share, and that come last among them. Standalone kernels have none of them.
    struct SharedInputs {
        // ColumnTiling's; 1 in other layouts.
        Input<int32_t> *plane = nullptr, *folds = nullptr;
        // A Cut; not read where nothing is summed.
        Input<int32_t> *cut[9] = {};
        // Whether the output will not stay in cache, so that stores had better not fetch its lines. The
        // caller then promises rows that start on whole lines.
        Input<bool> *stream = nullptr;
    };
    bool in_columns() const {
        return layout == Layout::blocks || layout == Layout::rows;
    }

    // Call in configure(), last: dtypes and dimensions, and the inputs that all share.
    template<typename... TensorBuffers>
    void declare_tensors(TensorBuffers &...tensors) {
        (tensors.set_type(dtype), ...);
        (tensors.set_dimensions(in_columns() ? 3 : 4), ...);
        if (standalone) {
            return;
        }
        shared.plane = Base::template add_input<int32_t>("plane");
        shared.folds = Base::template add_input<int32_t>("folds");
        static const char *const cuts[] = {"tile_units",   "tile_h",   "tile_n",
                                           "tiles_w",      "tiles_h",  "tiles_n",
                                           "sample_units", "sample_h", "sample_n"};
        for (int i = 0; i < 9; i++) {
            shared.cut[i] = Base::template add_input<int32_t>(cuts[i]);
        }
        shared.stream = Base::template add_input<bool>("stream");
    }
    // Inputs that only some kernels of a generator take.
    Input<Halide::Buffer<>> *add_tensor(const std::string &name, Type type) {
        return Base::template add_input<Halide::Buffer<>>(name, type, in_columns() ? 3 : 4);
    }
    Input<Halide::Buffer<>> *add_vector(const std::string &name, Type type) {
        return Base::template add_input<Halide::Buffer<>>(name, type, in_columns() ? 2 : 1);
    }
    // One value a channel: (c), or (k, block) in columns.
    template<typename... VectorBuffers>
    void declare_vectors(VectorBuffers &...vectors) {
        (vectors.set_type(statistics()), ...);
        (vectors.set_dimensions(in_columns() ? 2 : 1), ...);
    }
    template<typename... VectorBuffers>
    void declare_float64_vectors(VectorBuffers &...vectors) {
        (vectors.set_type(Halide::Float(64)), ...);
        (vectors.set_dimensions(in_columns() ? 2 : 1), ...);
    }

    // An element's and a channel's coordinates.
    std::vector<Var> element() const {
        return in_columns() ? std::vector<Var>{w, c, n} : std::vector<Var>{w, h, c, n};
    }
    std::vector<Var> channel() const {
        return in_columns() ? std::vector<Var>{k, c} : std::vector<Var>{c};
    }

    // The extents of `tensor`, which all the kernel's tensors share.
    template<typename TensorBuffer, typename VectorBuffer>
    void set_shape(const TensorBuffer &tensor, const VectorBuffer &vector) {
        set_shape(tensor);
        channels = vector.dim(0).extent();
        if (standalone) {
            const auto fixed = [](int size, const Expr &free) {
                return size > 0 ? Expr(size) : free;
            };
            channels = fixed(num_features, channels);
            extents = {fixed(plane_size, extents[0]), 1, channels, fixed(samples, extents[3])};
        }
    }
    // The same, for kernels of no vectors, which are of no pack.
    template<typename TensorBuffer>
    void set_shape(const TensorBuffer &tensor) {
        for (int d = 0; d < (in_columns() ? 3 : 4); d++) {
            extents.push_back(tensor.dim(d).extent());
        }
        channels = in_columns() ? Expr(1) : extents[2];
    }
    Cut cut() const {
        if (standalone) {
            // As long as a lane's chain may be.
            return standalone_cut(extents[0], extents[3], std::min(32768, 2048 * lanes_along_w()));
        }
        const auto &cut = shared.cut;
        return {*cut[0], *cut[1], *cut[2], *cut[3], *cut[4], *cut[5], *cut[6], *cut[7], *cut[8]};
    }
    ColumnTiling column_tiling() const {
        return {extents[0], extents[2], plane(), channels, folds(), cut()};
    }
    // ColumnTiling's.
    Expr plane() const {
        return *shared.plane;
    }
    Expr folds() const {
        return *shared.folds;
    }
    int lanes_along_w() const {
        const int vector = std::max(4, Base::natural_vector_size(Halide::Float(32)));
        if (lanes > 0) {
            return lanes;
        }
        // In NHWC vectors are of channels.
        if (layout == Layout::strided || layout == Layout::nhwc) {
            return 1;
        }
        return in_groups() ? vector : 2 * vector;
    }
    PlaneTiling plane_tiling() const {
        return {extents[0], extents[1], extents[3], cut(), lanes_along_w(), in_groups()};
    }
    // Values of a channel.
    Expr count() const {
        return in_columns() ? f64(plane()) * f64(folds()) * f64(extents[2])
                            : f64(extents[0]) * f64(extents[1]) * f64(extents[3]);
    }

    Pivot pivot() const {
        const bool exact = statistics().bits() == 64 || layout == Layout::strided;
        return exact ? Pivot::tile_mean : in_groups() ? Pivot::sample_mean : Pivot::first_value;
    }
    // Whether sums run over groups of float32.
    bool in_groups() const {
        return Type(dtype).bits() == 16 && layout != Layout::strided;
    }

    // The reduction's result, a Tuple of two at channel().
    std::vector<Expr> moments_of(const Func &x) {
        if (in_columns()) {
            work.column_reductions = {reduce_moments(x, column_tiling(), pivot())};
        } else {
            work.reductions = {reduce_moments(x, plane_tiling(), pivot())};
        }
        return reduced();
    }
    std::vector<Expr> gradient_sums_of(const Func &grad_output, const Func &x, const Expr &mean) {
        Func wide_mean("wide_mean");
        wide_mean(channel()) = mean;
        if (in_columns()) {
            work.column_reductions = {
                reduce_gradients(grad_output, x, wide_mean, column_tiling(), in_groups())};
        } else {
            work.reductions = {reduce_gradients(grad_output, x, wide_mean, plane_tiling())};
        }
        return reduced();
    }

    // Computed once a channel, to be read at an element.
    std::vector<Expr> once_a_channel(const std::vector<Expr> &values) {
        return read_at_element(channel_coefficients(values));
    }
    // The same, to be read by read_in_sums(), too.
    Func channel_coefficients(std::vector<Expr> values) {
        Func coefficients("coefficients");
        for (Expr &value : values) {
            value = Type(dtype).is_bfloat() ? with_plain_nan(value) : value;
        }
        coefficients(channel()) = Halide::Tuple(values);
        work.coefficients.push_back(coefficients);
        if (!in_columns()) {
            return coefficients;
        }
        const ColumnTiling tiling = column_tiling();
        const Func spread = tiling.spread(coefficients, "spread_coefficients");
        work.members = tiling.members;
        work.spread_coefficients.push_back(spread);
        return spread;
    }
    // At element(), for what is summed: vectors may start at odd columns, where paired ones would be loaded one by one.
    std::vector<Expr> read_in_sums(const Func &coefficients) const {
        return elements_of(in_columns() ? coefficients(w, c) : coefficients(c),
                           coefficients.outputs());
    }
    // At element(), for what is stored.
    std::vector<Expr> read_at_element(const Func &coefficients) {
        if (!in_columns() || !Type(dtype).is_bfloat() || !pairs_bfloat16(Base::get_target())) {
            return read_in_sums(coefficients);
        }
        // Those of even columns, then those of odd ones.
        const size_t size = coefficients.outputs();
        Var pair("pair"), odd("odd");
        Func paired("paired_coefficients");
        paired(pair, odd, c) = Halide::Tuple(elements_of(coefficients(2 * pair + odd, c), size));
        work.paired_coefficients.push_back(paired);
        return elements_of(paired(w / 2, w % 2, c), size);
    }

    // An output's element.
    Expr rounded(const Expr &value) const {
        const Type type = dtype;
        if (type.is_bfloat()) {
            return round_to_bfloat16(value);
        }
        return rounds_float16(Base::get_target()) ? Halide::cast(type, value)
                                                  : round_to(type, value);
    }

    // Call in schedule(), with all of the kernel's tensors, and all of its vectors: fixes what a
    // layout promises, which schedules rely on for dense vectors.
    template<typename... TensorBuffers>
    void promise_tensors(TensorBuffers &...tensors) const {
        (promise_tensor(tensors), ...);
    }
    // At any stride: 0 where the wrapper stands in for an absent weight or bias.
    template<typename... VectorBuffers>
    void promise_vectors(VectorBuffers &...vectors) const {
        (promise_vector(vectors), ...);
    }

    void schedule_work() {
        work.layout = layout;
        work.element = element();
        work.channel = channel();
        work.element_type = dtype;
        work.stream = standalone ? Halide::Internal::const_false() : Expr(*shared.stream);
        work.standalone = standalone;
        work.parallel = parallel || !standalone;
        work.row_elements = extents[0];
        work.num_features = channels;
        work.pipeline = Base::get_pipeline();
        hbn::schedule(work, Base::get_target());
    }

    Type statistics() const {
        return statistic_type(dtype);
    }
    Arithmetic arithmetic() const {
        return {dtype, !standalone};
    }

    Var w{"w"}, h{"h"}, c{"c"}, n{"n"}, k{"k"};
    std::vector<Expr> extents;
    Expr channels;  // of the tensor, or of a block
    ChannelPipeline work;

private:
    SharedInputs shared;

    std::vector<Expr> reduced() const {
        const Func &merged =
            in_columns() ? work.column_reductions[0].merged : work.reductions[0].merged;
        const std::vector<Var> at = channel();
        return elements_of(merged(at), 2);
    }

    static std::vector<Expr> elements_of(const Halide::FuncRef &tuple, size_t size) {
        std::vector<Expr> elements;
        for (size_t i = 0; i < size; i++) {
            elements.push_back(size > 1 ? Expr(tuple[int(i)]) : Expr(tuple));
        }
        return elements;
    }

    void promise_tensor(Output<Func> &tuple) const {
        std::vector<Halide::OutputImageParam> tensors = Func(tuple).output_buffers();
        // Bounds are the first one's.
        promise_tensor(tensors[0]);
        for (Halide::OutputImageParam &tensor : tensors) {
            promise_strides(tensor);
        }
    }

    template<typename TensorBuffer>
    void promise_tensor(TensorBuffer &tensor) const {
        promise_strides(tensor);
        for (size_t d = 0; d < extents.size(); d++) {
            tensor.dim(int(d)).set_bounds(0, extents[d]);
        }
    }

    template<typename TensorBuffer>
    void promise_strides(TensorBuffer &tensor) const {
        if (standalone) {
            const std::vector<int> inner_to_outer = layout == Layout::nhwc
                                                        ? std::vector<int>{2, 0, 1, 3}
                                                        : std::vector<int>{0, 1, 2, 3};
            Expr stride = 1;
            for (int d : inner_to_outer) {
                tensor.dim(d).set_stride(stride);
                stride = stride * extents[d];
            }
            return;
        }
        const bool dense_w =
            in_columns() || layout == Layout::nchw || layout == Layout::nchw_few_channels;
        tensor.dim(0).set_stride(dense_w ? Expr(1) : Expr());
        if (layout == Layout::nhwc) {
            tensor.dim(2).set_stride(1);
        }
    }

    template<typename VectorBuffer>
    void promise_vector(VectorBuffer &vector) const {
        vector.dim(0).set_bounds(0, channels).set_stride(standalone ? Expr(1) : Expr());
        if (in_columns()) {
            vector.dim(1).set_bounds(0, extents[1]);
        }
    }
};

// Operations that an addition, a ReLU, or both may be fused into; activation_forward and activation_backward serve
// all other activations. What an operation takes in addition comes last among the inputs.
//
//   add:  z = residual + what batch normalization alone gives, which is z without.
//   relu: y = relu(z); with_mask, beside y, where z is positive, a byte an element. Backward computes z again, but
//         after an addition it takes the mask: to compute z would take residual, which is more to read.
//
// What forward saves for backward, mean and invstd, is float64: the sign of z depends on it.
template<typename Derived>
class ActivatedGenerator : public TensorGenerator<Derived> {
public:
    using Base = TensorGenerator<Derived>;
    template<typename T>
    using Output = typename Base::template Output<T>;

    Halide::GeneratorParam<Activation> activation{"activation", Activation::none, activation_names};
    Halide::GeneratorParam<bool> add{"add", false};
    Halide::GeneratorParam<bool> with_mask{"with_mask", false};

protected:
    using TensorInput = typename Base::template Input<Halide::Buffer<>>;

    // ---- forward

    // Call in configure().
    void declare_forward(Output<Func> &y) {
        check_parameters();
        if (add) {
            residual = Base::add_tensor("residual", Base::dtype);
        }
        declare_output(y, with_mask ? std::vector<Type>{Base::dtype, Halide::UInt(8)}
                                    : std::vector<Type>{Base::dtype});
    }

    // Statistics are float64.
    void define_forward(Output<Func> &y, const TensorInput &x, const Expr &mean, const Expr &invstd,
                        const Expr &weight, const Expr &bias) {
        const auto at = Base::element();
        const auto coefficients = Base::once_a_channel(
            normalization_coefficients(mean, invstd, weight, bias, Base::arithmetic()));
        if (activation == Activation::none && !add) {
            y(at) = Base::rounded(normalize(x(at), coefficients, Base::arithmetic()));
            return;
        }
        Expr z = normalize_in_exact_order(x(at), coefficients, Base::arithmetic());
        if (residual) {
            z += Halide::cast(z.type(), (*residual)(at));
        }
        if (activation == Activation::none) {
            y(at) = Base::rounded(z);
            return;
        }
        const Expr stops = relu_stops(z, Base::dtype);
        const Expr value = Base::rounded(zero_where(stops, z));
        if (with_mask) {
            y(at) = Halide::Tuple(value, select(stops, Expr(uint8_t(0)), Expr(uint8_t(1))));
        } else {
            y(at) = value;
        }
    }

    // ---- backward

    // Call in configure().
    void declare_backward(Output<Func> &grad_input) {
        check_parameters();
        if (activation == Activation::relu && !add) {
            bias = Base::add_vector("bias", Base::statistics());
        }
        if (activation == Activation::relu && add) {
            mask = Base::add_tensor("mask", Halide::UInt(8));
        }
        const int outputs = add ? 2 : 1;
        declare_output(grad_input, std::vector<Type>(outputs, Base::dtype));
    }

    // The same values, to be summed and for what is stored.
    struct GradientOfZ {
        Func in_sums, at_element;
    };

    // Statistics as forward had them.
    GradientOfZ gradient_of_z(const TensorInput &grad_output, const TensorInput &x,
                              const Expr &mean, const Expr &invstd, const Expr &weight) {
        const auto at = Base::element();
        // In the type of arithmetic: to select among 16 bits by what 32 say takes more.
        const Expr wide = Halide::cast(Base::statistics(), grad_output(at));
        const auto gradient = [&](const Expr &value) {
            Func f("gradient_of_z");
            f(at) = value;
            return f;
        };
        if (activation == Activation::none) {
            const Func all = gradient(grad_output(at));
            return {all, all};
        }
        if (mask) {
            const Func passed = gradient(zero_where((*mask)(at) == 0, wide));
            return {passed, passed};
        }
        const Func coefficients = Base::channel_coefficients(normalization_coefficients(
            mean, invstd, weight, (*bias)(Base::channel()), Base::arithmetic()));
        z_coefficients = Base::read_at_element(coefficients);
        const auto passed = [&](const std::vector<Expr> &k) {
            const Expr z = normalize_in_exact_order(x(at), k, Base::arithmetic());
            return gradient(zero_where(relu_stops(z, Base::dtype), wide));
        };
        return {passed(Base::read_in_sums(coefficients)), passed(z_coefficients)};
    }

    // Of input_gradient(); after gradient_of_z(), since the first are z's, too.
    std::vector<Expr> gradient_coefficients(std::vector<Expr> values) {
        if (z_coefficients.empty()) {
            return Base::once_a_channel(values);
        }
        const int shared = deviation_size(Base::arithmetic());
        values.erase(values.begin(), values.begin() + shared);
        std::vector<Expr> coefficients = Base::once_a_channel(values);
        coefficients.insert(coefficients.begin(), z_coefficients.begin(),
                            z_coefficients.begin() + shared);
        return coefficients;
    }

    // The residual's gradient is z's: some of grad_output, to select which takes no arithmetic.
    void define_backward(Output<Func> &grad_input, const Expr &value,
                         const TensorInput &grad_output) {
        const auto at = Base::element();
        if (add) {
            const Expr grad_residual =
                mask ? zero_where((*mask)(at) == 0, grad_output(at)) : Expr(grad_output(at));
            grad_input(at) = Halide::Tuple(Base::rounded(value), grad_residual);
        } else {
            grad_input(at) = Base::rounded(value);
        }
    }

    // Call in schedule().
    void promise_activation() const {
        for (TensorInput *tensor : {residual, mask}) {
            if (tensor) {
                Base::promise_tensors(*tensor);
            }
        }
        if (bias) {
            Base::promise_vectors(*bias);
        }
    }

private:
    void check_parameters() const {
        _halide_user_assert(activation == Activation::none || activation == Activation::relu)
            << "only relu is fused; other activations are activation_forward's and "
               "activation_backward's\n";
        _halide_user_assert(!with_mask || activation == Activation::relu)
            << "only relu has a mask\n";
    }

    void declare_output(Output<Func> &output, const std::vector<Type> &types) const {
        output.set_type(types);
        output.set_dimensions(Base::in_columns() ? 3 : 4);
    }

    std::vector<Expr> z_coefficients;
    TensorInput *residual = nullptr, *mask = nullptr, *bias = nullptr;
};

}  // namespace hbn

#endif
