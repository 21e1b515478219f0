/// @file batch_norm_2d.h
/// hbn::BatchNorm2d: torch.nn.BatchNorm2d in C++.
#ifndef HBN_BATCH_NORM_2D_H
#define HBN_BATCH_NORM_2D_H

#include <hbn/functional.h>

#include <map>
#include <string>

namespace hbn {

/// The arguments of torch.nn.BatchNorm2d, under its names and defaults; and the activation that follows it.
struct BatchNorm2dOptions {
    double eps = 1e-5;                     ///< added to the variance
    std::optional<double> momentum = 0.1;  ///< std::nullopt: cumulative average
    bool affine = true;               ///< whether there is a weight, and a bias if `bias` says so
    bool track_running_stats = true;  ///< false: batch statistics in evaluation, too
    Device device = Device::cpu;      ///< of the parameters and statistics
    DType dtype = DType::float32;     ///< of the parameters and statistics
    bool bias = true;                 ///< false: no bias beside a weight
    Activation activation;            ///< of what forward returns
};

/// One entry of a state dict.
/// @tparam Void  void, or const void for an entry that is only read
template<typename Void>
struct BasicStateEntry {
    Void *data = nullptr;          ///< dense; the module's memory, or the caller's when loading
    DType dtype = DType::float32;  ///< of each value
    std::vector<int64_t> shape;    ///< {C}, or {} for num_batches_tracked

    /// Without data.
    BasicStateEntry() = default;
    /// @param data, dtype, shape  the members of these names
    BasicStateEntry(Void *data, DType dtype, std::vector<int64_t> shape)
        : data(data), dtype(dtype), shape(std::move(shape)) {
    }
    /// A StateEntry as a ConstStateEntry.
    /// @tparam Other  void, where Void is const void
    /// @param other  of the same memory
    template<typename Other, typename = internal::EnableIfConstOf<Void, Other>>
    BasicStateEntry(const BasicStateEntry<Other> &other)
        : data(other.data), dtype(other.dtype), shape(other.shape) {
    }
};
/// An entry to read or to write.
using StateEntry = BasicStateEntry<void>;
/// An entry to read.
using ConstStateEntry = BasicStateEntry<const void>;
/// A module's state under PyTorch's names.
using StateDict = std::map<std::string, StateEntry>;
/// A state that is only read: a const module's, or a checkpoint's.
using ConstStateDict = std::map<std::string, ConstStateEntry>;

/// Batch normalization over (N, C, H, W) input, a mini-batch of 2D inputs with a channel dimension,
/// after Ioffe and Szegedy, "Batch Normalization" (2015), with the behaviour of
/// torch.nn.BatchNorm2d in PyTorch 2.13. An activation may follow in the same pass over memory, and an addition come
/// between.
///
/// A module is not to be used by two threads at once. Move-only; clone() copies. One that was moved from can be assigned
/// to and destroyed; all else throws InvalidState.
class BatchNorm2d {
public:
    /// @param num_features  C of the input
    /// @param options       as torch.nn.BatchNorm2d's arguments
    /// @throws InvalidArgument for a negative num_features, or a dtype that is no float
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

    /// Normalizes, by batch statistics in training, which update the running ones, else by these; then applies the
    /// activation of the options. Keeps what backward needs, except x itself, which the caller keeps.
    /// @param x  (N, C, H, W), float32, float64, bfloat16 or float16, of any non-negative strides
    /// @return y of x's shape, dtype and layout
    /// @throws InvalidArgument with PyTorch's texts, before anything is written
    Tensor forward(const ConstTensorView &x);
    /// The same into the caller's memory.
    /// @param x    as above
    /// @param out  of x's shape and dtype; may be x itself (then pass backward a copy of the original x)
    void forward(const ConstTensorView &x, const TensorView &out);
    /// forward(x).
    /// @param x  as there
    /// @return y
    Tensor operator()(const ConstTensorView &x) {
        return forward(x);
    }

    /// forward() with an addition before the activation, as residual networks end a block: y = activation(z + residual).
    /// Keeps what backward_add needs, except x and residual, which the caller keeps; of a ReLU with batch statistics it
    /// keeps a mask of a byte an element, and backward_add needs no residual.
    /// @param x         as in forward
    /// @param residual  of x's shape and dtype
    /// @return y of x's shape, dtype and layout
    Tensor forward_add(const ConstTensorView &x, const ConstTensorView &residual);
    /// The same into the caller's memory.
    /// @param x, residual  as above
    /// @param out  of x's shape and dtype; may be x itself where no mask is kept
    void forward_add(const ConstTensorView &x, const ConstTensorView &residual,
                     const TensorView &out);

    /// Gradients of the last forward(x), in the mode it ran in. The module keeps no gradients: they
    /// are returned. Parameters, and outside training running statistics, must be as forward had them.
    /// @param grad_output  of y's shape and dtype
    /// @param x     as forward had it
    /// @param grad_mask  which gradients to compute
    /// @return the gradients that grad_mask asks for
    /// @throws InvalidState when no forward(x) came before; InvalidArgument for an x of other sizes or dtype than
    ///         forward had
    functional::Gradients backward(const ConstTensorView &grad_output, const ConstTensorView &x,
                                   const functional::GradMask &grad_mask = {});
    /// The same with grad_input in the caller's memory.
    /// @param grad_output, x, grad_mask  as above
    /// @param out  where grad_input goes; may be grad_output itself
    /// @return the others
    functional::Gradients backward(const ConstTensorView &grad_output, const ConstTensorView &x,
                                   const functional::GradMask &grad_mask, const TensorView &out);

