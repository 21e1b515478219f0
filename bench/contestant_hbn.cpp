// hbn through its public C++ API, as a user calls it.
#include "bench/contestant_base.h"

#include <hbn/functional.h>

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
          invstd(vector(p.invstd)),
          running_mean(vector(p.running_mean)),
          running_var(vector(p.running_var)) {
        hbn::set_num_threads(p.threads);
    }

protected:
    void call() override {
        if (p.operation == BACKWARD) {
            F::batch_norm_backward(grad_output, x, weight, mean, invstd, running_mean, running_var,
                                   true, p.eps, {}, out);
        } else {
            F::batch_norm_forward(x, weight, bias, running_mean, running_var,
                                  p.operation == FORWARD_TRAINING, p.momentum, p.eps, out);
        }
    }

private:
    TensorView tensor(void *data) const {
        constexpr DType dtypes[] = {DType::float32, DType::bfloat16, DType::float16};
        return TensorView(
            data, dtypes[p.dtype], {p.n, p.c, p.h, p.w},
            p.layout == NHWC ? hbn::MemoryFormat::channels_last : hbn::MemoryFormat::contiguous);
    }
    VectorView vector(float *data) const {
        return VectorView(data, DType::float32, p.c);
    }

    const TensorView x, grad_output, out;
    const VectorView weight, bias, mean, invstd, running_mean, running_var;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    return std::make_unique<Hbn>(p);
}

std::string contestant_version() {
    return std::string(hbn_version()) + ", " + hbn_instruction_set();
}
