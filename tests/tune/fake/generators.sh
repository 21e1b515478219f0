#!/bin/sh
# Stands in for hbn_generators: its "object" is the command line, without the name and the folder of the file.
while [ $# -gt 0 ]; do
    case "$1" in
        -n) name=$2; shift 2 ;;
        -o) folder=$2; shift 2 ;;
        *) settings="$settings $1"; shift ;;
    esac
done
touch "$FAKE_BUSY/$$"
trap 'rm "$FAKE_BUSY/$$"' EXIT
for word in $settings; do
    for refused in $FAKE_REFUSED; do
        if [ "$word" = "$refused" ]; then
            echo "Error: $word has no effect on this kernel" >&2
            exit 1
        fi
    done
done
echo "$settings" > "$folder/$name.o"
