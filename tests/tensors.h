// Tensors of every dtype and layout, read and written as double.
#ifndef HBN_TESTS_TENSORS_H
#define HBN_TESTS_TENSORS_H

#include <hbn/functional.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace hbn::test {

enum class Layout { nchw, nhwc, strided };

inline const char *name_of_layout(Layout layout) {
    static const char *const names[] = {"nchw", "nhwc", "strided"};
    return names[int(layout)];
}

// ---- dtypes

struct Format {
    int significand_bits;  // with the hidden one
    int min_exponent;      // of the smallest normal number
    int max_exponent;
};

inline Format format_of(DType dtype) {
    switch (dtype) {
    case DType::bfloat16:
        return {8, -126, 127};
    case DType::float16:
        return {11, -14, 15};
    case DType::float32:
        return {24, -126, 127};
    default:
        return {53, -1022, 1023};
    }
}

// Half the distance between neighbours at 1: the largest relative error of rounding.
inline double unit_roundoff(DType dtype) {
    return std::ldexp(1.0, -format_of(dtype).significand_bits);
}

inline double smallest_denormal(DType dtype) {
    const Format f = format_of(dtype);
    return std::ldexp(1.0, f.min_exponent - f.significand_bits + 1);
}

// Rounds to nearest even, as the hardware does.
inline double round_to(DType dtype, double value) {
    if (dtype == DType::float64 || !std::isfinite(value) || value == 0) {
        return value;
    }
    const Format f = format_of(dtype);
    const int exponent = std::max(std::ilogb(value), f.min_exponent);
    const double unit = std::ldexp(1.0, exponent - f.significand_bits + 1);
    const double rounded = std::nearbyint(value / unit) * unit;
    return std::fabs(rounded) >= std::ldexp(1.0, f.max_exponent + 1)
               ? std::copysign(std::numeric_limits<double>::infinity(), value)
               : rounded;
}

inline double load(DType dtype, const void *element) {
    if (dtype == DType::float64) {
        double value;
        std::memcpy(&value, element, 8);
        return value;
    }
    if (dtype == DType::float32) {
        float value;
        std::memcpy(&value, element, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, element, 2);
    if (dtype == DType::bfloat16) {
        const uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    const int exponent = bits >> 10 & 31, significand = bits & 1023;
    const double magnitude = exponent == 31
                                 ? (significand ? std::numeric_limits<double>::quiet_NaN()
                                                : std::numeric_limits<double>::infinity())
                             : exponent ? std::ldexp(1024 + significand, exponent - 25)
                                        : std::ldexp(significand, -24);
    return bits >> 15 ? -magnitude : magnitude;
}

inline void store(DType dtype, double value, void *element) {
    value = round_to(dtype, value);
    if (dtype == DType::float64) {
        std::memcpy(element, &value, 8);
        return;
    }
    if (dtype != DType::float16) {
        const float narrow = float(value);
        uint32_t bits;
        std::memcpy(&bits, &narrow, 4);
        const uint16_t high = uint16_t(bits >> 16);
        dtype == DType::float32 ? std::memcpy(element, &bits, 4) : std::memcpy(element, &high, 2);
        return;
    }
    uint16_t bits;
    if (std::isnan(value)) {
        bits = 0x7e00;
    } else if (std::isinf(value)) {
        bits = 0x7c00;
    } else if (std::fabs(value) < std::ldexp(1.0, -14)) {
        bits = uint16_t(std::fabs(value) * std::ldexp(1.0, 24));
    } else {
        const int exponent = std::ilogb(value);
        bits = uint16_t((exponent + 15) << 10 |
                        (int(std::ldexp(std::fabs(value), 10 - exponent)) & 1023));
    }
    bits = uint16_t(bits | (std::signbit(value) ? 0x8000 : 0));
    std::memcpy(element, &bits, 2);
}

// ---- tensors

// Element strides of a layout; strided leaves gaps and orders the dimensions H, N, W, C.
inline Shape strides_of(const Shape &sizes, Layout layout) {
    if (layout != Layout::strided) {
        return dense_strides(
            sizes, layout == Layout::nchw ? MemoryFormat::contiguous : MemoryFormat::channels_last);
    }
    const int64_t c = 2, w = c * sizes[1] + 1, n = w * sizes[3] + 3, h = n * sizes[0];
    return {n, c, h, w};
}

// Owns memory with a pattern around and between its elements, to see stray writes.
class TestTensor {
public:
    TestTensor(DType dtype, const Shape &sizes, Layout layout = Layout::nchw)
        : TestTensor(dtype, sizes, strides_of(sizes, layout)) {
    }
    TestTensor(DType dtype, const Shape &sizes, const Shape &strides)
        : view_(nullptr, dtype, sizes, strides) {
        int64_t last = 0;
        for (int d = 0; d < 4; d++) {
            last += std::max<int64_t>(sizes[d] - 1, 0) * view_.strides[d];
        }
        bytes_.assign((last + 1) * size_of(dtype) + 2 * kMargin, kPattern);
        view_.data = bytes_.data() + kMargin;
    }
    TestTensor(const TestTensor &other) : bytes_(other.bytes_), view_(other.view_) {
        view_.data = bytes_.data() + kMargin;
    }
    TestTensor &operator=(const TestTensor &) = delete;

    const TensorView &view() const {
        return view_;
    }
    operator TensorView() const {
        return view_;
    }
    operator ConstTensorView() const {
        return view_;
    }
    const Shape &sizes() const {
        return view_.sizes;
    }
    double get(int64_t n, int64_t c, int64_t h, int64_t w) const {
        return load(view_.dtype, at(n, c, h, w));
    }
    void set(int64_t n, int64_t c, int64_t h, int64_t w, double value) {
        store(view_.dtype, value, at(n, c, h, w));
    }
    const std::vector<uint8_t> &bytes() const {
        return bytes_;
    }

    // Calls visit(n, h, w) for each element of a channel.
    template<typename Visit>
    void for_each_in_channel(Visit visit) const {
        const Shape &s = view_.sizes;
        for (int64_t n = 0; n < s[0]; n++) {
            for (int64_t h = 0; h < s[2]; h++) {
                for (int64_t w = 0; w < s[3]; w++) {
                    visit(n, h, w);
                }
            }
        }
    }

    void fill(const std::function<double(int64_t c)> &value) {
        for (int64_t c = 0; c < view_.sizes[1]; c++) {
            for_each_in_channel(
                [&](int64_t n, int64_t h, int64_t w) { set(n, c, h, w, value(c)); });
        }
    }

    // The bytes that belong to no element still hold the pattern.
    bool only_elements_written() const {
        std::vector<uint8_t> rest = bytes_;
        for (int64_t c = 0; c < view_.sizes[1]; c++) {
            for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
                std::memset(rest.data() + (at(n, c, h, w) - bytes_.data()), kPattern,
                            size_of(view_.dtype));
            });
        }
        return std::all_of(rest.begin(), rest.end(), [](uint8_t b) { return b == kPattern; });
    }

private:
    static constexpr int kMargin = 256;
    static constexpr uint8_t kPattern = 0xa5;

    uint8_t *at(int64_t n, int64_t c, int64_t h, int64_t w) const {
        const Shape &s = view_.strides;
        return static_cast<uint8_t *>(view_.data) +
               (n * s[0] + c * s[1] + h * s[2] + w * s[3]) * int64_t(size_of(view_.dtype));
    }

    std::vector<uint8_t> bytes_;
    TensorView view_;
};

