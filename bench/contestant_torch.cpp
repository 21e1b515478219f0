// PyTorch's CPU kernels through its C++ API, without autograd. The forward pass writes where it is
// told; backward has no such form that does not copy, so it allocates grad_input, from pages that
// bench.py has malloc keep.
#include "bench/contestant_base.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <torch/headeronly/version.h>

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
          save_mean(at::empty({p.operation == FORWARD_TRAINING ? p.c : 0})),
          save_invstd(at::empty({p.operation == FORWARD_TRAINING ? p.c : 0})) {
        at::set_num_threads(p.threads);
        if (p.operation == BACKWARD) {
            out.copy_(std::get<0>(backward()));  // for bench.py to compare
        }
    }

    double run(int repeats) override {
        const c10::InferenceMode no_autograd;
        return Contestant::run(repeats);
    }

protected:
    void call() override {
        if (p.operation == BACKWARD) {
            backward();
        } else {
            at::native_batch_norm_out(out, save_mean, save_invstd, x, weight, bias, running_mean,
                                      running_var, p.operation == FORWARD_TRAINING, p.momentum,
                                      p.eps);
        }
    }

private:
    std::tuple<at::Tensor, at::Tensor, at::Tensor> backward() {
        return at::native_batch_norm_backward(grad_output, x, weight, running_mean, running_var,
                                              mean, invstd, true, p.eps, {true, true, true});
    }
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
        save_mean, save_invstd;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    const c10::InferenceMode no_autograd;
    return std::make_unique<Torch>(p);
}

std::string contestant_version() {
    return std::string(TORCH_VERSION) + ", " + at::get_cpu_capability();
}
