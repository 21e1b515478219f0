/// @file batch_norm_2d.h
/// hbn::BatchNorm2d: torch.nn.BatchNorm2d in C++.
#ifndef HBN_BATCH_NORM_2D_H
#define HBN_BATCH_NORM_2D_H

#include <hbn/functional.h>

#include <map>
#include <string>

namespace hbn {

/// The arguments of torch.nn.BatchNorm2d, under its names and defaults.
struct BatchNorm2dOptions {
    double eps = 1e-5;
    std::optional<double> momentum = 0.1;  ///< std::nullopt: cumulative average
    bool affine = true;
    bool track_running_stats = true;
    Device device = Device::cpu;
    DType dtype = DType::float32;  ///< of the parameters and statistics
};

/// One entry of a state dict: lends the module's memory, or the caller's when loading.
/// `shape` is {C}, or {} for num_batches_tracked.
struct StateEntry {
    void *data = nullptr;
    DType dtype = DType::float32;
    std::vector<int64_t> shape;
};
using StateDict = std::map<std::string, StateEntry>;

/// Batch normalization over (N, C, H, W) input, a mini-batch of 2D inputs with a channel dimension,
/// after Ioffe and Szegedy, "Batch Normalization" (2015), with the behaviour of
/// torch.nn.BatchNorm2d in PyTorch 2.13.
///
/// A module is not to be used by two threads at once. Move-only; clone() copies.
class BatchNorm2d {
public:
    /// @throws std::invalid_argument for a negative num_features, or a dtype that is no float
    explicit BatchNorm2d(int64_t num_features, const BatchNorm2dOptions &options = {});

    BatchNorm2d clone() const;

    /// Sets training or evaluation mode.
    void train(bool mode = true);
    void eval();
    bool is_training() const;

    /// y of x's shape, dtype and layout. Keeps what backward needs, except x itself, which the
    /// caller keeps.
    /// @throws std::invalid_argument with PyTorch's texts, before anything is written
    Tensor forward(const TensorView &x);
    /// The same into `out`, which may be x itself (then pass backward a copy of the original x).
    void forward(const TensorView &x, const TensorView &out);
    Tensor operator()(const TensorView &x) {
        return forward(x);
    }

    /// Gradients of the last forward(x), in the mode it ran in. The module keeps no gradients: they
    /// are returned. @throws std::logic_error when no forward came before
    functional::Gradients backward(const TensorView &grad_output, const TensorView &x,
                                   const functional::GradMask &mask = {});
    /// grad_input goes to `out`, which may be grad_output itself.
    functional::Gradients backward(const TensorView &grad_output, const TensorView &x,
                                   const functional::GradMask &mask, const TensorView &out);

    /// running_mean to 0, running_var to 1, num_batches_tracked to 0.
    void reset_running_stats();
    /// reset_running_stats(), weight to 1, bias to 0.
    void reset_parameters();

    /// Views of weight, bias, running_mean, running_var, num_batches_tracked (those that exist),
    /// each name with `prefix` before it. They live as long as the module.
    StateDict state_dict(const std::string &prefix = "");
    /// Copies from `state`, converting between float dtypes. A state without num_batches_tracked
    /// (PyTorch before version 2) loads, with 0. With strict, keys that are missing or unexpected
    /// are errors; mis-sized ones always are. @throws std::invalid_argument naming each, with
    /// nothing loaded
    void load_state_dict(const StateDict &state, bool strict = true,
                         const std::string &prefix = "");

    int64_t num_features() const;
    const BatchNorm2dOptions &options() const;
    /// Views of the state; absent ones have no data.
    VectorView weight() const;
    VectorView bias() const;
    VectorView running_mean() const;
    VectorView running_var() const;
    int64_t num_batches_tracked() const;
    /// Statistics saved by the last forward that used batch statistics.
    VectorView saved_mean() const;
    VectorView saved_invstd() const;
    /// "BatchNorm2d(100, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
    std::string repr() const;

private:
    void forward_into(const TensorView &x, const TensorView &out);

    int64_t num_features_;
    BatchNorm2dOptions options_;
    bool training_ = true;
    Vector weight_, bias_, running_mean_, running_var_, num_batches_tracked_;
    Vector saved_mean_, saved_invstd_;
    enum class Forward { none, batch_statistics, running_statistics } last_forward_ = Forward::none;
};

}  // namespace hbn

#endif