// One value a channel.
class TestVector {
public:
    TestVector(DType dtype, const std::vector<double> &values) : dtype_(dtype) {
        bytes_.resize(values.size() * size_of(dtype));
        for (size_t i = 0; i < values.size(); i++) {
            store(dtype, values[i], bytes_.data() + i * size_of(dtype));
        }
    }
    double operator[](int64_t c) const {
        return load(dtype_, bytes_.data() + c * int64_t(size_of(dtype_)));
    }
    VectorView view() {
        return VectorView(bytes_.data(), dtype_, int64_t(bytes_.size() / size_of(dtype_)));
    }
    operator VectorView() {
        return view();
    }
    operator ConstVectorView() const {
        return ConstVectorView(bytes_.data(), dtype_, int64_t(bytes_.size() / size_of(dtype_)));
    }
    const std::vector<uint8_t> &bytes() const {
        return bytes_;
    }

private:
    DType dtype_;
    std::vector<uint8_t> bytes_;
};

inline double get(const ConstVectorView &v, int64_t c) {
    return load(v.dtype,
                static_cast<const uint8_t *>(v.data) + c * v.stride * int64_t(size_of(v.dtype)));
}

inline DType statistic_dtype(DType dtype) {
    return dtype == DType::float64 ? DType::float64 : DType::float32;
}

// Reproducible values of a normal distribution.
class Normal {
public:
    explicit Normal(uint32_t seed) : generator_(seed) {
    }
    double operator()(double mean = 0, double deviation = 1) {
        return mean + deviation * distribution_(generator_);
    }
    std::vector<double> values(int64_t size, double mean = 0, double deviation = 1) {
        std::vector<double> v(size);
        for (double &x : v) {
            x = (*this)(mean, deviation);
        }
        return v;
    }

private:
    std::mt19937 generator_;
    std::normal_distribution<double> distribution_;
};

inline std::string shape_name(const Shape &s) {
    return std::to_string(s[0]) + "x" + std::to_string(s[1]) + "x" + std::to_string(s[2]) + "x" +
           std::to_string(s[3]);
}

}  // namespace hbn::test

#endif
