// Runs the tests with the instruction set that HBN_INSTRUCTION_SET names. Where this processor does not have
// it, says so and ends with ctest's SKIP_RETURN_CODE, so that the summary shows what did not run.
#include "runtime/halide/scratch.h"

#include <hbn/hbn.h>

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char **argv) {
    ::testing::InitGoogleTest(&argc, argv);
    const char *wanted = std::getenv("HBN_INSTRUCTION_SET");
    if (wanted && hbn_set_instruction_set(wanted) != HBN_OK) {
        std::printf("skipped: %s\n", hbn_last_error());
        return 77;
    }
    const int failed = RUN_ALL_TESTS();
    // Whatever the tests were, on every target. Kernels for devices ask for more, and get it.
    if (hbn::internal::scratch_overflows() > 0 && !HBN_TEST_DEVICE) {
        std::printf("kernels asked for more scratch memory than scratch_bytes() says\n");
        return 1;
    }
    return failed;
}
