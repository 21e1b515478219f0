#include "overlap.h"

#include "dtypes.h"
#include "runtime/small_sort.h"
#include "texts.h"

#include <algorithm>
#include <numeric>

namespace hbn::internal {

Footprint::Footprint(const NamedTensor &t) : name(t.name), data(nullptr), dimensions(4) {
    if (t.tensor && !is_empty(*t.tensor)) {
        data = static_cast<const char *>(t.tensor->data);
        element_bytes = element_size(t.tensor->dtype);
        std::copy_n(t.tensor->sizes, 4, sizes);
        std::copy_n(t.tensor->strides, 4, strides);
        find_end();
    }
}

Footprint::Footprint(const NamedVector &v) : name(v.name), data(nullptr), dimensions(1) {
    if (v.vector && v.vector->size > 0) {
        data = static_cast<const char *>(v.vector->data);
        element_bytes = element_size(v.vector->dtype);
        sizes[0] = v.vector->size;
        strides[0] = v.vector->stride;
        find_end();
    }
}

Footprint::Footprint(const char *name, const double *values, int64_t size)
    : name(name), element_bytes(sizeof(double)), dimensions(1) {
    data = size > 0 ? reinterpret_cast<const char *>(values) : nullptr;
    sizes[0] = size;
    strides[0] = 1;
    find_end();
}

void Footprint::find_end() {
    int64_t last = 0;
    for (int d = 0; d < dimensions; d++) {
        last += sizes[d] > 1 ? (sizes[d] - 1) * strides[d] : 0;
    }
    begin = reinterpret_cast<uintptr_t>(data);
    end = begin + uintptr_t((last + 1) * element_bytes);
}

namespace {

// One unknown k in [low, high] of the equation sum(k * stride) = distance.
struct Step {
    int64_t stride, low, high;
};

// Such an equation. Add its steps, then ask. Strides and ranges are those of arguments that have passed their
// checks, whose spans leave room for the sums below.
class Equation {
public:
    // Steps of equal strides share one unknown, their sum.
    void add(int64_t stride, int64_t low, int64_t high) {
        for (int i = 0; i < count_; i++) {
            if (steps_[i].stride == stride) {
                steps_[i].low += low;
                steps_[i].high += high;
                return;
            }
        }
        steps_[count_++] = {stride, low, high};
    }

    // False where the equation has no solution. True where it has one, or where none was found and none was ruled
    // out with little work.
    bool may_have_solution(int64_t distance) {
        small_sort(steps_, count_,
                   [](const Step &l, const Step &r) { return l.stride > r.stride; });
        low_[count_] = high_[count_] = divisor_[count_] = 0;
        for (int i = count_ - 1; i >= 0; i--) {
            low_[i] = low_[i + 1] + steps_[i].low * steps_[i].stride;
            high_[i] = high_[i + 1] + steps_[i].high * steps_[i].stride;
            divisor_[i] = std::gcd(divisor_[i + 1], steps_[i].stride);
        }
        return may_reach(0, distance);
    }

private:
    // With the steps from the i-th on, by trying each k that leaves the rest within reach of the smaller steps.
    // Where strides nest these are one or two.
    bool may_reach(int i, int64_t distance) {
        if (i == count_) {
            return distance == 0;
        }
        if (distance % divisor_[i] != 0) {
            return false;
        }
        if (--tries_ < 0) {
            return true;
        }
        const Step &s = steps_[i];
        const int64_t rest_low = low_[i + 1], rest_high = high_[i + 1];
        // rest_low <= distance - k * stride <= rest_high
        const auto floor_div = [](int64_t a, int64_t b) { return a / b - (a % b < 0); };
        const int64_t first = std::max(s.low, -floor_div(rest_high - distance, s.stride));
        const int64_t last = std::min(s.high, floor_div(distance - rest_low, s.stride));
        for (int64_t k = first; k <= last; k++) {
            if (may_reach(i + 1, distance - k * s.stride)) {
                return true;
            }
        }
        return false;
    }

