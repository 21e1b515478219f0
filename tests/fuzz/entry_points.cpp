#include "fuzz.h"

#include "runtime/checks.h"
#include "runtime/engine/table.h"
#include "runtime/internal.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace hbn::test {

namespace {

using internal::Role;

// ---- the functions

enum class Kind { tensor, vector, moments, array, number, integer, activation };

// What is given for one parameter.
struct Slot {
    std::string name;
    Role role = Role::number;
    bool is_written = false;
    Kind kind = Kind::number;

    bool is_null = false;
    hbn_tensor tensor{};
    hbn_vector vector{};
    hbn_moments moments{};
    double *array = nullptr;
    double number = 0;
    int integer = 0;
    hbn_activation activation{};
};

// Which slot's member a parameter of each type takes. A new type of parameter is one more here.
template<typename T>
struct Parameter;
template<>
struct Parameter<const hbn_tensor *> {
    static constexpr Kind kind = Kind::tensor;
    static const hbn_tensor *of(Slot &s) {
        return s.is_null ? nullptr : &s.tensor;
    }
};
template<>
struct Parameter<const hbn_vector *> {
    static constexpr Kind kind = Kind::vector;
    static const hbn_vector *of(Slot &s) {
        return s.is_null ? nullptr : &s.vector;
    }
};
template<>
struct Parameter<hbn_moments *> {
    static constexpr Kind kind = Kind::moments;
    static hbn_moments *of(Slot &s) {
        return s.is_null ? nullptr : &s.moments;
    }
};
template<>
struct Parameter<const hbn_moments *> : Parameter<hbn_moments *> {};
template<>
struct Parameter<double *> {
    static constexpr Kind kind = Kind::array;
    static double *of(Slot &s) {
        return s.is_null ? nullptr : s.array;
    }
};
template<>
struct Parameter<const double *> : Parameter<double *> {};
template<>
struct Parameter<double> {
    static constexpr Kind kind = Kind::number;
    static double of(Slot &s) {
        return s.number;
    }
};
template<>
struct Parameter<int> {
    static constexpr Kind kind = Kind::integer;
    static int of(Slot &s) {
        return s.integer;
    }
};
template<>
struct Parameter<const hbn_activation *> {
    static constexpr Kind kind = Kind::activation;
    static const hbn_activation *of(Slot &s) {
        return s.is_null ? nullptr : &s.activation;
    }
};

struct Function {
    const char *name;
    std::vector<Slot> slots;
    std::function<hbn_status(std::vector<Slot> &)> call;
};

// `parameters`: their names in order, those that are written with > before them.
template<typename... Types, size_t... index>
Function make_function(const char *name, const std::string &parameters,
                       hbn_status (*function)(Types...), std::index_sequence<index...>) {
    Function f{name, {}, [function](std::vector<Slot> &slots) {
                   return function(Parameter<Types>::of(slots[index])...);
               }};
    std::istringstream names(parameters);
    for (const Kind kind : {Parameter<Types>::kind...}) {
        Slot slot;
        names >> slot.name;
        slot.kind = kind;
        slot.is_written = slot.name[0] == '>';
        slot.name.erase(0, slot.is_written);
        const internal::Arg arg = internal::argument_named(slot.name);
        slot.role = arg == internal::Arg::none ? Role::number : role(arg);
        f.slots.push_back(slot);
    }
    return f;
}

template<typename... Types>
Function function(const char *name, const std::string &parameters,
                  hbn_status (*function)(Types...)) {
    return make_function(name, parameters, function, std::index_sequence_for<Types...>());
}

// A function whose parameters are those of its operation in operations.def.
template<typename... Types>
Function function(internal::Operation operation, hbn_status (*f)(Types...)) {
    std::string parameters;
    for (const internal::Use &use : row(operation)) {
        parameters += use.direction == internal::Direction::in ? " " : " >";
        parameters += row(use.arg).name;
    }
    return function(row(operation).name, parameters, f);
}

// All that take tensors, vectors or moments. `make test` fails where an operation of operations.def is not here.
std::vector<Function> &functions() {
    using internal::Operation;
    static std::vector<Function> all{
        function(Operation::forward, hbn_batch_norm_forward),
        function(Operation::activation_forward, hbn_batch_norm_activation_forward),
        function(Operation::backward, hbn_batch_norm_backward),
        function(Operation::activation_backward, hbn_batch_norm_activation_backward),
        function(Operation::jvp, hbn_batch_norm_jvp),
        function(Operation::double_backward, hbn_batch_norm_double_backward),
        function(Operation::backward_reduce, hbn_batch_norm_backward_reduce),
        function(Operation::backward_elemt, hbn_batch_norm_backward_elemt),
        function("stats", "x >moments", hbn_batch_norm_stats),
        function("normalize", "x moments weight bias eps >y", hbn_batch_norm_normalize),
        function("merge_moments", ">into other", hbn_merge_moments),
        function("finalize_moments",
                 "moments momentum eps >running_mean >running_var >save_mean >invstd",
                 hbn_finalize_moments),
    };
    return all;
}

std::vector<EntryPointCounts> &counts() {
    static std::vector<EntryPointCounts> all = [] {
        std::vector<EntryPointCounts> made;
        for (const Function &f : functions()) {
            made.push_back({f.name});
        }
        made.push_back({nullptr});
        return made;
    }();
    return all;
}

// ---- memory

// The one buffer that every argument's data is in, between pages that nobody may touch.
class Arena {
public:
    static constexpr int64_t kSize = 32 * 1024;

