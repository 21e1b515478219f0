// The least arithmetic that hbn's algorithms take for each element, compiled once for each instruction set
// (HBN_BENCH_INSTRUCTION_SET; CMakeLists.txt).
//
// It is vectorized by hand since it is the limit, and not a kernel: nothing but registers, L1 and the arithmetic ports may
// count. It computes what generators/reductions.cpp and coefficients.cpp define, with the same roundings: float64 sums of
// float32; float32 sums in groups, and float64 over groups, of 16-bit types; float32 maps, rounded to nearest even.
// Tails, edges, and whatever is done once a channel are left out.
#include "bench/arithmetic.h"

#include <immintrin.h>

namespace hbn::bench {

// limits.py tells loops apart by this.
namespace HBN_BENCH_INSTRUCTION_SET {
namespace {

#if defined(__AVX512F__)
constexpr size_t kBytes = 64;
#elif defined(__AVX2__)
constexpr size_t kBytes = 32;
#else
constexpr size_t kBytes = 16;
#endif

#define HBN_VECTOR(bytes) __attribute__((vector_size(bytes), may_alias))
using Floats = float HBN_VECTOR(kBytes);
using Doubles = double HBN_VECTOR(kBytes);
using Words = uint32_t HBN_VECTOR(kBytes);
#undef HBN_VECTOR

// Values that are summed in float32: the rows of a set, as kernels have them. tests/bench/test_bench.py compares them.
constexpr int kGroup = 32;
// Those that are unrolled: a whole group, since limits.py reads innermost loops. With SSE4.1, GCC 12 makes
// slower code of that.
constexpr int kUnrolledRows = kBytes == 16 ? 8 : kGroup;

template<typename V>
V load(const void *from, size_t at) {
    return *reinterpret_cast<const V *>(static_cast<const char *>(from) + at);
}

template<Stores stores, typename V>
void store(void *to, size_t at, const V &v) {
    char *here = static_cast<char *>(to) + at;
    if constexpr (stores == ORDINARY_STORES) {
        *reinterpret_cast<V *>(here) = v;
#if defined(__AVX512F__)
    } else if constexpr (sizeof(V) == 64) {
        _mm512_stream_si512(reinterpret_cast<__m512i *>(here), __m512i(v));
#endif
#if defined(__AVX__)
    } else if constexpr (sizeof(V) == 32) {
        _mm256_stream_si256(reinterpret_cast<__m256i *>(here), __m256i(v));
#endif
    } else {
        _mm_stream_si128(reinterpret_cast<__m128i *>(here), __m128i(v));
    }
}

// The next pass reads and writes memory again.
void end_pass() {
    asm volatile("" ::: "memory");
}

// Half a vector in float64: of memory, or the lower or upper half of v.
Doubles wide(const void *from, size_t at) {
    const char *here = static_cast<const char *>(from) + at;
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(load<__m256>(here, 0));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(load<__m128>(here, 0));
#else
    // GCC 12 would load first, which costs another port.
    Doubles wide;
    asm("cvtps2pd %1, %0" : "=x"(wide) : "m"(*reinterpret_cast<const char(*)[8]>(here)));
    return wide;
#endif
}
Doubles lower(const Floats &v) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#else
    return _mm_cvtps_pd(v);
#endif
}
Doubles upper(const Floats &v) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#else
    return _mm_cvtps_pd(_mm_movehl_ps(v, v));
#endif
}

double sum_of(const Doubles &v) {
    double sum = 0;
    for (size_t i = 0; i < kBytes / 8; i++) {
        sum += v[i];
    }
    return sum;
}

// v - pivot; v * 1 is exact.
template<Subtraction subtraction, typename V>
V distance(const V &v, [[maybe_unused]] const V &one, const V &pivot) {
#if defined(__FMA__)
    if (subtraction == BY_FMA) {
        return v * one - pivot;
    }
#endif
    return v - pivot;
}

// ---- dtypes: kBytes of them are kVectors of float32

struct Float32 {
    static constexpr int kVectors = 1;
    static constexpr bool kWholeRange = true;
    static void widen(const void *from, size_t at, Floats out[]) {
        out[0] = load<Floats>(from, at);
    }
    template<Stores stores>
    static void narrow(const Floats v[], void *to, size_t at) {
        store<stores>(to, at, v[0]);
    }
};

struct Bfloat16 {
    static constexpr int kVectors = 2;  // even and odd elements
    static constexpr bool kWholeRange = true;
    static void widen(const void *from, size_t at, Floats out[]) {
        const Words pairs = load<Words>(from, at);
        out[0] = Floats(pairs << 16);
        out[1] = Floats(pairs & 0xffff0000);
    }
    template<Stores stores>
    static void narrow(const Floats v[], void *to, size_t at) {
        const Words even = rounded(Words(v[0])) >> 16, odd = rounded(Words(v[1]));
#if defined(__AVX512F__)
        store<stores>(to, at, _mm512_mask_blend_epi16(0xaaaaaaaa, __m512i(even), __m512i(odd)));
#elif defined(__AVX2__)
        store<stores>(to, at, _mm256_blend_epi16(__m256i(even), __m256i(odd), 0xaa));
#else
        store<stores>(to, at, _mm_blend_epi16(__m128i(even), __m128i(odd), 0xaa));
#endif
    }
    // The upper halves are right.
    static Words rounded(const Words &bits) {
#if defined(__AVX512F__)
        // bits + 0x7fff + (bits >> 16 & 1) is bits - ~(0x7ffe | (bits >> 16 & 1)).
        const __m512i least_bit = __m512i(bits >> 16);
        return bits - Words(_mm512_ternarylogic_epi32(least_bit, _mm512_set1_epi32(1),
                                                      _mm512_set1_epi32(0x7ffe), 0x15));
#else
        return bits + ((bits >> 16 & 1) + 0x7fff);
#endif
    }
};

struct Float16 {
    static constexpr int kVectors = 2;
    static constexpr bool kWholeRange = false;
    static void widen(const void *from, size_t at, Floats out[]) {
        for (int i = 0; i < 2; i++) {
            out[i] = widen_half(static_cast<const char *>(from) + at + i * (kBytes / 2));
        }
    }
    template<Stores stores>
    static void narrow(const Floats v[], void *to, size_t at) {
#if defined(__F16C__)
        for (int i = 0; i < 2; i++) {
            store<stores>(to, at + i * (kBytes / 2), narrow_half(v[i]));
        }
#else
        store<stores>(to, at, _mm_packus_epi32(narrow_half(v[0]), narrow_half(v[1])));
#endif
    }

private:
#if defined(__AVX512F__)
    static Floats widen_half(const char *from) {
        return _mm512_cvtph_ps(load<__m256i>(from, 0));
    }
    static __m256i narrow_half(const Floats &v) {
        return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    }
#elif defined(__F16C__)
    static Floats widen_half(const char *from) {
        return _mm256_cvtph_ps(load<__m128i>(from, 0));
    }
    static __m128i narrow_half(const Floats &v) {
        return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    }
#else
    // Without instructions for it: by multiplication, which is exact, and takes subnormal numbers too.
    static Floats widen_half(const char *from) {
        const Words bits = Words(_mm_cvtepu16_epi32(
                        _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)))),
                    magnitude = (bits & 0x7fff) << 13;
        const Words no_number = larger_than(magnitude, (0x7c00 << 13) - 1) & 0x7f800000;
        return Floats(Words(Floats(magnitude) * 0x1p112f) | no_number | (bits & 0x8000) << 16);
    }
    // Rounds numbers whose float16 is normal as integers, and others by adding what their last bit is worth.
    static __m128i narrow_half(const Floats &v) {
        const Words sign = Words(v) & 0x80000000, magnitude = Words(v) ^ sign;
        const Words normal = (magnitude + (0xfff - 0x38000000) + (magnitude >> 13 & 1)) >> 13;
        const Words least = Words(Floats(magnitude) + 0.5f) - 0x3f000000;
        const __m128i rounded = _mm_blendv_epi8(__m128i(least), __m128i(normal),
                                                __m128i(larger_than(magnitude, 0x387fffff)));
        return __m128i(Words(_mm_min_epi32(rounded, _mm_set1_epi32(0x7c00))) |
                       (larger_than(magnitude, 0x7f800000) & 0x200) | sign >> 16);
    }
    // Of magnitudes, which compare as signed numbers do.
    static Words larger_than(const Words &magnitude, int least) {
        return Words(_mm_cmpgt_epi32(__m128i(magnitude), _mm_set1_epi32(least)));
    }
