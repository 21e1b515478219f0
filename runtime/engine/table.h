// operations.def and layouts.def as C++: an enumeration of each kind of row, and the columns as constants.
#ifndef HBN_RUNTIME_ENGINE_TABLE_H
#define HBN_RUNTIME_ENGINE_TABLE_H

#include <hbn/hbn.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hbn::internal {

// How a kernel sees its tensors; layouts.def says what each is.
enum class Layout : uint8_t {
#define HBN_LAYOUT(name, purpose) name,
#include "runtime/layouts.def"
    count
};

// What an operation or a kernel takes, by name.
enum class Arg : uint8_t {
#define HBN_ARGUMENT(role, name, ...) name,
#include "runtime/operations.def"
    none
};

enum class Kernel : uint8_t {
#define HBN_KERNEL(name, generator, parameters, activation, kind, layouts) name,
#include "runtime/operations.def"
#define HBN_VECTOR_KERNEL(name, dtypes) name,
#include "runtime/operations.def"
    none
};

enum class Activation : uint8_t {
#define HBN_ACTIVATION(name, c_name, compiled, forward, backward, slope, low, high) name,
#include "runtime/operations.def"
    count
};

enum class Operation : uint8_t {
#define HBN_OPERATION(name) name,
#include "runtime/operations.def"
    count
};

constexpr int kLayouts = int(Layout::count);
constexpr int kArguments = int(Arg::none);
constexpr int kKernels = int(Kernel::none);
constexpr int kActivations = int(Activation::count);
constexpr int kOperations = int(Operation::count);

inline constexpr const char *kLayoutNames[] = {
#define HBN_LAYOUT(name, purpose) #name,
#include "runtime/layouts.def"
};

// ---- arguments

// operations.def says what each is.
enum class Role : uint8_t { tensor, mask, parameter, statistic, activation, number, view };

struct ArgumentRow {
    const char *name;
    Role role;
    const char *detail;
};
inline constexpr ArgumentRow kArgumentRows[] = {
#define HBN_ARGUMENT(role, name, ...) {#name, Role::role, #__VA_ARGS__},
#include "runtime/operations.def"
};

constexpr const ArgumentRow &row(Arg a) {
    return kArgumentRows[int(a)];
}
constexpr Role role(Arg a) {
    return row(a).role;
}
constexpr bool is_tensor(Arg a) {
    return role(a) == Role::tensor || role(a) == Role::mask;
}
constexpr bool is_vector(Arg a) {
    return role(a) == Role::parameter || role(a) == Role::statistic;
}

constexpr int arguments_before(Role end) {
    int n = 0;
    while (n < kArguments && kArgumentRows[n].role < end) {
        n++;
    }
    return n;
}
// Arguments stand in the order of their roles, so that those of a kind are numbered from its first.
constexpr int kTensors = arguments_before(Role::parameter);
constexpr int kVectors = arguments_before(Role::activation) - kTensors;
constexpr int kFirstNumber = arguments_before(Role::number);
constexpr int kNumbers = arguments_before(Role::view) - kFirstNumber;

constexpr bool roles_are_in_order() {
    for (int i = 1; i < kArguments; i++) {
        if (kArgumentRows[i].role < kArgumentRows[i - 1].role) {
            return false;
        }
    }
    return true;
}
static_assert(roles_are_in_order(), "operations.def: arguments of one role stand together");
static_assert(kTensors + kVectors <= 64, "Values keeps a bit for each");

constexpr Arg argument_named(std::string_view name) {
    for (int i = 0; i < kArguments; i++) {
        if (name == kArgumentRows[i].name) {
            return Arg(i);
        }
    }
    return Arg::none;
}

// ---- kernels

// That any kernel takes.
constexpr int kMostTensors = 5;

// Maps and sums are over tensors.
enum class KernelKind : uint8_t { map, sums, vectors };

