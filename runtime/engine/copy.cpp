#include "copy.h"

#include "layout.h"
#include "runtime/checks.h"
#include "runtime/small_sort.h"
#include "runtime/halide/threads.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace hbn::internal {

namespace {

struct Dimension {
    int64_t size, from, to;  // strides in elements
};

// The element as a number of its size, whatever its dtype.
template<int bytes>
struct Element;
template<>
struct Element<1> {
    using Type __attribute__((may_alias)) = uint8_t;
};
template<>
struct Element<2> {
    using Type __attribute__((may_alias)) = uint16_t;
};
template<>
struct Element<4> {
    using Type __attribute__((may_alias)) = uint32_t;
};
template<>
struct Element<8> {
    using Type __attribute__((may_alias)) = uint64_t;
};

// A square of a transposition: its lines of both tensors stay in L1, and each is used as a whole.
constexpr int64_t kSquare = 32;
// What one task copies: enough to outweigh its start, small enough to share out evenly.
constexpr int64_t kTaskBytes = 64 << 10;

// What is left of a copy once dimensions that both tensors step through evenly are one: the innermost first, in the
// order of `to`. Where `from` is dense along another, that one is the second, and both are walked in squares.
class Copy {
public:
    Copy(const hbn_tensor &from, const hbn_tensor &to)
        : from_(static_cast<const char *>(from.data)),
          to_(static_cast<char *>(to.data)),
          bytes_(element_size(to.dtype)) {
        for (int d = 0; d < 4; d++) {
            if (to.sizes[d] != 1) {
                dimensions_[count_++] = {to.sizes[d], from.strides[d], to.strides[d]};
            }
        }
        small_sort(dimensions_, count_,
                   [](const Dimension &a, const Dimension &b) { return a.to < b.to; });
        merge();
        find_squares();
        find_tasks();
    }

    hbn_status run() const {
        const KernelScope scope(all_ < copy_thresholds::serial_elements, false);
        run_parallel(
            nullptr,
            [](void *, int task, uint8_t *self) {
                reinterpret_cast<const Copy *>(self)->run(task);
                return 0;
            },
            0, int(tasks_), reinterpret_cast<uint8_t *>(const_cast<Copy *>(this)));
        return check_loops();
    }

private:
    void merge() {
        for (int outer = count_ - 1; outer > 0; outer--) {
            Dimension &inner = dimensions_[outer - 1];
            const Dimension &mine = dimensions_[outer];
            if (mine.to == inner.size * inner.to && mine.from == inner.size * inner.from) {
                inner.size *= mine.size;
                std::copy(dimensions_ + outer + 1, dimensions_ + count_, dimensions_ + outer);
                count_--;
            }
        }
        while (count_ < 2) {
            dimensions_[count_++] = {1, 0, 0};
        }
    }

    // `to` is dense along the first dimension, `from` along a later one.
    void find_squares() {
        for (int d = 1; d < count_ && dimensions_[0].from != 1; d++) {
            if (dimensions_[d].from == 1) {
                std::rotate(dimensions_ + 1, dimensions_ + d, dimensions_ + d + 1);
                squares_ = dimensions_[0].size >= 8 && dimensions_[1].size >= 8;
                return;
            }
        }
    }

    // Along the outermost dimension that has enough steps, or else the one that has most: parts that lie far apart.
    void find_tasks() {
        for (int d = 0; d < count_; d++) {
            all_ *= dimensions_[d].size;
        }
        const int64_t wanted = std::clamp<int64_t>(all_ * bytes_ / kTaskBytes, 1, int64_t(1) << 16);
        cut_ = count_ - 1;
        for (int d = count_ - 1; d >= 0 && dimensions_[cut_].size < wanted; d--) {
            if (dimensions_[d].size > dimensions_[cut_].size) {
                cut_ = d;
            }
        }
        const int64_t size = dimensions_[cut_].size;
        // Whole squares.
        const int64_t unit = cut_ < 2 && (squares_ || cut_ == 0) ? kSquare : 1;
        step_ = (size + wanted - 1) / wanted;
        step_ = std::max<int64_t>((step_ + unit - 1) / unit * unit, 1);
        tasks_ = (size + step_ - 1) / step_;
    }

