#include "tuning.h"

#include "kernels.h"
#include "pieces.h"
#include "staging.h"
#include "runtime/checks.h"
#include "runtime/context.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace hbn::internal {

const TunedEntry *first_tuned_entries[kKernels][kDTypes];

namespace {

constexpr bool defaults_are_in_range() {
    bool all = true;
    for (const ThresholdRow &row : kThresholdRows) {
        const int64_t initial = kDefaultThresholds.*row.member;
        all = all && initial >= row.least && initial <= row.most;
    }
    return all;
}
static_assert(defaults_are_in_range(),
              "thresholds.def: a default is not between its least and most");

constexpr bool layouts_are_all() {
    for (const ThresholdRow &row : kThresholdRows) {
        if (row.member == &Thresholds::layout) {
            return row.least == -1 && row.most == kLayouts - 1;
        }
    }
    return false;
}
static_assert(layouts_are_all(), "thresholds.def: `layout` is -1 or a row of layouts.def");

TunedEntries compiled{nullptr, 0};
const char *used_processor = nullptr;
ThresholdRange range;

// An entry by set_tuning(). Nothing comes after it where entries are looked for.
struct OwnedEntry : TunedEntry {
    OwnedEntry *more;
};
OwnedEntry *owned = nullptr;

void extend_range(const Thresholds &used) {
    for (const ThresholdRow &row : kThresholdRows) {
        const int64_t value = used.*row.member;
        range.least.*row.member = std::min(range.least.*row.member, value);
        range.most.*row.member = std::max(range.most.*row.member, value);
    }
}

const char *processor_to_use() {
    return used_processor ? used_processor : processor_name();
}

// Entries of this processor, in the file's order, and tunings in place of them.
void link_entries() {
    range = {};
    for (auto &of_kernel : first_tuned_entries) {
        std::fill(of_kernel, of_kernel + kDTypes, nullptr);
    }
    for (int i = compiled.count - 1; i >= 0; i--) {
        TunedEntry &entry = compiled.first[i];
        if (std::strcmp(entry.processor, processor_to_use()) == 0) {
            const TunedEntry *&first = first_tuned_entries[int(entry.kernel)][entry.dtype];
            entry.next = first;
            first = &entry;
            extend_range(entry.tuning.thresholds);
        }
    }
    for (const OwnedEntry *entry = owned; entry; entry = entry->more) {
        first_tuned_entries[int(entry->kernel)][entry->dtype] = entry;
        extend_range(entry->tuning.thresholds);
    }
}

constexpr Order kNchw{3, 2, 1, 0}, kNhwc{1, 3, 2, 0};

bool all_are_dense(const Order &order, const hbn_tensor *const *tensors, int count) {
    return std::all_of(tensors, tensors + count,
                       [&](const hbn_tensor *t) { return is_dense(order, *t); });
}

hbn_status check_range(const ThresholdRow &row, int64_t value) {
    return value >= row.least && value <= row.most
               ? HBN_OK
               : fail(HBN_INVALID_ARGUMENT, text::threshold_range, row.name, (long long)row.least,
                      (long long)row.most, (long long)value);
}

}  // namespace

void load_tuned_entries(TunedEntries all) {
    compiled = all;
    link_entries();
}

TunedEntries all_tuned_entries() {
    has_every_kernel();  // loads them
    return compiled;
}

void set_processor_name(const char *name) {
    has_every_kernel();
    used_processor = name;
    link_entries();
}

const ThresholdRange &thresholds_in_use() {
    return range;
}

const TunedEntry *find_tuned_entry(const TunedEntry *first, const hbn_tensor *const *tensors,
                                   int count) {
    // Of those that are both, with one channel or one pixel, the first.
    const bool in_nchw = all_are_dense(kNchw, tensors, count);
    if (!in_nchw && !all_are_dense(kNhwc, tensors, count)) {
        return nullptr;
    }
    const int instruction_set = instruction_set_in_use();
    for (const TunedEntry *entry = first; entry; entry = entry->next) {
        if (entry->is_for(!in_nchw, tensors[0]->sizes) &&
            (entry->instruction_set < 0 || entry->instruction_set == instruction_set)) {
            return entry;
        }
    }
    return nullptr;
}

// ---- for the tuner and for tests

hbn_status set_tuning(Kernel kernel, hbn_dtype dtype, const Tuning &tuning) {
    for (const ThresholdRow &row : kThresholdRows) {
        HBN_TRY(check_range(row, tuning.thresholds.*row.member));
    }
    if (!has_kernel(kernel, dtype)) {
        return no_kernel(kernel, dtype);
    }
    for (const CompiledKernel &mine : tuning.kernels) {
        if (mine.call) {
            HBN_TRY(check_signature(kernel, dtype, *mine.metadata()));
        }
    }
    OwnedEntry *entry = owned;
    while (entry && (entry->kernel != kernel || entry->dtype != dtype)) {
        entry = entry->more;
    }
    if (!entry) {
        entry = new (std::nothrow) OwnedEntry;
        if (!entry) {
            return fail(HBN_OUT_OF_MEMORY, text::no_memory_for_context);
        }
        entry->more = owned;
        owned = entry;
    }
    constexpr int64_t all = std::numeric_limits<int64_t>::max();
    static_cast<TunedEntry &>(*entry) = {kernel,          dtype,   nullptr, true, true, {0, 0, 0},
                                         {all, all, all}, nullptr, -1,      "",   1,    tuning};
    link_entries();
    return HBN_OK;
}

