// hbn-info: what this build of the library holds, and what of it this machine uses.
#include <hbn/hbn.h>

#include <cstdio>

int main() {
    std::printf("hbn %s\n", hbn_version());
    std::printf("instruction sets: %s (in use: %s)\n", hbn_instruction_sets(),
                hbn_instruction_set());
    std::printf("threads: %d\n", hbn_get_num_threads());
    std::printf("kernels:\n");
#define HBN_BUILT_KERNEL(kernel, dtype, layout) \
    std::printf("  %-30s %-10s %s\n", #kernel, #dtype, #layout);
#define HBN_BUILT_VECTOR_KERNEL(kernel, dtype) std::printf("  %-30s %s\n", #kernel, #dtype);
#define HBN_BUILT_CONVERSION(from, to) std::printf("  %-30s %s to %s\n", "convert", #from, #to);
#include <hbn_kernels.h>
    return 0;
}
