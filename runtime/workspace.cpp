#include "workspace.h"

#include "checks.h"
#include "context.h"

namespace hbn::internal {

hbn_status Workspace::begin(int vectors, int64_t channels) {
    CallMemory *call = thread_state.call;
    if (!call) {
        return fail(HBN_OUT_OF_MEMORY, text::out_of_memory, (long long)channels);
    }
    call->reset_workspace(channels);
    // Less than Call::begin() booked, but for a mistake in this library.
    return call->workspace.grow(call->context->allocator, uint64_t(vectors * call->vector_bytes))
               ? HBN_OK
               : fail(HBN_OUT_OF_MEMORY, text::out_of_memory, (long long)channels);
}

hbn_vector Workspace::take(hbn_dtype dtype) {
    CallMemory &call = *thread_state.call;
    const hbn_vector v{call.workspace.data() + call.workspace_used, dtype, call.channels, 1,
                       HBN_CPU};
    call.workspace_used += call.vector_bytes;
    return v;
}

}  // namespace hbn::internal
