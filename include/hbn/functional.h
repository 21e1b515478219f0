/// @file functional.h
/// Batch normalization as functions, after torch.nn.functional.batch_norm and the aten operations
/// behind it.
///
/// Tensors are (N, C, H, W) views, see tensor_view.h; one of another rank is refused. Errors are
/// std::invalid_argument for what the caller passed, std::bad_alloc, and std::runtime_error for
/// devices; they are thrown before anything is written. hbn.h documents each formula and parameter.
#ifndef HBN_FUNCTIONAL_H
#define HBN_FUNCTIONAL_H

#include <hbn/tensor_view.h>

#include <tuple>

namespace hbn {

/// Threads for later calls, process-wide; 0 means one per processor. Results are bitwise
/// independent of it.
void set_num_threads(int num_threads);
int get_num_threads();

namespace functional {

/// What a forward pass returns: y of the input's layout (empty when `out` was given), and the saved
/// statistics that backward needs (absent when running statistics were used).
struct ForwardResult {
    Tensor y;
    Vector mean;
    Vector invstd;
};

/// Which gradients backward computes.
struct GradMask {
    bool input = true;
    bool weight = true;
    bool bias = true;
};

struct Gradients {
    Tensor grad_input;  ///< empty when `out` was given or it is not wanted
    Vector grad_weight;
    Vector grad_bias;
};

struct AddReluForwardResult {
    Tensor y;     ///< empty when `out` was given
    Tensor mask;  ///< uint8; empty when `mask_out` was given, or not needed
    Vector mean;
    Vector invstd;
};

struct AddReluGradients {
    Tensor grad_input;     ///< empty when `out` was given
    Tensor grad_residual;  ///< empty when `residual_out` was given
    Vector grad_weight;
    Vector grad_bias;
};

/// Double backward's results.
struct DoubleGradients {
    Tensor
        grad_grad_output;  ///< gradient of backward's grad_output; empty when `grad_output_out` was given
    Tensor grad_input;   ///< of x; empty when `input_out` was given
    Vector grad_weight;  ///< of weight
};

/// Per-channel count, mean and m2 (sum of squared deviations): what machines exchange.
struct Moments {
    double count = 0;
    std::vector<double> mean;
    std::vector<double> m2;

