#include "layout.h"

#include "runtime/checks.h"
#include "runtime/small_sort.h"

#include <algorithm>
#include <cstdint>

namespace hbn::internal {

namespace {

thread_local Choice last;

using Dimension = KernelView::Dimension;

// The reduced dimensions N, H, W of all tensors of a call in the fewest dimensions that describe
// them: they are interchangeable, and adjacent ones merge where every tensor steps evenly through
// both.
struct Geometry {
    int tensors;
    Dimension reduced[3];  // innermost first
    int num_reduced = 0;
    Dimension channels;
    int64_t elements = 1, element_bytes;
    int64_t bytes = 0;  // of all tensors

    Geometry(const hbn_tensor *const *all, int count)
        : tensors(count), element_bytes(element_size(all[0]->dtype)) {
        static const int kReduced[3] = {3, 2, 0};
        for (int i = 0; i < count; i++) {
            channels.strides[i] = all[i]->strides[1];
            for (int d = 0; d < 3; d++) {
                reduced[d].strides[i] = all[i]->strides[kReduced[d]];
            }
        }
        channels.size = all[0]->sizes[1];
        for (int d = 0; d < 3; d++) {
            reduced[d].size = all[0]->sizes[kReduced[d]];
        }
        for (int d = 0; d < 4; d++) {
            elements *= all[0]->sizes[d];
        }
        for (int i = 0; i < count; i++) {
            bytes += elements * element_size(all[i]->dtype);
        }
        simplify();
    }

    bool unit_stride(const Dimension &d) const {
        return std::all_of(d.strides, d.strides + tensors, [](int64_t s) { return s == 1; });
    }

    // Whether `outer` steps over exactly what `inner` covers, in every tensor.
    bool continues(const Dimension &outer, const Dimension &inner) const {
        for (int i = 0; i < tensors; i++) {
            if (outer.strides[i] != inner.size * inner.strides[i]) {
                return false;
            }
        }
        return true;
    }

