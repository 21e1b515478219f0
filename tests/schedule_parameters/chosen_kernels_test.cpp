// Has kernels that were compiled with other parameters than the defaults (CMakeLists.txt) take the place of the library's,
// for all tests that this program is linked with.
#include "runtime/engine/tuning.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>

namespace hbn::test {
namespace {

using internal::Kernel;
using internal::Layout;
using internal::Tuning;

std::map<std::string, int> calls;

}  // namespace
}  // namespace hbn::test

#define HBN_CHOSEN_KERNEL(kernel, dtype, layout)                             \
    extern "C" int hbn_##kernel##_##dtype##_##layout##_chosen_argv(void **); \
    extern "C" const halide_filter_metadata_t                                \
        *hbn_##kernel##_##dtype##_##layout##_chosen_metadata();              \
    static int call_##kernel##_##dtype##_##layout(void **arguments) {        \
        hbn::test::calls[#kernel " " #dtype " " #layout]++;                  \
        return hbn_##kernel##_##dtype##_##layout##_chosen_argv(arguments);   \
    }
#include "chosen_kernels.h"
#undef HBN_CHOSEN_KERNEL

namespace hbn::test {
namespace {

class ChosenKernels : public ::testing::Environment {
public:
    void SetUp() override {
        std::map<std::pair<Kernel, hbn_dtype>, Tuning> tunings;
        const hbn_dtype float32 = HBN_FLOAT32, bfloat16 = HBN_BFLOAT16;
#define HBN_CHOSEN_KERNEL(kernel, dtype, layout)                      \
    calls[#kernel " " #dtype " " #layout] = 0;                        \
    tunings[{Kernel::kernel, dtype}].kernels[int(Layout::layout)] = { \
        call_##kernel##_##dtype##_##layout, hbn_##kernel##_##dtype##_##layout##_chosen_metadata};
#include "chosen_kernels.h"
        for (const auto &[of, tuning] : tunings) {
            ASSERT_EQ(internal::set_tuning(of.first, of.second, tuning), HBN_OK)
                << hbn_last_error();
        }
    }
    void TearDown() override {
        internal::clear_tunings();
        for (const auto &[name, count] : calls) {
            EXPECT_GT(count, 0) << "no test called " << name;
        }
    }
};

const ::testing::Environment *const chosen_kernels =
    ::testing::AddGlobalTestEnvironment(new ChosenKernels);

}  // namespace
}  // namespace hbn::test
