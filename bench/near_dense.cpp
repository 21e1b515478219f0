// What a call on a near-dense view costs against copying it first and calling on the copy.
//
//     near_dense [threads] [part of a case's name] [part of a size's name]
//
// The two are called in turn, on the same memory, and the minima compared: on a shared machine the ratio says more than
// either time. Above 1, copying first would be faster.
#include "runtime/checks.h"
#include "runtime/engine/copy.h"
#include "runtime/engine/layout.h"

#include <hbn/hbn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <ctime>
#include <string>
#include <vector>

namespace {

using hbn::internal::copy;

void require(hbn_status status) {
    if (status != HBN_OK) {
        std::fprintf(stderr, "%s\n", hbn_last_error());
        std::exit(1);
    }
}

struct Sizes {
    const char *name;
    int64_t n, c, h, w;
};

// Strides of a tensor of sizes (N, C, H, W), and where its elements are within memory.
struct View {
    const char *name;
    int64_t strides[4];
    int64_t elements;  // of the memory
};

constexpr int kN = 0, kC = 1, kH = 2, kW = 3;

// A view of dense memory of `order`, outermost first, whose dimensions have some more elements than the view, or
// of which it takes every second.
View view_of(const char *name, const Sizes &s, const int (&order)[4], const int64_t (&more)[4],
             int64_t step_w = 1) {
    const int64_t sizes[4] = {s.n, s.c, s.h, s.w};
    View v{name, {}, 1};
    for (int i = 3; i >= 0; i--) {
        const int d = order[i];
        v.strides[d] = v.elements;
        v.elements *= (sizes[d] + more[d]) * (d == kW ? step_w : 1);
    }
    v.strides[kW] *= step_w;
    return v;
}

constexpr int kContiguous[4] = {kN, kC, kH, kW}, kChannelsLast[4] = {kN, kH, kW, kC};

struct Case {
    View x, dense;  // dense: in x's order of dimensions, as torch.empty_like has it
    bool dense_output;
};

std::vector<Case> cases_of(const Sizes &s) {
    const int64_t none[4] = {}, rows[4] = {0, 0, s.h, 0}, columns[4] = {0, 0, 0, s.w},
                  channels[4] = {0, s.c, 0, 0}, edges[4] = {0, 0, 2, 2};
    const int hnwc[4] = {kH, kN, kW, kC}, nwhc[4] = {kN, kW, kH, kC}, ncwh[4] = {kN, kC, kW, kH};
    const auto last = [&](const char *name, const int64_t(&more)[4], int64_t step = 1) {
        return Case{view_of(name, s, kChannelsLast, more, step),
                    view_of("", s, kChannelsLast, none), true};
    };
    const auto first = [&](const char *name, const int64_t(&more)[4], int64_t step = 1) {
        return Case{view_of(name, s, kContiguous, more, step), view_of("", s, kContiguous, none),
                    true};
    };
    std::vector<Case> all = {
        last("NHWC crop of rows", rows),
        last("NHWC crop of columns", columns),
        last("NHWC crop of edges", edges),
        last("NHWC crop of channels", channels),
        last("NHWC every other column", none, 2),
        {view_of("HNWC", s, hnwc, none), view_of("", s, hnwc, none), true},
        {view_of("NWHC", s, nwhc, none), view_of("", s, nwhc, none), true},
        {view_of("HNWC, y NHWC", s, hnwc, none), view_of("", s, kChannelsLast, none), true},
        {view_of("NCWH, y NCHW", s, ncwh, none), view_of("", s, kContiguous, none), true},
        {view_of("NHWC, y NCHW", s, kChannelsLast, none), view_of("", s, kContiguous, none), true},
        {view_of("NCHW, y NHWC", s, kContiguous, none), view_of("", s, kChannelsLast, none), true},
        first("NCHW crop of rows", rows),
        first("NCHW crop of columns", columns),
        first("NCHW crop of edges", edges),
        first("NCHW crop of channels", channels),
        first("NCHW every other column", none, 2),
    };
    Case both = last("NHWC crop of edges, all", edges);
    both.dense_output = false;
    all.push_back(both);
    both = first("NCHW every other column, all", none, 2);
    both.dense_output = false;
    all.push_back(both);
    return all;
}

class Memory {
public:
    Memory(const Sizes &s, const View &v) : data_(new float[size_t(v.elements)]) {
        for (int64_t i = 0; i < v.elements; i++) {
            data_[size_t(i)] = float((i * 7919) % 1009) * 0.01f;
        }
        tensor = hbn_tensor{};
        tensor.data = data_.get();
        tensor.dtype = HBN_FLOAT32;
        tensor.ndim = 4;
        const int64_t sizes[4] = {s.n, s.c, s.h, s.w};
        std::copy(sizes, sizes + 4, tensor.sizes);
        std::copy(v.strides, v.strides + 4, tensor.strides);
    }
    hbn_tensor tensor;

private:
    std::unique_ptr<float[]> data_;
};

template<typename T>
hbn_vector vector_of(std::vector<T> &v) {
    hbn_vector result{};
    result.data = v.data();
    result.dtype = sizeof(T) == sizeof(double) ? HBN_FLOAT64 : HBN_FLOAT32;
    result.size = int64_t(v.size());
    result.stride = 1;
    return result;
}

// Of one thread, processor time: that others wanted the processor, too, doesn't count.
double now() {
    timespec t;
    clock_gettime(hbn_get_num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

double seconds(const std::function<void()> &call) {
    const double begin = now();
    call();
    return now() - begin;
}

// Minima of calls in turn, for half a second at most.
void compare(const char *what, const Case &c, const std::function<void()> &direct,
             const std::function<void()> &copied) {
    double best[2] = {1e9, 1e9}, spent = 0;
    direct();
    const auto choice = hbn::internal::last_view();
    copied();
    for (int i = 0; i < 2000 && (i < 7 || spent < 0.2); i++) {
        const double a = seconds(direct), b = seconds(copied);
        best[0] = std::min(best[0], a);
        best[1] = std::min(best[1], b);
        spent += a + b;
    }
    static const char *const layouts[] = {"nchw", "nchw_few", "blocks", "rows", "nhwc", "strided"};
    std::printf("%-30s %-20s %9.1f us %9.1f us  %5.2f%s  %s%s\n", c.x.name, what, best[0] * 1e6,
                best[1] * 1e6, best[0] / best[1], best[0] > 1.05 * best[1] ? " <--" : "    ",
                layouts[int(choice.layout)], choice.staged ? " staged" : "");
    std::fflush(stdout);
}

void measure(const Sizes &s, const Case &c) {
    Memory x(s, c.x), dy(s, c.x), dense_dy(s, c.dense);
    const View &out = c.dense_output ? c.dense : c.x;
    Memory y(s, out), x_copy(s, c.dense), dy_copy(s, c.dense), y_copy(s, c.dense);
    std::vector<float> weight(size_t(s.c), 1.5f), bias(size_t(s.c), 0.5f), mean(size_t(s.c), 5.0f),
        var(size_t(s.c), 8.0f), grad_weight(size_t(s.c)), grad_bias(size_t(s.c));
    std::vector<double> save_mean(size_t(s.c), 5.0), invstd(size_t(s.c), 0.34);
    const hbn_vector w = vector_of(weight), b = vector_of(bias), m = vector_of(mean),
                     v = vector_of(var), gw = vector_of(grad_weight), gb = vector_of(grad_bias),
                     sm = vector_of(save_mean), is = vector_of(invstd);
    const auto output = [&](const std::function<void(const hbn_tensor &)> &call) {
        call(c.dense_output ? y.tensor : y_copy.tensor);
        if (!c.dense_output) {
            require(copy(y_copy.tensor, y.tensor));
        }
    };
    for (const bool training : {true, false}) {
        const auto forward = [&](const hbn_tensor &from, const hbn_tensor &to) {
            require(hbn_batch_norm_forward(&from, &w, &b, &m, &v, training, training ? 0.0 : 0.1,
                                           1e-5, &to, training ? &sm : nullptr,
                                           training ? &is : nullptr));
        };
        compare(
            training ? "forward training" : "forward inference", c,
            [&] { forward(x.tensor, y.tensor); },
            [&] {
                require(copy(x.tensor, x_copy.tensor));
                output([&](const hbn_tensor &to) { forward(x_copy.tensor, to); });
            });
        const auto backward = [&](const hbn_tensor &g, const hbn_tensor &from,
                                  const hbn_tensor &to) {
            require(hbn_batch_norm_backward(
                &g, &from, &w, training ? &sm : nullptr, training ? &is : nullptr,
                training ? nullptr : &m, training ? nullptr : &v, training, 1e-5, &to, &gw, &gb));
        };
        if (c.dense_output) {
            compare(
                training ? "backward training" : "backward inference", c,
                [&] { backward(dense_dy.tensor, x.tensor, y.tensor); },
                [&] {
                    require(copy(x.tensor, x_copy.tensor));
                    backward(dense_dy.tensor, x_copy.tensor, y.tensor);
                });
        }
        compare(
            training ? "backward training, dy" : "backward inference, dy", c,
            [&] { backward(dy.tensor, x.tensor, y.tensor); },
            [&] {
                require(copy(x.tensor, x_copy.tensor));
                require(copy(dy.tensor, dy_copy.tensor));
                output([&](const hbn_tensor &to) { backward(dy_copy.tensor, x_copy.tensor, to); });
            });
    }
    std::vector<double> moments(size_t(2 * s.c));
    hbn_moments sums{};
    sums.channels = s.c;
    sums.mean = moments.data();
    sums.m2 = moments.data() + s.c;
    compare(
        "stats", c, [&] { require(hbn_batch_norm_stats(&x.tensor, &sums)); },
        [&] {
            require(copy(x.tensor, x_copy.tensor));
            require(hbn_batch_norm_stats(&x_copy.tensor, &sums));
        });
}

}  // namespace

int main(int argc, char **argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 0;
    const std::string wanted = argc > 2 ? argv[2] : "", size = argc > 3 ? argv[3] : "";
    require(hbn_set_num_threads(threads));
    const Sizes sizes[] = {
        {"8x16x8x8", 8, 16, 8, 8},         {"8x64x14x14", 8, 64, 14, 14},
        {"32x64x28x28", 32, 64, 28, 28},   {"16x256x14x14", 16, 256, 14, 14},
        {"4x3x224x224", 4, 3, 224, 224},   {"32x64x56x56", 32, 64, 56, 56},
        {"64x512x14x14", 64, 512, 14, 14},
    };
    for (const Sizes &s : sizes) {
        if (std::string(s.name).find(size) == std::string::npos) {
            continue;
        }
        std::printf("---- %s, float32: the view, copying first, ratio\n", s.name);
        for (const Case &c : cases_of(s)) {
            if (std::string(c.x.name).find(wanted) != std::string::npos) {
                measure(s, c);
            }
        }
    }
    return 0;
}
