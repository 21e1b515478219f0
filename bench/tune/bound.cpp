#include "bench/tune/bound.h"

#include "bench/memory_bound.h"

namespace hbn::tune {

bool Bound::exists(const KernelCall &call, hbn_dtype dtype) {
    int inputs = 0, outputs = 0;
    for (const KernelTensor &tensor : tensors_of(call.kernel, dtype)) {
        (tensor.is_output ? outputs : inputs)++;
        if (compare::is_mask(tensor.buffer)) {
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
    bench::detail::Move move((buffers.*inputs_[0]).data(),
                             inputs_[1] ? (buffers.*inputs_[1]).data() : nullptr,
                             (buffers.*output_).data(), bytes, streaming_);
    if (threads_ == 1 || bytes < bench::kFewBytes) {
        bench::detail::move_part(move, 0, move.floats);
    } else {
        bench::team_of(threads_).run(bench::detail::move_share, &move);
    }
}

}  // namespace hbn::tune
