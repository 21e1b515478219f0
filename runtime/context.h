// What is not data: a context's settings, the memory that its calls use, and which of both this thread's call has.
//
// Every operation of the C interface has one Call, begun after its checks and before it writes. Kernels and the
// functions that they call find it through thread_state.
#ifndef HBN_RUNTIME_CONTEXT_H
#define HBN_RUNTIME_CONTEXT_H

#include "halide/scratch.h"

#include <hbn/hbn.h>

#include <atomic>
#include <cstdint>

namespace hbn::internal {

class Pool;
class ExecutorLoop;
struct CallMemory;

// The caller's way to run a parallel loop; none where parallel_for is null.
struct Executor {
    hbn_parallel_for parallel_for = nullptr;
    void *context = nullptr;
};

}  // namespace hbn::internal

struct hbn_context {
    // -1, of the default context, where the environment says something that makes no sense.
    std::atomic<int> num_threads{-1};
    std::atomic<int> instruction_set{-1};  // its index in hbn_instruction_sets()
    hbn::internal::Executor executor;
    hbn::internal::Allocator allocator;

    const uint64_t id;  // never that of another context, also after this one is gone
    // One for each call that was ever in progress at the same time; a call owns one while it is `busy`. The list only
    // grows, so that walking it needs no lock, and a fork leaves it whole.
    std::atomic<hbn::internal::CallMemory *> memories{nullptr};
    std::atomic<hbn::internal::Pool *> pool{nullptr};  // from the first parallel loop on
    hbn_context *next = nullptr;                       // in the list of all contexts

    explicit hbn_context(uint64_t id) : id(id) {
    }
};

namespace hbn::internal {

// What one call at a time uses, with the settings that hold for all of it.
struct CallMemory {
    hbn_context *const context;
    CallMemory *next = nullptr;
    std::atomic<bool> busy{true};

    int threads = 1;  // that may run tasks
    int instruction_set = 0;
    Executor executor;
    // Where a task could not be run as it should, what run_parallel() says; HBN_OK otherwise.
    hbn_status failure = HBN_OK;
    char failure_text[160] = "";

    GrowingBlock workspace;
    GrowingBlock staging;  // for copies of tensors: engine/staging.h
    int64_t vector_bytes = 0, workspace_used = 0, channels = 0;

    ScratchArena caller;
    // Of the pool's threads, one each; or of an executor's tasks, of which as many run at once.
    ScratchArena *tasks = nullptr;
    int num_tasks = 0;   // 0 in a call that runs on its thread alone
    int most_tasks = 0;  // that there are arenas for
    ExecutorLoop *executor_loop = nullptr;
    // Those that an executor may still have tasks of, kept until the context goes.
    ExecutorLoop *abandoned_loops = nullptr;

    explicit CallMemory(hbn_context *context) : context(context) {
    }

    bool book(int vectors, int64_t channels, int64_t per_channel, int64_t staging_bytes,
              hbn_dtype dtype, bool parallel);
    // Gives all but itself back to the context's allocator.
    void release();
    void reset_workspace(int64_t channels);

private:
    bool book_tasks(int count, int64_t bytes);
    void release_tasks();
};

// Constant-initialized and trivially destroyed: an access costs no more than finding it, and static objects'
// destructors may still call hbn.
struct ThreadState {
    hbn_context *chosen;    // by hbn_use_context; null: the default one
    CallMemory *call;       // null outside of calls
    ScratchArena *arena;    // that halide_malloc takes from
    bool serial;            // whether parallel loops are to run on this thread alone
    bool streams;           // whether kernels use streaming stores
    uint64_t last_context;  // whose memory this thread used last,
    CallMemory *last;  // and which: warm in this processor's cache, and alive while that context is
};
inline thread_local ThreadState thread_state{};

// An operation of the C interface, from begin() to the end of its scope.
class Call {
public:
    Call() = default;
    ~Call() {
        if (memory_) {
            end();
        }
    }
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;

    // Books all memory that the call will use: the workspace, `vectors` vectors of `channels` values of any dtype
    // (a block of channels, see pieces.h), and what kernels need over that many channels of x's other sizes (null:
    // kernels over (C) alone). And `staging_bytes` for copies of tensors.
    // check_context() has passed. @return HBN_OUT_OF_MEMORY
    hbn_status begin(int vectors, int64_t channels, const hbn_tensor *x, int64_t staging_bytes = 0);

private:
    void end();

    CallMemory *memory_ = nullptr;
    CallMemory *call_before_;
    ScratchArena *arena_before_;
};

// What begin() made room for, of this thread's call.
inline char *staging_memory() {
    return thread_state.call->staging.data();
}

// Whether this thread's context can be used. It can't where it depends on HBN_INSTRUCTION_SET or HBN_NUM_THREADS and
// what that says makes no sense. What each operation asks first, so that it holds for empty tensors, too.
hbn_status check_context();

// Whether this call's parallel loops have all been run: asked after each kernel, which can't say so itself.
hbn_status check_loops();

hbn_context &default_context();

// The instruction set for the default context, and others that don't say which: the one that
// HBN_INSTRUCTION_SET names, or the best. -1 where that makes no sense, which the second says.
int default_instruction_set();
hbn_status check_default_instruction_set();
// That of the call in progress on this thread, or of the default context; -1 where that makes no sense.
int instruction_set_in_use();
// @return HBN_INVALID_ARGUMENT or HBN_UNSUPPORTED, with `origin` before the text
hbn_status find_instruction_set(const char *name, const char *origin, int *index);

}  // namespace hbn::internal

#endif