    static constexpr int kMost = 9;  // four dimensions of two tensors, and the bytes of an element
    int count_ = 0;
    int tries_ = 1000;  // some microseconds
    Step steps_[kMost] = {};
    // What the steps from each on reach, and what divides all that they reach.
    int64_t low_[kMost + 1], high_[kMost + 1], divisor_[kMost + 1];
};

}  // namespace

bool elements_may_overlap(const Footprint &a, const Footprint &b) {
    // A byte of an element of a is one of b's when sum(i * stride) - sum(j * stride) + byte = b0 - a0.
    Equation equation;
    // Addresses of 32 bits have no differences below 0: they are widened first.
    const int64_t distance = int64_t(b.begin) - int64_t(a.begin);
    // Elements of one size, aligned to it, are the same or have no byte in common.
    if (a.element_bytes != b.element_bytes || distance % a.element_bytes != 0) {
        equation.add(1, 1 - b.element_bytes, a.element_bytes - 1);
    }
    for (int d = 0; d < a.dimensions; d++) {
        if (a.sizes[d] > 1 && a.strides[d] > 0) {
            equation.add(a.strides[d] * a.element_bytes, 0, a.sizes[d] - 1);
        }
    }
    for (int d = 0; d < b.dimensions; d++) {
        if (b.sizes[d] > 1 && b.strides[d] > 0) {
            equation.add(b.strides[d] * b.element_bytes, 1 - b.sizes[d], 0);
        }
    }
    return equation.may_have_solution(distance);
}

namespace {

bool same_view(const Footprint &a, const Footprint &b) {
    if (a.data != b.data || a.element_bytes != b.element_bytes || a.dimensions != b.dimensions) {
        return false;
    }
    for (int d = 0; d < a.dimensions; d++) {
        if (a.sizes[d] != b.sizes[d] || (a.sizes[d] > 1 && a.strides[d] != b.strides[d])) {
            return false;
        }
    }
    return true;
}

}  // namespace

bool may_overlap_itself(const Footprint &f) {
    if (!f.data || (f.dimensions == 1 && f.strides[0] > 0)) {
        return false;
    }
    int order[4] = {0, 1, 2, 3};
    small_sort(order, f.dimensions, [&](int a, int b) { return f.strides[a] < f.strides[b]; });
    int64_t reach = 0;
    bool nests = true;  // each step leaps over all that the smaller ones reach
    for (int i = 0; i < f.dimensions; i++) {
        const int d = order[i];
        if (f.sizes[d] > 1) {
            if (f.strides[d] == 0) {
                return true;
            }
            nests = nests && f.strides[d] > reach;
            reach += (f.sizes[d] - 1) * f.strides[d];
        }
    }
    if (nests) {
        return false;
    }
    // Two elements in one place: their indices first differ, by k >= 1, in the i-th dimension, and differ by anything
    // in those with smaller strides.
    for (int i = 1; i < f.dimensions; i++) {
        const int d = order[i];
        if (f.sizes[d] < 2) {
            continue;
        }
        Equation equation;
        equation.add(f.strides[d], 1, f.sizes[d] - 1);
        for (int j = 0; j < i; j++) {
            const int e = order[j];
            if (f.sizes[e] > 1) {
                equation.add(f.strides[e], 1 - f.sizes[e], f.sizes[e] - 1);
            }
        }
        if (equation.may_have_solution(0)) {
            return true;
        }
    }
    return false;
}

hbn_status check_overlap(const Footprints &inputs, const Footprints &outputs, const char *in_place,
                         const char *in_place_of) {
    for (const Footprint *out = outputs.begin(); out != outputs.end(); ++out) {
        if (may_overlap_itself(*out)) {
            return fail(HBN_INVALID_ARGUMENT, text::self_overlap, out->name);
        }
        for (const Footprint &in : inputs) {
            if (may_overlap(in, *out) &&
                !(out->name == in_place && in.name == in_place_of && same_view(*out, in))) {
                return fail(HBN_INVALID_ARGUMENT, text::overlap, in.name, out->name);
            }
        }
        for (const Footprint *other = outputs.begin(); other != out; ++other) {
            if (may_overlap(*other, *out)) {
                return fail(HBN_INVALID_ARGUMENT, text::outputs_overlap, other->name, out->name);
            }
        }
    }
    return HBN_OK;
}

}  // namespace hbn::internal
