// The table of operations and the kernels that it names: every argument of every kernel that was built has a name, and
// every operation says what it takes.
#include "runtime/engine/kernels.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace hbn::internal {
namespace {

TEST(Kernels, take_arguments_that_operations_def_names) {
    int signatures = 0;
    for (int k = 0; k < kKernels; k++) {
        for (int dtype = 0; dtype < kDTypes; dtype++) {
            const Kernel kernel = Kernel(k);
            if (kernel == Kernel::convert || !has_kernel(kernel, hbn_dtype(dtype))) {
                continue;
            }
            const Signature *signature = nullptr;
            ASSERT_EQ(signature_of(kernel, hbn_dtype(dtype), &signature), HBN_OK)
                << hbn_last_error();
            EXPECT_GT(signature->size, 2) << row(kernel).name;
            std::set<Arg> seen;
            bool writes = false;
            for (const Signature::Argument &argument : *signature) {
                writes = writes || argument.is_output;
                EXPECT_TRUE(seen.insert(argument.arg).second)
                    << row(kernel).name << " takes " << row(argument.arg).name << " twice";
            }
            EXPECT_TRUE(writes) << row(kernel).name;
            signatures++;
        }
    }
    EXPECT_GT(signatures, 0);
}

TEST(Kernels, are_not_found_for_dtypes_outside_the_table) {
    for (const int dtype : {-1, int(HBN_INT64), int(HBN_UINT8), 77}) {
        EXPECT_FALSE(has_kernel(Kernel::stats, hbn_dtype(dtype)));
        EXPECT_FALSE(has_conversion(hbn_dtype(dtype), HBN_FLOAT32));
        EXPECT_FALSE(has_conversion(HBN_FLOAT32, hbn_dtype(dtype)));
        const Signature *signature = nullptr;
        EXPECT_EQ(signature_of(Kernel::stats, hbn_dtype(dtype), &signature), HBN_UNSUPPORTED);
    }
    EXPECT_FALSE(has_kernel(Kernel::none, HBN_FLOAT32));
}

TEST(Operations, name_their_arguments_once) {
    for (const OperationRow &operation : kOperationTable.rows) {
        ASSERT_GT(operation.size, 0) << operation.name;
        std::set<Arg> seen;
        for (const Use &use : operation) {
            EXPECT_TRUE(seen.insert(use.arg).second) << operation.name << " " << row(use.arg).name;
            if (use.in_place_of != Arg::none) {
                EXPECT_TRUE(operation.use_of[int(use.in_place_of)])
                    << operation.name << ": " << row(use.arg).name << " in place of "
                    << row(use.in_place_of).name << ", which it does not take";
            }
        }
    }
}

TEST(Activations, have_the_names_that_c_gives_them) {
    for (const ActivationRow &activation : kActivationRows) {
        hbn_activation_kind kind;
        EXPECT_EQ(hbn_activation_named(activation.name, &kind), HBN_OK) << activation.name;
        EXPECT_STREQ(row(Activation(kind)).name, activation.name);
    }
    hbn_activation_kind kind;
    EXPECT_EQ(hbn_activation_named("gelu", &kind), HBN_INVALID_ARGUMENT);
    EXPECT_EQ(hbn_activation_named(nullptr, &kind), HBN_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace hbn::internal
