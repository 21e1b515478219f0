// bfloat16 and float16 as the bits they are stored in, to and from float, to nearest even.
#ifndef HBN_TESTS_HALF_H
#define HBN_TESTS_HALF_H

#include <cstdint>
#include <cstring>

namespace hbn::test {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float bfloat16_to_float(uint16_t bits) {
    return float_of(uint32_t(bits) << 16);
}

inline uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    if (value != value) {
        return uint16_t(bits >> 16 | 0x40);  // quiet, and not infinity when the low bits go
    }
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float float16_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) {  // infinity, NaN
        return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    }
    if (magnitude < 0x400) {  // zero, denormal: an integer times 2^-24
        const float value = float(magnitude) * (1.0f / 16777216);
        return sign ? -value : value;
    }
    return float_of(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

inline uint16_t float_to_float16(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) {
        return uint16_t(sign | 0x7e00);
    }
    if (magnitude >= 0x477ff000) {  // 65520 and up round to infinity
        return uint16_t(sign | 0x7c00);
    }
    if (magnitude < 0x38800000) {  // below 2^-14: adding 0.5 leaves the result in the low bits
        return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    }
    const uint32_t rebiased = magnitude - ((127 - 15) << 23);
    return uint16_t(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
}

}  // namespace hbn::test

#endif
