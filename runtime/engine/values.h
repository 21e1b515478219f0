// The values of an operation's arguments, by name.
#ifndef HBN_RUNTIME_ENGINE_VALUES_H
#define HBN_RUNTIME_ENGINE_VALUES_H

#include "table.h"

namespace hbn::internal {

// What an entry point was given for one argument. Borrows: for use within the call that it is written in.
struct Given {
    enum class Kind : uint8_t { tensor, vector, array, number, activation } kind;
    union {
        const hbn_tensor *tensor;
        const hbn_vector *vector;
        const double *array;  // one value a channel
        double number;
        const hbn_activation *activation;
    };

    // To be assigned.
    Given() {
    }
    Given(const hbn_tensor *t) : kind(Kind::tensor), tensor(t) {
    }
    Given(const hbn_vector *v) : kind(Kind::vector), vector(v) {
    }
    Given(const double *a) : kind(Kind::array), array(a) {
    }
    Given(double n) : kind(Kind::number), number(n) {
    }
    Given(int n) : kind(Kind::number), number(n) {
    }
    Given(const hbn_activation *a) : kind(Kind::activation), activation(a) {
    }

    static constexpr bool fits(Kind kind, Role role) {
        switch (kind) {
        case Kind::tensor:
            return role == Role::tensor || role == Role::mask;
        case Kind::vector:
            return role == Role::parameter || role == Role::statistic;
        case Kind::array:
            return role == Role::statistic;
        case Kind::number:
            return role == Role::number;
        case Kind::activation:
            return role == Role::activation;
        }
        return false;
    }
};

// What is not given is not initialized: an object of this class costs no more than a call needs.
class Values {
public:
    Values() : given_(0) {
    }
    // Copies what is given.
    Values(const Values &other) {
        copy(other);
    }
    Values &operator=(const Values &other) {
        if (this != &other) {
            copy(other);
        }
        return *this;
    }

    // Whether there is a tensor or a vector of this name.
    bool has(Arg a) const {
        return (given_ >> int(a) & 1) != 0;
    }
    // Whether any of those in `bits` is given, a bit for each.
    bool has_any(uint64_t bits) const {
        return (given_ & bits) != 0;
    }
    bool has_tensors() const {
        return has_any((uint64_t(1) << kTensors) - 1);
    }
    void set(Arg a, const hbn_tensor &t) {
        tensors_[int(a)] = t;
        given_ |= bit(a);
    }
    void set(Arg a, const hbn_vector &v) {
        vectors_[int(a) - kTensors] = v;
        given_ |= bit(a);
    }
    void set(Arg a, double number) {
        numbers_[int(a) - kFirstNumber] = number;
    }
    void remove(Arg a) {
        given_ &= ~bit(a);
    }

    // Of an argument that is given.
    const hbn_tensor &tensor(Arg a) const {
        return tensors_[int(a)];
    }
    const hbn_vector &vector(Arg a) const {
        return vectors_[int(a) - kTensors];
    }
    double number(Arg a) const {
        return numbers_[int(a) - kFirstNumber];
    }

    // Calls visit(Arg) for each tensor, or each vector, that is given.
    template<typename Visit>
    void for_each_tensor(Visit visit) const {
        for_each(0, kTensors, visit);
    }
    template<typename Visit>
    void for_each_vector(Visit visit) const {
        for_each(kTensors, kTensors + kVectors, visit);
    }

private:
    static uint64_t bit(Arg a) {
        return uint64_t(1) << int(a);
    }

    template<typename Visit>
    void for_each(int begin, int end, Visit visit) const {
        uint64_t left = given_ >> begin << begin;
        left &= end < 64 ? (uint64_t(1) << end) - 1 : ~uint64_t(0);
        for (; left; left &= left - 1) {
            visit(Arg(__builtin_ctzll(left)));
        }
    }

    void copy(const Values &other) {
        given_ = other.given_;
        other.for_each_tensor([&](Arg a) { tensors_[int(a)] = other.tensors_[int(a)]; });
        other.for_each_vector([&](Arg a) { set(a, other.vector(a)); });
        for (int i = 0; i < kNumbers; i++) {
            numbers_[i] = other.numbers_[i];
        }
    }

    uint64_t given_;
    hbn_tensor tensors_[kTensors];
    hbn_vector vectors_[kVectors];
    double numbers_[kNumbers] = {};
};

}  // namespace hbn::internal

#endif
