// The one place that maps a target to its family's schedule, and what schedules share.
#include "schedules/pipeline.h"

#include <map>

namespace hbn {

using Halide::Target;

std::string family_of(const Target &target, Layout layout) {
    if (target.has_gpu_feature()) {
        return "gpu";
    }
    if (layout == Layout::strided) {
        return "portable";
    }
    if (target.arch == Target::X86 && target.has_feature(Target::SSE41)) {
        return "x86";
    }
    if (target.arch == Target::ARM && !target.has_feature(Target::NoNEON)) {
        return "arm";
    }
    if (target.arch == Target::WebAssembly && target.has_feature(Target::WasmSimd128)) {
        return "wasm";
    }
    return "portable";
}

void schedule(ChannelPipeline pipeline, const Target &target) {
    static const std::map<std::string, void (*)(ChannelPipeline, const Target &)> families = {
        {"x86", schedule_for_x86},
        {"arm", schedule_for_arm},
        {"wasm", schedule_for_wasm},
        {"gpu", schedule_for_gpu},
        {"portable", schedule_for_any_target}};
    families.at(family_of(target, pipeline.layout))(pipeline, target);
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
