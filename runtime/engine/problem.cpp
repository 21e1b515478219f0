#include "problem.h"

#include "runtime/checks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace hbn::internal {

namespace {

// What a call was given for each argument of its operation.
class Arguments {
public:
    Arguments(Operation operation, const Given *given) : row_(row(operation)), given_(given) {
    }

    const OperationRow &uses() const {
        return row_;
    }
    // Null where the operation has no such argument.
    const Given *find(Arg a) const {
        const int i = row_.use_of[int(a)];
        return i ? &given_[i - 1] : nullptr;
    }
    const hbn_tensor *tensor(Arg a) const {
        const Given *g = find(a);
        return g ? g->tensor : nullptr;
    }
    const hbn_vector *vector(Arg a) const {
        const Given *g = find(a);
        return g && g->kind == Given::Kind::vector ? g->vector : nullptr;
    }
    double number(Arg a) const {
        return find(a)->number;
    }
    const Given &of(const Use &use) const {
        return given_[&use - row_.uses];
    }

private:
    const OperationRow &row_;
    const Given *given_;
};

NamedTensor named(const Arguments &arguments, Arg a) {
    return {row(a).name, arguments.tensor(a)};
}

NamedVector named_vector(const Arguments &arguments, Arg a) {
    return {row(a).name, arguments.vector(a)};
}

bool is_required_input(const Use &use) {
    return role(use.arg) == Role::tensor && use.direction == Direction::in &&
           use.presence == Presence::required;
}

// The tensors that must be there, all like the first.
hbn_status check_inputs(const Arguments &arguments) {
    NamedTensor first{};
    for (const Use &use : arguments.uses()) {
        if (!is_required_input(use)) {
            continue;
        }
        const NamedTensor mine = named(arguments, use.arg);
        if (first.tensor) {
            HBN_TRY(check_tensor_like(mine, first));
            HBN_TRY(check_device_supported(first.tensor->device));
        } else {
            HBN_TRY(check_tensor(mine));
            first = mine;
        }
    }
    return HBN_OK;
}

// Tensors that come after vectors in the order of checks: outputs, and what may be absent.
hbn_status check_other_tensors(const Arguments &arguments, const hbn_tensor &x) {
    HBN_TRY(check_device_supported(x.device));
    for (const Use &use : arguments.uses()) {
        const bool may_be_absent = use.presence != Presence::required;
        if (!is_tensor(use.arg) || is_required_input(use) ||
            (may_be_absent && !arguments.of(use).tensor)) {
            continue;
        }
        const NamedTensor mine = named(arguments, use.arg);
        HBN_TRY(role(use.arg) == Role::mask ? check_mask(mine, x)
                                            : check_tensor_like(mine, {"x", &x}));
    }
    return HBN_OK;
}

// Which statistics the operation goes by, and whether they are there.
hbn_status check_statistics(const Arguments &arguments, const hbn_tensor &x, Problem *p) {
    const Given *training = arguments.find(Arg::training);
    const Given *eps = arguments.find(Arg::eps);
    const Given *running_mean = arguments.find(Arg::running_mean);
    for (const Use &use : arguments.uses()) {
        if (role(use.arg) == Role::statistic && use.direction == Direction::in &&
            use.presence == Presence::required && arguments.of(use).kind == Given::Kind::vector) {
            HBN_TRY(check_defined(named_vector(arguments, use.arg), true));
        }
    }
    if (!training) {
        p->batch_statistics = true;
        return eps ? check_eps(eps->number, true) : HBN_OK;
    }
    const Given *momentum = arguments.find(Arg::momentum);
    if (!momentum) {
        // Forward ran before, by the statistics that are given.
        p->batch_statistics = training->number != 0;
        return check_given_statistics(p->batch_statistics, arguments.vector(Arg::mean),
                                      arguments.vector(Arg::invstd), running_mean->vector,
                                      arguments.vector(Arg::running_var), eps->number);
    }
    HBN_TRY(check_both_or_neither(named_vector(arguments, Arg::running_mean),
                                  named_vector(arguments, Arg::running_var)));
    p->batch_statistics = training->number != 0 || !running_mean->vector;
    p->updates_running_statistics =
        training->number != 0 && running_mean->vector && momentum->number != 0;
    if (p->batch_statistics) {
        HBN_TRY(check_batch_size(x));
    }
    HBN_TRY(check_eps(eps->number, p->batch_statistics));
    return check_momentum(momentum->number);
}

hbn_status check_activation(const hbn_activation *given, Problem *p) {
    if (!given) {
        return fail(HBN_INVALID_ARGUMENT, text::required, "activation");
    }
    const double alpha = given->alpha, beta = given->beta;
    const double infinity = std::numeric_limits<double>::infinity();
    const auto set = [&](Activation activation, double slope, double low, double high) {
        p->activation = activation;
        p->values.set(Arg::slope, slope);
        p->values.set(Arg::low, low);
        p->values.set(Arg::high, high);
    };
    switch (raw(given->kind)) {
#define HBN_ACTIVATION(name, c_name, compiled, forward, backward, slope, low, high) \
    case c_name:                                                                    \
        set(Activation::name, slope, low, high);                                    \
        break;
#include "runtime/operations.def"
    default:
        return fail(HBN_INVALID_ARGUMENT, text::unknown_activation, int(raw(given->kind)));
    }
    if (p->activation == Activation::leaky_relu && !std::isfinite(alpha)) {
        return fail(HBN_INVALID_ARGUMENT, text::slope_finite);
    }
    if (p->activation == Activation::clip && !(alpha <= beta)) {
        return fail(HBN_INVALID_ARGUMENT, text::clip_order);
    }
    return HBN_OK;
}

// Which of residual, mask and grad_residual an activation goes with.
hbn_status check_addition(const Arguments &arguments, Problem *p) {
    const bool residual = arguments.tensor(Arg::residual), mask = arguments.tensor(Arg::mask);
    const bool relu = p->activation == Activation::relu;
    if (p->operation == Operation::activation_forward) {
        p->adds_residual = residual;
        if (relu && residual && p->batch_statistics && !mask) {
            return fail(HBN_INVALID_ARGUMENT, text::required, "mask");
        }
        return mask && !(relu && residual) ? fail(HBN_INVALID_ARGUMENT, text::mask_without_relu)
                                           : HBN_OK;
    }
    p->adds_residual = residual || mask || arguments.tensor(Arg::grad_residual);
    if (!p->adds_residual) {
        return HBN_OK;
    }
    if (mask && !relu) {
        return fail(HBN_INVALID_ARGUMENT, text::mask_without_relu);
    }
    if (relu && !mask) {
        return fail(HBN_INVALID_ARGUMENT, text::required, "mask");
    }
    if (!relu && !residual && p->activation != Activation::identity) {
        return fail(HBN_INVALID_ARGUMENT, text::required, "residual");
    }
    return arguments.tensor(Arg::grad_residual)
               ? HBN_OK
               : fail(HBN_INVALID_ARGUMENT, text::required, "grad_residual");
}

// What a parameter's dtype is judged by. Beside moments, which have none, running statistics may be of any tensors'
// dtype whose parameters are of the problem's.
hbn_dtype dtype_beside(const hbn_vector &v, const Problem &p) {
    const bool narrow = raw(v.dtype) == HBN_BFLOAT16 || raw(v.dtype) == HBN_FLOAT16;
    return !p.has_tensors && p.parameter_dtype == HBN_FLOAT32 && narrow ? v.dtype : p.tensor_dtype;
}

// Of the vectors from the first to the last: all sizes, then what else they must be.
hbn_status check_vectors(const Arguments &arguments, const Problem &p, int first, int last,
                         VectorDType kind) {
    const OperationRow &uses = arguments.uses();
    const hbn_tensor *x = arguments.tensor(Arg::x);
    const hbn_device device = x ? x->device : HBN_CPU;
    for (int i = first; i < last; i++) {
        const Use &use = uses.uses[uses.vectors[i]];
        const Given &g = arguments.of(use);
        if (g.kind != Given::Kind::vector) {
            continue;
        }
        if (g.vector) {
            HBN_TRY(check_vector_size(row(use.arg).name, *g.vector, p.channels));
        } else if (use.presence == Presence::required) {
            return fail(HBN_INVALID_ARGUMENT, text::required, row(use.arg).name);
        }
    }
    for (int i = first; i < last; i++) {
        const Use &use = uses.uses[uses.vectors[i]];
        const Given &g = arguments.of(use);
        if (g.kind == Given::Kind::vector && g.vector) {
            HBN_TRY(check_vector(row(use.arg).name, *g.vector, dtype_beside(*g.vector, p), kind,
                                 device));
        }
    }
    return HBN_OK;
}

hbn_status check_all_vectors(const Arguments &arguments, const Problem &p) {
    const OperationRow &uses = arguments.uses();
    HBN_TRY(check_vectors(arguments, p, 0, uses.num_parameters, VectorDType::parameter));
    HBN_TRY(
        check_vectors(arguments, p, uses.num_parameters, uses.num_vectors, VectorDType::float64));
    for (int i = uses.num_parameters; i < uses.num_vectors; i++) {
        const Use &use = uses.uses[uses.vectors[i]];
        const Given &g = arguments.of(use);
        if (g.kind == Given::Kind::array) {
            HBN_TRY(check_array(row(use.arg).name, g.array, p.channels));
        }
    }
    return HBN_OK;
}

bool is_used(const Use &use, const Problem &p) {
    return use.presence == Presence::batch     ? p.batch_statistics
           : use.presence == Presence::running ? !p.batch_statistics
                                               : true;
}

bool is_written(const Use &use, const Problem &p) {
    return use.direction == Direction::out ||
           (use.direction == Direction::inout &&
            (role(use.arg) != Role::parameter || p.updates_running_statistics));
}

// Keeps what the operation reads or writes. Running statistics are dropped where they are neither.
void keep_values(const Arguments &arguments, Problem *p) {
    for (const Use &use : arguments.uses()) {
        const Given &g = arguments.of(use);
        const bool unused_running = use.direction == Direction::inout && p->batch_statistics &&
                                    role(use.arg) == Role::parameter && !is_written(use, *p);
        if (!is_used(use, *p) || unused_running) {
            continue;
        }
        switch (g.kind) {
        case Given::Kind::tensor:
            if (g.tensor) {
                p->values.set(use.arg, *g.tensor);
            }
            break;
        case Given::Kind::vector:
            if (g.vector) {
                p->values.set(use.arg, *g.vector);
            }
            break;
        case Given::Kind::array:
            if (g.array) {
                hbn_vector v{};
                v.data = const_cast<double *>(g.array);
                v.dtype = HBN_FLOAT64;
                v.size = p->channels;
                v.stride = 1;
                p->values.set(use.arg, v);
            }
            break;
        case Given::Kind::number:
            p->values.set(use.arg, g.number);
            break;
        case Given::Kind::activation:
            break;
        }
    }
}

hbn_status check_memory_overlap(const Arguments &arguments, const Problem &p) {
    Footprints inputs, outputs;
    const char *in_place = nullptr, *in_place_of = nullptr;
    for (const Use &use : arguments.uses()) {
        const Given &g = arguments.of(use);
        if (g.kind == Given::Kind::number || g.kind == Given::Kind::activation) {
            continue;
        }
        const bool written = is_written(use, p);
        if (written && !is_used(use, p)) {
            continue;
        }
        const char *name = row(use.arg).name;
        Footprints &mine = written ? outputs : inputs;
        if (g.kind == Given::Kind::tensor) {
            mine.add(NamedTensor{name, g.tensor});
        } else if (g.kind == Given::Kind::vector) {
            mine.add(NamedVector{name, g.vector});
        } else {
            mine.add(name, g.array, p.channels);
        }
        if (written && g.kind == Given::Kind::tensor && g.tensor && use.in_place_of != Arg::none &&
            !p.values.has_any(use.unless)) {
            in_place = name;
            in_place_of = row(use.in_place_of).name;
        }
    }
    return check_overlap(inputs, outputs, in_place, in_place_of);
}

void write_zeros(const hbn_vector &v) {
    const int bytes = element_size(v.dtype);
    for (int64_t c = 0; c < v.size; c++) {
        std::memset(static_cast<char *>(v.data) + c * v.stride * bytes, 0, size_t(bytes));
    }
}

void solve_empty(Problem *p) {
    for (const Use &use : row(p->operation)) {
        if (use.direction == Direction::out && is_vector(use.arg) && p->values.has(use.arg)) {
            write_zeros(p->values.vector(use.arg));
        }
    }
    p->is_solved = true;
}

bool wants_anything(const Problem &p) {
    for (const Use &use : row(p.operation)) {
        if (is_written(use, p) && p.values.has(use.arg)) {
            return true;
        }
    }
    return false;
}

hbn_status check_tensor_operation(const Arguments &arguments, Problem *p) {
    HBN_TRY(check_inputs(arguments));
    const hbn_tensor &x = *arguments.tensor(Arg::x);
    p->channels = x.sizes[1];
    p->count = count_of(x);
    p->tensor_dtype = x.dtype;
    p->parameter_dtype = statistic_dtype(x.dtype);
    HBN_TRY(check_statistics(arguments, x, p));
    if (const Given *activation = arguments.find(Arg::activation)) {
        HBN_TRY(check_activation(activation->activation, p));
    }
    HBN_TRY(check_all_vectors(arguments, *p));
    if (arguments.find(Arg::activation)) {
        HBN_TRY(check_addition(arguments, p));
    }
    HBN_TRY(check_other_tensors(arguments, x));
    keep_values(arguments, p);
    HBN_TRY(check_memory_overlap(arguments, *p));
    if (is_empty(x)) {
        solve_empty(p);
        return HBN_OK;
    }
    if (const Given *count = arguments.find(Arg::total_count)) {
        HBN_TRY(check_count(count->number));
    }
    p->is_solved = !wants_anything(*p);
    return HBN_OK;
}

// On moments: of what was summed before, of tensors that are not here.
hbn_status check_moments_operation(const Arguments &arguments, Problem *p) {
    p->has_tensors = false;
    const double channels = arguments.number(Arg::channels);
    if (!(channels >= 0 && channels < double(INT64_MAX >> 8))) {
        return fail(HBN_INVALID_ARGUMENT, text::size_overflow, "moments");
    }
    p->channels = int64_t(channels);
    for (const Arg a : {Arg::count, Arg::count_a, Arg::count_b}) {
        const Given *count = arguments.find(a);
        if (count && !(count->number >= 0 && std::isfinite(count->number))) {
            return fail(HBN_INVALID_ARGUMENT, text::count_non_negative, count->number);
        }
    }
    const bool finalizes = arguments.find(Arg::momentum);
    if (finalizes) {
        const double count = arguments.number(Arg::count);
        const hbn_vector *running_mean = arguments.vector(Arg::running_mean);
        const hbn_vector *running_var = arguments.vector(Arg::running_var);
        HBN_TRY(check_eps(arguments.number(Arg::eps), true));
        HBN_TRY(
            check_both_or_neither({"running_mean", running_mean}, {"running_var", running_var}));
        HBN_TRY(check_momentum(arguments.number(Arg::momentum)));
        for (const hbn_vector *v : {running_mean, running_var}) {
            if (v && raw(v->dtype) == HBN_FLOAT64) {
                p->tensor_dtype = p->parameter_dtype = HBN_FLOAT64;
            }
        }
        p->batch_statistics = true;
        p->count = count;
        p->updates_running_statistics =
            running_mean && arguments.number(Arg::momentum) != 0 && count > 0;
        HBN_TRY(check_all_vectors(arguments, *p));
        if (p->updates_running_statistics && count == 1) {
            return fail(HBN_INVALID_ARGUMENT, text::one_count, count);
        }
    } else {
        p->tensor_dtype = p->parameter_dtype = HBN_FLOAT64;
        HBN_TRY(check_all_vectors(arguments, *p));
    }
    keep_values(arguments, p);
    HBN_TRY(check_memory_overlap(arguments, *p));
    if (finalizes && p->count == 0) {
        solve_empty(p);
    }
    // A sample of no values changes nothing.
    p->is_solved = p->is_solved || (!finalizes && arguments.number(Arg::count_b) == 0);
    p->is_solved = p->is_solved || p->channels == 0;
    return HBN_OK;
}

}  // namespace

hbn_status check(Operation operation, const Given *given, Problem *problem) {
    problem->operation = operation;
    const Arguments arguments(operation, given);
    return arguments.find(Arg::x) ? check_tensor_operation(arguments, problem)
                                  : check_moments_operation(arguments, problem);
}

}  // namespace hbn::internal
