// What calls make of tuned entries, those of sample.json: each is used for its own shapes on its own processor, and all
// results are right. And what the tuner does in a process: set_tuning().
#include "every_operation.h"
#include "operands.h"
#include "runtime/engine/kernels.h"
#include "runtime/halide/scratch.h"
#include "runtime/scratch_bound.h"

#include <hbn/hbn.h>

#include <algorithm>
#include <random>

namespace {
int tuned_kernel_calls = 0;
}  // namespace

extern "C" int __real_hbn_forward_training_float32_rows_tuned_sample_0_argv(void **);
extern "C" int __wrap_hbn_forward_training_float32_rows_tuned_sample_0_argv(void **arguments) {
    tuned_kernel_calls++;
    return __real_hbn_forward_training_float32_rows_tuned_sample_0_argv(arguments);
}
extern "C" int hbn_forward_training_float32_rows_argv(void **);
extern "C" const halide_filter_metadata_t *hbn_forward_training_float32_rows_metadata();
extern "C" const halide_filter_metadata_t *hbn_stats_float32_rows_metadata();

namespace hbn::test {
namespace {

using internal::Kernel;
using internal::last_view;
using internal::Thresholds;
using internal::Tuning;
using KernelLayout = internal::Layout;

void expect_moments(const Operands &o) {
    const functional::Moments actual = functional::batch_norm_stats(o.x);
    for (int64_t c = 0; c < o.channels; c++) {
        const ChannelOracle s(o.x, c, Operands::kEps);
        const Real deviation = std::sqrt(s.m2 / s.count);
        EXPECT_LE(
            std::fabs(actual.mean[size_t(c)] - s.mean),
            mean_error(o.dtype, s.count) * deviation + std::fabs(s.mean) * std::ldexp(1.0L, -50));
        EXPECT_LE(std::fabs(actual.m2[size_t(c)] - s.m2), m2_error(o.dtype, s.count) * s.m2);
    }
}

constexpr auto contiguous = MemoryFormat::contiguous;
constexpr auto channels_last = MemoryFormat::channels_last;

// As on the processor of sample.json, with its instruction set.
class Tuned : public ::testing::Test {
protected:
    const std::string set_before = hbn_instruction_set();

    Tuned() {
        internal::set_processor_name("Sample 1 2");
        EXPECT_EQ(hbn_set_instruction_set(HBN_LOWEST_SET), HBN_OK);
        hbn_set_num_threads(2);
        tuned_kernel_calls = 0;
    }
    ~Tuned() override {
        internal::clear_tunings();
        internal::set_processor_name(nullptr);
        EXPECT_EQ(hbn_set_instruction_set(set_before.c_str()), HBN_OK);
        hbn_set_num_threads(0);
    }

