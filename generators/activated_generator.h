// What generators of operations with a fused addition or ReLU have in common.
#ifndef HBN_GENERATORS_ACTIVATED_GENERATOR_H
#define HBN_GENERATORS_ACTIVATED_GENERATOR_H

#include <string>
#include <vector>

#include "generators/activations.h"
#include "generators/tensor_generator.h"

namespace hbn {

// Operations that an addition, a ReLU, or both may be fused into; activation_forward and activation_backward serve
// all other activations. What an operation takes in addition comes last among the inputs.
//
//   add:  z = residual + what batch normalization alone gives, which is z without.
//   relu: y = relu(z); with_mask, beside y, where z is positive, a byte an element. Backward computes z again, but
//         after an addition it takes the mask: to compute z would take residual, which is more to read.
//
// What forward saves for backward, mean and invstd, is float64: the sign of z depends on it.
template<typename Derived>
class ActivatedGenerator : public TensorGenerator<Derived> {
public:
    using Base = TensorGenerator<Derived>;
    template<typename T>
    using Output = typename Base::template Output<T>;

    Halide::GeneratorParam<Activation> activation{"activation", Activation::none, activation_names};
    Halide::GeneratorParam<bool> add{"add", false};
    Halide::GeneratorParam<bool> with_mask{"with_mask", false};

protected:
    using TensorInput = typename Base::template Input<Halide::Buffer<>>;

    // ---- forward

    // Call in configure().
    void declare_forward(Output<Func> &y) {
        check_parameters();
        if (add) {
            residual = Base::add_tensor("residual", Base::dtype);
        }
        declare_output(y, with_mask ? std::vector<Type>{Base::dtype, Halide::UInt(8)}
                                    : std::vector<Type>{Base::dtype});
    }

    // mean and invstd are float64.
    void define_forward(Output<Func> &y, const TensorInput &x, const Expr &mean, const Expr &invstd,
                        const Expr &weight, const Expr &bias) {
        const auto at = Base::element();
        const auto coefficients = Base::once_a_channel(
            normalization_coefficients(mean, invstd, weight, bias, Base::arithmetic()));
        if (activation == Activation::none && !add) {
            y(at) = Base::rounded(normalize(x(at), coefficients, Base::arithmetic()));
            return;
        }
        Expr z = normalize_in_exact_order(x(at), coefficients, Base::arithmetic());
        if (residual) {
            z += Halide::cast(z.type(), (*residual)(at));
        }
        if (activation == Activation::none) {
            y(at) = Base::rounded(z);
            return;
        }
        const Expr stops = relu_stops(z, Base::dtype);
        const Expr value = Base::rounded(zero_where(stops, z));
        if (with_mask) {
            y(at) = Halide::Tuple(value, select(stops, Expr(uint8_t(0)), Expr(uint8_t(1))));
        } else {
            y(at) = value;
        }
    }

    // ---- backward

    // Call in configure().
    void declare_backward(Output<Func> &grad_input) {
        check_parameters();
        if (activation == Activation::relu && !add) {
            bias = Base::add_vector("bias", Base::statistics());
        }
        if (activation == Activation::relu && add) {
            mask = Base::add_tensor("mask", Halide::UInt(8));
        }
        const int outputs = add ? 2 : 1;
        declare_output(grad_input, std::vector<Type>(outputs, Base::dtype));
    }

    // z's gradient, as it is summed and as it is read for what is stored: the values are the same.
    struct GradientOfZ {
        Func in_sums, at_element;
    };

    // mean and invstd are those that forward used.
    GradientOfZ gradient_of_z(const TensorInput &grad_output, const TensorInput &x,
                              const Expr &mean, const Expr &invstd, const Expr &weight) {
        const auto at = Base::element();
        // It is selected in the type of arithmetic: selecting among 16 bits by a comparison of 32 takes longer.
        const Expr wide = Halide::cast(Base::statistics(), grad_output(at));
        const auto gradient = [&](const Expr &value) {
            Func f("gradient_of_z");
            f(at) = value;
            return f;
        };
        if (activation == Activation::none) {
            const Func all = gradient(grad_output(at));
            return {all, all};
        }
        if (mask) {
            const Func passed = gradient(zero_where((*mask)(at) == 0, wide));
            return {passed, passed};
        }
        const Func coefficients = Base::channel_coefficients(normalization_coefficients(
            mean, invstd, weight, (*bias)(Base::channel()), Base::arithmetic()));
        z_coefficients = Base::read_at_element(coefficients);
        const auto passed = [&](const std::vector<Expr> &z_coefficients) {
            const Expr z = normalize_in_exact_order(x(at), z_coefficients, Base::arithmetic());
            return gradient(zero_where(relu_stops(z, Base::dtype), wide));
        };
        return {passed(Base::read_in_sums(coefficients)), passed(z_coefficients)};
    }

    // The coefficients of input_gradient(). Call after gradient_of_z(): the first of them are also those of z.
    std::vector<Expr> gradient_coefficients(std::vector<Expr> values) {
        if (z_coefficients.empty()) {
            return Base::once_a_channel(values);
        }
        const int shared = deviation_size(Base::arithmetic());
        values.erase(values.begin(), values.begin() + shared);
        std::vector<Expr> coefficients = Base::once_a_channel(values);
        coefficients.insert(coefficients.begin(), z_coefficients.begin(),
                            z_coefficients.begin() + shared);
        return coefficients;
    }

    // The residual's gradient is that of z, which is selected from grad_output without arithmetic.
    void define_backward(Output<Func> &grad_input, const Expr &value,
                         const TensorInput &grad_output) {
        const auto at = Base::element();
        if (add) {
            const Expr grad_residual =
                mask ? zero_where((*mask)(at) == 0, grad_output(at)) : Expr(grad_output(at));
            grad_input(at) = Halide::Tuple(Base::rounded(value), grad_residual);
        } else {
            grad_input(at) = Base::rounded(value);
        }
    }

    // Call in schedule().
    void promise_activation() const {
        for (TensorInput *tensor : {residual, mask}) {
            if (tensor) {
                Base::promise_tensors(*tensor);
            }
        }
        if (bias) {
            Base::promise_vectors(*bias);
        }
    }

private:
    void check_parameters() const {
        _halide_user_assert(activation == Activation::none || activation == Activation::relu)
            << "only relu is fused; other activations are activation_forward's and "
               "activation_backward's\n";
        _halide_user_assert(!with_mask || activation == Activation::relu)
            << "only relu has a mask\n";
    }

    void declare_output(Output<Func> &output, const std::vector<Type> &types) const {
        output.set_type(types);
        output.set_dimensions(Base::in_columns() ? 3 : 4);
    }

    std::vector<Expr> z_coefficients;
    TensorInput *residual = nullptr, *mask = nullptr, *bias = nullptr;
};

}  // namespace hbn

#endif
