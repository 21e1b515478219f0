// A library that was built with few kernels: an operation works, or says which kernel there is none of before it has
// written anything. tests/CMakeLists.txt says which kernels there are.
#include "every_operation.h"
#include "runtime/internal.h"

#include <gtest/gtest.h>

#include <set>

namespace hbn::test {
namespace {

struct Case {
    const char *name;
    hbn_dtype dtype, vectors;
    std::set<std::string> works;  // the rest has no kernels
};

const Case cases[] = {
    {"float32",
     HBN_FLOAT32,
     HBN_FLOAT32,
     {"forward, inference", "activation_forward 0, inference", "finalize_moments",
      "merge_moments"}},
    {"float64", HBN_FLOAT64, HBN_FLOAT64, {"merge_moments"}},
    // Parameters of the tensors' dtype would need conversions.
    {"bfloat16", HBN_BFLOAT16, HBN_BFLOAT16, {"merge_moments"}},
    {"bfloat16_with_float32",
     HBN_BFLOAT16,
     HBN_FLOAT32,
     {"forward, inference", "activation_forward 0, inference", "finalize_moments",
      "merge_moments"}},
    {"float16", HBN_FLOAT16, HBN_FLOAT16, {"stats", "merge_moments"}},
};

class FewKernels : public ::testing::TestWithParam<Case> {};

TEST_P(FewKernels, work_or_say_what_is_not_there) {
    const Case &p = GetParam();
    const int64_t sizes[4] = {2, 6, 4, 5};
    // Planes, rows of channels, and any strides.
    const int64_t layouts[][4] = {{120, 20, 5, 1}, {120, 1, 30, 6}, {480, 80, 20, 3}};
    for (const auto &strides : layouts) {
        // Whole tensors, and pieces as of those with more than 2^31 elements.
        for (const int64_t most : {0, 40}) {
            internal::set_max_elements_per_kernel(most);
            EveryOperation all(p.dtype, sizes, strides, p.vectors);
            for (const Operation &operation : all.operations) {
                const std::vector<uint64_t> before = all.bits();
                const hbn_status status = operation.call();
                if (p.works.count(operation.name)) {
                    EXPECT_EQ(status, HBN_OK) << operation.name << ": " << hbn_last_error();
                    continue;
                }
                EXPECT_EQ(status, HBN_UNSUPPORTED) << operation.name;
                EXPECT_EQ(std::string(hbn_last_error()).find("this library was built without "), 0u)
                    << operation.name << ": " << hbn_last_error();
                EXPECT_TRUE(all.bits() == before) << operation.name << " has written something";
            }
        }
    }
    internal::set_max_elements_per_kernel(0);
}

INSTANTIATE_TEST_SUITE_P(, FewKernels, ::testing::ValuesIn(cases),
                         [](const auto &info) { return std::string(info.param.name); });

TEST(FewKernelsAreEnough, to_compute_what_they_are_for) {
    // (x - 2) / sqrt(4) of 4 and 8.
    float x[2] = {4, 8}, y[2] = {0, 0}, mean = 2, var = 4;
    const hbn_tensor in{x, HBN_FLOAT32, HBN_CPU, 4, {2, 1, 1, 1}, {1, 1, 1, 1}};
    hbn_tensor out = in;
    out.data = y;
    const hbn_vector running_mean{&mean, HBN_FLOAT32, 1, 1, HBN_CPU};
    const hbn_vector running_var{&var, HBN_FLOAT32, 1, 1, HBN_CPU};
    ASSERT_EQ(hbn_batch_norm_forward(&in, nullptr, nullptr, &running_mean, &running_var, 0, 0.1, 0,
                                     &out, nullptr, nullptr),
              HBN_OK)
        << hbn_last_error();
    EXPECT_EQ(y[0], 1);
    EXPECT_EQ(y[1], 3);
}

}  // namespace
}  // namespace hbn::test
