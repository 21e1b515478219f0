#include "bench/compare/operations.h"

#include <stdexcept>

namespace hbn::compare {

namespace {

Vector vector(const Buffer &buffer, DType dtype, int64_t channels) {
    Vector v;
    v.data = buffer.data();
    v.dtype = dtype;
    v.size = channels;
    return v;
}

Moments moments_of(const Buffer &mean, const Buffer &m2, const TensorForm &form) {
    Moments m;
    m.count = form.count();
    m.mean = mean.data<double>();
    m.m2 = m2.data<double>();
    m.channels = form.channels();
    return m;
}

// ---- calls

template<bool training>
int forward(const Library &l, Arguments &a) {
    return l.forward(&a.x, &a.weight, &a.bias, &a.running_mean, &a.running_var, training, kMomentum,
                     kEps, &a.out, training ? &a.saved_mean : nullptr,
                     training ? &a.saved_invstd : nullptr);
}

template<bool training, bool all_gradients>
int backward(const Library &l, Arguments &a) {
    return l.backward(&a.grad_output, &a.x, &a.weight, training ? &a.mean : nullptr,
                      training ? &a.invstd : nullptr, training ? nullptr : &a.running_mean,
                      training ? nullptr : &a.running_var, training, kEps, &a.out,
                      all_gradients ? &a.grad_weight : nullptr,
                      all_gradients ? &a.grad_bias : nullptr);
}

template<bool training>
int jvp(const Library &l, Arguments &a) {
    return l.jvp(&a.grad_output, &a.x, &a.weight, &a.weight_tangent, &a.bias_tangent,
                 training ? &a.mean : nullptr, training ? &a.invstd : nullptr,
                 training ? nullptr : &a.running_mean, training ? nullptr : &a.running_var,
                 training, kEps, &a.out);
}

template<bool training>
int double_backward(const Library &l, Arguments &a) {
    return l.double_backward(&a.residual, &a.weight_tangent, &a.bias_tangent, &a.grad_output, &a.x,
                             &a.weight, training ? &a.mean : nullptr,
                             training ? &a.invstd : nullptr, training ? nullptr : &a.running_mean,
                             training ? nullptr : &a.running_var, training, kEps, &a.second_out,
                             &a.out, &a.grad_weight);
}

int stats(const Library &l, Arguments &a) {
    return l.stats(&a.x, &a.moments);
}

int normalize(const Library &l, Arguments &a) {
    return l.normalize(&a.x, &a.moments, &a.weight, &a.bias, kEps, &a.out);
}

int backward_reduce(const Library &l, Arguments &a) {
    return l.backward_reduce(&a.grad_output, &a.x, &a.mean, &a.invstd, a.sum_dy, a.sum_dy_xmu,
                             &a.grad_weight, &a.grad_bias);
}

int backward_elemt(const Library &l, Arguments &a) {
    return l.backward_elemt(&a.grad_output, &a.x, &a.mean, &a.invstd, &a.weight, a.sum_dy,
                            a.sum_dy_xmu, a.count, &a.out);
}

int merge_moments(const Library &l, Arguments &a) {
    return l.merge_moments(&a.moments, &a.other);
}

int finalize_moments(const Library &l, Arguments &a) {
    return l.finalize_moments(&a.moments, kMomentum, kEps, &a.running_mean, &a.running_var,
                              &a.saved_mean, &a.saved_invstd);
}

template<bool training>
int relu_forward(const Library &l, Arguments &a) {
    const Vector *mean = training ? &a.saved_mean : nullptr;
    const Vector *invstd = training ? &a.saved_invstd : nullptr;
    if (l.relu_forward) {
        return l.relu_forward(&a.x, &a.weight, &a.bias, &a.running_mean, &a.running_var, training,
                              kMomentum, kEps, &a.out, mean, invstd);
    }
    return l.activation_forward(&a.x, nullptr, &a.weight, &a.bias, &a.running_mean, &a.running_var,
                                training, kMomentum, kEps, &a.relu, &a.out, a.out_mask_or_null,
                                mean, invstd);
}

template<bool training>
int add_relu_forward(const Library &l, Arguments &a) {
    const Vector *mean = training ? &a.saved_mean : nullptr;
    const Vector *invstd = training ? &a.saved_invstd : nullptr;
    if (l.add_relu_forward) {
        return l.add_relu_forward(&a.x, &a.residual, &a.weight, &a.bias, &a.running_mean,
                                  &a.running_var, training, kMomentum, kEps, &a.out,
                                  a.out_mask_or_null, mean, invstd);
    }
    return l.activation_forward(&a.x, &a.residual, &a.weight, &a.bias, &a.running_mean,
                                &a.running_var, training, kMomentum, kEps, &a.relu, &a.out,
                                a.out_mask_or_null, mean, invstd);
}

template<bool training>
int relu_backward(const Library &l, Arguments &a) {
    const Vector *mean = training ? &a.mean : nullptr;
    const Vector *invstd = training ? &a.invstd : nullptr;
    const Vector *running_mean = training ? nullptr : &a.running_mean;
    const Vector *running_var = training ? nullptr : &a.running_var;
    if (l.relu_backward) {
        return l.relu_backward(&a.grad_output, &a.x, &a.weight, &a.bias, mean, invstd, running_mean,
                               running_var, training, kEps, &a.out, &a.grad_weight, &a.grad_bias);
    }
    return l.activation_backward(&a.grad_output, &a.x, nullptr, a.mask_or_null, &a.weight, &a.bias,
                                 mean, invstd, running_mean, running_var, training, kEps, &a.relu,
                                 &a.out, nullptr, &a.grad_weight, &a.grad_bias);
}

template<bool training>
int add_relu_backward(const Library &l, Arguments &a) {
    const Vector *mean = training ? &a.mean : nullptr;
    const Vector *invstd = training ? &a.invstd : nullptr;
    const Vector *running_mean = training ? nullptr : &a.running_mean;
    const Vector *running_var = training ? nullptr : &a.running_var;
    if (l.add_relu_backward) {
        return l.add_relu_backward(&a.grad_output, &a.x, a.mask_or_null, &a.weight, mean, invstd,
                                   running_mean, running_var, training, kEps, &a.out, &a.second_out,
                                   &a.grad_weight, &a.grad_bias);
    }
    return l.activation_backward(&a.grad_output, &a.x, a.residual_or_null, a.mask_or_null,
                                 &a.weight, &a.bias, mean, invstd, running_mean, running_var,
                                 training, kEps, &a.relu, &a.out, &a.second_out, &a.grad_weight,
                                 &a.grad_bias);
}

// ---- the table

const Output kY = {"y", &Buffers::out};
const Output kMask = {"mask", &Buffers::out_mask};
const Output kGradInput = {"grad_input", &Buffers::out};
const Output kGradResidual = {"grad_residual", &Buffers::second_out};
const Output kGradWeight = {"grad_weight", &Buffers::grad_weight};
const Output kGradBias = {"grad_bias", &Buffers::grad_bias};
const Output kMean = {"mean", &Buffers::saved_mean};
const Output kInvstd = {"invstd", &Buffers::saved_invstd};
const Output kRunningMean = {"running_mean", &Buffers::running_mean};
const Output kRunningVar = {"running_var", &Buffers::running_var};
const Output kMomentsMean = {"mean", &Buffers::moments_mean};
const Output kMomentsM2 = {"m2", &Buffers::moments_m2};

const std::vector<Output> kForwardOutputs = {kY, kMean, kInvstd, kRunningMean, kRunningVar};
const std::vector<Output> kGradients = {kGradInput, kGradWeight, kGradBias};
const std::vector<Output> kGradientsAdding = {kGradInput, kGradResidual, kGradWeight, kGradBias};

// Conventions of fused operations. Where nothing is added, backward needs no mask; where something is,
// it reads the mask, or the residual once more.
const std::vector<Convention> kNoMask = {{FLOAT64}, {FLOAT32}, {FLOAT64, true}, {FLOAT32, true}};
const std::vector<Convention> kMaskOrResidual = {{FLOAT64, true},        {FLOAT32, true},
                                                 {FLOAT64, true, true},  {FLOAT32, true, true},
                                                 {FLOAT64, false, true}, {FLOAT32, false, true}};

}  // namespace

std::string Convention::description() const {
    return std::string("saved ") + (saved == FLOAT64 ? "float64" : "float32") +
           (mask ? ", mask" : "") + (residual ? ", residual" : "");
}

Arguments::Arguments(const Buffers &b, const Convention &convention) {
    const TensorForm &form = b.form;
    const int64_t channels = form.channels();
    const DType parameters = form.dtype == FLOAT64 ? FLOAT64 : FLOAT32;
    x = form.tensor(b.x.data(), form.dtype);
    grad_output = form.tensor(b.grad_output.data(), form.dtype);
    residual = form.tensor(b.residual.data(), form.dtype);
    out = form.tensor(b.out.data(), form.dtype);
    second_out = form.tensor(b.second_out.data(), form.dtype);
    mask = form.tensor(b.mask.data(), UINT8);
    out_mask = form.tensor(b.out_mask.data(), UINT8);
    weight = vector(b.weight, parameters, channels);
    bias = vector(b.bias, parameters, channels);
    weight_tangent = vector(b.weight_tangent, parameters, channels);
    bias_tangent = vector(b.bias_tangent, parameters, channels);
    running_mean = vector(b.running_mean, parameters, channels);
    running_var = vector(b.running_var, parameters, channels);
    grad_weight = vector(b.grad_weight, parameters, channels);
    grad_bias = vector(b.grad_bias, parameters, channels);
    const bool wide = convention.saved == FLOAT64;
    mean = vector(wide ? b.mean64 : b.mean32, convention.saved, channels);
    invstd = vector(wide ? b.invstd64 : b.invstd32, convention.saved, channels);
    saved_mean = vector(b.saved_mean, convention.saved, channels);
    saved_invstd = vector(b.saved_invstd, convention.saved, channels);
    moments = moments_of(b.moments_mean, b.moments_m2, form);
    other = moments_of(b.other_mean, b.other_m2, form);
    sum_dy = b.sum_dy.data<double>();
    sum_dy_xmu = b.sum_dy_xmu.data<double>();
    count = form.count();
    mask_or_null = convention.mask ? &mask : nullptr;
    out_mask_or_null = convention.mask ? &out_mask : nullptr;
    residual_or_null = convention.residual ? &residual : nullptr;
}

const std::vector<Operation> &operations() {
    static const std::vector<Operation> table = {
        {"forward_training", forward<true>, kForwardOutputs},
        {"forward_inference", forward<false>, {kY}},
        {"stats", stats, {kMomentsMean, kMomentsM2}},
        {"normalize", normalize, {kY}},
        {"backward_training", backward<true, true>, kGradients},
        {"backward_training_grad_input", backward<true, false>, {kGradInput}},
        {"backward_inference", backward<false, true>, kGradients},
        {"backward_inference_grad_input", backward<false, false>, {kGradInput}},
        {"backward_reduce",
         backward_reduce,
         {{"sum_dy", &Buffers::sum_dy},
          {"sum_dy_xmu", &Buffers::sum_dy_xmu},
          kGradWeight,
          kGradBias}},
        {"backward_elemt", backward_elemt, {kGradInput}},
        {"jvp_training", jvp<true>, {{"y_tangent", &Buffers::out}}},
        {"jvp_inference", jvp<false>, {{"y_tangent", &Buffers::out}}},
        {"double_backward_training",
         double_backward<true>,
         {{"grad_grad_output", &Buffers::second_out}, kGradInput, kGradWeight}},
        {"double_backward_inference",
         double_backward<false>,
         {{"grad_grad_output", &Buffers::second_out}, kGradInput, kGradWeight}},
        {"forward_training_relu", relu_forward<true>, kForwardOutputs, true, kNoMask},
        {"forward_inference_relu", relu_forward<false>, {kY}, true, kNoMask},
        {"forward_training_add_relu",
         add_relu_forward<true>,
         {kY, kMask, kMean, kInvstd, kRunningMean, kRunningVar},
         true,
         {{FLOAT64, true}, {FLOAT32, true}, {FLOAT64}, {FLOAT32}}},
        {"forward_inference_add_relu", add_relu_forward<false>, {kY}, true, kNoMask},
        {"backward_training_relu", relu_backward<true>, kGradients, true, kNoMask},
        {"backward_inference_relu", relu_backward<false>, kGradients, true, kNoMask},
        {"backward_training_add_relu", add_relu_backward<true>, kGradientsAdding, true,
         kMaskOrResidual},
        {"backward_inference_add_relu", add_relu_backward<false>, kGradientsAdding, true,
         kMaskOrResidual},
        {"merge_moments", merge_moments, {kMomentsMean, kMomentsM2}, false},
        {"finalize_moments", finalize_moments, {kMean, kInvstd, kRunningMean, kRunningVar}, false},
    };
    return table;
}

const Operation &operation_of(const std::string &name) {
    for (const Operation &operation : operations()) {
        if (operation.name == name) {
            return operation;
        }
    }
    throw std::runtime_error("unknown operation " + name);
}

}  // namespace hbn::compare