    Arena() {
        const int64_t guard = sysconf(_SC_PAGESIZE);
        void *pages =
            mmap(nullptr, size_t(kSize + 2 * guard), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED ||
            mprotect(static_cast<char *>(pages) + guard, kSize, PROT_READ | PROT_WRITE) != 0) {
            std::abort();
        }
        data_ = static_cast<char *>(pages) + guard;
        std::minstd_rand random(1);
        for (int64_t i = 0; i < kSize / 2; i++) {
            // Numbers around 1 of every float dtype.
            const uint16_t value = uint16_t(0x3f00 + random() % 256);
            std::memcpy(pattern_ + 2 * i, &value, 2);
        }
    }
    char *begin() {
        return data_;
    }
    // What is in it where nobody has written.
    const char *pattern() const {
        return pattern_;
    }
    void reset() {
        std::memcpy(data_, pattern_, kSize);
        front_ = 0;
        back_ = kSize;
    }
    bool holds(const void *data, int64_t bytes) const {
        const uintptr_t begin = uintptr_t(data_), at = uintptr_t(data);
        return at >= begin && at - begin <= uintptr_t(kSize - bytes) && bytes <= kSize;
    }
    // Aligned room at either end of what is left; what is last ends where the buffer does. When all is taken, it
    // begins again: such calls are mostly refused, for what overlaps.
    char *take(Choices &choices, int64_t bytes, int64_t alignment) {
        if (back_ - front_ < bytes + 4 * alignment) {
            front_ = 0;
            back_ = kSize;
        }
        if (choices.one_in(4)) {
            back_ = std::max<int64_t>(back_ - bytes, 0) / alignment * alignment;
            return data_ + back_;
        }
        const int64_t begin =
            (front_ + alignment - 1) / alignment * alignment + alignment * choices.between(0, 2);
        front_ = begin + bytes;
        return data_ + begin;
    }

private:
    char *data_;
    char pattern_[kSize];
    int64_t front_ = 0, back_ = kSize;
};

Arena &arena() {
    static Arena the;
    return the;
}

// What is known of an argument without asking hbn.
enum class Verdict {
    fine,     // all that it says is its memory is in the arena
    refused,  // it must be refused
    outside,  // it could be right, but not in this program
};

// Of `dimensions` sizes, none negative, and strides.
Verdict judge_memory(const void *data, int64_t bytes, int dimensions, const int64_t *sizes,
                     const int64_t *strides) {
    // Exact where the arena has room, and close enough elsewhere.
    double last = 0, elements = 1;
    for (int d = 0; d < dimensions; d++) {
        elements *= double(sizes[d]);
    }
    if (elements == 0) {
        return Verdict::fine;
    }
    for (int d = 0; d < dimensions; d++) {
        if (sizes[d] > 1 && strides[d] < 0) {
            return Verdict::refused;
        }
        last += sizes[d] > 1 ? double(sizes[d] - 1) * double(strides[d]) : 0;
    }
    const double span = (last + 1) * double(bytes), largest = std::ldexp(1.0, 62);
    const uintptr_t address = uintptr_t(data), room = UINTPTR_MAX - address;
    const bool is_small = span <= Arena::kSize;
    if (!data || address % uintptr_t(bytes) != 0 || span > largest || elements > largest ||
        (is_small ? uintptr_t(span) > room : span > 2 * double(UINTPTR_MAX))) {
        return Verdict::refused;
    }
    // More elements than the arena has are for an afternoon's test.
    return is_small && arena().holds(data, int64_t(span)) && elements <= Arena::kSize
               ? Verdict::fine
               : Verdict::outside;
}

Verdict judge_array(const double *data, int64_t size) {
    const int64_t stride = 1;
    return size < 0 ? Verdict::refused : judge_memory(data, 8, 1, &size, &stride);
}

// `channels`: of x, if there is one.
Verdict judge(const Slot &s, int64_t channels, bool ignores_count) {
    if (s.is_null) {
        return Verdict::fine;  // whether it must be given depends on the others
    }
    switch (s.kind) {
    case Kind::tensor: {
        const hbn_tensor &t = s.tensor;
        const bool right_dtype = s.role == Role::mask ? internal::raw(t.dtype) == HBN_UINT8
                                                      : internal::is_float(t.dtype);
        if (t.ndim != 4 || !right_dtype || internal::raw(t.device) != HBN_CPU ||
            *std::min_element(t.sizes, t.sizes + 4) < 0) {
            return Verdict::refused;
        }
        // A product with a zero after a large number must be seen as empty.
        if (internal::is_empty(t)) {
            return Verdict::fine;
        }
        return judge_memory(t.data, internal::element_size(t.dtype), 4, t.sizes, t.strides);
    }
    case Kind::vector: {
        const hbn_vector &v = s.vector;
        if (!internal::is_float(v.dtype) || internal::raw(v.device) != HBN_CPU || v.size < 0) {
            return Verdict::refused;
        }
        return judge_memory(v.data, internal::element_size(v.dtype), 1, &v.size, &v.stride);
    }
    case Kind::moments: {
        const hbn_moments &m = s.moments;
        if (!ignores_count && !(m.count >= 0 && std::isfinite(m.count))) {
            return Verdict::refused;
        }
        return std::max(
            judge_array(m.mean, m.channels), judge_array(m.m2, m.channels),
            [](Verdict a, Verdict b) { return a == Verdict::fine || b == Verdict::refused; });
    }
    case Kind::array:
        return judge_array(s.array, channels);
    case Kind::activation:
        return internal::raw(s.activation.kind) < internal::kActivations ? Verdict::fine
                                                                         : Verdict::refused;
    case Kind::number:
    case Kind::integer:
        break;
    }
    return Verdict::fine;
}

// ---- calls

// A call that is right, but for which of the optional arguments go together.
class CallMaker {
public:
    CallMaker(Choices &choices, std::vector<Slot> &slots) : choices_(choices), slots_(slots) {
        for (int64_t &size : sizes_) {
            size = choices.one_in(24) ? 0 : choices.between(1, 4);
        }
        if (choices.one_in(6)) {
            sizes_[choices.below(4)] = choices.between(5, 19);
        }
        dtype_ = choices.pick({HBN_FLOAT32, HBN_BFLOAT16, HBN_FLOAT32, HBN_FLOAT64, HBN_FLOAT16});
        presence_ = choices.pick<uint32_t>({1, 2, 8});
        // The tensors of one dtype have one layout, or each its own.
        choose_order();
    }