    // Whether training's forward has its entry.
    static void expect_forward(DType dtype, const Shape &sizes, const Shape &strides, bool tuned) {
        SCOPED_TRACE(shape_name(sizes) + " in " + shape_name(strides));
        const int before = tuned_kernel_calls;
        Operands(dtype, sizes, strides).forward(true);
        EXPECT_EQ(last_view().tuned, tuned);
        EXPECT_EQ(last_view().tuned_kernel, tuned);
        EXPECT_EQ(tuned_kernel_calls - before, int(tuned));
    }
    static void expect_forward(const Shape &sizes, bool tuned) {
        expect_forward(DType::float32, sizes, dense_strides(sizes, channels_last), tuned);
    }
    static void expect_inference(const Shape &sizes, MemoryFormat format, bool tuned) {
        SCOPED_TRACE(shape_name(sizes));
        Operands(DType::float32, sizes, format).forward(false);
        EXPECT_EQ(last_view().tuned, tuned);
        EXPECT_FALSE(last_view().tuned_kernel);
        if (format == contiguous) {
            EXPECT_EQ(last_view().layout, tuned ? KernelLayout::blocks : KernelLayout::nchw);
        }
    }
    static void expect_stats(const Shape &sizes, bool tuned) {
        SCOPED_TRACE(shape_name(sizes));
        expect_moments(Operands(DType::bfloat16, sizes, contiguous));
        EXPECT_EQ(last_view().tuned, tuned);
        EXPECT_EQ(last_view().layout, tuned ? KernelLayout::nchw_few_channels : KernelLayout::nchw);
    }
};

TEST_F(Tuned, kernel_is_called_for_its_shapes) {
    expect_forward({2, 32, 8, 8}, true);
    expect_forward({3, 63, 1, 127}, true);
    expect_forward({2, 40, 64, 1}, true);
    EXPECT_EQ(last_view().layout, KernelLayout::rows);
}

TEST_F(Tuned, kernel_is_not_called_for_their_neighbours) {
    expect_forward({1, 32, 8, 8}, false);
    expect_forward({4, 32, 8, 8}, false);
    expect_forward({2, 31, 8, 8}, false);
    expect_forward({2, 64, 8, 8}, false);
    expect_forward({2, 32, 7, 9}, false);
    expect_forward({2, 32, 8, 16}, false);
    // In another order of dimensions, dtype, or with gaps.
    const Shape sizes{2, 32, 8, 8};
    expect_forward(DType::float32, sizes, dense_strides(sizes, contiguous), false);
    expect_forward(DType::float64, sizes, dense_strides(sizes, channels_last), false);
    expect_forward(DType::bfloat16, sizes, dense_strides(sizes, channels_last), false);
    expect_forward(DType::float32, sizes, dense_strides({2, 33, 8, 8}, channels_last), false);
    expect_forward(DType::float32, sizes, dense_strides({2, 32, 9, 8}, channels_last), false);
    expect_forward(DType::float32, sizes, {6144, 3, 768, 96}, false);
    // Other kernels.
    Operands o(DType::float32, sizes, channels_last);
    o.forward(false);
    EXPECT_FALSE(last_view().tuned);
    expect_moments(o);
    EXPECT_FALSE(last_view().tuned);
    EXPECT_EQ(tuned_kernel_calls, 0);
}

TEST_F(Tuned, thresholds_alone_change_the_layout) {
    expect_inference({8, 4, 5, 13}, contiguous, true);
    expect_inference({15, 7, 8, 16}, contiguous, true);
    expect_inference({8, 4, 8, 8}, contiguous, false);
    expect_inference({8, 4, 3, 43}, contiguous, false);
    expect_inference({7, 4, 8, 9}, contiguous, false);
    expect_inference({16, 4, 8, 9}, contiguous, false);
    expect_inference({8, 3, 8, 9}, contiguous, false);
    expect_inference({8, 8, 8, 9}, contiguous, false);
    expect_inference({8, 4, 8, 9}, channels_last, false);
}

TEST_F(Tuned, layout_is_forced) {
    expect_stats({2, 20, 10, 10}, true);
    expect_stats({2, 30, 1, 200}, true);
    expect_stats({1, 20, 10, 10}, false);
    expect_stats({2, 31, 10, 10}, false);
    expect_stats({2, 20, 9, 11}, false);
}

// Both orders' strides suit these.
TEST_F(Tuned, tensors_that_are_nchw_and_nhwc_count_as_nchw) {
    const Shape sizes{2, 40, 1, 1};
    for (const MemoryFormat format : {contiguous, channels_last}) {
        Operands o(DType::float32, sizes, format);
        o.forward(false);
        EXPECT_FALSE(last_view().tuned);
    }
}

TEST_F(Tuned, results_are_the_same_bits_for_any_number_of_threads) {
    for (const bool training : {true, false}) {
        std::vector<double> first;
        for (const int threads : {1, 2, 3}) {
            hbn_set_num_threads(threads);
            Operands o(DType::float32, training ? Shape{3, 63, 9, 13} : Shape{15, 7, 8, 16},
                       training ? channels_last : contiguous);
            const auto saved = o.forward(training);
            EXPECT_TRUE(last_view().tuned);
            std::vector<double> bits;
            o.y.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                for (int64_t c = 0; c < o.channels; c++) {
                    bits.push_back(o.y.get(n, c, h, w));
                }
            });
            for (int64_t c = 0; c < o.channels && training; c++) {
                bits.push_back(get(saved.mean, c));
                bits.push_back(get(saved.invstd, c));
            }
            if (first.empty()) {
                first = bits;
            }
            EXPECT_TRUE(bits == first) << threads << " threads";
        }
    }
    EXPECT_EQ(tuned_kernel_calls, 3);
}

