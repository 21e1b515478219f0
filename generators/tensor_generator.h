// What all generators of (N, C, H, W) tensors have in common.
#ifndef HBN_GENERATORS_TENSOR_GENERATOR_H
#define HBN_GENERATORS_TENSOR_GENERATOR_H

#include <Halide.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "generators/coefficients.h"
#include "generators/reductions.h"
#include "generators/rounding.h"
#include "generators/tiling.h"
#include "schedules/pipeline.h"

namespace hbn {

const std::map<std::string, Layout> layout_names = {
#define HBN_LAYOUT(name, purpose) {#name, Layout::name},
#include "runtime/layouts.def"
};

// The tensors' layout, the loops over it, and how reductions, coefficients and maps are handed to a schedule.
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

#define HBN_SCHEDULE_PARAMETER(name, families, layouts, values, description) \
    Halide::GeneratorParam<int> name = Halide::GeneratorParam<int>(#name, 0);
#include "schedules/parameters.def"

    // Which of schedules/passes/passes.h to leave out, separated by commas.
    Halide::GeneratorParam<std::string> without{"without", ""};

    // For packs: kernels of dense tensors, whose tiles are not chosen at run time. There are none of float64.
    Halide::GeneratorParam<bool> standalone{"standalone", false};
    // Whether a standalone kernel shares its channels out through halide_do_par_for().
    Halide::GeneratorParam<bool> parallel{"parallel", false};
    // Sizes of a standalone kernel's tensors: N, C and H * W; 0 for what only the call knows. Other kernels take them as
    // estimates, for Halide's autoschedulers.
    Halide::GeneratorParam<int> samples{"samples", 0}, num_features{"num_features", 0},
        plane_size{"plane_size", 0};
    // Whether to print the loops that the schedule makes.
    Halide::GeneratorParam<bool> print_loops{"print_loops", false};

protected:
    // The inputs that all kernels have, and that come last among their inputs. Standalone kernels have none of them.
    struct SharedInputs {
        // ColumnTiling's plane, repeats and parts; 1 in other layouts.
        Input<int32_t> *plane = nullptr, *repeats = nullptr, *parts = nullptr;
        // A TileSizes, in the order of its members. Kernels that sum nothing don't read them.
        Input<int32_t> *tile_sizes[9] = {};
        // Whether the output outgrows the cache, so that its stores should bypass it. The caller then promises
        // rows that start on whole cache lines.
        Input<bool> *stream = nullptr;
    };
    bool in_columns() const {
        return layout == Layout::blocks || layout == Layout::rows;
    }

    // Call last in configure(): sets dtypes and dimensions, and adds the inputs that all kernels have.
    template<typename... TensorBuffers>
    void declare_tensors(TensorBuffers &...tensors) {
        choose_parameters();
        (tensors.set_type(dtype), ...);
        (tensors.set_dimensions(in_columns() ? 3 : 4), ...);
        if (standalone) {
            return;
        }
        shared.plane = Base::template add_input<int32_t>("plane");
        shared.repeats = Base::template add_input<int32_t>("folds");
        shared.parts = Base::template add_input<int32_t>("parts");
        static const char *const tile_size_names[] = {"tile_units",   "tile_h",   "tile_n",
                                                      "tiles_w",      "tiles_h",  "tiles_n",
                                                      "sample_units", "sample_h", "sample_n"};
        for (int i = 0; i < 9; i++) {
            shared.tile_sizes[i] = Base::template add_input<int32_t>(tile_size_names[i]);
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
    // Vectors have a value for each channel: (c), or (channel, channel block) in columns.
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

    // The arguments of a function of elements, and of one of channels. In columns they are (column, channel block,
    // row) and (channel, channel block).
    std::vector<Var> element() const {
        return in_columns() ? std::vector<Var>{w, c, n} : std::vector<Var>{w, h, c, n};
    }
    std::vector<Var> channel() const {
        return in_columns() ? std::vector<Var>{channel_in_block, c} : std::vector<Var>{c};
    }

    // Takes the extents of `tensor`, which all of the kernel's tensors have, and of `vector`.
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
    // The same for kernels that have no vectors; there are none for packs.
    template<typename TensorBuffer>
    void set_shape(const TensorBuffer &tensor) {
        for (int d = 0; d < (in_columns() ? 3 : 4); d++) {
            extents.push_back(tensor.dim(d).extent());
        }
        channels = in_columns() ? Expr(1) : extents[2];
    }
    TileSizes tile_sizes() const {
        if (standalone) {
            // Each lane adds up a chain of 2^12 values at most (see Pivot). Of a single lane's tiles there are many: fewer
            // and longer ones are less code, and no slower.
            const int lanes = lanes_along_w();
            const int chain = parameters.chain_values.value_or(lanes == 1 ? 4096 : 2048);
            return standalone_tile_sizes(extents[0], extents[3], std::min(32768, chain * lanes));
        }
        const auto &size = shared.tile_sizes;
        return {*size[0], *size[1], *size[2], *size[3], *size[4],
                *size[5], *size[6], *size[7], *size[8]};
    }
    ColumnTiling column_tiling() const {
        return {extents[0], extents[2], plane(), channels, repeats(), parts(), tile_sizes()};
    }
    // The same, of sums.
    ColumnTiling column_sums_tiling() const {
        ColumnTiling tiling = column_tiling();
        if (in_groups()) {
            tiling.groups_in_set = parameters.groups_in_set.value_or(tiling.groups_in_set);
        }
        return tiling;
    }
    // ColumnTiling's plane and repeats.
    Expr plane() const {
        // Known, so that neighbouring channels are neighbours in memory.
        return layout == Layout::rows ? Expr(1) : Expr(*shared.plane);
    }
    Expr repeats() const {
        return *shared.repeats;
    }
    Expr parts() const {
        return layout == Layout::rows ? Expr(*shared.parts) : Expr(1);
    }
    int lanes_along_w() const {
        // In NHWC the lanes of a vector are channels.
        if (layout == Layout::strided || layout == Layout::nhwc) {
            return 1;
        }
        // A GPU's thread sums one channel's tile, one value after the other. So does a small processor without vectors.
        const int vector = std::max(4, Base::natural_vector_size(Halide::Float(32)));
        const bool one_by_one = family() == "gpu" || (standalone && family() == "portable");
        return parameters.lanes.value_or(one_by_one ? 1 : in_groups() ? vector : 2 * vector);
    }
    PlaneTiling plane_tiling() const {
        const int sums = lanes_along_w();
        const int values = in_groups() ? parameters.group_values.value_or(8) : 1;
        if (parameters.lanes.chosen() != 0 || parameters.group_values.chosen() != 0) {
            check_lanes(sums, values);
        }
        return {extents[0], extents[1], extents[3], tile_sizes(), sums, values};
    }
    // How many values a channel has.
    Expr count() const {
        return in_columns() ? f64(plane()) * f64(repeats()) * f64(extents[2])
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

    // {mean, m2} of x's channels, as functions of channel().
    std::vector<Expr> moments_of(const Func &x) {
        if (in_columns()) {
            work.column_reductions = {reduce_moments(x, column_sums_tiling(), pivot(), one())};
        } else {
            work.reductions = {reduce_moments(x, plane_tiling(), pivot(), one())};
        }
        return merged_tiles();
    }
    // {sum of dy, sum of dy * (x - mean)}, as functions of channel().
    std::vector<Expr> gradient_sums_of(const Func &grad_output, const Func &x, const Expr &mean) {
        Func wide_mean("wide_mean");
        wide_mean(channel()) = mean;
        if (in_columns()) {
            work.column_reductions = {reduce_gradients(grad_output, x, wide_mean,
                                                       column_sums_tiling(), in_groups(), one())};
        } else {
            work.reductions = {reduce_gradients(grad_output, x, wide_mean, plane_tiling(), one())};
        }
        return merged_tiles();
    }

    // Values that are computed once a channel, as read at an element.
    std::vector<Expr> once_a_channel(const std::vector<Expr> &values) {
        return read_at_element(channel_coefficients(values));
    }
    // The function of these values, for both read_in_sums() and read_at_element().
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
        const Func by_part = tiling.by_part(coefficients, "coefficients_by_part");
        if (tiling.has_parts()) {
            work.part_coefficients.push_back(by_part);
        }
        const Func by_column = tiling.by_column(by_part, "coefficients_by_column");
        work.all_columns = tiling.all_columns;
        work.column_coefficients.push_back(by_column);
        return by_column;
    }
    // Coefficients at element(), for what is summed. Its vectors may start at odd columns, where paired coefficients
    // would be loaded one by one.
    std::vector<Expr> read_in_sums(const Func &coefficients) const {
        return elements_of(in_columns() ? coefficients(w, c) : coefficients(c),
                           coefficients.outputs());
    }
    // Coefficients at element(), for what is stored.
    std::vector<Expr> read_at_element(const Func &coefficients) {
        if (!in_columns() || !Type(dtype).is_bfloat() || !pairs_bfloat16(Base::get_target())) {
            return read_in_sums(coefficients);
        }
        // All of the even columns lie before all of the odd ones.
        const size_t size = coefficients.outputs();
        Var pair("pair"), odd("odd");
        Func paired("paired_coefficients");
        paired(pair, odd, c) = Halide::Tuple(elements_of(coefficients(2 * pair + odd, c), size));
        work.paired_coefficients.push_back(paired);
        return elements_of(paired(w / 2, w % 2, c), size);
    }

    // The value of an output's element, rounded to its type.
    Expr rounded(const Expr &value) const {
        const Type type = dtype;
        if (type.is_bfloat()) {
            return round_to_bfloat16(value, one());
        }
        return rounds_float16(Base::get_target()) ? Halide::cast(type, value)
                                                  : round_to(type, value);
    }

    // Call both in schedule(), with all of the kernel's tensors and all of its vectors. They tell Halide the strides that
    // the layout promises, which schedules rely on for dense vectors.
    template<typename... TensorBuffers>
    void promise_tensors(TensorBuffers &...tensors) const {
        (promise_tensor(tensors), ...);
        (estimate(tensors, estimated_element()), ...);
    }
    // Vectors may have any stride: it is 0 where one value stands in for an absent weight or bias.
    template<typename... VectorBuffers>
    void promise_vectors(VectorBuffers &...vectors) const {
        (promise_vector(vectors), ...);
        (estimate(vectors, estimated_channel()), ...);
    }

    // 1, in a form that no compiler can know; in packs a plain 1.
    Expr one() const {
        return standalone ? Expr(uint32_t(1))
                          : Halide::cast<uint32_t>(Halide::min(*shared.plane, 1));
    }

    void schedule_work() {
        if (Base::using_autoscheduler()) {
            estimate_scalars();
            return;
        }
        work.layout = layout;
        work.element = element();
        work.channel = channel();
        work.element_type = dtype;
        work.stream = standalone ? Halide::Internal::const_false() : Expr(*shared.stream);
        work.one = one();
        work.standalone = standalone;
        work.without = passes_named(without);
        work.parallel = parallel || !standalone;
        work.row_elements = extents[0];
        work.num_features = channels;
        work.pipeline = Base::get_pipeline();
        work.parameters = &parameters;
        hbn::schedule(work, Base::get_target());
        parameters.check_effects(family(), layout_name());
        if (print_loops) {
            work.pipeline.print_loop_nest();
        }
    }

    Type statistics() const {
        return statistic_type(dtype);
    }
    Arithmetic arithmetic() const {
        return {dtype, !standalone};
    }

    Var w{"w"}, h{"h"}, c{"c"}, n{"n"}, channel_in_block{"k"};
    std::vector<Expr> extents;
    Expr channels;  // how many the tensor has, or a channel block
    ChannelPipeline work;

private:
    SharedInputs shared;
    ScheduleParameters parameters;

    std::string family() const {
        return family_of(Base::get_target(), layout);
    }
    std::string layout_name() const {
        const auto is_this = [this](const auto &row) { return row.second == layout; };
        return std::find_if(layout_names.begin(), layout_names.end(), is_this)->first;
    }

    // Whether sums of so many lanes and values of each can be had, and are as accurate as is said of Pivot.
    void check_lanes(int sums, int values) const {
        const int most =
            in_groups() ? std::min<int>(TileSizes::w_unit / (2 * values), TileSizes::sample_w_unit)
                        : TileSizes::w_unit;
        const int least = pivot() == Pivot::first_value && family() != "gpu" && !standalone ? 8 : 1;
        _halide_user_assert(least <= sums && sums <= most)
            << "lanes=" << sums << " group_values=" << values << ": allowed are " << least << " to "
            << most << " lanes of " << Type(dtype) << " with so many values\n";
    }

    void choose_parameters() {
#define HBN_SCHEDULE_PARAMETER(name, families, layouts, values, description) \
    parameters.name.choose(name);
#include "schedules/parameters.def"
        parameters.check_values(family(), layout_name());
    }

    // ---- for Halide's autoschedulers, which take the place of schedules/

    // Extents of element() and channel(). In columns they are of one block of all channels, a pixel in a row.
    std::vector<int> estimated_element() const {
        const int n = samples, c = num_features, pixels = plane_size;
        return in_columns() ? std::vector<int>{c, 1, n * pixels}
                            : std::vector<int>{pixels, 1, c, n};
    }
    std::vector<int> estimated_channel() const {
        return in_columns() ? std::vector<int>{num_features, 1} : std::vector<int>{num_features};
    }
    template<typename Buffer>
    void estimate(Buffer &buffer, const std::vector<int> &sizes) const {
        if (!Base::using_autoscheduler()) {
            return;
        }
        const bool unknown = std::count(sizes.begin(), sizes.end(), 0) > 0;
        _halide_user_assert(!standalone && !unknown)
            << "autoscheduler: allowed are kernels that are not standalone, with samples, "
               "num_features and plane_size\n";
        Halide::Region region;
        for (int size : sizes) {
            region.emplace_back(0, size);
        }
        buffer.set_estimates(region);
    }
    // As if a tile were a whole channel, or all rows.
    void estimate_scalars() {
        std::map<std::string, int> estimates = {{"stream", 0}};
        if (in_columns()) {
            estimates["tile_units"] = int(samples) * int(plane_size) / row_group + 1;
        } else {
            estimates["tile_units"] = plane_size / TileSizes::w_unit + 1;
            estimates["tile_n"] = samples;
        }
        for (const auto &info : Base::arginfos()) {
            if (info.dir == Halide::Internal::ArgInfoDirection::Output ||
                info.kind != Halide::Internal::ArgInfoKind::Scalar) {
                continue;
            }
            const auto known = estimates.find(info.name);
            const int value = known == estimates.end() ? 1 : known->second;
            for (Halide::Parameter parameter : Base::input_parameter(info.name)) {
                parameter.set_estimate(Halide::cast(parameter.type(), value));
            }
        }
    }

    std::vector<Expr> merged_tiles() const {
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
        // The extents of all are those of the first.
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

}  // namespace hbn

#endif