    void run(int64_t task) const {
        Copy part = *this;
        Dimension &d = part.dimensions_[cut_];
        const int64_t begin = task * step_;
        part.from_ += begin * d.from * bytes_;
        part.to_ += begin * d.to * bytes_;
        d.size = std::min(step_, d.size - begin);
        switch (bytes_) {
        case 1:
            return part.walk<1>();
        case 2:
            return part.walk<2>();
        case 4:
            return part.walk<4>();
        default:
            return part.walk<8>();
        }
    }

    template<int bytes>
    void walk() const {
        using T = typename Element<bytes>::Type;
        const T *from = reinterpret_cast<const T *>(from_);
        T *to = reinterpret_cast<T *>(to_);
        const Dimension none{1, 0, 0};
        const Dimension &third = count_ > 2 ? dimensions_[2] : none;
        const Dimension &fourth = count_ > 3 ? dimensions_[3] : none;
        for (int64_t i = 0; i < fourth.size; i++) {
            for (int64_t j = 0; j < third.size; j++) {
                plane(from + i * fourth.from + j * third.from, to + i * fourth.to + j * third.to);
            }
        }
    }

    // The first two dimensions.
    template<typename T>
    void plane(const T *__restrict from, T *__restrict to) const {
        const Dimension &inner = dimensions_[0], &outer = dimensions_[1];
        if (squares_) {
            return transpose(from, to);
        }
        if (inner.from == 1 && inner.to == 1) {
            // Pixels of few channels.
            switch (inner.size) {
            case 2:
                return short_lines<2>(from, to);
            case 3:
                return short_lines<3>(from, to);
            case 4:
                return short_lines<4>(from, to);
            default:
                break;
            }
        }
        for (int64_t j = 0; j < outer.size; j++) {
            line(from + j * outer.from, to + j * outer.to, inner.size, inner.from, inner.to);
        }
    }

    template<int size, typename T>
    void short_lines(const T *__restrict from, T *__restrict to) const {
        const Dimension outer = dimensions_[1];
        for (int64_t j = 0; j < outer.size; j++) {
            std::memcpy(to + j * outer.to, from + j * outer.from, size * sizeof(T));
        }
    }

    template<typename T>
    static void line(const T *__restrict from, T *__restrict to, int64_t size, int64_t from_stride,
                     int64_t to_stride) {
        if (from_stride == 1 && to_stride == 1) {
            if (size * int64_t(sizeof(T)) >= 64) {
                std::memcpy(to, from, size_t(size) * sizeof(T));
                return;
            }
            for (int64_t i = 0; i < size; i++) {
                to[i] = from[i];
            }
        } else if (from_stride == 2 && to_stride == 1) {
            for (int64_t i = 0; i < size; i++) {
                to[i] = from[2 * i];
            }
        } else {
            for (int64_t i = 0; i < size; i++) {
                to[i * to_stride] = from[i * from_stride];
            }
        }
    }

    template<typename T>
    void transpose(const T *__restrict from, T *__restrict to) const {
        const Dimension &inner = dimensions_[0], &outer = dimensions_[1];
        for (int64_t j0 = 0; j0 < outer.size; j0 += kSquare) {
            const int64_t j1 = std::min(outer.size, j0 + kSquare);
            for (int64_t i0 = 0; i0 < inner.size; i0 += kSquare) {
                const int64_t i1 = std::min(inner.size, i0 + kSquare);
                for (int64_t j = j0; j < j1; j++) {
                    for (int64_t i = i0; i < i1; i++) {
                        to[i * inner.to + j * outer.to] = from[i * inner.from + j];
                    }
                }
            }
        }
    }

    const char *from_;
    char *to_;
    const int bytes_;
    int count_ = 0;
    Dimension dimensions_[4];
    bool squares_ = false;
    int64_t all_ = 1;
    int cut_ = 0;  // the dimension that tasks are cut along
    int64_t step_ = 1, tasks_ = 1;
};

}  // namespace

hbn_status copy(const hbn_tensor &from, const hbn_tensor &to) {
    return is_empty(to) ? HBN_OK : Copy(from, to).run();
}

}  // namespace hbn::internal
