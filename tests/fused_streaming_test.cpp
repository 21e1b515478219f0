// Fused operations on tensors that outgrow the cache: stores that bypass it change no bit.
#include "tensors.h"

#include <gtest/gtest.h>

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

// Whole lines are streamed; from the third element on there are none.
struct Memory {
    DType dtype;
    Shape sizes;
    MemoryFormat format;
    bool aligned;
    std::vector<char> bytes;

    Memory(DType dtype, const Shape &sizes, MemoryFormat format, bool aligned)
        : dtype(dtype),
          sizes(sizes),
          format(format),
          aligned(aligned),
          bytes(size_t(count()) * size_of(dtype) + 128) {
    }
    int64_t count() const {
        return sizes[0] * sizes[1] * sizes[2] * sizes[3];
    }
    char *begin() {
        char *line = bytes.data() + 64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64;
        return aligned ? line : line + 8;
    }
    TensorView view() {
        return TensorView(begin(), dtype, sizes, format);
    }
    void fill(int seed) {
        for (int64_t i = 0; i < count(); i++) {
            store(dtype, double((i * 7919 + seed) % 1009) / 500 - 1,
                  begin() + i * int64_t(size_of(dtype)));
        }
    }
    bool operator==(Memory &other) {
        return std::memcmp(begin(), other.begin(), bytes.size() - 128) == 0;
    }
};

class FusedBeyondTheCache : public ::testing::TestWithParam<DType> {};

TEST_P(FusedBeyondTheCache, gives_the_same_bits) {
    const DType dtype = GetParam();
    const Shape sizes{68 / int64_t(size_of(dtype)), 64, 56, 56};
    for (MemoryFormat format : {MemoryFormat::contiguous, MemoryFormat::channels_last}) {
        std::vector<Memory> of[2];
        for (bool aligned : {false, true}) {
            std::vector<Memory> &m = of[aligned];
            for (int i = 0; i < 8; i++) {
                m.emplace_back(dtype, sizes, format, aligned);
                m.back().fill(i * 3);
            }
            m.emplace_back(DType::uint8, sizes, format, aligned);
            const TensorView x = m[0].view(), r = m[1].view(), dy = m[2].view();
            const auto s = functional::batch_norm_activation_forward(
                x, {}, {}, {}, {}, {}, true, 0.1, kEps, Activation::relu(), m[3].view());
            functional::batch_norm_activation_backward(dy, x, {}, {}, {}, {}, s.mean, s.invstd, {},
                                                       {}, true, kEps, Activation::relu(), {},
                                                       m[4].view());
            const TensorView mask = m[8].view();
            functional::batch_norm_activation_forward(x, r, {}, {}, {}, {}, true, 0.1, kEps,
                                                      Activation::relu(), m[5].view(), mask);
            functional::batch_norm_activation_backward(dy, x, {}, mask, {}, {}, s.mean, s.invstd,
                                                       {}, {}, true, kEps, Activation::relu(), {},
                                                       m[6].view(), m[1].view());
        }
        for (int i = 0; i < 9; i++) {
            EXPECT_TRUE(of[0][i] == of[1][i]) << i;
        }
    }
}

std::vector<DType> dtypes() {
    return {DType::float32, DType::float64, DType::bfloat16, DType::float16};
}

INSTANTIATE_TEST_SUITE_P(, FusedBeyondTheCache, ::testing::ValuesIn(dtypes()),
                         [](const ::testing::TestParamInfo<DType> &info) {
                             return std::string(name_of(info.param));
                         });

}  // namespace
}  // namespace hbn::test
