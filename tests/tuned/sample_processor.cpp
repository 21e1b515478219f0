// Makes a program run as on the processor of sample.json.
#include "runtime/engine/tuning.h"

namespace {

const bool is_set = [] {
    hbn::internal::set_processor_name("Sample 1 2");
    return true;
}();

}  // namespace
