// Parallel loops of the kernels: a context's thread pool, or its executor.
#ifndef HBN_RUNTIME_HALIDE_THREADS_H
#define HBN_RUNTIME_HALIDE_THREADS_H

#include "runtime/context.h"

// Other threads see streaming stores in order only after this thread's fence.
extern "C" int hbn_stream_fence();

namespace hbn::internal {

// While one lives, this thread's parallel loops run serially if `serial`: for problems too small to share out.
// `streams`: whether kernels use streaming stores.
class KernelScope {
public:
    KernelScope(bool serial, bool streams)
        : serial_before_(thread_state.serial), streams_before_(thread_state.streams) {
        thread_state.serial = serial || serial_before_;
        thread_state.streams = streams;
    }
    ~KernelScope() {
        thread_state.serial = serial_before_;
        thread_state.streams = streams_before_;
    }
    KernelScope(const KernelScope &) = delete;
    KernelScope &operator=(const KernelScope &) = delete;

private:
    bool serial_before_, streams_before_;
};

// One task of a parallel loop, in Halide's form: 0, or an error code.
using Task = int (*)(void *user_context, int i, uint8_t *closure);

// What halide_do_par_for does: runs task(user_context, i, closure) for every i in [min, min + size), by this thread's
// call's context. @return 0, or a task's error code
int run_parallel(void *user_context, Task task, int min, int size, uint8_t *closure);

// The context's pool, made if need be; null where there is no memory for one. Its threads start with the first loop.
Pool *pool_of(hbn_context &context);
// Ends a pool's threads. None of its loops may be running.
void destroy_pool(Pool *pool);
// Ends its threads; later loops run on their callers' alone.
void finish_pool(Pool *pool);
// In the child of a fork, where only the forking thread lives on and the pool's threads and locks mean nothing: a
// fresh pool, or null where there is no memory. It keeps `lost`, for leak checkers to find.
Pool *replace_pool(Pool *lost);

// Of as many tasks at once as there are arenas in `tasks`. Null where there is no memory.
ExecutorLoop *make_executor_loop(const Allocator &allocator, ScratchArena *tasks, int count);
void destroy_executor_loop(const Allocator &allocator, ExecutorLoop *loop);
ExecutorLoop *&next_abandoned(ExecutorLoop &loop);

}  // namespace hbn::internal

#endif
