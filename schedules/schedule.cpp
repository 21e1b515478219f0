// The one place that maps a target to its family's schedule, and what schedules share.
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
    } else if (target.arch == Target::WebAssembly && target.has_feature(Target::WasmSimd128)) {
        schedule_for_wasm(pipeline, target);
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

void share_out(Halide::Func f, const Halide::Var &tasks, const ChannelPipeline &p) {
    if (p.parallel) {
        f.parallel(tasks);
    }
}

void fuse_channel_outputs(ChannelPipeline &p, Halide::Func owner, const Halide::Var &outer) {
    for (Halide::Func &f : p.per_channel) {
        if (f.name() != owner.name()) {
            share_out(f, outer, p);
            f.compute_with(owner, outer);
        }
    }
}

void compute_coefficients_at_channel(ChannelPipeline &p, Halide::Func owner, const Halide::Var &c) {
    for (Halide::Func &f : p.coefficients) {
        f.compute_at(owner, c);
        if (p.standalone) {
            // Which Halide can't prove, and would ask for memory.
            f.bound_extent(c, 1);
        }
    }
}

}  // namespace hbn
