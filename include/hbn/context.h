/// @file context.h
/// What is not data: threads, memory, instruction set, device.
#ifndef HBN_CONTEXT_H
#define HBN_CONTEXT_H

#include <hbn/tensor_view.h>

#include <utility>

namespace hbn {

/// What a Context is made of. hbn.h has the types of the functions.
struct ContextOptions {
    /// How many threads run a call's tasks; 0: HBN_NUM_THREADS (environment), else one per processor.
    int num_threads = 0;
    /// The caller's thread pool, of which num_threads may run tasks at once (more wait); null: threads of the
    /// context's own.
    hbn_parallel_for parallel_for = nullptr;
    void *parallel_for_context = nullptr;  ///< passed on to each call of parallel_for
    hbn_allocate allocate = nullptr;       ///< where scratch memory comes from; null: malloc
    hbn_deallocate deallocate = nullptr;   ///< where it goes; null with allocate, only
    void *allocator_context = nullptr;     ///< passed on to allocate and deallocate
    /// One of hbn_instruction_sets(); null: the best this processor has, or the one that HBN_INSTRUCTION_SET
    /// (environment) names.
    const char *instruction_set = nullptr;
    Device device = Device::cpu;  ///< where kernels run; std::runtime_error for any other yet
    int device_ordinal = 0;       ///< which device of that kind
    void *stream = nullptr;       ///< the device's queue that work is put in
};

/// Threads and memory that calls use where a UseContext says so; hbn_context in hbn.h tells all about it. Movable; a
/// moved-from one may only be destroyed or assigned to.
class Context {
public:
    /// @param options  see there; not needed afterwards, but for what its pointers point to
    /// @throws std::invalid_argument, std::runtime_error, std::bad_alloc  as hbn_context_create()
    explicit Context(const ContextOptions &options = {});
    /// No call may be using it, and no UseContext exist.
    ~Context() {
        hbn_context_destroy(context_);
    }
    /// @param other  gives its own away
    Context(Context &&other) noexcept : context_(std::exchange(other.context_, nullptr)) {
    }
    /// Destroys what it has.
    /// @param other  gives its own away
    /// @return this
    Context &operator=(Context &&other) noexcept {
        if (this != &other) {
            hbn_context_destroy(context_);
            context_ = std::exchange(other.context_, nullptr);
        }
        return *this;
    }
    Context(const Context &) = delete;             ///< a context is one thing
    Context &operator=(const Context &) = delete;  ///< a context is one thing

    /// Frees the memory kept for later calls; that of calls in progress stays.
    void release_scratch();

    /// @return the same for the C interface; owned by this object
    hbn_context *get() const {
        return context_;
    }

private:
    hbn_context *context_ = nullptr;
};

/// Has this thread's calls use a context, until the end of its scope.
class UseContext {
public:
    /// @param context  must outlive this object
    explicit UseContext(const Context &context) : before_(hbn_use_context(context.get())) {
    }
    /// Brings the one before back.
    ~UseContext() {
        hbn_use_context(before_);
    }
    UseContext(const UseContext &) = delete;             ///< ends once
    UseContext &operator=(const UseContext &) = delete;  ///< ends once

private:
    hbn_context *before_;
};

}  // namespace hbn

#endif
