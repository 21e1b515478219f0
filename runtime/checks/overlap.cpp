#include "overlap.h"

#include "dtypes.h"
#include "runtime/small_sort.h"
#include "texts.h"

#include <algorithm>
#include <cstring>

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

// True unless every element surely has memory of its own: sorted by stride, each step must leap
// over all that the smaller strides reach.
bool overlaps_itself(const Footprint &f) {
    int order[4] = {0, 1, 2, 3};
    small_sort(order, f.dimensions, [&](int a, int b) { return f.strides[a] < f.strides[b]; });
    int64_t reach = 0;
    for (int i = 0; i < f.dimensions; i++) {
        const int d = order[i];
        if (f.sizes[d] > 1) {
            if (f.strides[d] <= reach) {
                return true;
            }
            reach += (f.sizes[d] - 1) * f.strides[d];
        }
    }
    return false;
}

// One unknown k in [low, high] of the equation sum(k * stride) = distance.
struct Step {
    int64_t stride, low, high;
};

// Whether the equation may have a solution. With nested strides each level has one or two
// candidates.
bool may_reach(const Step *steps, int count, int64_t distance) {
    if (count == 0) {
        return distance == 0;
    }
    int64_t rest_low = 0, rest_high = 0;
    for (int i = 1; i < count; i++) {
        rest_low += steps[i].low * steps[i].stride;
        rest_high += steps[i].high * steps[i].stride;
    }
    const Step &s = steps[0];
    // rest_low <= distance - k * stride <= rest_high
    const auto floor_div = [](int64_t a, int64_t b) { return a / b - (a % b < 0); };
    const int64_t first = std::max(s.low, -floor_div(rest_high - distance, s.stride));
    const int64_t last = std::min(s.high, floor_div(distance - rest_low, s.stride));
    if (last - first >= 4) {
        return true;  // not worth the search
    }
    for (int64_t k = first; k <= last; k++) {
        if (may_reach(steps + 1, count - 1, distance - k * s.stride)) {
            return true;
        }
    }
    return false;
}

bool elements_overlap(const Footprint &a, const Footprint &b) {
    // A byte of an element of a is one of b's when sum(i * stride) - sum(j * stride) = b0 - a0.
    // Equal strides share one unknown, i - j.
    Step steps[9] = {};
    int count = 0;
    const auto add = [&](int64_t stride, int64_t low, int64_t high) {
        for (int i = 0; i < count; i++) {
            if (steps[i].stride == stride) {
                steps[i].low += low;
                steps[i].high += high;
                return;
            }
        }
        steps[count++] = {stride, low, high};
    };
    add(1, 1 - b.element_bytes, a.element_bytes - 1);
    for (int d = 0; d < a.dimensions; d++) {
        if (a.sizes[d] > 1 && a.strides[d] > 0) {
            add(a.strides[d] * a.element_bytes, 0, a.sizes[d] - 1);
        }
    }
    for (int d = 0; d < b.dimensions; d++) {
        if (b.sizes[d] > 1 && b.strides[d] > 0) {
            add(b.strides[d] * b.element_bytes, 1 - b.sizes[d], 0);
        }
    }
    small_sort(steps, count, [](const Step &l, const Step &r) { return l.stride > r.stride; });
    return may_reach(steps, count, int64_t(b.begin - a.begin));
}

bool overlap(const Footprint &a, const Footprint &b) {
    return a.data && b.data && a.begin < b.end && b.begin < a.end && elements_overlap(a, b);
}

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

bool same_name(const char *a, const char *b) {
    return a && b && std::strcmp(a, b) == 0;
}

}  // namespace

hbn_status check_overlap(const Footprints &inputs, const Footprints &outputs, const char *in_place,
                         const char *in_place_of) {
    for (const Footprint *out = outputs.begin(); out != outputs.end(); ++out) {
        if (overlaps_itself(*out)) {
            return fail(HBN_INVALID_ARGUMENT, text::self_overlap, out->name);
        }
        for (const Footprint &in : inputs) {
            if (!overlap(in, *out)) {
                continue;
            }
            const bool allowed = same_name(out->name, in_place) &&
                                 same_name(in.name, in_place_of) && same_view(*out, in);
            if (!allowed) {
                return fail(HBN_INVALID_ARGUMENT, text::overlap, in.name, out->name);
            }
        }
        for (const Footprint *other = outputs.begin(); other != out; ++other) {
            if (overlap(*other, *out)) {
                return fail(HBN_INVALID_ARGUMENT, text::outputs_overlap, other->name, out->name);
            }
        }
    }
    return HBN_OK;
}

}  // namespace hbn::internal
