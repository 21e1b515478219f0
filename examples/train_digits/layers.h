// What train_digits needs besides batch normalization, as plain loops: short rather than fast. In a program of
// yours these would come from another library.
#ifndef TRAIN_DIGITS_LAYERS_H
#define TRAIN_DIGITS_LAYERS_H

#include <hbn/tensor_view.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <utility>

using hbn::ConstTensorView;
using hbn::ConstVectorView;
using hbn::DType;
using hbn::Tensor;
using hbn::TensorView;
using hbn::Vector;
using hbn::VectorView;

inline const float *floats(const ConstTensorView &t) {
    return static_cast<const float *>(t.data);
}

inline const float *floats(const ConstVectorView &v) {
    return static_cast<const float *>(v.data);
}

inline float *floats(const TensorView &t) {
    return static_cast<float *>(t.data);
}

inline float *floats(const VectorView &v) {
    return static_cast<float *>(v.data);
}

inline float *floats(const Tensor &t) {
    return t.data<float>();
}

inline float *floats(const Vector &v) {
    return v.data<float>();
}

// hbn::Tensor leaves its memory uninitialized.
inline Tensor zeros(const hbn::Shape &sizes) {
    Tensor t(DType::float32, sizes);
    std::fill_n(floats(t), t.view().num_elements(), 0.0f);
    return t;
}

// A convolution without bias. Where its kernel is as large as its input, it is a linear layer.
struct Convolution {
    int64_t in_channels, out_channels, kernel, stride, padding;
    Vector weight, grad_weight;  // (out_channels, in_channels, kernel, kernel)

    Convolution(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride,
                int64_t padding, std::mt19937 &random)
        : in_channels(in_channels),
          out_channels(out_channels),
          kernel(kernel),
          stride(stride),
          padding(padding),
          weight(DType::float32, out_channels * in_channels * kernel * kernel),
          grad_weight(DType::float32, weight.view().size) {
        const float bound = 1 / std::sqrt(float(in_channels * kernel * kernel));
        for (int64_t i = 0; i < weight.view().size; i++) {
            // Not by std::uniform_real_distribution, which gives each compiler's users other numbers.
            floats(weight)[i] = bound * float(random() / 2147483648.0 - 1);
        }
    }

    Tensor forward(const ConstTensorView &x) const {
        Tensor y = zeros(output_sizes(x.sizes));
        const float *in = floats(x), *w = floats(weight);
        float *out = floats(y);
        for_each_product(x.sizes, [=](int64_t i, int64_t j, int64_t k) { out[k] += in[i] * w[j]; });
        return y;
    }

    // Returns grad_input and sets grad_weight.
    Tensor backward(const ConstTensorView &grad_output, const ConstTensorView &x) {
        Tensor grad_input = zeros(x.sizes);
        std::fill_n(floats(grad_weight), grad_weight.view().size, 0.0f);
        const float *in = floats(x), *w = floats(weight), *dy = floats(grad_output);
        float *dx = floats(grad_input), *dw = floats(grad_weight);
        for_each_product(x.sizes, [=](int64_t i, int64_t j, int64_t k) {
            dx[i] += dy[k] * w[j];
            dw[j] += dy[k] * in[i];
        });
        return grad_input;
    }

private:
    hbn::Shape output_sizes(const hbn::Shape &x) const {
        return {x[0], out_channels, (x[2] + 2 * padding - kernel) / stride + 1,
                (x[3] + 2 * padding - kernel) / stride + 1};
    }

    // Calls product(i, j, k) wherever element k of y has a term x[i] * weight[j].
    template<typename Product>
    void for_each_product(const hbn::Shape &x, Product product) const {
        const hbn::Shape y = output_sizes(x);
        int64_t k = 0;
        for (int64_t n = 0; n < y[0]; n++) {
            for (int64_t to = 0; to < y[1]; to++) {
                for (int64_t y_row = 0; y_row < y[2]; y_row++) {
                    for (int64_t y_column = 0; y_column < y[3]; y_column++, k++) {
                        int64_t j = to * in_channels * kernel * kernel;
                        for (int64_t from = 0; from < in_channels; from++) {
                            for (int64_t r = 0; r < kernel; r++) {
                                for (int64_t c = 0; c < kernel; c++, j++) {
                                    const int64_t row = y_row * stride - padding + r;
                                    const int64_t column = y_column * stride - padding + c;
                                    if (row >= 0 && row < x[2] && column >= 0 && column < x[3]) {
                                        const int64_t plane = n * in_channels + from;
                                        product((plane * x[2] + row) * x[3] + column, j, k);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
};

inline void relu(const TensorView &x) {
    std::for_each_n(floats(x), x.num_elements(),
                    [](float &value) { value = std::max(value, 0.0f); });
}

// Stops `gradient` where relu gave y = 0.
inline void relu_backward(const ConstTensorView &y, const TensorView &gradient) {
    for (int64_t i = 0; i < y.num_elements(); i++) {
        floats(gradient)[i] = floats(y)[i] > 0 ? floats(gradient)[i] : 0;
    }
}

// A batch's mean loss and its gradient, which is (softmax(logits) - one_hot(labels)) / N.
inline std::pair<double, Tensor> cross_entropy(const ConstTensorView &logits, const int *labels) {
    const auto [images, classes] = std::pair(logits.sizes[0], logits.sizes[1]);
    Tensor gradient(DType::float32, logits.sizes);
    double loss = 0;
    for (int64_t n = 0; n < images; n++) {
        const float *z = floats(logits) + n * classes;
        const double largest = *std::max_element(z, z + classes);
        double sum = 0;
        for (int64_t c = 0; c < classes; c++) {
            sum += std::exp(z[c] - largest);
        }
        loss += (std::log(sum) + largest - z[labels[n]]) / double(images);
        for (int64_t c = 0; c < classes; c++) {
            const double one_hot = c == labels[n];
            floats(gradient)[n * classes + c] =
                float((std::exp(z[c] - largest) / sum - one_hot) / double(images));
        }
    }
    return {loss, std::move(gradient)};
}

// Stochastic gradient descent with momentum, as torch.optim.SGD.
class SGD {
public:
    SGD(float learning_rate, float momentum) : learning_rate_(learning_rate), momentum_(momentum) {
    }

    void step(const VectorView &parameter, const ConstVectorView &gradient) {
        std::vector<float> &velocity = velocities_[parameter.data];
        velocity.resize(size_t(parameter.size));
        for (size_t i = 0; i < velocity.size(); i++) {
            velocity[i] = momentum_ * velocity[i] + floats(gradient)[i];
            floats(parameter)[i] -= learning_rate_ * velocity[i];
        }
    }

private:
    float learning_rate_, momentum_;
    std::map<void *, std::vector<float>> velocities_;
};

#endif
