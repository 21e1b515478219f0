// What a library says whose kernels are not what runtime/operations.def has, or fail. Its kernels are the functions below.
#include "every_operation.h"

#include <HalideRuntime.h>

#include <gtest/gtest.h>

namespace {

using Arguments = std::vector<halide_filter_argument_t>;

int failing_code = 0;
const char *halide_text = nullptr;

int fail_as_told(void **) {
    if (halide_text) {
        halide_error(nullptr, halide_text);
    }
    return failing_code;
}

halide_filter_argument_t tensor(const char *name, halide_type_t type) {
    return {name,   halide_argument_kind_input_buffer, 4, type, nullptr, nullptr, nullptr, nullptr,
            nullptr};
}

halide_filter_argument_t output(const char *name) {
    halide_filter_argument_t argument = tensor(name, halide_type_t(halide_type_float, 64));
    argument.kind = halide_argument_kind_output_buffer;
    argument.dimensions = 1;
    return argument;
}

halide_filter_argument_t number(const char *name) {
    halide_filter_argument_t argument = tensor(name, halide_type_t(halide_type_float, 64));
    argument.kind = halide_argument_kind_input_scalar;
    argument.dimensions = 0;
    return argument;
}

const halide_type_t float32(halide_type_float, 32), float64(halide_type_float, 64),
    bfloat16(halide_type_bfloat, 16), float16(halide_type_float, 16);

Arguments too_many() {
    Arguments all(30, number("eps"));
    all.push_back(tensor("x", bfloat16));
    all.push_back(output("mean"));
    all.push_back(output("m2"));
    return all;
}

}  // namespace

#define FAKE_KERNEL(name, ...)                                                            \
    extern "C" int hbn_##name##_argv(void **arguments) {                                  \
        return fail_as_told(arguments);                                                   \
    }                                                                                     \
    extern "C" const halide_filter_metadata_t *hbn_##name##_metadata() {                  \
        static const Arguments arguments __VA_ARGS__;                                     \
        static const halide_filter_metadata_t metadata{halide_filter_metadata_t::VERSION, \
                                                       int32_t(arguments.size()),         \
                                                       arguments.data(), "fake", #name};  \
        return &metadata;                                                                 \
    }

FAKE_KERNEL(stats_float32_strided, {tensor("x", float32), output("mean"), output("median")})
FAKE_KERNEL(stats_float64_nchw, {tensor("x", float64), output("mean"), output("m2")})
FAKE_KERNEL(stats_float64_strided, {tensor("x", float64), output("m2"), output("mean")})
FAKE_KERNEL(stats_bfloat16_strided, = too_many())
FAKE_KERNEL(stats_float16_strided,
            {tensor("x", float16), tensor("grad_output", float16), output("mean"), output("m2")})
FAKE_KERNEL(normalize_float32_strided,
            {tensor("x", float32), number("weight"), tensor("y", float32)})
FAKE_KERNEL(normalize_float64_strided,
            {tensor("x", float64), number("activation"), tensor("y", float64)})
FAKE_KERNEL(backward_reduce_float32_strided, {tensor("x", float32), output("sum_dy")})
FAKE_KERNEL(backward_reduce_float64_strided, {tensor("x", float64), output("sum_dy")})
FAKE_KERNEL(backward_reduce_bfloat16_strided, {tensor("x", bfloat16), output("sum_dy")})
FAKE_KERNEL(backward_reduce_float16_nchw, {tensor("x", float16), output("sum_dy")})

namespace hbn::test {
namespace {

// That the operation fails so, twice alike, and has written nothing.
void expect_failure(const char *name, hbn_dtype dtype, hbn_status status, const std::string &text) {
    const int64_t sizes[4] = {2, 3, 4, 5}, strides[4] = {60, 20, 5, 1};
    EveryOperation all(dtype, sizes, strides, dtype);
    const std::vector<uint64_t> before = all.bits();
    int calls = 0;
    for (const Operation &operation : all.operations) {
        for (int i = 0; i < 2 && operation.name == name; i++) {
            EXPECT_EQ(operation.call(), status) << hbn_last_error();
            EXPECT_EQ(hbn_last_error(), text);
            EXPECT_EQ(all.bits(), before);
            calls++;
        }
    }
    EXPECT_EQ(calls, 2) << name;
}

TEST(Arguments, that_no_row_names_are_named) {
    expect_failure("stats", HBN_FLOAT32, HBN_UNSUPPORTED,
                   "stats_float32_strided takes 'median', which runtime/operations.def does not "
                   "name as what it is");
}

TEST(Arguments, of_another_kind_are_named) {
    expect_failure("normalize", HBN_FLOAT32, HBN_UNSUPPORTED,
                   "normalize_float32_strided takes 'weight', which runtime/operations.def does "
                   "not name as what it is");
    expect_failure("normalize", HBN_FLOAT64, HBN_UNSUPPORTED,
                   "normalize_float64_strided takes 'activation', which runtime/operations.def "
                   "does not name as what it is");
}

TEST(Arguments, that_differ_by_layout_are_refused) {
    expect_failure("stats", HBN_FLOAT64, HBN_UNSUPPORTED,
                   "stats_float64_strided takes other arguments than the same kernel for another "
                   "layout");
}

TEST(Arguments, that_calls_have_no_room_for_are_refused) {
    expect_failure("stats", HBN_BFLOAT16, HBN_UNSUPPORTED,
                   "stats_bfloat16_strided takes more arguments than a call has room for");
}

TEST(Arguments, that_the_operation_does_not_give_are_named) {
    expect_failure("stats", HBN_FLOAT16, HBN_UNSUPPORTED,
                   "stats takes 'grad_output', which stats does not give it");
}

TEST(Kernels, that_are_not_there_are_named) {
    expect_failure("backward_elemt", HBN_FLOAT32, HBN_UNSUPPORTED,
                   "this library was built without backward_elemt for float32");
    // Where there is none for any strides.
    expect_failure("backward_reduce", HBN_FLOAT16, HBN_UNSUPPORTED,
                   "this library was built without backward_reduce for float16");
}

TEST(Kernels, that_fail_say_how) {
    failing_code = halide_error_code_device_run_failed;
    expect_failure("backward_reduce", HBN_FLOAT32, HBN_DEVICE_ERROR,
                   "backward_reduce failed with code " + std::to_string(failing_code));
    failing_code = halide_error_code_out_of_memory;
    expect_failure("backward_reduce", HBN_FLOAT64, HBN_OUT_OF_MEMORY,
                   "backward_reduce failed with code " + std::to_string(failing_code));
    // Kernels without assertions complain and return 0.
    failing_code = 0;
    halide_text = "the device is lost";
    expect_failure("backward_reduce", HBN_BFLOAT16, HBN_DEVICE_ERROR,
                   "backward_reduce failed with code 0: the device is lost");
    const std::string long_text(1000, 'x');
    halide_text = long_text.c_str();
    expect_failure("backward_reduce", HBN_BFLOAT16, HBN_DEVICE_ERROR,
                   "backward_reduce failed with code 0: " + long_text.substr(0, 255));
    halide_text = nullptr;
}

}  // namespace
}  // namespace hbn::test
