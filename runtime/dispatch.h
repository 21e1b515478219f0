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
    jvp_elemt,
    double_backward_elemt,
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
    double_backward_product,
    convert,
};

// One argument of a kernel, in the order of its signature. One without data is not there. Lends: for use within
// the call that it is written in.
struct Argument {
    enum class Kind { tensor, vector, scalar } kind;
    bool output;
    union {
        const hbn_tensor *tensor;
        const hbn_vector *vector;
        double scalar;
    };

    bool absent() const {
        return (kind == Kind::tensor && !tensor->data) || (kind == Kind::vector && !vector->data);
    }
};

inline Argument in(const hbn_tensor &t) {
    Argument a{Argument::Kind::tensor, false, {}};
    a.tensor = &t;
    return a;
}
inline Argument in(const hbn_vector &v) {
    Argument a{Argument::Kind::vector, false, {}};
    a.vector = &v;
    return a;
}
inline Argument in(double scalar) {
    Argument a{Argument::Kind::scalar, false, {}};
    a.scalar = scalar;
    return a;
}
template<typename T>
Argument out(const T &tensor_or_vector) {
    Argument a = in(tensor_or_vector);
    a.output = true;
    return a;
}

// HBN_UNSUPPORTED unless call() will find a kernel for tensors like x. Asked before anything is
// written.
hbn_status require(Operation operation, const hbn_tensor &x);
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
