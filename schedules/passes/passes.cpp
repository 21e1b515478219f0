#include "passes.h"

#include <Halide.h>

#include <map>
#include <sstream>

namespace hbn {

std::set<Pass> passes_named(const std::string &names) {
    static const std::map<std::string, Pass> all = {{"streaming", Pass::streaming},
                                                    {"prefetching", Pass::prefetching},
                                                    {"tails", Pass::tails},
                                                    {"bfloat16_pairs", Pass::bfloat16_pairs}};
    std::set<Pass> passes;
    std::istringstream text(names);
    for (std::string name; std::getline(text, name, ',');) {
        const auto found = all.find(name);
        if (found == all.end()) {
            std::string known;
            for (const auto &[other, pass] : all) {
                known += " " + other;
            }
            _halide_user_assert(false)
                << "without: there is no pass '" << name << "'; there are" << known << "\n";
        }
        passes.insert(found->second);
    }
    return passes;
}

}  // namespace hbn
