// BatchNorm2d on photographs (cut_photographs.py), or on your own .npy: statistics before and after, the error
// against float64, time and its share of the memory bound, and a picture.
#include "files.h"
#include "bench/memory_bound.h"

#include <hbn/batch_norm_2d.h>

#include <getopt.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <utility>

namespace {

struct Options {
    std::string input, weights, prefix, picture = "demo.png", output;
    hbn::DType dtype = hbn::DType::float32;
    bool channels_last = false;
    int threads = 0;
};

void print_usage(FILE *to) {
    std::fputs(
        "usage: demo --input x.npy [options]\n"
        "  --input FILE       a (N, C, H, W) array in .npy format: integers or floats\n"
        "  --weights FILE     weight, bias, running_mean, running_var: .safetensors or .npz\n"
        "  --prefix NAME      what stands before those names in the file, such as layer1.0.bn1.\n"
        "  --picture FILE     where the picture of before and after goes (demo.png)\n"
        "  --output FILE      where the normalized tensor goes, as .npy\n"
        "                     (with --weights what evaluation made, otherwise training)\n"
        "  --dtype NAME       compute on float32 (default), float64, bfloat16 or float16\n"
        "  --channels-last    compute in NHWC\n"
        "  --threads N        0 (default) means one per processor\n",
        to);
}

hbn::DType parse_dtype(const std::string &name) {
    for (hbn::DType dtype :
         {hbn::DType::float32, hbn::DType::float64, hbn::DType::bfloat16, hbn::DType::float16}) {
        if (name == hbn::name_of(dtype)) {
            return dtype;
        }
    }
    throw std::runtime_error("--dtype takes float32, float64, bfloat16 or float16");
}

int parse_threads(const char *text) {
    char *end;
    const long threads = std::strtol(text, &end, 10);
    if (end == text || *end || threads < 0 || threads > 4096) {
        throw std::runtime_error("--threads takes a number from 0 to 4096");
    }
    return int(threads);
}

Options parse(int argc, char **argv) {
    Options options;
    enum { input, weights, prefix, picture, output, dtype, channels_last, threads, help };
    static const option long_options[] = {
        {"input", required_argument, nullptr, input},
        {"weights", required_argument, nullptr, weights},
        {"prefix", required_argument, nullptr, prefix},
        {"picture", required_argument, nullptr, picture},
        {"output", required_argument, nullptr, output},
        {"dtype", required_argument, nullptr, dtype},
        {"channels-last", no_argument, nullptr, channels_last},
        {"threads", required_argument, nullptr, threads},
        {"help", no_argument, nullptr, help},
        {nullptr, 0, nullptr, 0},
    };
    for (int found; (found = getopt_long(argc, argv, "", long_options, nullptr)) != -1;) {
        switch (found) {
        case input:
            options.input = optarg;
            break;
        case weights:
            options.weights = optarg;
            break;
        case prefix:
            options.prefix = optarg;
            break;
        case picture:
            options.picture = optarg;
            break;
        case output:
            options.output = optarg;
            break;
        case dtype:
            options.dtype = parse_dtype(optarg);
            break;
        case channels_last:
            options.channels_last = true;
            break;
        case threads:
            options.threads = parse_threads(optarg);
            break;
        case help:
            print_usage(stdout);
            std::exit(0);
        default:
            print_usage(stderr);
            std::exit(2);
        }
    }
    if (options.input.empty() || optind != argc) {
        print_usage(stderr);
        std::exit(2);
    }
    return options;
}

// A tensor in the dtype and layout that is computed on. Files have C order, and so has Array.
class Batch {
public:
    Batch(const Array &array, hbn::DType dtype, hbn::MemoryFormat format)
        : tensor_(dtype, {array.shape[0], array.shape[1], array.shape[2], array.shape[3]}, format) {
        const std::vector<char> bytes = to_bytes(array, dtype);
        for_each([&](char *element, size_t at, size_t size) {
            std::memcpy(element, bytes.data() + at, size);
        });
    }
    Array to_array() const {
        const hbn::Shape &s = view().sizes;
        std::vector<char> bytes(size_t(view().num_elements()) * hbn::size_of(view().dtype));
        for_each([&](char *element, size_t at, size_t size) {
            std::memcpy(bytes.data() + at, element, size);
        });
        return from_bytes(bytes, {s[0], s[1], s[2], s[3]}, view().dtype);
    }
    const hbn::TensorView &view() const {
        return tensor_.view();
    }

private:
    template<typename Visit>
    void for_each(Visit visit) const {
        const hbn::Shape &s = view().sizes, &t = view().strides;
        const size_t size = hbn::size_of(view().dtype);
        size_t at = 0;
        for (int64_t n = 0; n < s[0]; n++) {
            for (int64_t c = 0; c < s[1]; c++) {
                for (int64_t h = 0; h < s[2]; h++) {
                    for (int64_t w = 0; w < s[3]; w++, at += size) {
                        const int64_t element = n * t[0] + c * t[1] + h * t[2] + w * t[3];
                        visit(tensor_.data<char>() + size_t(element) * size, at, size);
                    }
                }
            }
        }
    }

