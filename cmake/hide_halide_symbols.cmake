# Run on the finished library: what Halide's kernels call, and Halide's own runtime where the library holds that,
# gets names of hbn's. A program with Halide kernels of its own then keeps its own runtime, of any version.
#
#   cmake -DLIBRARY=libhbn.a -DNM=nm -DOBJCOPY=objcopy -P hide_halide_symbols.cmake
execute_process(COMMAND ${NM} -g ${LIBRARY} OUTPUT_VARIABLE symbols ERROR_QUIET COMMAND_ERROR_IS_FATAL ANY)
# C functions, with or without an underscore before their names, and members of Halide's C++ namespaces and structs.
string(REGEX MATCHALL "[ \t](_*halide_[A-Za-z0-9_]+|_Z[A-Z]*N[A-Z]*(6Halide|[0-9]+halide_)[A-Za-z0-9_]*)[\r\n]"
       matches "${symbols}")
list(TRANSFORM matches STRIP)
# And what Halide's runtime for devices defines without any prefix, register_cuda_allocation_pool for one: all that is
# neither C++ nor hbn's own.
string(REGEX MATCHALL "[0-9a-fA-F]+ [TWVDBR] [a-z][a-z_0-9]*[\r\n]" defined "${symbols}")
list(TRANSFORM defined STRIP)
list(TRANSFORM defined REPLACE ".* " "")
list(FILTER defined EXCLUDE REGEX "^hbn_")
list(APPEND matches ${defined})
list(REMOVE_DUPLICATES matches)
set(renames "")
foreach (symbol IN LISTS matches)
    string(APPEND renames "${symbol} hbn_${symbol}\n")
endforeach ()
file(WRITE ${LIBRARY}.renames "${renames}")
execute_process(COMMAND ${OBJCOPY} --redefine-syms=${LIBRARY}.renames ${LIBRARY} COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE ${LIBRARY}.renames)
