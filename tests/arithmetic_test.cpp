// The loops that bench measures arithmetic by must do all of it: plain loops get the same.
#include "bench/arithmetic.h"
#include "bench/contestant.h"
#include "tests/tensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace hbn::bench;
using namespace hbn::test;
using hbn::DType;

constexpr size_t kBytes = 2 * kArithmeticStep;
constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};

struct Case {
    const ArithmeticLoops *loops;
    int dtype;
    Stores stores;  // of maps
};

class ArithmeticTest : public testing::TestWithParam<Case> {
protected:
    void SetUp() override {
        const std::string set = GetParam().loops->instruction_set;
        if ((set == "avx512" && !__builtin_cpu_supports("avx512bw")) ||
            (set == "avx2" && !__builtin_cpu_supports("avx2"))) {
            GTEST_SKIP() << "no " << set;
        }
        std::mt19937 generator(1);
        std::normal_distribution<float> normal(3, 1);
        for (size_t i = 0; i < count(); i++) {
            store(dtype(), normal(generator), x + i * element_bytes());
            store(dtype(), normal(generator), grad_output + i * element_bytes());
        }
    }

    DType dtype() const {
        return kDTypes[GetParam().dtype];
    }
    size_t element_bytes() const {
        return dtype() == DType::float32 ? 4 : 2;
    }
    size_t count() const {
        return kBytes / element_bytes();
    }
    double get(const char *from, size_t i) const {
        return load(dtype(), from + i * element_bytes());
    }
    ArithmeticTensors tensors() {
        return {x, grad_output, out, kBytes};
    }

    alignas(64) char x[kBytes], grad_output[kBytes], out[kBytes];
    const Coefficients c{2.75, 1, 3.1f, 0.5f, 1.7f, 0.3f, 0.11f, 0.13f};
};

TEST_P(ArithmeticTest, SumsAreThoseOfPlainLoops) {
    double d = 0, dd = 0, dy = 0, dy_d = 0, largest = 0;
    for (size_t i = 0; i < count(); i++) {
        const double distance = get(x, i) - c.pivot, gradient = get(grad_output, i);
        d += distance;
        dd += distance * distance;
        dy += gradient;
        dy_d += gradient * distance;
    }
    // Sums of 16-bit types round in float32, within groups.
    const double tolerance = dtype() == DType::float32 ? 1e-13 : 1e-6;
    for (const Subtraction by : {BY_SUBTRACTION, BY_FMA}) {
        for (const int passes : {1, 3}) {
            const ArithmeticSums forward =
                GetParam().loops->forward_sums[by][GetParam().dtype](tensors(), c, passes);
            EXPECT_NEAR(forward.first, passes * d, tolerance * passes * dd);
            EXPECT_NEAR(forward.second, passes * dd, tolerance * passes * dd);
            const ArithmeticSums backward =
                GetParam().loops->backward_sums[by][GetParam().dtype](tensors(), c, passes);
            EXPECT_NEAR(backward.first, passes * dy, tolerance * passes * dy);
            EXPECT_NEAR(backward.second, passes * dy_d, tolerance * passes * dy);
            largest = std::max<double>(forward.largest, backward.largest);
        }
    }
    // Only bfloat16's groups are guarded.
    EXPECT_EQ(largest > 0, dtype() == DType::bfloat16);
}

TEST_P(ArithmeticTest, MapsRoundAsPlainLoopsDo) {
    const bool whole_range = dtype() != DType::float16;
    const float scale = whole_range ? c.range_scale : 1;
    GetParam().loops->forward_map[GetParam().stores][GetParam().dtype](tensors(), c, 1);
    for (size_t i = 0; i < count(); i++) {
        const float deviation = std::fma(float(get(x, i)), scale, -c.mean);
        const float fused = std::fma(deviation, c.slope, c.constant),
                    unfused = deviation * c.slope + c.constant;
        EXPECT_TRUE(get(out, i) == round_to(dtype(), fused) ||
                    get(out, i) == round_to(dtype(), unfused))
            << get(out, i) << " for " << fused;
    }
    GetParam().loops->backward_map[GetParam().stores][GetParam().dtype](tensors(), c, 1);
    for (size_t i = 0; i < count(); i++) {
        const float deviation = std::fma(float(get(x, i)), scale, -c.mean);
        const float centred = float(get(grad_output, i)) - c.mean_dy;
        const float fused = std::fma(-deviation, c.mean_dy_xhat, centred) * c.slope,
                    unfused = (centred - deviation * c.mean_dy_xhat) * c.slope;
        EXPECT_TRUE(get(out, i) == round_to(dtype(), fused) ||
                    get(out, i) == round_to(dtype(), unfused))
            << get(out, i) << " for " << fused;
    }
}

// Each value of a 16-bit type, and what lies half way between it and the next.
TEST_P(ArithmeticTest, MapsOfEveryValueRoundToNearestEven) {
    if (dtype() == DType::float32) {
        GTEST_SKIP() << "has no narrower type to round to";
    }
    Coefficients identity{};
    identity.range_scale = identity.slope = 1;
    Coefficients larger = identity;
    larger.slope = dtype() == DType::bfloat16 ? 1 + 0x1p-8f : 1 + 0x1p-11f;
    for (const Coefficients &coefficients : {identity, larger}) {
        for (int first = 0; first < 0x10000; first += int(count())) {
            for (size_t i = 0; i < count(); i++) {
                const uint16_t bits = uint16_t(first + i);
                std::memcpy(x + 2 * i, &bits, 2);
            }
            GetParam().loops->forward_map[GetParam().stores][GetParam().dtype](tensors(),
                                                                               coefficients, 1);
            for (size_t i = 0; i < count(); i++) {
                const double value = get(x, i);
                const float mapped = float(value) * coefficients.slope;
                if (std::isnan(value)) {
                    // hbn makes a bfloat16's NaN plain before this.
                    EXPECT_TRUE(std::isnan(get(out, i)) || dtype() == DType::bfloat16);
                } else {
                    EXPECT_EQ(get(out, i), round_to(dtype(), mapped)) << value;
                }
            }
        }
    }
}

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const ArithmeticLoops *loops :
         {&arithmetic_loops_avx512, &arithmetic_loops_avx2, &arithmetic_loops_sse41}) {
        for (const int dtype : {FLOAT32, BFLOAT16, FLOAT16}) {
            all.push_back({loops, dtype, ORDINARY_STORES});
            all.push_back({loops, dtype, STREAMING_STORES});
        }
    }
    return all;
}

std::string name_of(const testing::TestParamInfo<Case> &info) {
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    return std::string(info.param.loops->instruction_set) + "_" + names[info.param.dtype] +
           (info.param.stores == STREAMING_STORES ? "_streaming" : "");
}

INSTANTIATE_TEST_SUITE_P(Loops, ArithmeticTest, testing::ValuesIn(cases()), name_of);

}  // namespace
