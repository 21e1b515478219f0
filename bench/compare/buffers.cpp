#include "bench/compare/buffers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

namespace hbn::compare {

namespace {

// Random numbers that any dtype holds without becoming subnormal: the i-th of a sequence, uniform in
// [-2, 2) but for those near 0.
float random_value(uint64_t sequence, uint64_t i) {
    const float value = float(int32_t(random_bits(sequence << 40, i) >> 32)) * 0x1p-30f;
    return std::fabs(value) < 0x1p-12f ? 0x1p-12f : value;
}

float random_in(float low, float high, uint64_t sequence, uint64_t i) {
    return low + (high - low) * (random_value(sequence, i) + 2) / 4;
}

template<typename Visit>
void for_each_element(const TensorForm &form, Visit visit) {
    const Tensor t = form.tensor(nullptr, form.dtype);
    uint64_t i = 0;
    for (int64_t n = 0; n < t.sizes[0]; n++) {
        for (int64_t c = 0; c < t.sizes[1]; c++) {
            for (int64_t h = 0; h < t.sizes[2]; h++) {
                for (int64_t w = 0; w < t.sizes[3]; w++) {
                    visit(
                        i++, c,
                        n * t.strides[0] + c * t.strides[1] + h * t.strides[2] + w * t.strides[3]);
                }
            }
        }
    }
}

// The sequences of random_value().
enum Sequence {
    X,
    GRAD_OUTPUT,
    RESIDUAL,
    WEIGHT,
    BIAS,
    WEIGHT_TANGENT,
    BIAS_TANGENT,
    MEAN,
    INVSTD
};

float mean_of(int64_t channel) {
    return random_in(-0.1f, 0.1f, MEAN, channel);
}
float invstd_of(int64_t channel) {
    return random_in(0.8f, 1.2f, INVSTD, channel);
}
float weight_of(int64_t channel) {
    return random_in(0.8f, 1.2f, WEIGHT, channel);
}
float bias_of(int64_t channel) {
    return random_in(-0.1f, 0.1f, BIAS, channel);
}

}  // namespace

bool TensorForm::operator==(const TensorForm &other) const {
    return dtype == other.dtype && layout == other.layout &&
           std::equal(sizes, sizes + 4, other.sizes);
}

Tensor TensorForm::tensor(void *data, DType of) const {
    Tensor t;
    t.data = data;
    t.dtype = of;
    std::copy(sizes, sizes + 4, t.sizes);
    const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
    const int64_t step = layout == Layout::strided ? 2 : 1;
    const int64_t nchw[] = {c * h * w * step, h * w * step, w * step, step};
    const int64_t nhwc[] = {h * w * c, 1, w * c, c};
    std::copy_n(layout == Layout::nhwc ? nhwc : nchw, 4, t.strides);
    return t;
}

int64_t TensorForm::span() const {
    return sizes[0] * tensor(nullptr, dtype).strides[0];
}

void Buffer::resize(size_t bytes) {
    data_.reset();
    bytes_ = 0;
    if (bytes == 0) {
        return;
    }
    constexpr size_t kPage = 4096;
    const size_t whole = (bytes + kPage - 1) / kPage * kPage;
    void *data = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        throw std::bad_alloc();
    }
    data_ = std::shared_ptr<void>(data, [whole](void *memory) { munmap(memory, whole); });
    bytes_ = whole;
    // Fails on kernels without huge pages, where there is nothing to ask for.
    madvise(data, whole, MADV_NOHUGEPAGE);
    memset(data, 0, whole);
}

void Buffer::copy(const Buffer &other) {
    resize(other.bytes_);
    if (bytes_ > 0) {
        memcpy(data(), other.data(), bytes_);
    }
}

void Buffer::share(const Buffer &other) {
    data_ = other.data_;
    bytes_ = other.bytes_;
}

void Buffer::poison() {
    if (bytes_ > 0) {
        memset(data(), 0xa5, bytes_);
    }
}