    hbn::Tensor tensor_;
};

// The same operations in float64, written as plainly as they can be: what results are compared with.
namespace float64 {

struct Channel {
    double mean = 0, variance = 0, weight = 1, bias = 0;
};
using Channels = std::vector<Channel>;

// Calls visit(c, i) with every element's channel and place.
template<typename Visit>
void for_each(const Array &a, Visit visit) {
    const size_t channels = size_t(a.shape[1]), plane = size_t(a.shape[2] * a.shape[3]);
    for (size_t i = 0; i < a.values.size(); i++) {
        visit(i / plane % channels, i);
    }
}

double values_per_channel(const Array &a) {
    return double(a.shape[0]) * double(a.shape[2]) * double(a.shape[3]);
}

Channels statistics(const Array &x, const Channels &parameters) {
    Channels all = parameters;
    const double count = values_per_channel(x);
    for (Channel &channel : all) {
        channel.mean = channel.variance = 0;
    }
    for_each(x, [&](size_t c, size_t i) { all[c].mean += x.values[i] / count; });
    for_each(x, [&](size_t c, size_t i) {
        const double deviation = x.values[i] - all[c].mean;
        all[c].variance += deviation * deviation / count;
    });
    return all;
}

Array forward(const Array &x, const Channels &channels, double eps) {
    Array y = x;
    for_each(x, [&](size_t c, size_t i) {
        const Channel &channel = channels[c];
        const double invstd = 1 / std::sqrt(channel.variance + eps);
        y.values[i] = (x.values[i] - channel.mean) * invstd * channel.weight + channel.bias;
    });
    return y;
}

Array backward_training(const Array &dy, const Array &x, const Channels &channels, double eps) {
    Array dx = x;
    std::vector<double> sum_dy(channels.size()), sum_dy_xhat(channels.size());
    const double count = values_per_channel(x);
    const auto invstd = [&](size_t c) { return 1 / std::sqrt(channels[c].variance + eps); };
    const auto xhat = [&](size_t c, size_t i) {
        return (x.values[i] - channels[c].mean) * invstd(c);
    };
    for_each(x, [&](size_t c, size_t i) {
        sum_dy[c] += dy.values[i];
        sum_dy_xhat[c] += dy.values[i] * xhat(c, i);
    });
    for_each(x, [&](size_t c, size_t i) {
        dx.values[i] = channels[c].weight * invstd(c) *
                       (dy.values[i] - sum_dy[c] / count - xhat(c, i) * sum_dy_xhat[c] / count);
    });
    return dx;
}

}  // namespace float64

double largest_of(const Array &a) {
    double largest = 0;
    for (double v : a.values) {
        largest = std::max(largest, std::fabs(v));
    }
    return largest;
}

// The largest |result - expected|, as a share of `scale`. Infinite where just one of them is not a number.
double relative_error(const Array &result, const Array &expected, double scale) {
    double error = 0;
    for (size_t i = 0; i < result.values.size(); i++) {
        const double r = result.values[i], e = expected.values[i];
        if (r != e && !(std::isnan(r) && std::isnan(e))) {
            error = std::max(error, std::isfinite(r - e) ? std::fabs(r - e) : INFINITY);
        }
    }
    return scale > 0 ? error / scale : error;
}

double value(const hbn::ConstVectorView &v, size_t c) {
    return v.dtype == hbn::DType::float64 ? static_cast<const double *>(v.data)[c]
                                          : double(static_cast<const float *>(v.data)[c]);
}

float64::Channels parameters_of(const hbn::BatchNorm2d &bn) {
    float64::Channels channels(static_cast<size_t>(bn.num_features()));
    for (size_t c = 0; c < channels.size(); c++) {
        channels[c] = {value(bn.running_mean(), c), value(bn.running_var(), c),
                       value(bn.weight(), c), value(bn.bias(), c)};
    }
    return channels;
}

void print_statistics(const char *title, const float64::Channels &channels) {
    constexpr size_t kMost = 8;
    std::printf("%s\n", title);
    for (size_t c = 0; c < std::min(channels.size(), kMost); c++) {
        std::printf("  channel %zu   mean %13.6g   std %13.6g\n", c,
                    std::fabs(channels[c].mean) < 1e-12 ? 0. : channels[c].mean,
                    std::sqrt(channels[c].variance));
    }
    if (channels.size() > kMost) {
        std::printf("  ... and %zu more channels\n", channels.size() - kMost);
    }
}

std::string shape_text(const std::vector<int64_t> &shape) {
    std::string text;
    for (const int64_t size : shape) {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "(" + text + ")";
}

void load_parameters(const Options &options, hbn::BatchNorm2d &bn) {
    const auto known = std::as_const(bn).state_dict(options.prefix);
    std::set<std::string> wanted;
    for (const auto &[name, entry] : known) {
        // num_batches_tracked matters only to momentum None.
        if (name != options.prefix + "num_batches_tracked") {
            wanted.insert(name);
        }
    }
    const Weights weights = load_weights(options.weights, wanted);
    hbn::ConstStateDict state;
    for (const std::string &name : wanted) {
        const auto found = weights.arrays.find(name);
        if (found == weights.arrays.end()) {
            std::string message = options.weights + ": has no \"" + name + "\"; it has";
            for (size_t i = 0; i < weights.others.size() && message.size() < 400; i++) {
                message += " " + weights.others[i];
            }
            throw std::runtime_error(message + " (--prefix NAME says what stands before weight)");
        }
        const Array &array = found->second;
        if (array.shape != known.at(name).shape) {
            throw std::runtime_error(options.weights + ": \"" + name + "\": has shape " +
                                     shape_text(array.shape) + ", the input's channels need " +
                                     shape_text(known.at(name).shape));
        }
        state[name] = {array.values.data(), hbn::DType::float64, array.shape};
    }
    bn.load_state_dict(state, true, options.prefix);
    std::printf("loaded %zu arrays from %s\n", state.size(), options.weights.c_str());
}

// What there is of NaN and infinities: nothing, or "2 NaN and 1 infinite value, first at [0, 1, 0, 0]".
std::string not_finite(const Array &array) {
    size_t nans = 0, infinities = 0, first = 0;
    for (size_t i = 0; i < array.values.size(); i++) {
        const double v = array.values[i];
        if (!std::isfinite(v)) {
            first = nans + infinities == 0 ? i : first;
            ++(std::isnan(v) ? nans : infinities);
        }
    }
    if (nans + infinities == 0) {
        return "";
    }
    std::string at;
    for (size_t d = array.shape.size(); d-- > 0; first /= size_t(array.shape[d])) {
        at = std::to_string(first % size_t(array.shape[d])) + (at.empty() ? "" : ", ") + at;
    }
    return std::to_string(nans) + " NaN and " + std::to_string(infinities) + " infinite of " +
           std::to_string(array.values.size()) + " values, first at [" + at + "]";
}

// The first parameter or statistic that makes results not finite, as a negative variance does.
std::string not_finite(const float64::Channels &channels) {
    for (size_t c = 0; c < channels.size(); c++) {
        const auto &[mean, variance, weight, bias] = channels[c];
        const std::pair<const char *, double> values[] = {
            {"running_mean", mean}, {"running_var", variance}, {"weight", weight}, {"bias", bias}};
        for (const auto &[name, v] : values) {
            if (!std::isfinite(v) || (&v == &values[1].second && v < 0)) {
                return std::string(name) + "[" + std::to_string(c) + "] is " + std::to_string(v);
            }
        }
    }
    return "";
}

struct Named {
    std::string name;
    std::string not_finite;
};

// Says where results are not finite, and which inputs are to blame.
void report_not_finite(const std::vector<Named> &inputs, const std::vector<Named> &results) {
    const auto finite = [](const Named &n) { return n.not_finite.empty(); };
    if (std::all_of(results.begin(), results.end(), finite)) {
        return;
    }
    std::printf("not all results are finite\n");
    for (const Named &result : results) {
        if (!finite(result)) {
            std::printf("  %-21s %s\n", result.name.c_str(), result.not_finite.c_str());
        }
    }
    for (const Named &input : inputs) {
        if (!finite(input)) {
            std::printf("  because of %s: %s\n", input.name.c_str(), input.not_finite.c_str());
        }
    }
    if (std::all_of(inputs.begin(), inputs.end(), finite)) {
        std::printf("  though all inputs are: the errors above say whether float64 agrees\n");
    }
    std::printf("\n");
}

struct Timing {
    const char *name;
    std::function<void()> run;
    bool backward;  // two tensors read instead of one
    double seconds = 1e30;
};

void measure(std::vector<Timing> &timings, const hbn::TensorView &x, const hbn::TensorView &dy,
             const hbn::TensorView &out) {
    const size_t bytes = size_t(x.num_elements()) * hbn::size_of(x.dtype) / 64 * 64;
    hbn::bench::Team team(hbn::get_num_threads());
    double bounds[2] = {1e30, 1e30};
    constexpr int kMost = 200, kFewest = 5;
    constexpr double kEnough = 2;  // seconds
    const double begin = hbn::bench::seconds_now();
    int rounds = 0;
    for (; rounds < kMost; rounds++) {
        if (rounds >= kFewest && hbn::bench::seconds_now() - begin > kEnough) {
            break;
        }
        for (Timing &t : timings) {
            const double start = hbn::bench::seconds_now();
            t.run();
            t.seconds = std::min(t.seconds, hbn::bench::seconds_now() - start);
        }
        for (int backward = 0; backward < 2; backward++) {
            bounds[backward] = std::min(
                bounds[backward], hbn::bench::memory_bound_round(
                                      team, x.data, backward ? dy.data : nullptr, out.data, bytes));
        }
    }
    std::printf(
        "time: best of %d rounds, %d threads, %s; bound: a loop that only moves the bytes\n",
        rounds, hbn::get_num_threads(), hbn_instruction_set());
    std::printf("  %-24s %10s %10s %8s\n", "", "time", "bound", "share");
    for (const Timing &t : timings) {
        const double bound = bounds[t.backward];
        std::printf("  %-24s %7.3f ms %7.3f ms %7.0f%%\n", t.name, t.seconds * 1e3, bound * 1e3,
                    100 * bound / t.seconds);
    }
}

void run(const Options &options) {
    const Array file = load_npy(options.input);
    if (file.shape.size() != 4) {
        throw std::runtime_error(options.input + ": expected a (N, C, H, W) array, got one of " +
                                 std::to_string(file.shape.size()) + " dimensions");
    }
    if (file.values.empty()) {
        throw std::runtime_error(options.input + ": no values");
    }
    const auto format =
        options.channels_last ? hbn::MemoryFormat::channels_last : hbn::MemoryFormat::contiguous;
    const auto batch = [&](const Array &array) { return Batch(array, options.dtype, format); };
    hbn::set_num_threads(options.threads);

    hbn::BatchNorm2dOptions module_options;
    if (options.dtype == hbn::DType::float64) {
        module_options.dtype = hbn::DType::float64;
    }
    hbn::BatchNorm2d bn(file.shape[1], module_options);
    if (!options.weights.empty()) {
        load_parameters(options, bn);
    }
    const double eps = bn.options().eps;
    const hbn::BatchNorm2d loaded = bn.clone();
    const float64::Channels loaded_parameters = parameters_of(loaded);

    const Batch x = batch(file), y = batch(file), z = batch(file), dx = batch(file);
    const Array x_array = x.to_array();  // as rounded to the dtype
    std::printf("%s\non (%lld, %lld, %lld, %lld) %s, %s\n\n", bn.repr().c_str(),
                (long long)file.shape[0], (long long)file.shape[1], (long long)file.shape[2],
                (long long)file.shape[3], hbn::name_of(options.dtype),
                options.channels_last ? "channels_last" : "contiguous");

    bn.forward(x.view(), y.view());
    const Array y_array = y.to_array();
    const auto before = float64::statistics(x_array, parameters_of(bn));
    print_statistics("before", before);
    print_statistics("after, in training", float64::statistics(y_array, before));

    // As if the loss were the sum of y^3 / 3, which asks each channel to be less skewed.
    Array dy_array = y_array;
    for (double &v : dy_array.values) {
        v *= v;
    }
    const Batch dy = batch(dy_array);
    dy_array = dy.to_array();
    const auto gradients = bn.backward(dy.view(), x.view(), {}, dx.view());
    const Array dx_array = dx.to_array();
    print_statistics("grad_input, of the loss sum(y^3)/3", float64::statistics(dx_array, before));
    std::printf("grad_weight[0] %.6g   grad_bias[0] %.6g\n", value(gradients.grad_weight, 0),
                value(gradients.grad_bias, 0));

    // A user's running statistics are used as they came, others as training has just made them.
    hbn::BatchNorm2d evaluated = options.weights.empty() ? bn.clone() : loaded.clone();
    evaluated.eval();
    evaluated.forward(x.view(), z.view());
    const Array z_array = z.to_array();
    const auto running = parameters_of(evaluated);
    print_statistics("running statistics, for evaluation", running);
    print_statistics("after, in evaluation", float64::statistics(z_array, running));

    const Array y_expected = float64::forward(x_array, before, eps);
    const Array dx_expected = float64::backward_training(dy_array, x_array, before, eps);
    const Array z_expected = float64::forward(x_array, running, eps);
    // What grad_input subtracts its means from; it may come to much less itself.
    double largest_term = 0;
    for (const float64::Channel &channel : before) {
        largest_term =
            std::max(largest_term, std::fabs(channel.weight) / std::sqrt(channel.variance + eps) *
                                       largest_of(dy_array));
    }
    std::printf("\nlargest error against float64, relative to the largest value\n");
    std::printf("  forward, training     %.1e\n",
                relative_error(y_array, y_expected, largest_of(y_expected)));
    std::printf("  backward, training    %.1e\n",
                relative_error(dx_array, dx_expected, largest_term));
    std::printf("  forward, evaluation   %.1e\n\n",
                relative_error(z_array, z_expected, largest_of(z_expected)));

    const std::string in_file = not_finite(file);
    report_not_finite({{options.input, in_file},
                       {std::string("rounding the input to ") + hbn::name_of(options.dtype),
                        in_file.empty() ? not_finite(x_array) : ""},
                       {options.weights, not_finite(loaded_parameters)}},
                      {{"forward, training", not_finite(y_array)},
                       {"grad_input", not_finite(dx_array)},
                       {"forward, evaluation", not_finite(z_array)}});

    // Training changes the running statistics, so what is timed is a module of its own.
    hbn::BatchNorm2d timed = bn.clone();
    std::vector<Timing> timings = {
        {"forward, training", [&] { timed.forward(x.view(), z.view()); }, false},
        {"backward, training", [&] { timed.backward(dy.view(), x.view(), {}, dx.view()); }, true},
        {"forward, evaluation", [&] { evaluated.forward(x.view(), z.view()); }, false},
        {"backward, evaluation", [&] { evaluated.backward(dy.view(), x.view(), {}, dx.view()); },
         true},
    };
    measure(timings, x.view(), dy.view(), z.view());

    const Array &result = options.weights.empty() ? y_array : z_array;
    save_comparison(options.picture, x_array, result);
    std::printf("\nbefore and after: %s\n", options.picture.c_str());
    if (!options.output.empty()) {
        save_npy(options.output, result, options.dtype);
        std::printf("normalized tensor: %s\n", options.output.c_str());
    }
}

}  // namespace

int main(int argc, char **argv) {
    Options options;
    try {
        options = parse(argc, argv);
        run(options);
        // What was printed may not have arrived, either.
        if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
            throw std::runtime_error(std::string("standard output: ") + std::strerror(errno));
        }
        return 0;
    } catch (const hbn::UnsupportedError &e) {
        std::fprintf(stderr, "demo: %s\ndemo: make demo ARGS='--dtype %s' builds what that needs\n",
                     e.what(), hbn::name_of(options.dtype));
    } catch (const std::exception &e) {
        std::fprintf(stderr, "demo: %s\n", e.what());
    }
    return 1;
}
