// Runs the tests with the instruction set that HBN_INSTRUCTION_SET names, and skips them where this processor
// does not have it.
#include <hbn/hbn.h>

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace {

class InstructionSet : public ::testing::Environment {
public:
    void SetUp() override {
        const char *wanted = std::getenv("HBN_INSTRUCTION_SET");
        if (!wanted) {
            return;
        }
        if (hbn_set_instruction_set(wanted) != HBN_OK) {
            GTEST_SKIP() << hbn_last_error();
        }
        ASSERT_STREQ(hbn_instruction_set(), wanted);
    }
};

}  // namespace

int main(int argc, char **argv) {
    ::testing::InitGoogleTest(&argc, argv);
    ::testing::AddGlobalTestEnvironment(new InstructionSet);
    return RUN_ALL_TESTS();
}
