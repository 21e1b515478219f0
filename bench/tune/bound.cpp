#include "bench/tune/bound.h"

namespace hbn::tune {

using compare::Buffers;

namespace {

// Where telling others takes longer than the work, one thread moves the bytes faster.
constexpr size_t kSmall = 1 << 20;

}  // namespace

bool Bound::exists(const KernelCall &call, hbn_dtype dtype) {
    int inputs = 0, outputs = 0;
    for (const KernelTensor &tensor : tensors_of(call.kernel, dtype)) {
        (tensor.is_output ? outputs : inputs)++;
        if (tensor.buffer == &Buffers::mask || tensor.buffer == &Buffers::out_mask) {
            return false;
        }
    }
    return (inputs == 1 || inputs == 2) && outputs == 1;
}

Bound::Bound(const KernelCall &call, hbn_dtype dtype, int threads, bool streaming)
    : threads_(threads), streaming_(streaming) {
    int inputs = 0;
    for (const KernelTensor &tensor : tensors_of(call.kernel, dtype)) {
        (tensor.is_output ? output_ : inputs_[inputs++]) = tensor.buffer;
    }
}

void Bound::run(const compare::Buffers &buffers) {
    const size_t bytes = size_t(buffers.form.span()) * compare::bytes_of(buffers.form.dtype);
    bench::detail::Move move{(buffers.*inputs_[0]).data<float>(),
                             inputs_[1] ? (buffers.*inputs_[1]).data<float>() : nullptr,
                             (buffers.*output_).data<float>(), bytes / 4 / 16 * 16, streaming_};
    if (threads_ == 1 || bytes < kSmall) {
        bench::detail::move_part(move, 0, move.floats);
        return;
    }
    if (!team_) {
        team_ = std::make_unique<bench::Team>(threads_);
    }
    team_->run(bench::detail::move_share, &move);
}

}  // namespace hbn::tune
