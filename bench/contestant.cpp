// The C interface, the same in every library, over the C++ class that each contestant derives.
#include "bench/contestant_base.h"

#include <exception>
#include <string>

namespace {
std::string reason;
}

extern "C" void *prepare(const struct problem *problem) {
    try {
        auto contestant = make_contestant(*problem);
        contestant->run(1);
        return contestant.release();
    } catch (const std::exception &e) {
        reason = e.what();
    } catch (...) {
        reason = "unknown exception";
    }
    return nullptr;
}

extern "C" const char *why(void) {
    return reason.c_str();
}

extern "C" double run(void *prepared, int repeats) {
    return static_cast<Contestant *>(prepared)->run(repeats);
}

extern "C" void release(void *prepared) {
    delete static_cast<Contestant *>(prepared);
}

extern "C" const char *version(void) {
    static const std::string text = contestant_version();
    return text.c_str();
}
