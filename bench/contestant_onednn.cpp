// oneDNN through its C++ API. Its CPU engine is a SYCL device here, whose queue runs in order: calls
// are queued one after another and waited for once. It keeps no running statistics, so that
// training does a little less than the others'. Threads follow the process's affinity.
#include "bench/contestant_base.h"

#include <oneapi/dnnl/dnnl.hpp>

#include <stdexcept>
#include <unordered_map>
#include <vector>

namespace {

using dnnl::memory;

struct Device {
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
};

Device &device() {
    static Device device;
    return device;
}

class OneDnn : public Contestant {
public:
    explicit OneDnn(const problem &p) : Contestant(p), variance(p.c), grads(2 * p.c) {
        // A one-time step of dnnl's users, not of a call: it saves the variance, not invstd.
        for (int64_t c = 0; c < p.c && p.operation == BACKWARD; c++) {
            variance[c] = float(1 / (double(p.invstd[c]) * p.invstd[c]) - p.eps);
        }
        const memory::desc tensor = describe_tensor();
        const auto affine =
            dnnl::normalization_flags::use_scale | dnnl::normalization_flags::use_shift;
        if (p.operation == BACKWARD) {
            prepare_backward(tensor, affine);
        } else {
            prepare_forward(tensor, affine);
        }
    }

    ~OneDnn() override {
        device().stream.wait();
    }

protected:
    void call() override {
        primitive.execute(device().stream, arguments);
    }
    void finish() override {
        device().stream.wait();
    }

private:
    memory::desc describe_tensor() const {
        constexpr memory::data_type dtypes[] = {memory::data_type::f32, memory::data_type::bf16,
                                                memory::data_type::f16};
        return memory::desc({p.n, p.c, p.h, p.w}, dtypes[p.dtype],
                            p.layout == NHWC ? memory::format_tag::nhwc : memory::format_tag::nchw);
    }

    void prepare_forward(const memory::desc &tensor, dnnl::normalization_flags affine) {
        const bool training = p.operation == FORWARD_TRAINING;
        const dnnl::batch_normalization_forward::primitive_desc description(
            device().engine,
            training ? dnnl::prop_kind::forward_training : dnnl::prop_kind::forward_inference,
            tensor, tensor, float(p.eps),
            training ? affine : affine | dnnl::normalization_flags::use_global_stats);
        primitive = dnnl::batch_normalization_forward(description);
        argue(DNNL_ARG_SRC, tensor, p.x);
        argue(DNNL_ARG_DST, tensor, p.out);
        argue_vectors(training ? grads.data() : p.running_mean,
                      training ? variance.data() : p.running_var);
        argue(DNNL_ARG_SHIFT, vector(), p.bias);
    }

    void prepare_backward(const memory::desc &tensor, dnnl::normalization_flags affine) {
        const dnnl::batch_normalization_forward::primitive_desc hint(
            device().engine, dnnl::prop_kind::forward_training, tensor, tensor, float(p.eps),
            affine);
        const dnnl::batch_normalization_backward::primitive_desc description(
            device().engine, dnnl::prop_kind::backward, tensor, tensor, tensor, float(p.eps),
            affine, hint);
        primitive = dnnl::batch_normalization_backward(description);
        argue(DNNL_ARG_SRC, tensor, p.x);
        argue(DNNL_ARG_DIFF_DST, tensor, p.grad_output);
        argue(DNNL_ARG_DIFF_SRC, tensor, p.out);
        argue_vectors(p.mean, variance.data());
        argue(DNNL_ARG_DIFF_SCALE, vector(), grads.data());
        argue(DNNL_ARG_DIFF_SHIFT, vector(), grads.data() + p.c);
    }

    void argue_vectors(float *mean, float *variance) {
        argue(DNNL_ARG_MEAN, vector(), mean);
        argue(DNNL_ARG_VARIANCE, vector(), variance);
        argue(DNNL_ARG_SCALE, vector(), p.weight);
    }
    void argue(int name, const memory::desc &description, void *data) {
        arguments.emplace(name, memory(description, device().engine, data));
    }
    memory::desc vector() const {
        return memory::desc({p.c}, memory::data_type::f32, memory::format_tag::a);
    }

    std::vector<float> variance, grads;
    dnnl::primitive primitive;
    std::unordered_map<int, memory> arguments;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    if (p.operation > BACKWARD) {
        throw std::invalid_argument("its fused operations are not measured");
    }
    if (dnnl::engine::get_count(dnnl::engine::kind::cpu) == 0) {
        throw std::runtime_error("oneDNN finds no CPU device (OCL_ICD_FILENAMES)");
    }
    return std::make_unique<OneDnn>(p);
}

std::string contestant_version() {
    const dnnl_version_t *v = dnnl::version();
    return std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
           std::to_string(v->patch) + ", isa " + std::to_string(int(dnnl::get_effective_cpu_isa()));
}