#endif
};

// ---- sums: forward of d = x - pivot and d * d, backward of dy and dy * d

enum Direction { FORWARD, BACKWARD };

// ---- of float32

// Enough accumulators for the latency of addition.
constexpr int kChains = kBytes == 64 ? 8 : 4;
static_assert(kArithmeticStep % (kChains * (kBytes / 2)) == 0);

ArithmeticSums sum_of(const Doubles (&first)[kChains], const Doubles (&second)[kChains]) {
    ArithmeticSums sums{};
    for (int k = 0; k < kChains; k++) {
        sums.first += sum_of(first[k]);
        sums.second += sum_of(second[k]);
    }
    return sums;
}

template<Direction direction, Subtraction subtraction>
[[gnu::always_inline]] inline ArithmeticSums sums_in_float64(const ArithmeticTensors &t,
                                                             const Coefficients &c, int passes) {
    const Doubles pivot = Doubles{} + c.pivot, one = Doubles{} + c.one;
    Doubles first[kChains] = {}, second[kChains] = {};
    for (; passes > 0; passes--, end_pass()) {
        for (size_t at = 0; at < t.bytes; at += kChains * (kBytes / 2)) {
#pragma GCC unroll 8
            for (int k = 0; k < kChains; k++) {
                const size_t here = at + k * (kBytes / 2);
                const Doubles d = distance<subtraction>(wide(t.x, here), one, pivot);
                const Doubles value = direction == FORWARD ? d : wide(t.grad_output, here);
                first[k] += value;
                second[k] += value * d;
            }
        }
    }
    return sum_of(first, second);
}

