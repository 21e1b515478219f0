// Each pass makes the IR that it is for, and changes no result: small pipelines are lowered and run with and without it.
#include <gtest/gtest.h>

#include <Halide.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "generators/rounding.h"
#include "schedules/passes/lanes.h"
#include "schedules/passes/passes.h"
#include "schedules/passes/prefetching.h"
#include "schedules/passes/streaming.h"

using namespace Halide;

namespace {

using Pass = std::function<void(Pipeline, const Func &)>;

void no_pass(const Pipeline &, const Func &) {
}

Target avx2() {
    return Target("x86-64-linux-sse41-avx-avx2-f16c-fma-no_asserts-no_bounds_query-no_runtime");
}

int occurrences(const std::string &text, const std::string &part) {
    int count = 0;
    for (size_t i = text.find(part); i != std::string::npos; i = text.find(part, i + 1)) {
        count++;
    }
    return count;
}

// y(x, row) from in(x, row), in whole vectors and a guarded tail, as maps are scheduled.
struct Map {
    ImageParam in;
    Var x{"x"}, row{"row"};
    Func y{"y"};

    Map(Type type, const std::function<Expr(const Expr &)> &value, int lanes) : in(type, 2, "in") {
        y(x, row) = value(in(x, row));
        y.vectorize(x, lanes, TailStrategy::GuardWithIf);
    }

    std::string lowered(const Pass &pass, const std::vector<Argument> &more = {}) {
        Pipeline pipeline(y);
        pass(pipeline, y);
        const std::string file = testing::TempDir() + "hbn_passes_test.stmt";
        std::vector<Argument> arguments = {in};
        arguments.insert(arguments.end(), more.begin(), more.end());
        pipeline.compile_to_lowered_stmt(file, arguments, Text, avx2());
        std::ostringstream text;
        text << std::ifstream(file).rdbuf();
        std::remove(file.c_str());
        return text.str();
    }

    // The bytes of y, for rows of each width from 1 to 70.
    std::vector<std::vector<uint8_t>> results(const Pass &pass) {
        Pipeline pipeline(y);
        pass(pipeline, y);
        const Target target = get_jit_target_from_environment();
        pipeline.compile_jit(target);
        std::vector<std::vector<uint8_t>> all;
        for (int width = 1; width <= 70; width++) {
            Buffer<> input(in.type(), std::vector<int>{width, 5}),
                output(in.type(), std::vector<int>{width, 5});
            for (size_t i = 0; i < input.size_in_bytes(); i++) {
                ((uint8_t *)input.data())[i] = uint8_t(i * 37 % 251);
            }
            in.set(input);
            pipeline.realize({output}, target);
            const auto *bytes = (const uint8_t *)output.data();
            all.emplace_back(bytes, bytes + output.size_in_bytes());
        }
        return all;
    }

    void expect_same_results(const Pass &pass) {
        EXPECT_EQ(results(pass), results(no_pass));
    }
};

Expr twice(const Expr &e) {
    return e * 2;
}

Expr twice_in_float32(const Expr &e) {
    return hbn::round_to_bfloat16(cast<float>(e) * 2, Expr(uint32_t(1)));
}

}  // namespace

TEST(Tails, AreStoredByHalves) {
    const auto pass = [](const Pipeline &p, const Func &) { hbn::store_tails_by_halves(p); };
    Map map(Float(32), twice, 16);
    // The whole vector, and tails of 8, 4, 2 and 1 lanes, none of which is predicated.
    const std::string without = map.lowered(no_pass), with = map.lowered(pass);
    EXPECT_GT(occurrences(without, "predicate"), 0);
    EXPECT_EQ(occurrences(with, "predicate"), 0);
    EXPECT_EQ(occurrences(without, "ramp("), occurrences(without, ", 16)"));
    for (const char *lanes : {", 8)", ", 4)", ", 2)"}) {
        EXPECT_GT(occurrences(with, lanes), occurrences(without, lanes)) << lanes;
    }
    map.expect_same_results(pass);
}

TEST(BFloat16Pairs, AreHalvesOfWords) {
    const auto pass = [](const Pipeline &p, const Func &) {
        hbn::compute_bfloat16_in_pairs(p, {}, Expr());
    };
    // The same by a mask that is not seen for what it is.
    const auto by_mask = [](const Pipeline &p, const Func &) {
        hbn::compute_bfloat16_in_pairs(p, {}, Expr(uint32_t(0xffff)));
    };
    Map map(BFloat(16), twice_in_float32, 16);
    const std::string upper_half = "4294901760", without = map.lowered(no_pass),
                      with = map.lowered(pass);
    EXPECT_EQ(occurrences(without, upper_half), 0) << without;
    EXPECT_GT(occurrences(with, upper_half), 0) << with;
    EXPECT_GT(occurrences(with, "reinterpret<bfloat16x16>"), 0) << with;
    map.expect_same_results(pass);
    map.expect_same_results(by_mask);
}

