// C++ views as the C core's descriptors.
#ifndef HBN_RUNTIME_VIEWS_H
#define HBN_RUNTIME_VIEWS_H

#include <hbn/tensor_view.h>

#include <algorithm>

namespace hbn::internal {

inline hbn_tensor to_c(const TensorView &view) {
    hbn_tensor t{};
    t.data = view.data;
    t.dtype = hbn_dtype(view.dtype);
    t.device = hbn_device(view.device);
    t.ndim = view.ndim;
    std::copy(view.sizes.begin(), view.sizes.end(), t.sizes);
    std::copy(view.strides.begin(), view.strides.end(), t.strides);
    return t;
}

inline hbn_vector to_c(const VectorView &view) {
    return {view.data, hbn_dtype(view.dtype), view.size, view.stride};
}

// Passes as a pointer to the descriptor, null for an absent vector.
class OptionalVector {
public:
    OptionalVector(const VectorView &view) : vector_(to_c(view)), present_(bool(view)) {
    }
    OptionalVector(const Vector &vector) : OptionalVector(vector.view()) {
    }
    operator const hbn_vector *() const {
        return present_ ? &vector_ : nullptr;
    }

private:
    hbn_vector vector_;
    bool present_;
};

}  // namespace hbn::internal

#endif