void clear_tunings() {
    has_every_kernel();
    while (owned) {
        OwnedEntry *entry = owned;
        owned = entry->more;
        delete entry;
    }
    link_entries();
}

hbn_status set_threshold(const char *name, const char *value, Thresholds *thresholds) {
    for (const ThresholdRow &row : kThresholdRows) {
        if (std::strcmp(row.name, name) != 0) {
            continue;
        }
        const auto *layout = std::find_if(kLayoutNames, kLayoutNames + kLayouts, [&](auto *other) {
            return std::strcmp(value, other) == 0;
        });
        if (row.member == &Thresholds::layout && layout != kLayoutNames + kLayouts) {
            thresholds->layout = layout - kLayoutNames;
            return HBN_OK;
        }
        char *end;
        const long long number = std::strtoll(value, &end, 10);
        if (end == value || *end) {
            return fail(HBN_INVALID_ARGUMENT, text::threshold_number, name, (long long)row.least,
                        (long long)row.most, value);
        }
        HBN_TRY(check_range(row, number));
        thresholds->*row.member = number;
        return HBN_OK;
    }
    constexpr char names[] =
#define HBN_THRESHOLD(name, initial, least, most, description) " " #name
#include "thresholds.def"
        ;
    return fail(HBN_INVALID_ARGUMENT, text::unknown_threshold, name, names);
}

// ---- for hbn-info

namespace {

const char *why_no_entry(Kernel kernel, hbn_dtype dtype, const int64_t *sizes, bool in_nhwc) {
    bool for_kernel = false, for_shape = false, for_processor = false;
    const TunedEntries all = all_tuned_entries();
    for (int i = 0; i < all.count; i++) {
        const TunedEntry &entry = all.first[i];
        const bool is_for_kernel = entry.kernel == kernel && entry.dtype == dtype;
        const bool is_for_shape = is_for_kernel && entry.is_for(in_nhwc, sizes);
        for_kernel = for_kernel || is_for_kernel;
        for_shape = for_shape || is_for_shape;
        for_processor = for_processor ||
                        (is_for_shape && std::strcmp(entry.processor, processor_to_use()) == 0);
    }
    return !for_kernel                    ? "no entry for this kernel and dtype"
           : !for_shape                   ? "no entry for this shape and layout"
           : !for_processor               ? "no entry for this CPU"
           : instruction_set_in_use() < 0 ? "no instruction set in use"
                                          : "no entry for this instruction set";
}

}  // namespace

hbn_status explain_call(Kernel kernel, hbn_dtype dtype, const int64_t (&sizes)[4], bool in_nhwc,
                        Explanation *explanation) {
    const Signature *signature;
    HBN_TRY(signature_of(kernel, dtype, &signature));
    hbn_tensor tensor{};
    tensor.dtype = dtype;
    std::copy(sizes, sizes + 4, tensor.sizes);
    set_dense_strides(in_nhwc ? kNhwc : kNchw, &tensor);
    Values values;
    values.set(Arg::x, tensor);
    if (channels_per_block(values, sizes[1]) < sizes[1] || !Pieces(values).one()) {
        return fail(HBN_UNSUPPORTED, text::in_pieces);
    }
    hbn_tensor all[kMostTensors];
    const hbn_tensor *tensors[kMostTensors];
    std::bitset<kMostTensors> streamable;
    int count = 0;
    for (const Signature::Argument &argument : *signature) {
        if (is_tensor(argument.arg)) {
            all[count] = tensor;
            all[count].dtype = argument.role == Role::mask ? HBN_UINT8 : dtype;
            streamable[count] = argument.is_output && argument.role != Role::mask;
            tensors[count] = &all[count];
            count++;
        }
    }
    const TunedEntry *entry = tuned_entry(kernel, dtype, tensors, count);
    const Thresholds &thresholds = tuning_of(entry).thresholds;
    *explanation = {};
    explanation->entry = entry;
    explanation->why_none = entry ? nullptr : why_no_entry(kernel, dtype, sizes, in_nhwc);
    explanation->serial = sizes[0] * sizes[1] * sizes[2] * sizes[3] < thresholds.serial_elements;
    choose_view(tensors, count, streamable, row(kernel).kind == KernelKind::sums,
                layouts_of(kernel, dtype), thresholds, &explanation->view);
    return HBN_OK;
}

}  // namespace hbn::internal
