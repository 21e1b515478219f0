// z, what an activation is applied to, computed from x by the operations that apply activations outside the fused
// kernels: z = normalized x, plus a residual where the call says so.
#ifndef HBN_GENERATORS_PREACTIVATION_H
#define HBN_GENERATORS_PREACTIVATION_H

#include <string>
#include <vector>

#include "generators/activations.h"
#include "generators/tensor_generator.h"

namespace hbn {

template<typename Derived>
class PreactivationGenerator : public TensorGenerator<Derived> {
public:
    using Base = TensorGenerator<Derived>;

    Halide::GeneratorParam<std::string> activation{"activation", "relu"};
    // Only relu has a mask: a byte an element, 1 where the gradient passes.
    Halide::GeneratorParam<bool> with_mask{"with_mask", false};

protected:
    using BufferInput = typename Base::template Input<Halide::Buffer<>>;

    bool is(const char *name) const {
        return activation.value() == name;
    }
    const ActivationDefinition &definition() const {
        return activation_named(activation.value());
    }

    void check_mask() const {
        _halide_user_assert(!with_mask || is("relu")) << "only relu has a mask\n";
    }

    // Call in configure(). Without add_residual, residual is any memory of x's shape, and
    // none of its values reaches z.
    void declare_preactivation() {
        x = Base::add_tensor("x", Base::dtype);
        residual = Base::add_tensor("residual", Base::dtype);
        mean = Base::add_vector("mean", Halide::Float(64));
        invstd = Base::add_vector("invstd", Halide::Float(64));
        weight = Base::add_vector("weight", Base::statistics());
        bias = Base::add_vector("bias", Base::statistics());
        add_residual = Base::template add_input<bool>("add_residual");
        for (const std::string &name : definition().parameter_names) {
            scalars.push_back(Base::template add_input<double>(name));
        }
    }

    // After set_shape(). Forward and backward compute the same bits.
    Expr preactivation() {
        const auto at = Base::element(), ch = Base::channel();
        const auto coefficients = Base::once_a_channel(normalization_coefficients(
            (*mean)(ch), (*invstd)(ch), (*weight)(ch), (*bias)(ch), Base::arithmetic()));
        const Expr z = normalize_in_exact_order((*x)(at), coefficients, Base::arithmetic());
        const Expr added = exact_order(z + Halide::cast(z.type(), (*residual)(at)));
        return select_bits(*add_residual, added, z);
    }

    // The activation's scalars, in the type of arithmetic.
    std::vector<Expr> parameters() const {
        std::vector<Expr> values;
        for (const auto *scalar : scalars) {
            values.push_back(Halide::cast(Base::statistics(), *scalar));
        }
        return values;
    }

    // Call in schedule().
    void promise_preactivation() const {
        Base::promise_tensors(*x, *residual);
        Base::promise_vectors(*mean, *invstd, *weight, *bias);
    }

    BufferInput *x = nullptr, *residual = nullptr;
    BufferInput *mean = nullptr, *invstd = nullptr, *weight = nullptr, *bias = nullptr;

private:
    typename Base::template Input<bool> *add_residual = nullptr;
    std::vector<typename Base::template Input<double> *> scalars;
};

}  // namespace hbn

#endif
