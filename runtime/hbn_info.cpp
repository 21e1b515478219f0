// hbn-info: what this build of the library holds, and what of it this machine uses.
#include <hbn/hbn.h>

#include <cstdio>

int main() {
    std::printf("hbn %s\n", hbn_version());
    std::printf("instruction sets: %s (in use: %s)\n", hbn_instruction_sets(),
                hbn_instruction_set());
    std::printf("threads: %d\n", hbn_get_num_threads());
    std::printf("kernels:\n");
#define HBN_TENSOR_KERNEL(operation, dtype, layout) \
    std::printf("  %-26s %-10s %s\n", #operation, #dtype, #layout);
#define HBN_CHANNEL_KERNEL(operation, dtype) std::printf("  %-26s %s\n", #operation, #dtype);
#include <hbn_kernels.h>
    return 0;
}