    void make_all() {
        for (Slot &s : slots_) {
            make(&s);
        }
    }

private:
    void choose_order() {
        const int orders[][4] = {{0, 1, 2, 3}, {0, 2, 3, 1}, {2, 0, 3, 1}, {1, 3, 0, 2}};
        std::copy_n(orders[choices_.below(4)], 4, order_);
    }

    void make(Slot *s) {
        switch (s->kind) {
        case Kind::tensor:
            s->is_null = is_optional(s->name) && choices_.one_in(2);
            s->tensor = tensor(s->role == Role::mask ? HBN_UINT8 : dtype_, s->is_written);
            break;
        case Kind::vector:
            s->is_null = choices_.below(presence_) != 0;
            s->vector = vector(s->role == Role::statistic ? HBN_FLOAT64
                               : dtype_ == HBN_FLOAT64    ? HBN_FLOAT64
                               : choices_.one_in(2)       ? dtype_
                                                          : HBN_FLOAT32);
            break;
        case Kind::moments:
            s->moments = {double(sizes_[0] * sizes_[2] * sizes_[3]), array(), array(), sizes_[1]};
            break;
        case Kind::array:
            s->array = array();
            break;
        case Kind::number:
            s->number = s->name == "momentum" ? choices_.pick({0.1, 0.0, 1.0})
                        : s->name == "eps"    ? choices_.pick({1e-5, 1e-3, 1.0})
                                              : 24;
            break;
        case Kind::integer:
            s->integer = int(choices_.below(2));
            break;
        case Kind::activation:
            s->activation = {hbn_activation_kind(choices_.below(6)),
                             choices_.pick({0.1, 0.0, -1.0}), choices_.pick({6.0, 0.1, 1.0})};
            break;
        }
    }

