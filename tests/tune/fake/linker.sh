#!/bin/sh
# Stands in for the linker: -shared -Wl,-Bsymbolic -o LIBRARY OBJECT.
cp "$5" "$4"
