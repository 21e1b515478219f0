// In the place of what cmake/HbnKernels.cmake generates: the kernels of fake_kernels_test.cpp.
#ifndef HBN_BUILT_KERNEL
#define HBN_BUILT_KERNEL(kernel, dtype, layout)
#endif
HBN_BUILT_KERNEL(stats, float32, strided)
HBN_BUILT_KERNEL(stats, float64, nchw)
HBN_BUILT_KERNEL(stats, float64, strided)
HBN_BUILT_KERNEL(stats, bfloat16, strided)
HBN_BUILT_KERNEL(stats, float16, strided)
HBN_BUILT_KERNEL(normalize, float32, strided)
HBN_BUILT_KERNEL(normalize, float64, strided)
HBN_BUILT_KERNEL(backward_reduce, float32, strided)
HBN_BUILT_KERNEL(backward_reduce, float64, strided)
HBN_BUILT_KERNEL(backward_reduce, bfloat16, strided)
HBN_BUILT_KERNEL(backward_reduce, float16, nchw)
#undef HBN_BUILT_KERNEL
#undef HBN_BUILT_VECTOR_KERNEL
#undef HBN_BUILT_CONVERSION
