# Which kernels exist: operation x dtype x layout, for the family that HBN_TARGET names.

include(cmake/HbnTargets.cmake)

# Operations on (N, C, H, W) tensors; each is a generator of this name. Adding one is one file in generators/
# and one line here; in HBN_REDUCING_OPERATIONS, too, if it takes sums over channels.
set(HBN_OPERATIONS
    forward_training
    forward_inference
    stats
    normalize
    backward_training
    backward_inference
    backward_inference_input
    backward_reduce
    backward_elemt
    jvp_elemt
    double_backward_elemt
)
set(HBN_REDUCING_OPERATIONS forward_training stats backward_training backward_inference backward_reduce)
# Those that an activation may be fused into: a generator and its parameters, for each operation of this
# second kind.
set(HBN_FUSED_OPERATIONS
    "forward_training_relu        forward_training   activation=relu"
    "forward_training_add_relu    forward_training   activation=add_relu with_mask=true"
    "forward_inference_relu       forward_inference  activation=relu"
    "forward_inference_add_relu   forward_inference  activation=add_relu"
    "forward_inference_add_relu_mask  forward_inference  activation=add_relu with_mask=true"
    "backward_training_relu       backward_training  activation=relu"
    "backward_training_add_relu   backward_training  activation=add_relu"
    "backward_inference_relu      backward_inference activation=relu"
    "backward_inference_add_relu  backward_inference activation=add_relu"
)
set(HBN_GENERATOR_SOURCES
    generators/rounding.cpp
    generators/tiling.cpp
    generators/reductions.cpp
    generators/coefficients.cpp
    generators/activations.cpp
    generators/activation_forward.cpp
    generators/activation_backward.cpp
    generators/forward_training.cpp
    generators/forward_inference.cpp
    generators/forward_folded.cpp
    generators/stats.cpp
    generators/normalize.cpp
    generators/backward_training.cpp
    generators/backward_inference.cpp
    generators/backward_reduce.cpp
    generators/backward_elemt.cpp
    generators/jvp_elemt.cpp
    generators/double_backward_elemt.cpp
    generators/per_channel.cpp
    schedules/schedule.cpp
    schedules/vectorized.cpp
    schedules/passes/streaming.cpp
    schedules/passes/prefetching.cpp
    schedules/passes/lanes.cpp
    schedules/x86.cpp
    schedules/arm.cpp
    schedules/wasm.cpp
    schedules/gpu.cpp
    schedules/portable.cpp
)

# One Halide library, its objects part of `library`. Beside each lies its .stmt, what the schedule made of the
# algorithm, and with HBN_KERNEL_ASSEMBLY its .s, which take two fifths of the time.
function(hbn_add_kernel library name generator targets)
    list(LENGTH targets count)
    # Halide's names of files, where there are several targets.
    list(JOIN HBN_HALIDE_FEATURES "-" features)
    string(APPEND features "-no_runtime")
    if (HBN_KERNELS_FROM)
        set(objects ${HBN_KERNELS_FROM}/${name}.o)
        if (count GREATER 1)
            set(objects ${HBN_KERNELS_FROM}/${name}_wrapper.o)
            foreach (target IN LISTS targets)
                list(APPEND objects ${HBN_KERNELS_FROM}/${name}-${target}-${features}.o)
            endforeach ()
        endif ()
        set_source_files_properties(${objects} TARGET_DIRECTORY ${library} PROPERTIES EXTERNAL_OBJECT ON)
        target_sources(${library} PRIVATE ${objects})
        return()
    endif ()
    set(assembly "")
    if (HBN_KERNEL_ASSEMBLY)
        set(assembly ASSEMBLY ${name}_assembly)
    endif ()
    add_halide_library(${name} FROM hbn_generators
                       GENERATOR ${generator}
                       TARGETS ${targets}
                       FEATURES ${HBN_HALIDE_FEATURES}
                       PARAMS ${ARGN}
                       USE_RUNTIME hbn_kernel_runtime
                       STMT ${name}_stmt
                       ${assembly})
    if (count GREATER 1)
        # Halide names these files after each target, but promises the build the plain names; without those,
        # every build would make every kernel again. They become the best target's.
        list(GET targets 0 best)
        foreach (file IN LISTS ${name}_stmt ${name}_assembly)
            cmake_path(GET file EXTENSION extension)
            add_custom_command(OUTPUT ${name}.h APPEND
                COMMAND ${CMAKE_COMMAND} -E copy ${name}-${best}-${features}${extension} ${file})
        endforeach ()
    endif ()
    get_target_property(objects ${name} SOURCES)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
    target_sources(${library} PRIVATE ${objects})
endfunction()

