/// @file activation.h
/// Activations that batch normalization computes in the same pass over memory.
#ifndef HBN_ACTIVATION_H
#define HBN_ACTIVATION_H

#include <hbn/hbn.h>

#include <string>

namespace hbn {

/// A function of each element. NaN passes, as in PyTorch. A default-constructed one is none().
///
///     options.activation = hbn::Activation::leaky_relu(0.1);
struct Activation {
    hbn_activation_kind kind = HBN_IDENTITY;  ///< which
    double alpha = 0;                         ///< its first parameter, where it has any
    double beta = 0;                          ///< its second parameter, where it has two

    /// @return z itself
    static constexpr Activation none() {
        return {};
    }
    /// torch.nn.ReLU.
    /// @return max(z, 0)
    static constexpr Activation relu() {
        return {HBN_RELU, 0, 0};
    }
    /// torch.nn.LeakyReLU.
    /// @param negative_slope  what negative z are multiplied by
    /// @return z where it is positive, else negative_slope * z
    static constexpr Activation leaky_relu(double negative_slope = 0.01) {
        return {HBN_LEAKY_RELU, negative_slope, 0};
    }
    /// torch.nn.Hardtanh.
    /// @param low, high  the limits; high is not below low
    /// @return min(max(z, low), high)
    static constexpr Activation clip(double low, double high) {
        return {HBN_CLIP, low, high};
    }
    /// torch.nn.ReLU6.
    /// @return clip(0, 6)
    static constexpr Activation relu6() {
        return clip(0, 6);
    }
    /// torch.nn.SiLU, also called swish.
    /// @return z / (1 + exp(-z))
    static constexpr Activation silu() {
        return {HBN_SILU, 0, 0};
    }
    /// torch.nn.Hardswish.
    /// @return z * min(max(z + 3, 0), 6) / 6
    static constexpr Activation hardswish() {
        return {HBN_HARDSWISH, 0, 0};
    }

    /// @return the name and the parameters: "clip(0.0, 6.0)"
    std::string repr() const;
};

}  // namespace hbn

#endif
