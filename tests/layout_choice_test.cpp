// Which kernel serves which shape, that each is right there, and that streaming stores change no bit.
#include "operands.h"
#include "runtime/engine/layout.h"
#include "runtime/engine/tuning.h"

#include <algorithm>
#include <ostream>
#include <set>

namespace hbn::test {
namespace {

using internal::last_view;
using Kernel = internal::Layout;

constexpr double kEps = 1e-5;

// What is asked here is what the defaults choose, and entries of schedules/tuned may choose otherwise on this processor.
const bool has_no_entries = [] {
    internal::set_processor_name("none");
    return true;
}();

const char *name_of_kernel(Kernel kernel) {
    static const char *const names[internal::kLayouts] = {
        "nchw", "nchw_few_channels", "blocks", "rows", "nhwc", "strided"};
    return names[int(kernel)];
}

// A view of part of a larger dense tensor.
Shape part_of(const Shape &larger, MemoryFormat format = MemoryFormat::contiguous) {
    return dense_strides(larger, format);
}

constexpr auto contiguous = MemoryFormat::contiguous;
constexpr auto channels_last = MemoryFormat::channels_last;

struct Case {
    const char *name;
    Shape sizes, strides;
    Kernel kernel;  // of forward_training; of forward_inference for a single value a channel
    bool narrow_too = true;  // whether 16-bit tensors have it, too, and not nchw

    // float64 goes without the kernels that are there for speed alone.
    Kernel kernel_of(DType dtype) const {
        const bool for_speed = kernel == Kernel::nchw_few_channels || kernel == Kernel::blocks;
        const bool without = dtype == DType::float64   ? for_speed
                             : dtype == DType::float32 ? false
                                                       : !narrow_too;
        return without ? Kernel::nchw : kernel;
    }
};

void PrintTo(const Case &p, std::ostream *out) {
    *out << p.name << ", sizes " << shape_name(p.sizes) << ", strides " << shape_name(p.strides);
}

Case wide_only(Case p) {
    p.narrow_too = false;
    return p;
}

Case dense(const char *name, const Shape &sizes, MemoryFormat format, Kernel kernel) {
    return {name, sizes, dense_strides(sizes, format), kernel, true};
}

std::vector<Case> cases() {
    return {
        // NCHW: a channel's planes one after the other.
        dense("large_planes", {3, 17, 33, 35}, contiguous, Kernel::nchw),
        dense("few_small_planes", {7, 17, 7, 7}, contiguous, Kernel::nchw),
        dense("one_sample", {1, 19, 9, 11}, contiguous, Kernel::nchw),
        dense("one_channel", {4, 1, 13, 11}, contiguous, Kernel::nchw),
        dense("few_channels_but_small", {2, 3, 40, 40}, contiguous, Kernel::nchw),
        dense("enough_channels", {2, 16, 48, 48}, contiguous, Kernel::nchw),
        {"crop", {3, 5, 6, 7}, part_of({3, 5, 9, 10}), Kernel::nchw, true},
        {"small_planes_of_some_channels",
         {90, 5, 7, 7},
         part_of({90, 8, 7, 7}),
         Kernel::blocks,
         true},
        {"every_other_row", {9, 5, 4, 7}, {5 * 56, 56, 14, 1}, Kernel::nchw, true},
        {"planes_with_gaps", {9, 5, 7, 7}, {5 * 64, 64, 7, 1}, Kernel::nchw, true},
        dense("small_planes_of_few_values", {8, 17, 7, 7}, contiguous, Kernel::nchw),
        dense("28x28", {9, 5, 28, 28}, contiguous, Kernel::nchw),
        // Rows of a few values more or less than vectors and groups of them have.
        dense("3x3", {2, 300, 3, 3}, contiguous, Kernel::nchw),
        dense("15_values", {3, 40, 3, 5}, contiguous, Kernel::nchw),
        dense("17_values", {3, 40, 1, 17}, contiguous, Kernel::nchw),
        dense("63_values", {5, 40, 7, 9}, contiguous, Kernel::nchw),
        dense("129_values", {5, 40, 3, 43}, contiguous, Kernel::nchw),
        // Few channels, each of many values.
        dense("photographs", {2, 3, 105, 107}, contiguous, Kernel::nchw_few_channels),
        dense("one_large_channel", {1, 1, 257, 259}, contiguous, Kernel::nchw_few_channels),
        dense("one_large_channel_last", {3, 1, 149, 151}, channels_last, Kernel::nchw_few_channels),
        dense("fifteen_channels", {2, 15, 47, 49}, contiguous, Kernel::nchw_few_channels),
        {"crop_of_photographs",
         {2, 3, 105, 107},
         part_of({2, 3, 111, 120}),
         Kernel::nchw_few_channels,
         true},
        // Small planes: whole channels side by side.
        dense("7x7_odd_channels", {24, 17, 7, 7}, contiguous, Kernel::blocks),
        dense("7x7_251_channels", {8, 251, 7, 7}, contiguous, Kernel::blocks),
        dense("7x7_64_channels", {33, 64, 7, 7}, contiguous, Kernel::blocks),
        dense("largest_narrow_plane", {10, 17, 8, 16}, contiguous, Kernel::blocks),
        wide_only(dense("smallest_wide_plane", {10, 17, 3, 43}, contiguous, Kernel::blocks)),
        wide_only(dense("largest_wide_plane", {8, 17, 16, 16}, contiguous, Kernel::blocks)),
        dense("smallest_large_plane", {8, 17, 1, 257}, contiguous, Kernel::nchw),
        dense("two_pixels", {19, 1030, 1, 2}, contiguous, Kernel::blocks),
        // Dense channels.
        dense("channels_last", {3, 32, 9, 11}, channels_last, Kernel::rows),
        dense("three_channels_last", {2, 3, 35, 37}, channels_last, Kernel::rows),
        dense("251_channels_last", {2, 251, 13, 11}, channels_last, Kernel::rows),
        dense("600_channels_last", {2, 600, 5, 7}, channels_last, Kernel::rows),
        dense("prime_channels_last", {2, 521, 5, 3}, channels_last, Kernel::rows),
        dense("2048_channels_last", {2, 2048, 3, 3}, channels_last, Kernel::rows),
        dense("one_sample_last", {1, 7, 13, 11}, channels_last, Kernel::rows),
        dense("one_pixel", {20, 100, 1, 1}, contiguous, Kernel::rows),
        dense("one_pixel_last", {20, 100, 1, 1}, channels_last, Kernel::rows),
        dense("one_value_a_channel", {1, 100, 1, 1}, contiguous, Kernel::rows),
        {"some_channels_last",
         {3, 5, 6, 7},
         part_of({3, 8, 6, 7}, channels_last),
         Kernel::rows,
         true},
        // Neither: any strides.
        {"crop_last", {3, 5, 6, 7}, part_of({3, 5, 9, 10}, channels_last), Kernel::strided, true},
        {"every_other_pixel", {3, 5, 6, 7}, {5 * 84, 84, 14, 2}, Kernel::strided, true},
        {"every_other_channel_last", {3, 5, 6, 7}, {420, 2, 70, 10}, Kernel::strided, true},
        {"gaps_everywhere",
         {3, 5, 6, 7},
         strides_of({3, 5, 6, 7}, Layout::strided),
         Kernel::strided,
         true},
        // Larger ones are copied to dense memory, in x's order.
        {"large_crop_last",
         {2, 3, 105, 107},
         part_of({2, 3, 111, 120}, channels_last),
         Kernel::rows,
         true},
        {"large_every_other_pixel",
         {1, 1, 257, 259},
         {0, 0, 518, 2},
         Kernel::nchw_few_channels,
         true},
    };
}

int64_t values_per_channel(const Shape &sizes) {
    return sizes[0] * sizes[2] * sizes[3];
}

class LayoutChoice : public ::testing::TestWithParam<std::tuple<DType, Case>> {
protected:
    const DType dtype = std::get<0>(GetParam());
    const Case &p = std::get<1>(GetParam());
    const bool trains = values_per_channel(p.sizes) > 1;
    Operands operands{dtype, p.sizes, p.strides};

