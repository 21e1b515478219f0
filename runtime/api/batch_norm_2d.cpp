#include <hbn/batch_norm_2d.h>

#include "errors.h"
#include "runtime/checks.h"
#include "runtime/engine/kernels.h"
#include "views.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace hbn {

using internal::OptionalVector;
using internal::or_out_of_memory;
using internal::throw_on_error;
using internal::to_c;

namespace {

// The bits of 1 in each dtype; those of 0 are all zero.
uint64_t one_bits(DType dtype) {
    switch (dtype) {
    case DType::float32:
        return 0x3f800000;
    case DType::float64:
        return 0x3ff0000000000000;
    case DType::bfloat16:
        return 0x3f80;
    case DType::float16:
        return 0x3c00;
    case DType::int64:
    case DType::uint8:
        break;
    }
    return 1;
}

template<typename Bits>
void fill_bits(const Vector &v, uint64_t bits) {
    std::fill_n(v.data<Bits>(), v.view().size, Bits(bits));
}

enum class Fill { zeros, ones };

void fill(const Vector &v, Fill value) {
    const uint64_t bits = value == Fill::ones ? one_bits(v.view().dtype) : 0;
    switch (v ? size_of(v.view().dtype) : 0) {
    case 2:
        return fill_bits<uint16_t>(v, bits);
    case 4:
        return fill_bits<uint32_t>(v, bits);
    case 8:
        return fill_bits<uint64_t>(v, bits);
    }
}

Vector copy(const Vector &v) {
    if (!v) {
        return {};
    }
    Vector result(v.view().dtype, v.view().size);
    std::memcpy(result.view().data, v.view().data, size_of(v.view().dtype) * v.view().size);
    return result;
}

// Of a dense tensor.
Tensor copy(const Tensor &t) {
    Tensor result = Tensor::like(t);
    const int64_t bytes = t.view().num_elements() * int64_t(size_of(t.view().dtype));
    if (bytes > 0) {
        std::memcpy(result.view().data, t.view().data, size_t(bytes));
    }
    return result;
}

std::string shape_text(const std::vector<int64_t> &shape) {
    std::string text;
    for (const int64_t size : shape) {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
}

// "a", "b"
std::string quoted(const std::vector<std::string> &names) {
    std::string text;
    for (const std::string &name : names) {
        text += (text.empty() ? "\"" : ", \"") + name + "\"";
    }
    return text;
}

bool is_float(DType dtype) {
    switch (dtype) {
    case DType::float32:
    case DType::float64:
    case DType::bfloat16:
    case DType::float16:
        return true;
    case DType::int64:
    case DType::uint8:
        break;
    }
    return false;
}

std::string shape_text(const Shape &shape) {
    return shape_text(std::vector<int64_t>(shape.begin(), shape.end()));
}

// Why an entry of a checkpoint can't be loaded into one of the module, or "".
std::string why_not_loaded(const std::string &name, const ConstStateEntry &entry,
                           const StateEntry &mine) {
    const bool is_count = mine.dtype == DType::int64;
    // PyTorch before 0.4 kept scalars as tensors of one element.
    const bool old_scalar = is_count && entry.shape == std::vector<int64_t>{1};
    if (entry.shape != mine.shape && !old_scalar) {
        return "size mismatch for " + name + ": copying a param with shape " +
               shape_text(entry.shape) + " from checkpoint, the shape in current model is " +
               shape_text(mine.shape) + ".";
    }
    if (is_count ? entry.dtype != DType::int64 : !is_float(entry.dtype)) {
        return "dtype mismatch for " + name + ": copying a param of " + name_of(entry.dtype) +
               " from checkpoint, the dtype in current model is " + name_of(mine.dtype) + ".";
    }
    const bool is_empty = !is_count && mine.shape[0] == 0;
    if (!entry.data && !is_empty) {
        return "no data for " + name + ".";
    }
    if (reinterpret_cast<uintptr_t>(entry.data) % size_of(entry.dtype) != 0) {
        return "the data of " + name + " is not aligned to its dtype, " + name_of(entry.dtype) +
               ".";
    }
    return "";
}

}  // namespace

BatchNorm2d::BatchNorm2d(int64_t num_features, const BatchNorm2dOptions &options)
    : num_features_(num_features), options_(options) {
    // An empty tensor of these options stands for the checks on dtype and device.
    const TensorView like(nullptr, options.dtype, Shape{}, MemoryFormat::contiguous,
                          options.device);
    const hbn_tensor c_like = to_c(like);
    throw_on_error(internal::check_supported_tensor({"BatchNorm2d", &c_like}));
    Vector checks_size(options.dtype, num_features);
    if (options.affine) {
        weight_ = std::move(checks_size);
    }
    if (options.affine && options.bias) {
        bias_ = Vector(options.dtype, num_features);
    }
    if (options.track_running_stats) {
        running_mean_ = Vector(options.dtype, num_features);
        running_var_ = Vector(options.dtype, num_features);
        num_batches_tracked_ = Vector(DType::int64, 1);
    }
    reset_parameters();
}

BatchNorm2d BatchNorm2d::clone() const {
    check_present();
    BatchNorm2d result(num_features_, options_);
    result.training_ = training_;
    result.weight_ = copy(weight_);
    result.bias_ = copy(bias_);
    result.running_mean_ = copy(running_mean_);
    result.running_var_ = copy(running_var_);
    result.num_batches_tracked_ = copy(num_batches_tracked_);
    result.saved_mean_ = copy(saved_mean_);
    result.saved_invstd_ = copy(saved_invstd_);
    if (last_forward_.operation == LastForward::Operation::forward_add) {
        result.mask_ = copy(mask_);
    }
    result.mask_strides_ = mask_strides_;
    result.last_forward_ = last_forward_;
    return result;
}

void BatchNorm2d::train(bool mode) {
    check_present();
    training_ = mode;
}

void BatchNorm2d::eval() {
    train(false);
}

bool BatchNorm2d::is_training() const {
    check_present();
    return training_;
}

Tensor BatchNorm2d::forward(const ConstTensorView &x) {
    check_present();
    const hbn_tensor c_x = to_c(x);
    throw_on_error(internal::check_supported_tensor({"x", &c_x}));
    Tensor y = Tensor::like(x);
    forward_into(x, nullptr, y);
    return y;
}

void BatchNorm2d::forward(const ConstTensorView &x, const TensorView &out) {
    check_present();
    forward_into(x, nullptr, out);
}

Tensor BatchNorm2d::forward_add(const ConstTensorView &x, const ConstTensorView &residual) {
    check_present();
    const hbn_tensor c_x = to_c(x);
    throw_on_error(internal::check_supported_tensor({"x", &c_x}));
    Tensor y = Tensor::like(x);
    forward_into(x, &residual, y);
    return y;
}

void BatchNorm2d::forward_add(const ConstTensorView &x, const ConstTensorView &residual,
                              const TensorView &out) {
    check_present();
    forward_into(x, &residual, out);
}

void BatchNorm2d::forward_into(const ConstTensorView &x, const ConstTensorView *residual,
                               const TensorView &out) {
    const hbn_tensor c_x = to_c(x), c_y = to_c(out);
    throw_on_error(internal::check_supported_tensor({"x", &c_x}));
    const bool batch_statistics = training_ || !running_mean_;
    const bool tracks = training_ && running_mean_;
    int64_t *batches = num_batches_tracked_.data<int64_t>();
    double momentum = 0;
    if (tracks) {
        momentum = options_.momentum ? *options_.momentum : 1.0 / double(*batches + 1);
    }
    // What the last call left will do when it fits: a call that fails writes nothing.
    Vector new_mean, new_invstd;
    if (batch_statistics && (!saved_mean_ || saved_mean_.view().size != x.sizes[1])) {
        new_mean = Vector(DType::float64, x.sizes[1]);
        new_invstd = Vector(DType::float64, x.sizes[1]);
    }
    const OptionalVector mean(new_mean ? new_mean : saved_mean_);
    const OptionalVector invstd(new_invstd ? new_invstd : saved_invstd_);
    const hbn_vector *const c_mean = batch_statistics ? (const hbn_vector *)mean : nullptr;
    const hbn_vector *const c_invstd = batch_statistics ? (const hbn_vector *)invstd : nullptr;
    const bool keeps_mask = residual && batch_statistics && options_.activation.kind == HBN_RELU;
    Tensor new_mask;
    if (!residual && options_.activation.kind == HBN_IDENTITY) {
        throw_on_error(hbn_batch_norm_forward(&c_x, OptionalVector(weight_), OptionalVector(bias_),
                                              OptionalVector(running_mean_),
                                              OptionalVector(running_var_), training_, momentum,
                                              options_.eps, &c_y, c_mean, c_invstd));
    } else {
        if (keeps_mask && (mask_.view().sizes != x.sizes || mask_strides_ != x.strides)) {
            new_mask = Tensor::like(x, DType::uint8);
        }
        const hbn_tensor c_residual = residual ? to_c(*residual) : hbn_tensor{};
        const hbn_tensor c_mask = to_c(new_mask.view().data ? new_mask : mask_);
        const hbn_activation c_activation = to_c(options_.activation);
        throw_on_error(hbn_batch_norm_activation_forward(
            &c_x, residual ? &c_residual : nullptr, OptionalVector(weight_), OptionalVector(bias_),
            OptionalVector(running_mean_), OptionalVector(running_var_), training_, momentum,
            options_.eps, &c_activation, &c_y, keeps_mask ? &c_mask : nullptr, c_mean, c_invstd));
    }
    if (tracks) {
        ++*batches;
    }
    if (new_mean) {
        saved_mean_ = std::move(new_mean);
        saved_invstd_ = std::move(new_invstd);
    }
    if (new_mask.view().data) {
        mask_ = std::move(new_mask);
        mask_strides_ = x.strides;
    }
    using Operation = LastForward::Operation;
    last_forward_ = {residual ? Operation::forward_add : Operation::forward, batch_statistics,
                     x.dtype, x.sizes};
}

void BatchNorm2d::check_present() const {
    if (!present_) {
        throw InvalidState("this BatchNorm2d was moved from");
    }
}

void BatchNorm2d::check_last_forward(LastForward::Operation operation,
                                     const ConstTensorView &x) const {
    check_present();
    const LastForward &last = last_forward_;
    if (last.operation != operation) {
        throw InvalidState(operation == LastForward::Operation::forward
                               ? internal::text::no_forward
                               : "backward_add() needs a forward_add() before it");
    }
    const hbn_tensor c_x = to_c(x);
    throw_on_error(internal::check_supported_tensor({"x", &c_x}));
    if (x.sizes != last.sizes) {
        throw InvalidArgument("x should have the shape that it had in forward, " +
                              shape_text(last.sizes) + ", not " + shape_text(x.sizes));
    }
    if (x.dtype != last.dtype) {
        throw InvalidArgument(std::string("x should have the dtype that it had in forward, ") +
                              name_of(last.dtype) + ", not " + name_of(x.dtype));
    }
}

functional::Gradients BatchNorm2d::run_backward(const ConstTensorView &grad_output,
                                                const ConstTensorView &x,
                                                const functional::GradMask &grad_mask,
                                                const std::optional<TensorView> &out) const {
    check_last_forward(LastForward::Operation::forward, x);
    const bool training = last_forward_.batch_statistics;
    const ConstVectorView absent;
    const ConstVectorView mean = training ? saved_mean() : absent;
    const ConstVectorView invstd = training ? saved_invstd() : absent;
    const ConstVectorView given_mean = training ? absent : running_mean();
    const ConstVectorView given_var = training ? absent : running_var();
    if (options_.activation.kind == HBN_IDENTITY) {
        return functional::batch_norm_backward(grad_output, x, weight_, mean, invstd, given_mean,
                                               given_var, training, options_.eps, grad_mask, out);
    }
    functional::ActivationGradients gradients = functional::batch_norm_activation_backward(
        grad_output, x, std::nullopt, std::nullopt, weight_, bias_, mean, invstd, given_mean,
        given_var, training, options_.eps, options_.activation, grad_mask, out);
    return {std::move(gradients.grad_input), std::move(gradients.grad_weight),
            std::move(gradients.grad_bias)};
}

functional::Gradients BatchNorm2d::backward(const ConstTensorView &grad_output,
                                            const ConstTensorView &x,
                                            const functional::GradMask &grad_mask) {
    return run_backward(grad_output, x, grad_mask, std::nullopt);
}

functional::Gradients BatchNorm2d::backward(const ConstTensorView &grad_output,
                                            const ConstTensorView &x,
                                            const functional::GradMask &grad_mask,
                                            const TensorView &out) {
    return run_backward(grad_output, x, grad_mask, out);
}

// Of a ReLU with running statistics, which forward_add() keeps none of: most of its calls are inference.
Tensor BatchNorm2d::compute_mask(const ConstTensorView &x, const ConstTensorView &residual) const {
    const Tensor y = Tensor::like(x);
    Tensor mask = Tensor::like(x, DType::uint8);
    const hbn_tensor c_x = to_c(x), c_residual = to_c(residual), c_y = to_c(y), c_mask = to_c(mask);
    const hbn_activation c_activation = to_c(options_.activation);
    const bool training = false;
    const double momentum = 0;
    throw_on_error(hbn_batch_norm_activation_forward(
        &c_x, &c_residual, OptionalVector(weight_), OptionalVector(bias_),
        OptionalVector(running_mean_), OptionalVector(running_var_), training, momentum,
        options_.eps, &c_activation, &c_y, &c_mask, nullptr, nullptr));
    return mask;
}

functional::ActivationGradients BatchNorm2d::backward_add(
    const ConstTensorView &grad_output, const ConstTensorView &x,
    const std::optional<ConstTensorView> &residual, const functional::GradMask &grad_mask,
    const std::optional<TensorView> &out, const std::optional<TensorView> &residual_out) {
    check_last_forward(LastForward::Operation::forward_add, x);
    const bool training = last_forward_.batch_statistics;
    const bool relu = options_.activation.kind == HBN_RELU;
    if (!residual && !(relu && training)) {
        throw_on_error(internal::fail(HBN_INVALID_ARGUMENT, internal::text::required, "residual"));
    }
    Tensor computed;
    std::optional<ConstTensorView> mask;
    if (relu && training) {
        mask = mask_;
    } else if (relu) {
        computed = compute_mask(x, *residual);
        mask = computed;
    }
    const ConstVectorView absent;
    return functional::batch_norm_activation_backward(
        grad_output, x, relu ? std::nullopt : residual, mask, weight_, bias_,
        training ? saved_mean() : absent, training ? saved_invstd() : absent,
        training ? absent : running_mean(), training ? absent : running_var(), training,
        options_.eps, options_.activation, grad_mask, out, residual_out);
}

void BatchNorm2d::reset_running_stats() {
    check_present();
    fill(running_mean_, Fill::zeros);
    fill(running_var_, Fill::ones);
    fill(num_batches_tracked_, Fill::zeros);
}

void BatchNorm2d::reset_parameters() {
    reset_running_stats();
    fill(weight_, Fill::ones);
    fill(bias_, Fill::zeros);
}

template<typename Dict>
Dict BatchNorm2d::collect_state(const std::string &prefix) const {
    check_present();
    return or_out_of_memory([&] {
        Dict state;
        const auto add = [&](const char *name, const Vector &v, std::vector<int64_t> shape) {
            if (v) {
                state[prefix + name] = {v.view().data, v.view().dtype, std::move(shape)};
            }
        };
        add("weight", weight_, {num_features_});
        add("bias", bias_, {num_features_});
        add("running_mean", running_mean_, {num_features_});
        add("running_var", running_var_, {num_features_});
        add("num_batches_tracked", num_batches_tracked_, {});
        return state;
    });
}

StateDict BatchNorm2d::state_dict(const std::string &prefix) {
    return collect_state<StateDict>(prefix);
}

ConstStateDict BatchNorm2d::state_dict(const std::string &prefix) const {
    return collect_state<ConstStateDict>(prefix);
}

void BatchNorm2d::load_state_dict(const StateDict &state, bool strict, const std::string &prefix) {
    or_out_of_memory([&] { load(ConstStateDict(state.begin(), state.end()), strict, prefix); });
}

void BatchNorm2d::load_state_dict(const ConstStateDict &state, bool strict,
                                  const std::string &prefix) {
    or_out_of_memory([&] { load(state, strict, prefix); });
}

void BatchNorm2d::load(const ConstStateDict &state, bool strict, const std::string &prefix) {
    const StateDict own = state_dict(prefix);
    const std::string batches = prefix + "num_batches_tracked";

    std::vector<std::string> missing, unexpected, errors;
    for (const auto &[name, mine] : own) {
        if (name != batches && !state.count(name)) {
            missing.push_back(name);
        }
    }
    for (const auto &[name, entry] : state) {
        if (name.compare(0, prefix.size(), prefix) != 0) {
            continue;  // another module's
        }
        const auto mine = own.find(name);
        if (mine == own.end()) {
            unexpected.push_back(name);
        } else if (const std::string error = why_not_loaded(name, entry, mine->second);
                   !error.empty()) {
            errors.push_back(error);
        }
    }
    if (strict && !unexpected.empty()) {
        errors.insert(errors.begin(),
                      "Unexpected key(s) in state_dict: " + quoted(unexpected) + ". ");
    }
    if (strict && !missing.empty()) {
        errors.insert(errors.begin(), "Missing key(s) in state_dict: " + quoted(missing) + ". ");
    }
    if (!errors.empty()) {
        std::string text = "Error(s) in loading state_dict for BatchNorm2d:";
        for (const std::string &error : errors) {
            text += "\n\t" + error;
        }
        throw InvalidArgument(text);
    }

    // All are converted before the first is stored: a conversion may fail.
    std::vector<std::pair<const StateEntry *, Vector>> converted;
    int64_t count = 0;
    for (const auto &[name, mine] : own) {
        const auto entry = state.find(name);
        if (entry == state.end()) {
            continue;
        }
        if (name == batches) {
            std::memcpy(&count, entry->second.data, sizeof count);
            continue;
        }
        converted.emplace_back(&mine, Vector(mine.dtype, num_features_));
        const ConstVectorView from(entry->second.data, entry->second.dtype, num_features_);
        throw_on_error(internal::convert(to_c(from), to_c(converted.back().second)));
    }
    for (const auto &[mine, values] : converted) {
        std::memcpy(mine->data, values.view().data, size_of(mine->dtype) * size_t(num_features_));
    }
    if (num_batches_tracked_) {
        *num_batches_tracked_.data<int64_t>() = count;
    }
}

int64_t BatchNorm2d::num_features() const {
    check_present();
    return num_features_;
}

const BatchNorm2dOptions &BatchNorm2d::options() const {
    check_present();
    return options_;
}

VectorView BatchNorm2d::weight() {
    check_present();
    return weight_;
}

ConstVectorView BatchNorm2d::weight() const {
    check_present();
    return weight_;
}

VectorView BatchNorm2d::bias() {
    check_present();
    return bias_;
}

ConstVectorView BatchNorm2d::bias() const {
    check_present();
    return bias_;
}

VectorView BatchNorm2d::running_mean() {
    check_present();
    return running_mean_;
}

ConstVectorView BatchNorm2d::running_mean() const {
    check_present();
    return running_mean_;
}

VectorView BatchNorm2d::running_var() {
    check_present();
    return running_var_;
}

ConstVectorView BatchNorm2d::running_var() const {
    check_present();
    return running_var_;
}

int64_t BatchNorm2d::num_batches_tracked() const {
    check_present();
    return num_batches_tracked_ ? *num_batches_tracked_.data<int64_t>() : 0;
}

ConstVectorView BatchNorm2d::saved_mean() const {
    check_present();
    return saved_mean_;
}

ConstVectorView BatchNorm2d::saved_invstd() const {
    check_present();
    return saved_invstd_;
}

std::string BatchNorm2d::repr() const {
    check_present();
    char eps[32], momentum[32] = "None";
    internal::spell(options_.eps, eps);
    if (options_.momentum) {
        internal::spell(*options_.momentum, momentum);
    }
    const auto python = [](bool value) { return value ? "True" : "False"; };
    return or_out_of_memory([&] {
        std::string text = "BatchNorm2d(" + std::to_string(num_features_) + ", eps=" + eps +
                           ", momentum=" + momentum + ", affine=" + python(options_.affine) +
                           ", bias=" + python(bool(bias_)) +
                           ", track_running_stats=" + python(options_.track_running_stats);
        if (options_.activation.kind != HBN_IDENTITY) {
            text += ", activation=" + options_.activation.repr();
        }
        return text + ")";
    });
}

}  // namespace hbn
