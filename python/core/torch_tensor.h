// What PyTorch's tensors have beside their memory: a negative bit, gradients, a version. hbn is compiled without PyTorch, so
// that this asks the tensors' Python methods.
#ifndef HBN_PYTHON_TORCH_TENSOR_H
#define HBN_PYTHON_TORCH_TENSOR_H

#include <nanobind/nanobind.h>

namespace hbn::python {

namespace nb = nanobind;

enum class TorchType {
    none,         // no class of tensors of PyTorch
    plain,        // torch.Tensor, or a subclass whose memory is what it says
    dispatching,  // a subclass with a __torch_dispatch__: only that knows what its elements are
};
TorchType torch_type(PyTypeObject *type);

// Whether the tensor is one of torch.func's transforms, which has no memory of its own.
bool is_transformed(nb::handle tensor);

// Whether the tensor shares a version with others, whose elements it may not have.
bool is_view(nb::handle tensor);

// Whether the tensor's elements are what is in its memory times -1, as in views of complex tensors.
bool is_negative(nb::handle tensor);
// A copy without that bit.
nb::object resolve_negative(nb::handle tensor);

// A tensor of zeros that have no memory, such as autograd makes for gradients that are 0, as one that has it; null for any
// other tensor.
nb::object zeros_with_memory(nb::handle tensor);

bool requires_grad(nb::handle tensor);
bool is_grad_enabled();

// Tells autograd that these tensors, a list, were written.
void increment_version(nb::handle tensors);

}  // namespace hbn::python

#endif
