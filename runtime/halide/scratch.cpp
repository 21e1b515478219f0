#include "scratch.h"

#include "runtime/context.h"

#include <HalideRuntime.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

namespace hbn::internal {

namespace {

// The widest vector a kernel stores to scratch, and room for the header before it.
constexpr size_t kAlignment = GrowingBlock::kAlignment;

// Data begins at one of these distances from a page's beginning, in turn. Rows of large tensors often begin where
// pages do; a load that is as far into its page as a store some iterations before waits for that store, and did
// so for twice the time of a whole kernel where scratch lay a little before such rows. This is after them.
constexpr size_t kPage = 4096, kFirstPlace = 256, kPlaces = 8;

std::atomic<int64_t> overflows{0};

}  // namespace

// Lies in the kAlignment bytes before a block's data.
struct ScratchArena::Header {
    ScratchArena *arena;         // null: the block is memory of its own
    Header *below;               // in the arena
    size_t used_below;           // of the arena, without this block
    bool freed;                  // but blocks above it are not
    const Allocator *allocator;  // null: the C library; where arena is null
    void *memory;
    size_t bytes;
};

ScratchArena::Header *ScratchArena::header_of(void *data) {
    static_assert(sizeof(Header) <= kAlignment);
    return reinterpret_cast<Header *>(static_cast<char *>(data) - kAlignment);
}

void *Allocator::take(size_t bytes, size_t alignment) const noexcept {
    if (!allocate) {
        void *data = nullptr;
        return posix_memalign(&data, alignment, bytes) == 0 ? data : nullptr;
    }
    try {
        return allocate(context, bytes, alignment);
    } catch (...) {
        return nullptr;
    }
}

void Allocator::give_back(void *data, size_t bytes, size_t alignment) const noexcept {
    if (!data) {
        return;
    }
    if (!allocate) {
        std::free(data);
        return;
    }
    try {
        deallocate(context, data, bytes, alignment);
    } catch (...) {
        // A function that frees memory has nobody to tell.
    }
}

bool GrowingBlock::grow(const Allocator &allocator, uint64_t bytes) noexcept {
    if (bytes <= capacity_) {
        return true;
    }
    release(allocator);
    if (bytes > SIZE_MAX) {
        return false;
    }
    data_ = static_cast<char *>(allocator.take(size_t(bytes), kAlignment));
    capacity_ = data_ ? size_t(bytes) : 0;
    return data_ != nullptr;
}

void GrowingBlock::release(const Allocator &allocator) noexcept {
    allocator.give_back(data_, capacity_, kAlignment);
    data_ = nullptr;
    capacity_ = 0;
}

void *ScratchArena::take(size_t bytes) {
    // Both are multiples of kAlignment, and so is what follows.
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory_.data());
    const uintptr_t earliest = begin + used_ + kAlignment;
    const uintptr_t place = kFirstPlace * (1 + depth_ % kPlaces);
    const uintptr_t data = earliest + (place - earliest) % kPage;
    const size_t used = data - begin + (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > booked_ || used > booked_) {
        return nullptr;
    }
    Header *header = header_of(reinterpret_cast<void *>(data));
    header->arena = this;
    header->below = top_;
    header->used_below = used_;
    header->freed = false;
    top_ = header;
    used_ = used;
    depth_++;
    if (used > peak_) {
        peak_ = used;
    }
    return reinterpret_cast<void *>(data);
}

void *allocate_scratch(size_t bytes) {
    const ThreadState &mine = thread_state;
    if (mine.arena) {
        if (void *data = mine.arena->take(bytes)) {
            return data;
        }
        overflows++;
    }
    // No call gets here: scratch_bytes() bounds what kernels ask for, and tests hold it to that. Were it wrong, the
    // allocators may still have memory, and other calls will return theirs; the kernel can't go on without.
    const Allocator *allocator = mine.call ? &mine.call->context->allocator : nullptr;
    const size_t whole = bytes + 2 * kAlignment;
    void *memory = nullptr;
    while (!memory) {
        memory = allocator ? allocator->take(whole, kAlignment) : nullptr;
        if (!memory) {
            allocator = nullptr;
            memory = Allocator{}.take(whole, kAlignment);
        }
        if (!memory) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
    void *data = static_cast<char *>(memory) + kAlignment;
    *ScratchArena::header_of(data) = {nullptr, nullptr, 0, false, allocator, memory, whole};
    return data;
}

void free_scratch(void *data) {
    if (!data) {
        return;
    }
    ScratchArena::Header *block = ScratchArena::header_of(data);
    ScratchArena *arena = block->arena;
    if (!arena) {
        const Allocator *allocator = block->allocator;
        (allocator ? *allocator : Allocator{}).give_back(block->memory, block->bytes, kAlignment);
        return;
    }
    // Kernels free a block after its last use, which may be before those above it.
    block->freed = true;
    while (arena->top_ && arena->top_->freed) {
        arena->used_ = arena->top_->used_below;
        arena->top_ = arena->top_->below;
        arena->depth_--;
    }
}

int64_t scratch_overflows() {
    return overflows;
}

}  // namespace hbn::internal

extern "C" {

void *halide_malloc(void *, size_t bytes) {
    return hbn::internal::allocate_scratch(bytes);
}

void halide_free(void *, void *data) {
    hbn::internal::free_scratch(data);
}

// Called by kernels that stream, and after each thread's share of a parallel loop.
int hbn_stream_fence() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
    return 0;
}

}  // extern "C"
