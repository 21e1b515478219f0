// A kernel's vectors are of one dtype, the statistic type; the caller's may be absent, or of
// another dtype.
#ifndef HBN_RUNTIME_VECTORS_H
#define HBN_RUNTIME_VECTORS_H

#include <hbn/hbn.h>

#include <initializer_list>

namespace hbn::internal {

// More than any one operation takes.
constexpr int kWorkspaceVectors = 28;

// `v`, or its conversion, or `absent` in each channel (0 or 1). Takes from the workspace as needed.
hbn_status as_input(const hbn_vector &v, hbn_dtype dtype, double absent, hbn_vector *input);

// Where a kernel writes: the caller's vector itself when it is of the right dtype, else scratch.
class OutputVector {
public:
    OutputVector(const hbn_vector &target, hbn_dtype dtype);

    const hbn_vector &written() const {
        return written_;
    }
    // Brings what the kernel wrote to the caller's vector.
    hbn_status store() const;

private:
    hbn_vector target_, written_;
};

// HBN_UNSUPPORTED unless all of these (null: absent) can be converted both ways.
hbn_status require_conversions(std::initializer_list<const hbn_vector *> vectors, hbn_dtype dtype);

void fill_zero(const hbn_vector *v);

// v[c] as a double, for the odd loop over channels.
double load(const hbn_vector &v, int64_t c);
void store(const hbn_vector &v, int64_t c, double value);

}  // namespace hbn::internal

#endif
