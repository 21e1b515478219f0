// What a kernel's schedule may be told when the kernel is compiled.
#ifndef HBN_SCHEDULES_PARAMETERS_H
#define HBN_SCHEDULES_PARAMETERS_H

#include <Halide.h>

#include <string>

namespace hbn {

// One of schedules/parameters.def: what was chosen for it, or else a default. Read it only where it has an effect: one that
// was chosen and is never read is refused.
class ScheduleParameter {
public:
    void choose(int value) {
        chosen_ = value;
    }
    // What was chosen; 0 where nothing was.
    int chosen() const {
        return chosen_;
    }

    void set_default(int value) {
        default_ = value;
    }
    int value_or(int otherwise) const {
        is_read_ = true;
        return chosen_ != 0 ? chosen_ : otherwise;
    }
    operator int() const {
        return value_or(default_);
    }
    operator Halide::Expr() const {
        return int(*this);
    }
    bool is_read() const {
        return is_read_;
    }

private:
    int chosen_ = 0, default_ = 0;
    mutable bool is_read_ = false;
};

struct ScheduleParameters {
#define HBN_SCHEDULE_PARAMETER(name, families, layouts, values, description) ScheduleParameter name;
#include "schedules/parameters.def"

    // A user error unless each that was chosen has an allowed value, and an effect on the family of targets and on the
    // layout. Call it before any is read.
    void check_values(const std::string &family, const std::string &layout) const;
    // A user error unless each that was chosen has been read. Call it when all has been scheduled, with the same.
    void check_effects(const std::string &family, const std::string &layout) const;
};

}  // namespace hbn

#endif
