// Scratch memory of kernels. Each thread keeps the blocks it freed last, so that steady-state calls
// allocate nothing: a kernel asks for the same few sizes again and again, once a tile.
#include "threads.h"

#include <HalideRuntime.h>

#include <algorithm>
#include <cstdlib>

namespace {

// The widest vector a kernel stores to scratch, and room for the header before it.
constexpr size_t kAlignment = 128;
constexpr int kMostBlocks = 32;
constexpr size_t kMostBytes = size_t(4) << 20;  // of a block that is kept

struct Header {
    size_t capacity;
};

struct Cache {
    Header *blocks[kMostBlocks];
    int count = 0;

    // Static objects' destructors may still call hbn after this one.
    ~Cache() {
        while (count > 0) {
            std::free(blocks[--count]);
        }
    }
};

thread_local Cache cache;

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
    const size_t capacity = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    // The smallest that is large enough, lest a larger request find none.
    int best = -1;
    for (int i = cache.count - 1; i >= 0; i--) {
        const size_t offered = cache.blocks[i]->capacity;
        if (offered >= capacity && offered <= 4 * capacity &&
            (best < 0 || offered < cache.blocks[best]->capacity)) {
            best = i;
        }
    }
    if (best >= 0) {
        Header *block = cache.blocks[best];
        std::copy(cache.blocks + best + 1, cache.blocks + cache.count, cache.blocks + best);
        cache.count--;
        return data_of(block);
    }
    auto *block = static_cast<Header *>(std::aligned_alloc(kAlignment, capacity + kAlignment));
    if (!block) {
        // Kernels, built without asserts, would write through it.
        halide_error(nullptr, "out of memory for a kernel's scratch");
        std::abort();
    }
    block->capacity = capacity;
    return data_of(block);
}

extern "C" void halide_free(void *, void *data) {
    if (!data) {
        return;
    }
    Header *block = header_of(data);
    if (block->capacity > kMostBytes) {
        std::free(block);
        return;
    }
    if (cache.count == kMostBlocks) {
        // The one that has not been asked for in the longest time.
        std::free(cache.blocks[0]);
        std::copy(cache.blocks + 1, cache.blocks + cache.count, cache.blocks);
        cache.count--;
    }
    cache.blocks[cache.count++] = block;
}