    functional::ForwardResult forward(bool training) {
        auto result = operands.forward(training);
        if (training == trains) {
            EXPECT_EQ(last_view().layout, p.kernel_of(dtype))
                << "it is " << name_of_kernel(last_view().layout);
            EXPECT_FALSE(last_view().stream);
        }
        return result;
    }
};

TEST_P(LayoutChoice, forward) {
    for (bool training : {true, false}) {
        if (training && !trains) {
            continue;
        }
        SCOPED_TRACE(training ? "training" : "inference");
        forward(training);
    }
}

TEST_P(LayoutChoice, backward) {
    for (bool training : {true, false}) {
        if (training && !trains) {
            continue;
        }
        SCOPED_TRACE(training ? "training" : "inference");
        operands.backward(training, forward(training));
    }
}

INSTANTIATE_TEST_SUITE_P(, LayoutChoice,
                         ::testing::Combine(::testing::Values(DType::float32, DType::float64,
                                                              DType::bfloat16, DType::float16),
                                            ::testing::ValuesIn(cases())),
                         [](const auto &info) {
                             return std::string(name_of(std::get<0>(info.param))) + "_" +
                                    std::get<1>(info.param).name;
                         });

// ---- streaming stores

// Just above 24 MiB, x and y together, in the dtype that it is for.
struct LargeCase {
    DType dtype;
    Case p;
};

const LargeCase large_cases[] = {
    {DType::float32, dense("large_planes", {16, 64, 56, 56}, contiguous, Kernel::nchw)},
    {DType::float32, dense("photographs", {8, 3, 384, 384}, contiguous, Kernel::nchw_few_channels)},
    {DType::float32, dense("7x7", {256, 256, 7, 7}, contiguous, Kernel::blocks)},
    {DType::float32, dense("channels_last", {64, 64, 28, 28}, channels_last, Kernel::rows)},
    {DType::bfloat16, dense("large_planes", {32, 64, 56, 56}, contiguous, Kernel::nchw)},
    {DType::bfloat16, dense("14x14", {64, 512, 14, 14}, contiguous, Kernel::blocks)},
    {DType::bfloat16, dense("channels_last", {64, 128, 28, 28}, channels_last, Kernel::rows)},
    {DType::float16, dense("14x14", {64, 512, 14, 14}, contiguous, Kernel::blocks)},
};

// An output that starts on a cache line, or one element after it, where no vector may be streamed.
class Output {
public:
    Output(const LargeCase &large, bool on_a_line)
        : dtype_(large.dtype),
          count_(size_t(large.p.sizes[0] * large.p.sizes[1] * large.p.sizes[2] * large.p.sizes[3])),
          storage_(count_ * size_of(dtype_) + 128) {
        const uintptr_t start = reinterpret_cast<uintptr_t>(storage_.data());
        const uintptr_t line = (start + 63) / 64 * 64;
        data_ = storage_.data() + (line - start) + (on_a_line ? 0 : size_of(dtype_));
        view = TensorView(data_, dtype_, large.p.sizes, large.p.strides);
    }
    bool operator==(const Output &other) const {
        return std::memcmp(data_, other.data_, count_ * size_of(dtype_)) == 0;
    }

