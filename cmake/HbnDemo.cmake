# Libraries like hbn with other kernels, of the same objects: what is compiled for one is compiled for all.

# Of these objects of kernels. `folder` has the lists that are not hbn's own: hbn_kernels.h, hbn_tuned.h.
function(hbn_add_library_with_list library folder)
    hbn_add_objects(${library}_kernel_list ${PROJECT_SOURCE_DIR}/runtime/engine/kernels.cpp)
    target_include_directories(${library}_kernel_list BEFORE PRIVATE ${folder})
    set_source_files_properties(${ARGN} PROPERTIES EXTERNAL_OBJECT ON)
    add_library(${library} STATIC EXCLUDE_FROM_ALL ${ARGN} $<TARGET_OBJECTS:hbn_runtime>
                $<TARGET_OBJECTS:${library}_kernel_list>)
    set_target_properties(${library} PROPERTIES LINKER_LANGUAGE CXX)
    set_target_properties(${library}_kernel_list PROPERTIES EXCLUDE_FROM_ALL ON)
    target_include_directories(${library} INTERFACE ${PROJECT_SOURCE_DIR}/include)
    target_compile_features(${library} INTERFACE cxx_std_17)
    target_link_libraries(${library} INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
endfunction()

# Of fewer kernels: those whose names, as forward_training_float32_nchw, match the expression `kernels` from their
# beginning.
function(hbn_add_library_of_kernels library kernels)
    # The kernels that hbn lists, as in HBN_BUILT_KERNEL(forward_training, float32, nchw).
    set(folder ${CMAKE_CURRENT_BINARY_DIR}/${library})
    set(names "")
    # And the entries and kernels that are tuned, HBN_TUNED_ENTRY(forward_training, float32, nchw, ...) and
    # HBN_TUNED_KERNEL(forward_training, float32, nchw, 3).
    foreach (header hbn_kernels.h hbn_tuned.h)
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${hbn_BINARY_DIR}/${header})
        file(READ ${hbn_BINARY_DIR}/${header} list)
        string(REGEX MATCHALL "\nHBN_(BUILT|TUNED)_[A-Z_]*\\([^)]*\\)" rows "${list}")
        foreach (row IN LISTS rows)
            string(REGEX REPLACE "^\nHBN_([A-Z_]*)\\((.*)\\)$" "\\2" name "${row}")
            if (CMAKE_MATCH_1 STREQUAL "BUILT_CONVERSION")
                string(PREPEND name "convert_")
            elseif (CMAKE_MATCH_1 STREQUAL "TUNED_KERNEL")
                string(REGEX REPLACE ", ([a-z0-9_]+)$" "_tuned_\\1" name "${name}")
            endif ()
            string(REPLACE ", " "_" name "${name}")
            if (name MATCHES "^(${kernels})")
                list(APPEND names hbn_${name})
            else ()
                string(REPLACE "${row}" "" list "${list}")
            endif ()
        endforeach ()
        file(CONFIGURE OUTPUT ${folder}/${header} CONTENT "${list}" @ONLY)
    endforeach ()

    # Files are named after kernels: hbn_NAME.o, hbn_NAME_wrapper.o and, for each instruction set, hbn_NAME-...o
    get_target_property(objects hbn SOURCES)
    list(FILTER objects INCLUDE REGEX "\\.o$")
    set(chosen "")
    foreach (object IN LISTS objects)
        cmake_path(GET object FILENAME name)
        string(REGEX REPLACE "(-.*|_wrapper)?\\.o$" "" name ${name})
        if (name IN_LIST names OR NOT name MATCHES "^hbn_.*_(float|bfloat)")
            list(APPEND chosen ${object})
        endif ()
    endforeach ()
    hbn_add_library_with_list(${library} ${folder} ${chosen})
endfunction()
