// Which of the kernels' instruction sets this processor runs, and which are allowed.
#include "runtime/checks.h"
#include "runtime/context.h"
#include "runtime/engine/tuning.h"

#include <hbn/version.h>

#include <HalideRuntime.h>

#if defined(__x86_64__) || defined(__i386__)
#define HBN_X86 1
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#define HBN_ARM64_LINUX 1
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

// Only for HBN_INSTRUCTION_SETS.
#include <hbn_kernels.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hbn::internal {

namespace {

// Levels by rank; anything but x86's three ("neon", "cuda", "portable", ...) has nothing to choose
// from.
enum Level { baseline = 0, sse41 = 1, avx2 = 2, avx512 = 3 };

Level level_named(const char *name) {
    const auto is = [&](const char *other) { return std::strcmp(name, other) == 0; };
    return is("avx512") ? avx512 : is("avx2") ? avx2 : is("sse41") ? sse41 : baseline;
}

#ifdef HBN_X86
// clang 14's __builtin_cpu_supports() does not know it.
bool supports_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

Level processor_level() {
#ifdef HBN_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("sse4.1")) {
        return baseline;
    }
    if (!__builtin_cpu_supports("avx") || !__builtin_cpu_supports("avx2") ||
        !__builtin_cpu_supports("fma") || !supports_f16c()) {
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

// The sets in the library, best first.
struct Sets {
    static constexpr int kMost = 8;
    char text[sizeof(HBN_INSTRUCTION_SETS)] = HBN_INSTRUCTION_SETS;
    const char *names[kMost];
    Level levels[kMost];
    int count = 0;
    Level processor = processor_level();

    Sets() {
        for (char *name = text; name && count < kMost; count++) {
            char *comma = std::strchr(name, ',');
            if (comma) {
                *comma++ = '\0';
            }
            names[count] = name;
            levels[count] = level_named(name);
            name = comma;
        }
    }

    // -1 if there is none of this name.
    int find(const char *name) const {
        for (int i = 0; i < count; i++) {
            if (name && std::strcmp(names[i], name) == 0) {
                return i;
            }
        }
        return -1;
    }

    // The best that this processor runs.
    int best() const {
        int i = 0;
        while (i + 1 < count && levels[i] > processor) {
            i++;
        }
        return i;
    }
};

const Sets &sets() {
    static const Sets all;
    return all;
}

// What HBN_INSTRUCTION_SET was when first asked for.
struct Variable {
    char name[32] = "";  // cut off, where it is longer than any set's
    int index;

    Variable() {
        if (const char *value = std::getenv("HBN_INSTRUCTION_SET")) {
            std::strncpy(name, value, sizeof(name) - 1);
        }
        const int found = *name ? sets().find(name) : sets().best();
        index = found >= 0 && sets().levels[found] <= sets().processor ? found : -1;
    }
};

const Variable &variable() {
    static const Variable now;
    return now;
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

// As entries of schedules/tuned/ name processors.
struct ProcessorName {
    char text[48] = "unknown";

    ProcessorName() {
#ifdef HBN_X86
        // Vendor, family and model, as /proc/cpuinfo has them.
        unsigned a = 0, b = 0, c = 0, d = 0;
        char vendor[13] = "";
        if (!__get_cpuid(0, &a, &b, &c, &d)) {
            return;
        }
        std::memcpy(vendor, &b, 4);
        std::memcpy(vendor + 4, &d, 4);
        std::memcpy(vendor + 8, &c, 4);
        if (!__get_cpuid(1, &a, &b, &c, &d)) {
            return;
        }
        unsigned family = a >> 8 & 0xf, model = a >> 4 & 0xf;
        if (family == 6 || family == 15) {
            model += (a >> 16 & 0xf) << 4;
        }
        if (family == 15) {
            family += a >> 20 & 0xff;
        }
        std::snprintf(text, sizeof(text), "%s %u %u", vendor, family, model);
#elif defined(HBN_ARM64_LINUX)
        // Implementer and part, which Linux lets programs read.
        if (getauxval(AT_HWCAP) & HWCAP_CPUID) {
            uint64_t id;
            asm("mrs %0, MIDR_EL1" : "=r"(id));
            std::snprintf(text, sizeof(text), "0x%02x 0x%03x", unsigned(id >> 24 & 0xff),
                          unsigned(id >> 4 & 0xfff));
        }
#endif
    }
};

}  // namespace

const char *processor_name() {
    static const ProcessorName mine;
    return mine.text;
}

hbn_status find_instruction_set(const char *name, const char *origin, int *index) {
    const int found = sets().find(name);
    if (found < 0) {
        return fail(HBN_INVALID_ARGUMENT, text::unknown_instruction_set, origin, name ? name : "",
                    HBN_INSTRUCTION_SETS);
    }
    if (sets().levels[found] > sets().processor) {
        return fail(HBN_UNSUPPORTED, text::unsupported_instruction_set, origin, name);
    }
    *index = found;
    return HBN_OK;
}

int default_instruction_set() {
    return variable().index;
}

int instruction_set_in_use() {
    const CallMemory *call = thread_state.call;
    return call ? call->instruction_set : int(default_context().instruction_set);
}

hbn_status check_default_instruction_set() {
    int index = variable().index;
    return index >= 0 ? HBN_OK
                      : find_instruction_set(variable().name,
                                             "environment variable HBN_INSTRUCTION_SET: ", &index);
}

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
    const int index = default_context().instruction_set;
    return index >= 0 ? sets().names[index] : "";
}

hbn_status hbn_set_instruction_set(const char *name) {
    int index;
    HBN_TRY(find_instruction_set(name, "", &index));
    default_context().instruction_set = index;
    return HBN_OK;
}

// Asked by each kernel's wrapper on each call, so what a call's context says acts on it.
int halide_can_use_target_features(int count, const uint64_t *features) {
#ifdef HBN_X86
    const auto asks_for = [&](halide_target_feature_t f) {
        return int(f) / 64 < count && (features[int(f) / 64] >> (int(f) % 64) & 1) != 0;
    };
    const int index = instruction_set_in_use();
    const Level level = index >= 0 ? sets().levels[index] : baseline;
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
