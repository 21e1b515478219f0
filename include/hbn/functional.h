/// @file functional.h
/// Batch normalization as functions, after torch.nn.functional.batch_norm and the aten operations
/// behind it.
///
/// Tensors are (N, C, H, W) views, see tensor_view.h; one of another rank is refused. Inputs are views of const data:
/// a TensorView, a Tensor, a VectorView or a Vector will do. Absent vectors are {}. Gradients come first, then what they
/// are gradients at: (grad_output, x), as in PyTorch.
///
/// Errors are thrown before anything is written, and derive from hbn::Error (error.h): InvalidArgument for what the
/// caller passed, OutOfMemory, UnsupportedError, and DeviceError. hbn.h has the formulas.
#ifndef HBN_FUNCTIONAL_H
#define HBN_FUNCTIONAL_H

#include <hbn/activation.h>
#include <hbn/tensor_view.h>

#include <tuple>

namespace hbn {

/// Threads for later calls, process-wide. Results are bitwise independent of it.
/// @param num_threads  0 means one per processor
void set_num_threads(int num_threads);
/// @return how many threads later calls use
int get_num_threads();

/// Batch normalization as functions: nothing is kept between calls.
namespace functional {

/// What a forward pass returns: y, and the statistics that backward needs.
struct ForwardResult {
    Tensor y;       ///< of the input's layout; empty when `out` was given
    Vector mean;    ///< float64, of the batch; absent when running statistics were used
    Vector invstd;  ///< float64, 1 / sqrt(biased variance + eps); absent as mean
};

/// What batch_norm_activation_forward returns: y, and what backward needs.
struct ActivationForwardResult {
    Tensor y;       ///< of the input's layout; empty when `out` was given
    Tensor mask;    ///< uint8, of a ReLU after an addition with batch statistics; else empty
    Vector mean;    ///< as in ForwardResult
    Vector invstd;  ///< as in ForwardResult
};

/// Which gradients backward computes: PyTorch's output_mask.
struct GradMask {
    bool input = true;   ///< grad_input
    bool weight = true;  ///< grad_weight
    bool bias = true;    ///< grad_bias
};

/// What a backward pass returns. Vectors are of weight's dtype: without a weight float32, beside float64
/// tensors float64.
struct Gradients {
    Tensor grad_input;   ///< of x's layout; empty when `out` was given or it is not wanted
    Vector grad_weight;  ///< (C); absent when not wanted
    Vector grad_bias;    ///< (C); absent when not wanted
};

/// What batch_norm_activation_backward returns; vectors are as in Gradients.
struct ActivationGradients {
    Tensor grad_input;     ///< of x's layout; empty when `out` was given or it is not wanted
    Tensor grad_residual;  ///< empty when `residual_out` was given or nothing was added
    Vector grad_weight;    ///< (C); absent when not wanted
    Vector grad_bias;      ///< (C); absent when not wanted
};

/// What batch_norm_double_backward returns.
struct DoubleGradients {
    Tensor grad_grad_output;  ///< of grad_output; empty when `grad_output_out` was given
    Tensor grad_input;        ///< of x; empty when `input_out` was given
    Vector grad_weight;       ///< of weight; float32, beside float64 tensors float64
};

/// Per-channel count, mean and m2 (sum of squared deviations): what machines exchange.
struct Moments {
    double count = 0;          ///< of values in each channel
    std::vector<double> mean;  ///< of each channel
    std::vector<double> m2;    ///< of each channel; m2 / count is the biased variance

