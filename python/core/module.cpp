// hbn._core: the C interface for Python's arrays. Outputs are the caller's; the modules above allocate them and know
// what users may leave out. The GIL is released while kernels run.
#include "arrays.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <string>

namespace hbn::python {
namespace {

using nb::handle;

[[noreturn]] void raise(hbn_status status) {
    const std::string text = hbn_last_error();
    switch (status) {
    case HBN_INVALID_ARGUMENT:
        throw nb::value_error(text.c_str());
    case HBN_OUT_OF_MEMORY:
        PyErr_SetString(PyExc_MemoryError, text.c_str());
        break;
    case HBN_UNSUPPORTED:
        PyErr_SetString(PyExc_NotImplementedError, text.c_str());
        break;
    default:
        PyErr_SetString(PyExc_RuntimeError, text.c_str());
    }
    throw nb::python_error();
}

template<typename Call>
void run(Call call) {
    hbn_status status;
    {
        const nb::gil_scoped_release released;
        status = call();
    }
    if (status != HBN_OK) {
        raise(status);
    }
}

void forward(handle x, handle weight, handle bias, handle running_mean, handle running_var,
             bool training, std::optional<double> momentum, double eps, handle y, handle mean,
             handle invstd, handle num_batches_tracked) {
    LentTensor lent_x(x, "x"), lent_y(y, "y", Access::write);
    LentTensor::fold({&lent_x, &lent_y});
    const LentVector w(weight, "weight"), b(bias, "bias");
    const Access access = training ? Access::write : Access::read;
    const LentVector rm(running_mean, "running_mean", access),
        rv(running_var, "running_var", access);
    const LentStatistics saved(mean, invstd, Access::write);
    const LentVector counted(num_batches_tracked, "num_batches_tracked", Access::write);
    int64_t *counter = counted.counter();
    if (!momentum && !counter) {
        throw nb::value_error("momentum may be None only where num_batches_tracked is given");
    }
    const double factor = momentum ? *momentum : 1 / double(*counter + 1);
    run([&] {
        return hbn_batch_norm_forward(lent_x, w, b, rm, rv, training, factor, eps, lent_y,
                                      saved.mean(), saved.invstd());
    });
    // After the call, so that one that fails has changed nothing.
    if (counter) {
        ++*counter;
    }
}

void backward(handle grad_output, handle x, handle weight, handle mean, handle invstd,
              handle running_mean, handle running_var, bool training, double eps, handle grad_input,
              handle grad_weight, handle grad_bias) {
    LentTensor dy(grad_output, "grad_output"), lent_x(x, "x"),
        dx(grad_input, "grad_input", Access::write);
    LentTensor::fold({&dy, &lent_x, &dx});
    const LentVector w(weight, "weight"), rm(running_mean, "running_mean"),
        rv(running_var, "running_var");
    const LentStatistics saved(mean, invstd);
    const LentVector dw(grad_weight, "grad_weight", Access::write),
        db(grad_bias, "grad_bias", Access::write);
    run([&] {
        return hbn_batch_norm_backward(dy, lent_x, w, saved.mean(), saved.invstd(), rm, rv,
                                       training, eps, dx, dw, db);
    });
}

void relu_forward(handle x, handle residual, handle weight, handle bias, handle running_mean,
                  handle running_var, bool training, double momentum, double eps, handle y,
                  handle mask, handle mean, handle invstd) {
    LentTensor lent_x(x, "x"), added(residual, "residual"), lent_y(y, "y", Access::write),
        lent_mask(mask, "mask", Access::write);
    LentTensor::fold({&lent_x, &lent_y, &added, &lent_mask});
    const LentVector w(weight, "weight"), b(bias, "bias");
    const Access access = training ? Access::write : Access::read;
    const LentVector rm(running_mean, "running_mean", access),
        rv(running_var, "running_var", access);
    const LentStatistics saved(mean, invstd, Access::write);
    run([&] {
        return added.present()
                   ? hbn_batch_norm_add_relu_forward(lent_x, added, w, b, rm, rv, training,
                                                     momentum, eps, lent_y, lent_mask, saved.mean(),
                                                     saved.invstd())
                   : hbn_batch_norm_relu_forward(lent_x, w, b, rm, rv, training, momentum, eps,
                                                 lent_y, saved.mean(), saved.invstd());
    });
}

void relu_backward(handle grad_output, handle x, handle mask, handle weight, handle bias,
                   handle mean, handle invstd, handle running_mean, handle running_var,
                   bool training, double eps, handle grad_input, handle grad_residual,
                   handle grad_weight, handle grad_bias) {
    LentTensor dy(grad_output, "grad_output"), lent_x(x, "x"), lent_mask(mask, "mask"),
        dx(grad_input, "grad_input", Access::write),
        dr(grad_residual, "grad_residual", Access::write);
    LentTensor::fold({&dy, &lent_x, &lent_mask, &dr, &dx});
    const LentVector w(weight, "weight"), b(bias, "bias"), rm(running_mean, "running_mean"),
        rv(running_var, "running_var");
    const LentStatistics saved(mean, invstd);
    const LentVector dw(grad_weight, "grad_weight", Access::write),
        db(grad_bias, "grad_bias", Access::write);
    run([&] {
        return lent_mask.present()
                   ? hbn_batch_norm_add_relu_backward(dy, lent_x, lent_mask, w, saved.mean(),
                                                      saved.invstd(), rm, rv, training, eps, dx, dr,
                                                      dw, db)
                   : hbn_batch_norm_relu_backward(dy, lent_x, w, b, saved.mean(), saved.invstd(),
                                                  rm, rv, training, eps, dx, dw, db);
    });
}

void jvp(handle x_tangent, handle x, handle weight, handle weight_tangent, handle bias_tangent,
         handle mean, handle invstd, handle running_mean, handle running_var, bool training,
         double eps, handle y_tangent) {
    LentTensor t(x_tangent, "x_tangent"), lent_x(x, "x"),
        out(y_tangent, "y_tangent", Access::write);
    LentTensor::fold({&t, &lent_x, &out});
    const LentVector w(weight, "weight"), wt(weight_tangent, "weight_tangent"),
        bt(bias_tangent, "bias_tangent"), rm(running_mean, "running_mean"),
        rv(running_var, "running_var");
    const LentStatistics saved(mean, invstd);
    run([&] {
        return hbn_batch_norm_jvp(t, lent_x, w, wt, bt, saved.mean(), saved.invstd(), rm, rv,
                                  training, eps, out);
    });
}

void double_backward(handle grad_grad_input, handle grad_grad_weight, handle grad_grad_bias,
                     handle grad_output, handle x, handle weight, handle mean, handle invstd,
                     handle running_mean, handle running_var, bool training, double eps,
                     handle grad_grad_output, handle grad_input, handle grad_weight) {
    LentTensor ddx(grad_grad_input, "grad_grad_input"), dy(grad_output, "grad_output"),
        lent_x(x, "x"), ddy(grad_grad_output, "grad_grad_output", Access::write),
        dx(grad_input, "grad_input", Access::write);
    LentTensor::fold({&ddx, &dy, &lent_x, &ddy, &dx});
    const LentVector ddw(grad_grad_weight, "grad_grad_weight"),
        ddb(grad_grad_bias, "grad_grad_bias"), w(weight, "weight"),
        rm(running_mean, "running_mean"), rv(running_var, "running_var"),
        dw(grad_weight, "grad_weight", Access::write);
    const LentStatistics saved(mean, invstd);
    run([&] {
        return hbn_batch_norm_double_backward(ddx, ddw, ddb, dy, lent_x, w, saved.mean(),
                                              saved.invstd(), rm, rv, training, eps, ddy, dx, dw);
    });
}

// mean and m2 are dense float64 arrays; the count is what comes back, or goes in.
class LentMoments {
public:
    LentMoments(double count, handle mean, handle m2, int64_t channels, Access access)
        : mean_(mean, "mean", access),
          m2_(m2, "m2", access),
          moments_{count, mean_.doubles(channels), m2_.doubles(channels), channels} {
    }
    hbn_moments *operator&() {
        return &moments_;
    }
    double count() const {
        return moments_.count;
    }

private:
    LentVector mean_, m2_;
    hbn_moments moments_;
};

double stats(handle x, handle mean, handle m2) {
    LentTensor lent_x(x, "x");
    LentTensor::fold({&lent_x});
    LentMoments moments(0, mean, m2, lent_x.channels(), Access::write);
    run([&] { return hbn_batch_norm_stats(lent_x, &moments); });
    return moments.count();
}

double merge_moments(double count, handle mean, handle m2, double other_count, handle other_mean,
                     handle other_m2, int64_t channels) {
    LentMoments into(count, mean, m2, channels, Access::write);
    LentMoments other(other_count, other_mean, other_m2, channels, Access::read);
    run([&] { return hbn_merge_moments(&into, &other); });
    return into.count();
}

void finalize_moments(double count, handle mean, handle m2, int64_t channels, double momentum,
                      double eps, handle running_mean, handle running_var, handle save_mean,
                      handle save_invstd) {
    LentMoments moments(count, mean, m2, channels, Access::read);
    const LentVector rm(running_mean, "running_mean", Access::write),
        rv(running_var, "running_var", Access::write);
    const LentStatistics saved(save_mean, save_invstd, Access::write);
    run([&] {
        return hbn_finalize_moments(&moments, momentum, eps, rm, rv, saved.mean(), saved.invstd());
    });
}

void normalize(handle x, double count, handle mean, handle m2, handle weight, handle bias,
               double eps, handle y) {
    LentTensor lent_x(x, "x"), lent_y(y, "y", Access::write);
    LentTensor::fold({&lent_x, &lent_y});
    LentMoments moments(count, mean, m2, lent_x.channels(), Access::read);
    const LentVector w(weight, "weight"), b(bias, "bias");
    run([&] { return hbn_batch_norm_normalize(lent_x, &moments, w, b, eps, lent_y); });
}

void backward_reduce(handle grad_output, handle x, handle mean, handle invstd, handle sum_dy,
                     handle sum_dy_xmu, handle grad_weight, handle grad_bias) {
    LentTensor dy(grad_output, "grad_output"), lent_x(x, "x");
    LentTensor::fold({&dy, &lent_x});
    const LentStatistics saved(mean, invstd);
    const LentVector sum(sum_dy, "sum_dy", Access::write),
        sum_xmu(sum_dy_xmu, "sum_dy_xmu", Access::write),
        dw(grad_weight, "grad_weight", Access::write), db(grad_bias, "grad_bias", Access::write);
    double *const sums = sum.doubles(lent_x.channels());
    double *const sums_xmu = sum_xmu.doubles(lent_x.channels());
    run([&] {
        return hbn_batch_norm_backward_reduce(dy, lent_x, saved.mean(), saved.invstd(), sums,
                                              sums_xmu, dw, db);
    });
}

void backward_elemt(handle grad_output, handle x, handle mean, handle invstd, handle weight,
                    handle sum_dy, handle sum_dy_xmu, double count, handle grad_input) {
    LentTensor dy(grad_output, "grad_output"), lent_x(x, "x"),
        dx(grad_input, "grad_input", Access::write);
    LentTensor::fold({&dy, &lent_x, &dx});
    const LentStatistics saved(mean, invstd);
    const LentVector w(weight, "weight"), sum(sum_dy, "sum_dy"), sum_xmu(sum_dy_xmu, "sum_dy_xmu");
    const double *const sums = sum.doubles(lent_x.channels());
    const double *const sums_xmu = sum_xmu.doubles(lent_x.channels());
    run([&] {
        return hbn_batch_norm_backward_elemt(dy, lent_x, saved.mean(), saved.invstd(), w, sums,
                                             sums_xmu, count, dx);
    });
}

void set_num_threads(int num_threads) {
    run([&] { return hbn_set_num_threads(num_threads); });
}

void set_instruction_set(const std::string &name) {
    run([&] { return hbn_set_instruction_set(name.c_str()); });
}

NB_MODULE(_core, m) {
    using namespace nb::literals;
    const auto none = nb::none();
    m.def("forward", &forward, "x"_a.none(), "weight"_a.none(), "bias"_a.none(),
          "running_mean"_a.none(), "running_var"_a.none(), "training"_a, "momentum"_a.none(),
          "eps"_a, "y"_a.none(), "mean"_a.none(), "invstd"_a.none() = none,
          "num_batches_tracked"_a.none() = none);
    m.def("backward", &backward, "grad_output"_a.none(), "x"_a.none(), "weight"_a.none(),
          "mean"_a.none(), "invstd"_a.none(), "running_mean"_a.none(), "running_var"_a.none(),
          "training"_a, "eps"_a, "grad_input"_a.none(), "grad_weight"_a.none(),
          "grad_bias"_a.none());
    m.def("relu_forward", &relu_forward, "x"_a.none(), "residual"_a.none(), "weight"_a.none(),
          "bias"_a.none(), "running_mean"_a.none(), "running_var"_a.none(), "training"_a,
          "momentum"_a, "eps"_a, "y"_a.none(), "mask"_a.none(), "mean"_a.none(), "invstd"_a.none());
    m.def("relu_backward", &relu_backward, "grad_output"_a.none(), "x"_a.none(), "mask"_a.none(),
          "weight"_a.none(), "bias"_a.none(), "mean"_a.none(), "invstd"_a.none(),
          "running_mean"_a.none(), "running_var"_a.none(), "training"_a, "eps"_a,
          "grad_input"_a.none(), "grad_residual"_a.none(), "grad_weight"_a.none(),
          "grad_bias"_a.none());
    m.def("jvp", &jvp, "x_tangent"_a.none(), "x"_a.none(), "weight"_a.none(),
          "weight_tangent"_a.none(), "bias_tangent"_a.none(), "mean"_a.none(), "invstd"_a.none(),
          "running_mean"_a.none(), "running_var"_a.none(), "training"_a, "eps"_a,
          "y_tangent"_a.none());
    m.def("double_backward", &double_backward, "grad_grad_input"_a.none(),
          "grad_grad_weight"_a.none(), "grad_grad_bias"_a.none(), "grad_output"_a.none(),
          "x"_a.none(), "weight"_a.none(), "mean"_a.none(), "invstd"_a.none(),
          "running_mean"_a.none(), "running_var"_a.none(), "training"_a, "eps"_a,
          "grad_grad_output"_a.none(), "grad_input"_a.none(), "grad_weight"_a.none());
    m.def("stats", &stats, "x"_a.none(), "mean"_a.none(), "m2"_a.none());
    m.def("merge_moments", &merge_moments, "count"_a, "mean"_a.none(), "m2"_a.none(),
          "other_count"_a, "other_mean"_a.none(), "other_m2"_a.none(), "channels"_a);
    m.def("finalize_moments", &finalize_moments, "count"_a, "mean"_a.none(), "m2"_a.none(),
          "channels"_a, "momentum"_a, "eps"_a, "running_mean"_a.none(), "running_var"_a.none(),
          "save_mean"_a.none(), "save_invstd"_a.none());
    m.def("normalize", &normalize, "x"_a.none(), "count"_a, "mean"_a.none(), "m2"_a.none(),
          "weight"_a.none(), "bias"_a.none(), "eps"_a, "y"_a.none());
    m.def("backward_reduce", &backward_reduce, "grad_output"_a.none(), "x"_a.none(),
          "mean"_a.none(), "invstd"_a.none(), "sum_dy"_a.none(), "sum_dy_xmu"_a.none(),
          "grad_weight"_a.none(), "grad_bias"_a.none());
    m.def("backward_elemt", &backward_elemt, "grad_output"_a.none(), "x"_a.none(), "mean"_a.none(),
          "invstd"_a.none(), "weight"_a.none(), "sum_dy"_a.none(), "sum_dy_xmu"_a.none(), "count"_a,
          "grad_input"_a.none());
    m.def("set_num_threads", &set_num_threads, "num_threads"_a);
    m.def("get_num_threads", &hbn_get_num_threads, "Threads that later calls use.");
    m.def(
        "instruction_sets", [] { return std::string(hbn_instruction_sets()); },
        "Those that this library has kernels for, best first, comma-separated.");
    m.def(
        "instruction_set", [] { return std::string(hbn_instruction_set()); },
        "The one in use: this processor's best, or what the variable HBN_INSTRUCTION_SET names.");
    m.def("set_instruction_set", &set_instruction_set, "name"_a,
          "Has later calls use one of instruction_sets(). ValueError for any other name, "
          "NotImplementedError for one that this processor lacks.");
    m.def("version", [] { return std::string(hbn_version()); });
}

}  // namespace
}  // namespace hbn::python