// ---- of 16-bit types

// The sums of a group's terms, of two vectors side by side.
struct GroupSums {
    Floats first[2], second[2];
};

Words larger(const Words &a, const Words &b) {
#if defined(__AVX512F__)
    return Words(_mm512_max_epu32(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
    return Words(_mm256_max_epu32(__m256i(a), __m256i(b)));
#else
    return Words(_mm_max_epu32(__m128i(a), __m128i(b)));
#endif
}

// Totals over groups in float64, and the largest magnitude for guarded ones.
struct Totals {
    Doubles first[2] = {}, second[2] = {};
    Words largest = {};

    void add(const GroupSums &group) {
        for (int i = 0; i < 2; i++) {
            first[0] += lower(group.first[i]);
            first[1] += upper(group.first[i]);
            second[0] += lower(group.second[i]);
            second[1] += upper(group.second[i]);
        }
    }
    void guard(const Floats &sums) {
        largest = larger(largest, Words(sums) & 0x7fffffff);
    }
    ArithmeticSums result() const {
        ArithmeticSums sums{sum_of(first[0]) + sum_of(first[1]),
                            sum_of(second[0]) + sum_of(second[1]), 0};
        for (size_t i = 0; i < kBytes / 4; i++) {
            sums.largest = largest[i] > sums.largest ? largest[i] : sums.largest;
        }
        return sums;
    }
};
static_assert(kArithmeticStep % (kGroup * kBytes) == 0);

template<Direction direction, typename T, Subtraction subtraction>
[[gnu::always_inline]] inline ArithmeticSums sums_in_groups(const ArithmeticTensors &t,
                                                            const Coefficients &c, int passes) {
    const Floats pivot = Floats{} + float(c.pivot), one = Floats{} + float(c.one);
    Totals totals;
    for (; passes > 0; passes--, end_pass()) {
        for (size_t at = 0; at < t.bytes; at += kGroup * kBytes) {
            GroupSums group{};
#pragma GCC unroll kUnrolledRows
            for (int row = 0; row < kGroup; row++) {
                Floats x[2], dy[2];
                T::widen(t.x, at + row * kBytes, x);
                if constexpr (direction == BACKWARD) {
                    T::widen(t.grad_output, at + row * kBytes, dy);
                }
                for (int i = 0; i < 2; i++) {
                    const Floats d = distance<subtraction>(x[i], one, pivot);
                    const Floats value = direction == FORWARD ? d : dy[i];
                    group.first[i] += value;
                    group.second[i] += value * d;
                }
            }
            totals.add(group);
            if constexpr (T::kWholeRange && direction == FORWARD) {
                // A large sum of d comes with a larger one of squares, which needs no sign removed.
                totals.largest =
                    larger(larger(totals.largest, Words(group.second[0])), Words(group.second[1]));
            } else if constexpr (T::kWholeRange) {
                for (int i = 0; i < 2; i++) {
                    totals.guard(group.first[i]);
                    totals.guard(group.second[i]);
                }
            }
        }
    }
    return totals.result();
}

template<Direction direction, typename T, Subtraction subtraction>
[[gnu::always_inline]] inline ArithmeticSums sums(const ArithmeticTensors &t, const Coefficients &c,
                                                  int passes) {
    if constexpr (T::kVectors == 1) {
        return sums_in_float64<direction, subtraction>(t, c, passes);
    } else {
        return sums_in_groups<direction, T, subtraction>(t, c, passes);
    }
}

// limits.py finds their loops by these names.
template<typename T, Subtraction subtraction>
ArithmeticSums forward_sums(const ArithmeticTensors &t, const Coefficients &c, int passes) {
    return sums<FORWARD, T, subtraction>(t, c, passes);
}
template<typename T, Subtraction subtraction>
ArithmeticSums backward_sums(const ArithmeticTensors &t, const Coefficients &c, int passes) {
    return sums<BACKWARD, T, subtraction>(t, c, passes);
}

// ---- maps

template<typename T>
Floats deviation(const Floats &x, const Coefficients &c) {
    return T::kWholeRange ? x * c.range_scale - c.mean : x - c.mean;
}

template<typename T, Stores stores>
void forward_map(const ArithmeticTensors &t, const Coefficients &coefficients, int passes) {
    const Coefficients c = coefficients;  // which stores can't change
    for (; passes > 0; passes--, end_pass()) {
#pragma GCC unroll 2
        for (size_t at = 0; at < t.bytes; at += kBytes) {
            Floats v[T::kVectors];
            T::widen(t.x, at, v);
            for (Floats &x : v) {
                x = deviation<T>(x, c) * c.slope + c.constant;
            }
            T::template narrow<stores>(v, t.out, at);
        }
    }
}

template<typename T, Stores stores>
void backward_map(const ArithmeticTensors &t, const Coefficients &coefficients, int passes) {
    const Coefficients c = coefficients;
    for (; passes > 0; passes--, end_pass()) {
#pragma GCC unroll 2
        for (size_t at = 0; at < t.bytes; at += kBytes) {
            Floats x[T::kVectors], dy[T::kVectors];
            T::widen(t.x, at, x);
            T::widen(t.grad_output, at, dy);
            for (int i = 0; i < T::kVectors; i++) {
                const Floats centred = dy[i] - c.mean_dy;
                x[i] = (centred - deviation<T>(x[i], c) * c.mean_dy_xhat) * c.slope;
            }
            T::template narrow<stores>(x, t.out, at);
        }
    }
}

#define HBN_STRING(name) #name
#define HBN_NAME(name) HBN_STRING(name)
#define HBN_LOOPS(name) arithmetic_loops_##name
#define HBN_LOOPS_OF(name) HBN_LOOPS(name)

}  // namespace
}  // namespace HBN_BENCH_INSTRUCTION_SET

