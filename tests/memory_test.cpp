// Kernels touch nothing outside their tensors: data ends, or begins, at a page that must not be touched.
#include "oracle.h"

#include <sys/mman.h>
#include <unistd.h>

namespace hbn::test {
namespace {

// Room for `bytes` between two forbidden pages, at the end of the room or at its start.
class GuardedMemory {
public:
    GuardedMemory(size_t bytes, bool at_end) {
        const size_t page = size_t(sysconf(_SC_PAGESIZE));
        const size_t room = (bytes + page - 1) / page * page;
        length_ = room + 2 * page;
        base_ = static_cast<uint8_t *>(
            mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + page, room, PROT_READ | PROT_WRITE) != 0) {
            throw std::bad_alloc();
        }
        data_ = base_ + page + (at_end ? room - bytes : 0);
    }
    ~GuardedMemory() {
        munmap(base_, length_);
    }
    GuardedMemory(const GuardedMemory &) = delete;
    GuardedMemory &operator=(const GuardedMemory &) = delete;

    uint8_t *data() const {
        return data_;
    }

private:
    uint8_t *base_, *data_;
    size_t length_;
};

class GuardPages : public ::testing::TestWithParam<std::tuple<DType, MemoryFormat, Shape, bool>> {};

TEST_P(GuardPages, untouched_by_every_operation) {
    const auto [dtype, format, sizes, at_end] = GetParam();
    const int64_t channels = sizes[1];
    const size_t tensor_bytes = size_t(sizes[0] * sizes[1] * sizes[2] * sizes[3]) * size_of(dtype);
    const DType statistics = statistic_dtype(dtype);
    const size_t vector_bytes = size_t(channels) * size_of(statistics);

    const GuardedMemory x_memory(tensor_bytes, at_end), dy_memory(tensor_bytes, at_end),
        y_memory(tensor_bytes, at_end), dx_memory(tensor_bytes, at_end);
    const TensorView x(x_memory.data(), dtype, sizes, format),
        y(y_memory.data(), dtype, sizes, format), dy(dy_memory.data(), dtype, sizes, format),
        dx(dx_memory.data(), dtype, sizes, format);
    const GuardedMemory vectors[] = {{vector_bytes, at_end},
                                     {vector_bytes, at_end},
                                     {vector_bytes, at_end},
                                     {vector_bytes, at_end}};
    const auto vector = [&](int i) { return VectorView(vectors[i].data(), statistics, channels); };
    Normal normal{2};
    for (int64_t i = 0; i < x.num_elements(); i++) {
        store(dtype, normal(), x_memory.data() + i * int64_t(size_of(dtype)));
        store(dtype, normal(), dy_memory.data() + i * int64_t(size_of(dtype)));
    }
    for (const GuardedMemory &memory : vectors) {
        for (int64_t c = 0; c < channels; c++) {
            store(statistics, 1 + normal(0, 0.1), memory.data() + c * int64_t(size_of(statistics)));
        }
    }

    // A stray access ends the process.
    const auto saved = functional::batch_norm_forward(x, vector(0), vector(1), vector(2), vector(3),
                                                      true, 0.1, 1e-5, y);
    functional::batch_norm_forward(x, vector(0), vector(1), vector(2), vector(3), false, 0.1, 1e-5,
                                   y);
    for (bool input : {true, false}) {
        for (bool parameters : {true, false}) {
            const functional::GradMask mask{input, parameters, parameters};
            const auto out = input ? std::optional<TensorView>(dx) : std::nullopt;
            functional::batch_norm_backward(dy, x, vector(0), saved.mean, saved.invstd, {}, {},
                                            true, 1e-5, mask, out);
            functional::batch_norm_backward(dy, x, vector(0), {}, {}, vector(2), vector(3), false,
                                            1e-5, mask, out);
        }
    }
    const auto moments = functional::batch_norm_stats(x);
    functional::batch_norm_normalize(x, moments, vector(0), vector(1), 1e-5, y);
    const auto sums = functional::batch_norm_backward_reduce(dy, x, saved.mean, saved.invstd);
    functional::batch_norm_backward_elemt(dy, x, saved.mean, saved.invstd, vector(0), sums,
                                          moments.count, dx);
    for (bool training : {true, false}) {
        functional::batch_norm_jvp(dy, x, vector(0), vector(1), vector(1), saved.mean, saved.invstd,
                                   vector(2), vector(3), training, 1e-5, dx);
        functional::batch_norm_double_backward(dx, vector(0), vector(1), dy, x, vector(0),
                                               saved.mean, saved.invstd, vector(2), vector(3),
                                               training, 1e-5);
    }
    const double last = load(dtype, static_cast<uint8_t *>(y.data) + tensor_bytes - size_of(dtype));
    EXPECT_TRUE(std::isfinite(last));
}

INSTANTIATE_TEST_SUITE_P(
    , GuardPages,
    ::testing::Combine(::testing::Values(DType::float32, DType::float64, DType::bfloat16,
                                         DType::float16),
                       ::testing::Values(MemoryFormat::contiguous, MemoryFormat::channels_last),
                       ::testing::Values(Shape{1, 1, 1, 2}, Shape{2, 3, 7, 7}, Shape{3, 17, 5, 3},
                                         Shape{2, 33, 13, 11}, Shape{1, 3, 91, 91}),
                       ::testing::Bool()),
    [](const auto &info) {
        return std::string(name_of(std::get<0>(info.param))) +
               (std::get<1>(info.param) == MemoryFormat::contiguous ? "_nchw_" : "_nhwc_") +
               shape_name(std::get<2>(info.param)) +
               (std::get<3>(info.param) ? "_before_the_end" : "_after_the_start");
    });

}  // namespace
}  // namespace hbn::test
