#include "context.h"

#include "checks.h"
#include "engine/tuning.h"
#include "halide/threads.h"
#include "scratch_bound.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HBN_HAS_FORK 1
#endif
#include <thread>

namespace hbn::internal {

namespace {

constexpr int kMostThreads = 1024;

// A call that used more than this gives its memory back when it ends.
constexpr size_t kMostKeptBytes = size_t(32) << 20;

// ---- all contexts, for what happens to a process

std::mutex contexts_mutex;
hbn_context *contexts = nullptr;

template<typename Visit>
void for_each_context(Visit visit) {
    for (hbn_context *context = contexts; context; context = context->next) {
        visit(*context);
    }
}

// Their threads are joined at exit; static objects' destructors may still call hbn.
void finish_pools() {
    std::lock_guard<std::mutex> lock(contexts_mutex);
    for_each_context([](hbn_context &context) {
        if (Pool *pool = context.pool) {
            finish_pool(pool);
        }
    });
}

#ifdef HBN_HAS_FORK
// Memory of calls that other threads were in stays theirs: nobody knows its state.
void after_fork_in_child() {
    for_each_context([](hbn_context &context) {
        if (Pool *pool = context.pool) {
            context.pool = replace_pool(pool);
        }
    });
    contexts_mutex.unlock();
}
#endif

void add(hbn_context *context) {
    std::lock_guard<std::mutex> lock(contexts_mutex);
    context->next = contexts;
    contexts = context;
}

void remove(hbn_context *context) {
    std::lock_guard<std::mutex> lock(contexts_mutex);
    hbn_context **link = &contexts;
    while (*link != context) {
        link = &(*link)->next;
    }
    *link = context->next;
}

uint64_t next_id() {
    static std::atomic<uint64_t> last{0};
    return ++last;
}

hbn_context &current_context() {
    hbn_context *chosen = thread_state.chosen;
    return chosen ? *chosen : default_context();
}

// ---- memory of calls

CallMemory *take_memory(hbn_context &context) {
    ThreadState &mine = thread_state;
    if (mine.last_context == context.id && !mine.last->busy.exchange(true)) {
        return mine.last;
    }
    CallMemory *memory = context.memories;
    while (memory && memory->busy.exchange(true)) {
        memory = memory->next;
    }
    if (!memory) {
        void *place = context.allocator.take(sizeof(CallMemory), GrowingBlock::kAlignment);
        if (!place) {
            return nullptr;
        }
        memory = new (place) CallMemory(&context);
        memory->next = context.memories;
        while (!context.memories.compare_exchange_weak(memory->next, memory)) {
        }
    }
    mine.last_context = context.id;
    mine.last = memory;
    return memory;
}

// ---- the environment

struct Environment {
    char num_threads_text[32] = "";  // cut off, where it is longer than any number of threads
    int num_threads = 0;             // 0: one per processor
    bool sound = true;
    const int processors = count_processors();

    Environment() {
        if (const char *value = std::getenv("HBN_NUM_THREADS")) {
            std::strncpy(num_threads_text, value, sizeof(num_threads_text) - 1);
        }
        if (*num_threads_text) {
            char *end = nullptr;
            errno = 0;
            const long asked = std::strtol(num_threads_text, &end, 10);
            sound = end != num_threads_text && !*end && asked >= 0 && errno == 0;
            num_threads = !sound ? 0 : asked < kMostThreads ? int(asked) : kMostThreads;
        }
    }

    // For contexts that don't say how many; -1 where the variable makes no sense.
    int threads() const {
        return !sound ? -1 : num_threads > 0 ? num_threads : processors;
    }

private:
    static int count_processors() {
#ifdef __linux__
        cpu_set_t set;
        if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) {
            return CPU_COUNT(&set) < kMostThreads ? CPU_COUNT(&set) : kMostThreads;
        }
#endif
        const unsigned threads = std::thread::hardware_concurrency();
        return threads > 0 ? int(threads) : 1;
    }
};

// As it was when first asked for.
const Environment &environment() {
    static const Environment now;
    return now;
}

hbn_status check_environment() {
    const Environment &now = environment();
    return now.sound ? HBN_OK
                     : fail(HBN_INVALID_ARGUMENT, text::num_threads_variable, now.num_threads_text);
}

}  // namespace

