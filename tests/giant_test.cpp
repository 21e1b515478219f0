// More than 2^31 elements, which 32-bit indices cannot reach. Takes 5 GB; `make test` leaves it out:
//     make test-giant
#include "oracle.h"

namespace hbn::test {
namespace {

class Giant : public ::testing::TestWithParam<MemoryFormat> {};

TEST_P(Giant, forward_in_place) {
    const Shape sizes{2, 2, 32768, 16400};
    const size_t elements = size_t(sizes[0] * sizes[1] * sizes[2] * sizes[3]);
    ASSERT_GT(elements, size_t(1) << 31);
    std::vector<uint16_t> memory(elements);
    // A period of 7 runs through every channel alike: values -3..3 have mean near 0 and variance near 4.
    uint16_t pattern[7];
    for (int i = 0; i < 7; i++) {
        store(DType::bfloat16, i - 3, &pattern[i]);
    }
    for (size_t i = 0; i < elements; i++) {
        memory[i] = pattern[i % 7];
    }
    const std::vector<size_t> probes = {0,           1, 6, (size_t(1) << 31) - 1, size_t(1) << 31,
                                        elements - 1};
    std::vector<double> before;
    for (size_t i : probes) {
        before.push_back(load(DType::bfloat16, &memory[i]));
    }
    const TensorView x(memory.data(), DType::bfloat16, sizes, GetParam());
    const auto saved = functional::batch_norm_forward(x, {}, {}, {}, {}, true, 0.1, 1e-5, x);
    for (int64_t c = 0; c < 2; c++) {
        EXPECT_NEAR(get(saved.mean, c), 0, 1e-6);
        EXPECT_NEAR(get(saved.invstd, c), 1 / std::sqrt(4 + 1e-5), 1e-6);
    }
    for (size_t i = 0; i < probes.size(); i++) {
        EXPECT_NEAR(load(DType::bfloat16, &memory[probes[i]]), before[i] / std::sqrt(4 + 1e-5),
                    0.01);
    }
}

INSTANTIATE_TEST_SUITE_P(, Giant,
                         ::testing::Values(MemoryFormat::contiguous, MemoryFormat::channels_last),
                         [](const auto &info) {
                             return info.param == MemoryFormat::contiguous ? "nchw" : "nhwc";
                         });

}  // namespace
}  // namespace hbn::test
