// hbn through its public C++ API, as a user calls it.
#include "bench/contestant_base.h"

#include <hbn/functional.h>

#include <vector>

namespace {

using hbn::DType;
using hbn::TensorView;
using hbn::VectorView;
namespace F = hbn::functional;

class Hbn : public Contestant {
public:
    explicit Hbn(const problem &p)
        : Contestant(p),
          x(tensor(p.x)),
          grad_output(tensor(p.grad_output)),
          out(tensor(p.out)),
          weight(vector(p.weight)),
          bias(vector(p.bias)),
          mean(vector(p.mean)),
          running_mean(vector(p.running_mean)),
          running_var(vector(p.running_var)) {
        hbn::set_num_threads(p.threads);
        wide_mean.assign(p.mean, p.mean + p.c);
        wide_invstd.assign(p.invstd, p.invstd + p.c);
        if (activates()) {
            prepare_activation();
        }
    }

protected:
    void call() override {
        if (activates()) {
            call_activated();
        } else if (p.operation == BACKWARD) {
            F::batch_norm_backward(grad_output, x, weight, saved_mean(), saved_invstd(), {}, {},
                                   true, p.eps, {}, out);
        } else {
            F::batch_norm_forward(x, weight, bias, running_mean, running_var,
                                  p.operation == FORWARD_TRAINING, p.momentum, p.eps, out);
        }
    }

private:
    void prepare_activation() {
        residual = tensor(p.residual);
        grad_residual = tensor(p.grad_residual);
        mask = tensor(p.mask);
        mask.dtype = DType::uint8;
        if (p.operation == BACKWARD_ADD_RELU) {
            // As forward would have left it.
            std::vector<float> variance;
            for (double invstd : wide_invstd) {
                variance.push_back(float(1 / (invstd * invstd) - p.eps));
            }
            F::batch_norm_activation_forward(x, residual, weight, bias, mean,
                                             vector(variance.data()), false, p.momentum, p.eps,
                                             hbn::Activation::relu(), out, mask);
        }
    }

    void call_activated() {
        if (is_backward() && adds()) {
            F::batch_norm_activation_backward(grad_output, x, {}, mask, weight, {}, saved_mean(),
                                              saved_invstd(), {}, {}, true, p.eps,
                                              hbn::Activation::relu(), {}, out, grad_residual);
        } else if (is_backward()) {
            F::batch_norm_activation_backward(grad_output, x, {}, {}, weight, bias, saved_mean(),
                                              saved_invstd(), {}, {}, true, p.eps,
                                              hbn::Activation::relu(), {}, out);
        } else if (adds()) {
            F::batch_norm_activation_forward(
                x, residual, weight, bias, running_mean, running_var, is_training(), p.momentum,
                p.eps, hbn::Activation::relu(), out,
                is_training() ? std::optional<TensorView>(mask) : std::nullopt);
        } else {
            F::batch_norm_activation_forward(x, {}, weight, bias, running_mean, running_var,
                                             is_training(), p.momentum, p.eps,
                                             hbn::Activation::relu(), out);
        }
    }

    TensorView tensor(void *data) const {
        constexpr DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16};
        return TensorView(
            data, dtypes[p.dtype], {p.n, p.c, p.h, p.w},
            p.layout == NHWC ? hbn::MemoryFormat::channels_last : hbn::MemoryFormat::contiguous);
    }
    hbn::ConstVectorView saved_mean() const {
        return {wide_mean.data(), DType::float64, p.c};
    }
    hbn::ConstVectorView saved_invstd() const {
        return {wide_invstd.data(), DType::float64, p.c};
    }
    VectorView vector(float *data) const {
        return VectorView(data, DType::float32, p.c);
    }

    const TensorView x, grad_output, out;
    TensorView residual, grad_residual, mask;
    std::vector<double> wide_mean, wide_invstd;
    const VectorView weight, bias, mean, running_mean, running_var;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    return std::make_unique<Hbn>(p);
}

std::string contestant_version() {
    return std::string(hbn_version()) + ", " + hbn_instruction_set();
}
