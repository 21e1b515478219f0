/** @file version.h
 *  The version of these headers. That of the library is hbn_version(). CMake compares them with the project's. */
#ifndef HBN_VERSION_H
#define HBN_VERSION_H

/** Changes with the interface; before 1.0 the minor version does. */
#define HBN_VERSION_MAJOR 0
/** Changes with what is new. */
#define HBN_VERSION_MINOR 1
/** Changes with what is mended. */
#define HBN_VERSION_PATCH 0
/** "MAJOR.MINOR.PATCH" */
#define HBN_VERSION "0.1.0"

#endif