// Sums over rows in each column, and over all columns.
TEST(BFloat16Pairs, AreAddedUpInHalvesOfWords) {
    constexpr int columns = 64, rows = 6, lanes = 16;
    ImageParam in(BFloat(16), 2, "in");
    Buffer<bfloat16_t> input(columns, rows);
    input.for_each_element(
        [&](int x, int y) { input(x, y) = bfloat16_t(float((x * 37 + y * 11) % 29 - 7)); });
    in.set(input);
    std::vector<Buffer<float>> results;
    for (const bool pairs : {false, true}) {
        Var x("x");
        Func by_column("by_column"), in_any_order("in_any_order"), sums("sums");
        const RDom row(0, rows), step(0, columns / lanes, 0, rows), lane(0, lanes);
        by_column(x) += cast<float>(in(x, row)) * 2;
        by_column.compute_root().vectorize(x, lanes).update().reorder(x, row).vectorize(x, lanes);
        in_any_order(x) += cast<float>(in(step.x * lanes + x, step.y));
        in_any_order.compute_root().vectorize(x, lanes).bound(x, 0, lanes);
        in_any_order.update().reorder(x, step.x, step.y).vectorize(x, lanes);
        Func all("all");
        all() += in_any_order(lane);
        all.compute_root();
        sums(x) = by_column(x) + 1000 * all();
        Pipeline pipeline(sums);
        if (pairs) {
            hbn::compute_bfloat16_in_pairs(pipeline, {in_any_order.name()}, Expr());
            const std::string file = testing::TempDir() + "hbn_passes_test_sums.stmt";
            pipeline.compile_to_lowered_stmt(file, {in}, Text, avx2());
            std::ostringstream text;
            text << std::ifstream(file).rdbuf();
            std::remove(file.c_str());
            // Each of the two sums adds up both halves, and only the first puts its lanes in order again.
            EXPECT_GE(occurrences(text.str(), "4294901760"), 2) << text.str();
            EXPECT_GT(occurrences(text.str(), "interleave_vectors("), 0) << text.str();
            EXPECT_GT(occurrences(text.str(), "concat_vectors("), 0) << text.str();
        }
        results.push_back(pipeline.realize({columns}));
    }
    // Small integers, which sums are exact for in any order.
    for (int x = 0; x < columns; x++) {
        EXPECT_EQ(results[0](x), results[1](x)) << x;
    }
}

TEST(Streaming, StoresWholeVectorsWhereTheFlagHolds) {
    Param<bool> stream("stream");
    const auto pass = [&](const Pipeline &p, const Func &y) {
        hbn::stream_stores(p, avx2(), y, Float(32), stream);
    };
    Map map(Float(32), twice, 16);
    const std::string with = map.lowered(pass, {stream});
    // 64 bytes are four stores of 16, in one of two loops, the other of which stores as before.
    EXPECT_EQ(occurrences(with, "llvm.x86.avx.movnt.hbn"), 4) << with;
    EXPECT_EQ(occurrences(with, "hbn_stream_fence"), 1);
    // Once around the loops, once around the fence.
    EXPECT_EQ(occurrences(with, "if ((uint1)stream)"), 2) << with;
    EXPECT_EQ(occurrences(with, "} else {"), 1) << with;
    EXPECT_EQ(occurrences(map.lowered(no_pass, {stream}), "movnt"), 0);
}

TEST(Streaming, IsForX86Alone) {
    Param<bool> stream("stream");
    Map map(Float(32), twice, 16);
    const std::string arm = map.lowered(
        [&](const Pipeline &p, const Func &y) {
            hbn::stream_stores(p, Target("arm-64-linux"), y, Float(32), stream);
        },
        {stream});
    EXPECT_EQ(occurrences(arm, "movnt"), 0);
}

TEST(Prefetching, IsOfWhatLoopsReadAndWrite) {
    const auto pass = [](int inputs, int outputs) {
        return [=](const Pipeline &p, const Func &) {
            hbn::PrefetchParameters ahead{};
            ahead.inputs = inputs;
            ahead.outputs = outputs;
            hbn::prefetch_ahead(p, avx2(), ahead);
        };
    };
    Map map(Float(32), twice, 16);
    const std::string intrinsic = "llvm.prefetch.p0";
    EXPECT_EQ(occurrences(map.lowered(pass(0, 0)), intrinsic), 0);
    const int inputs = occurrences(map.lowered(pass(2048, 0)), intrinsic),
              both = occurrences(map.lowered(pass(2048, 2048)), intrinsic);
    EXPECT_GT(inputs, 0);
    EXPECT_GT(both, inputs);
    map.expect_same_results(pass(2048, 2048));
}

TEST(Names, AreOfPassesAlone) {
    using hbn::passes_named;
    EXPECT_TRUE(passes_named("").empty());
    EXPECT_EQ(passes_named("tails,prefetching"),
              (std::set<hbn::Pass>{hbn::Pass::tails, hbn::Pass::prefetching}));
    for (const char *names : {"tail", ",tails", "tails, prefetching", "Tails", "streaming;tails"}) {
        try {
            passes_named(names);
            ADD_FAILURE() << "'" << names << "' was taken";
        } catch (const Halide::Error &e) {
            EXPECT_NE(std::string(e.what()).find("there is no pass '"), std::string::npos);
            EXPECT_NE(std::string(e.what()).find("bfloat16_pairs prefetching streaming tails"),
                      std::string::npos);
        }
    }
}

int main(int argc, char **argv) {
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
