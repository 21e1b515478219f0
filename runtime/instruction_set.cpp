// Which of the kernels' instruction sets this processor runs, and which are allowed.
#include "checks.h"

#include <hbn/version.h>

#include <HalideRuntime.h>

// Only for HBN_INSTRUCTION_SETS.
#include <hbn_kernels.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace hbn::internal {

namespace {

#if defined(__x86_64__) || defined(__i386__)
#define HBN_X86 1
#endif

// Levels by rank; anything but x86's three ("neon", "cuda", "portable", ...) has nothing to choose
// from.
enum Level { baseline = 0, sse41 = 1, avx2 = 2, avx512 = 3 };

Level level_named(const std::string &name) {
    return name == "avx512" ? avx512 : name == "avx2" ? avx2 : name == "sse41" ? sse41 : baseline;
}

Level processor_level() {
#ifdef HBN_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("sse4.1")) {
        return baseline;
    }
    if (!__builtin_cpu_supports("avx") || !__builtin_cpu_supports("avx2") ||
        !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
        return sse41;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512cd") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq")) {
        return avx2;
    }
    return avx512;
#else
    return baseline;
#endif
}

// Names of the sets in the library, best first.
const std::vector<std::string> &names() {
    static const std::vector<std::string> *const list = [] {
        auto *split = new std::vector<std::string>;
        const std::string all = HBN_INSTRUCTION_SETS;
        for (size_t begin = 0; begin <= all.size();) {
            const size_t end = std::min(all.find(',', begin), all.size());
            split->push_back(all.substr(begin, end - begin));
            begin = end + 1;
        }
        return split;
    }();
    return *list;
}

// Index of `name` in names(), or -1.
int find(const char *name) {
    for (size_t i = 0; i < names().size(); i++) {
        if (name && names()[i] == name) {
            return int(i);
        }
    }
    return -1;
}

bool runs_here(int index) {
    return level_named(names()[index]) <= processor_level();
}

// The set in use, as an index of names(): the best that runs, or the one that was forced.
std::atomic<int> &active() {
    static std::atomic<int> index{[] {
        const int wanted = find(std::getenv("HBN_INSTRUCTION_SET"));
        if (wanted >= 0 && runs_here(wanted)) {
            return wanted;
        }
        int best = 0;
        while (best + 1 < int(names().size()) && !runs_here(best)) {
            best++;
        }
        return best;
    }()};
    return index;
}

// The level a Halide target feature belongs to. The others say nothing about the processor, or are
// sets hbn has no level for.
struct Feature {
    halide_target_feature_t feature;
    Level level;
};
constexpr Feature kFeatures[] = {
    {halide_target_feature_sse41, sse41},
    {halide_target_feature_avx, avx2},
    {halide_target_feature_avx2, avx2},
    {halide_target_feature_fma, avx2},
    {halide_target_feature_f16c, avx2},
    {halide_target_feature_avx512, avx512},
    {halide_target_feature_avx512_skylake, avx512},
};
constexpr halide_target_feature_t kNeverAllowed[] = {
    halide_target_feature_fma4,        halide_target_feature_avxvnni,
    halide_target_feature_avx512_knl,  halide_target_feature_avx512_cannonlake,
    halide_target_feature_avx512_zen4, halide_target_feature_avx512_zen5,
    halide_target_feature_avx10_1,     halide_target_feature_avx512_sapphirerapids,
    halide_target_feature_x86_apx,
};

}  // namespace

}  // namespace hbn::internal

using namespace hbn::internal;

extern "C" {

const char *hbn_version(void) {
    return HBN_VERSION;
}

const char *hbn_instruction_sets(void) {
    return HBN_INSTRUCTION_SETS;
}

const char *hbn_instruction_set(void) {
    return names()[active()].c_str();
}

hbn_status hbn_set_instruction_set(const char *name) {
    const int index = find(name);
    if (index < 0) {
        return fail(HBN_INVALID_ARGUMENT, text::unknown_instruction_set, name ? name : "",
                    HBN_INSTRUCTION_SETS);
    }
    if (!runs_here(index)) {
        return fail(HBN_UNSUPPORTED, text::unsupported_instruction_set, name);
    }
    active() = index;
    return HBN_OK;
}

// Asked by each kernel's wrapper on each call, so a forced level acts on the next one.
int halide_can_use_target_features(int count, const uint64_t *features) {
#ifdef HBN_X86
    const auto asks_for = [&](halide_target_feature_t f) {
        return int(f) / 64 < count && (features[int(f) / 64] >> (int(f) % 64) & 1) != 0;
    };
    const Level level = level_named(names()[active()]);
    for (const Feature &f : kFeatures) {
        if (f.level > level && asks_for(f.feature)) {
            return 0;
        }
    }
    for (const halide_target_feature_t f : kNeverAllowed) {
        if (asks_for(f)) {
            return 0;
        }
    }
#else
    (void)count;
    (void)features;
#endif
    return 1;
}

}  // extern "C"
