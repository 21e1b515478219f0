// Trains a small convolutional network to read handwritten digits, without PyTorch:
//
//   conv 3x3 -> batch norm and ReLU, fused -> conv 3x3, stride 2 -> batch norm -> ReLU -> linear
//
// Everything about batch normalization is hbn's; layers.h has the rest. `make train-digits` runs it.
#include "layers.h"

#include <hbn/batch_norm_2d.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace F = hbn::functional;

constexpr int kImageSize = 8, kClasses = 10, kTestImages = 360;
constexpr int kEpochs = 12, kBatchSize = 32;
constexpr double kAccuracyWanted = 0.95;

class Network {
public:
    explicit Network(std::mt19937 &random)
        : conv1_(1, 16, 3, 1, 1, random),
          conv2_(16, 16, 3, 2, 1, random),
          linear_(16, kClasses, kImageSize / 2, 1, 0, random),
          bn1_(16, with_relu()),
          bn2_(16) {
    }

    // In training batch norm uses each batch's statistics, in evaluation the running ones.
    void train(bool mode = true) {
        bn1_.train(mode);
        bn2_.train(mode);
    }

    // What each layer returned: backward needs it again.
    struct Activations {
        Tensor conv1, bn_relu1, conv2, bn_relu2, logits;
    };

    Activations forward(const ConstTensorView &images) {
        Activations a;
        a.conv1 = conv1_.forward(images);
        // Batch norm and ReLU in one pass over memory.
        a.bn_relu1 = bn1_.forward(a.conv1);
        a.conv2 = conv2_.forward(a.bn_relu1);
        // As two steps: the module, then ReLU in place.
        a.bn_relu2 = bn2_.forward(a.conv2);
        relu(a.bn_relu2);
        a.logits = linear_.forward(a.bn_relu2);
        return a;
    }

    void backward(const ConstTensorView &images, const Activations &a,
                  const ConstTensorView &grad_logits, SGD &optimizer) {
        const Tensor grad_bn2 = linear_.backward(grad_logits, a.bn_relu2);
        relu_backward(a.bn_relu2, grad_bn2);
        const F::Gradients bn2 = bn2_.backward(grad_bn2, a.conv2);
        const Tensor grad_bn_relu1 = conv2_.backward(bn2.grad_input, a.bn_relu1);
        const F::Gradients bn1 = bn1_.backward(grad_bn_relu1, a.conv1);
        conv1_.backward(bn1.grad_input, images);

        optimizer.step(conv1_.weight, conv1_.grad_weight);
        optimizer.step(bn1_.weight(), bn1.grad_weight);
        optimizer.step(bn1_.bias(), bn1.grad_bias);
        optimizer.step(conv2_.weight, conv2_.grad_weight);
        optimizer.step(bn2_.weight(), bn2.grad_weight);
        optimizer.step(bn2_.bias(), bn2.grad_bias);
        optimizer.step(linear_.weight, linear_.grad_weight);
    }

private:
    static hbn::BatchNorm2dOptions with_relu() {
        hbn::BatchNorm2dOptions options;
        options.activation = hbn::Activation::relu();
        return options;
    }

    Convolution conv1_, conv2_, linear_;
    hbn::BatchNorm2d bn1_, bn2_;
};

struct Digits {
    std::vector<float> pixels;
    std::vector<int> labels;

    // A batch is a view, not a copy.
    ConstTensorView images(int64_t begin, int64_t size) const {
        return {pixels.data() + begin * kImageSize * kImageSize,
                DType::float32,
                {size, 1, kImageSize, kImageSize}};
    }
};

// Each line of the file has 64 pixels, 0 to 16, and the label. `random` shuffles them.
Digits read_digits(const char *path, std::mt19937 &random) {
    std::ifstream file(path);
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) {
        lines.push_back(line);
    }
    if (lines.size() < 2 * kTestImages) {
        throw std::runtime_error(std::string(path) + ": too few images, or no such file");
    }
    // Not by std::shuffle, whose order differs between compilers.
    for (size_t i = lines.size() - 1; i > 0; i--) {
        std::swap(lines[i], lines[random() % (i + 1)]);
    }
    Digits digits;
    for (const std::string &line : lines) {
        std::istringstream values(line);
        float pixel = 0;
        char comma = 0;
        for (int i = 0; i < kImageSize * kImageSize; i++) {
            values >> pixel >> comma;
            digits.pixels.push_back(pixel / 16);
        }
        int label = 0;
        if (!(values >> label) || label < 0 || label >= kClasses) {
            throw std::runtime_error(std::string(path) + ": not 64 pixels and a label: " + line);
        }
        digits.labels.push_back(label);
    }
    return digits;
}

int main(int argc, char **argv) try {
    if (argc != 2) {
        throw std::runtime_error("usage: train_digits digits.csv");
    }
    std::mt19937 random(1);
    Digits digits = read_digits(argv[1], random);
    const int train_images = int(digits.labels.size()) - kTestImages;

    Network network(random);
    SGD optimizer(/*learning_rate*/ 0.05f, /*momentum*/ 0.9f);
    for (int epoch = 1; epoch <= kEpochs; epoch++) {
        double epoch_loss = 0;
        for (int begin = 0; begin < train_images; begin += kBatchSize) {
            const int size = std::min(kBatchSize, train_images - begin);
            const ConstTensorView images = digits.images(begin, size);
            const Network::Activations activations = network.forward(images);
            const auto [loss, gradient] =
                cross_entropy(activations.logits, digits.labels.data() + begin);
            network.backward(images, activations, gradient, optimizer);
            epoch_loss += loss * size / train_images;
        }
        std::printf("epoch %2d  loss %.4f\n", epoch, epoch_loss);
    }

    network.train(false);
    const Tensor logits = network.forward(digits.images(train_images, kTestImages)).logits;
    int correct = 0;
    for (int n = 0; n < kTestImages; n++) {
        const float *scores = floats(logits) + n * kClasses;
        correct += std::max_element(scores, scores + kClasses) - scores ==
                   digits.labels[size_t(train_images + n)];
    }
    std::printf("test accuracy: %.2f %% of %d images\n", 100.0 * correct / kTestImages,
                kTestImages);
    return correct >= kAccuracyWanted * kTestImages ? 0 : 1;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
