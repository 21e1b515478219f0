// Scratch memory of kernels. A call books it before it writes anything, since kernels, which are built
// without asserts, can't be told that there is none.
#ifndef HBN_RUNTIME_HALIDE_SCRATCH_H
#define HBN_RUNTIME_HALIDE_SCRATCH_H

#include <hbn/hbn.h>

#include <cstddef>
#include <cstdint>

namespace hbn::internal {

// Where a context's memory comes from. Null functions stand for the C library's.
struct Allocator {
    hbn_allocate allocate = nullptr;
    hbn_deallocate deallocate = nullptr;
    void *context = nullptr;

    // Null where there is no memory, also where the caller's function throws.
    void *take(size_t bytes, size_t alignment) const noexcept;
    void give_back(void *data, size_t bytes, size_t alignment) const noexcept;
};

// Memory that only grows between calls, and is not copied when it does.
class GrowingBlock {
public:
    static constexpr size_t kAlignment = 128;

    // Room for so many bytes. False where there is no memory, or no address has so many bits; then it has none.
    bool grow(const Allocator &allocator, uint64_t bytes) noexcept;
    void release(const Allocator &allocator) noexcept;

    char *data() const {
        return data_;
    }
    size_t capacity() const {
        return capacity_;
    }

private:
    char *data_ = nullptr;
    size_t capacity_ = 0;
};

// The scratch memory of one thread while it runs a kernel: a stack.
class ScratchArena {
public:
    // What one allocation takes beside its own bytes, at most.
    static constexpr size_t kOverhead = 4096 + 2 * 128;

    // Empties it and gives it room for so many bytes.
    bool book(const Allocator &allocator, uint64_t bytes) noexcept {
        booked_ = size_t(bytes);
        used_ = peak_ = 0;
        depth_ = 0;
        top_ = nullptr;
        return memory_.grow(allocator, bytes);
    }
    void release(const Allocator &allocator) noexcept {
        memory_.release(allocator);
    }

    // Null where more is asked for than was booked.
    void *take(size_t bytes);

    size_t capacity() const {
        return memory_.capacity();
    }
    size_t booked() const {
        return booked_;
    }
    // The most that was in use since it was booked; for tests.
    size_t peak() const {
        return peak_;
    }

private:
    friend void *allocate_scratch(size_t);
    friend void free_scratch(void *);
    struct Header;

    static Header *header_of(void *data);

    GrowingBlock memory_;
    size_t booked_ = 0, used_ = 0, peak_ = 0;
    unsigned depth_ = 0;  // how many blocks there are
    Header *top_ = nullptr;
};

// What halide_malloc and halide_free do: of this thread's arena.
void *allocate_scratch(size_t bytes);
void free_scratch(void *data);

// How often, in this process, a kernel asked for more than was booked for it. Tests expect 0.
int64_t scratch_overflows();

}  // namespace hbn::internal

#endif
