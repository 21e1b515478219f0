# What `cmake --install` gives, for CMake's find_package(hbn) and for pkg-config; and, of that, the packages that
# `cpack` makes. No installed text names a folder of this machine: the installed tree may be moved.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(hbn_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/hbn)
set(hbn_pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(TARGETS hbn EXPORT hbnTargets INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS hbn-info)
install(DIRECTORY include/hbn DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT hbnTargets NAMESPACE hbn:: DESTINATION ${hbn_cmake_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

configure_package_config_file(cmake/hbnConfig.cmake.in hbnConfig.cmake INSTALL_DESTINATION ${hbn_cmake_dir}
                              NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(hbnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/hbnConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/hbnConfigVersion.cmake
        DESTINATION ${hbn_cmake_dir})

# A program in C that gcc links needs what g++ would add.
set(HBN_SYSTEM_LIBRARIES "-lstdc++ -lm -pthread")
if (HBN_DEVICE_RUNTIME)
    string(APPEND HBN_SYSTEM_LIBRARIES " -ldl")
endif ()
file(RELATIVE_PATH HBN_PREFIX_FROM_PKGCONFIG /${hbn_pkgconfig_dir} /)
string(REGEX REPLACE "/$" "" HBN_PREFIX_FROM_PKGCONFIG ${HBN_PREFIX_FROM_PKGCONFIG})
configure_file(cmake/hbn.pc.in hbn.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/hbn.pc DESTINATION ${hbn_pkgconfig_dir})

# The rest makes packages, of hbn alone.
if (NOT PROJECT_IS_TOP_LEVEL)
    return()
endif ()

set(CPACK_GENERATOR TGZ DEB)
set(CPACK_PACKAGE_VENDOR "The hbn authors")
# Debian asks for an address; whoever publishes packages gives one, with -DCPACK_PACKAGE_CONTACT='NAME <ADDRESS>'.
if (NOT CPACK_PACKAGE_CONTACT)
    set(CPACK_PACKAGE_CONTACT "The hbn authors <hbn@hbn.invalid>")
endif ()
set(CPACK_PACKAGE_FILE_NAME hbn-${PROJECT_VERSION}-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_STRIP_FILES ON)

set(CPACK_DEBIAN_PACKAGE_NAME libhbn-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "PyTorch's BatchNorm2d without PyTorch (development files)")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION "A static library and headers for C++17 and C99 that do what PyTorch's
BatchNorm2d does, forward and backward, with kernels compiled ahead of time
by Halide. This package is all that a program needs to be built with hbn.")
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6-dev, g++ | c++-compiler")
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/debian_documents.cmake)
# What hbn-info needs of libc and libstdc++, which bounds their versions from below. A cross-compiled one's libraries
# are not this machine's packages.
if (NOT CMAKE_CROSSCOMPILING)
    set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
endif ()
set(debian_x86 amd64)
set(debian_arm64 arm64)
set(debian_armv7 armhf)
set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE ${debian_${family}})

include(CPack)