uint64_t Buffer::hash() const {
    const uint64_t *words = data<uint64_t>();
    uint64_t hash = 0;
    for (size_t i = 0; i < bytes_ / sizeof(uint64_t); i++) {
        hash = (hash ^ words[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash;
}

const std::vector<BufferMember> &Buffers::all_tensors() {
    static const std::vector<BufferMember> all = {
        &Buffers::x,   &Buffers::grad_output, &Buffers::residual, &Buffers::mask,
        &Buffers::out, &Buffers::second_out,  &Buffers::out_mask};
    return all;
}

const std::vector<BufferMember> &Buffers::all_vectors() {
    static const std::vector<BufferMember> all = {
        &Buffers::weight,       &Buffers::bias,         &Buffers::weight_tangent,
        &Buffers::bias_tangent, &Buffers::running_mean, &Buffers::running_var,
        &Buffers::grad_weight,  &Buffers::grad_bias,    &Buffers::mean32,
        &Buffers::invstd32,     &Buffers::mean64,       &Buffers::invstd64,
        &Buffers::saved_mean,   &Buffers::saved_invstd, &Buffers::moments_mean,
        &Buffers::moments_m2,   &Buffers::other_mean,   &Buffers::other_m2,
        &Buffers::sum_dy,       &Buffers::sum_dy_xmu};
    return all;
}

void Buffers::copy(const Buffers &other, const std::vector<BufferMember> &left) {
    form = other.form;
    for (const std::vector<BufferMember> *members : {&all_tensors(), &all_vectors()}) {
        for (const BufferMember member : *members) {
            if (std::find(left.begin(), left.end(), member) == left.end()) {
                (this->*member).copy(other.*member);
            }
        }
    }
}

void Buffers::allocate(const TensorForm &wanted, const std::vector<BufferMember> &tensors) {
    form = wanted;
    for (const BufferMember tensor : all_tensors()) {
        const bool used = std::find(tensors.begin(), tensors.end(), tensor) != tensors.end();
        const DType dtype = is_mask(tensor) ? UINT8 : form.dtype;
        (this->*tensor).resize(used ? size_t(form.span()) * bytes_of(dtype) : 0);
    }
    const size_t vector_bytes = size_t(form.channels()) * sizeof(double);
    for (const BufferMember vector : all_vectors()) {
        (this->*vector).resize(vector_bytes);
    }
}

void Buffers::prepare(const TensorForm &wanted) {
    if (form == wanted) {
        return;
    }
    allocate(wanted, all_tensors());
    for_each_element(form, [&](uint64_t i, int64_t channel, int64_t offset) {
        const float value = random_value(X, i), added = random_value(RESIDUAL, i);
        store(x.data(), form.dtype, offset, value);
        store(grad_output.data(), form.dtype, offset, random_value(GRAD_OUTPUT, i));
        store(residual.data(), form.dtype, offset, added);
        const float z = (value - mean_of(channel)) * invstd_of(channel) * weight_of(channel) +
                        bias_of(channel) + added;
        store(mask.data(), UINT8, offset, z > 0);
    });
}

void Buffers::reset_vectors() {
    const DType dtype = form.dtype == FLOAT64 ? FLOAT64 : FLOAT32;
    for (int64_t c = 0; c < form.channels(); c++) {
        const float mean = mean_of(c), invstd = invstd_of(c);
        const double variance = 1 / (double(invstd) * invstd) - kEps;
        store(weight.data(), dtype, c, weight_of(c));
        store(bias.data(), dtype, c, bias_of(c));
        store(weight_tangent.data(), dtype, c, random_value(WEIGHT_TANGENT, c));
        store(bias_tangent.data(), dtype, c, random_value(BIAS_TANGENT, c));
        store(running_mean.data(), dtype, c, mean);
        store(running_var.data(), dtype, c, float(variance));
        store(mean32.data(), FLOAT32, c, mean);
        store(invstd32.data(), FLOAT32, c, invstd);
        store(mean64.data(), FLOAT64, c, mean);
        store(invstd64.data(), FLOAT64, c, invstd);
        moments_mean.data<double>()[c] = mean;
        moments_m2.data<double>()[c] = variance * form.count();
        other_mean.data<double>()[c] = -mean;
        other_m2.data<double>()[c] = variance * form.count() * 0.5;
        sum_dy.data<double>()[c] = mean * std::sqrt(form.count());
        sum_dy_xmu.data<double>()[c] = -mean * std::sqrt(form.count());
    }
}

bool is_mask(BufferMember tensor) {
    return tensor == &Buffers::mask || tensor == &Buffers::out_mask;
}

size_t bytes_of(DType dtype) {
    return dtype == UINT8 ? 1 : dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2;
}

void store(void *data, DType dtype, int64_t i, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    switch (dtype) {
    case FLOAT32:
        static_cast<float *>(data)[i] = value;
        break;
    case FLOAT64:
        static_cast<double *>(data)[i] = value;
        break;
    case BFLOAT16:
        static_cast<uint16_t *>(data)[i] = bits >> 16;
        break;
    case FLOAT16: {
        // The exponent's bias is 15 instead of 127; the number is not subnormal.
        const uint32_t sign = bits >> 31, magnitude = (bits & 0x7fffffff) >> 13;
        static_cast<uint16_t *>(data)[i] = uint16_t(sign << 15 | (magnitude - (112 << 10)));
        break;
    }
    case UINT8:
        static_cast<uint8_t *>(data)[i] = uint8_t(value);
        break;
    }
}

DType dtype_of(const std::string &name) {
    if (name == "float32") {
        return FLOAT32;
    }
    if (name == "float64") {
        return FLOAT64;
    }
    if (name == "bfloat16") {
        return BFLOAT16;
    }
    if (name == "float16") {
        return FLOAT16;
    }
    throw std::runtime_error("unknown dtype " + name);
}

Layout layout_of(const std::string &name) {
    if (name == "nchw") {
        return Layout::nchw;
    }
    if (name == "nhwc") {
        return Layout::nhwc;
    }
    if (name == "strided") {
        return Layout::strided;
    }
    throw std::runtime_error("unknown layout " + name);
}

}  // namespace hbn::compare
