#include "staging.h"

#include "block.h"
#include "copy.h"
#include "kernels.h"
#include "pieces.h"
#include "runtime/internal.h"

#include <algorithm>
#include <cstring>

namespace hbn::internal {

namespace {

// Their values were found by measuring; bench/near_dense.cpp shows what they come to.
using namespace copy_thresholds;

int64_t test_bytes = 0;  // a test's limit to bytes of pieces, wholes and blocks; 0 for none

constexpr int64_t kPage = 4096;
// Copies begin at different places of a page: see runtime/scratch.cpp.
constexpr int64_t kPlace = 320;

// Tensors go to a device as they are, and what is fast there is another question.
#ifdef HBN_DEVICE_RUNTIME
constexpr bool kOnDevice = true;
#else
constexpr bool kOnDevice = false;
#endif

constexpr int kReduced[3] = {0, 2, 3};  // N, H, W
constexpr int kChannel = 1;

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// As many as fit in `most`, and the last part not much smaller than the others.
int64_t even_share(int64_t all, int64_t most) {
    return ceil_div(all, ceil_div(all, std::max<int64_t>(most, 1)));
}

int64_t elements_of(const hbn_tensor &t) {
    return t.sizes[0] * t.sizes[1] * t.sizes[2] * t.sizes[3];
}

bool same_view(const hbn_tensor &a, const hbn_tensor &b) {
    return a.data == b.data && a.dtype == b.dtype &&
           std::equal(a.strides, a.strides + 4, b.strides);
}

// Whether the tensor is dense in this order, but for gaps that kernels step over: after each step along the channels, and
// between channels where each is wide by itself.
bool conforms_to(const Order &order, const hbn_tensor &t) {
    const int64_t bytes = element_size(t.dtype);
    int64_t next = 1;
    bool after_channels = false, dense_channels = false;
    for (const int d : order) {
        const int64_t size = t.sizes[d], stride = t.strides[d];
        if (size == 1) {
            if (d == kChannel) {
                after_channels = true;
                dense_channels = next == 1;
            }
            continue;
        }
        const bool gap = stride > next;
        const bool may_have_gap = after_channels  ? !dense_channels || next * bytes >= wide_row
                                  : d == kChannel ? next > 1 && next * bytes >= wide_row
                                                  : false;
        if (stride != next && !(gap && may_have_gap)) {
            return false;
        }
        after_channels = d == kChannel;
        dense_channels = after_channels && stride == 1;
        next = stride * size;
    }
    return true;
}

// How many elements lie next to each other in this order, from its first on.
int64_t dense_run(const Order &order, const hbn_tensor &t) {
    int64_t run = 1;
    for (const int d : order) {
        if (t.sizes[d] != 1) {
            if (t.strides[d] != run) {
                break;
            }
            run *= t.sizes[d];
        }
    }
    return run;
}

// Whether copies from this tensor to the order are of so many bytes at once that they cost what their memory does.
bool is_in_long_runs(const Order &order, const hbn_tensor &t) {
    return dense_run(order, t) * element_size(t.dtype) >= wide_row;
}

int64_t bytes_or_test(int64_t bytes) {
    return test_bytes > 0 ? std::min(test_bytes, bytes) : bytes;
}

template<typename Visit>
void for_each_view(const Values &values, Visit visit) {
    const hbn_tensor *seen[kTensors];
    int count = 0;
    values.for_each_tensor([&](Arg a) {
        const hbn_tensor &t = values.tensor(a);
        const auto is_same = [&](const hbn_tensor *other) { return same_view(*other, t); };
        if (std::none_of(seen, seen + count, is_same)) {
            seen[count++] = &t;
            visit(t);
        }
    });
}

// Whether kernels are fast on these tensors, all of a problem, where they are.
bool all_suit_kernels(const Values &values, const Problem &problem) {
    const bool reduces = takes_sums(problem);
    const Layouts available = layouts_of(problem.tensor_dtype);
    const hbn_tensor *tensors[kMostTensors];
    int count = 0;
    bool suit = true;
    for_each_view(values, [&](const hbn_tensor &t) {
        // More than any kernel takes are looked at in groups, each with the first.
        if (count == kMostTensors) {
            suit = suit && suit_kernels(tensors, count, reduces, available);
            count = 1;
        }
        tensors[count++] = &t;
    });
    return suit && suit_kernels(tensors, count, reduces, available);
}

}  // namespace

void set_max_staged_bytes(int64_t bytes) {
    test_bytes = bytes;
}

bool is_dense(const Order &order, const hbn_tensor &t) {
    return dense_run(order, t) == elements_of(t);
}

void set_dense_strides(const Order &order, hbn_tensor *t) {
    int64_t stride = 1;
    for (const int d : order) {
        t->strides[d] = stride;
        stride *= t->sizes[d];
    }
}

Order dimension_order(const int64_t *sizes, const int64_t *strides) {
    Order order{3, 2, 1, 0};
    // Positive when `inner` belongs outside of `outer`, 0 when unknown.
    const auto compare = [&](int inner, int outer) {
        const int64_t a = strides[inner], b = strides[outer];
        if (a == 0 || b == 0) {
            return 0;
        }
        if (a != b) {
            return a < b ? -1 : 1;
        }
        return sizes[inner] > sizes[outer] ? 1 : 0;
    };
    for (int i = 1; i < 4; i++) {
        int current = i;
        for (int j = i - 1; j >= 0; j--) {
            const int order_of_pair = compare(order[j], order[current]);
            if (order_of_pair > 0) {
                std::swap(order[j], order[current]);
                current = j;
            } else if (order_of_pair < 0) {
                break;
            }
        }
    }
    return order;
}

Staging::Staging(const Problem &problem) {
    if (kOnDevice || !problem.has_tensors) {
        return;
    }
    const hbn_tensor &x = problem.values.tensor(Arg::x);
    if (elements_of(x) < fewest_elements) {
        return;
    }
    Values values = problem.values;
    if (!reads_x(problem)) {
        values.remove(Arg::x);
    }
    if (all_suit_kernels(values, problem)) {
        return;
    }
    const bool reduces = takes_sums(problem);
    used_ = true;
    choose_order(problem.operation, values);
    for (int d = 0; d < 3; d++) {
        piece_[d] = x.sizes[kReduced[d]];
    }
    channels_ = x.sizes[kChannel];
    // Kernels with an activation that take sums are for one piece.
    const bool is_fused = !problem.is_plain() && reduces;
    if (!is_fused && single_steps_suit(values, problem)) {
        return;
    }
    const int64_t element_bytes = element_size(x.dtype);
    double all_bytes = 0;  // expanded tensors may have any number
    int views = 0;
    bool slow_copies = false;
    for_each_view(values, [&](const hbn_tensor &t) {
        views++;
        all_bytes += double(elements_of(t)) * element_size(t.dtype);
        if (!conforms(t)) {
            copies_++;
            slow_copies = slow_copies || !is_in_long_runs(order_, t);
        }
    });
    slots_ = copies_;
    const int64_t whole = slow_copies || is_fused ? whole_bytes : piece_bytes;
    if (elements_of(x) * element_bytes > bytes_or_test(whole)) {
        channels_ = std::min(channels_, most_channels);
        if (!choose_blocks(values, x.sizes, element_bytes)) {
            choose_pieces(x.sizes, bytes_or_test(piece_bytes) / element_bytes);
            slots_ = views;  // a part of what conforms may not
        }
    }
    // Tensors that outgrow caches had better be read twice than written and read again, unless copies cost more.
    // By running statistics kernels may write the output before they read all of the input.
    outputs_hold_inputs_ = problem.batch_statistics && reduces &&
                           (all_bytes <= double(cached_bytes) || slow_copies || is_fused);
    const int64_t bytes = channels_ * piece_[0] * piece_[1] * piece_[2] * element_bytes;
    slot_bytes_ = (bytes + kPage - 1) / kPage * kPage + kPlace;
}

// That of most tensors, which then need no copies; outputs' before others, since they can hold copies of inputs.
void Staging::choose_order(Operation operation, const Values &values) {
    int most = -1;
    for (const bool outputs : {true, false}) {
        for (const Use &use : row(operation)) {
            if (!is_tensor(use.arg) || !values.has(use.arg) ||
                outputs != (use.direction != Direction::in)) {
                continue;
            }
            const hbn_tensor &t = values.tensor(use.arg);
            const Order order = dimension_order(t.sizes, t.strides);
            int conforming = 0;
            values.for_each_tensor(
                [&](Arg a) { conforming += conforms_to(order, values.tensor(a)); });
            if (conforming > most) {
                most = conforming;
                order_ = order;
            }
        }
    }
}

// Blocks of few channels are one piece each, and copied once. Not where channels are dense, and parts of rows would be.
bool Staging::choose_blocks(const Values &values, const int64_t *sizes, int64_t element_bytes) {
    const int64_t per_channel = sizes[0] * sizes[2] * sizes[3] * element_bytes;
    const int64_t fewest = std::min(sizes[kChannel], fewest_channels);
    bool dense_channels = false;
    for_each_view(values, [&](const hbn_tensor &t) {
        dense_channels = dense_channels || t.strides[kChannel] == 1;
    });
    const int64_t most = std::max(bytes_or_test(piece_bytes) / per_channel, fewest);
    if (dense_channels || most > bytes_or_test(block_bytes) / per_channel) {
        return false;
    }
    channels_ = even_share(channels_, most);
    return true;
}

// Along the outermost dimensions, the next only once there is one step of the first: then pieces of what conforms do.
void Staging::choose_pieces(const int64_t *sizes, int64_t most) {
    int64_t elements = channels_ * sizes[0] * sizes[2] * sizes[3];
    for (int i = 3; i >= 0; i--) {
        const int d = order_[size_t(i)];
        if (d == kChannel || elements <= most) {
            continue;
        }
        const int64_t others = elements / sizes[d];
        int64_t &mine = piece_[d == 0 ? 0 : size_t(d - 1)];
        mine = even_share(sizes[d], most / others);
        elements = others * mine;
    }
}

// Whether pieces of one step each along the outermost dimensions need no copies, and are worth calls of kernels.
bool Staging::single_steps_suit(const Values &values, const Problem &problem) {
    const int64_t *sizes = problem.values.tensor(Arg::x).sizes;
    int64_t elements = channels_ * sizes[0] * sizes[2] * sizes[3];
    if (elements < fewest_in_step) {
        return false;
    }
    Values steps = values;
    std::array<int64_t, 3> piece = piece_;
    for (int i = 3; i >= 0; i--) {
        const int d = order_[size_t(i)];
        if (d == kChannel) {
            continue;
        }
        elements /= sizes[d];
        if (elements < fewest_in_step) {
            return false;
        }
        piece[d == 0 ? 0 : size_t(d - 1)] = 1;
        values.for_each_tensor([&](Arg a) { steps.set(a, slice(steps.tensor(a), d, 0, 1)); });
        if (all_suit_kernels(steps, problem)) {
            piece_ = piece;
            return true;
        }
    }
    return false;
}

Arg Staging::held_by(const Use &output, const Problem &problem) const {
    const Values &values = problem.values;
    if (!outputs_hold_inputs_ || output.in_place_of == Arg::none || !values.has(output.arg) ||
        values.has_any(output.unless) || !conforms(values.tensor(output.arg))) {
        return Arg::none;
    }
    bool is_in_place = false;
    for (const Use &use : row(problem.operation)) {
        is_in_place = is_in_place || (is_tensor(use.arg) && use.direction == Direction::in &&
                                      values.has(use.arg) &&
                                      same_view(values.tensor(use.arg), values.tensor(output.arg)));
    }
    if (is_in_place) {
        return Arg::none;
    }
    if (!conforms(values.tensor(output.in_place_of))) {
        return output.in_place_of;
    }
    // Nothing is read after the output is written, and kernels that may run in place read x where they read the input
    // that they replace. With an activation that is so for one kernel on one piece.
    const bool one_kernel = problem.is_plain() || (copies_ == 1 && has_fused_kernel(problem));
    return one_kernel && !conforms(values.tensor(Arg::x)) ? Arg::x : Arg::none;
}

bool Staging::conforms(const hbn_tensor &t) const {
    return conforms_to(order_, t);
}

hbn_tensor Staging::dense_like(const hbn_tensor &t, char *scratch, int slot) const {
    hbn_tensor dense = t;
    dense.data = scratch + slot * slot_bytes_;
    set_dense_strides(order_, &dense);
    return dense;
}

hbn_status Staged::add(const hbn_tensor &t, bool is_output, hbn_tensor *result) {
    *result = t;
    if (staging_.conforms(t)) {
        return HBN_OK;
    }
    for (int i = 0; i < count_; i++) {
        if (same_view(all_[i].original, t)) {
            all_[i].is_output = all_[i].is_output || is_output;
            *result = all_[i].copy;
            return HBN_OK;
        }
    }
    *result = staging_.dense_like(t, scratch_, count_);
    all_[count_++] = {t, *result, is_output};
    return is_output ? HBN_OK : copy(t, *result);
}

hbn_status Staged::store_outputs() const {
    for (int i = 0; i < count_; i++) {
        if (all_[i].is_output) {
            HBN_TRY(copy(all_[i].copy, all_[i].original));
        }
    }
    return HBN_OK;
}

}  // namespace hbn::internal