    static bool is_optional(const std::string &name) {
        return name == "residual" || name == "mask" || name == "grad_residual";
    }

    hbn_tensor tensor(hbn_dtype dtype, bool is_written) {
        hbn_tensor t{};
        t.dtype = dtype;
        t.ndim = 4;
        std::copy_n(sizes_, 4, t.sizes);
        const int64_t bytes = internal::element_size(dtype);
        if (beside_.data && beside_.dtype == dtype) {
            t = beside_;
            beside_.data = nullptr;
            return t;
        }
        if (choices_.one_in(3)) {
            choose_order();
        }
        // Sometimes half of the channels of a larger tensor; the next tensor is the other half.
        const bool is_half = choices_.one_in(6);
        int64_t stride = choices_.one_in(5) ? 2 : 1, last = 0;
        for (int i = 3; i >= 0; i--) {
            const int d = order_[i];
            t.strides[d] = stride;
            stride *= std::max<int64_t>(t.sizes[d], 1) * (is_half && d == 1 ? 2 : 1) +
                      (choices_.one_in(10) ? 1 : 0);
        }
        if (!is_written && choices_.one_in(8)) {
            t.strides[choices_.below(4)] = 0;
        }
        for (int d = 0; d < 4; d++) {
            last +=
                std::max<int64_t>(t.sizes[d] * (is_half && d == 1 ? 2 : 1) - 1, 0) * t.strides[d];
        }
        t.data = arena().take(choices_, (last + 1) * bytes, bytes);
        if (is_half) {
            beside_ = t;
            beside_.data = static_cast<char *>(t.data) + t.sizes[1] * t.strides[1] * bytes;
        }
        return t;
    }

    hbn_vector vector(hbn_dtype dtype) {
        const int64_t bytes = internal::element_size(dtype);
        const int64_t stride = choices_.one_in(4) ? choices_.between(1, 3) : 1;
        return {arena().take(choices_, (std::max<int64_t>(sizes_[1] - 1, 0) * stride + 1) * bytes,
                             bytes),
                dtype, sizes_[1], stride, HBN_CPU};
    }

    double *array() {
        return reinterpret_cast<double *>(arena().take(choices_, sizes_[1] * 8, 8));
    }

    Choices &choices_;
    std::vector<Slot> &slots_;
    int64_t sizes_[4];
    hbn_dtype dtype_;
    uint32_t presence_;  // vectors are there in one of so many cases
    int order_[4];
    hbn_tensor beside_{};
};

// ---- what is a little wrong

int64_t any_number(Choices &choices) {
    switch (choices.below(8)) {
    case 0:
        return int64_t(choices.bits64());
    case 1:
        return int64_t(1) << choices.below(63);
    case 2:
        return choices.pick<int64_t>({INT64_MIN, INT64_MAX, -1, INT32_MIN, INT32_MAX, UINT32_MAX});
    default:
        return choices.between(-1, 5);
    }
}

double any_double(Choices &choices) {
    const double infinity = std::numeric_limits<double>::infinity();
    return choices.pick(
        {std::nan(""), infinity, -infinity, 0.0, -0.0, -1.0, 1e308, 5e-324, 2.0, 0.5});
}

template<typename Enum>
void spoil_enum(Choices &choices, Enum *value) {
    const int number = choices.one_in(2) ? int(choices.between(-2, 9)) : int(choices.bits64());
    std::memcpy(value, &number, sizeof number);
}

// Null, not aligned, another argument's or a neighbour.
template<typename T>
void spoil_pointer(Choices &choices, std::vector<Slot> &slots, int64_t bytes, T **data) {
    const auto moved = [&](int64_t by) {
        *data = reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(*data) + uintptr_t(by));
    };
    switch (choices.below(6)) {
    case 0:
        *data = nullptr;
        return;
    case 1:
        moved(choices.between(1, 7));
        return;
    case 2:
        moved(bytes * choices.between(-4, 4));
        return;
    case 3:
        *data = reinterpret_cast<T *>(UINTPTR_MAX - uintptr_t(choices.between(0, 64)));
        return;
    default:
        break;
    }
    const Slot &other = slots[choices.below(uint32_t(slots.size()))];
    const void *theirs = other.kind == Kind::tensor    ? other.tensor.data
                         : other.kind == Kind::vector  ? other.vector.data
                         : other.kind == Kind::moments ? other.moments.mean
                                                       : other.array;
    if (theirs) {
        *data = static_cast<T *>(const_cast<void *>(theirs));
        moved(choices.one_in(3) ? bytes * choices.between(-2, 9) : 0);
    }
}

