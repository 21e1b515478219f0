#include "fuzz.h"

#include "runtime/checks.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

namespace hbn::test {

namespace {

using internal::Footprint;

OverlapCounts counts;

// The memory that footprints are in. Nothing is read or written there.
constexpr int64_t kArena = 4096;
alignas(64) char arena[kArena];

struct View {
    hbn_tensor tensor{};
    int64_t bytes = 0;

    Footprint footprint() const {
        return Footprint(internal::NamedTensor{"view", &tensor});
    }
    // The address of the first byte of each element.
    std::vector<uintptr_t> elements() const {
        std::vector<uintptr_t> all;
        const int64_t *s = tensor.sizes;
        for (int64_t i = 0; i < s[0] * s[1] * s[2] * s[3]; i++) {
            int64_t rest = i, offset = 0;
            for (int d = 0; d < 4; d++) {
                offset += rest % s[d] * tensor.strides[d];
                rest /= s[d];
            }
            all.push_back(uintptr_t(tensor.data) + uintptr_t(offset * bytes));
        }
        return all;
    }
};

std::string text_of(const View &v) {
    char text[256];
    const hbn_tensor &t = v.tensor;
    std::snprintf(text, sizeof text, "%lld bytes at %lld, sizes %d %d %d %d, strides %d %d %d %d",
                  (long long)v.bytes, (long long)(static_cast<char *>(t.data) - arena),
                  int(t.sizes[0]), int(t.sizes[1]), int(t.sizes[2]), int(t.sizes[3]),
                  int(t.strides[0]), int(t.strides[1]), int(t.strides[2]), int(t.strides[3]));
    return text;
}

// Strides as slices of one dense tensor have them, or any.
View make_view(Choices &choices, const View *like) {
    View v;
    hbn_tensor &t = v.tensor;
    t.ndim = 4;
    t.dtype = choices.pick({HBN_FLOAT32, HBN_FLOAT64, HBN_BFLOAT16, HBN_UINT8});
    v.bytes = internal::element_size(t.dtype);
    int64_t next = 1;
    const bool same_strides = like && like->bytes == v.bytes && choices.one_in(2);
    const bool nested = choices.one_in(2);
    for (int d = 3; d >= 0; d--) {
        t.sizes[d] = choices.between(1, 4);
        t.strides[d] = same_strides ? like->tensor.strides[d]
                       : nested     ? next * choices.between(1, 2)
                                    : choices.between(0, 20);
        next = std::max(next, t.strides[d] * (t.sizes[d] + choices.between(0, 1)));
        if (choices.one_in(12)) {
            t.strides[d] = choices.pick<int64_t>({0, 1, t.strides[std::min(d + 1, 3)]});
        }
    }
    int64_t last = 0;
    for (int d = 0; d < 4; d++) {
        last += (t.sizes[d] - 1) * t.strides[d];
    }
    const int64_t room = kArena / v.bytes - last;
    if (room <= 0) {
        std::fill_n(t.strides, 4, 1);
    }
    // Mostly near each other. In units of elements, as checks have seen to, and sometimes not.
    const int64_t offset =
        choices.between(0, std::min<int64_t>(std::max<int64_t>(room, 1), 40) - 1);
    t.data =
        arena + offset * v.bytes + (choices.one_in(8) && room > 41 ? choices.between(0, 7) : 0);
    return v;
}

// Whether no smaller strides reach as far as one step of a larger one, in either view.
bool nest(const View &a, const View &b) {
    std::vector<int64_t> steps;
    for (const View *v : {&a, &b}) {
        for (int d = 0; d < 4; d++) {
            if (v->tensor.sizes[d] > 1) {
                steps.push_back(v->tensor.strides[d] * v->bytes);
            }
        }
    }
    for (const int64_t step : steps) {
        for (const View *v : {&a, &b}) {
            int64_t reach = v->bytes;
            for (int d = 0; d < 4; d++) {
                const int64_t mine = v->tensor.strides[d] * v->bytes;
                reach += mine < step ? (v->tensor.sizes[d] - 1) * mine : 0;
            }
            if (reach > step) {
                return false;
            }
        }
    }
    return true;
}

}  // namespace

const OverlapCounts &overlap_counts() {
    return counts;
}

void fuzz_overlap(Choices &choices) {
    const View a = make_view(choices, nullptr), b = make_view(choices, &a);
    counts.cases++;

    std::set<uintptr_t> bytes_of_a;
    bool overlaps = false, overlaps_itself = false;
    for (const uintptr_t element : a.elements()) {
        for (int64_t i = 0; i < a.bytes; i++) {
            overlaps_itself = !bytes_of_a.insert(element + uintptr_t(i)).second || overlaps_itself;
        }
    }
    for (const uintptr_t element : b.elements()) {
        for (int64_t i = 0; i < b.bytes; i++) {
            overlaps = overlaps || bytes_of_a.count(element + uintptr_t(i));
        }
    }
    counts.disjoint += !overlaps;

    const bool answer = internal::may_overlap(a.footprint(), b.footprint());
    HBN_HOLDS(choices, internal::may_overlap(b.footprint(), a.footprint()) == answer, "%s; %s",
              text_of(a).c_str(), text_of(b).c_str());
    HBN_HOLDS(choices, answer || !overlaps, "%s; %s", text_of(a).c_str(), text_of(b).c_str());
    HBN_HOLDS(choices, answer == overlaps || !nest(a, b), "%s; %s", text_of(a).c_str(),
              text_of(b).c_str());
    counts.refused_wrongly += answer != overlaps;

    const bool own_answer = internal::may_overlap_itself(a.footprint());
    HBN_HOLDS(choices, own_answer || !overlaps_itself, "%s", text_of(a).c_str());
    HBN_HOLDS(choices, own_answer == overlaps_itself || !nest(a, a), "%s", text_of(a).c_str());
    counts.refused_wrongly += own_answer != overlaps_itself;
}

}  // namespace hbn::test