TEST_F(Tuned, nothing_is_used_on_another_processor) {
    for (const char *name : {"Sample 1 3", "Sample 1", "", "GenuineIntel 6 207"}) {
        internal::set_processor_name(name);
        expect_forward({2, 32, 8, 8}, false);
        expect_inference({8, 4, 8, 9}, contiguous, false);
        expect_stats({2, 20, 10, 10}, false);
    }
    internal::set_processor_name("Sample 1 2");
    expect_forward({2, 32, 8, 8}, true);
}

TEST_F(Tuned, nothing_is_used_with_another_instruction_set) {
    if (set_before == HBN_LOWEST_SET) {
        GTEST_SKIP() << "there is one instruction set";
    }
    ASSERT_EQ(hbn_set_instruction_set(set_before.c_str()), HBN_OK);
    expect_forward({2, 32, 8, 8}, false);
    expect_inference({8, 4, 8, 9}, contiguous, false);
    // Contexts have their own.
    hbn_context_options options{};
    options.instruction_set = HBN_LOWEST_SET;
    hbn_context *context;
    ASSERT_EQ(hbn_context_create(&options, &context), HBN_OK);
    hbn_use_context(context);
    expect_forward({2, 32, 8, 8}, true);
    hbn_use_context(nullptr);
    hbn_context_destroy(context);
}

// ---- set_tuning()

int counted_calls = 0;
int counted(void **arguments) {
    counted_calls++;
    return hbn_forward_training_float32_rows_argv(arguments);
}

TEST_F(Tuned, tunings_take_the_place_of_entries) {
    Tuning tuning;
    ASSERT_EQ(set_tuning(Kernel::forward_training, HBN_FLOAT32, tuning), HBN_OK);
    const Shape sizes{2, 32, 8, 8};
    Operands(DType::float32, sizes, channels_last).forward(true);
    EXPECT_TRUE(last_view().tuned);
    EXPECT_FALSE(last_view().tuned_kernel);
    EXPECT_EQ(tuned_kernel_calls, 0);
    // Nor are the thresholds of an entry.
    ASSERT_EQ(set_tuning(Kernel::forward_inference, HBN_FLOAT32, tuning), HBN_OK);
    Operands(DType::float32, {8, 4, 8, 9}, contiguous).forward(false);
    EXPECT_EQ(last_view().layout, KernelLayout::nchw);

    tuning.kernels[int(KernelLayout::rows)] = {counted, hbn_forward_training_float32_rows_metadata};
    ASSERT_EQ(set_tuning(Kernel::forward_training, HBN_FLOAT32, tuning), HBN_OK);
    Operands(DType::float32, sizes, channels_last).forward(true);
    EXPECT_TRUE(last_view().tuned_kernel);
    EXPECT_EQ(counted_calls, 1);
    // For every shape, but not for another layout of the kernel.
    Operands(DType::float32, {5, 7, 3, 3}, channels_last).forward(true);
    EXPECT_EQ(counted_calls, 2);
    Operands(DType::float32, sizes, contiguous).forward(true);
    EXPECT_EQ(counted_calls, 2);
    EXPECT_TRUE(last_view().tuned);
    EXPECT_FALSE(last_view().tuned_kernel);

    internal::clear_tunings();
    expect_forward({2, 32, 8, 8}, true);
    EXPECT_EQ(counted_calls, 2);
}

TEST_F(Tuned, tunings_that_make_no_sense_are_refused) {
    Tuning tuning;
    tuning.thresholds.nhwc_columns = 4096;
    EXPECT_EQ(set_tuning(Kernel::forward_training, HBN_FLOAT32, tuning), HBN_INVALID_ARGUMENT);
    EXPECT_STREQ(hbn_last_error(), "threshold nhwc_columns: expected 64 to 2048, got 4096");
    tuning = {};
    EXPECT_EQ(set_tuning(Kernel::forward_training, HBN_INT64, tuning), HBN_UNSUPPORTED);
    tuning.kernels[int(KernelLayout::rows)] = {counted, hbn_stats_float32_rows_metadata};
    EXPECT_EQ(set_tuning(Kernel::forward_training, HBN_FLOAT32, tuning), HBN_UNSUPPORTED);
    EXPECT_NE(std::string(hbn_last_error()).find("takes other arguments than the same kernel"),
              std::string::npos)
        << hbn_last_error();
    // Nothing has changed.
    expect_forward({2, 32, 8, 8}, true);
}