void spoil(Choices &choices, std::vector<Slot> &slots, Slot *s) {
    if (choices.one_in(10)) {
        s->is_null = !s->is_null;
        return;
    }
    switch (s->kind) {
    case Kind::tensor: {
        hbn_tensor &t = s->tensor;
        switch (choices.below(9)) {
        case 0:
            spoil_enum(choices, &t.dtype);
            break;
        case 1:
            spoil_enum(choices, &t.device);
            break;
        case 2:
            t.ndim = choices.one_in(2) ? int32_t(any_number(choices)) : 3;
            break;
        case 3:
            t.sizes[choices.below(4)] = any_number(choices);
            break;
        case 4:
            t.strides[choices.below(4)] = any_number(choices);
            break;
        case 5: {
            // In place, or nearly so.
            const Slot &other = slots[choices.below(uint32_t(slots.size()))];
            if (other.kind == Kind::tensor) {
                const hbn_tensor mine = t;
                t = other.tensor;
                if (s->role != other.role) {
                    std::memcpy(&t.dtype, &mine.dtype, sizeof t.dtype);
                }
            }
            break;
        }
        case 6:
            t.strides[choices.below(4)] = choices.between(0, 4);
            break;
        default:
            spoil_pointer(choices, slots, internal::element_size(t.dtype), &t.data);
        }
        break;
    }
    case Kind::vector: {
        hbn_vector &v = s->vector;
        switch (choices.below(6)) {
        case 0:
            spoil_enum(choices, &v.dtype);
            break;
        case 1:
            spoil_enum(choices, &v.device);
            break;
        case 2:
            v.size = any_number(choices);
            break;
        case 3:
            v.stride = any_number(choices);
            break;
        default:
            spoil_pointer(choices, slots, internal::element_size(v.dtype), &v.data);
        }
        break;
    }
    case Kind::moments: {
        hbn_moments &m = s->moments;
        switch (choices.below(4)) {
        case 0:
            m.count = any_double(choices);
            break;
        case 1:
            m.channels = any_number(choices);
            break;
        case 2:
            spoil_pointer(choices, slots, 8, &m.mean);
            break;
        default:
            spoil_pointer(choices, slots, 8, &m.m2);
        }
        break;
    }
    case Kind::array:
        spoil_pointer(choices, slots, 8, &s->array);
        break;
    case Kind::number:
        s->number = any_double(choices);
        break;
    case Kind::integer:
        s->integer = int(any_number(choices));
        break;
    case Kind::activation:
        if (choices.one_in(2)) {
            spoil_enum(choices, &s->activation.kind);
        } else {
            (choices.one_in(2) ? s->activation.alpha : s->activation.beta) = any_double(choices);
        }
        break;
    }
}

// ---- what may change

// Calls visit(first byte in the arena) for each element.
template<typename Visit>
void for_each_element(const void *data, int64_t bytes, int dimensions, const int64_t *sizes,
                      const int64_t *strides, Visit visit) {
    int64_t elements = 1;
    for (int d = 0; d < dimensions; d++) {
        elements *= sizes[d];
    }
    const int64_t begin = static_cast<const char *>(data) - arena().begin();
    for (int64_t i = 0; i < elements; i++) {
        int64_t rest = i, offset = 0;
        for (int d = 0; d < dimensions; d++) {
            offset += rest % sizes[d] * strides[d];
            rest /= sizes[d];
        }
        visit(begin + offset * bytes);
    }
}

