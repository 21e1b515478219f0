# Run by cpack between installing and packing: in a .deb, Debian's policy says where the license lies.
if (CPACK_GENERATOR STREQUAL "DEB")
    set(documents ${CPACK_TEMPORARY_DIRECTORY}/usr/share/doc)
    file(MAKE_DIRECTORY ${documents}/libhbn-dev)
    file(RENAME ${documents}/hbn/LICENSE ${documents}/libhbn-dev/copyright)
    file(REMOVE_RECURSE ${documents}/hbn)
endif ()
