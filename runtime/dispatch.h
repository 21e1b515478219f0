// From checked arguments to a kernel: which one serves this operation, dtype and layout, and the
// call.
#ifndef HBN_RUNTIME_DISPATCH_H
#define HBN_RUNTIME_DISPATCH_H

#include <hbn/hbn.h>

#include <initializer_list>

namespace hbn::internal {

// What is fused into a batch normalization.
enum class Activation { none, relu, add_relu };

enum class Operation {
    // over (N, C, H, W)
    forward_training,
    forward_inference,
    stats,
    normalize,
    backward_training,
    backward_inference,
    backward_inference_input,
    backward_reduce,
    backward_elemt,
    forward_training_relu,
    forward_training_add_relu,
    forward_inference_relu,
    forward_inference_add_relu,
    forward_inference_add_relu_mask,
    backward_training_relu,
    backward_training_add_relu,
    backward_inference_relu,
    backward_inference_add_relu,
    // over (C)
    finalize_moments,
    merge_moments,
    invstd_from_variance,
    convert,
};

// One argument of a kernel, in the order of its signature. One without data is not there.
struct Argument {
    enum class Kind { tensor, vector, scalar } kind;
    bool output;
    hbn_tensor tensor;
    hbn_vector vector;
    double scalar;

    bool absent() const {
        return (kind == Kind::tensor && !tensor.data) || (kind == Kind::vector && !vector.data);
    }
};

inline Argument in(const hbn_tensor &t) {
    return {Argument::Kind::tensor, false, t, {}, 0};
}
inline Argument out(const hbn_tensor &t) {
    return {Argument::Kind::tensor, true, t, {}, 0};
}
inline Argument in(const hbn_vector &v) {
    return {Argument::Kind::vector, false, {}, v, 0};
}
inline Argument out(const hbn_vector &v) {
    return {Argument::Kind::vector, true, {}, v, 0};
}
inline Argument in(double scalar) {
    return {Argument::Kind::scalar, false, {}, {}, scalar};
}

// HBN_UNSUPPORTED unless call() will find a kernel for these tensors. Asked before anything is
// written.
hbn_status require(Operation operation, std::initializer_list<hbn_tensor> tensors);
hbn_status require(Operation operation, hbn_dtype dtype);
hbn_status require_conversion(hbn_dtype from, hbn_dtype to);

// Runs the kernel for these arguments, which must not be empty and must fit 32-bit indices (see
// pieces.h). (N, C, H, W) operations go by the first tensor's dtype and by what layout all tensors
// share.
hbn_status call(Operation operation, std::initializer_list<Argument> arguments);
// (C) operations go by `dtype`.
hbn_status call(Operation operation, hbn_dtype dtype, std::initializer_list<Argument> arguments);

// Copies with conversion between float dtypes.
hbn_status convert(const hbn_vector &from, const hbn_vector &to);

}  // namespace hbn::internal

#endif
