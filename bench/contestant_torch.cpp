// PyTorch's CPU kernels through its C++ API, without autograd. The forward pass writes where it is
// told; backward has no such form that does not copy, so it allocates grad_input, from pages that
// bench.py has malloc keep. Additions and ReLUs are operations of their own, in place where that can be.
//
// With HBN_BENCH_UNFUSED, batch normalization is hbn's: what fusing is measured against.
#include "bench/contestant_base.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/core/InferenceMode.h>
#include <torch/headeronly/version.h>

#ifdef HBN_BENCH_UNFUSED
#include <hbn/functional.h>
#endif

namespace {

class Torch : public Contestant {
public:
    explicit Torch(const problem &p)
        : Contestant(p),
          x(tensor(p.x)),
          grad_output(tensor(p.grad_output)),
          out(tensor(p.out)),
          weight(vector(p.weight)),
          bias(vector(p.bias)),
          mean(vector(p.mean)),
          invstd(vector(p.invstd)),
          running_mean(vector(p.running_mean)),
          running_var(vector(p.running_var)),
          save_mean(at::empty({is_training() ? p.c : 0})),
          save_invstd(at::empty({is_training() ? p.c : 0})) {
        at::set_num_threads(p.threads);
#ifdef HBN_BENCH_UNFUSED
        hbn::set_num_threads(p.threads);
#endif
        if (activates()) {
            residual = tensor(p.residual);
            gradient = tensor(p.grad_residual);
        }
        if (activates() && is_backward()) {
            const auto spread = [&](const at::Tensor &v) { return v.view({1, p.c, 1, 1}); };
            y = (x.to(at::kFloat) - spread(mean)) * spread(invstd * weight) + spread(bias);
            y = at::relu(adds() ? y + residual : y)
                    .to(x.scalar_type())
                    .contiguous(x.suggest_memory_format());
        }
        if (is_backward()) {
            out.copy_(backward());  // for bench.py to compare
        }
    }

    double run(int repeats) override {
        const c10::InferenceMode no_autograd;
        return Contestant::run(repeats);
    }

protected:
    void call() override {
        if (is_backward()) {
            backward();
            return;
        }
        forward();
        if (adds()) {
            out.add_(residual);
        }
        if (activates()) {
            out.relu_();
        }
    }

private:
    at::Tensor backward() {
        if (!activates()) {
            return backward_of(grad_output);
        }
        at::threshold_backward_out(gradient, grad_output, y, 0);
        return backward_of(gradient);
    }

#ifdef HBN_BENCH_UNFUSED
    void forward() {
        hbn::functional::batch_norm_forward(view(x), view_of(weight), view_of(bias),
                                            view_of(running_mean), view_of(running_var),
                                            is_training(), p.momentum, p.eps, view(out));
    }
    at::Tensor backward_of(const at::Tensor &gradient_of_y) {
        hbn::functional::batch_norm_backward(view(gradient_of_y), view(x), view_of(weight),
                                             statistic(wide_mean), statistic(wide_invstd), {}, {},
                                             true, p.eps, {}, view(out));
        return out;
    }
    hbn::TensorView view(const at::Tensor &t) const {
        constexpr hbn::DType dtypes[] = {hbn::DType::float32, hbn::DType::bfloat16,
                                         hbn::DType::float16};
        return hbn::TensorView(t.data_ptr(), dtypes[p.dtype], {p.n, p.c, p.h, p.w},
                               {t.stride(0), t.stride(1), t.stride(2), t.stride(3)});
    }
    hbn::VectorView view_of(const at::Tensor &v) const {
        return hbn::VectorView(v.data_ptr(), hbn::DType::float32, p.c);
    }
    hbn::ConstVectorView statistic(const at::Tensor &v) const {
        return hbn::ConstVectorView(v.data_ptr(), hbn::DType::float64, p.c);
    }
#else
    void forward() {
        at::native_batch_norm_out(out, save_mean, save_invstd, x, weight, bias, running_mean,
                                  running_var, is_training(), p.momentum, p.eps);
    }
    at::Tensor backward_of(const at::Tensor &gradient_of_y) {
        return std::get<0>(at::native_batch_norm_backward(gradient_of_y, x, weight, running_mean,
                                                          running_var, mean, invstd, true, p.eps,
                                                          {true, true, true}));
    }
#endif
    at::Tensor tensor(void *data) const {
        constexpr at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};
        const int64_t c = p.c, h = p.h, w = p.w;
        const auto strides = p.layout == NHWC ? std::array<int64_t, 4>{h * w * c, 1, w * c, c}
                                              : std::array<int64_t, 4>{c * h * w, h * w, w, 1};
        return at::from_blob(data, {p.n, c, h, w}, strides, dtypes[p.dtype]);
    }
    at::Tensor vector(float *data) const {
        return at::from_blob(data, {p.c}, at::kFloat);
    }

    at::Tensor x, grad_output, out, weight, bias, mean, invstd, running_mean, running_var,
        save_mean, save_invstd, residual, gradient, y;
#ifdef HBN_BENCH_UNFUSED
    const at::Tensor wide_mean = mean.to(at::kDouble), wide_invstd = invstd.to(at::kDouble);
#endif
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    const c10::InferenceMode no_autograd;
    return std::make_unique<Torch>(p);
}

std::string contestant_version() {
    return std::string(TORCH_VERSION) + ", " + at::get_cpu_capability();
}