// The bytes of an argument that is fine, each with the number of elements that it is in.
std::vector<uint8_t> bytes_of(const Slot &s, int64_t channels) {
    std::vector<uint8_t> all(Arena::kSize);
    const auto add = [&](int64_t bytes) {
        return [&all, bytes](int64_t at) {
            for (int64_t i = 0; i < bytes; i++) {
                all[size_t(at + i)]++;
            }
        };
    };
    const int64_t stride = 1;
    if (s.is_null) {
        return all;
    }
    if (s.kind == Kind::tensor && !internal::is_empty(s.tensor)) {
        const int64_t bytes = internal::element_size(s.tensor.dtype);
        for_each_element(s.tensor.data, bytes, 4, s.tensor.sizes, s.tensor.strides, add(bytes));
    } else if (s.kind == Kind::vector) {
        const int64_t bytes = internal::element_size(s.vector.dtype);
        for_each_element(s.vector.data, bytes, 1, &s.vector.size, &s.vector.stride, add(bytes));
    } else if (s.kind == Kind::moments) {
        for_each_element(s.moments.mean, 8, 1, &s.moments.channels, &stride, add(8));
        for_each_element(s.moments.m2, 8, 1, &s.moments.channels, &stride, add(8));
    } else if (s.kind == Kind::array) {
        for_each_element(s.array, 8, 1, &channels, &stride, add(8));
    }
    return all;
}

bool same_view(const Slot &a, const Slot &b) {
    if (a.kind != Kind::tensor || b.kind != Kind::tensor || a.tensor.data != b.tensor.data ||
        a.tensor.dtype != b.tensor.dtype) {
        return false;
    }
    for (int d = 0; d < 4; d++) {
        if (a.tensor.sizes[d] != b.tensor.sizes[d] ||
            (a.tensor.sizes[d] > 1 && a.tensor.strides[d] != b.tensor.strides[d])) {
            return false;
        }
    }
    return true;
}

std::string text_of(const Function &f, const std::vector<Slot> &slots) {
    std::string text = f.name;
    char line[400];
    for (const Slot &s : slots) {
        const long long at = static_cast<char *>(s.tensor.data) - arena().begin();
        const hbn_tensor &t = s.tensor;
        if (s.is_null) {
            std::snprintf(line, sizeof line, "null");
        } else if (s.kind == Kind::tensor) {
            std::snprintf(
                line, sizeof line,
                "%s at %lld, device %d, sizes %lld %lld %lld %lld, strides %lld %lld %lld %lld",
                internal::dtype_name(t.dtype), at, int(internal::raw(t.device)),
                (long long)t.sizes[0], (long long)t.sizes[1], (long long)t.sizes[2],
                (long long)t.sizes[3], (long long)t.strides[0], (long long)t.strides[1],
                (long long)t.strides[2], (long long)t.strides[3]);
        } else if (s.kind == Kind::vector) {
            std::snprintf(line, sizeof line, "%s at %lld, device %d, size %lld, stride %lld",
                          internal::dtype_name(s.vector.dtype),
                          (long long)(static_cast<char *>(s.vector.data) - arena().begin()),
                          int(internal::raw(s.vector.device)), (long long)s.vector.size,
                          (long long)s.vector.stride);
        } else if (s.kind == Kind::moments) {
            std::snprintf(line, sizeof line, "count %g, at %p and %p, channels %lld",
                          s.moments.count, static_cast<void *>(s.moments.mean),
                          static_cast<void *>(s.moments.m2), (long long)s.moments.channels);
        } else if (s.kind == Kind::array) {
            std::snprintf(line, sizeof line, "at %p", static_cast<void *>(s.array));
        } else if (s.kind == Kind::activation) {
            std::snprintf(line, sizeof line, "kind %d, %g, %g",
                          int(internal::raw(s.activation.kind)), s.activation.alpha,
                          s.activation.beta);
        } else {
            std::snprintf(line, sizeof line, "%g",
                          s.kind == Kind::number ? s.number : double(s.integer));
        }
        text += "\n  " + s.name + ": " + line;
    }
    return text;
}

int64_t channels_of(const std::vector<Slot> &slots) {
    for (const Slot &s : slots) {
        if (s.name == "x" && !s.is_null) {
            return s.tensor.sizes[1];
        }
    }
    return 0;
}

}  // namespace

const EntryPointCounts *entry_point_counts() {
    return counts().data();
}

