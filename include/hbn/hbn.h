/** @file hbn.h
 *  The C interface: batch normalization over plain pointers and descriptors.
 *
 *  Callable from C99. No function throws, allocates memory for the caller or keeps a pointer after
 *  it returns. Each returns a status; hbn_last_error() then holds the text. Every check runs before
 *  anything is written: a call that fails has changed nothing.
 *
 *  Semantics are those of PyTorch 2.13's BatchNorm2d (torch.nn.functional.batch_norm and
 *  aten::native_batch_norm, native_batch_norm_backward, batch_norm_stats, batch_norm_elemt,
 *  batch_norm_backward_reduce, batch_norm_backward_elemt). The statistics are merged by Chan, Golub
 *  and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
 */
#ifndef HBN_HBN_H
#define HBN_HBN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What a function returns; hbn_last_error() has the details. */
typedef enum hbn_status {
    HBN_OK = 0,               /**< done */
    HBN_INVALID_ARGUMENT = 1, /**< sizes, dtypes, strides, aliasing, absent data, eps or momentum */
    HBN_OUT_OF_MEMORY = 2,    /**< no room for what the call needs beside its arguments */
    HBN_UNSUPPORTED = 3,      /**< this library was built without the kernel or device */
    HBN_DEVICE_ERROR = 4,     /**< the device's runtime failed, maybe after writing */
    HBN_EXECUTOR_ERROR = 5 /**< parallel_for threw, or did not run each task once: after writing */
} hbn_status;

/** The type of each element. */
typedef enum hbn_dtype {
    HBN_FLOAT32 = 0,  /**< IEEE 754 binary32, C's float */
    HBN_FLOAT64 = 1,  /**< IEEE 754 binary64, C's double */
    HBN_BFLOAT16 = 2, /**< the upper half of a binary32 */
    HBN_FLOAT16 = 3,  /**< IEEE 754 binary16 */
    HBN_INT64 = 4,    /**< num_batches_tracked only */
    HBN_UINT8 = 5     /**< masks only */
} hbn_dtype;

/** Whose memory a tensor is in. */
typedef enum hbn_device {
    HBN_CPU = 0,    /**< the host's; what a library with GPU kernels is given, too */
    HBN_OPENCL = 1, /**< not supported yet: HBN_UNSUPPORTED */
    HBN_CUDA = 2    /**< not supported yet: HBN_UNSUPPORTED */
} hbn_device;

/* How the structs below stay compatible: initialize them with {0}, designators or fewer initializers than there are
 * members. Members are only ever appended, and a new member's zero means what leaving it out meant before. */

/** A tensor of shape (N, C, H, W) in memory the caller owns.
 *  Strides count elements, in the same order as sizes; zero (expanded) strides are fine for inputs,
 *  negative strides are refused. ndim is what the caller's tensor has; anything but 4 is refused
 *  with "expected 4D input (got 3D input)". */
typedef struct hbn_tensor {
    void *
        data; /**< of the element (0, 0, 0, 0), aligned to its size; only read where the tensor is an
                             input */
    hbn_dtype dtype;    /**< of each element */
    hbn_device device;  /**< where data points to */
    int32_t ndim;       /**< 4 */
    int64_t sizes[4];   /**< N, C, H, W; each may be 0 */
    int64_t strides[4]; /**< from one element to the next, in elements: C*H*W, H*W, W, 1 for NCHW */
} hbn_tensor;

/** A vector of one value per channel in memory the caller owns; stride counts elements.
 *  A NULL pointer to an hbn_vector means the value is absent (None). */
typedef struct hbn_vector {
    void *data; /**< of channel 0, aligned to its size; only read where the vector is an input */
    hbn_dtype dtype;   /**< of each value */
    int64_t size;      /**< the number of channels */
    int64_t stride;    /**< from one channel to the next, in elements: 1 for an array */
    hbn_device device; /**< where data points to; anything but HBN_CPU is refused */
} hbn_vector;

