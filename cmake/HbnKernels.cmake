# Which kernels exist: runtime/operations.def's rows x dtypes x layouts, for the family that HBN_TARGET names.

include(cmake/HbnTargets.cmake)

set(HBN_ACTIVATIONS "" CACHE STRING
    "Of the activations, as in runtime/operations.def, only these have kernels; all if empty")
set(HBN_TUNED "" CACHE STRING
    "A file of tuned entries in place of schedules/tuned/TARGET.json, or `none`")

# The rows of one kind in runtime/operations.def or layouts.def, as lists in `out`0, `out`1, ...; their number in `out`.
function(hbn_read_table kind out)
    set(table ${PROJECT_SOURCE_DIR}/runtime/operations.def)
    if (kind STREQUAL "HBN_LAYOUT")
        set(table ${PROJECT_SOURCE_DIR}/runtime/layouts.def)
    endif ()
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${table})
    file(STRINGS ${table} lines REGEX "^${kind}\\(")
    set(i 0)
    foreach (line IN LISTS lines)
        string(REGEX REPLACE "^${kind}\\((.*)\\)$" "\\1" row "${line}")
        string(REGEX REPLACE " *, *" ";" row "${row}")
        set(${out}${i} "${row}" PARENT_SCOPE)
        math(EXPR i "${i} + 1")
    endforeach ()
    set(${out} ${i} PARENT_SCOPE)
endfunction()

# What is compiled into the kernels of the activations that are wanted.
function(hbn_wanted_activations out)
    hbn_read_table(HBN_ACTIVATION activation)
    set(wanted none)
    set(names "")
    math(EXPR last "${activation} - 1")
    foreach (i RANGE ${last})
        list(GET activation${i} 0 name)
        list(GET activation${i} 2 compiled)
        list(APPEND names ${name})
        if (NOT HBN_ACTIVATIONS OR name IN_LIST HBN_ACTIVATIONS)
            list(APPEND wanted ${compiled})
        endif ()
    endforeach ()
    foreach (name IN LISTS HBN_ACTIVATIONS)
        if (NOT name IN_LIST names)
            message(FATAL_ERROR "HBN_ACTIVATIONS: '${name}' is none of ${names}")
        endif ()
    endforeach ()
    list(REMOVE_DUPLICATES wanted)
    set(${out} ${wanted} PARENT_SCOPE)
endfunction()

# Whether a kernel exists: `kind` and `layouts` are its columns in runtime/operations.def, `purpose` is the layout's.
function(hbn_kernel_exists out kind layouts dtype layout purpose)
    set(${out} ON PARENT_SCOPE)
    if ((purpose STREQUAL "sums" AND NOT kind STREQUAL "sums")
        OR (purpose MATCHES "^(sums|speed)$" AND dtype STREQUAL "float64")
        OR (layouts STREQUAL "strided" AND NOT layout STREQUAL "strided")
        # What stands in for kernels that there are not is for any tensor, and fast where most are.
        OR (layouts STREQUAL "fallback" AND NOT layout STREQUAL "strided"
            AND (NOT purpose STREQUAL "general" OR dtype STREQUAL "float64")))
        set(${out} OFF PARENT_SCOPE)
    endif ()
endfunction()

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
    schedules/parameters.cpp
    schedules/vectorized.cpp
    schedules/passes/passes.cpp
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
    if (HBN_KERNELS_FROM)
        # The folder in that build that is this one here.
        file(RELATIVE_PATH folder ${hbn_BINARY_DIR} ${CMAKE_CURRENT_BINARY_DIR})
        cmake_path(APPEND HBN_KERNELS_FROM "${folder}" OUTPUT_VARIABLE folder)
        set(objects ${folder}/${name}.o)
        if (count GREATER 1)
            set(objects ${folder}/${name}_wrapper.o)
            foreach (target IN LISTS targets)
                list(APPEND objects ${folder}/${name}-${target}${HBN_HALIDE_SUFFIX}.o)
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
                COMMAND ${CMAKE_COMMAND} -E copy ${name}-${best}${HBN_HALIDE_SUFFIX}${extension} ${file})
        endforeach ()
    endif ()
    get_target_property(objects ${name} SOURCES)
    set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL ON)
    target_sources(${library} PRIVATE ${objects})
endfunction()

# One more form of a kernel of runtime/operations.def, hbn_NAME_DTYPE_LAYOUT_SUFFIX: for one instruction set, with these
# parameters of its schedule.
function(hbn_add_variant library name dtype layout suffix instruction_set)
    hbn_read_table(HBN_KERNEL kernel)
    math(EXPR last "${kernel} - 1")
    foreach (i RANGE ${last})
        list(GET kernel${i} 0 other)
        if (other STREQUAL name)
            list(GET kernel${i} 1 generator)
            list(GET kernel${i} 2 parameters)
            break()
        endif ()
    endforeach ()
    separate_arguments(parameters UNIX_COMMAND "${parameters}")
    list(FIND HBN_INSTRUCTION_SETS ${instruction_set} index)
    list(GET HBN_HALIDE_TARGETS ${index} target)
    hbn_add_kernel(${library} hbn_${name}_${dtype}_${layout}_${suffix} ${generator} ${target}
                   dtype=${dtype} layout=${layout} ${parameters} ${ARGN})
