// Runs the tests with the instruction set that HBN_INSTRUCTION_SET names. Where this processor does not have
// it, says so and ends with ctest's SKIP_RETURN_CODE, so that the summary shows what did not run.
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
    return RUN_ALL_TESTS();
}
