// What generators of operations with a fused addition or activation have in common.
#ifndef HBN_GENERATORS_ACTIVATED_GENERATOR_H
#define HBN_GENERATORS_ACTIVATED_GENERATOR_H

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "generators/activations.h"
#include "generators/tensor_generator.h"

namespace hbn {

// Operations that an addition, an activation, or both may be fused into. The library has those with a ReLU; for other
// activations it has activation_forward and activation_backward, while packs fuse each. What an operation takes in
// addition comes last among the inputs.
//
//   add:        z = residual + what batch normalization alone gives, which is z without.
//   activation: y = activation(z). Its scalars are inputs, but for `constants`. Backward computes z again, from residual, too.
//   with_mask:  for relu: beside y, where z is positive, a byte an element. After an addition, relu's backward takes
//               this mask: to compute z would take residual, which is more to read.
//
// What forward saves for backward, mean and invstd, is float64: the sign of z depends on it.
template<typename Derived>
class ActivatedGenerator : public TensorGenerator<Derived> {
public:
    using Base = TensorGenerator<Derived>;
    template<typename T>
    using Output = typename Base::template Output<T>;

    Halide::GeneratorParam<std::string> activation{"activation", "none"};
    Halide::GeneratorParam<bool> add{"add", false};
    Halide::GeneratorParam<bool> with_mask{"with_mask", false};
    // Scalars of the activation that are compiled in, the others being inputs: "low:0,high:infinity".
    Halide::GeneratorParam<std::string> constants{"constants", ""};

protected:
    using TensorInput = typename Base::template Input<Halide::Buffer<>>;

    // ---- forward

    // Call in configure().
    void declare_forward(Output<Func> &y) {
        check_parameters();
        if (add) {
            residual = Base::add_tensor("residual", Base::dtype);
        }
        declare_scalars();
        declare_output(y, with_mask ? std::vector<Type>{Base::dtype, Halide::UInt(8)}
                                    : std::vector<Type>{Base::dtype});
    }

    // mean and invstd are float64.
    void define_forward(Output<Func> &y, const TensorInput &x, const Expr &mean, const Expr &invstd,
                        const Expr &weight, const Expr &bias) {
        const auto at = Base::element();
        const auto coefficients = Base::once_a_channel(
            normalization_coefficients(mean, invstd, weight, bias, Base::arithmetic()));
        if (is("none") && !add) {
            y(at) = Base::rounded(normalize(x(at), coefficients, Base::arithmetic()));
            return;
        }
        const Expr z = z_of(x, coefficients);
        const Expr value = Base::rounded(activated(z));
        if (with_mask) {
            const Expr stops = relu_stops(z, Base::dtype);
            y(at) = Halide::Tuple(value, select(stops, Expr(uint8_t(0)), Expr(uint8_t(1))));
        } else {
            y(at) = value;
        }
    }

    // ---- backward

    // Call in configure().
    void declare_backward(Output<Func> &grad_input) {
        check_parameters();
        if (is("relu") && add) {
            mask = Base::add_tensor("mask", Halide::UInt(8));
        } else if (!is("none")) {
            if (add) {
                residual = Base::add_tensor("residual", Base::dtype);
            }
            bias = Base::add_vector("bias", Base::statistics());
            declare_scalars();
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
        if (is("none")) {
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
        const auto of_z = [&](const std::vector<Expr> &z_coefficients) {
            return gradient(
                definition().gradient(wide, z_of(x, z_coefficients), scalars(), Base::dtype));
        };
        return {of_z(Base::read_in_sums(coefficients)), of_z(z_coefficients)};
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

    // The residual's gradient is that of z. Where it is computed by no arithmetic, it is selected from grad_output.
    void define_backward(Output<Func> &grad_input, const Expr &value, const GradientOfZ &dz,
                         const TensorInput &grad_output) {
        const auto at = Base::element();
        if (add) {
            const Expr grad_residual = mask         ? zero_where((*mask)(at) == 0, grad_output(at))
                                       : is("none") ? Expr(grad_output(at))
                                                    : Base::rounded(dz.at_element(at));
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

    // Where there is one.
    Expr plus_residual(const Expr &z) const {
        return residual ? z + Halide::cast(z.type(), (*residual)(Base::element())) : z;
    }

    // y, before it is rounded.
    Expr activated(const Expr &z) const {
        return definition().value(z, scalars(), Base::dtype);
    }

private:
    bool is(const char *name) const {
        return activation.value() == name;
    }
    const ActivationDefinition &definition() const {
        return activation_named(activation.value());
    }

    void check_parameters() const {
        _halide_user_assert(!with_mask || is("relu")) << "only relu has a mask\n";
    }

    void declare_scalars() {
        const std::map<std::string, double> compiled_in = constant_scalars();
        for (const std::string &name : definition().parameter_names) {
            const auto constant = compiled_in.find(name);
            const bool is_constant = constant != compiled_in.end();
            scalar_parameters.push_back(
                {is_constant ? nullptr : Base::template add_input<double>(name),
                 is_constant ? constant->second : 0});
        }
    }

    std::map<std::string, double> constant_scalars() const {
        std::map<std::string, double> values;
        for (const std::string &pair : Halide::Internal::split_string(constants, ",")) {
            const size_t colon = pair.find(':');
            if (colon != std::string::npos) {
                values[pair.substr(0, colon)] = std::stod(pair.substr(colon + 1));
            }
        }
        return values;
    }

    // The activation's scalars, in the type of arithmetic.
    std::vector<Expr> scalars() const {
        std::vector<Expr> values;
        for (const auto &[input, constant] : scalar_parameters) {
            const Expr value = input ? Expr(*input) : Expr(constant);
            values.push_back(Halide::cast(Base::statistics(), value));
        }
        return values;
    }

    // z at element(), the same bits wherever it is computed again.
    Expr z_of(const TensorInput &x, const std::vector<Expr> &coefficients) const {
        const auto at = Base::element();
        const Expr z = normalize_in_exact_order(x(at), coefficients, Base::arithmetic());
        // After an addition, relu's backward has a mask and computes nothing again.
        const bool computed_again = !is("none") && !is("relu");
        return residual && computed_again ? exact_order(plus_residual(z)) : plus_residual(z);
    }

    void declare_output(Output<Func> &output, const std::vector<Type> &types) const {
        output.set_type(types);
        output.set_dimensions(Base::in_columns() ? 3 : 4);
    }

    std::vector<Expr> z_coefficients;
    TensorInput *residual = nullptr, *mask = nullptr, *bias = nullptr;
    std::vector<std::pair<typename Base::template Input<double> *, double>> scalar_parameters;
};

}  // namespace hbn

#endif