endfunction()

# Makes hbn_tuned.h in this build folder, of a file of tuned entries (schedules/tuned/schema.json) or of `none`, and adds
# the kernels that it names to `library`. After the library's own kernels. Names of kernels have the prefix, where there is
# one, before their numbers.
function(hbn_add_tuned_kernels library file)
    set(prefix ${ARGN})
    set(folder ${CMAKE_CURRENT_BINARY_DIR})
    set(script ${PROJECT_SOURCE_DIR}/cmake/tuned.py)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${script} ${PROJECT_SOURCE_DIR}/cmake/packs/table.py
                 ${PROJECT_SOURCE_DIR}/runtime/engine/thresholds.def ${PROJECT_SOURCE_DIR}/schedules/parameters.def)
    set(count 0)
    set(error NOTFOUND)
    if (NOT file STREQUAL "none")
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
        file(READ ${file} json)
        string(JSON count ERROR_VARIABLE error LENGTH "${json}" entries)
    endif ()
    # A build without entries needs no Python.
    if (count STREQUAL "0" AND NOT error)
        file(CONFIGURE OUTPUT ${folder}/hbn_tuned.h CONTENT
"// Generated by cmake/HbnKernels.cmake: there are no tuned entries.
#undef HBN_TUNED_ENTRY
#undef HBN_TUNED_KERNEL
")
        return()
    endif ()
    find_package(Python3 3.10 REQUIRED COMPONENTS Interpreter)
    list(JOIN HBN_ALL_INSTRUCTION_SETS "," all_sets)
    list(JOIN HBN_INSTRUCTION_SETS "," built_sets)
    execute_process(
        COMMAND ${Python3_EXECUTABLE} ${script} ${file} --target ${HBN_TARGET} --instruction-sets ${all_sets}
                --built-sets ${built_sets} --kernels ${hbn_BINARY_DIR}/hbn_all_kernels.txt
                --built ${hbn_BINARY_DIR}/hbn_kernels.h --output ${folder} "--prefix=${prefix}"
        RESULT_VARIABLE status ERROR_VARIABLE errors)
    if (NOT status EQUAL 0)
        string(REPLACE "\n" "\n  " errors "  ${errors}")  # indented lines stay as they are
        message(FATAL_ERROR "\n${errors}")
    endif ()
    file(STRINGS ${folder}/hbn_tuned_kernels.txt lines)
    foreach (line IN LISTS lines)
        separate_arguments(line)
        list(POP_FRONT line name dtype layout number instruction_set)
        # For its one instruction set: the engine asks before it calls.
        hbn_add_variant(${library} ${name} ${dtype} ${layout} tuned_${prefix}${number} ${instruction_set} ${line})
    endforeach ()
endfunction()

function(hbn_add_all_kernels library)
    if (NOT HBN_KERNELS_FROM)
        add_halide_generator(hbn_generators SOURCES ${HBN_GENERATOR_SOURCES})
    endif ()
    if (TARGET hbn_generators)
        target_include_directories(hbn_generators PRIVATE ${PROJECT_SOURCE_DIR})
        # Generators run on this machine, and are not what sanitizers are for.
        target_compile_options(hbn_generators PRIVATE -O0 -fno-sanitize=all)
        target_link_options(hbn_generators PRIVATE -fno-sanitize=all)
        set_target_properties(hbn_generators PROPERTIES NO_SYSTEM_FROM_IMPORTED OFF)
        # Most of a source's time goes into Halide's templates, which several sources together need once. Tools that
        # read a compile database want each source in it.
        target_precompile_headers(hbn_generators PRIVATE <Halide.h>)
        if (NOT CMAKE_EXPORT_COMPILE_COMMANDS)
            set_target_properties(hbn_generators PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 7)
        endif ()
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
    set(all_kernels "")
    hbn_wanted_activations(activations)
    hbn_read_table(HBN_LAYOUT layout)
    math(EXPR last "${layout} - 1")
    foreach (i RANGE ${last})
        list(GET layout${i} 0 name)
        list(GET layout${i} 1 purpose_of_${name})
    endforeach ()
    hbn_read_table(HBN_KERNEL kernel)
    math(EXPR last "${kernel} - 1")
    foreach (i RANGE ${last})
        list(GET kernel${i} 0 name)
        list(GET kernel${i} 1 generator)
        list(GET kernel${i} 2 parameters)
        list(GET kernel${i} 3 activation)
        list(GET kernel${i} 4 kind)
        list(GET kernel${i} 5 layouts)
        separate_arguments(parameters UNIX_COMMAND "${parameters}")
        foreach (dtype IN LISTS HBN_DTYPES)
            foreach (layout_name IN LISTS HBN_LAYOUTS)
                hbn_kernel_exists(exists ${kind} ${layouts} ${dtype} ${layout_name}
                                  ${purpose_of_${layout_name}})
                if (NOT exists)
                    continue()
                endif ()
                string(APPEND all_kernels "${name} ${dtype} ${layout_name}\n")
                if (NOT activation IN_LIST activations
                    OR NOT "${name}_${dtype}_${layout_name}" MATCHES "${HBN_KERNELS}")
                    continue()
                endif ()
                hbn_add_kernel(${library} hbn_${name}_${dtype}_${layout_name} ${generator}
                               "${HBN_HALIDE_TARGETS}" dtype=${dtype} layout=${layout_name} ${parameters})
                string(APPEND lines "HBN_BUILT_KERNEL(${name}, ${dtype}, ${layout_name})\n")
            endforeach ()
        endforeach ()
    endforeach ()

    # Work on one value a channel always runs on the processor.
    list(GET HBN_HALIDE_TARGETS -1 vector_target)
    string(REGEX REPLACE "-(opencl|cuda).*" "" vector_target ${vector_target})
    hbn_read_table(HBN_VECTOR_KERNEL kernel)
    math(EXPR last "${kernel} - 1")
    foreach (i RANGE ${last})
        list(GET kernel${i} 0 name)
        list(GET kernel${i} 1 dtypes)
        separate_arguments(dtypes UNIX_COMMAND "${dtypes}")
        foreach (dtype IN LISTS dtypes)
            if (NOT name STREQUAL "convert")
                hbn_add_kernel(${library} hbn_${name}_${dtype} ${name} ${vector_target}
                               dtype=${dtype})
                string(APPEND lines "HBN_BUILT_VECTOR_KERNEL(${name}, ${dtype})\n")
                continue()
            endif ()
            foreach (to IN LISTS dtypes)
                if (NOT dtype STREQUAL to)
                    hbn_add_kernel(${library} hbn_convert_${dtype}_${to} convert ${vector_target}
                                   dtype=${dtype} to=${to})
                    string(APPEND lines "HBN_BUILT_CONVERSION(${dtype}, ${to})\n")
                endif ()
            endforeach ()
        endforeach ()
    endforeach ()

    list(JOIN HBN_INSTRUCTION_SETS "," instruction_sets)
    file(CONFIGURE OUTPUT hbn_kernels.h CONTENT
"// Generated by cmake/HbnKernels.cmake: the kernels that this library holds. Define the macros that are wanted.
#define HBN_INSTRUCTION_SETS \"${instruction_sets}\"
#ifndef HBN_BUILT_KERNEL
#define HBN_BUILT_KERNEL(kernel, dtype, layout)
#endif
#ifndef HBN_BUILT_VECTOR_KERNEL
#define HBN_BUILT_VECTOR_KERNEL(kernel, dtype)
#endif
#ifndef HBN_BUILT_CONVERSION
#define HBN_BUILT_CONVERSION(from, to)
#endif
${lines}#undef HBN_BUILT_KERNEL
#undef HBN_BUILT_VECTOR_KERNEL
#undef HBN_BUILT_CONVERSION
")
    target_include_directories(${library} PRIVATE ${CMAKE_CURRENT_BINARY_DIR} ${HBN_KERNELS_FROM})
    file(CONFIGURE OUTPUT hbn_all_kernels.txt CONTENT "${all_kernels}" @ONLY)

    set(tuned ${PROJECT_SOURCE_DIR}/schedules/tuned/${HBN_TARGET}.json)
    if (HBN_TUNED)
        set(tuned ${HBN_TUNED})
    elseif (NOT EXISTS ${tuned})
        set(tuned none)
    endif ()
    hbn_add_tuned_kernels(${library} ${tuned})

    # What the tuner compiles kernels for, as the library's own are, and what with: bench/tune/build.py.
    set(pairs "")
    foreach (instruction_set halide_target IN ZIP_LISTS HBN_INSTRUCTION_SETS HBN_HALIDE_TARGETS)
        list(APPEND pairs "\"${instruction_set}\": \"${halide_target}${HBN_HALIDE_SUFFIX}\"")
    endforeach ()
    list(JOIN pairs ", " pairs)
    file(CONFIGURE OUTPUT hbn_targets.json CONTENT
"{\"target\": \"${HBN_TARGET}\", \"instruction_sets\": {${pairs}}, \"compiler\": \"${CMAKE_CXX_COMPILER}\", \"objdump\": \"${CMAKE_OBJDUMP}\"}
")
endfunction()
