// Near-dense views, whose tensors are copied to dense scratch memory in pieces: every operation on each kind of view is
// right, writes nothing else, and says which way it took.
#include "oracle.h"
#include "runtime/engine/layout.h"
#include "runtime/internal.h"

#include <hbn/hbn.h>

#include <array>
#include <ostream>

namespace hbn::test {
namespace {

using internal::last_view;

constexpr double kEps = 1e-5;
constexpr int kN = 0, kC = 1, kH = 2, kW = 3;

// Outermost first.
using Dimensions = std::array<int, 4>;
constexpr Dimensions kNchw{kN, kC, kH, kW}, kNhwc{kN, kH, kW, kC};

// Of a view of dense memory whose dimensions have `more` elements than the view, or of which it takes every
// `step`th column.
Shape strides_in(const Shape &sizes, const Dimensions &order, const Shape &more = {},
                 int64_t step = 1) {
    Shape strides{};
    int64_t next = 1;
    for (int i = 3; i >= 0; i--) {
        const size_t d = size_t(order[size_t(i)]);
        strides[d] = next;
        next *= (sizes[d] + more[d]) * (d == kW ? step : 1);
    }
    strides[kW] *= step;
    return strides;
}

struct Case {
    const char *name;
    Shape sizes;
    Shape view;   // strides of inputs
    Shape other;  // of the other input and of outputs: a dense tensor's, or the view's
    bool staged;
    bool maps_staged = staged;  // of 32 bits and more, where there are no sums to take

    int64_t elements() const {
        return sizes[0] * sizes[1] * sizes[2] * sizes[3];
    }
};

void PrintTo(const Case &p, std::ostream *out) {
    *out << p.name << ", sizes " << shape_name(p.sizes) << ", strides " << shape_name(p.view);
}

std::vector<Case> cases() {
    const Shape s{4, 48, 7, 9}, wide{2, 300, 5, 7}, few{3, 3, 33, 35}, small{24, 40, 5, 5};
    const Shape pairs{3, 2, 33, 35}, fours{3, 4, 33, 35};
    const auto crop = [](const char *name, const Shape &sizes, const Dimensions &order,
                         const Shape &more, bool staged) {
        return Case{name, sizes, strides_in(sizes, order, more), strides_in(sizes, order), staged};
    };
    const Shape rows{0, 0, 4, 0}, columns{0, 0, 0, 3}, channels{0, 8, 0, 0}, edges{0, 0, 2, 2};
    const Dimensions hnwc{kH, kN, kW, kC}, nwhc{kN, kW, kH, kC}, ncwh{kN, kC, kW, kH},
        hwcn{kH, kW, kC, kN};
    const auto reordered = [&](const char *name, const Shape &sizes, const Dimensions &order,
                               const Dimensions &other, bool staged) {
        return Case{name, sizes, strides_in(sizes, order), strides_in(sizes, other), staged};
    };
    const auto maps_directly = [](Case p) {
        p.maps_staged = false;
        return p;
    };
    const auto everywhere = [](const char *name, Case p) {
        p.name = name;
        p.other = p.view;
        return p;
    };
    return {
        crop("last_rows", s, kNhwc, rows, true),
        crop("last_columns", s, kNhwc, columns, true),
        crop("last_edges", s, kNhwc, edges, true),
        crop("last_channels", s, kNhwc, channels, false),
        crop("last_edges_of_many_channels", wide, kNhwc, edges, true),
        crop("last_edges_of_few_channels", few, kNhwc, edges, true),
        maps_directly(crop("last_of_four_channels", few, kNhwc, {0, 1, 0, 0}, true)),
        maps_directly(crop("two_of_three_channels", pairs, kNhwc, {0, 1, 0, 0}, true)),
        maps_directly(crop("four_of_five_channels", fours, kNhwc, {0, 1, 0, 0}, true)),
        Case{"last_every_other_column", s, strides_in(s, kNhwc, {}, 2), strides_in(s, kNhwc),
             false},
        maps_directly({"last_every_other_column_of_few", few, strides_in(few, kNhwc, {}, 2),
                       strides_in(few, kNhwc), true}),
        // (N, L, C), transposed.
        Case{"nlc", {5, 48, 59, 1}, {48 * 59, 1, 48, 1}, {48 * 59, 1, 48, 48}, false},
        Case{"nlc_every_other", {5, 48, 59, 1}, {48 * 118, 1, 96, 1}, {48 * 59, 1, 48, 1}, false},
        Case{"nlc_crop", {5, 48, 59, 1}, {48 * 66, 1, 48, 1}, {48 * 59, 1, 48, 1}, true},
        reordered("hnwc", s, hnwc, hnwc, false),
        reordered("nwhc", s, nwhc, nwhc, false),
        reordered("ncwh", s, ncwh, ncwh, false),
        reordered("hnwc_and_nhwc", s, hnwc, kNhwc, true),
        reordered("nwhc_and_nhwc", s, nwhc, kNhwc, true),
        reordered("ncwh_and_nchw", s, ncwh, kNchw, true),
        reordered("nhwc_and_nchw", s, kNhwc, kNchw, true),
        reordered("nchw_and_nhwc", s, kNchw, kNhwc, true),
        reordered("hwcn_and_nchw", s, hwcn, kNchw, true),
        crop("rows", s, kNchw, rows, false),
        maps_directly(crop("columns_of_small_planes", small, kNchw, columns, true)),
        crop("channels", s, kNchw, channels, false),
        Case{"every_other_column", s, strides_in(s, kNchw, {}, 2), strides_in(s, kNchw), true},
        Case{"every_other_column_of_few", few, strides_in(few, kNchw, {}, 2),
             strides_in(few, kNchw), true},
        everywhere("last_edges_everywhere", crop("", s, kNhwc, edges, true)),
        everywhere("every_other_column_everywhere",
                   maps_directly({"", s, strides_in(s, kNchw, {}, 2), {}, true})),
        everywhere("gaps_everywhere", Case{"", s, strides_of(s, Layout::strided), {}, true}),
    };
}

// Pieces so small that these tensors have several, or blocks of few channels.
class SmallPieces {
public:
    explicit SmallPieces(int64_t bytes) {
        internal::set_max_staged_bytes(bytes);
    }
    ~SmallPieces() {
        internal::set_max_staged_bytes(0);
    }
};

class NearDense : public ::testing::TestWithParam<std::tuple<DType, int64_t, Case>> {
protected:
    const DType dtype = std::get<0>(GetParam());
    const SmallPieces pieces{std::get<1>(GetParam())};
    const Case &p = std::get<2>(GetParam());
    const DType statistics = statistic_dtype(dtype);
    const int64_t channels = p.sizes[1];
    Normal normal{uint32_t(channels)};
    TestTensor x{dtype, p.sizes, p.view}, dy{dtype, p.sizes, p.other};
    TestVector weight{statistics, normal.values(channels, 1, 0.5)};
    TestVector bias{statistics, normal.values(channels)};
    TestVector running_mean{statistics, normal.values(channels)};
    TestVector running_var{statistics, normal.values(channels, 4, 0.5)};

