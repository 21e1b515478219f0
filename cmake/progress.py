"""Ninja's progress on one line of a terminal, or one line for every tenth part elsewhere. Failures pass whole."""

import re
import shutil
import sys


def main():
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns
    tenth_shown = -1
    failing = False
    for line in sys.stdin:
        line = line.rstrip("\n")
        status = re.match(r"\[\s*(\d+)%", line)
        if status:
            failing = False
            # What a kernel's command makes: its first output names it well enough.
            text = re.sub(r"Generating (\S+?)\.h,.*", r"Compiling \1", line)
            if on_terminal:
                print("\r" + text[: width - 1].ljust(width - 1), end="", flush=True)
            elif int(status[1]) // 10 > tenth_shown:
                tenth_shown = int(status[1]) // 10
                print(text, flush=True)
        elif line.startswith(("FAILED", "ninja: ")) or failing:
            failing = failing or line.startswith("FAILED")
            if not line.startswith(("ninja: no work", "ninja: Entering")):
                print(("\n" if on_terminal else "") + line, flush=True)
    if on_terminal:
        print()


if __name__ == "__main__":
    main()
