#include "tuning.h"

namespace hbn::internal {

hbn_status set_tuning(Kernel, hbn_dtype, const Tuning &) {
    return HBN_OK;
}

void clear_tunings() {
}

hbn_status set_threshold(const char *, const char *, Thresholds *) {
    return HBN_OK;
}

const char *processor_name() {
    return "";
}

}  // namespace hbn::internal