TEST(Thresholds, are_set_by_name) {
    Thresholds t;
    EXPECT_EQ(internal::set_threshold("nhwc_columns", "512", &t), HBN_OK);
    EXPECT_EQ(t.nhwc_columns, 512);
    EXPECT_EQ(internal::set_threshold("layout", "rows", &t), HBN_OK);
    EXPECT_EQ(t.layout, int(KernelLayout::rows));
    EXPECT_EQ(internal::set_threshold("layout", "-1", &t), HBN_OK);
    EXPECT_EQ(t.layout, -1);
    EXPECT_EQ(internal::set_threshold("nhwc_columns", "63", &t), HBN_INVALID_ARGUMENT);
    EXPECT_STREQ(hbn_last_error(), "threshold nhwc_columns: expected 64 to 2048, got 63");
    EXPECT_EQ(internal::set_threshold("nhwc_columns", "rows", &t), HBN_INVALID_ARGUMENT);
    EXPECT_STREQ(hbn_last_error(),
                 "threshold nhwc_columns: expected a number from 64 to 2048, got 'rows'");
    EXPECT_EQ(internal::set_threshold("columns", "64", &t), HBN_INVALID_ARGUMENT);
    EXPECT_EQ(std::string(hbn_last_error())
                  .find("unknown threshold 'columns': expected one of layout nhwc_columns "),
              0u)
        << hbn_last_error();
    EXPECT_EQ(t.nhwc_columns, 512);
}

// Whatever thresholds are, within their ranges, results are right and scratch memory suffices (which
// instruction_set_main.cpp looks at).
class AnyThresholds : public ::testing::TestWithParam<int> {
protected:
    std::mt19937 random{uint32_t(GetParam())};

    int64_t between(int64_t least, int64_t most) {
        return std::uniform_int_distribution<int64_t>(least, most)(random);
    }
    template<typename Value>
    const Value &one_of(const std::vector<Value> &values) {
        return values[size_t(between(0, int64_t(values.size()) - 1))];
    }
    Thresholds thresholds() {
        Thresholds t;
        for (const internal::ThresholdRow &row : internal::kThresholdRows) {
            // Often at an end, and of large ranges the values that shapes of tests can tell apart.
            const int64_t most = std::min<int64_t>(row.most, row.least + (1 << 20));
            t.*row.member =
                one_of<int64_t>({t.*row.member, row.least, row.most, between(row.least, most),
                                 std::min(most, row.least + between(0, 300))});
        }
        return t;
    }
    void tune_all(DType dtype) {
        for (int k = 0; k < internal::kKernels; k++) {
            if (internal::row(Kernel(k)).kind != internal::KernelKind::vectors) {
                Tuning tuning;
                tuning.thresholds = thresholds();
                ASSERT_EQ(set_tuning(Kernel(k), hbn_dtype(dtype), tuning), HBN_OK);
            }
        }
    }
    void TearDown() override {
        internal::clear_tunings();
        hbn_set_num_threads(0);
    }
};

TEST_P(AnyThresholds, give_right_results) {
    hbn_set_num_threads(int(between(1, 3)));
    const DType dtype =
        one_of<DType>({DType::float32, DType::float64, DType::bfloat16, DType::float16});
    const Shape sizes = one_of<Shape>({{2, 3, 35, 37},
                                       {9, 5, 7, 7},
                                       {40, 33, 3, 5},
                                       {3, 130, 11, 1},
                                       {2, 300, 9, 9},
                                       {1, 17, 60, 70},
                                       {70, 4, 16, 16},
                                       {5, 1, 50, 40},
                                       {300, 40, 1, 1}});
    for (const MemoryFormat format : {contiguous, channels_last}) {
        tune_all(dtype);
        Operands o(dtype, sizes, format);
        for (const bool training : {true, false}) {
            SCOPED_TRACE(shape_name(sizes) + name_of(dtype) + (training ? " training" : ""));
            o.backward(training, o.forward(training));
            EXPECT_TRUE(last_view().tuned);
        }
        expect_moments(o);
    }
}

