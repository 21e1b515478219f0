// Every error text, in one place, and how a check reports one.
#ifndef HBN_RUNTIME_CHECKS_TEXTS_H
#define HBN_RUNTIME_CHECKS_TEXTS_H

#include <hbn/hbn.h>

// Hands a failure to the caller; everything in runtime/ that can fail returns hbn_status.
#define HBN_TRY(expression)                             \
    do {                                                \
        const hbn_status hbn_try_status = (expression); \
        if (hbn_try_status != HBN_OK)                   \
            return hbn_try_status;                      \
    } while (0)

namespace hbn::internal {

// PyTorch's wording where it has one.
namespace text {
constexpr char required[] = "%s is required";
constexpr char rank[] = "expected 4D input (got %dD input)";
constexpr char float_dtype[] = "%s must be float32, float64, bfloat16 or float16, got %s";
constexpr char mask_dtype[] = "%s must be uint8, got %s";
constexpr char unknown_device[] = "%s has an unknown device (%d)";
constexpr char negative_size[] = "%s has a negative size: [%lld, %lld, %lld, %lld]";
constexpr char negative_strides[] = "negative strides are not supported (%s)";
constexpr char size_overflow[] = "%s is too large: its size overflows 64 bits";
constexpr char no_data[] = "%s has no data";
constexpr char beyond_memory[] = "%s is too large: its last element is beyond the end of memory";
constexpr char misaligned[] =
    "%s is not aligned: %s data must be at an address that is a multiple of %d";
constexpr char devices_differ[] =
    "Expected all tensors to be on the same device, but found at least two devices, %s and %s!";
constexpr char device_unsupported[] = "hbn was built without support for device '%s'";
constexpr char device_memory[] = "tensors in the memory of device '%s' are not supported yet";
constexpr char shapes_differ[] =
    "%s should have the shape of %s, [%lld, %lld, %lld, %lld], not [%lld, %lld, %lld, %lld]";
constexpr char dtypes_differ[] = "%s should have the dtype of %s, %s, not %s";
constexpr char one_value[] =
    "Expected more than 1 value per channel when training, got input size [%lld, %lld, %lld, %lld]";
constexpr char one_count[] =
    "Expected more than 1 value per channel when training, got a count of %g";
constexpr char vector_size[] = "%s should contain %lld elements not %lld";
constexpr char vector_dtype[] = "mixed dtype: expected %s to be %s, got %s";
constexpr char vector_dtype_or[] = "mixed dtype: expected %s to be %s or %s, got %s";
constexpr char both_or_neither[] = "%s and %s must either both be None or neither be None";
constexpr char needed_in_training[] = "%s must be defined in training mode";
constexpr char needed_in_evaluation[] = "%s must be defined in evaluation mode";
constexpr char eps_positive[] = "batch_norm eps must be positive during training, but got %s";
constexpr char eps_non_negative[] = "batch_norm eps must be non-negative, but got %s";
constexpr char momentum_nan[] = "batch_norm momentum must not be nan";
constexpr char count_positive[] = "count must be positive and finite, got %g";
constexpr char count_non_negative[] = "count must be non-negative and finite, got %g";
constexpr char negative_channels[] = "%s has a negative number of channels: %lld";
constexpr char channels_differ[] = "moments should have %lld channels not %lld";
constexpr char self_overlap[] =
    "unsupported operation: more than one element of the written-to tensor (%s) refers to a single "
    "memory location";
constexpr char overlap[] =
    "unsupported operation: some elements of the input tensor (%s) and the written-to tensor (%s) "
    "refer to a single memory location";
constexpr char outputs_overlap[] =
    "unsupported operation: some elements of the written-to tensors %s and %s refer to a single "
    "memory location";
constexpr char no_kernel[] = "this library was built without %s for %s";
constexpr char unknown_kernel_argument[] =
    "%s takes '%s', which runtime/operations.def does not name as what it is";
constexpr char kernel_arguments_differ[] =
    "%s takes other arguments than the same kernel for another layout";
constexpr char too_many_kernel_arguments[] = "%s takes more arguments than a call has room for";
constexpr char in_pieces[] =
    "such tensors are cut into pieces of fewer than 2^31 elements: ask for the shape of one";
constexpr char unknown_threshold[] = "unknown threshold '%s': expected one of%s";
constexpr char threshold_number[] = "threshold %s: expected a number from %lld to %lld, got '%s'";
constexpr char threshold_range[] = "threshold %s: expected %lld to %lld, got %lld";
constexpr char missing_kernel_argument[] = "%s takes '%s', which %s does not give it";
constexpr char unknown_activation[] = "unknown activation (%d)";
constexpr char unknown_activation_name[] = "unknown activation '%s'";
constexpr char slope_finite[] = "leaky_relu's slope must be finite";
constexpr char clip_order[] = "clip's low must not be above its high";
constexpr char mask_without_relu[] = "mask is only for a ReLU after an addition";
constexpr char kernel_failed[] = "%s failed with code %d%s%s";
constexpr char out_of_memory[] = "out of memory: no room for the workspace of %lld channels";
constexpr char negative_dimension[] = "Trying to create tensor with negative dimension %lld: [%s]";
constexpr char no_forward[] = "backward() needs a forward() before it";
constexpr char num_threads[] = "number of threads must not be negative, got %d";
constexpr char unknown_instruction_set[] =
    "%sunknown instruction set '%s': this library has kernels for %s";
constexpr char unsupported_instruction_set[] = "%sthis processor does not have '%s'";
constexpr char num_threads_variable[] =
    "environment variable HBN_NUM_THREADS: expected a number of threads, got '%s'";
constexpr char no_ordinal_or_stream[] = "hbn does not support device ordinals and streams yet";
constexpr char no_memory_for_context[] = "out of memory: no room for a context";
constexpr char executor_threw[] = "parallel_for threw an exception: %s";
constexpr char executor_tasks[] =
    "parallel_for ran %llu tasks, or some twice, instead of each of %d";
}  // namespace text

// Keeps the formatted text for hbn_last_error() and returns status.
hbn_status fail(hbn_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Python's spelling of a float, as PyTorch's texts have it. Returns buffer.
const char *spell(double value, char (&buffer)[32]);

}  // namespace hbn::internal

#endif
