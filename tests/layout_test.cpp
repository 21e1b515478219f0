// Views: slices, expanded and transposed tensors, mixed layouts, empty ones, and views of other libraries' types.
#include "oracle.h"

#include <HalideBuffer.h>

namespace hbn::test {
namespace {

constexpr double kEps = 1e-5;

// The result for `view` equals, within rounding, the result for a dense copy of it.
void expect_same_as_dense(const ConstTensorView &view) {
    TestTensor dense(view.dtype, view.sizes), expected(view.dtype, view.sizes);
    const auto element = [&](int64_t n, int64_t c, int64_t h, int64_t w) {
        return static_cast<const uint8_t *>(view.data) +
               (n * view.strides[0] + c * view.strides[1] + h * view.strides[2] +
                w * view.strides[3]) *
                   int64_t(size_of(view.dtype));
    };
    for (int64_t c = 0; c < view.sizes[1]; c++) {
        dense.for_each_in_channel([&](int64_t n, int64_t h, int64_t w) {
            dense.set(n, c, h, w, load(view.dtype, element(n, c, h, w)));
        });
    }
    functional::batch_norm_forward(view, {}, {}, {}, {}, true, 0.1, kEps, expected.view());
    for (int64_t c = 0; c < view.sizes[1]; c++) {
        expect_normalized(dense, expected, c, ChannelOracle(dense, c, kEps), 1, 0);
    }
}

// What is written can be read, and not the other way round.
template<typename From, typename To>
constexpr bool converts = std::is_convertible_v<From, To>;
static_assert(converts<TensorView, ConstTensorView> && !converts<ConstTensorView, TensorView>);
static_assert(converts<VectorView, ConstVectorView> && !converts<ConstVectorView, VectorView>);
static_assert(converts<Tensor, ConstTensorView> && converts<Tensor, TensorView>);
static_assert(converts<Vector, ConstVectorView> && converts<Vector, VectorView>);

class Views : public ::testing::Test {
protected:
    Normal normal{9};
    TestTensor base{DType::float32, {4, 6, 8, 10}};

