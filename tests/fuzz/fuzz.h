// Property tests whose cases are made of choices: random ones in ctest, libFuzzer's in `make fuzz`.
#ifndef HBN_TESTS_FUZZ_FUZZ_H
#define HBN_TESTS_FUZZ_FUZZ_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>

namespace hbn::test {

// Where a case's choices come from.
class Choices {
public:
    explicit Choices(uint64_t seed) : seed_(seed), random_(seed) {
    }
    // Zeros follow the last byte.
    Choices(const uint8_t *data, size_t size) : data_(data), end_(data + size) {
    }

    // In [0, count).
    uint32_t below(uint32_t count) {
        return number() % count;
    }
    int64_t between(int64_t low, int64_t high) {
        return low + int64_t(below(uint32_t(high - low + 1)));
    }
    bool one_in(uint32_t count) {
        return below(count) == count - 1;
    }
    template<typename T>
    T pick(std::initializer_list<T> values) {
        return values.begin()[below(uint32_t(values.size()))];
    }
    uint64_t bits64() {
        const uint64_t high = number();
        return high << 32 ^ uint64_t(number()) << 8 ^ number();
    }
    // Says how to repeat the case.
    void print() const {
        if (!data_) {
            std::fprintf(stderr, "with the choices of seed %llu\n", (unsigned long long)seed_);
        }
    }

private:
    uint32_t number() {
        if (!data_) {
            return uint32_t(random_());
        }
        uint32_t value = 0;
        const size_t left = size_t(end_ - data_), size = left < 2 ? left : 2;
        std::memcpy(&value, data_, size);
        data_ += size;
        return value;
    }

    const uint8_t *data_ = nullptr, *end_ = nullptr;
    uint64_t seed_ = 0;
    std::minstd_rand random_{1};
};

// Ends the process, as libFuzzer expects it, where a property does not hold.
#define HBN_HOLDS(choices, property, ...)                                                      \
    do {                                                                                       \
        if (!(property)) {                                                                     \
            std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #property); \
            std::fprintf(stderr, __VA_ARGS__);                                                 \
            std::fprintf(stderr, "\n");                                                        \
            (choices).print();                                                                 \
            std::abort();                                                                      \
        }                                                                                      \
    } while (0)

// Each tests one case.
void fuzz_overlap(Choices &choices);  // the alias solver against one that looks at every byte
void fuzz_entry_points(
    Choices &choices);  // every function of hbn.h on descriptors that are a little wrong
void fuzz_dlpack(Choices &choices);  // from_dlpack() on anything

// What the cases so far covered, for the test that runs them to look at.
struct OverlapCounts {
    int64_t cases = 0, disjoint = 0, refused_wrongly = 0;
};
const OverlapCounts &overlap_counts();

struct EntryPointCounts {
    const char *name;
    int64_t succeeded = 0, refused = 0;
};
// Ends with one without a name.
const EntryPointCounts *entry_point_counts();
int num_entry_points();

}  // namespace hbn::test

#endif