/** Statistics of `count` values in each of `channels` channels: their mean, and m2, the sum of
 *  squared deviations from that mean. mean and m2 are dense arrays of `channels` doubles the caller
 *  owns. */
typedef struct hbn_moments {
    double count;     /**< of values in each channel; 0 for an empty sample */
    double *mean;     /**< of each channel */
    double *m2;       /**< of each channel; m2 / count is the biased variance */
    int64_t channels; /**< length of both arrays */
} hbn_moments;

/** @return the text of this thread's last failed call; "" before any. Valid until its next failing call. */
const char *hbn_last_error(void);

/** @return "0.1.0" */
const char *hbn_version(void);

/** Forward pass.
 *
 *  With batch statistics (training != 0, or both running buffers absent):
 *
 *      y = (x - mean) * invstd * weight + bias,   invstd = 1 / sqrt(m2 / M + eps),   M = N*H*W
 *
 *  and, when training with running buffers present and momentum != 0,
 *
 *      running = (1 - momentum) * running + momentum * batch   (variance over M - 1).
 *
 *  Otherwise running_mean and running_var take the place of the batch's.
 *
 *  @param x             (N, C, H, W), f32, f64, bf16 or f16, any non-negative strides
 *  @param weight, bias  (C) or NULL for 1 and 0; f32 (f64 for f64 input), or the input's own dtype
 *  @param running_mean, running_var  (C), both or neither; updated in place in training; dtypes
 *                       as weight
 *  @param training      0 for inference: by the running statistics where there are any
 *  @param momentum      the factor of the new value; 0 leaves the buffers untouched bit for bit
 *  @param eps           positive with batch statistics, non-negative otherwise
 *  @param y             shape and dtype of x, any strides without overlap; may be x itself
 *                       (same data and strides), any other overlap is refused
 *  @param mean, invstd  (C) f64 beside every dtype, what backward needs; NULL when not wanted.
 *                       Written only when batch statistics are used.
 *  @return HBN_OK; HBN_INVALID_ARGUMENT, too, for one value per channel with batch statistics. An
 *          empty x is no error, and leaves the running buffers as they are */
hbn_status hbn_batch_norm_forward(const hbn_tensor *x, const hbn_vector *weight,
                                  const hbn_vector *bias, const hbn_vector *running_mean,
                                  const hbn_vector *running_var, int training, double momentum,
                                  double eps, const hbn_tensor *y, const hbn_vector *mean,
                                  const hbn_vector *invstd);

/** Backward pass; each gradient is optional (NULL when not wanted).
 *
 *      training:   grad_input = weight * invstd * (dy - sum(dy)/M - xhat * sum(dy*xhat)/M)
 *      inference:  grad_input = weight * invstd * dy, with the running statistics
 *      both:       grad_weight = sum(dy * xhat),  grad_bias = sum(dy)
 *
 *  @param grad_output, x  (N, C, H, W) of one dtype
 *  @param weight          (C) or NULL
 *  @param mean, invstd    (C) f64, as forward saved them; needed with batch statistics, else NULL
 *  @param running_mean, running_var  (C); needed in inference, else NULL
 *  @param training        non-zero when forward used batch statistics
 *  @param eps             as in forward; used in inference only
 *  @param grad_input      shape and dtype of x; may be grad_output itself, no other overlap
 *  @param grad_weight, grad_bias  (C) of a dtype weight may have; 0 for an empty x
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_backward(const hbn_tensor *grad_output, const hbn_tensor *x,
                                   const hbn_vector *weight, const hbn_vector *mean,
                                   const hbn_vector *invstd, const hbn_vector *running_mean,
                                   const hbn_vector *running_var, int training, double eps,
                                   const hbn_tensor *grad_input, const hbn_vector *grad_weight,
                                   const hbn_vector *grad_bias);

/** What follows a batch normalization, in one pass over memory with it. NaN passes through each of them, as in
 *  PyTorch. */
