// The one place that maps a target to its family's schedule.
#include "schedules/pipeline.h"

namespace hbn {

using Halide::Target;

void schedule(ChannelPipeline pipeline, const Target &target) {
    if (target.has_gpu_feature()) {
        schedule_for_gpu(pipeline, target);
    } else if (pipeline.layout == Layout::strided) {
        schedule_for_any_target(pipeline, target);
    } else if (target.arch == Target::X86 && target.has_feature(Target::SSE41)) {
        schedule_for_x86(pipeline, target);
    } else if (target.arch == Target::ARM && !target.has_feature(Target::NoNEON)) {
        schedule_for_arm(pipeline, target);
    } else {
        schedule_for_any_target(pipeline, target);
    }
}

bool rounds_float16(const Target &target) {
    return (target.arch == Target::X86 && target.has_feature(Target::F16C)) ||
           (target.arch == Target::ARM && target.has_feature(Target::ARMFp16));
}

bool pairs_bfloat16(const Target &target) {
    return target.arch == Target::X86 && target.has_feature(Target::SSE41);
}

}  // namespace hbn
