/* What newlib asks of a board, for pack_test.c: text by examples/firmware's console, and memory for malloc(). */
#include "../../examples/firmware/console.h"

#include <stddef.h>

#ifndef BOARD_HEAP_BYTES
#define BOARD_HEAP_BYTES (48 * 1024)
#endif

int _write(int file, const char *text, int bytes);
void *_sbrk(ptrdiff_t bytes);

int _write(int file, const char *text, int bytes) {
    char c[2] = {0, 0};
    int i;
    (void)file;
    for (i = 0; i < bytes; i++) {
        c[0] = text[i];
        console_write(c);
    }
    return bytes;
}

void *_sbrk(ptrdiff_t bytes) {
    static _Alignas(8) char memory[BOARD_HEAP_BYTES];
    static ptrdiff_t used;
    if (used + bytes > (ptrdiff_t)sizeof memory) {
        return (void *)-1;
    }
    used += bytes;
    return memory + used - bytes;
}
