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
    double eps = 1e-5;                     ///< added to the variance
    std::optional<double> momentum = 0.1;  ///< std::nullopt: cumulative average
    bool affine = true;                    ///< whether there are a weight and a bias
    bool track_running_stats = true;       ///< false: batch statistics in evaluation, too
    Device device = Device::cpu;           ///< of the parameters and statistics
    DType dtype = DType::float32;          ///< of the parameters and statistics
};

/// One entry of a state dict.
struct StateEntry {
    void *data = nullptr;          ///< dense; the module's memory, or the caller's when loading
    DType dtype = DType::float32;  ///< of each value
    std::vector<int64_t> shape;    ///< {C}, or {} for num_batches_tracked
};
/// A module's state under PyTorch's names.
using StateDict = std::map<std::string, StateEntry>;

/// Batch normalization over (N, C, H, W) input, a mini-batch of 2D inputs with a channel dimension,
/// after Ioffe and Szegedy, "Batch Normalization" (2015), with the behaviour of
/// torch.nn.BatchNorm2d in PyTorch 2.13.
///
/// A module is not to be used by two threads at once. Move-only; clone() copies.
class BatchNorm2d {
public:
    /// @param num_features  C of the input
    /// @param options       as torch.nn.BatchNorm2d's arguments
    /// @throws std::invalid_argument for a negative num_features, or a dtype that is no float
    explicit BatchNorm2d(int64_t num_features, const BatchNorm2dOptions &options = {});

    /// @return a module with a state of its own: parameters, statistics, mode, and what backward needs
    BatchNorm2d clone() const;

    /// Sets training or evaluation mode.
    /// @param mode  true for training, which a new module is in
    void train(bool mode = true);
    /// train(false).
    void eval();
    /// @return whether the next forward is a training step
    bool is_training() const;

    /// Normalizes, by batch statistics in training, which update the running ones, else by these. Keeps what
    /// backward needs, except x itself, which the caller keeps.
    /// @param x  (N, C, H, W), float32, float64, bfloat16 or float16, of any non-negative strides
    /// @return y of x's shape, dtype and layout
    /// @throws std::invalid_argument with PyTorch's texts, before anything is written
    Tensor forward(const TensorView &x);
    /// The same into the caller's memory.
    /// @param x    as above
    /// @param out  of x's shape and dtype; may be x itself (then pass backward a copy of the original x)
    void forward(const TensorView &x, const TensorView &out);
    /// forward(x).
    /// @param x  as there
    /// @return y
    Tensor operator()(const TensorView &x) {
        return forward(x);
    }

    /// Gradients of the last forward(x), in the mode it ran in. The module keeps no gradients: they
    /// are returned.
    /// @param grad_output  of y's shape and dtype
    /// @param x     as forward had it
    /// @param mask  which gradients to compute
    /// @return the gradients that mask asks for
    /// @throws std::logic_error when no forward came before
    functional::Gradients backward(const TensorView &grad_output, const TensorView &x,
                                   const functional::GradMask &mask = {});
    /// The same with grad_input in the caller's memory.
    /// @param grad_output, x, mask  as above
    /// @param out  where grad_input goes; may be grad_output itself
    /// @return the others
    functional::Gradients backward(const TensorView &grad_output, const TensorView &x,
                                   const functional::GradMask &mask, const TensorView &out);

    /// running_mean to 0, running_var to 1, num_batches_tracked to 0.
    void reset_running_stats();
    /// reset_running_stats(), weight to 1, bias to 0.
    void reset_parameters();

    /// The module's state, as checkpoints name it.
    /// @param prefix  goes before each name
    /// @return views of weight, bias, running_mean, running_var, num_batches_tracked (those that exist), which
    ///         live as long as the module
    StateDict state_dict(const std::string &prefix = "");
    /// Copies from `state`, converting between float dtypes. A state without num_batches_tracked
    /// (PyTorch before version 2) loads, with 0. With strict, keys that are missing or unexpected
    /// are errors; mis-sized ones always are.
    /// @param state   may hold other modules' entries, under other prefixes
    /// @param strict  as torch.nn.Module.load_state_dict's
    /// @param prefix  before each name
    /// @throws std::invalid_argument naming each, with nothing loaded
    void load_state_dict(const StateDict &state, bool strict = true,
                         const std::string &prefix = "");

    /// @return C
    int64_t num_features() const;
    /// @return the options it was made with
    const BatchNorm2dOptions &options() const;
    /// @return a view of the scale of each channel, to read or to write; absent without affine
    VectorView weight() const;
    /// @return a view of the shift of each channel, to read or to write; absent without affine
    VectorView bias() const;
    /// @return a view of the running mean; absent without track_running_stats
    VectorView running_mean() const;
    /// @return a view of the running variance, which is unbiased; absent without track_running_stats
    VectorView running_var() const;
    /// @return how many training steps updated the running statistics; 0 without track_running_stats
    int64_t num_batches_tracked() const;
    /// @return a view of the mean saved by the last forward that used batch statistics
    VectorView saved_mean() const;
    /// @return a view of the invstd saved by the last forward that used batch statistics
    VectorView saved_invstd() const;
    /// @return PyTorch's text: "BatchNorm2d(100, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
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
