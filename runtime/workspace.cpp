#include "workspace.h"

#include "checks.h"

#include <new>

namespace hbn::internal {

namespace {

constexpr std::align_val_t kAlignment{64};

struct Arena {
    char *data = nullptr;
    int64_t capacity = 0, vector_bytes = 0, used = 0, channels = 0;

    // Static objects' destructors may still call hbn after this one.
    ~Arena() {
        ::operator delete(data, kAlignment);
        data = nullptr;
        capacity = 0;
    }
};

thread_local Arena arena;

}  // namespace

hbn_status Workspace::begin(int vectors, int64_t channels) {
    arena.channels = channels;
    arena.used = 0;
    arena.vector_bytes = (channels + 7) / 8 * 64;
    const int64_t bytes = vectors * arena.vector_bytes;
    if (bytes > arena.capacity) {
        void *grown = ::operator new(size_t(bytes), kAlignment, std::nothrow);
        if (!grown) {
            return fail(HBN_OUT_OF_MEMORY, text::out_of_memory, (long long)channels);
        }
        ::operator delete(arena.data, kAlignment);
        arena.data = static_cast<char *>(grown);
        arena.capacity = bytes;
    }
    return HBN_OK;
}

hbn_vector Workspace::take(hbn_dtype dtype) {
    hbn_vector v{arena.data + arena.used, dtype, arena.channels, 1, HBN_CPU};
    arena.used += arena.vector_bytes;
    return v;
}

}  // namespace hbn::internal