hbn_context &default_context() {
    alignas(hbn_context) static char place[sizeof(hbn_context)];
    // Never destroyed.
    static hbn_context *const context = [] {
        auto *made = new (place) hbn_context(next_id());
        made->num_threads = environment().threads();
        made->instruction_set = default_instruction_set();
        add(made);
        std::atexit(finish_pools);
#ifdef HBN_HAS_FORK
        pthread_atfork([] { contexts_mutex.lock(); }, [] { contexts_mutex.unlock(); },
                       after_fork_in_child);
#endif
        return made;
    }();
    return *context;
}

hbn_status check_context() {
    const hbn_context &context = current_context();
    if (context.num_threads > 0 && context.instruction_set >= 0) {
        return HBN_OK;
    }
    return context.num_threads > 0 ? check_default_instruction_set() : check_environment();
}

hbn_status check_loops() {
    const CallMemory *call = thread_state.call;
    return !call || call->failure == HBN_OK ? HBN_OK
                                            : fail(call->failure, "%s", call->failure_text);
}

// ---- CallMemory

bool CallMemory::book(int vectors, int64_t num_channels, int64_t per_channel, int64_t staging_bytes,
                      hbn_dtype dtype, bool parallel) {
    const Allocator &allocator = context->allocator;
    reset_workspace(num_channels);
    const ScratchBytes scratch = scratch_bytes(num_channels, per_channel, dtype);
    num_tasks = 0;
    if (!workspace.grow(allocator, uint64_t(vectors) * uint64_t(vector_bytes)) ||
        (staging_bytes > 0 && !staging.grow(allocator, uint64_t(staging_bytes))) ||
        !caller.book(allocator, uint64_t(scratch.caller))) {
        return false;
    }
    if (!parallel) {
        return true;
    }
    if (executor.parallel_for) {
        if (!book_tasks(threads, scratch.task)) {
            return false;
        }
        if (!executor_loop) {
            executor_loop = make_executor_loop(allocator, tasks, most_tasks);
        }
        return executor_loop != nullptr;
    }
    if (threads > 1) {
        pool_of(*context);
        return book_tasks(threads - 1, scratch.task);
    }
    return true;
}

bool CallMemory::book_tasks(int count, int64_t bytes) {
    const Allocator &allocator = context->allocator;
    // An executor runs as many tasks at once as there are arenas: neither more nor fewer than `count`.
    if (count > most_tasks || (executor.parallel_for && count != most_tasks)) {
        release_tasks();
        void *place =
            allocator.take(size_t(count) * sizeof(ScratchArena), GrowingBlock::kAlignment);
        if (!place) {
            return false;
        }
        tasks = static_cast<ScratchArena *>(place);
        for (int i = 0; i < count; i++) {
            new (&tasks[i]) ScratchArena;
        }
        most_tasks = count;
    }
    for (int i = 0; i < count; i++) {
        if (!tasks[i].book(allocator, uint64_t(bytes))) {
            return false;
        }
    }
    num_tasks = count;
    return true;
}

void CallMemory::release_tasks() {
    const Allocator &allocator = context->allocator;
    destroy_executor_loop(allocator, executor_loop);
    executor_loop = nullptr;
    for (int i = 0; i < most_tasks; i++) {
        tasks[i].release(allocator);
    }
    allocator.give_back(tasks, size_t(most_tasks) * sizeof(ScratchArena), GrowingBlock::kAlignment);
    tasks = nullptr;
    num_tasks = most_tasks = 0;
}

void CallMemory::release() {
    release_tasks();
    workspace.release(context->allocator);
    staging.release(context->allocator);
    caller.release(context->allocator);
}

void CallMemory::reset_workspace(int64_t num_channels) {
    channels = num_channels;
    vector_bytes = (num_channels + 7) / 8 * 64;
    workspace_used = 0;
}

// ---- Call

hbn_status Call::begin(int vectors, int64_t channels, const hbn_tensor *x, int64_t staging_bytes) {
    ThreadState &mine = thread_state;
    hbn_context &context = current_context();
    const int64_t per_channel = x ? x->sizes[0] * x->sizes[2] * x->sizes[3] : 0;
    // Which kernels the operation will call is not known yet.
    const bool parallel =
        x && !mine.serial && per_channel * x->sizes[1] >= thresholds_in_use().least.serial_elements;
    CallMemory *memory = take_memory(context);
    if (memory) {
        memory->threads = context.num_threads;
        memory->executor = context.executor;
        memory->instruction_set = context.instruction_set;
        memory->failure = HBN_OK;
        if (!memory->book(vectors, channels, per_channel, staging_bytes, x ? x->dtype : HBN_FLOAT64,
                          parallel)) {
            memory->busy.store(false, std::memory_order_release);
            memory = nullptr;
        }
    }
    if (!memory) {
        return fail(HBN_OUT_OF_MEMORY, text::out_of_memory, (long long)channels);
    }
    memory_ = memory;
    call_before_ = mine.call;
    arena_before_ = mine.arena;
    mine.call = memory;
    mine.arena = &memory->caller;
    return HBN_OK;
}