function(hbn_add_all_kernels library)
    if (NOT HBN_KERNELS_FROM)
        add_halide_generator(hbn_generators SOURCES ${HBN_GENERATOR_SOURCES})
    endif ()
    if (TARGET hbn_generators)
        target_include_directories(hbn_generators PRIVATE ${PROJECT_SOURCE_DIR})
        # Generators run on this machine, and are not what sanitizers are for.
        target_compile_options(hbn_generators PRIVATE -O1 -fno-sanitize=all)
        target_link_options(hbn_generators PRIVATE -fno-sanitize=all)
        set_target_properties(hbn_generators PROPERTIES NO_SYSTEM_FROM_IMPORTED OFF)
        target_precompile_headers(hbn_generators PRIVATE <Halide.h>)
    endif ()

    if (HBN_DEVICE_RUNTIME)
        add_halide_runtime(hbn_kernel_runtime TARGETS ${HBN_HALIDE_TARGETS})
        target_compile_definitions(${library} PRIVATE HBN_DEVICE_RUNTIME)
        # Within the library, so that it is one file to install and link.
        get_target_property(objects hbn_kernel_runtime SOURCES)
        set_target_properties(hbn_kernel_runtime PROPERTIES EXCLUDE_FROM_ALL ON)
        target_sources(${library} PRIVATE ${objects})
        target_link_libraries(${library} PRIVATE ${CMAKE_DL_LIBS})
    else ()
        # The library itself defines the few functions that kernels call.
        add_library(hbn_kernel_runtime INTERFACE)
    endif ()

    set(lines "")
    foreach (line IN LISTS HBN_OPERATIONS HBN_FUSED_OPERATIONS)
        separate_arguments(parameters UNIX_COMMAND "${line}")
        list(POP_FRONT parameters operation generator)
        if (NOT generator)
            set(generator ${operation})
        endif ()
        foreach (dtype IN LISTS HBN_DTYPES)
            foreach (layout IN LISTS HBN_LAYOUTS)
                # Layouts that only matter to sums, or to speed where speed is not what float64 is for.
                if ((layout STREQUAL "nchw_few_channels" AND NOT operation IN_LIST HBN_REDUCING_OPERATIONS)
                    OR (dtype STREQUAL "float64" AND layout MATCHES "^(nchw_few_channels|blocks)$"))
                    continue()
                endif ()
                if (NOT "${operation}_${dtype}_${layout}" MATCHES "${HBN_KERNELS}")
                    continue()
                endif ()
                hbn_add_kernel(${library} hbn_${operation}_${dtype}_${layout} ${generator}
                               "${HBN_HALIDE_TARGETS}" dtype=${dtype} layout=${layout}
                               ${HBN_TENSOR_PARAMS} ${parameters})
                string(APPEND lines "HBN_TENSOR_KERNEL(${operation}, ${dtype}, ${layout})\n")
            endforeach ()
        endforeach ()
    endforeach ()

    # Work on one value a channel always runs on the processor.
    list(GET HBN_HALIDE_TARGETS -1 channel_target)
    string(REGEX REPLACE "-(opencl|cuda).*" "" channel_target ${channel_target})
    foreach (dtype IN ITEMS float32 float64)
        foreach (operation IN ITEMS finalize_moments invstd_from_variance double_backward_product)
            hbn_add_kernel(${library} hbn_${operation}_${dtype} ${operation} ${channel_target}
                           dtype=${dtype})
            string(APPEND lines "HBN_CHANNEL_KERNEL(${operation}, ${dtype})\n")
        endforeach ()
    endforeach ()
    hbn_add_kernel(${library} hbn_merge_moments_float64 merge_moments ${channel_target}
                   dtype=float64)
    string(APPEND lines "HBN_CHANNEL_KERNEL(merge_moments, float64)\n")
    set(convertible float32 float64 bfloat16 float16)
    foreach (from IN LISTS convertible)
        foreach (to IN LISTS convertible)
            if (NOT from STREQUAL to)
                hbn_add_kernel(${library} hbn_convert_${from}_${to} convert ${channel_target}
                               dtype=${from} to=${to})
                string(APPEND lines "HBN_CHANNEL_KERNEL(convert, ${from}_${to})\n")
            endif ()
        endforeach ()
    endforeach ()

    list(JOIN HBN_INSTRUCTION_SETS "," instruction_sets)
    file(CONFIGURE OUTPUT hbn_kernels.h CONTENT
"// Generated by cmake/HbnKernels.cmake: the kernels this library holds.
#define HBN_INSTRUCTION_SETS \"${instruction_sets}\"
#ifdef HBN_TENSOR_KERNEL
${lines}#endif
")
    target_include_directories(${library} PRIVATE ${CMAKE_CURRENT_BINARY_DIR} ${HBN_KERNELS_FROM})
endfunction()