    /// Becomes the moments of both samples together. @throws std::invalid_argument if channels
    /// differ.
    void merge(const Moments &other);
};

/// {sum of dy, sum of dy*(x - mean)} per channel, plain sums: what machines add up.
struct BackwardSums {
    std::vector<double> sum_dy;
    std::vector<double> sum_dy_xmu;
    Vector grad_weight;
    Vector grad_bias;
};

/// torch.nn.functional.batch_norm. Running buffers are updated in place in training.
Tensor batch_norm(const TensorView &input, const VectorView &running_mean,
                  const VectorView &running_var, const VectorView &weight = {},
                  const VectorView &bias = {}, bool training = false, double momentum = 0.1,
                  double eps = 1e-5);

/// The same, returning what backward needs; y goes to `out` when given.
ForwardResult batch_norm_forward(const TensorView &x, const VectorView &weight,
                                 const VectorView &bias, const VectorView &running_mean,
                                 const VectorView &running_var, bool training, double momentum,
                                 double eps, const std::optional<TensorView> &out = std::nullopt);

/// Gradients by `mask`; grad_input goes to `out` when given (which may be grad_output itself).
Gradients batch_norm_backward(const TensorView &grad_output, const TensorView &x,
                              const VectorView &weight, const VectorView &mean,
                              const VectorView &invstd, const VectorView &running_mean,
                              const VectorView &running_var, bool training, double eps,
                              const GradMask &mask = {},
                              const std::optional<TensorView> &out = std::nullopt);

/// relu(batch_norm(x)) in one pass over memory, and its gradients. Nothing is saved for each element:
/// `mean` and `invstd` are float64 here, and with them, x, weight and bias backward decides as forward did.
/// y may go to x itself, grad_input to grad_output.
ForwardResult batch_norm_relu_forward(const TensorView &x, const VectorView &weight,
                                      const VectorView &bias, const VectorView &running_mean,
                                      const VectorView &running_var, bool training, double momentum,
                                      double eps,
                                      const std::optional<TensorView> &out = std::nullopt);
Gradients batch_norm_relu_backward(const TensorView &grad_output, const TensorView &x,
                                   const VectorView &weight, const VectorView &bias,
                                   const VectorView &mean, const VectorView &invstd,
                                   const VectorView &running_mean, const VectorView &running_var,
                                   bool training, double eps,
                                   const std::optional<TensorView> &out = std::nullopt);

/// relu(batch_norm(x) + residual), as residual networks end a block, and its gradients. A byte an element
/// says what passed: with running statistics it is written only where `mask_out` is given.
AddReluForwardResult batch_norm_add_relu_forward(
    const TensorView &x, const TensorView &residual, const VectorView &weight,
    const VectorView &bias, const VectorView &running_mean, const VectorView &running_var,
    bool training, double momentum, double eps, const std::optional<TensorView> &out = std::nullopt,
    const std::optional<TensorView> &mask_out = std::nullopt);
AddReluGradients batch_norm_add_relu_backward(
    const TensorView &grad_output, const TensorView &x, const TensorView &mask,
    const VectorView &weight, const VectorView &mean, const VectorView &invstd,
    const VectorView &running_mean, const VectorView &running_var, bool training, double eps,
    const std::optional<TensorView> &out = std::nullopt,
    const std::optional<TensorView> &residual_out = std::nullopt);

/// Forward-mode derivative: y's tangent, of x's layout, from those of x, weight and bias (absent: 0). `mean` and
/// `invstd` are what forward saved, in training; `out` may be x_tangent itself.
Tensor batch_norm_jvp(const TensorView &x_tangent, const TensorView &x, const VectorView &weight,
                      const VectorView &weight_tangent, const VectorView &bias_tangent,
                      const VectorView &mean, const VectorView &invstd,
                      const VectorView &running_mean, const VectorView &running_var, bool training,
                      double eps, const std::optional<TensorView> &out = std::nullopt);

/// Double backward, as aten::batchnorm_double_backward: from what reached backward's results (absent: 0), the
/// gradients of backward's arguments.
DoubleGradients batch_norm_double_backward(
    const TensorView &grad_grad_input, const VectorView &grad_grad_weight,
    const VectorView &grad_grad_bias, const TensorView &grad_output, const TensorView &x,
    const VectorView &weight, const VectorView &mean, const VectorView &invstd,
    const VectorView &running_mean, const VectorView &running_var, bool training, double eps,
    const std::optional<TensorView> &grad_output_out = std::nullopt,
    const std::optional<TensorView> &input_out = std::nullopt);

/// The split four: the same operations cut in two at the statistics.
Moments batch_norm_stats(const TensorView &x);

Tensor batch_norm_normalize(const TensorView &x, const Moments &moments, const VectorView &weight,
                            const VectorView &bias, double eps);
void batch_norm_normalize(const TensorView &x, const Moments &moments, const VectorView &weight,
                          const VectorView &bias, double eps, const TensorView &out);

BackwardSums batch_norm_backward_reduce(const TensorView &grad_output, const TensorView &x,
                                        const VectorView &mean, const VectorView &invstd);

Tensor batch_norm_backward_elemt(const TensorView &grad_output, const TensorView &x,
                                 const VectorView &mean, const VectorView &invstd,
                                 const VectorView &weight, const BackwardSums &sums, double count);
void batch_norm_backward_elemt(const TensorView &grad_output, const TensorView &x,
                               const VectorView &mean, const VectorView &invstd,
                               const VectorView &weight, const BackwardSums &sums, double count,
                               const TensorView &out);

/// Updates running buffers from (merged) moments; the factor 0 leaves them untouched.
void update_running_stats(const Moments &moments, double momentum, const VectorView &running_mean,
                          const VectorView &running_var);

/// mean and invstd of `dtype` (float32, or float64 for float64 tensors), for backward.
std::tuple<Vector, Vector> mean_and_invstd(const Moments &moments, double eps, DType dtype);

}  // namespace functional
}  // namespace hbn

#endif