    // Whether `d` is the innermost dimension of every tensor, with gaps between elements.
    bool none_is_dense_along(const Dimension &d) const {
        for (int i = 0; i < tensors; i++) {
            const auto is_outer = [&](const Dimension &other) {
                return other.size == 1 || other.strides[i] >= d.strides[i];
            };
            if (d.strides[i] < 2 || !is_outer(channels) ||
                !std::all_of(reduced, reduced + num_reduced, is_outer)) {
                return false;
            }
        }
        return true;
    }

private:
    void simplify() {
        num_reduced = int(
            std::remove_if(reduced, reduced + 3, [](const Dimension &d) { return d.size == 1; }) -
            reduced);
        small_sort(reduced, num_reduced, [](const Dimension &a, const Dimension &b) {
            return a.strides[0] < b.strides[0];
        });
        for (int outer = num_reduced - 1; outer > 0; outer--) {
            if (continues(reduced[outer], reduced[outer - 1])) {
                reduced[outer - 1].size *= reduced[outer].size;
                std::copy(reduced + outer + 1, reduced + num_reduced, reduced + outer);
                num_reduced--;
            }
        }
    }
};

// The same dimension in steps of `step`.
Dimension every(const Dimension &d, int64_t step, int tensors) {
    Dimension stepped = d;
    stepped.size = d.size / step;
    for (int i = 0; i < tensors; i++) {
        stepped.strides[i] *= step;
    }
    return stepped;
}

// The choices' numbers are in thresholds.def.

constexpr int64_t kLine = 64;

// The largest divisor of n, up to `most`, of which that many `bytes` are whole cache lines; failing
// that, the largest.
int64_t largest_divisor(int64_t n, int64_t most, int64_t bytes) {
    int64_t largest = 1;
    for (int64_t d = std::min(n, most); d > 1; d--) {
        if (n % d == 0) {
            if (d * bytes % kLine == 0) {
                return d;
            }
            largest = std::max(largest, d);
        }
    }
    return largest;
}

// Dense channels as rows of columns.
void rows_of_channels(const Geometry &g, const Thresholds &t, KernelView *out) {
    KernelView &view = *out;
    view.layout = Layout::rows;
    view.channels = g.channels.size;
    view.dimensions[0] = g.channels;
    if (g.num_reduced > 0) {
        view.dimensions[2] = g.reduced[0];
    }
    if (g.channels.size > t.nhwc_columns) {
        view.channels = largest_divisor(g.channels.size, t.nhwc_columns, g.element_bytes);
        view.dimensions[0].size = view.channels;
        view.dimensions[1] = every(g.channels, view.channels, g.tensors);
    } else if (g.num_reduced == 1 && g.continues(g.reduced[0], g.channels)) {
        // Several pixels side by side.
        const int64_t most =
            std::min(t.nhwc_columns / g.channels.size, g.reduced[0].size / t.fewest_folded_rows);
        const int64_t folds =
            largest_divisor(g.reduced[0].size, most, g.channels.size * g.element_bytes);
        view.folds = int32_t(folds);
        if (g.channels.size < t.few_row_channels) {
            view.parts = int32_t(largest_divisor(folds, kMostParts / g.channels.size, kLine));
        }
        view.dimensions[0].size *= folds;
        view.dimensions[2] = every(g.reduced[0], folds, g.tensors);
    }
}

// Small dense planes as rows of columns: whole channels side by side.
void blocks_of_channels(const Geometry &g, const Thresholds &t, KernelView *out) {
    KernelView &view = *out;
    const int64_t most =
        g.bytes > t.cached_bytes ? t.block_bytes_to_stream / g.element_bytes : t.block_columns;
    view.layout = Layout::blocks;
    view.plane = int32_t(g.reduced[0].size);
    view.channels =
        largest_divisor(g.channels.size, most / view.plane, view.plane * g.element_bytes);
    view.dimensions[0] = g.reduced[0];
    view.dimensions[0].size *= view.channels;
    view.dimensions[1] = every(g.channels, view.channels, g.tensors);
    view.dimensions[2] = g.reduced[1];
}

void four_dimensions(const Geometry &g, Layout layout, KernelView *out) {
    KernelView &view = *out;
    view.layout = layout;
    if (g.num_reduced > 0) {
        view.dimensions[0] = g.reduced[0];
    }
    if (g.num_reduced > 2) {
        view.dimensions[1] = g.reduced[1];
    }
    view.dimensions[2] = g.channels;
    if (g.num_reduced > 1) {
        view.dimensions[3] = g.reduced[g.num_reduced - 1];
    }
}

}  // namespace

namespace {

// Whether rows of the output are whole lines, which streaming stores are fast on.
bool aligned(const KernelView &view, const hbn_tensor &output, int index) {
    const int64_t bytes = element_size(output.dtype);
    uint64_t all = reinterpret_cast<uintptr_t>(output.data);
    const int dimensions = view.in_columns() ? 3 : 4;
    for (int d = 1; d < dimensions; d++) {
        if (view.dimensions[d].size > 1) {
            all |= uint64_t(view.dimensions[d].strides[index] * bytes);
        }
    }
    return all % kLine == 0;
}

// Whether whole channels side by side are faster than one after the other, for dense planes.
bool suits_blocks(const Geometry &g, bool reduces, const Thresholds &t) {
    const int64_t plane = g.reduced[0].size;
    // A line that two planes share can't be streamed, unless they are side by side.
    if (g.bytes > t.cached_bytes && plane * g.element_bytes % kLine != 0) {
        return plane <= (reduces ? t.block_plane_to_sum : t.block_plane_to_stream);
    }
    if (!reduces) {
        return plane <= t.block_plane_to_map;
    }
    return g.elements > t.few_block_elements &&
           plane <= (g.element_bytes == 2 ? t.narrow_block_plane_to_sum : t.block_plane_to_sum);
}

// Whether to store past the cache. Not two outputs at once of which only parts of a page are stored together,
// short rows or rows of 16 bits: that took up to 1.4 times as long as ordinary stores.
bool suits_streaming(const Geometry &g, Layout layout, size_t outputs, const Thresholds &t) {
    const bool by_the_page = layout != Layout::blocks && g.element_bytes >= 4;
    return g.bytes > t.cached_bytes && outputs > 0 && (outputs == 1 || by_the_page);
}

// Which layouts' kernels are right for the tensors, of those that there are.
Layouts serving_layouts(const Geometry &g, bool reduces, Layouts available) {
    const bool dense_channels = g.channels.size > 1 && g.unit_stride(g.channels);
    const bool dense_w = g.num_reduced == 0 || g.unit_stride(g.reduced[0]);
    const bool dense_planes =
        dense_w && g.num_reduced == 2 && g.continues(g.channels, g.reduced[0]);
    Layouts serving;
    const auto serves = [&](Layout layout, bool is_right) {
        serving[size_t(layout)] = is_right && available[size_t(layout)];
    };
    serves(Layout::nchw, dense_w);
    serves(Layout::nchw_few_channels, dense_w && reduces);
    serves(Layout::blocks, dense_planes);
    serves(Layout::rows, dense_channels && g.num_reduced <= 1);
    serves(Layout::nhwc, dense_channels);
    serves(Layout::strided, true);
    return serving;
}

Layout fastest_layout(const Geometry &g, bool reduces, Layouts serving, const Thresholds &t) {
    const auto serves = [&](Layout layout) { return serving[size_t(layout)]; };
    if (serves(Layout::rows)) {
        return Layout::rows;
    }
    if (serves(Layout::nhwc)) {
        return Layout::nhwc;
    }
    if (serves(Layout::blocks) && g.reduced[1].size >= t.fewest_rows &&
        suits_blocks(g, reduces, t)) {
        return Layout::blocks;
    }
    if (serves(Layout::nchw_few_channels) && g.channels.size < t.few_channels &&
        g.elements > t.few_elements) {
        return Layout::nchw_few_channels;
    }
    return serves(Layout::nchw) ? Layout::nchw : Layout::strided;
}

void choose_layout(const Geometry &g, bool reduces, Layouts available, const Thresholds &t,
                   KernelView *view) {
    const Layouts serving = serving_layouts(g, reduces, available);
    // Longer rows than these thresholds allow would take more scratch memory than was booked.
    const bool is_wanted =
        t.layout >= 0 && serving[size_t(t.layout)] &&
        (Layout(t.layout) != Layout::blocks || g.reduced[0].size <= t.block_columns);
    const Layout layout = is_wanted ? Layout(t.layout) : fastest_layout(g, reduces, serving, t);
    switch (layout) {
    case Layout::rows:
        return rows_of_channels(g, t, view);
    case Layout::blocks:
        return blocks_of_channels(g, t, view);
    default:
        return four_dimensions(g, layout, view);
    }
}

// ---- cuts. They depend on the shape alone, never on the number of threads: that keeps results bitwise the same.
// How accurate sums are depends on how large tiles are: generators/reductions.h, Pivot.

// One in so many of a tile's values is in its sample, at least.
constexpr int64_t kSampled = 64;

int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Of the fewest parts that have at most `most` each: a last part that is much smaller than the others would
// cost as much.
int64_t even_share(int64_t all, int64_t most) {
    return all <= most ? all : ceil_div(all, ceil_div(all, most));
}

Cut cut_planes(const KernelView &view, const Thresholds &t) {
    const int64_t width = view.dimensions[0].size, height = view.dimensions[1].size,
                  samples = view.dimensions[3].size;
    const int64_t budget =
        view.layout == Layout::nhwc
            ? std::max<int64_t>(t.row_tile_elements / view.dimensions[2].size, 16)
            : t.tile_elements;
    const int64_t units = ceil_div(even_share(width, budget), tile_width_unit);
    const int64_t w = std::min(units * tile_width_unit, width);
    const int64_t h = even_share(height, std::max<int64_t>(budget / w, 1));
    const int64_t n = even_share(samples, std::max<int64_t>(budget / (w * h), 1));
    const int64_t sampled = ceil_div(ceil_div(w * h * n, kSampled), sample_width_unit);
    const int64_t sample_units = std::min(sampled, std::max<int64_t>(w / sample_width_unit, 1));
    const int64_t sample_h = std::min(h, ceil_div(sampled, sample_units));
    const int64_t sample_n = std::min(n, ceil_div(sampled, sample_units * sample_h));
    return {int32_t(units),
            int32_t(h),
            int32_t(n),
            int32_t(ceil_div(width, units * tile_width_unit)),
            int32_t(ceil_div(height, h)),
            int32_t(ceil_div(samples, n)),
            int32_t(sample_units),
            int32_t(sample_h),
            int32_t(sample_n)};
}

Cut cut_rows(const KernelView &view, const Thresholds &t) {
    const int64_t columns = view.dimensions[0].size, rows = view.dimensions[2].size;
    const int64_t enough = view.layout == Layout::rows
                               ? std::max(t.row_tile_elements / columns, t.row_tile_rows)
                               : std::max(t.block_tile_elements / columns, t.block_tile_rows);
    Cut cut;
    cut.units = int32_t(ceil_div(even_share(rows, enough), tile_row_unit));
    cut.tiles_w = int32_t(ceil_div(rows, cut.units * tile_row_unit));
    return cut;
}

}  // namespace

void choose_view(const hbn_tensor *const *tensors, int count, std::bitset<kMostTensors> streamable,
                 bool reduces, Layouts available, const Thresholds &t, KernelView *view) {
    const Geometry g(tensors, count);
    choose_layout(g, reduces, available, t, view);
    view->stream = suits_streaming(g, view->layout, streamable.count(), t);
    for (int i = 0; i < count; i++) {
        view->stream = view->stream && (!streamable[i] || aligned(*view, *tensors[i], i));
    }
    if (reduces) {
        view->cut = view->in_columns() ? cut_rows(*view, t) : cut_planes(*view, t);
    }
    last = {view->layout, view->stream, false, false, false};
}

bool suit_kernels(const hbn_tensor *const *tensors, int count, bool reduces, Layouts available) {
    const Geometry g(tensors, count);
    const bool dense_channels = g.channels.size > 1 && g.unit_stride(g.channels);
    // Those of 16 bits gain more from copies.
    const bool maps_any_row = !reduces && g.element_bytes >= 4;
    if (dense_channels && g.num_reduced <= 1 && available[size_t(Layout::rows)]) {
        return maps_any_row || g.num_reduced == 0 ||
               g.channels.size * g.element_bytes >= copy_thresholds::wide_row ||
               g.continues(g.reduced[0], g.channels);
    }
    if (dense_channels && available[size_t(Layout::nhwc)]) {
        return true;
    }
    if (!available[size_t(Layout::nchw)]) {
        return true;  // copies would be served no better
    }
    if (g.num_reduced == 0) {
        return false;
    }
    if (!g.unit_stride(g.reduced[0])) {
        // Copies of all, the output too, cost more than the kernel for any strides.
        return maps_any_row && g.none_is_dense_along(g.reduced[0]);
    }
    return maps_any_row || g.reduced[0].size * g.element_bytes >= copy_thresholds::wide_row ||
           (g.num_reduced <= 2 && g.continues(g.channels, g.reduced[0]));
}

Choice last_view() {
    return last;
}

void record_staging(bool staged) {
    last.staged = staged;
}

void record_tuning(bool tuned, bool tuned_kernel) {
    last.tuned = tuned;
    last.tuned_kernel = tuned_kernel;
}

}  // namespace hbn::internal