using namespace HBN_BENCH_INSTRUCTION_SET;

const ArithmeticLoops HBN_LOOPS_OF(HBN_BENCH_INSTRUCTION_SET) = {
    HBN_NAME(HBN_BENCH_INSTRUCTION_SET),
    {{forward_sums<Float32, BY_SUBTRACTION>, forward_sums<Bfloat16, BY_SUBTRACTION>,
      forward_sums<Float16, BY_SUBTRACTION>},
     {forward_sums<Float32, BY_FMA>, forward_sums<Bfloat16, BY_FMA>,
      forward_sums<Float16, BY_FMA>}},
    {{backward_sums<Float32, BY_SUBTRACTION>, backward_sums<Bfloat16, BY_SUBTRACTION>,
      backward_sums<Float16, BY_SUBTRACTION>},
     {backward_sums<Float32, BY_FMA>, backward_sums<Bfloat16, BY_FMA>,
      backward_sums<Float16, BY_FMA>}},
    {{forward_map<Float32, ORDINARY_STORES>, forward_map<Bfloat16, ORDINARY_STORES>,
      forward_map<Float16, ORDINARY_STORES>},
     {forward_map<Float32, STREAMING_STORES>, forward_map<Bfloat16, STREAMING_STORES>,
      forward_map<Float16, STREAMING_STORES>}},
    {{backward_map<Float32, ORDINARY_STORES>, backward_map<Bfloat16, ORDINARY_STORES>,
      backward_map<Float16, ORDINARY_STORES>},
     {backward_map<Float32, STREAMING_STORES>, backward_map<Bfloat16, STREAMING_STORES>,
      backward_map<Float16, STREAMING_STORES>}},
};

}  // namespace hbn::bench
