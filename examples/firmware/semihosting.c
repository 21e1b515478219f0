/* console.h by ARM's semihosting (Arm's document "Semihosting for AArch32 and AArch64"), and what of a C library the
   compiler and hbn call. */
#include "console.h"

#include <stddef.h>
#include <stdint.h>

enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, ADP_STOPPED_APPLICATION_EXIT = 0x20026 };

static void semihost(uintptr_t operation, const void *argument) {
#ifdef __aarch64__
    register uintptr_t r0 __asm("x0") = operation;
    register const void *r1 __asm("x1") = argument;
    __asm volatile("hlt #0xf000" : "+r"(r0) : "r"(r1) : "memory");
#else
    register uintptr_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
#endif
}

void console_write(const char *text) {
    semihost(SYS_WRITE0, text);
}

void console_exit(int code) {
    const uintptr_t block[2] = {ADP_STOPPED_APPLICATION_EXIT, (uintptr_t)code};
    semihost(SYS_EXIT_EXTENDED, block);
    for (;;) {
    }
}

/* Not written as loops that the compiler takes for calls of these very functions. */
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memset(void *to, int value,
                                                                           size_t bytes) {
    uint8_t *p = to;
    while (bytes--) {
        *p++ = (uint8_t)value;
    }
    return to;
}

__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memcpy(void *to,
                                                                           const void *from,
                                                                           size_t bytes) {
    uint8_t *p = to;
    const uint8_t *q = from;
    while (bytes--) {
        *p++ = *q++;
    }
    return to;
}