    void SetUp() override {
        x.fill([&](int64_t c) { return normal(double(c % 5) - 2, 1 + double(c % 3)); });
        dy.fill([&](int64_t) { return normal(0.25); });
    }

    TestTensor output() const {
        return TestTensor(dtype, p.sizes, p.other);
    }
    TestTensor filled(const Shape &strides) {
        TestTensor t(dtype, p.sizes, strides);
        t.fill([&](int64_t) { return normal(0.5); });
        return t;
    }

    ChannelOracle oracle(int64_t c, bool training) const {
        return training ? ChannelOracle(x, c, kEps)
                        : ChannelOracle(running_mean[c],
                                        1 / std::sqrt(Real(running_var[c]) + Real(kEps)),
                                        Real(p.elements() / channels));
    }
    functional::ForwardResult forward(bool training, const TensorView &from, const TensorView &to) {
        return functional::batch_norm_forward(from, weight, bias, running_mean, running_var,
                                              training, 0.0, kEps, to);
    }
    // What backward is given of the statistics.
    struct Saved {
        Vector mean, invstd;
        VectorView running_mean, running_var;
    };
    Saved saved(bool training) {
        Saved s;
        if (training) {
            const TestTensor copy = x;
            const functional::Moments moments = functional::batch_norm_stats(copy.view());
            std::tie(s.mean, s.invstd) = functional::mean_and_invstd(moments, kEps);
        } else {
            s.running_mean = running_mean;
            s.running_var = running_var;
        }
        return s;
    }
    functional::Gradients backward(bool training, const Saved &s, const TensorView &of,
                                   const functional::GradMask &wanted, const TensorView &to) {
        return functional::batch_norm_backward(of, x.view(), weight, s.mean, s.invstd,
                                               s.running_mean, s.running_var, training, kEps,
                                               wanted, to);
    }
    // Of the last kernel: some of several pieces may be dense.
    void expect_way(bool reduces) const {
        if (std::get<1>(GetParam()) == 0) {
            EXPECT_EQ(last_view().staged, reduces || size_of(dtype) < 4 ? p.staged : p.maps_staged);
        }
    }
};

TEST_P(NearDense, forward) {
    for (const bool training : {true, false}) {
        SCOPED_TRACE(training ? "training" : "inference");
        TestTensor y = output(), in_place = x;
        forward(training, x.view(), y.view());
        expect_way(training);
        forward(training, in_place.view(), in_place.view());
        for (int64_t c = 0; c < channels; c++) {
            expect_normalized(x, y, c, oracle(c, training), weight[c], bias[c]);
            expect_normalized(x, in_place, c, oracle(c, training), weight[c], bias[c]);
        }
        EXPECT_TRUE(y.only_elements_written());
        EXPECT_TRUE(in_place.only_elements_written());
    }
}

TEST_P(NearDense, backward) {
    for (const bool training : {true, false}) {
        SCOPED_TRACE(training ? "training" : "inference");
        const Saved s = saved(training);
        TestTensor dx = output(), dx_alone = output(), in_place = dy,
                   view_of_dx(dtype, p.sizes, p.view);
        const auto all = backward(training, s, dy.view(), {}, dx.view());
        const auto again = backward(training, s, dy.view(), {}, view_of_dx.view());
        backward(training, s, in_place.view(), {}, in_place.view());
        backward(training, s, dy.view(), {true, false, false}, dx_alone.view());
        const auto sums = functional::batch_norm_backward(dy.view(), x.view(), weight, s.mean,
                                                          s.invstd, s.running_mean, s.running_var,
                                                          training, kEps, {false, true, true});
        for (int64_t c = 0; c < channels; c++) {
            const ChannelOracle of_x = oracle(c, training);
            const GradientOracle g(dy, x, c, of_x);
            for (const TestTensor *actual : {&dx, &dx_alone, &in_place, &view_of_dx}) {
                expect_grad_input(dy, x, *actual, c, of_x, weight[c], g, training);
            }
            for (const functional::Gradients *gradients : {&all, &again, &sums}) {
                g.expect_parameters(get(gradients->grad_weight, c), get(gradients->grad_bias, c),
                                    dtype, of_x.count);
            }
        }
        for (const TestTensor *actual : {&dx, &dx_alone, &in_place, &view_of_dx}) {
            EXPECT_TRUE(actual->only_elements_written());
        }
    }
}

TEST_P(NearDense, backward_of_an_expanded_grad_output) {
    // As sum() gives it: one value for all.
    TestTensor one(dtype, {1, 1, 1, 1});
    one.fill([](int64_t) { return 0.75; });
    TensorView expanded = one.view();
    expanded.sizes = p.sizes;
    expanded.strides = {0, 0, 0, 0};
    dy.fill([](int64_t) { return 0.75; });
    const Saved s = saved(true);
    TestTensor dx = output();
    backward(true, s, expanded, {}, dx.view());
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle of_x = oracle(c, true);
        expect_grad_input(dy, x, dx, c, of_x, weight[c], GradientOracle(dy, x, c, of_x), true);
    }
}

TEST_P(NearDense, parts) {
    const functional::Moments moments = functional::batch_norm_stats(x.view());
    const auto [mean, invstd] = functional::mean_and_invstd(moments, kEps);
    TestTensor y = output(), dx = output();
    functional::batch_norm_normalize(x.view(), moments, weight, bias, kEps, y.view());
    expect_way(false);
    const auto sums = functional::batch_norm_backward_reduce(dy.view(), x.view(), mean, invstd);
    functional::batch_norm_backward_elemt(dy.view(), x.view(), mean, invstd, weight, sums,
                                          moments.count, dx.view());
    expect_way(false);
    for (int64_t c = 0; c < channels; c++) {
        const ChannelOracle of_x = oracle(c, true);
        expect_normalized(x, y, c, of_x, weight[c], bias[c]);
        const GradientOracle g(dy, x, c, of_x);
        expect_grad_input(dy, x, dx, c, of_x, weight[c], g, true);
        g.expect_parameters(get(sums.grad_weight, c), get(sums.grad_bias, c), dtype, of_x.count);
    }
    EXPECT_TRUE(y.only_elements_written());
    EXPECT_TRUE(dx.only_elements_written());
}

TEST_P(NearDense, derivatives) {
    TestVector weight_tangent(statistics, normal.values(channels));
    TestVector bias_tangent(statistics, normal.values(channels));
    const TestTensor tangent = filled(p.other), ddx = filled(p.view);
    for (const bool training : {true, false}) {
        SCOPED_TRACE(training ? "training" : "inference");
        const Saved s = saved(training);
        TestTensor y_tangent = output(), in_place = tangent, ddy = output(), dx = output();
        for (TestTensor *to : {&y_tangent, &in_place}) {
            functional::batch_norm_jvp(to == &in_place ? in_place.view() : tangent.view(), x.view(),
                                       weight, weight_tangent, bias_tangent, s.mean, s.invstd,
                                       s.running_mean, s.running_var, training, kEps, to->view());
        }
        const auto g = functional::batch_norm_double_backward(
            ddx.view(), weight_tangent, bias_tangent, dy.view(), x.view(), weight, s.mean, s.invstd,
            s.running_mean, s.running_var, training, kEps, ddy.view(), dx.view());
        for (int64_t c = 0; c < channels; c++) {
            const ChannelOracle of_x = oracle(c, training);
            for (const TestTensor *actual : {&y_tangent, &in_place}) {
                expect_tangent(tangent, x, *actual, c, of_x, weight[c], weight_tangent[c],
                               bias_tangent[c], training);
            }
            expect_tangent(ddx, x, ddy, c, of_x, weight[c], weight_tangent[c], bias_tangent[c],
                           training);
            expect_double_backward(ddx, dy, x, dx, get(g.grad_weight, c), c, of_x, weight[c],
                                   weight_tangent[c], training);
        }
        for (const TestTensor *actual : {&y_tangent, &in_place, &ddy, &dx}) {
            EXPECT_TRUE(actual->only_elements_written());
        }
    }
}

TEST_P(NearDense, results_do_not_depend_on_threads) {
    TestTensor ys[2] = {output(), output()}, dxs[2] = {output(), output()};
    std::vector<double> vectors[2];
    for (const int threads : {1, 2}) {
        hbn_set_num_threads(threads);
        const int i = threads - 1;
        const auto f = forward(true, x.view(), ys[i].view());
        const auto g = functional::batch_norm_backward(
            dy.view(), x.view(), weight, f.mean, f.invstd, {}, {}, true, kEps, {}, dxs[i].view());
        for (int64_t c = 0; c < channels; c++) {
            for (const VectorView &v :
                 {f.mean.view(), f.invstd.view(), g.grad_weight.view(), g.grad_bias.view()}) {
                vectors[i].push_back(get(v, c));
            }
        }
    }
    hbn_set_num_threads(0);
    EXPECT_EQ(ys[0].bytes(), ys[1].bytes());
    EXPECT_EQ(dxs[0].bytes(), dxs[1].bytes());
    EXPECT_EQ(vectors[0], vectors[1]);
}

// Copies depend on an element's size, not on the processor: under qemu, where all would take minutes, some will do.
#ifdef HBN_TEST_EMULATED
const auto dtypes = ::testing::Values(DType::float32, DType::bfloat16);
const auto most_bytes = ::testing::Values(16384);
#else
const auto dtypes =
    ::testing::Values(DType::float32, DType::float64, DType::bfloat16, DType::float16);
const auto most_bytes = ::testing::Values(0, 16384);
#endif
INSTANTIATE_TEST_SUITE_P(, NearDense,
                         ::testing::Combine(dtypes, most_bytes, ::testing::ValuesIn(cases())),
                         [](const auto &info) {
                             return std::string(name_of(std::get<0>(info.param))) +
                                    (std::get<1>(info.param) ? "_pieces_" : "_") +
                                    std::get<2>(info.param).name;
                         });

// ---- which way

bool is_staged(const Shape &sizes, const Shape &strides) {
    TestTensor x(DType::float32, sizes, strides);
    x.fill([](int64_t c) { return double(c); });
    functional::batch_norm_stats(x.view());
    return last_view().staged;
}

TEST(Plan, small_tensors_are_not_staged) {
    const Shape crop{0, 0, 2, 2};
    const auto strides = [&](const Shape &s) { return strides_in(s, kNhwc, crop); };
    EXPECT_FALSE(is_staged({7, 8, 8, 8}, strides({7, 8, 8, 8})));
    EXPECT_TRUE(is_staged({8, 8, 8, 8}, strides({8, 8, 8, 8})));
}

// Large images of a crop are dense but for gaps between them, and read one by one.
TEST(Plan, a_crop_of_rows_of_large_images_is_read_where_it_is) {
    const Shape sizes{3, 64, 33, 35};
    EXPECT_FALSE(is_staged(sizes, strides_in(sizes, kNhwc, {0, 0, 3, 0})));
    EXPECT_EQ(last_view().layout, internal::Layout::rows);
    EXPECT_TRUE(is_staged(sizes, strides_in(sizes, kNhwc, {0, 0, 0, 3})));
}

}  // namespace
}  // namespace hbn::test
