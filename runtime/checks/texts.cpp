#include "texts.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hbn::internal {

namespace {

thread_local char last_error[512] = "";

}  // namespace

hbn_status fail(hbn_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last_error, sizeof(last_error), format, arguments);
    va_end(arguments);
    return status;
}

const char *spell(double value, char (&buffer)[32]) {
    if (!std::isfinite(value)) {
        std::strcpy(buffer, std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        return buffer;
    }
    // The fewest digits that read back as the same value, in whichever notation Python takes.
    int digits = 0;
    do {
        std::snprintf(buffer, sizeof(buffer), "%.*e", digits, value);
    } while (std::strtod(buffer, nullptr) != value && ++digits < 17);
    const int exponent = std::atoi(std::strchr(buffer, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        std::snprintf(buffer, sizeof(buffer), "%.*f", std::max(digits - exponent, 1), value);
    }
    return buffer;
}

}  // namespace hbn::internal

extern "C" const char *hbn_last_error(void) {
    return hbn::internal::last_error;
}