void Call::end() {
    thread_state.call = call_before_;
    thread_state.arena = arena_before_;
    if (memory_->caller.capacity() > kMostKeptBytes) {
        memory_->release();
    }
    memory_->busy.store(false, std::memory_order_release);
}

}  // namespace hbn::internal

using namespace hbn::internal;

extern "C" {

hbn_status hbn_context_create(const hbn_context_options *options, hbn_context **context) {
    if (!context) {
        return fail(HBN_INVALID_ARGUMENT, text::required, "context");
    }
    const hbn_context_options o = options ? *options : hbn_context_options{};
    if (o.num_threads < 0) {
        return fail(HBN_INVALID_ARGUMENT, text::num_threads, o.num_threads);
    }
    if (!o.allocate != !o.deallocate) {
        return fail(HBN_INVALID_ARGUMENT, text::both_or_neither, "allocate", "deallocate");
    }
    if (o.device != HBN_CPU) {
        return fail(HBN_UNSUPPORTED, text::device_unsupported, device_name(o.device));
    }
    if (o.device_ordinal != 0 || o.stream) {
        return fail(HBN_UNSUPPORTED, text::no_ordinal_or_stream);
    }
    int threads = o.num_threads < kMostThreads ? o.num_threads : kMostThreads;
    if (threads == 0) {
        HBN_TRY(check_environment());
        threads = environment().threads();
    }
    int instruction_set = default_instruction_set();
    HBN_TRY(o.instruction_set ? find_instruction_set(o.instruction_set, "", &instruction_set)
                              : check_default_instruction_set());
    default_context();  // which sees to exits and forks
    const Allocator allocator{o.allocate, o.deallocate, o.allocator_context};
    void *place = allocator.take(sizeof(hbn_context), GrowingBlock::kAlignment);
    if (!place) {
        return fail(HBN_OUT_OF_MEMORY, text::no_memory_for_context);
    }
    auto *made = new (place) hbn_context(next_id());
    made->num_threads = threads;
    made->instruction_set = instruction_set;
    made->executor = {o.parallel_for, o.parallel_for_context};
    made->allocator = allocator;
    add(made);
    *context = made;
    return HBN_OK;
}

void hbn_context_destroy(hbn_context *context) {
    if (!context) {
        return;
    }
    if (thread_state.chosen == context) {
        thread_state.chosen = nullptr;
    }
    remove(context);
    if (Pool *pool = context->pool) {
        destroy_pool(pool);
    }
    const Allocator allocator = context->allocator;
    for (CallMemory *memory = context->memories, *next; memory; memory = next) {
        next = memory->next;
        memory->release();
        for (ExecutorLoop *loop = memory->abandoned_loops, *after; loop; loop = after) {
            after = next_abandoned(*loop);
            destroy_executor_loop(allocator, loop);
        }
        memory->~CallMemory();
        allocator.give_back(memory, sizeof(CallMemory), GrowingBlock::kAlignment);
    }
    context->~hbn_context();
    allocator.give_back(context, sizeof(hbn_context), GrowingBlock::kAlignment);
}

void hbn_context_release_scratch(hbn_context *context) {
    hbn_context &from = context ? *context : default_context();
    for (CallMemory *memory = from.memories; memory; memory = memory->next) {
        if (!memory->busy.exchange(true)) {
            memory->release();
            memory->busy.store(false, std::memory_order_release);
        }
    }
}

hbn_context *hbn_use_context(hbn_context *context) {
    hbn_context *before = thread_state.chosen;
    thread_state.chosen = context;
    return before;
}

hbn_status hbn_set_num_threads(int num_threads) {
    if (num_threads < 0) {
        return fail(HBN_INVALID_ARGUMENT, text::num_threads, num_threads);
    }
    if (num_threads == 0) {
        HBN_TRY(check_environment());
        num_threads = environment().threads();
    }
    default_context().num_threads = num_threads < kMostThreads ? num_threads : kMostThreads;
    return HBN_OK;
}

int hbn_get_num_threads(void) {
    const int threads = default_context().num_threads;
    return threads > 0 ? threads : environment().processors;
}

void hbn_set_parallel_for(hbn_parallel_for parallel_for, void *context) {
    default_context().executor = {parallel_for, context};
}

}  // extern "C"
