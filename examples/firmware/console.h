/* Where text goes: a debugger or qemu, by semihosting; the terminal, on a computer. */
#ifndef HBN_EXAMPLES_FIRMWARE_CONSOLE_H
#define HBN_EXAMPLES_FIRMWARE_CONSOLE_H

void console_write(const char *text);
void console_exit(int code);

#endif