int num_entry_points() {
    return int(functions().size());
}

void fuzz_entry_points(Choices &choices) {
    const size_t which = choices.below(uint32_t(functions().size()));
    const Function &f = functions()[which];
    std::vector<Slot> slots = f.slots;
    arena().reset();
    CallMaker(choices, slots).make_all();
    const std::vector<Slot> right = slots;
    for (uint32_t i = choices.pick<uint32_t>({0, 1, 1, 1, 2, 3}); i > 0; i--) {
        spoil(choices, slots, &slots[choices.below(uint32_t(slots.size()))]);
    }

    // What would be read or written elsewhere is put right; x first, since it says how long arrays are.
    const bool ignores_count = f.name == std::string("stats");
    bool must_be_refused = false;
    for (const bool arrays : {false, true}) {
        for (size_t i = 0; i < slots.size(); i++) {
            if ((slots[i].kind == Kind::array) != arrays) {
                continue;
            }
            if (judge(slots[i], channels_of(slots), ignores_count) == Verdict::outside) {
                slots[i] = right[i];
            }
        }
    }
    for (Slot &s : slots) {
        const Verdict verdict = judge(s, channels_of(slots), ignores_count);
        if (verdict == Verdict::outside) {
            return;  // an array that is too short for a right x
        }
        must_be_refused = must_be_refused || verdict == Verdict::refused;
    }

    std::vector<Slot> given = slots;
    // Sometimes kernels get no more elements at once than this, as of tensors of more than 2^31.
    internal::set_max_elements_per_kernel(choices.pick({0, 0, 0, 1, 8, 40}));
    const hbn_status status = f.call(slots);
    internal::set_max_elements_per_kernel(0);
    const char *data = arena().begin(), *before = arena().pattern();

    if (status != HBN_OK) {
        counts()[which].refused++;
        HBN_HOLDS(choices, status == HBN_INVALID_ARGUMENT || status == HBN_UNSUPPORTED,
                  "status %d: %s\n%s", int(status), hbn_last_error(), text_of(f, given).c_str());
        HBN_HOLDS(choices, hbn_last_error()[0] != '\0', "%s", text_of(f, given).c_str());
        HBN_HOLDS(choices, std::memcmp(data, before, Arena::kSize) == 0, "%s\n%s", hbn_last_error(),
                  text_of(f, given).c_str());
        for (size_t i = 0; i < slots.size(); i++) {
            HBN_HOLDS(choices,
                      std::memcmp(&slots[i].moments, &given[i].moments, sizeof(hbn_moments)) == 0,
                      "%s\n%s", hbn_last_error(), text_of(f, given).c_str());
        }
        return;
    }

    counts()[which].succeeded++;
    HBN_HOLDS(choices, !must_be_refused, "%s", text_of(f, given).c_str());
    std::vector<size_t> changed;
    for (size_t i = 0; i < size_t(Arena::kSize); i++) {
        if (data[i] != before[i]) {
            changed.push_back(i);
        }
    }
    // What was written is an output, and overlaps neither itself nor any other argument unless it is that very view.
    std::vector<std::vector<uint8_t>> bytes;
    for (const Slot &s : given) {
        bytes.push_back(bytes_of(s, channels_of(given)));
    }
    // Statistics that forward would save in training.
    const bool inference = std::any_of(given.begin(), given.end(), [](const Slot &s) {
        return s.name == "training" && s.integer == 0;
    });
    const auto may_be_ignored = [&](const Slot &s) {
        return inference && s.is_written && s.role == Role::statistic;
    };
    for (const size_t i : changed) {
        size_t out = 0;
        while (out < given.size() && !(given[out].is_written && bytes[out][i])) {
            out++;
        }
        HBN_HOLDS(choices, out < given.size(), "byte %d was written\n%s", int(i),
                  text_of(f, given).c_str());
        HBN_HOLDS(choices, bytes[out][i] == 1, "%s overlaps itself\n%s", given[out].name.c_str(),
                  text_of(f, given).c_str());
        for (size_t other = 0; other < given.size(); other++) {
            HBN_HOLDS(choices,
                      other == out || !bytes[other][i] || may_be_ignored(given[other]) ||
                          same_view(given[out], given[other]),
                      "%s overlaps %s\n%s", given[out].name.c_str(), given[other].name.c_str(),
                      text_of(f, given).c_str());
        }
    }
}

}  // namespace hbn::test
