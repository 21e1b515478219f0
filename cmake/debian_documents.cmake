# Run by cpack between installing and packing: a .deb's license and changelog have the names and forms that Debian's
# policy asks for.
if (NOT CPACK_GENERATOR STREQUAL "DEB")
    return()
endif ()
set(documents ${CPACK_TEMPORARY_DIRECTORY}/usr/share/doc)
set(folder ${documents}/${CPACK_DEBIAN_PACKAGE_NAME})
file(MAKE_DIRECTORY ${folder})
file(RENAME ${documents}/hbn/LICENSE ${folder}/copyright)
file(REMOVE_RECURSE ${documents}/hbn)

string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
file(WRITE ${folder}/changelog
"${CPACK_DEBIAN_PACKAGE_NAME} (${CPACK_PACKAGE_VERSION}) unstable; urgency=medium

  * hbn ${CPACK_PACKAGE_VERSION}; its CHANGELOG.md has what changed.

 -- ${CPACK_PACKAGE_CONTACT}  ${date}
")
execute_process(COMMAND gzip -9n ${folder}/changelog COMMAND_ERROR_IS_FATAL ANY)
