/* console.h on a computer. */
#include "console.h"

#include <stdio.h>
#include <stdlib.h>

void console_write(const char *text) {
    fputs(text, stdout);
}

void console_exit(int code) {
    exit(code);
}
