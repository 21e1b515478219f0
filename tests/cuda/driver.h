/* What the stand-in for libcuda.so saw. */
#ifndef HBN_TESTS_CUDA_DRIVER_H
#define HBN_TESTS_CUDA_DRIVER_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int launches, copies_to_device, copies_to_host;
} driver_calls;

/* Calls since the last time this was asked. */
driver_calls take_driver_calls(void);

#ifdef __cplusplus
}
#endif

#endif
