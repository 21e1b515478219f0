# hbn_arithmetic: the loops of arithmetic.h, by each of hbn's instruction sets for x86; a test links them, too.
include_guard(GLOBAL)

set(flags_of_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
set(flags_of_avx2 -mavx2 -mfma -mf16c)
set(flags_of_sse41 -msse4.1)
add_library(hbn_arithmetic INTERFACE)
foreach (instruction_set IN ITEMS avx512 avx2 sse41)
    set(loops hbn_arithmetic_${instruction_set})
    add_library(${loops} OBJECT EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/arithmetic_loops.cpp)
    target_include_directories(${loops} PRIVATE ${PROJECT_SOURCE_DIR})
    target_compile_definitions(${loops} PRIVATE HBN_BENCH_INSTRUCTION_SET=${instruction_set})
    # GCC 12 warns of its own intrinsics.
    target_compile_options(${loops} PRIVATE ${flags_of_${instruction_set}} -O3
                           $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    set_target_properties(${loops} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_sources(hbn_arithmetic INTERFACE $<TARGET_OBJECTS:${loops}>)
endforeach ()