    void SetUp() override {
        base.fill([&](int64_t c) { return normal(double(c)); });
    }
    TensorView slice(int dimension, int64_t begin, int64_t size) const {
        TensorView v = base;
        v.data = static_cast<float *>(v.data) + begin * v.strides[dimension];
        v.sizes[dimension] = size;
        return v;
    }
};

TEST_F(Views, slice_of_each_dimension) {
    for (int dimension = 0; dimension < 4; dimension++) {
        expect_same_as_dense(slice(dimension, 1, base.sizes()[dimension] - 2));
    }
}

TEST_F(Views, every_second_element_of_each_dimension) {
    for (int dimension = 0; dimension < 4; dimension++) {
        TensorView v = base;
        v.sizes[dimension] /= 2;
        v.strides[dimension] *= 2;
        expect_same_as_dense(v);
    }
}

TEST_F(Views, every_pair_of_dimensions_transposed) {
    for (int a = 0; a < 4; a++) {
        for (int b = 0; b < a; b++) {
            TensorView v = base;
            std::swap(v.sizes[a], v.sizes[b]);
            std::swap(v.strides[a], v.strides[b]);
            expect_same_as_dense(v);
        }
    }
}

TEST_F(Views, expanded_along_each_dimension) {
    for (int dimension = 0; dimension < 4; dimension++) {
        TensorView v = slice(dimension, 0, 1);
        v.sizes[dimension] = 5;
        v.strides[dimension] = 0;
        expect_same_as_dense(v);
    }
}

TEST_F(Views, input_and_output_of_different_layouts) {
    for (Layout from : {Layout::nchw, Layout::nhwc, Layout::strided}) {
        for (Layout to : {Layout::nchw, Layout::nhwc, Layout::strided}) {
            TestTensor x(DType::float32, {3, 5, 4, 7}, from), y(DType::float32, {3, 5, 4, 7}, to);
            x.fill([&](int64_t) { return normal(2, 3); });
            functional::batch_norm_forward(x, {}, {}, {}, {}, true, 0.1, kEps, y.view());
            for (int64_t c = 0; c < 5; c++) {
                expect_normalized(x, y, c, ChannelOracle(x, c, kEps), 1, 0);
            }
            EXPECT_TRUE(y.only_elements_written());
        }
    }
}

TEST_F(Views, output_has_the_layout_of_the_input) {
    TestTensor x(DType::float32, {3, 5, 4, 7}, Layout::nhwc);
    x.fill([&](int64_t) { return normal(); });
    const Tensor y = functional::batch_norm(x, {}, {}, {}, {}, true);
    EXPECT_EQ(y.view().strides, x.view().strides);
    const Tensor plain = functional::batch_norm(base, {}, {}, {}, {}, true);
    EXPECT_EQ(plain.view().strides, base.view().strides);
}

TEST_F(Views, parameters_of_any_stride) {
    const std::vector<float> interleaved = {1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6};
    const ConstVectorView weight(interleaved.data(), DType::float32, 6, 2);
    const ConstVectorView bias(interleaved.data() + 1, DType::float32, 6, 2);
    TestTensor y(DType::float32, base.sizes());
    functional::batch_norm_forward(base, weight, bias, {}, {}, true, 0.1, kEps, y.view());
    for (int64_t c = 0; c < 6; c++) {
        expect_normalized(base, y, c, ChannelOracle(base, c, kEps), Real(c + 1), -Real(c + 1));
    }
}

class EmptyBatch : public ::testing::TestWithParam<Shape> {};

TEST_P(EmptyBatch, leaves_statistics_and_gives_zero_gradients) {
    const Shape sizes = GetParam();
    TestTensor x(DType::float32, sizes), dy(DType::float32, sizes);
    TestVector mean(DType::float32, {1, 2, 3}), var(DType::float32, {4, 5, 6});
    const TestVector old_mean = mean, old_var = var;
    const auto result = functional::batch_norm_forward(x, {}, {}, mean, var, true, 0.1, kEps);
    EXPECT_EQ(result.y.view().sizes, sizes);
    EXPECT_EQ(mean.bytes(), old_mean.bytes());
    EXPECT_EQ(var.bytes(), old_var.bytes());
    for (bool training : {true, false}) {
        const auto g =
            training ? functional::batch_norm_backward(dy, x, {}, result.mean, result.invstd, {},
                                                       {}, true, kEps)
                     : functional::batch_norm_backward(dy, x, {}, {}, {}, mean, var, false, kEps);
        EXPECT_EQ(g.grad_input.view().sizes, sizes);
        for (int64_t c = 0; c < 3; c++) {
            EXPECT_EQ(get(g.grad_weight, c), 0);
            EXPECT_EQ(get(g.grad_bias, c), 0);
        }
    }
    EXPECT_EQ(functional::batch_norm_stats(x).count, 0);
    const auto g = functional::batch_norm_double_backward(x, {}, {}, dy, x, {}, result.mean,
                                                          result.invstd, {}, {}, true, kEps);
    EXPECT_EQ(g.grad_input.view().sizes, sizes);
    for (int64_t c = 0; c < 3; c++) {
        EXPECT_EQ(get(g.grad_weight, c), 0);
    }
}

INSTANTIATE_TEST_SUITE_P(, EmptyBatch,
                         ::testing::Values(Shape{0, 3, 4, 5}, Shape{2, 3, 0, 5}, Shape{2, 3, 4, 0}),
                         [](const auto &info) { return shape_name(info.param); });

TEST(NoChannels, is_an_empty_output) {
    TestTensor x(DType::float32, {2, 0, 3, 4});
    EXPECT_EQ(functional::batch_norm(x, {}, {}, {}, {}, true).view().sizes, x.sizes());
}

// What DLPack's DLTensor looks like.
struct DlTensor {
    void *data;
    struct {
        int device_type, device_id;
    } device;
    int ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

TEST(Owners, moved_from_are_empty) {
    Tensor a(DType::float32, {1, 2, 3, 4});
    float *const memory = a.data<float>();
    Tensor b = std::move(a);
    EXPECT_TRUE(a.empty());
    EXPECT_EQ(a.data<float>(), nullptr);
    EXPECT_EQ(b.data<float>(), memory);
    a = std::move(b);
    EXPECT_TRUE(b.empty());
    EXPECT_EQ(a.data<float>(), memory);
    Vector v(DType::float64, 3), u;
    u = std::move(v);
    EXPECT_FALSE(v);
    EXPECT_EQ(u.view().size, 3);
}

TEST(FromDlpack, describes_the_same_tensor) {
    float values[2 * 3 * 4 * 5 + 1] = {};
    int64_t shape[] = {2, 3, 4, 5}, strides[] = {60, 1, 15, 3};
    DlTensor t{values, {1, 0}, 4, {2, 32, 1}, shape, strides, 4};
    TensorView v = from_dlpack(t);
    EXPECT_EQ(v.data, values + 1);
    EXPECT_EQ(v.dtype, DType::float32);
    EXPECT_EQ(v.sizes, (Shape{2, 3, 4, 5}));
    EXPECT_EQ(v.strides, (Shape{60, 1, 15, 3}));
    t.strides = nullptr;
    t.dtype = {4, 16, 1};
    v = from_dlpack(t);
    EXPECT_EQ(v.dtype, DType::bfloat16);
    EXPECT_EQ(v.strides, (Shape{60, 20, 5, 1}));
}

TEST(FromHalide, describes_the_same_tensor) {
    Halide::Runtime::Buffer<float> planar(5, 4, 3, 2);
    planar.fill(0);
    const TensorView v = from_halide(planar);
    EXPECT_EQ(v.data, planar.data());
    EXPECT_EQ(v.sizes, (Shape{2, 3, 4, 5}));
    EXPECT_EQ(v.strides, (Shape{60, 20, 5, 1}));
    const auto cropped = planar.cropped(0, 1, 3);
    EXPECT_EQ(from_halide(cropped).sizes, (Shape{2, 3, 4, 3}));
    EXPECT_EQ(from_halide(cropped).data, planar.data() + 1);
    Halide::Runtime::Buffer<double> flat(5);
    EXPECT_EQ(from_halide(flat).ndim, 1);
}

}  // namespace
}  // namespace hbn::test
