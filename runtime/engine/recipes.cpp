// How each operation comes about from kernels: a fused one where there is one that reaches the whole block, else its
// parts, which serve every dtype, every layout and tensors of any size.
#include "block.h"

#include "runtime/checks.h"

#include <string_view>
#include <utility>

namespace hbn::internal {

namespace {

// ---- kernels by name

// Whether `name` is these parts, one after the other.
constexpr bool consists_of(std::string_view name, std::string_view a, std::string_view b,
                           std::string_view c, std::string_view d) {
    for (const std::string_view part : {a, b, c, d}) {
        if (name.substr(0, part.size()) != part) {
            return false;
        }
        name.remove_prefix(part.size());
    }
    return name.empty();
}

// The row "forward_training_add_relu_mask" for forward_training, an addition, relu and a mask.
constexpr Kernel find_fused(Kernel base, bool add, Activation activation, bool mask) {
    for (int i = 0; i < kKernels; i++) {
        if (consists_of(kKernelRows[i].name, row(base).name, add ? "_add_" : "_",
                        row(activation).name, mask ? "_mask" : "")) {
            return Kernel(i);
        }
    }
    return Kernel::none;
}

// That of `base` with what is fused into it; Kernel::none where there is none. Some write a mask unasked.
template<Kernel base>
Kernel fused_kernel(const Problem &p, bool with_mask) {
    struct Table {
        Kernel kernels[kActivations][2][2] = {};

        constexpr Table() {
            for (int a = 0; a < kActivations; a++) {
                for (const bool add : {false, true}) {
                    const Kernel plain = find_fused(base, add, Activation(a), false);
                    const Kernel masked = find_fused(base, add, Activation(a), true);
                    kernels[a][add][0] = plain;
                    kernels[a][add][1] = masked != Kernel::none ? masked : plain;
                }
            }
        }
    };
    static constexpr Table table;
    return p.is_plain() ? base : table.kernels[int(p.activation)][p.adds_residual][with_mask];
}

// ---- statistics

// The mean and m2 of x's channels, over its pieces, as values.
hbn_status reduce_moments(Block &b) {
    if (b.is_one_piece()) {
        return b.call(Kernel::stats);
    }
    Values values;
    values.set(Arg::x, b.tensor(Arg::x));
    Block parts(b, values), merged(b, Values());
    double count = 0;
    HBN_TRY(parts.for_each_piece([&] {
        HBN_TRY(parts.call(Kernel::stats));
        if (count == 0) {
            for (const Arg a : {Arg::mean, Arg::m2}) {
                if (!b.has(a)) {
                    b.set(a, b.scratch(HBN_FLOAT64));
                }
                if (!b.rehearses()) {
                    HBN_TRY(convert(parts.vector(a), b.vector(a)));
                }
            }
            merged.set(Arg::mean_a, b.vector(Arg::mean));
            merged.set(Arg::m2_a, b.vector(Arg::m2));
            merged.set(Arg::mean, b.vector(Arg::mean));
            merged.set(Arg::m2, b.vector(Arg::m2));
            merged.set(Arg::mean_b, parts.vector(Arg::mean));
            merged.set(Arg::m2_b, parts.vector(Arg::m2));
        }
        if (count > 0 || b.rehearses()) {
            merged.set(Arg::count_a, count);
            merged.set(Arg::count_b, parts.count());
            HBN_TRY(merged.call(Kernel::merge_moments));
        }
        count += parts.count();
        return HBN_OK;
    }));
    return HBN_OK;
}

// From the batch's mean and m2 to its invstd, and to the running statistics.
hbn_status finalize_moments(Block &b, double count) {
    const bool updates = b.problem().updates_running_statistics;
    if (updates) {
        b.set(Arg::new_running_mean, b.vector(Arg::running_mean));
        b.set(Arg::new_running_var, b.vector(Arg::running_var));
    } else {
        b.set(Arg::momentum, 0.0);
    }
    b.set(Arg::count, count);
    return b.call(Kernel::finalize_moments);
}

// Running statistics as maps take them: mean and invstd in float64.
hbn_status finalize_running_statistics(Block &b) {
    HBN_TRY(b.set_float64(Arg::mean, Arg::running_mean));
    b.set(Arg::variance, b.vector(Arg::running_var));
    return b.call(Kernel::invstd_from_variance);
}

// ---- forward

// y from mean and invstd, by the activation's own map.
hbn_status map_activation(Block &b) {
    const Problem &p = b.problem();
    b.set(Arg::add_residual, p.adds_residual);
    if (!p.adds_residual) {
        b.set(Arg::residual, b.tensor(Arg::x));  // any memory of its shape
    }
    return b.call_for_each_piece(b.has(Arg::mask) ? Kernel::activation_forward_relu_mask
                                                  : row(p.activation).forward);
}

hbn_status forward_by_batch_statistics(Block &b) {
    const Problem &p = b.problem();
    const bool finalizes = p.updates_running_statistics || b.has(Arg::mean) || b.has(Arg::invstd);
    const Kernel fused = fused_kernel<Kernel::forward_training>(p, b.has(Arg::mask));
    if (b.is_one_piece() && b.has_kernel(fused)) {
        HBN_TRY(b.call(fused));
        return finalizes ? finalize_moments(b, p.count) : HBN_OK;
    }
    HBN_TRY(reduce_moments(b));
    if (!p.is_plain()) {
        HBN_TRY(finalize_moments(b, p.count));
        return map_activation(b);
    }
    b.set(Arg::total_count, p.count);
    HBN_TRY(b.call_for_each_piece(Kernel::normalize));
    return finalizes ? finalize_moments(b, p.count) : HBN_OK;
}

hbn_status forward(Block &b) {
    const Problem &p = b.problem();
    if (p.batch_statistics) {
        return forward_by_batch_statistics(b);
    }
    const Kernel fused = fused_kernel<Kernel::forward_inference>(p, b.has(Arg::mask));
    if (b.has_kernel(fused)) {
        return b.call_for_each_piece(fused);
    }
    HBN_TRY(finalize_running_statistics(b));
    return map_activation(b);
}

// ---- backward

// sum(dy) and sum(dy * (x - mean)), and from these the gradients of weight and bias, the weight's times invstd; over
// pieces of tensors, as values.
hbn_status reduce_gradients(Block &b) {
    if (b.is_one_piece()) {
        return b.call(Kernel::backward_reduce);
    }
    Values values;
    values.set(Arg::grad_output, b.tensor(Arg::grad_output));
    values.set(Arg::x, b.tensor(Arg::x));
    values.set(Arg::mean, b.vector(Arg::mean));
    values.set(Arg::invstd, b.vector(Arg::invstd));
    Block parts(b, values);
    for (const Arg a : {Arg::sum_dy, Arg::sum_dy_xmu}) {
        if (!b.has(a)) {
            b.set(a, b.scratch(HBN_FLOAT64));
        }
    }
    const hbn_vector sum_dy = b.vector(Arg::sum_dy), sum_dy_xmu = b.vector(Arg::sum_dy_xmu);
    bool first = true;
    HBN_TRY(parts.for_each_piece([&] {
        HBN_TRY(parts.call(Kernel::backward_reduce));
        for (int64_t c = 0; c < sum_dy.size && !b.rehearses(); c++) {
            const double dy = load(parts.vector(Arg::sum_dy), c);
            const double dy_xmu = load(parts.vector(Arg::sum_dy_xmu), c);
            store(sum_dy, c, first ? dy : load(sum_dy, c) + dy);
            store(sum_dy_xmu, c, first ? dy_xmu : load(sum_dy_xmu, c) + dy_xmu);
        }
        first = false;
        return HBN_OK;
    }));
    HBN_TRY(b.prepare_output(Arg::grad_weight, b.parameter_dtype()));
    HBN_TRY(b.prepare_output(Arg::grad_bias, b.parameter_dtype()));
    for (int64_t c = 0; c < sum_dy.size && !b.rehearses(); c++) {
        store(b.vector(Arg::grad_weight), c, load(sum_dy_xmu, c) * load(b.vector(Arg::invstd), c));
        store(b.vector(Arg::grad_bias), c, load(sum_dy, c));
    }
    return HBN_OK;
}

// Through an activation and an addition that no kernel has fused: what reaches normalization's output takes the place of
// grad_output.
hbn_status differentiate_activation(Block &b) {
    const Problem &p = b.problem();
    if (!p.batch_statistics) {
        HBN_TRY(finalize_running_statistics(b));
    }
    b.set(Arg::add_residual, b.has(Arg::residual));
    if (!b.has(Arg::residual)) {
        b.set(Arg::residual, b.tensor(Arg::x));  // any memory of its shape
    }
    // It is the residual's gradient, too.
    b.set(Arg::grad_z, b.tensor(p.adds_residual ? Arg::grad_residual : Arg::grad_input));
    HBN_TRY(b.call_for_each_piece(b.has(Arg::mask) ? Kernel::activation_backward_relu_mask
                                                   : row(p.activation).backward));
    b.set(Arg::grad_output, b.tensor(Arg::grad_z));
    return HBN_OK;
}

hbn_status backward_by_batch_statistics(Block &b) {
    if (b.has(Arg::grad_input) && b.is_one_piece() && b.has_kernel(Kernel::backward_training)) {
        return b.call(Kernel::backward_training);
    }
    const bool maps = b.has(Arg::grad_input);
    HBN_TRY(reduce_gradients(b));
    b.set(Arg::total_count, b.problem().count);
    return maps ? b.call_for_each_piece(Kernel::backward_elemt) : HBN_OK;
}

// By running statistics grad_input needs no sums, and a kernel for both may write it first: not in place of what is
// still to be summed.
bool maps_before_it_sums(const Block &b) {
    return !b.problem().batch_statistics &&
           b.tensor(Arg::grad_input).data == b.tensor(Arg::grad_output).data;
}

hbn_status backward_by_running_statistics(Block &b) {
    const bool maps = b.has(Arg::grad_input);
    const bool reduces = b.has(Arg::grad_weight) || b.has(Arg::grad_bias);
    if (maps && reduces && b.is_one_piece() && b.has_kernel(Kernel::backward_inference) &&
        !maps_before_it_sums(b)) {
        return b.call(Kernel::backward_inference);
    }
    if (reduces) {
        HBN_TRY(finalize_running_statistics(b));
        HBN_TRY(reduce_gradients(b));
    }
    return maps ? b.call_for_each_piece(Kernel::backward_inference_input) : HBN_OK;
}

hbn_status backward(Block &b) {
    const Problem &p = b.problem();
    if (!p.is_plain()) {
        const Kernel fused = p.batch_statistics
                                 ? fused_kernel<Kernel::backward_training>(p, false)
                                 : fused_kernel<Kernel::backward_inference>(p, false);
        if (b.is_one_piece() && b.has_kernel(fused) && !maps_before_it_sums(b)) {
            return b.call(fused);
        }
        HBN_TRY(differentiate_activation(b));
    }
    return p.batch_statistics ? backward_by_batch_statistics(b) : backward_by_running_statistics(b);
}

// ---- derivatives of forward and of backward

struct Sums {
    hbn_vector plain, xmu;
};

// Of g and g * (x - center).
hbn_status reduce(const Block &b, const hbn_tensor &g, const hbn_tensor &x,
                  const hbn_vector &center, Sums *sums) {
    Values values;
    values.set(Arg::grad_output, g);
    values.set(Arg::x, x);
    values.set(Arg::mean, center);
    values.set(Arg::invstd, b.vector(Arg::invstd));
    Block reduction(b, values);
    HBN_TRY(reduce_gradients(reduction));
    *sums = {reduction.vector(Arg::sum_dy), reduction.vector(Arg::sum_dy_xmu)};
    return HBN_OK;
}

// As a projection needs them: none where statistics are constants.
hbn_status reduce_for_projection(Block &b, const hbn_tensor &g, Sums *sums) {
    if (b.problem().batch_statistics) {
        return reduce(b, g, b.tensor(Arg::x), b.vector(Arg::mean), sums);
    }
    HBN_TRY(b.set_zeros(Arg::sum));
    *sums = {b.vector(Arg::sum), b.vector(Arg::sum)};
    return HBN_OK;
}

// Makes mean and invstd values in either mode.
hbn_status load_statistics(Block &b) {
    b.set(Arg::total_count, b.problem().count);
    return b.problem().batch_statistics ? HBN_OK : finalize_running_statistics(b);
}

// With constant statistics, and a weight that doesn't vary, x has no part in y's tangent, and must not spoil it by being
// infinite: it is x's tangent normalized about 0.
bool needs_no_x(const Block &b, Arg weight_tangent) {
    return !b.problem().batch_statistics && !b.has(weight_tangent) &&
           b.has_kernel(Kernel::forward_inference);
}

hbn_status map_without_x(const Block &b, Arg x_tangent, Arg bias_tangent, Arg y_tangent) {
    Values values;
    values.set(Arg::x, b.tensor(x_tangent));
    values.set(Arg::y, b.tensor(y_tangent));
    values.set(Arg::running_var, b.vector(Arg::running_var));
    values.set(Arg::eps, b.number(Arg::eps));
    for (const auto &[from, to] :
         {std::pair(Arg::weight, Arg::weight), {bias_tangent, Arg::bias}}) {
        if (b.has(from)) {
            values.set(to, b.vector(from));
        }
    }
    Block map(b, values);
    return map.call_for_each_piece(Kernel::forward_inference);
}

hbn_status jvp(Block &b) {
    if (needs_no_x(b, Arg::weight_tangent)) {
        return map_without_x(b, Arg::x_tangent, Arg::bias_tangent, Arg::y_tangent);
    }
    HBN_TRY(load_statistics(b));
    Sums sums;
    HBN_TRY(reduce_for_projection(b, b.tensor(Arg::x_tangent), &sums));
    b.set(Arg::sum, sums.plain);
    b.set(Arg::sum_xmu, sums.xmu);
    return b.call_for_each_piece(Kernel::jvp_elemt);
}

// The gradient of backward's grad_output is a tangent of y.
hbn_status differentiate_by_grad_output(const Block &b, const Sums &of_ddx) {
    Values values;
    values.set(Arg::x_tangent, b.tensor(Arg::grad_grad_input));
    values.set(Arg::x, b.tensor(Arg::x));
    values.set(Arg::y_tangent, b.tensor(Arg::grad_grad_output));
    values.set(Arg::mean, b.vector(Arg::mean));
    values.set(Arg::invstd, b.vector(Arg::invstd));
    values.set(Arg::sum, of_ddx.plain);
    values.set(Arg::sum_xmu, of_ddx.xmu);
    values.set(Arg::total_count, b.problem().count);
    const std::pair<Arg, Arg> parameters[] = {{Arg::weight, Arg::weight},
                                              {Arg::grad_grad_weight, Arg::weight_tangent},
                                              {Arg::grad_grad_bias, Arg::bias_tangent}};
    for (const auto &[from, to] : parameters) {
        if (b.has(from)) {
            values.set(to, b.vector(from));
        }
    }
    Block map(b, values);
    return map.call_for_each_piece(Kernel::jvp_elemt);
}

hbn_status differentiate_by_x_and_weight(Block &b, const Sums &of_ddx) {
    const bool batch_statistics = b.problem().batch_statistics;
    const double count = b.problem().count;
    const bool maps = b.has(Arg::grad_input);
    Sums of_dy, of_both;
    HBN_TRY(reduce_for_projection(b, b.tensor(Arg::grad_output), &of_dy));
    // Near grad_grad_input's mean, where there are sums: there the sum of products cancels least.
    const hbn_vector center = b.scratch(HBN_FLOAT64);
    for (int64_t c = 0; c < center.size && !b.rehearses(); c++) {
        store(center, c, batch_statistics ? load(of_ddx.plain, c) / count : 0);
    }
    HBN_TRY(
        reduce(b, b.tensor(Arg::grad_output), b.tensor(Arg::grad_grad_input), center, &of_both));
    b.set(Arg::center, center);
    b.set(Arg::count, count);
    b.set(Arg::sum_dy_ddx, of_both.xmu);
    b.set(Arg::sum_dy, of_dy.plain);
    b.set(Arg::sum_dy_xmu, of_dy.xmu);
    b.set(Arg::sum_ddx, of_ddx.plain);
    b.set(Arg::sum_ddx_xmu, of_ddx.xmu);
    HBN_TRY(b.call(Kernel::double_backward_product));
    if (!maps) {
        return HBN_OK;
    }
    if (!batch_statistics) {
        b.set(Arg::product, of_ddx.plain);  // zeros
    }
    return b.call_for_each_piece(Kernel::double_backward_elemt);
}

hbn_status double_backward(Block &b) {
    HBN_TRY(load_statistics(b));
    const bool by_grad_output = b.has(Arg::grad_grad_output);
    const bool without_x = needs_no_x(b, Arg::grad_grad_weight);
    Sums of_ddx;
    HBN_TRY(reduce_for_projection(b, b.tensor(Arg::grad_grad_input), &of_ddx));
    if (b.has(Arg::grad_input) || b.has(Arg::grad_weight)) {
        HBN_TRY(differentiate_by_x_and_weight(b, of_ddx));
    }
    if (by_grad_output && without_x) {
        return map_without_x(b, Arg::grad_grad_input, Arg::grad_grad_bias, Arg::grad_grad_output);
    }
    return by_grad_output ? differentiate_by_grad_output(b, of_ddx) : HBN_OK;
}

// ---- moments

hbn_status merge_moments(Block &b) {
    if (b.number(Arg::count_a) == 0) {
        HBN_TRY(convert(b.vector(Arg::mean_b), b.vector(Arg::mean_a)));
        return convert(b.vector(Arg::m2_b), b.vector(Arg::m2_a));
    }
    b.set(Arg::mean, b.vector(Arg::mean_a));
    b.set(Arg::m2, b.vector(Arg::m2_a));
    return b.call(Kernel::merge_moments);
}

hbn_status finalize_given_moments(Block &b) {
    if (b.has(Arg::save_mean) && !b.rehearses()) {
        HBN_TRY(convert(b.vector(Arg::mean), b.vector(Arg::save_mean)));
    }
    return finalize_moments(b, b.problem().count);
}

}  // namespace

bool takes_sums(const Problem &p) {
    switch (p.operation) {
    case Operation::forward:
    case Operation::activation_forward:
    case Operation::jvp:
        return p.batch_statistics;
    case Operation::backward:
    case Operation::activation_backward:
        return p.batch_statistics || p.wants(Arg::grad_weight) || p.wants(Arg::grad_bias);
    case Operation::normalize:
    case Operation::backward_elemt:
        return false;
    default:
        return true;
    }
}

// Backward by running statistics needs it for sums and activations alone.
bool reads_x(const Problem &p) {
    const bool is_backward =
        p.operation == Operation::backward || p.operation == Operation::activation_backward;
    return !is_backward || takes_sums(p) || !p.is_plain();
}

bool has_fused_kernel(const Problem &p) {
    const bool mask = p.values.has(Arg::mask);
    const Kernel fused = p.operation == Operation::activation_forward
                             ? fused_kernel<Kernel::forward_training>(p, mask)
                             : fused_kernel<Kernel::backward_training>(p, false);
    return fused != Kernel::none && has_kernel(fused, p.tensor_dtype);
}

hbn_status solve(Block &b) {
    switch (b.problem().operation) {
    case Operation::forward:
    case Operation::activation_forward:
        return forward(b);
    case Operation::backward:
    case Operation::activation_backward:
        return backward(b);
    case Operation::jvp:
        return jvp(b);
    case Operation::double_backward:
        return double_backward(b);
    case Operation::stats:
        return reduce_moments(b);
    case Operation::normalize:
        return b.call_for_each_piece(Kernel::normalize);
    case Operation::backward_reduce:
        return reduce_gradients(b);
    case Operation::backward_elemt:
        return b.call_for_each_piece(Kernel::backward_elemt);
    case Operation::merge_moments:
        return merge_moments(b);
    case Operation::finalize_moments:
        return finalize_given_moments(b);
    case Operation::count:
        break;
    }
    return HBN_OK;
}

}  // namespace hbn::internal