typedef enum hbn_activation_kind {
    HBN_IDENTITY = 0,   /**< z: for an addition without an activation */
    HBN_RELU = 1,       /**< max(z, 0) */
    HBN_LEAKY_RELU = 2, /**< z where z > 0, else alpha * z */
    HBN_CLIP = 3,       /**< min(max(z, alpha), beta), as torch.nn.Hardtanh: 0 and 6 for ReLU6 */
    HBN_SILU = 4,       /**< z / (1 + exp(-z)) */
    HBN_HARDSWISH = 5   /**< z * min(max(z + 3, 0), 6) / 6 */
} hbn_activation_kind;

/** An activation and its parameters. */
typedef struct hbn_activation {
    hbn_activation_kind kind; /**< which */
    double alpha; /**< leaky_relu: the slope; clip: the lower limit; otherwise ignored */
    double beta;  /**< clip: the upper limit, not below alpha; otherwise ignored */
} hbn_activation;

/** @param name  "identity", "relu", "leaky_relu", "clip", "silu" or "hardswish"
 *  @param kind  becomes the kind of that name
 *  @return HBN_OK, or HBN_INVALID_ARGUMENT for another name */
hbn_status hbn_activation_named(const char *name, hbn_activation_kind *kind);

/** Forward pass, then an addition (where residual is given) and an activation:
 *
 *      y = activation(z + residual),
 *
 *  z being what hbn_batch_norm_forward gives before it is rounded to x's dtype: y is rounded once.
 *
 *  @param x, weight, bias, running_mean, running_var, training, momentum, eps  as in hbn_batch_norm_forward
 *  @param residual    shape and dtype of x, any non-negative strides; NULL for no addition
 *  @param activation  must be given
 *  @param y           as there, but may be x itself only where mask is NULL
 *  @param mask        only for a ReLU after an addition: shape of x, uint8, any strides without overlap; becomes
 *                     1 where y > 0 or NaN, else 0, for backward. Required there with batch statistics, else NULL
 *                     when not wanted
 *  @param mean, invstd  as there: with them, x, weight, bias and residual backward computes z again, bit for bit
 *  @return as there */
hbn_status hbn_batch_norm_activation_forward(
    const hbn_tensor *x, const hbn_tensor *residual, const hbn_vector *weight,
    const hbn_vector *bias, const hbn_vector *running_mean, const hbn_vector *running_var,
    int training, double momentum, double eps, const hbn_activation *activation,
    const hbn_tensor *y, const hbn_tensor *mask, const hbn_vector *mean, const hbn_vector *invstd);

