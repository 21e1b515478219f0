#!/bin/sh
echo 'instruction sets: avx512 (in use: avx512)'
echo 'cpu: FakeCpu 1 2'
