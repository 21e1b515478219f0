// In an environment that makes no sense every operation is refused and writes nothing, whatever its tensors, empty ones
// included: environment_operations_test TEXT. TEXT begins the error.
#include "every_operation.h"

#include <cstdio>

namespace {

using hbn::test::EveryOperation;
using hbn::test::Operation;

// How many operations were not refused as they should be.
int count_failures(const int64_t (&sizes)[4], const std::string &text) {
    const int64_t strides[4] = {60, 20, 5, 1};
    EveryOperation all(HBN_FLOAT32, sizes, strides, HBN_FLOAT32);
    const std::vector<uint64_t> before = all.bits();
    int failures = 0;
    for (const Operation &operation : all.operations) {
        const hbn_status status = operation.call();
        const std::string error = hbn_last_error();
        if (status != HBN_INVALID_ARGUMENT || error.compare(0, text.size(), text) != 0 ||
            all.bits() != before) {
            std::fprintf(stderr, "%s of %dx%dx%dx%d: status %d, %s\n", operation.name.c_str(),
                         int(sizes[0]), int(sizes[1]), int(sizes[2]), int(sizes[3]), int(status),
                         status == HBN_OK ? "nothing was wrong" : error.c_str());
            failures++;
        }
    }
    return failures;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        return 2;
    }
    const int64_t shapes[][4] = {
        {2, 3, 4, 5}, {0, 3, 4, 5}, {2, 0, 4, 5}, {2, 3, 0, 5}, {2, 3, 4, 0}};
    int failures = 0;
    for (const auto &sizes : shapes) {
        failures += count_failures(sizes, argv[1]);
    }
    return failures != 0;
}
