// Every precondition of the C interface, and every error text.
//
// A check returns HBN_OK or leaves its text for hbn_last_error(). None throws or allocates.
#ifndef HBN_RUNTIME_CHECKS_H
#define HBN_RUNTIME_CHECKS_H

#include "checks/arguments.h"
#include "checks/dtypes.h"
#include "checks/overlap.h"
#include "checks/texts.h"

#endif