TEST_P(AnyThresholds, suffice_with_the_booked_memory) {
    hbn_set_num_threads(3);
    const hbn_dtype dtype = hbn_dtype(between(0, internal::kDTypes - 1));
    const int64_t c = between(1, 600), hw = between(1, 200000 / c),
                  n = between(2, std::max<int64_t>(400000 / (c * hw), 2));
    const int64_t sizes[4] = {n, c, hw, 1};
    const int64_t nchw[4] = {c * hw, hw, 1, 1}, nhwc[4] = {c * hw, 1, c, c};
    tune_all(DType(dtype));
    for (const int64_t(*strides)[4] : {&nchw, &nhwc}) {
        EveryOperation all(dtype, sizes, *strides, dtype == HBN_FLOAT64 ? HBN_FLOAT64 : HBN_FLOAT32,
                           {HBN_RELU, HBN_SILU});
        for (const Operation &operation : all.operations) {
            const int64_t before = internal::scratch_overflows();
            EXPECT_EQ(operation.call(), HBN_OK) << operation.name << ": " << hbn_last_error();
            ASSERT_EQ(internal::scratch_overflows(), before)
                << operation.name << ", dtype " << dtype << ", sizes " << n << " " << c << " "
                << hw;
        }
    }
}

// The bound has room to spare, so that calls alone would not tell: it must follow what thresholds may come to.
TEST(ScratchBytes, follow_the_thresholds_in_use) {
    const auto bytes = [](hbn_dtype dtype) { return internal::scratch_bytes(512, 1 << 20, dtype); };
    const auto wide = bytes(HBN_FLOAT32), narrow = bytes(HBN_BFLOAT16);
    const auto with = [&](const char *name, const char *value) {
        Tuning tuning;
        ASSERT_EQ(internal::set_threshold(name, value, &tuning.thresholds), HBN_OK);
        ASSERT_EQ(set_tuning(Kernel::stats, HBN_FLOAT32, tuning), HBN_OK);
    };
    for (const char *name : {"nhwc_columns", "block_columns", "block_plane_to_sum",
                             "block_plane_to_map", "block_plane_to_stream"}) {
        with(name, "2048");
        EXPECT_GE(bytes(HBN_FLOAT32).task - wide.task, 1024 * 200) << name;
        EXPECT_EQ(bytes(HBN_BFLOAT16).task, narrow.task) << name;
    }
    with("block_bytes_to_stream", "8192");
    EXPECT_GE(bytes(HBN_FLOAT32).task - wide.task, 1024 * 200);
    EXPECT_GE(bytes(HBN_BFLOAT16).task - narrow.task, 2048 * 200);
    for (const char *name : {"tile_elements", "row_tile_elements", "row_tile_rows",
                             "block_tile_elements", "block_tile_rows"}) {
        char least[32];
        for (const internal::ThresholdRow &row : internal::kThresholdRows) {
            if (std::strcmp(row.name, name) == 0) {
                std::snprintf(least, sizeof(least), "%lld", (long long)row.least);
            }
        }
        with(name, least);
        EXPECT_GE(bytes(HBN_FLOAT32).caller, wide.caller) << name;
    }
    // Of few channels, tiles are most of it, each with 24 bytes of sums: those of planes have an eighth of what they may
    // have at least; rows' have half, and sums for each channel.
    const auto of_two_channels = [] {
        return internal::scratch_bytes(2, 1 << 24, HBN_FLOAT32).caller;
    };
    with("tile_elements", "4096");
    EXPECT_GE(of_two_channels(), (1 << 25) / 512 * 24);
    with("row_tile_elements", "8192");
    EXPECT_GE(of_two_channels(), (1 << 25) / 4096 * 2 * 24);
    internal::clear_tunings();
    EXPECT_EQ(bytes(HBN_FLOAT32).caller, wide.caller);
    EXPECT_EQ(bytes(HBN_FLOAT32).task, wide.task);
}

INSTANTIATE_TEST_SUITE_P(, AnyThresholds, ::testing::Range(0, 60));

}  // namespace
}  // namespace hbn::test
