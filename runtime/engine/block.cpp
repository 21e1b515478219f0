#include "block.h"

#include "copy.h"
#include "layout.h"
#include "runtime/checks.h"
#include "runtime/context.h"
#include "runtime/workspace.h"

namespace hbn::internal {

namespace {

// More than any recipe takes: one for each vector that there is, and what sums over pieces are added up in.
constexpr int kWorkspaceVectors = kVectors + 8;

int absent_value(Arg a) {
    return row(a).detail[0] - '0';
}

// One value in each channel.
#ifdef HBN_DEVICE_RUNTIME
hbn_vector constant(int value, hbn_dtype dtype, int64_t) {
    hbn_vector v = Workspace::take(dtype);
    for (int64_t c = 0; c < v.size; c++) {
        store(v, c, value);  // devices copy dense memory best
    }
    return v;
}
#else
// A stride of 0 over a static value.
hbn_vector constant(int value, hbn_dtype dtype, int64_t size) {
    static float floats[2] = {0.0f, 1.0f};
    static double doubles[2] = {0.0, 1.0};
    hbn_vector v{};
    v.data = dtype == HBN_FLOAT64 ? static_cast<void *>(&doubles[value]) : &floats[value];
    v.dtype = dtype;
    v.size = size;
    return v;
}
#endif

Values channels_of(const Values &whole, int64_t begin, int64_t size, int64_t channels) {
    Values part = whole;
    if (size != channels) {
        whole.for_each_tensor([&](Arg a) { part.set(a, slice(whole.tensor(a), 1, begin, size)); });
        whole.for_each_vector([&](Arg a) { part.set(a, slice(whole.vector(a), begin, size)); });
    }
    return part;
}

}  // namespace

Block::Block(const Problem &problem, const Staging &staging, int64_t first_channel,
             int64_t channels, Mode mode)
    : problem_(problem),
      mode_(mode),
      channels_(channels),
      values_(channels_of(problem.values, first_channel, channels, problem.channels)),
      staging_(staging.used() ? &staging : nullptr) {
    if (problem.has_tensors) {
        pieces_.emplace(values_, staging_ ? &staging_->piece() : nullptr);
    }
}

Block::Block(const Block &other, const Values &values)
    : problem_(other.problem_),
      mode_(other.mode_),
      channels_(other.channels_),
      values_(values),
      staging_(other.staging_) {
    if (values.has_tensors()) {
        pieces_.emplace(values_, staging_ ? &staging_->piece() : nullptr);
    }
}

hbn_status Block::stage() {
    if (!staging_ || rehearses()) {
        return HBN_OK;
    }
    if (!is_one_piece()) {
        return stage_in_outputs();
    }
    staged_.emplace(*staging_, staging_memory());
    staging_ = nullptr;
    for (const bool outputs : {false, true}) {
        for (const Use &use : row(problem_.operation)) {
            if (is_tensor(use.arg) && values_.has(use.arg) &&
                outputs == (use.direction != Direction::in) &&
                (use.arg != Arg::x || reads_x(problem_))) {
                hbn_tensor used;
                HBN_TRY(staged_->add(values_.tensor(use.arg), outputs, &used));
                values_.set(use.arg, used);
            }
        }
    }
    return HBN_OK;
}

hbn_status Block::stage_in_outputs() {
    // Kernels with an activation are for one piece, whether of copies or not.
    if (!problem_.is_plain() && !Pieces(values_).one()) {
        return HBN_OK;
    }
    bool all_conform = true;
    for (const Use &use : row(problem_.operation)) {
        const Arg held = staging_->held_by(use, problem_);
        if (held != Arg::none) {
            HBN_TRY(copy(values_.tensor(held), values_.tensor(use.arg)));
            values_.set(held, values_.tensor(use.arg));
            is_staged_in_outputs_ = true;
        }
    }
    values_.for_each_tensor(
        [&](Arg a) { all_conform = all_conform && staging_->conforms(values_.tensor(a)); });
    if (all_conform) {
        staging_ = nullptr;
        pieces_.emplace(values_);
    }
    return HBN_OK;
}

hbn_vector Block::scratch(hbn_dtype dtype) const {
    return Workspace::take(dtype);
}

hbn_status Block::set_zeros(Arg to) {
    return prepare_input(to, HBN_FLOAT64);
}

hbn_status Block::set_float64(Arg to, Arg from) {
    const hbn_vector copy = scratch(HBN_FLOAT64), original = vector(from);
    values_.set(to, copy);
    if (!has_conversion(original.dtype, HBN_FLOAT64)) {
        return no_kernel(Kernel::convert, original.dtype);
    }
    return rehearses() ? HBN_OK : convert(original, copy);
}

hbn_dtype Block::dtype_for(Kernel kernel) const {
    if (row(kernel).kind != KernelKind::vectors) {
        return problem_.tensor_dtype;
    }
    // Those of moments alone exist for float64 alone.
    return internal::has_kernel(kernel, problem_.parameter_dtype) ? problem_.parameter_dtype
                                                                  : HBN_FLOAT64;
}

bool Block::has_kernel(Kernel kernel) const {
    return kernel != Kernel::none && internal::has_kernel(kernel, dtype_for(kernel));
}

double Block::count() const {
    return count_of(values_.tensor(Arg::x));
}

hbn_status Block::prepare_input(Arg a, hbn_dtype dtype) {
    if (!values_.has(a)) {
        values_.set(a, constant(absent_value(a), dtype, channels_));
        return HBN_OK;
    }
    const hbn_vector given = values_.vector(a);
    if (given.dtype == dtype) {
        return HBN_OK;
    }
    values_.set(a, scratch(dtype));
    return rehearses() ? HBN_OK : convert(given, values_.vector(a));
}

hbn_status Block::prepare_output(Arg a, hbn_dtype dtype) {
    if (values_.has(a) && values_.vector(a).dtype == dtype) {
        return HBN_OK;
    }
    const hbn_vector written = scratch(dtype);
    if (values_.has(a)) {
        if (num_conversions_ == kMostConversions) {
            return fail(HBN_UNSUPPORTED, text::too_many_kernel_arguments, row(a).name);
        }
        conversions_[num_conversions_++] = {written, values_.vector(a)};
    }
    values_.set(a, written);
    return HBN_OK;
}

hbn_status Block::rehearse(Kernel kernel, const Signature &signature) const {
    for (const Signature::Argument &argument : signature) {
        if (is_vector(argument.arg) && values_.has(argument.arg)) {
            const hbn_dtype mine = values_.vector(argument.arg).dtype, its = argument.dtype;
            if (!has_conversion(mine, its) || !has_conversion(its, mine)) {
                return no_kernel(Kernel::convert, mine);
            }
        }
    }
    // The kernel for any strides serves every layout.
    if (is_tensor(signature.arguments[0].arg) &&
        !layouts_of(kernel, problem_.tensor_dtype)[size_t(Layout::strided)]) {
        return no_kernel(kernel, problem_.tensor_dtype);
    }
    return HBN_OK;
}

struct Block::KernelCall {
    KernelCall(Kernel kernel, hbn_dtype dtype) : kernel(kernel), dtype(dtype) {
    }

