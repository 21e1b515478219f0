#include "schedules/parameters.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <vector>

namespace hbn {

namespace {

bool has_word(const std::string &words, const std::string &word) {
    std::istringstream text(words);
    const std::istream_iterator<std::string> first(text), last;
    return std::find(first, last, word) != last;
}

// A row of schedules/parameters.def.
struct Row {
    std::string name, families, layouts, values;
    const ScheduleParameter &parameter;

    bool has_family(const std::string &family) const {
        return has_word(families, family);
    }
    bool has_layout(const std::string &layout) const {
        return has_word(layouts, layout);
    }
};

std::vector<Row> rows_of(const ScheduleParameters &parameters) {
    return {
#define HBN_SCHEDULE_PARAMETER(name, families, layouts, values, description) \
    {#name, #families, #layouts, #values, parameters.name},
#include "schedules/parameters.def"
    };
}

}  // namespace

void ScheduleParameters::check_values(const std::string &family, const std::string &layout) const {
    for (const Row &row : rows_of(*this)) {
        const int value = row.parameter.chosen();
        if (value == 0) {
            continue;
        }
        _halide_user_assert(has_word(row.values, std::to_string(value)))
            << row.name << "=" << value << ": allowed are " << row.values
            << ", and 0 for the default\n";
        _halide_user_assert(row.has_family(family))
            << row.name << " has no effect on targets of the family " << family
            << "; it has on those of " << row.families << "\n";
        _halide_user_assert(row.has_layout(layout))
            << row.name << " has no effect on the layout " << layout << "; it has on "
            << row.layouts << "\n";
    }
}

void ScheduleParameters::check_effects(const std::string &family, const std::string &layout) const {
    std::string with_effect;
    for (const Row &row : rows_of(*this)) {
        if (row.parameter.is_read()) {
            with_effect += " " + row.name;
            _halide_internal_assert(row.has_family(family) && row.has_layout(layout))
                << "schedules/parameters.def lacks that " << row.name << " has an effect on "
                << layout << " for " << family << "\n";
        }
    }
    for (const Row &row : rows_of(*this)) {
        _halide_user_assert(row.parameter.chosen() == 0 || row.parameter.is_read())
            << row.name << " has no effect on this kernel; these have:" << with_effect << "\n";
    }
}

}  // namespace hbn
