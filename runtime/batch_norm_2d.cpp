#include <hbn/batch_norm_2d.h>

#include "checks.h"
#include "engine/kernels.h"
#include "errors.h"
#include "views.h"

#include <algorithm>
#include <cstring>

namespace hbn {

using internal::OptionalVector;
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

functional::Gradients run_backward(const BatchNorm2d &bn, bool after_forward, bool batch_statistics,
                                   const TensorView &grad_output, const TensorView &x,
                                   const functional::GradMask &mask,
                                   const std::optional<TensorView> &out) {
    if (!after_forward) {
        throw std::logic_error(internal::text::no_forward);
    }
    const double eps = bn.options().eps;
    return batch_statistics
               ? functional::batch_norm_backward(grad_output, x, bn.weight(), bn.saved_mean(),
                                                 bn.saved_invstd(), {}, {}, true, eps, mask, out)
               : functional::batch_norm_backward(grad_output, x, bn.weight(), {}, {},
                                                 bn.running_mean(), bn.running_var(), false, eps,
                                                 mask, out);
}

}  // namespace

BatchNorm2d::BatchNorm2d(int64_t num_features, const BatchNorm2dOptions &options)
    : num_features_(num_features), options_(options) {
    // An empty tensor of these options stands for the checks on dtype and device.
    const TensorView like(nullptr, options.dtype, Shape{}, MemoryFormat::contiguous,
                          options.device);
    const hbn_tensor c_like = to_c(like);
    throw_on_error(internal::check_tensors({{"BatchNorm2d", &c_like}}));
    Vector checks_size(options.dtype, num_features);
    if (options.affine) {
        weight_ = std::move(checks_size);
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
    BatchNorm2d result(num_features_, options_);
    result.training_ = training_;
    result.weight_ = copy(weight_);
    result.bias_ = copy(bias_);
    result.running_mean_ = copy(running_mean_);
    result.running_var_ = copy(running_var_);
    result.num_batches_tracked_ = copy(num_batches_tracked_);
    result.saved_mean_ = copy(saved_mean_);
    result.saved_invstd_ = copy(saved_invstd_);
    result.last_forward_ = last_forward_;
    return result;
}

void BatchNorm2d::train(bool mode) {
    training_ = mode;
}

void BatchNorm2d::eval() {
    train(false);
}

bool BatchNorm2d::is_training() const {
    return training_;
}

Tensor BatchNorm2d::forward(const TensorView &x) {
    const hbn_tensor c_x = to_c(x);
    throw_on_error(internal::check_tensors({{"x", &c_x}}));
    Tensor y = Tensor::like(x);
    forward_into(x, y);
    return y;
}

void BatchNorm2d::forward(const TensorView &x, const TensorView &out) {
    forward_into(x, out);
}

void BatchNorm2d::forward_into(const TensorView &x, const TensorView &out) {
    const hbn_tensor c_x = to_c(x), c_y = to_c(out);
    throw_on_error(internal::check_tensors({{"x", &c_x}}));
    const bool batch_statistics = training_ || !running_mean_;
    const bool tracks = training_ && running_mean_;
    int64_t *batches = num_batches_tracked_.data<int64_t>();
    double momentum = 0;
    if (tracks) {
        momentum = options_.momentum ? *options_.momentum : 1.0 / double(*batches + 1);
    }
    Vector new_mean, new_invstd;
    if (batch_statistics) {
        // Those of the last call will do when they fit: a call that fails leaves them alone.
        const DType dtype = DType::float64;
        const VectorView &last = saved_mean_.view();
        if (!last || last.dtype != dtype || last.size != x.sizes[1]) {
            new_mean = Vector(dtype, x.sizes[1]);
            new_invstd = Vector(dtype, x.sizes[1]);
        }
    }
    const OptionalVector mean(new_mean ? new_mean : saved_mean_);
    const OptionalVector invstd(new_invstd ? new_invstd : saved_invstd_);
    throw_on_error(hbn_batch_norm_forward(
        &c_x, OptionalVector(weight_), OptionalVector(bias_), OptionalVector(running_mean_),
        OptionalVector(running_var_), training_, momentum, options_.eps, &c_y,
        batch_statistics ? (const hbn_vector *)mean : nullptr,
        batch_statistics ? (const hbn_vector *)invstd : nullptr));
    if (tracks) {
        ++*batches;
    }
    if (new_mean) {
        saved_mean_ = std::move(new_mean);
        saved_invstd_ = std::move(new_invstd);
    }
    last_forward_ = batch_statistics ? Forward::batch_statistics : Forward::running_statistics;
}

functional::Gradients BatchNorm2d::backward(const TensorView &grad_output, const TensorView &x,
                                            const functional::GradMask &mask) {
    return run_backward(*this, last_forward_ != Forward::none,
                        last_forward_ == Forward::batch_statistics, grad_output, x, mask,
                        std::nullopt);
}

functional::Gradients BatchNorm2d::backward(const TensorView &grad_output, const TensorView &x,
                                            const functional::GradMask &mask,
                                            const TensorView &out) {
    return run_backward(*this, last_forward_ != Forward::none,
                        last_forward_ == Forward::batch_statistics, grad_output, x, mask, out);
}

void BatchNorm2d::reset_running_stats() {
    fill(running_mean_, Fill::zeros);
    fill(running_var_, Fill::ones);
    fill(num_batches_tracked_, Fill::zeros);
}

void BatchNorm2d::reset_parameters() {
    reset_running_stats();
    fill(weight_, Fill::ones);
    fill(bias_, Fill::zeros);
}

StateDict BatchNorm2d::state_dict(const std::string &prefix) {
    StateDict state;
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
}

void BatchNorm2d::load_state_dict(const StateDict &state, bool strict, const std::string &prefix) {
    const StateDict own = state_dict(prefix);
    const std::string batches = prefix + "num_batches_tracked";

    std::vector<std::string> missing, unexpected, errors;
    for (const char *name : {"weight", "bias", "running_mean", "running_var"}) {
        if (own.count(prefix + name) && !state.count(prefix + name)) {
            missing.push_back(prefix + name);
        }
    }
    for (const auto &[name, entry] : state) {
        if (name.compare(0, prefix.size(), prefix) != 0) {
            continue;  // another module's
        }
        const auto mine = own.find(name);
        if (mine == own.end()) {
            unexpected.push_back(name);
            continue;
        }
        const bool is_count = name == batches;
        // PyTorch before 0.4 kept scalars as tensors of one element.
        const bool old_scalar = is_count && entry.shape == std::vector<int64_t>{1};
        if (entry.shape != mine->second.shape && !old_scalar) {
            errors.push_back("size mismatch for " + name + ": copying a param with shape " +
                             shape_text(entry.shape) +
                             " from checkpoint, the shape in current model is " +
                             shape_text(mine->second.shape) + ".");
        } else if ((entry.dtype == DType::int64) != is_count) {
            errors.push_back("dtype mismatch for " + name + ": copying a param of " +
                             name_of(entry.dtype) + " from checkpoint, the dtype in current " +
                             "model is " + name_of(mine->second.dtype) + ".");
        } else if (!entry.data && (is_count || num_features_ > 0)) {
            errors.push_back("no data for " + name + ".");
        } else {
            if (!internal::has_conversion(hbn_dtype(entry.dtype), hbn_dtype(mine->second.dtype))) {
                errors.push_back("dtype mismatch for " + name + ".");
            }
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
        throw std::invalid_argument(text);
    }

    for (const auto &[name, mine] : own) {
        const auto entry = state.find(name);
        if (name == batches) {
            int64_t count = 0;
            if (entry != state.end()) {
                std::memcpy(&count, entry->second.data, sizeof(count));
            }
            *num_batches_tracked_.data<int64_t>() = count;
        } else if (entry != state.end()) {
            const hbn_vector from{entry->second.data, hbn_dtype(entry->second.dtype), num_features_,
                                  1};
            const hbn_vector to{mine.data, hbn_dtype(mine.dtype), num_features_, 1};
            throw_on_error(internal::convert(from, to));
        }
    }
}

int64_t BatchNorm2d::num_features() const {
    return num_features_;
}

const BatchNorm2dOptions &BatchNorm2d::options() const {
    return options_;
}

VectorView BatchNorm2d::weight() const {
    return weight_;
}

VectorView BatchNorm2d::bias() const {
    return bias_;
}

VectorView BatchNorm2d::running_mean() const {
    return running_mean_;
}

VectorView BatchNorm2d::running_var() const {
    return running_var_;
}

int64_t BatchNorm2d::num_batches_tracked() const {
    return num_batches_tracked_ ? *num_batches_tracked_.data<int64_t>() : 0;
}

VectorView BatchNorm2d::saved_mean() const {
    return saved_mean_;
}

VectorView BatchNorm2d::saved_invstd() const {
    return saved_invstd_;
}

std::string BatchNorm2d::repr() const {
    char eps[32], momentum[32] = "None";
    internal::spell(options_.eps, eps);
    if (options_.momentum) {
        internal::spell(*options_.momentum, momentum);
    }
    const auto python = [](bool value) { return value ? "True" : "False"; };
    return "BatchNorm2d(" + std::to_string(num_features_) + ", eps=" + eps +
           ", momentum=" + momentum + ", affine=" + python(options_.affine) +
           ", track_running_stats=" + python(options_.track_running_stats) + ")";
}

}  // namespace hbn
