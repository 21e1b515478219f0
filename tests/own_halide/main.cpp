// A program with a Halide kernel, and functions of Halide's runtime, of its own links hbn: each keeps its own.
#include "twice_reversed.h"

#include <HalideBuffer.h>
#include <HalideRuntime.h>
#include <hbn/functional.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <vector>

static int errors = 0;
static std::atomic<int> allocations{0}, loops{0};

extern "C" {

void halide_error(void *, const char *) {
    errors++;
}

void *halide_malloc(void *, size_t bytes) {
    allocations++;
    return std::aligned_alloc(128, (bytes + 127) / 128 * 128);
}

void halide_free(void *, void *data) {
    std::free(data);
}

int halide_do_par_for(void *context, halide_task_t task, int min, int size, uint8_t *closure) {
    loops++;
    for (int i = 0; i < size; i++) {
        task(context, min + i, closure);
    }
    return 0;
}

}  // extern "C"

static int failures = 0;

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            std::fprintf(stderr, "line %d: %s is false\n", __LINE__, #condition); \
            failures++;                                                           \
        }                                                                         \
    } while (0)

static void run_own() {
    const int allocations_before = allocations, loops_before = loops, errors_before = errors;
    Halide::Runtime::Buffer<int32_t, 1> input(1000), output(1000), small(10);
    for (int i = 0; i < 1000; i++) {
        input(i) = i;
    }
    CHECK(twice_reversed(input, output) == 0);
    CHECK(output(0) == 2 * 999 && output(999) == 0);
    CHECK(allocations > allocations_before);
    CHECK(loops > loops_before);
    CHECK(errors == errors_before);
    // It reads beyond a small input, which its own error handler is told.
    CHECK(twice_reversed(small, output) != 0);
    CHECK(errors == errors_before + 1);
}

static void run_hbn() {
    const int allocations_before = allocations, loops_before = loops, errors_before = errors;
    // Rows of many channels, of which kernels keep sums in scratch memory, and in parallel.
    std::vector<float> values(8 * 256 * 16 * 16);
    for (size_t i = 0; i < values.size(); i++) {
        values[i] = float(i % 2);
    }
    const hbn::Shape sizes{8, 256, 16, 16};
    const hbn::TensorView x(values.data(), hbn::DType::float32, sizes,
                            hbn::dense_strides(sizes, hbn::MemoryFormat::channels_last));
    const auto moments = hbn::functional::batch_norm_stats(x);
    CHECK(moments.mean[0] == 0 && moments.mean[255] == 1 && moments.m2[255] == 0);
    CHECK(allocations == allocations_before && loops == loops_before && errors == errors_before);
}

int main() {
    run_own();
    run_hbn();
    run_own();
    return failures != 0;
}
