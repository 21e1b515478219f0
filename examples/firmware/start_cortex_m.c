/* From reset to main() on a Cortex-M with an FPU. */
#include "console.h"

#include <stdint.h>

extern uint32_t __stack_top[], __data_begin[], __data_end[], __data_load[], __bss_start[],
    __bss_end[];

int main(void);

static void stop(void) {
    console_write("fault\n");
    console_exit(1);
}

static void reset(void) {
    uint32_t *const coprocessor_access = (uint32_t *)0xe000ed88;
    const uint32_t *from = __data_load;
    uint32_t *to;
    *(volatile uint32_t *)coprocessor_access |= 0xfu << 20;
    __asm volatile("dsb\n isb" ::: "memory");
    for (to = __data_begin; to < __data_end;) {
        *to++ = *from++;
    }
    for (to = __bss_start; to < __bss_end;) {
        *to++ = 0;
    }
    console_exit(main());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    __stack_top, reset, stop, stop, stop, stop, stop,
};