    Kernel kernel;
    hbn_dtype dtype;
    const Signature *signature = nullptr;
    int num_tensors = 0;
    const hbn_tensor *tensors[kMostTensors];  // what is not counted is not initialized
    std::bitset<kMostTensors> is_output, streamable;

    bool on_tensors() const {
        return row(kernel).kind != KernelKind::vectors;
    }
};

hbn_status Block::call(Kernel kernel) {
    KernelCall c(kernel, dtype_for(kernel));
    HBN_TRY(signature_of(kernel, c.dtype, &c.signature));
    if (rehearses()) {
        HBN_TRY(rehearse(kernel, *c.signature));
    }
    for (const Signature::Argument &argument : *c.signature) {
        const Arg a = argument.arg;
        if (argument.role == Role::parameter || argument.role == Role::statistic) {
            HBN_TRY(argument.is_output ? prepare_output(a, argument.dtype)
                                       : prepare_input(a, argument.dtype));
        } else if (argument.role == Role::tensor || argument.role == Role::mask) {
            if (!values_.has(a)) {
                return fail(HBN_UNSUPPORTED, text::missing_kernel_argument, row(kernel).name,
                            row(a).name, row(problem_.operation).name);
            }
            const hbn_tensor &t = values_.tensor(a);
            c.streamable[c.num_tensors] = argument.is_output && t.dtype != HBN_UINT8;
            c.is_output[c.num_tensors] = argument.is_output;
            c.tensors[c.num_tensors++] = &t;
        }
    }
    if (rehearses()) {
        return HBN_OK;
    }
    const bool copies =
        c.on_tensors() && staging_ && staging_->scratch_bytes() > 0 &&
        !suit_kernels(c.tensors, c.num_tensors, row(kernel).kind == KernelKind::sums,
                      layouts_of(kernel, c.dtype));
    return copies ? run_on_copies(c) : run(c, false);
}

hbn_status Block::run_on_copies(const KernelCall &c) {
    Staged staged(*staging_, staging_memory());
    hbn_tensor copies[kMostTensors];
    KernelCall on_copies = c;
    for (const bool outputs : {false, true}) {
        for (int i = 0; i < c.num_tensors; i++) {
            if (c.is_output[i] == outputs) {
                HBN_TRY(staged.add(*c.tensors[i], outputs, &copies[i]));
                on_copies.tensors[i] = &copies[i];
            }
        }
    }
    HBN_TRY(run(on_copies, staged.any()));
    return staged.store_outputs();
}

hbn_status Block::run(const KernelCall &c, bool on_copies) {
    const bool on_tensors = c.on_tensors();
    KernelView view;
    int64_t elements = channels_;
    const Tuning *tuning = &kDefaultTuning;
    if (on_tensors) {
        const bool staged = on_copies || (staged_ && staged_->any()) || is_staged_in_outputs_;
        const TunedEntry *entry =
            staged ? nullptr : tuned_entry(c.kernel, c.dtype, c.tensors, c.num_tensors);
        tuning = &tuning_of(entry);
        const int64_t *sizes = c.tensors[0]->sizes;
        elements = sizes[0] * sizes[1] * sizes[2] * sizes[3];
        choose_view(c.tensors, c.num_tensors, c.streamable, row(c.kernel).kind == KernelKind::sums,
                    layouts_of(c.kernel, c.dtype), tuning->thresholds, &view);
        record_staging(staged);
        record_tuning(entry, tuning->kernel(view.layout).call);
    }
    ArgumentList list;
    int tensor = 0;
    for (const Signature::Argument &argument : *c.signature) {
        const Arg a = argument.arg;
        switch (argument.role) {
        case Role::tensor:
        case Role::mask:
            list.add_tensor(*c.tensors[tensor], view, tensor, argument.is_output);
            tensor++;
            break;
        case Role::parameter:
        case Role::statistic:
            list.add_vector(values_.vector(a), on_tensors ? &view : nullptr, argument.is_output);
            break;
        case Role::number:
            list.add_number(values_.number(a), argument.type);
            break;
        default:
            list.add_view_number(argument.view_offset, view);
        }
    }
    return list.run(c.kernel, c.dtype, on_tensors ? view.layout : Layout(0), elements, view.stream,
                    *tuning);
}

hbn_status Block::store_outputs() {
    if (staged_) {
        HBN_TRY(staged_->store_outputs());
    }
    for (int i = 0; i < num_conversions_ && !rehearses(); i++) {
        HBN_TRY(convert(conversions_[i].from, conversions_[i].to));
    }
    return HBN_OK;
}

double load(const hbn_vector &v, int64_t c) {
    return v.dtype == HBN_FLOAT64 ? static_cast<const double *>(v.data)[c * v.stride]
                                  : double(static_cast<const float *>(v.data)[c * v.stride]);
}

void store(const hbn_vector &v, int64_t c, double value) {
    if (v.dtype == HBN_FLOAT64) {
        static_cast<double *>(v.data)[c * v.stride] = value;
    } else {
        static_cast<float *>(v.data)[c * v.stride] = float(value);
    }
}

namespace {

hbn_status solve_block(const Problem &problem, const Staging &staging, int64_t begin, int64_t size,
                       Block::Mode mode) {
    HBN_TRY(Workspace::begin(kWorkspaceVectors, size));
    Block block(problem, staging, begin, size, mode);
    HBN_TRY(block.stage());
    HBN_TRY(solve(block));
    return block.store_outputs();
}

}  // namespace

hbn_status run(Operation operation, const Given *given) {
    HBN_TRY(check_context());
    Problem problem;
    HBN_TRY(check(operation, given, &problem));
    if (problem.is_solved) {
        return HBN_OK;
    }
    const Staging staging(problem);
    const int64_t per_block =
        std::min(staging.channels(), channels_per_block(problem.values, problem.channels));
    // All that can fail does so before anything is written: memory, and kernels that the build left out.
    const hbn_tensor *x = problem.has_tensors ? &problem.values.tensor(Arg::x) : nullptr;
    const bool rehearses =
        !has_every_kernel();  // and loads tuned entries, whose thresholds tell how much to book
    Call memory;
    HBN_TRY(memory.begin(kWorkspaceVectors, per_block, x, staging.scratch_bytes()));
    if (rehearses) {
        HBN_TRY(solve_block(problem, staging, 0, per_block, Block::Mode::rehearse));
    }
    return for_each_block(problem.channels, per_block, [&](int64_t begin, int64_t size) {
        return solve_block(problem, staging, begin, size, Block::Mode::run);
    });
}

}  // namespace hbn::internal
