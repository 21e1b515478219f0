// The passes that a kernel can be built without: its results stay the same bits.
#ifndef HBN_SCHEDULES_PASSES_PASSES_H
#define HBN_SCHEDULES_PASSES_PASSES_H

#include <set>
#include <string>

namespace hbn {

enum class Pass { streaming, prefetching, tails, bfloat16_pairs };

// Their names as above, separated by commas; none where the text is empty. Any other name is a user error.
std::set<Pass> passes_named(const std::string &names);

}  // namespace hbn

#endif
