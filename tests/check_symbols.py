"""Fails where the library has a symbol of Halide's runtime under its own name: check_symbols.py NM LIBRARY"""

import subprocess
import sys

nm, library = sys.argv[1:]
output = subprocess.run([nm, "-g", library], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
names = {line.split()[-1] for line in output.stdout.splitlines() if line.strip()}
if not any(name.startswith("hbn_halide_") for name in names):
    sys.exit(f"{library} has no hbn_halide_* symbols: is this the library?")
halide = sorted(name for name in names if name.lstrip("_").startswith("halide_") or "6Halide7Runtime" in name)
shown = [name for name in halide if not name.startswith("hbn_")]
if shown:
    sys.exit(f"{library} has symbols of Halide's: {', '.join(shown)}")
