// Whether the memory of two arguments overlaps.
#ifndef HBN_RUNTIME_CHECKS_OVERLAP_H
#define HBN_RUNTIME_CHECKS_OVERLAP_H

#include "arguments.h"

#include <cassert>
#include <cstdint>
#include <new>

namespace hbn::internal {

// The bytes an argument occupies, for the overlap checks.
struct Footprint {
    const char *name;
    const char *data;  // null: absent or empty, overlaps nothing
    uintptr_t begin, end;
    int element_bytes;
    int dimensions;
    int64_t sizes[4];
    int64_t strides[4];  // in elements

    Footprint() {  // of nothing yet, and nothing is initialized
    }
    explicit Footprint(const NamedTensor &t);
    explicit Footprint(const NamedVector &v);
    Footprint(const char *name, const double *data, int64_t size);

private:
    void find_end();
};

// A few of them.
class Footprints {
public:
    // What occupies nothing is left out.
    template<typename... What>
    void add(What... what) {
        assert(size_ < kMost);
        new (&all_[size_]) Footprint(what...);
        size_ += all_[size_].data != nullptr;
    }
    const Footprint *begin() const {
        return all_;
    }
    const Footprint *end() const {
        return all_ + size_;
    }

private:
    static constexpr int kMost = 20;
    int size_ = 0;
    Footprint all_[kMost];
};

// Whether two arguments have a byte in common, or two elements of one have. Both may say so where it is not true: when
// an answer would take more than some microseconds. That happens only where strides don't nest, that is where the smaller
// strides of the arguments reach further than several steps of a larger one.
bool elements_may_overlap(const Footprint &a, const Footprint &b);
inline bool may_overlap(const Footprint &a, const Footprint &b) {
    return a.data && b.data && a.begin < b.end && b.begin < a.end && elements_may_overlap(a, b);
}
bool may_overlap_itself(const Footprint &f);

// Refuses outputs that may overlap themselves, each other or an input. The only exception: the output
// `in_place` may be the very same view as the input `in_place_of` (null, or the names that the footprints have).
hbn_status check_overlap(const Footprints &inputs, const Footprints &outputs, const char *in_place,
                         const char *in_place_of);

}  // namespace hbn::internal

#endif