/** Its backward pass: as hbn_batch_norm_backward, of grad_output * activation'(z + residual), which is the
 *  residual's gradient, too. The derivative is PyTorch's where there are two: 0 at a ReLU's 0 and at a clip's
 *  limits, alpha at a leaky ReLU's 0. Where no kernel is fused with the activation, that product is rounded to x's
 *  dtype before it is summed, as it would be between two operations.
 *
 *  @param grad_output, x, running_mean, running_var, training, eps, grad_weight, grad_bias  as there
 *  @param residual    as forward had it, where there was an addition; not needed, and NULL, for a ReLU and for
 *                     HBN_IDENTITY
 *  @param mask        as forward wrote it, for a ReLU after an addition; otherwise NULL
 *  @param weight, bias  as forward had them
 *  @param mean, invstd  as forward saved them
 *  @param activation  as forward had it
 *  @param grad_input  as there, but must be given; may be grad_output itself only without an addition
 *  @param grad_residual  shape and dtype of x; given exactly where there was an addition
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_activation_backward(
    const hbn_tensor *grad_output, const hbn_tensor *x, const hbn_tensor *residual,
    const hbn_tensor *mask, const hbn_vector *weight, const hbn_vector *bias,
    const hbn_vector *mean, const hbn_vector *invstd, const hbn_vector *running_mean,
    const hbn_vector *running_var, int training, double eps, const hbn_activation *activation,
    const hbn_tensor *grad_input, const hbn_tensor *grad_residual, const hbn_vector *grad_weight,
    const hbn_vector *grad_bias);

/** Forward-mode derivative: what hbn_batch_norm_forward's y changes by when x, weight and bias change by their
 *  tangents.
 *
 *      training:   y_tangent = weight * invstd * (t - sum(t)/M - xhat * sum(t*xhat)/M) + xhat * weight_tangent
 *                            + bias_tangent,   t = x_tangent
 *      inference:  y_tangent = weight * invstd * t + xhat * weight_tangent + bias_tangent
 *
 *  @param x_tangent, x    (N, C, H, W) of one dtype
 *  @param weight          (C) or NULL
 *  @param weight_tangent, bias_tangent  (C) or NULL for 0; dtypes as weight may have
 *  @param mean, invstd    (C) as forward saved them; needed with batch statistics, else NULL
 *  @param running_mean, running_var  (C); needed in inference, else NULL
 *  @param training        non-zero when forward used batch statistics
 *  @param eps             as in forward; used in inference only
 *  @param y_tangent       shape and dtype of x; may be x_tangent itself, no other overlap
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_jvp(const hbn_tensor *x_tangent, const hbn_tensor *x,
                              const hbn_vector *weight, const hbn_vector *weight_tangent,
                              const hbn_vector *bias_tangent, const hbn_vector *mean,
                              const hbn_vector *invstd, const hbn_vector *running_mean,
                              const hbn_vector *running_var, int training, double eps,
                              const hbn_tensor *y_tangent);

/** Double backward: gradients of what hbn_batch_norm_backward computes, as aten::batchnorm_double_backward has
 *  them. grad_grad_* are the gradients that reached backward's outputs; each output is optional.
 *  All tensors are of one shape and dtype. mean and invstd count as functions of x, as in forward.
 *
 *  @param grad_grad_input  (N, C, H, W), what reached backward's grad_input
 *  @param grad_grad_weight, grad_grad_bias  (C) or NULL for 0: what reached grad_weight and grad_bias
 *  @param grad_output, x, weight, mean, invstd, running_mean, running_var, training, eps  as backward had them
 *  @param grad_grad_output  gradient of backward's grad_output; may be grad_grad_input itself where it is
 *                         the only output wanted
 *  @param grad_input      gradient of x
 *  @param grad_weight     (C), gradient of weight
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_double_backward(
    const hbn_tensor *grad_grad_input, const hbn_vector *grad_grad_weight,
    const hbn_vector *grad_grad_bias, const hbn_tensor *grad_output, const hbn_tensor *x,
    const hbn_vector *weight, const hbn_vector *mean, const hbn_vector *invstd,
    const hbn_vector *running_mean, const hbn_vector *running_var, int training, double eps,
    const hbn_tensor *grad_grad_output, const hbn_tensor *grad_input,
    const hbn_vector *grad_weight);

/** First half of forward training: writes moments->count, mean[] and m2[] of x.
 *  An empty x gives count 0, mean 0, m2 0.
 *
 *  @param x        as in hbn_batch_norm_forward
 *  @param moments  its channels must be C, its arrays have room for them
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_stats(const hbn_tensor *x, hbn_moments *moments);

/** into = the moments of the union of both samples, for statistics shared across machines. Merge in
 *  a fixed order and the result is the same bit for bit.
 *
 *  @param into, other  of as many channels; either count may be 0. Their arrays must not overlap
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_merge_moments(hbn_moments *into, const hbn_moments *other);

/** What a forward pass derives from moments besides y: mean and invstd (C) for backward, and the
 *  update of the running buffers.
 *
 *  @param moments        of the whole batch; a count of 0 gives mean 0 and invstd 0, and updates nothing
 *  @param momentum, eps  as in hbn_batch_norm_forward; eps is positive
 *  @param running_mean, running_var  as there; both or neither
 *  @param save_mean, invstd  (C) f64; each NULL when not wanted
 *  @return HBN_OK; HBN_INVALID_ARGUMENT, too, where a count of 1 would update running_var */
