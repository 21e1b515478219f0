// The property tests of fuzz.h on random choices, for HBN_FUZZ_SECONDS each (3 if that is not set).
#include "fuzz.h"

#include "runtime/engine/table.h"

#include <gtest/gtest.h>

#include <chrono>

namespace hbn::test {
namespace {

// Seeds count from HBN_FUZZ_SEED (1 if that is not set), so a failure can be repeated.
void run(void (*property)(Choices &), int64_t least_cases) {
    const char *seconds = std::getenv("HBN_FUZZ_SECONDS"), *seed = std::getenv("HBN_FUZZ_SEED");
    const std::chrono::duration<double> budget(seconds ? std::atof(seconds) : 3);
    const auto start = std::chrono::steady_clock::now();
    uint64_t next = seed ? std::strtoull(seed, nullptr, 10) : 1;
    int64_t cases = 0;
    while (cases < least_cases || std::chrono::steady_clock::now() - start < budget) {
        Choices choices(next++);
        property(choices);
        cases++;
    }
    ::testing::Test::RecordProperty("cases", std::to_string(cases));
}

TEST(Fuzz, overlap) {
    run(fuzz_overlap, 5000);
    const OverlapCounts &counts = overlap_counts();
    // Both answers were asked for, and what is this small is always answered exactly.
    EXPECT_GT(counts.disjoint, counts.cases / 10);
    EXPECT_LT(counts.disjoint, counts.cases * 9 / 10);
    EXPECT_EQ(counts.refused_wrongly, 0);
}

TEST(Fuzz, entry_points) {
    EXPECT_EQ(num_entry_points(), internal::kOperations)
        << "tests/fuzz/entry_points.cpp lacks an operation of runtime/operations.def";
    run(fuzz_entry_points, 5000);
    for (const EntryPointCounts *counts = entry_point_counts(); counts->name; counts++) {
        RecordProperty(counts->name, std::to_string(counts->succeeded) + " succeeded, " +
                                         std::to_string(counts->refused) + " were refused");
        EXPECT_GT(counts->succeeded, 0) << counts->name;
        EXPECT_GT(counts->refused, 0) << counts->name;
    }
}

TEST(Fuzz, dlpack) {
    run(fuzz_dlpack, 5000);
}

}  // namespace
}  // namespace hbn::test
