// The memory that both libraries' calls work on, and the numbers in it.
#ifndef HBN_BENCH_COMPARE_BUFFERS_H
#define HBN_BENCH_COMPARE_BUFFERS_H

#include "bench/compare/library.h"

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace hbn::compare {

constexpr double kEps = 1e-5;

enum class Layout { nchw, nhwc, strided };  // strided: every other column of an NCHW tensor

// What the tensors of a cell are like.
struct TensorForm {
    DType dtype = FLOAT32;
    Layout layout = Layout::nchw;
    int64_t sizes[4] = {};

    bool operator==(const TensorForm &other) const;
    // Values in each channel.
    double count() const {
        return double(sizes[0] * sizes[2] * sizes[3]);
    }
    int64_t channels() const {
        return sizes[1];
    }
    // A tensor of this form, though of another dtype for masks.
    Tensor tensor(void *data, DType of) const;
    // Elements from the first to behind the last, those that strides leave out included.
    int64_t span() const;
};

// Memory on ordinary pages, all of them touched.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    // Nothing is there after 0.
    void resize(size_t bytes);
    template<typename Value = void>
    Value *data() const {
        return static_cast<Value *>(data_.get());
    }
    void copy(const Buffer &other);
    // From now on both are the same memory.
    void share(const Buffer &other);
    void poison();
    // Equal bytes have equal hashes.
    uint64_t hash() const;

private:
    std::shared_ptr<void> data_;
    size_t bytes_ = 0;
};

struct Buffers;
using BufferMember = Buffer Buffers::*;

// All the tensors and vectors that any operation reads or writes. What an operation calls y or grad_input
// is `out`; grad_residual or grad_grad_output is `second_out`.
struct Buffers {
    static const std::vector<BufferMember> &all_tensors();
    static const std::vector<BufferMember> &all_vectors();

    // Makes vectors and, of the tensors, these. They hold zeros.
    void allocate(const TensorForm &form, const std::vector<BufferMember> &tensors);
    // The same as another's, numbers and all, but for `left`, which are left as they are.
    void copy(const Buffers &other, const std::vector<BufferMember> &left = {});
    // Makes all and fills tensors with numbers, unless they have this form already.
    void prepare(const TensorForm &form);
    // Brings back what calls may have changed in vectors.
    void reset_vectors();

    TensorForm form;
    Buffer x, grad_output, residual, mask, out, second_out, out_mask;
    // float32, or float64 beside float64 tensors
    Buffer weight, bias, weight_tangent, bias_tangent, running_mean, running_var, grad_weight,
        grad_bias;
    // The same numbers in both dtypes: float32's.
    Buffer mean32, invstd32, mean64, invstd64;
    Buffer saved_mean, saved_invstd;  // what forward saves: room for float64
    Buffer moments_mean, moments_m2, other_mean, other_m2, sum_dy, sum_dy_xmu;  // float64
};

// Whether a tensor holds UINT8, whatever the others do.
bool is_mask(BufferMember tensor);

size_t bytes_of(DType dtype);

// The i-th of a sequence of random numbers, which `start` chooses.
inline uint64_t random_bits(uint64_t start, uint64_t i) {
    // SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)
    uint64_t z = start + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// Rounds toward zero, which no timing depends on. Not for subnormal numbers.
void store(void *data, DType dtype, int64_t i, float value);

// @throws std::runtime_error for an unknown name
DType dtype_of(const std::string &name);
Layout layout_of(const std::string &name);

}  // namespace hbn::compare

#endif