hbn_status hbn_finalize_moments(const hbn_moments *moments, double momentum, double eps,
                                const hbn_vector *running_mean, const hbn_vector *running_var,
                                const hbn_vector *save_mean, const hbn_vector *invstd);

/** Second half of forward training: y = (x - mean) * invstd * weight + bias with the given moments.
 *
 *  @param x, weight, bias, y  as in hbn_batch_norm_forward
 *  @param moments  of any number of machines together, count > 0
 *  @param eps      positive
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_normalize(const hbn_tensor *x, const hbn_moments *moments,
                                    const hbn_vector *weight, const hbn_vector *bias, double eps,
                                    const hbn_tensor *y);

/** First half of backward training: sum_dy[c] = sum dy, sum_dy_xmu[c] = sum dy*(x - mean): plain
 *  sums, so machines add theirs.
 *
 *  @param grad_output, x  (N, C, H, W) of one dtype: this machine's part of the batch
 *  @param mean, invstd    (C) f64, of the whole batch, from hbn_finalize_moments
 *  @param sum_dy, sum_dy_xmu  dense arrays of C doubles
 *  @param grad_weight, grad_bias  (C) this machine's, of a dtype weight may have; NULL when not wanted
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_backward_reduce(const hbn_tensor *grad_output, const hbn_tensor *x,
                                          const hbn_vector *mean, const hbn_vector *invstd,
                                          double *sum_dy, double *sum_dy_xmu,
                                          const hbn_vector *grad_weight,
                                          const hbn_vector *grad_bias);

/** Second half of backward training: grad_input as in hbn_batch_norm_backward, from sums over all machines.
 *
 *  @param grad_output, x, mean, invstd  as in hbn_batch_norm_backward_reduce
 *  @param weight      (C) or NULL
 *  @param sum_dy, sum_dy_xmu  C doubles, the sums over all machines
 *  @param total_count  positive, the number of values per channel that the sums cover
 *  @param grad_input  shape and dtype of x; may be grad_output itself, no other overlap
 *  @return HBN_OK, or what is wrong */
hbn_status hbn_batch_norm_backward_elemt(const hbn_tensor *grad_output, const hbn_tensor *x,
                                         const hbn_vector *mean, const hbn_vector *invstd,
                                         const hbn_vector *weight, const double *sum_dy,
                                         const double *sum_dy_xmu, double total_count,
                                         const hbn_tensor *grad_input);

/** Runs task(task_context, i) for every i in [0, size), each once, in any order, on any threads, and returns
 *  when all are done. context is the pointer given with it. One that throws an exception, or does not run
 *  every task once, makes the call fail with HBN_EXECUTOR_ERROR. */
typedef void (*hbn_parallel_for)(void *context, int size, void (*task)(void *task_context, int i),
                                 void *task_context);

/** Gives memory for a context. context is the pointer given with it. Called by any thread that uses hbn.
 *
 *  @param context    see above
 *  @param size       bytes
 *  @param alignment  of the address, a power of two
 *  @return the memory, or NULL where there is none */
typedef void *(*hbn_allocate)(void *context, size_t size, size_t alignment);

/** Takes back what an hbn_allocate of the same context gave.
 *
 *  @param context          as given with it
 *  @param data             from hbn_allocate, never NULL
 *  @param size, alignment  as they were given to hbn_allocate */
typedef void (*hbn_deallocate)(void *context, void *data, size_t size, size_t alignment);

/** What hbn_context_create() makes a context of. Initialize it with {0}: zero is each member's default. Later
 *  versions append members, whose zero means what this version does. */
