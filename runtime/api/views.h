// C++ views as the C interface's descriptors.
#ifndef HBN_RUNTIME_API_VIEWS_H
#define HBN_RUNTIME_API_VIEWS_H

#include <hbn/activation.h>
#include <hbn/tensor_view.h>

#include <algorithm>

namespace hbn::internal {

// One descriptor serves inputs and outputs in C: what is read is never written.
inline hbn_tensor to_c(const ConstTensorView &view) {
    hbn_tensor t{};
    t.data = const_cast<void *>(view.data);
    t.dtype = hbn_dtype(view.dtype);
    t.device = hbn_device(view.device);
    t.ndim = view.ndim;
    std::copy(view.sizes.begin(), view.sizes.end(), t.sizes);
    std::copy(view.strides.begin(), view.strides.end(), t.strides);
    return t;
}

inline hbn_vector to_c(const ConstVectorView &view) {
    hbn_vector v{};
    v.data = const_cast<void *>(view.data);
    v.dtype = hbn_dtype(view.dtype);
    v.size = view.size;
    v.stride = view.stride;
    v.device = hbn_device(view.device);
    return v;
}

inline hbn_activation to_c(const hbn::Activation &activation) {
    return {activation.kind, activation.alpha, activation.beta};
}

// Passes as a pointer to the descriptor, null for an absent vector.
class OptionalVector {
public:
    OptionalVector(const ConstVectorView &view) : vector_(to_c(view)), present_(bool(view)) {
    }
    operator const hbn_vector *() const {
        return present_ ? &vector_ : nullptr;
    }

private:
    hbn_vector vector_;
    bool present_;
};

// The same for a tensor.
class OptionalTensor {
public:
    OptionalTensor(const std::optional<ConstTensorView> &view)
        : tensor_(view ? to_c(*view) : hbn_tensor{}), present_(bool(view)) {
    }
    operator const hbn_tensor *() const {
        return present_ ? &tensor_ : nullptr;
    }

private:
    hbn_tensor tensor_;
    bool present_;
};

}  // namespace hbn::internal

#endif