    /// Becomes the moments of both samples together.
    /// @param other  of as many channels
    /// @throws InvalidArgument if channels differ
    void merge(const Moments &other);
};

/// {sum of dy, sum of dy*(x - mean)} per channel, plain sums: what machines add up.
struct BackwardSums {
    std::vector<double> sum_dy;      ///< of each channel
    std::vector<double> sum_dy_xmu;  ///< of each channel
    Vector grad_weight;              ///< (C) this machine's
    Vector grad_bias;                ///< (C) this machine's
};

/// torch.nn.functional.batch_norm.
/// @param input  (N, C, H, W), float32, float64, bfloat16 or float16
/// @param running_mean, running_var  (C), both or neither; updated in place in training
/// @param weight, bias  (C), or absent for 1 and 0; float32 (float64 beside a float64 input), or the input's
///                  own dtype, as running buffers
/// @param training  false: by running statistics where there are any
/// @param momentum  the factor of the new value in running buffers
/// @param eps       added to the variance; positive with batch statistics, else non-negative
/// @return y, of the input's shape, dtype and layout
Tensor batch_norm(const ConstTensorView &input, const VectorView &running_mean,
                  const VectorView &running_var, const ConstVectorView &weight = {},
                  const ConstVectorView &bias = {}, bool training = false, double momentum = 0.1,
                  double eps = 1e-5);

/// The same, returning what backward needs.
/// @param x, weight, bias, running_mean, running_var, training, momentum, eps  as in batch_norm
/// @param out  where y goes when given: of x's shape and dtype; may be x itself
/// @return y, mean and invstd
ForwardResult batch_norm_forward(const ConstTensorView &x, const ConstVectorView &weight,
                                 const ConstVectorView &bias, const VectorView &running_mean,
                                 const VectorView &running_var, bool training, double momentum,
                                 double eps, const std::optional<TensorView> &out = std::nullopt);

/// Gradients of batch_norm_forward.
/// @param grad_output, x  of one shape and dtype
/// @param weight  as forward had it
/// @param mean, invstd  as forward returned them; needed in training, else absent
/// @param running_mean, running_var  as forward had them; needed outside training, else absent
/// @param training  whether forward used batch statistics
/// @param eps   as forward had it
/// @param grad_mask  which gradients to compute
/// @param out   where grad_input goes when given; may be grad_output itself
/// @return the gradients that grad_mask asks for
Gradients batch_norm_backward(const ConstTensorView &grad_output, const ConstTensorView &x,
                              const ConstVectorView &weight, const ConstVectorView &mean,
                              const ConstVectorView &invstd, const ConstVectorView &running_mean,
                              const ConstVectorView &running_var, bool training, double eps,
                              const GradMask &grad_mask = {},
                              const std::optional<TensorView> &out = std::nullopt);

/// Batch normalization with running statistics that are only read, and what may follow in the same pass.
/// @param x, weight, bias  as in batch_norm
/// @param running_mean, running_var  (C)
/// @param eps         added to the variance; non-negative
/// @param activation  of the normalized values, and of the residual where there is one
/// @param residual    added before the activation: of x's shape and dtype
/// @param out         where y goes when given: of x's shape and dtype; may be x itself
/// @return y, of x's layout; empty when `out` was given
Tensor batch_norm_inference(const ConstTensorView &x, const ConstVectorView &weight,
                            const ConstVectorView &bias, const ConstVectorView &running_mean,
                            const ConstVectorView &running_var, double eps,
                            const Activation &activation = {},
                            const std::optional<ConstTensorView> &residual = std::nullopt,
                            const std::optional<TensorView> &out = std::nullopt);

/// activation(batch_norm(x) + residual) in one pass over memory. Nothing is saved for each element, but for a ReLU after
/// an addition, as residual networks end a block: a byte an element says what passed.
/// @param x, weight, bias, running_mean, running_var, training, momentum, eps  as in batch_norm_forward
/// @param residual    of x's shape and dtype; without one nothing is added
/// @param activation  of the sum
/// @param out         where y goes when given; may be x itself only where no mask is written
/// @param mask_out    where the mask goes when given: uint8 of x's shape. Of a ReLU after an addition only; with running
///                    statistics a mask is written only where this is given
/// @return y, mask, mean and invstd
ActivationForwardResult batch_norm_activation_forward(
    const ConstTensorView &x, const std::optional<ConstTensorView> &residual,
    const ConstVectorView &weight, const ConstVectorView &bias, const VectorView &running_mean,
    const VectorView &running_var, bool training, double momentum, double eps,
    const Activation &activation, const std::optional<TensorView> &out = std::nullopt,
    const std::optional<TensorView> &mask_out = std::nullopt);

/// Gradients of batch_norm_activation_forward.
/// @param grad_output, x  of one shape and dtype
/// @param residual        as forward had it; not needed for a ReLU, which has a mask
/// @param mask            of a ReLU after an addition, as forward returned it; of all others absent
/// @param weight, bias    as forward had them
/// @param mean, invstd, running_mean, running_var, training, eps  as in batch_norm_backward
/// @param activation      as forward had it
/// @param grad_mask       which gradients to return; grad_residual is one wherever there was an addition
/// @param out             where grad_input goes when given; may be grad_output itself where nothing was added
/// @param residual_out    where grad_residual goes when given; must not overlap an input
/// @return the gradients that grad_mask asks for, and grad_residual
ActivationGradients batch_norm_activation_backward(
    const ConstTensorView &grad_output, const ConstTensorView &x,
    const std::optional<ConstTensorView> &residual, const std::optional<ConstTensorView> &mask,
    const ConstVectorView &weight, const ConstVectorView &bias, const ConstVectorView &mean,
    const ConstVectorView &invstd, const ConstVectorView &running_mean,
    const ConstVectorView &running_var, bool training, double eps, const Activation &activation,
    const GradMask &grad_mask = {}, const std::optional<TensorView> &out = std::nullopt,
    const std::optional<TensorView> &residual_out = std::nullopt);

/// Forward-mode derivative of batch_norm_forward.
/// @param x_tangent, x  of one shape and dtype
/// @param weight_tangent, bias_tangent  (C), or absent for 0
/// @param weight, mean, invstd, running_mean, running_var, training, eps  as in batch_norm_backward
/// @param out  where y's tangent goes when given; may be x_tangent itself
/// @return y's tangent, of x's layout; empty when `out` was given
Tensor batch_norm_jvp(const ConstTensorView &x_tangent, const ConstTensorView &x,
                      const ConstVectorView &weight, const ConstVectorView &weight_tangent,
                      const ConstVectorView &bias_tangent, const ConstVectorView &mean,
                      const ConstVectorView &invstd, const ConstVectorView &running_mean,
                      const ConstVectorView &running_var, bool training, double eps,
                      const std::optional<TensorView> &out = std::nullopt);

/// Double backward, as aten::batchnorm_double_backward: the gradients of batch_norm_backward's arguments.
/// @param grad_grad_input  of x's shape and dtype, what reached backward's grad_input
/// @param grad_grad_weight, grad_grad_bias  (C), what reached grad_weight and grad_bias; or absent for 0
/// @param grad_output, x, weight, mean, invstd, running_mean, running_var, training, eps  as in
///                         batch_norm_backward
/// @param grad_output_out  where grad_grad_output goes when given
/// @param input_out        where grad_input goes when given
/// @return all three gradients
DoubleGradients batch_norm_double_backward(
    const ConstTensorView &grad_grad_input, const ConstVectorView &grad_grad_weight,
    const ConstVectorView &grad_grad_bias, const ConstTensorView &grad_output,
    const ConstTensorView &x, const ConstVectorView &weight, const ConstVectorView &mean,
    const ConstVectorView &invstd, const ConstVectorView &running_mean,
    const ConstVectorView &running_var, bool training, double eps,
    const std::optional<TensorView> &grad_output_out = std::nullopt,
    const std::optional<TensorView> &input_out = std::nullopt);

/// First half of forward training: with batch_norm_normalize, batch_norm_backward_reduce and
/// batch_norm_backward_elemt for statistics shared across machines.
/// @param x  this machine's part of the batch
/// @return its moments, to be merged in a fixed order
Moments batch_norm_stats(const ConstTensorView &x);

/// Second half of forward training.
/// @param x, weight, bias  as in batch_norm
/// @param moments  of all machines together
/// @param eps      positive
/// @return y, of x's shape, dtype and layout
Tensor batch_norm_normalize(const ConstTensorView &x, const Moments &moments,
                            const ConstVectorView &weight, const ConstVectorView &bias, double eps);
/// The same.
/// @param x, moments, weight, bias, eps  as above
/// @param out  where y goes; may be x itself
void batch_norm_normalize(const ConstTensorView &x, const Moments &moments,
                          const ConstVectorView &weight, const ConstVectorView &bias, double eps,
                          const TensorView &out);

/// First half of backward training.
/// @param grad_output, x  this machine's part of the batch
/// @param mean, invstd    of all machines together, see mean_and_invstd
/// @return this machine's sums and gradients of weight and bias
BackwardSums batch_norm_backward_reduce(const ConstTensorView &grad_output,
                                        const ConstTensorView &x, const ConstVectorView &mean,
                                        const ConstVectorView &invstd);

/// Second half of backward training.
/// @param grad_output, x, mean, invstd  as in batch_norm_backward_reduce
/// @param weight  as forward had it
/// @param sums    sum_dy and sum_dy_xmu added up over all machines; its gradients are not read
/// @param count   of values per channel in all machines, Moments::count
/// @return grad_input, of x's layout
Tensor batch_norm_backward_elemt(const ConstTensorView &grad_output, const ConstTensorView &x,
                                 const ConstVectorView &mean, const ConstVectorView &invstd,
                                 const ConstVectorView &weight, const BackwardSums &sums,
                                 double count);
/// The same.
/// @param grad_output, x, mean, invstd, weight, sums, count  as above
/// @param out  where grad_input goes; may be grad_output itself
void batch_norm_backward_elemt(const ConstTensorView &grad_output, const ConstTensorView &x,
                               const ConstVectorView &mean, const ConstVectorView &invstd,
                               const ConstVectorView &weight, const BackwardSums &sums,
                               double count, const TensorView &out);

/// Updates running buffers from (merged) moments.
/// @param moments   of the whole batch
/// @param momentum  the factor of the new value; 0 leaves them untouched
/// @param running_mean, running_var  (C), both or neither
void update_running_stats(const Moments &moments, double momentum, const VectorView &running_mean,
                          const VectorView &running_var);

/// What backward needs of (merged) moments.
/// @param moments  of the whole batch
/// @param eps      as in batch_norm_normalize
/// @return mean and invstd, of float64
std::tuple<Vector, Vector> mean_and_invstd(const Moments &moments, double eps);

}  // namespace functional
}  // namespace hbn

#endif
