# The target families: for each, what Halide compiles for. Adding a target is one entry here, one preset in
# CMakePresets.json and one file in schedules/.
#
# HBN_HALIDE_TARGETS       best first; the last is what every processor of the family has. More than one
#                          becomes a choice at run time.
# HBN_INSTRUCTION_SETS     their names, in the same order, as users write them in HBN_INSTRUCTION_SET
# HBN_HALIDE_SUFFIX        what follows each of those targets for Halide's generators, and in their names of files
# HBN_DTYPES, HBN_LAYOUTS  what kernels exist for
# HBN_DEVICE_RUNTIME       whether kernels run on a device, through Halide's own runtime

set(HBN_DTYPES float32 float64 bfloat16 float16)
set(HBN_LAYOUTS nchw nchw_few_channels blocks rows strided)
set(HBN_DEVICE_RUNTIME OFF)
# The wrapper checks every argument before a kernel runs, so kernels need not.
set(HBN_HALIDE_FEATURES no_asserts no_bounds_query)

if (HBN_TARGET STREQUAL "x86")
    set(sse41 x86-64-linux-sse41)
    set(avx2 ${sse41}-avx-avx2-f16c-fma)
    set(HBN_HALIDE_TARGETS ${avx2}-avx512-avx512_skylake ${avx2} ${sse41})
    set(HBN_INSTRUCTION_SETS avx512 avx2 sse41)
    # 64-bit indices: with 32-bit ones LLVM does not see where two address the same element, and loads it twice.
    list(APPEND HBN_HALIDE_FEATURES large_buffers)
elseif (HBN_TARGET STREQUAL "arm64")
    set(HBN_HALIDE_TARGETS arm-64-linux)
    set(HBN_INSTRUCTION_SETS neon)
elseif (HBN_TARGET STREQUAL "armv7")
    set(HBN_HALIDE_TARGETS arm-32-linux)
    set(HBN_INSTRUCTION_SETS neon)
elseif (HBN_TARGET STREQUAL "opencl")
    set(HBN_HALIDE_TARGETS host-opencl-cl_doubles)
    set(HBN_INSTRUCTION_SETS opencl)
    set(HBN_DTYPES float32)
    set(HBN_LAYOUTS nchw nhwc strided)
    set(HBN_DEVICE_RUNTIME ON)
elseif (HBN_TARGET STREQUAL "cuda")
    set(HBN_HALIDE_TARGETS host-cuda-cuda_capability_80)
    set(HBN_INSTRUCTION_SETS cuda)
    set(HBN_DTYPES float32)
    set(HBN_LAYOUTS nchw nhwc strided)
    set(HBN_DEVICE_RUNTIME ON)
elseif (HBN_TARGET STREQUAL "portable")
    set(HBN_HALIDE_TARGETS cmake)
    set(HBN_LAYOUTS nchw nhwc strided)
    set(HBN_INSTRUCTION_SETS portable)
else ()
    message(FATAL_ERROR "HBN_TARGET '${HBN_TARGET}' is none of x86, arm64, armv7, opencl, cuda, portable")
endif ()

list(JOIN HBN_HALIDE_FEATURES "-" HBN_HALIDE_SUFFIX)
set(HBN_HALIDE_SUFFIX "-${HBN_HALIDE_SUFFIX}-no_runtime")

set(HBN_ALL_INSTRUCTION_SETS ${HBN_INSTRUCTION_SETS})
if (HBN_ONLY_INSTRUCTION_SETS)
    set(chosen_targets "")
    set(chosen_sets "")
    foreach (instruction_set IN LISTS HBN_ONLY_INSTRUCTION_SETS)
        list(FIND HBN_INSTRUCTION_SETS "${instruction_set}" index)
        if (index EQUAL -1)
            message(FATAL_ERROR "HBN_ONLY_INSTRUCTION_SETS: '${instruction_set}' is none of ${HBN_INSTRUCTION_SETS}")
        endif ()
        list(GET HBN_HALIDE_TARGETS ${index} target)
        list(APPEND chosen_targets ${target})
        list(APPEND chosen_sets ${instruction_set})
    endforeach ()
    set(HBN_HALIDE_TARGETS ${chosen_targets})
    set(HBN_INSTRUCTION_SETS ${chosen_sets})
endif ()