typedef struct hbn_context_options {
    int num_threads; /**< how many run a call's tasks; 0: HBN_NUM_THREADS (environment), else
                                        one per processor */
    hbn_parallel_for
        parallel_for; /**< the caller's thread pool, of which num_threads may run tasks at once
                                        (more wait); NULL: threads of the context's own */
    void *parallel_for_context; /**< passed on to each call of parallel_for */
    hbn_allocate allocate;      /**< where scratch memory comes from; NULL: malloc */
    hbn_deallocate deallocate;  /**< where it goes; NULL with allocate, only */
    void *allocator_context;    /**< passed on to allocate and deallocate */
    const char *
        instruction_set; /**< one of hbn_instruction_sets(); NULL: the best this processor has, or the
                                        one that HBN_INSTRUCTION_SET (environment) names */
    hbn_device device;   /**< where kernels run; HBN_UNSUPPORTED for any but HBN_CPU yet */
    int device_ordinal; /**< which device of that kind; 0 */
    void *stream;       /**< the device's queue that work is put in; NULL */
} hbn_context_options;

/** What is not data: threads, memory, instruction set, device. Several contexts work at once, each with threads and
 *  memory of its own; several threads may use one context at once, and share its threads. Results do not depend on
 *  the context. Calls use the default one unless hbn_use_context() says otherwise.
 *
 *  A call allocates only before it writes anything; if that fails, it returns HBN_OUT_OF_MEMORY and has changed
 *  nothing. Memory is kept for later calls, which allocate nothing unless they need more. */
typedef struct hbn_context hbn_context;

/** @param options  NULL for all defaults; not needed afterwards, but for what its pointers point to
 *  @param context  receives the context, to be given to hbn_context_destroy()
 *  @return HBN_OK; HBN_INVALID_ARGUMENT for a negative number of threads, allocate without deallocate, an unknown
 *          instruction set, or environment variables that make no sense where they are asked; HBN_UNSUPPORTED for
 *          a device or instruction set that isn't there; HBN_OUT_OF_MEMORY */
hbn_status hbn_context_create(const hbn_context_options *options, hbn_context **context);

/** Ends the context's threads and frees its memory.
 *
 *  @param context  in use by no call, and by no thread but this one as its current context; NULL does nothing */
void hbn_context_destroy(hbn_context *context);

/** Frees the memory that a context keeps for later calls; that of calls in progress stays.
 *
 *  @param context  NULL for the default one */
void hbn_context_release_scratch(hbn_context *context);

/** Makes a context this thread's current one, which later calls on this thread use.
 *
 *  @param context  NULL for the default one; must outlive its use
 *  @return the one before, NULL for the default one */
hbn_context *hbn_use_context(hbn_context *context);

/** Threads that the default context uses in later calls. Results do not depend on it.
 *
 *  @param num_threads  0: HBN_NUM_THREADS (environment), else one per processor
 *  @return HBN_OK, or HBN_INVALID_ARGUMENT for a negative number, or for 0 where HBN_NUM_THREADS
 *          makes no sense */
hbn_status hbn_set_num_threads(int num_threads);

/** @return how many threads the default context uses in later calls */
int hbn_get_num_threads(void);

/** Puts the caller's thread pool (or a serial loop) in place of the default context's threads; NULL brings those
 *  back. At most hbn_get_num_threads() tasks run at once. Not to be called while another thread is inside hbn.
 *
 *  @param parallel_for  see hbn_parallel_for
 *  @param context       passed on to each call; the caller's, and kept until replaced */
void hbn_set_parallel_for(hbn_parallel_for parallel_for, void *context);

/** @return the instruction sets kernels exist for in this library, best first, comma-separated:
 *          "avx512,avx2,sse41" */
const char *hbn_instruction_sets(void);

/** @return the instruction set that the default context uses: the best this processor has, or the lower one that
 *          the environment variable HBN_INSTRUCTION_SET names. "" where that names none that is there: then every
 *          call fails, until hbn_set_instruction_set() chooses one */
const char *hbn_instruction_set(void);

/** Chooses the default context's instruction set for later calls.
 *
 *  @param name  one of hbn_instruction_sets()
 *  @return HBN_OK; HBN_INVALID_ARGUMENT for another name, HBN_UNSUPPORTED for a set this processor
 *          does not have */
hbn_status hbn_set_instruction_set(const char *name);

#ifdef __cplusplus
}
#endif

#endif
