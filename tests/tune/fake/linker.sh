#!/bin/sh
# Stands in for the linker: -shared -o LIBRARY OBJECT.
cp "$4" "$3"