struct KernelRow {
    const char *name;
    KernelKind kind;
};
inline constexpr KernelRow kKernelRows[] = {
#define HBN_KERNEL(name, generator, parameters, activation, kind, layouts) \
    {#name, KernelKind::kind},
#include "runtime/operations.def"
#define HBN_VECTOR_KERNEL(name, dtypes) {#name, KernelKind::vectors},
#include "runtime/operations.def"
};

constexpr const KernelRow &row(Kernel k) {
    return kKernelRows[int(k)];
}

constexpr Kernel kernel_named(std::string_view name) {
    for (int i = 0; i < kKernels; i++) {
        if (name == kKernelRows[i].name) {
            return Kernel(i);
        }
    }
    return Kernel::none;
}

// ---- activations

struct ActivationRow {
    const char *name;
    // The maps that serve it where no fused kernel does.
    Kernel forward, backward;
};
inline constexpr ActivationRow kActivationRows[] = {
#define HBN_ACTIVATION(name, c_name, compiled, forward, backward, slope, low, high) \
    {#name, Kernel::forward, Kernel::backward},
#include "runtime/operations.def"
};

#define HBN_ACTIVATION(name, c_name, ...)          \
    static_assert(int(Activation::name) == c_name, \
                  "operations.def: activations stand in the order of hbn.h's");
#include "runtime/operations.def"

constexpr const ActivationRow &row(Activation a) {
    return kActivationRows[int(a)];
}

// ---- operations

enum class Direction : uint8_t { in, inout, out };
enum class Presence : uint8_t { required, optional, batch, running };

// One argument of an operation.
struct Use {
    Arg arg = Arg::none;
    Direction direction = Direction::in;
    Presence presence = Presence::required;
    Arg in_place_of = Arg::none;  // the input that it may be
    uint64_t unless = 0;  // which arguments forbid that where they are given, a bit for each
};

// Of names separated by spaces, or "none".
constexpr uint64_t bits_of(std::string_view names) {
    uint64_t bits = 0;
    for (size_t begin = 0; begin < names.size();) {
        size_t end = begin;
        while (end < names.size() && names[end] != ' ') {
            end++;
        }
        const Arg a = argument_named(names.substr(begin, end - begin));
        bits |= a == Arg::none ? 0 : uint64_t(1) << int(a);
        begin = end + 1;
    }
    return bits;
}

constexpr int kMostUses = 20;

struct OperationRow {
    const char *name = "";
    int size = 0;
    Use uses[kMostUses];
    uint8_t use_of[kArguments] =
        {};  // 1 + its index in uses; 0 for what the operation doesn't have
    // Its vectors, as indices in uses, in the order in which operations.def names arguments: that of checks. The
    // first are parameters, the others statistics.
    int num_vectors = 0, num_parameters = 0;
    uint8_t vectors[kMostUses] = {};

    constexpr const Use *begin() const {
        return uses;
    }
    constexpr const Use *end() const {
        return uses + size;
    }
};

// Rows as operations.def has them, one after the other: an operation's name, then its arguments.
struct OperationLine {
    const char *operation;
    Use use;
};
inline constexpr OperationLine kOperationLines[] = {
#define HBN_OPERATION(name) {#name, {}},
#define HBN_IN(name, presence) {nullptr, {Arg::name, Direction::in, Presence::presence}},
#define HBN_INOUT(name, presence) {nullptr, {Arg::name, Direction::inout, Presence::presence}},
#define HBN_OUT(name, presence, in_place_of, unless) \
    {nullptr, {Arg::name, Direction::out, Presence::presence, Arg::in_place_of, bits_of(#unless)}},
#include "runtime/operations.def"
};

struct OperationTable {
    OperationRow rows[kOperations];

    constexpr OperationTable() {
        int operation = -1;
        for (const OperationLine &line : kOperationLines) {
            if (line.operation) {
                rows[++operation].name = line.operation;
            } else {
                OperationRow &row = rows[operation];
                row.uses[row.size++] = line.use;
                row.use_of[int(line.use.arg)] = uint8_t(row.size);
            }
        }
        for (OperationRow &row : rows) {
            for (int i = kTensors; i < kTensors + kVectors; i++) {
                if (row.use_of[i]) {
                    row.vectors[row.num_vectors++] = uint8_t(row.use_of[i] - 1);
                    row.num_parameters += role(Arg(i)) == Role::parameter;
                }
            }
        }
    }
};
inline constexpr OperationTable kOperationTable;

constexpr const OperationRow &row(Operation operation) {
    return kOperationTable.rows[int(operation)];
}

// Whether `names`, as "x, weight, bias", are the operation's arguments in order.
constexpr bool names_match(Operation operation, std::string_view names) {
    for (const Use &use : row(operation)) {
        const std::string_view name = row(use.arg).name;
        if (names.substr(0, name.size()) != name) {
            return false;
        }
        names.remove_prefix(name.size());
        if (names.substr(0, 2) == ", ") {
            names.remove_prefix(2);
        }
    }
    return names.empty();
}

}  // namespace hbn::internal

#endif
