#include "torch_tensor.h"

namespace hbn::python {
namespace {

// PyTorch's own, once there is a tensor of it. They are never given back: Python may have ended before statics do.
struct Torch {
    nb::object tensor = nb::module_::import_("torch").attr("Tensor");
    nb::object dispatch_of_tensor = tensor.attr("__torch_dispatch__");
    nb::object is_grad_enabled = nb::module_::import_("torch").attr("is_grad_enabled");
    // torch.autograd.graph.increment_version, without its Python part, which takes longer than this.
    nb::object increment_version = nb::module_::import_("torch._C").attr("_increment_version");
    nb::object is_neg = nb::steal(PyUnicode_InternFromString("is_neg"));
    nb::object requires_grad = nb::steal(PyUnicode_InternFromString("requires_grad"));
};

const Torch &torch() {
    // No static object's constructor: it runs Python, during which another thread may come here, and would wait for it with
    // the GIL that it needs.
    static const Torch *known = nullptr;
    if (!known) {
        const Torch *const made = new Torch;
        known = known ? known : made;
    }
    return *known;
}

// Of a method or attribute that is True or False.
bool is_true(PyObject *result) {
    if (!result) {
        throw nb::python_error();
    }
    Py_DECREF(result);
    return result == Py_True;
}

}  // namespace

TorchType torch_type(PyTypeObject *type) {
    const nb::handle handle(reinterpret_cast<PyObject *>(type));
    if (!nb::hasattr(handle, "__torch_dispatch__")) {
        return TorchType::none;
    }
    const int is_tensor = PyObject_IsSubclass(handle.ptr(), torch().tensor.ptr());
    if (is_tensor < 0) {
        throw nb::python_error();
    }
    if (!is_tensor) {
        return TorchType::none;
    }
    return handle.attr("__torch_dispatch__").is(torch().dispatch_of_tensor)
               ? TorchType::plain
               : TorchType::dispatching;
}

bool is_transformed(nb::handle tensor) {
    const nb::object functorch = nb::module_::import_("torch._C._functorch");
    return nb::cast<bool>(functorch.attr("is_functorch_wrapped_tensor")(tensor));
}

bool is_view(nb::handle tensor) {
    return nb::cast<bool>(tensor.attr("_is_view")());
}

bool is_negative(nb::handle tensor) {
    return is_true(PyObject_CallMethodNoArgs(tensor.ptr(), torch().is_neg.ptr()));
}

nb::object resolve_negative(nb::handle tensor) {
    return tensor.attr("detach")().attr("resolve_neg")();
}

nb::object zeros_with_memory(nb::handle tensor) {
    if (!nb::cast<bool>(tensor.attr("_is_zerotensor")())) {
        return {};
    }
    return nb::module_::import_("torch").attr("zeros")(tensor.attr("shape"),
                                                       nb::arg("dtype") = tensor.attr("dtype"),
                                                       nb::arg("device") = tensor.attr("device"));
}

bool requires_grad(nb::handle tensor) {
    return is_true(PyObject_GetAttr(tensor.ptr(), torch().requires_grad.ptr()));
}

bool is_grad_enabled() {
    return is_true(PyObject_CallNoArgs(torch().is_grad_enabled.ptr()));
}

void increment_version(nb::handle tensors) {
    torch().increment_version(tensors);
}

}  // namespace hbn::python
