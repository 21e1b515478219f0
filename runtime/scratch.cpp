// Scratch memory of kernels. Each thread keeps the blocks it freed last, so that steady-state calls
// allocate nothing: a kernel asks for the same few sizes again and again, once a tile.
#include "threads.h"

#include <HalideRuntime.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace {

// The widest vector a kernel stores to scratch, and room for the header before it.
constexpr size_t kAlignment = 128;
constexpr int kMostBlocks = 32;
constexpr size_t kMostBytes = size_t(4) << 20;  // of a block that is kept

// Data begins at one of these distances from a page's beginning, in turn. Rows of large tensors often begin where
// pages do; a load that is as far into its page as a store some iterations before waits for that store, and did
// so for twice the time of a whole kernel where scratch lay a little before such rows. This is after them.
constexpr size_t kPage = 4096, kFirstPlace = 256, kPlaces = 8;

struct Header {
    void *block;
    size_t capacity;
};

// Constant-initialized and trivially destroyed: an access costs no more than finding it.
struct Cache {
    Header *blocks[kMostBlocks];
    int count;
    bool freed_at_exit;
    unsigned places;  // given out so far
};

thread_local Cache cache;

// Static objects' destructors may still call hbn after this one.
struct FreeAtExit {
    ~FreeAtExit() {
        while (cache.count > 0) {
            std::free(cache.blocks[--cache.count]->block);
        }
    }
};

void *data_of(Header *header) {
    return reinterpret_cast<char *>(header) + kAlignment;
}

Header *header_of(void *data) {
    return reinterpret_cast<Header *>(static_cast<char *>(data) - kAlignment);
}

}  // namespace

// Called by kernels that stream, and after each thread's share of a parallel loop.
extern "C" int hbn_stream_fence() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
    return 0;
}

extern "C" void *halide_malloc(void *, size_t bytes) {
    Cache &mine = cache;
    const size_t capacity = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    // The smallest that is large enough, lest a larger request find none.
    int best = -1;
    size_t best_capacity = 4 * capacity + 1;
    for (int i = mine.count - 1; i >= 0 && best_capacity > capacity; i--) {
        const size_t offered = mine.blocks[i]->capacity;
        if (offered >= capacity && offered < best_capacity) {
            best = i;
            best_capacity = offered;
        }
    }
    if (best >= 0) {
        Header *block = mine.blocks[best];
        mine.count--;
        for (int i = best; i < mine.count; i++) {
            mine.blocks[i] = mine.blocks[i + 1];
        }
        return data_of(block);
    }
    void *block = std::malloc(capacity + kAlignment + kPage);
    if (!block) {
        // Kernels, built without asserts, would write through it.
        halide_error(nullptr, "out of memory for a kernel's scratch");
        std::abort();
    }
    const uintptr_t place = kFirstPlace * (1 + mine.places++ % kPlaces);
    const uintptr_t earliest = reinterpret_cast<uintptr_t>(block) + kAlignment;
    const uintptr_t data = earliest + (place - earliest) % kPage;
    Header *header = header_of(reinterpret_cast<void *>(data));
    *header = {block, capacity};
    return data_of(header);
}

extern "C" void halide_free(void *, void *data) {
    if (!data) {
        return;
    }
    Header *block = header_of(data);
    if (block->capacity > kMostBytes) {
        std::free(block->block);
        return;
    }
    Cache &mine = cache;
    if (!mine.freed_at_exit) {
        mine.freed_at_exit = true;
        static thread_local FreeAtExit at_exit;
        (void)at_exit;
    }
    if (mine.count == kMostBlocks) {
        // The one that has not been asked for in the longest time.
        std::free(mine.blocks[0]->block);
        mine.count--;
        std::copy(mine.blocks + 1, mine.blocks + kMostBlocks, mine.blocks);
    }
    mine.blocks[mine.count++] = block;
}