    // Values that repeat with a prime period are random enough, and quick to make.
    void fill(const std::vector<double> &noise, size_t stride, double mean) {
        const size_t size = size_of(dtype_);
        std::vector<uint8_t> values(noise.size() * size);
        for (size_t i = 0; i < noise.size(); i++) {
            store(dtype_, mean + noise[i * stride % noise.size()], &values[i * size]);
        }
        for (size_t i = 0; i < count_; i += noise.size()) {
            std::memcpy(data_ + i * size, values.data(), std::min(noise.size(), count_ - i) * size);
        }
    }

    TensorView view;

private:
    DType dtype_;
    size_t count_;
    std::vector<uint8_t> storage_;
    uint8_t *data_;
};

class Streaming : public ::testing::TestWithParam<LargeCase> {};

void PrintTo(const LargeCase &large, std::ostream *out) {
    PrintTo(large.p, out);
}

TEST_P(Streaming, changes_no_bit) {
    const Case &p = GetParam().p;
    const int64_t channels = p.sizes[1];
    const DType dtype = DType::float32;  // of parameters
    Normal normal{7};
    Output x(GetParam(), true), dy(GetParam(), true);
    const std::vector<double> noise = normal.values(10007);
    x.fill(noise, 1, 3);
    dy.fill(noise, 3, 0);
    TestVector weight(dtype, normal.values(channels)), bias(dtype, normal.values(channels));
    TestVector mean(dtype, normal.values(channels)), var(dtype, normal.values(channels, 4, 0.5));

    Output streamed(GetParam(), true), stored(GetParam(), false);
    for (bool training : {true, false}) {
        SCOPED_TRACE(training ? "training" : "inference");
        functional::ForwardResult saved;
        for (Output *y : {&streamed, &stored}) {
            saved = functional::batch_norm_forward(x.view, weight, bias, mean, var, training, 0.0,
                                                   kEps, y->view);
            EXPECT_EQ(last_view().stream, y == &streamed);
            if (training) {
                EXPECT_EQ(last_view().layout, p.kernel)
                    << "it is " << name_of_kernel(last_view().layout);
            }
        }
        EXPECT_TRUE(streamed == stored) << "y differs";
        for (Output *dx : {&streamed, &stored}) {
            functional::batch_norm_backward(dy.view, x.view, weight, saved.mean, saved.invstd, mean,
                                            var, training, kEps, {}, dx->view);
            EXPECT_EQ(last_view().stream, dx == &streamed);
        }
        EXPECT_TRUE(streamed == stored) << "grad_input differs";
    }
}

INSTANTIATE_TEST_SUITE_P(, Streaming, ::testing::ValuesIn(large_cases), [](const auto &info) {
    return std::string(name_of(info.param.dtype)) + "_" + info.param.p.name;
});

// ---- the tables above

// nhwc is for devices; processors have rows in its place.
TEST(LayoutChoiceTable, reaches_every_layout_of_processors) {
    std::set<Kernel> reached, streamed;
    for (const Case &p : cases()) {
        reached.insert(p.kernel);
    }
    for (const LargeCase &large : large_cases) {
        streamed.insert(large.p.kernel);
    }
    const std::set<Kernel> columns_and_planes{Kernel::nchw, Kernel::nchw_few_channels,
                                              Kernel::blocks, Kernel::rows};
    EXPECT_EQ(streamed, columns_and_planes);
    std::set<Kernel> all = columns_and_planes;
    all.insert(Kernel::strided);
    EXPECT_EQ(reached, all);
}

}  // namespace
}  // namespace hbn::test
