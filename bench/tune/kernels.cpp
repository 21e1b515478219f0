#include "bench/tune/kernels.h"

#include <stdexcept>

namespace hbn::tune {

namespace {

using compare::BufferMember;
using compare::Buffers;
using internal::Arg;
using internal::Kernel;

BufferMember buffer_of(Arg tensor, bool is_output) {
    switch (tensor) {
    case Arg::x:
        return &Buffers::x;
    case Arg::residual:
        return &Buffers::residual;
    case Arg::grad_output:
        return &Buffers::grad_output;
    case Arg::y:
    case Arg::grad_input:
        return &Buffers::out;
    case Arg::grad_residual:
        return &Buffers::second_out;
    case Arg::mask:
        return is_output ? &Buffers::out_mask : &Buffers::mask;
    default:
        throw std::runtime_error(std::string("no buffer is known for the tensor ") +
                                 internal::row(tensor).name);
    }
}

}  // namespace

const std::vector<KernelCall> &kernel_calls() {
    using R = Results;
    static const std::vector<KernelCall> calls = {
        // kernel, operation, results, training, relu, add, mask
        {Kernel::forward_training, "forward_training", R::forward, true},
        {Kernel::forward_training_relu, "forward_training_relu", R::forward, true, true},
        {Kernel::forward_training_add_relu, "forward_training_add_relu", R::forward, true, true,
         true, true},
        {Kernel::forward_inference, "forward_inference", R::forward, false},
        {Kernel::forward_inference_relu, "forward_inference_relu", R::forward, false, true},
        {Kernel::forward_inference_add_relu, "forward_inference_add_relu", R::forward, false, true,
         true},
        {Kernel::forward_inference_add_relu_mask, "forward_inference_add_relu", R::forward, false,
         true, true, true},
        {Kernel::stats, "stats", R::stats},
        {Kernel::normalize, "normalize", R::normalize},
        {Kernel::backward_training, "backward_training", R::backward, true},
        {Kernel::backward_training_relu, "backward_training_relu", R::backward, true, true},
        {Kernel::backward_training_add_relu, "backward_training_add_relu", R::backward, true, true,
         true},
        {Kernel::backward_inference, "backward_inference", R::backward, false},
        {Kernel::backward_inference_relu, "backward_inference_relu", R::backward, false, true},
        {Kernel::backward_inference_add_relu, "backward_inference_add_relu", R::backward, false,
         true, true},
        {Kernel::backward_inference_input, "backward_inference_grad_input", R::backward, false},
        {Kernel::backward_reduce, "backward_reduce", R::backward_reduce},
        {Kernel::backward_elemt, "backward_elemt", R::backward_elemt, true},
    };
    return calls;
}

const KernelCall &kernel_call_of(const std::string &kernel) {
    std::string names;
    for (const KernelCall &call : kernel_calls()) {
        const char *name = internal::row(call.kernel).name;
        if (kernel == name) {
            return call;
        }
        names += std::string(names.empty() ? "" : ", ") + name;
    }
    throw std::runtime_error("kernel '" + kernel + "' is none of " + names);
}

std::vector<KernelTensor> tensors_of(Kernel kernel, hbn_dtype dtype) {
    const internal::Signature *signature = nullptr;
    if (internal::signature_of(kernel, dtype, &signature) != HBN_OK) {
        throw std::runtime_error(hbn_last_error());
    }
    if (!signature) {
        throw std::runtime_error(std::string("this library has no kernel ") +
                                 internal::row(kernel).name + " of this dtype");
    }
    std::vector<KernelTensor> tensors;
    for (const internal::Signature::Argument &argument : *signature) {
        if (internal::is_tensor(argument.arg)) {
            tensors.push_back({buffer_of(argument.arg, argument.is_output), argument.is_output});
        }
    }
    return tensors;
}

}  // namespace hbn::tune
