// One build of hbn, loaded beside another. Its C interface is declared here once more, not included,
// because the two builds may be of commits whose headers differ.
#ifndef HBN_BENCH_COMPARE_LIBRARY_H
#define HBN_BENCH_COMPARE_LIBRARY_H

#include <cstdint>
#include <string>

namespace hbn::compare {

// The values of hbn_status and hbn_dtype that are used here.
constexpr int kOk = 0;
constexpr int kMissing = -1;  // not hbn's: the library has no such function
enum DType : int32_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, UINT8 = 5 };

// Later versions may have further members, in which zero means what there was before.
struct LaterMembers {
    char zeros[64] = {};
};

struct Tensor {
    void *data = nullptr;
    int32_t dtype = FLOAT32;
    int32_t device = 0;
    int32_t ndim = 4;
    int64_t sizes[4] = {};
    int64_t strides[4] = {};
    LaterMembers later;
};

struct Vector {
    void *data = nullptr;
    int32_t dtype = FLOAT32;
    int64_t size = 0;
    int64_t stride = 1;
    LaterMembers later;
};

struct Moments {
    double count = 0;
    double *mean = nullptr;
    double *m2 = nullptr;
    int64_t channels = 0;
    LaterMembers later;
};

struct Activation {
    int kind = 1;  // ReLU
    double alpha = 0;
    double beta = 0;
    LaterMembers later;
};

// A function of the library. Calling one that it does not have gives kMissing.
template<typename... Parameters>
class Function {
public:
    void operator=(void *address) {
        function_ = reinterpret_cast<int (*)(Parameters...)>(address);
    }
    explicit operator bool() const {
        return function_ != nullptr;
    }
    int operator()(Parameters... arguments) const {
        return function_ ? function_(arguments...) : kMissing;
    }

private:
    int (*function_)(Parameters...) = nullptr;
};

using T = const Tensor *;
using V = const Vector *;
using A = const Activation *;

class Library {
public:
    // Loads the shared object in `path`, with symbols of its own.
    // @throws std::runtime_error where it can't be loaded or is not hbn
    explicit Library(const std::string &path);
    // The one that this program is linked with, whose functions it exports.
    static Library of_this_program();

    std::string last_error() const;
    // Its version and instruction set, as "0.1.0, avx512".
    std::string description() const;

    Function<int> set_num_threads;
    Function<> get_num_threads;

    Function<T, V, V, V, V, int, double, double, T, V, V> forward;
    Function<T, T, V, V, V, V, V, int, double, T, V, V> backward;
    Function<T, T, V, V, V, V, V, V, V, int, double, T> jvp;
    Function<T, V, V, T, T, V, V, V, V, V, int, double, T, T, V> double_backward;
    Function<T, Moments *> stats;
    Function<Moments *, const Moments *> merge_moments;
    Function<const Moments *, double, double, V, V, V, V> finalize_moments;
    Function<T, const Moments *, V, V, double, T> normalize;
    Function<T, T, V, V, double *, double *, V, V> backward_reduce;
    Function<T, T, V, V, V, const double *, const double *, double, T> backward_elemt;

    // Up to 8775ab6, ReLU had functions of its own.
    Function<T, V, V, V, V, int, double, double, T, V, V> relu_forward;
    Function<T, T, V, V, V, V, V, V, int, double, T, V, V> relu_backward;
    Function<T, T, V, V, V, V, int, double, double, T, T, V, V> add_relu_forward;
    Function<T, T, T, V, V, V, V, V, int, double, T, T, V, V> add_relu_backward;
    // Later, it is one of the activations.
    Function<T, T, V, V, V, V, int, double, double, A, T, T, V, V> activation_forward;
    Function<T, T, T, T, V, V, V, V, V, V, int, double, A, T, T, V, V> activation_backward;

private:
    explicit Library(void *handle);

    const char *(*last_error_)() = nullptr;
    const char *(*version_)() = nullptr;
    const char *(*instruction_set_)() = nullptr;
};

}  // namespace hbn::compare

#endif
