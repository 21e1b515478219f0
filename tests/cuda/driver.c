/* A stand-in for libcuda.so, with the functions that Halide's runtime needs, on machines without a GPU. "Device" memory is
 * the host's. Kernels don't run, but a launch that no GPU would take is refused as the driver refuses it. */
#include "driver.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2 };

static driver_calls calls;
static char an_object;

driver_calls take_driver_calls(void) {
    const driver_calls taken = calls;
    memset(&calls, 0, sizeof calls);
    return taken;
}

static int give_object(void **object) {
    *object = &an_object;
    return SUCCESS;
}

/* ---- device and context */

int cuInit(unsigned flags) {
    (void)flags;
    return SUCCESS;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)attribute, (void)device;
    *value = 1;
    return SUCCESS;
}
int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "stand-in", (size_t)size);
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = (size_t)1 << 32;
    return SUCCESS;
}
int cuCtxCreate_v2(void **context, unsigned flags, int device) {
    (void)flags, (void)device;
    return give_object(context);
}
int cuCtxDestroy_v2(void *context) {
    (void)context;
    return SUCCESS;
}
int cuCtxGetApiVersion(void *context, unsigned *version) {
    (void)context;
    *version = 3020;
    return SUCCESS;
}
int cuCtxGetDevice(int *device) {
    *device = 0;
    return SUCCESS;
}
int cuCtxPushCurrent_v2(void *context) {
    (void)context;
    return SUCCESS;
}
int cuCtxPopCurrent_v2(void **context) {
    return give_object(context);
}
int cuCtxSynchronize(void) {
    return SUCCESS;
}
int cuStreamSynchronize(void *stream) {
    (void)stream;
    return SUCCESS;
}
int cuProfilerStop(void) {
    return SUCCESS;
}

/* ---- memory */

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    void *memory = calloc(1, bytes);
    *address = (uint64_t)(uintptr_t)memory;
    return memory ? SUCCESS : OUT_OF_MEMORY;
}
int cuMemFree_v2(uint64_t address) {
    free((void *)(uintptr_t)address);
    return SUCCESS;
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    calls.copies_to_device++;
    memcpy((void *)(uintptr_t)to, from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    calls.copies_to_host++;
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return SUCCESS;
}
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
    return SUCCESS;
}
/* Halide's runtime wants these, and never calls them. */
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)bytes, (void)stream;
    return INVALID_VALUE;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)bytes, (void)stream;
    return INVALID_VALUE;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    (void)to, (void)from, (void)bytes, (void)stream;
    return INVALID_VALUE;
}
int cuMemcpy3D_v2(const void *copy) {
    (void)copy;
    return INVALID_VALUE;
}
int cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
    (void)value, (void)attribute, (void)address;
    return SUCCESS;
}

/* ---- kernels */

int cuModuleLoadData(void **module, const void *image) {
    (void)image;
    return give_object(module);
}
int cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options,
                       void **values) {
    (void)image, (void)count, (void)options, (void)values;
    return give_object(module);
}
int cuModuleUnload(void *module) {
    (void)module;
    return SUCCESS;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    (void)module, (void)name;
    return give_object(function);
}
int cuLaunchKernel(void *function, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z,
                   unsigned threads_x, unsigned threads_y, unsigned threads_z,
                   unsigned shared_bytes, void *stream, void **arguments, void **extra) {
    (void)function, (void)stream, (void)arguments, (void)extra;
    calls.launches++;
    const uint64_t threads = (uint64_t)threads_x * threads_y * threads_z;
    const int taken = blocks_x > 0 && blocks_x <= INT32_MAX && blocks_y > 0 && blocks_y <= 65535 &&
                      blocks_z > 0 && blocks_z <= 65535 && threads > 0 && threads <= 1024 &&
                      threads_z <= 64 && shared_bytes <= 48 * 1024;
    return taken ? SUCCESS : INVALID_VALUE;
}
