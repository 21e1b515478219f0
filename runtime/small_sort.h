// Stable insertion sort for a handful of values; std::sort on arrays this small trips g++ 12's
// bounds warnings.
#ifndef HBN_RUNTIME_SMALL_SORT_H
#define HBN_RUNTIME_SMALL_SORT_H

#include <utility>

namespace hbn::internal {

template<typename T, typename Less>
void small_sort(T *values, int count, Less less) {
    for (int i = 1; i < count; i++) {
        for (int j = i; j > 0 && less(values[j], values[j - 1]); j--) {
            std::swap(values[j], values[j - 1]);
        }
    }
}

}  // namespace hbn::internal

#endif
