// From reset to main() on one core of a 64-bit ARM processor, at EL1: stack, caches, vector registers.
    .section .text.start, "ax"
    .global _start
_start:
    ldr x0, =__stack_top
    mov sp, x0

    // Vector registers may be used.
    mov x0, #(3 << 20)
    msr cpacr_el1, x0
    isb

    // Memory is cached, and vectors in it need no alignment, only once the MMU says so.
    ldr x0, =0x00ff             // attribute 0: normal, write-back; 1: device
    msr mair_el1, x0
    ldr x0, =0x100803519        // 39 bits of addresses in pages of 4 KB, walks cached; no upper half
    msr tcr_el1, x0
    ldr x0, =page_table
    msr ttbr0_el1, x0
    isb
    mrs x0, sctlr_el1
    mov x1, #0x1005             // MMU, data and instruction cache
    orr x0, x0, x1
    msr sctlr_el1, x0
    isb

    ldr x0, =__bss_start
    ldr x1, =__bss_end
1:  cmp x0, x1
    b.hs 2f
    str xzr, [x0], #8
    b 1b

2:  bl main
    bl console_exit
3:  wfi
    b 3b

    // Blocks of 1 GB, as they are: devices below, memory above.
    .section .rodata.page_table, "a"
    .balign 4096
page_table:
    .quad 0x00000405            // device
    .quad 0x40000701            // normal
    .fill 510, 8, 0