    /// Gradients of the last forward_add(x, residual), as backward() has them of forward(x).
    /// @param grad_output, x  as in backward
    /// @param residual      as forward_add had it. Not needed for a ReLU with batch statistics; for a ReLU with running ones
    ///                      this computes y again, since no mask was kept
    /// @param grad_mask     which gradients to compute beside grad_residual
    /// @param out           where grad_input goes when given; must not overlap an input
    /// @param residual_out  where grad_residual goes when given; must not overlap an input
    /// @return the gradients that grad_mask asks for, and grad_residual
    /// @throws InvalidState when no forward_add came before; InvalidArgument for an x of other sizes or dtype than it had
    functional::ActivationGradients backward_add(
        const ConstTensorView &grad_output, const ConstTensorView &x,
        const std::optional<ConstTensorView> &residual = std::nullopt,
        const functional::GradMask &grad_mask = {},
        const std::optional<TensorView> &out = std::nullopt,
        const std::optional<TensorView> &residual_out = std::nullopt);

    /// running_mean to 0, running_var to 1, num_batches_tracked to 0.
    void reset_running_stats();
    /// reset_running_stats(), weight to 1, bias to 0.
    void reset_parameters();

    /// The module's state, as checkpoints name it.
    /// @param prefix  goes before each name
    /// @return views of weight, bias, running_mean, running_var, num_batches_tracked (those that exist), which
    ///         live as long as the module
    StateDict state_dict(const std::string &prefix = "");
    /// The same of a const module.
    /// @param prefix  as above
    /// @return views to read
    ConstStateDict state_dict(const std::string &prefix = "") const;
    /// Copies from `state`, converting between float dtypes. A state without num_batches_tracked
    /// (PyTorch before version 2) loads, with 0. With strict, keys that are missing or unexpected
    /// are errors; mis-sized ones, and those of a dtype that is no float, always are.
    /// @param state   may hold other modules' entries, under other prefixes
    /// @param strict  as torch.nn.Module.load_state_dict's
    /// @param prefix  before each name
    /// @throws InvalidArgument naming each, with nothing loaded
    void load_state_dict(const ConstStateDict &state, bool strict = true,
                         const std::string &prefix = "");
    /// The same of a state that may be written, too.
    /// @param state, strict, prefix  as above
    void load_state_dict(const StateDict &state, bool strict = true,
                         const std::string &prefix = "");

    /// @return C
    int64_t num_features() const;
    /// @return the options it was made with
    const BatchNorm2dOptions &options() const;
    /// @return a view of the scale of each channel; absent without affine
    VectorView weight();
    /// @return a view of the scale of each channel, to read; absent without affine
    ConstVectorView weight() const;
    /// @return a view of the shift of each channel; absent without affine or bias
    VectorView bias();
    /// @return a view of the shift of each channel, to read; absent without affine or bias
    ConstVectorView bias() const;
    /// @return a view of the running mean; absent without track_running_stats
    VectorView running_mean();
    /// @return a view of the running mean, to read; absent without track_running_stats
    ConstVectorView running_mean() const;
    /// @return a view of the running variance, which is unbiased; absent without track_running_stats
    VectorView running_var();
    /// @return a view of the running variance, to read; absent without track_running_stats
    ConstVectorView running_var() const;
    /// @return how many training steps updated the running statistics; 0 without track_running_stats
    int64_t num_batches_tracked() const;
    /// @return a view of the mean, of float64, saved by the last forward that used batch statistics
    ConstVectorView saved_mean() const;
    /// @return a view of the invstd, of float64, saved by the last forward that used batch statistics
    ConstVectorView saved_invstd() const;
    /// @return PyTorch's text: "BatchNorm2d(100, eps=1e-05, momentum=0.1, affine=True, bias=True,
    ///         track_running_stats=True)"; and, where there is one, the activation before the last bracket
    std::string repr() const;

private:
    // False once it was moved from.
    class Present {
    public:
        Present() = default;
        Present(Present &&other) noexcept : value_(std::exchange(other.value_, false)) {
        }
        Present &operator=(Present &&other) noexcept {
            value_ = std::exchange(other.value_, false);
            return *this;
        }
        explicit operator bool() const {
            return value_;
        }

    private:
        bool value_ = true;
    };

    // What backward must be given again, and how it must proceed.
    struct LastForward {
        enum class Operation { none, forward, forward_add } operation = Operation::none;
        bool batch_statistics = false;
        DType dtype = DType::float32;
        Shape sizes{};
    };

    void check_present() const;
    template<typename Dict>
    Dict collect_state(const std::string &prefix) const;
    void load(const ConstStateDict &state, bool strict, const std::string &prefix);
    void forward_into(const ConstTensorView &x, const ConstTensorView *residual,
                      const TensorView &out);
    void check_last_forward(LastForward::Operation operation, const ConstTensorView &x) const;
    Tensor compute_mask(const ConstTensorView &x, const ConstTensorView &residual) const;
    functional::Gradients run_backward(const ConstTensorView &grad_output, const ConstTensorView &x,
                                       const functional::GradMask &grad_mask,
                                       const std::optional<TensorView> &out) const;

    Present present_;
    int64_t num_features_;
    BatchNorm2dOptions options_;
    bool training_ = true;
    Vector weight_, bias_, running_mean_, running_var_, num_batches_tracked_;
    Vector saved_mean_, saved_invstd_;
    Tensor mask_;           // of the last forward_add that kept one
    Shape mask_strides_{};  // of the x that it was kept for
    LastForward last_forward_;
};

}  // namespace hbn

#endif
