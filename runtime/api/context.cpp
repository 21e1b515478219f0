#include <hbn/context.h>

#include "errors.h"

namespace hbn {

using internal::throw_on_error;

Context::Context(const ContextOptions &options) {
    hbn_context_options o{};
    o.num_threads = options.num_threads;
    o.parallel_for = options.parallel_for;
    o.parallel_for_context = options.parallel_for_context;
    o.allocate = options.allocate;
    o.deallocate = options.deallocate;
    o.allocator_context = options.allocator_context;
    o.instruction_set = options.instruction_set;
    o.device = hbn_device(options.device);
    o.device_ordinal = options.device_ordinal;
    o.stream = options.stream;
    throw_on_error(hbn_context_create(&o, &context_));
}

void Context::release_scratch() {
    if (context_) {
        hbn_context_release_scratch(context_);
    }
}

}  // namespace hbn
