#include "bench/tune/problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace hbn::tune {

namespace {

using compare::Buffer;
using compare::BufferMember;
using compare::Buffers;
using compare::DType;
using compare::kEps;
using compare::kMomentum;
using test::Bounded;
using test::ChannelOracle;
using test::GradientSums;
using test::Real;

// ---- numbers

enum Sequence : uint64_t { X, GRAD_OUTPUT, RESIDUAL, MASK, WEIGHT, BIAS };

uint64_t random_bits(Sequence sequence, uint64_t i) {
    return compare::random_bits(uint64_t(sequence) << 56, i);
}

// Nearly normal, of variance 1: the sum of four uniform numbers. Not so near 0 that float16 has no normal number for it.
float normal_value(Sequence sequence, uint64_t i, float mean = 0) {
    const uint64_t bits = random_bits(sequence, i);
    const int32_t sum = int32_t(bits & 0xffff) + int32_t(bits >> 16 & 0xffff) +
                        int32_t(bits >> 32 & 0xffff) + int32_t(bits >> 48);
    const float value = float(sum - 0x1fffe) * float(1.7320508 / 65536) + mean;
    return std::fabs(value) < 0x1p-12f ? 0x1p-12f : value;
}

// The kinds of channels: what breaks sums of squares, and float32's range.
enum Kind { FAR_FROM_ZERO, CONSTANT, OUTLIER };

int kinds_of(DType dtype) {
    // Bounds for float64 have no room for what an outlier costs.
    return dtype == compare::FLOAT64 ? 2 : 3;
}

bool is_16_bit(DType dtype) {
    return dtype == compare::BFLOAT16 || dtype == compare::FLOAT16;
}

// `i`: its index in a channel of `count` values.
float hard_value(Kind kind, DType dtype, float normal, int64_t i, int64_t count) {
    switch (kind) {
    case FAR_FROM_ZERO:
        return normal + (is_16_bit(dtype) ? 100 : dtype == compare::FLOAT64 ? 1e3f : 1e6f);
    case CONSTANT:
        return is_16_bit(dtype) ? 1000 : 3.25f;
    default:
        // Its square is beyond float32.
        return i != count / 2 ? normal : is_16_bit(dtype) ? 60000 : 2e19f;
    }
}

// The same for grad_output. What comes of it must not be beyond float16.
float hard_gradient(Kind kind, DType dtype, float normal, int64_t i, int64_t count) {
    switch (kind) {
    case FAR_FROM_ZERO:
        return normal + 100;
    case CONSTANT:
        return 3.25f;
    default:
        return i != count / 2 ? normal : dtype == compare::FLOAT16 ? 60 : 60000;
    }
}

// Calls visit(offset, c, i): the i-th of a channel's values lies there.
template<typename Visit>
void for_each_element(const compare::TensorForm &form, Visit visit) {
    const int64_t channels = form.channels(), plane = form.sizes[2] * form.sizes[3];
    int64_t offset = 0;
    for (int64_t n = 0; n < form.sizes[0]; n++) {
        if (form.layout == compare::Layout::nchw) {
            for (int64_t c = 0; c < channels; c++) {
                for (int64_t p = 0; p < plane; p++) {
                    visit(offset++, c, n * plane + p);
                }
            }
        } else {
            for (int64_t p = 0; p < plane; p++) {
                for (int64_t c = 0; c < channels; c++) {
                    visit(offset++, c, n * plane + p);
                }
            }
        }
    }
}

// ---- reading

// The values of all 16-bit patterns.
const std::vector<double> &values_of_16_bits(DType dtype) {
    const auto make = [](hbn::DType of) {
        std::vector<double> values(1 << 16);
        for (uint32_t bits = 0; bits < values.size(); bits++) {
            const uint16_t pattern = uint16_t(bits);
            values[bits] = test::load(of, &pattern);
        }
        return values;
    };
    static const std::vector<double> brain = make(hbn::DType::bfloat16);
    static const std::vector<double> half = make(hbn::DType::float16);
    return dtype == compare::BFLOAT16 ? brain : half;
}

// Channels that lie in the same cache lines are read together.
constexpr int64_t kLine = 64;

// Reads channels from `begin` on, each to values of its own. Where channels are neighbours, so many pixels at a time that their
// lines stay in L1.
template<typename Load>
void read_channels(const compare::TensorForm &form, int64_t begin, Load load,
                   std::vector<std::vector<double>> *channels) {
    constexpr int64_t kPixels = 256;
    const int64_t plane = form.sizes[2] * form.sizes[3], pixels = form.sizes[0] * plane;
    const bool are_planes = form.layout == compare::Layout::nchw;
    for (std::vector<double> &values : *channels) {
        values.resize(size_t(pixels));
    }
    for (int64_t first = 0; first < pixels; first += are_planes ? plane : kPixels) {
        const int64_t count = std::min(are_planes ? plane : kPixels, pixels - first);
        for (size_t c = 0; c < channels->size(); c++) {
            const int64_t channel = begin + int64_t(c);
            const int64_t offset = are_planes ? first * form.channels() + channel * plane
                                              : first * form.channels() + channel;
            const int64_t stride = are_planes ? 1 : form.channels();
            double *values = (*channels)[c].data() + first;
            for (int64_t i = 0; i < count; i++) {
                values[i] = load(offset + i * stride);
            }
        }
    }
}

compare::Convention convention_of(const KernelCall &call) {
    compare::Convention convention;
    convention.mask = call.mask || (call.results == Results::backward && call.add);
    return convention;
}

std::string at(const char *result, int64_t c, double share) {
    return std::string(result) + " of channel " + std::to_string(c) + " is off by " +
           std::to_string(share) + " times the bound";
}

}  // namespace

std::string Inputs::description() const {
    return are_hard() ? "hard inputs" : "ordinary inputs";
}

std::vector<Inputs> all_inputs(DType dtype, int64_t channels) {
    std::vector<Inputs> all = {Inputs{}};
    for (int kind = 0; kind < kinds_of(dtype); kind += int(std::min<int64_t>(channels, 100))) {
        all.push_back(Inputs{kind});
    }
    return all;
}

void Worst::take(const Worst &other) {
    if (other.share > share) {
        *this = other;
    }
}

Problem::Problem(const compare::Library &library, const KernelCall &call,
                 const compare::TensorForm &form, Inputs inputs)
    : inputs(inputs),
      library_(library),
      call_(call),
      operation_(compare::operation_of(call.operation)),
      form_(form),
      dtype_(hbn::DType(int(form.dtype))),
      parameters_(form.dtype == compare::FLOAT64 ? compare::FLOAT64 : compare::FLOAT32),
      arguments_([&] {
          std::vector<BufferMember> tensors;
          for (const KernelTensor &tensor : tensors_of(call.kernel, hbn_dtype(int(form.dtype)))) {
              const DType dtype = compare::is_mask(tensor.buffer) ? compare::UINT8 : form.dtype;
              bytes_ += form.span() * int64_t(compare::bytes_of(dtype));
              tensors.push_back(tensor.buffer);
          }
          // What operations take, even where the kernel needs none; and what passes an activation.
          tensors.push_back(&Buffers::x);
          if (call.results == Results::backward && call.relu) {
              tensors.push_back(&Buffers::mask);
          }
          buffers_.allocate(form, tensors);
          return compare::Arguments(buffers_, convention_of(call));
      }()) {
    fill();
    find_statistics();
    load_vectors();
    find_passed();
    find_sums();
    groups_.clear();
}

Problem::Problem(const Problem &other) : Problem(other, nullptr, nullptr) {
}

Problem::Problem(const Problem &other, const Buffer &read, const Buffer &written)
    : Problem(other, &read, &written) {
    pass_numbers_through();
}

Problem::Problem(const Problem &other, const Buffer *read, const Buffer *written)
    : inputs(other.inputs),
      library_(other.library_),
      call_(other.call_),
      operation_(other.operation_),
      form_(other.form_),
      dtype_(other.dtype_),
      parameters_(other.parameters_),
      bytes_(other.bytes_),
      arguments_([&] {
          if (read) {
              buffers_.copy(other.buffers_, {input_member(), &Buffers::out});
              (buffers_.*input_member()).share(*read);
              buffers_.out.share(*written);
          } else {
              buffers_.copy(other.buffers_);
          }
          return compare::Arguments(buffers_, convention_of(call_));
      }()),
      of_x_(other.of_x_),
      given_(other.given_),
      sums_(other.sums_),
      weight_(other.weight_),
      bias_(other.bias_),
      running_mean_(other.running_mean_),
      running_var_(other.running_var_),
      mean_(other.mean_),
      invstd_(other.invstd_) {
}

BufferMember Problem::input_member() const {
    return call_.results == Results::backward || call_.results == Results::backward_elemt
               ? &Buffers::grad_output
               : &Buffers::x;
}

bool Problem::passes_on() const {
    return call_.results != Results::stats && call_.results != Results::backward_reduce;
}

bool Problem::keeps_what_it_reads() const {
    return call_.results == Results::normalize ||
           (call_.results == Results::forward && call_.training);
}

int64_t Problem::tensor_bytes() const {
    return form_.span() * int64_t(compare::bytes_of(form_.dtype));
}

void Problem::pass_numbers_through() {
    const auto fill = [](Values &values, double value) {
        std::fill(values.begin(), values.end(), value);
    };
    fill(weight_, 1);
    fill(bias_, 0);
    fill(running_mean_, 0);
    fill(running_var_, 1);
    fill(mean_, 0);
    fill(invstd_, 1);
    for (ChannelOracle &s : of_x_) {
        s.mean = 0;
        s.m2 = s.count;
    }
    std::fill(sums_.begin(), sums_.end(), GradientSums());
    load_vectors();
    if (!call_.training && buffers_.residual.data()) {  // else it would be added to them each time
        std::memset(buffers_.residual.data(), 0, size_t(tensor_bytes()));
    }
}

void Problem::fill() {
    const int64_t count = int64_t(form_.count());
    const int kinds = kinds_of(form_.dtype);
    const bool has_dy = buffers_.grad_output.data(), has_residual = buffers_.residual.data();
    const bool has_mask = buffers_.mask.data();
    for_each_element(form_, [&](int64_t offset, int64_t c, int64_t i) {
        const uint64_t index = uint64_t(c * count + i);
        float x = normal_value(X, index), dy = normal_value(GRAD_OUTPUT, index, 0.25f);
        if (inputs.are_hard()) {
            const int64_t kind = inputs.first_kind + c;
            x = hard_value(Kind(kind % kinds), form_.dtype, x, i, count);
            dy = hard_gradient(Kind((kind + 1) % kinds), form_.dtype, dy, i, count);
        }
        compare::store(buffers_.x.data(), form_.dtype, offset, x);
        if (has_dy) {
            compare::store(buffers_.grad_output.data(), form_.dtype, offset, dy);
        }
        if (has_residual) {
            compare::store(buffers_.residual.data(), form_.dtype, offset,
                           normal_value(RESIDUAL, index));
        }
        if (has_mask) {
            buffers_.mask.data<uint8_t>()[offset] = random_bits(MASK, index) & 1;
        }
    });
}

void Problem::find_statistics() {
    const int64_t channels = form_.channels();
    for (int64_t c = 0; c < channels; c++) {
        const Values &x = channel(buffers_.x, c);
        of_x_.emplace_back([&](const auto &visit) { std::for_each(x.begin(), x.end(), visit); },
                           kEps);
        const ChannelOracle &s = of_x_.back();
        const double variance = double(s.m2 / s.count);
        weight_.push_back(1 + 0.5 * double(normal_value(WEIGHT, uint64_t(c))));
        bias_.push_back(normal_value(BIAS, uint64_t(c)));
        running_mean_.push_back(double(s.mean) + 0.1 * std::sqrt(variance));
        running_var_.push_back(1.25 * variance + 0.01);
        mean_.push_back(double(s.mean));
        invstd_.push_back(double(s.invstd));
    }
    given_.resize(size_t(channels));
    sums_.resize(size_t(channels));
}

void Problem::load_vectors() {
    const auto put = [&](const Buffer &vector, int64_t c, double value) {
        if (parameters_ == compare::FLOAT64) {
            vector.data<double>()[c] = value;
        } else {
            vector.data<float>()[c] = float(value);
        }
    };
    for (int64_t c = 0; c < form_.channels(); c++) {
        const size_t i = size_t(c);
        put(buffers_.weight, c, weight_[i]);
        put(buffers_.bias, c, bias_[i]);
        put(buffers_.running_mean, c, running_mean_[i]);
        put(buffers_.running_var, c, running_var_[i]);
        buffers_.mean64.data<double>()[c] = mean_[i];
        buffers_.invstd64.data<double>()[c] = invstd_[i];
        if (call_.results == Results::normalize) {
            buffers_.moments_mean.data<double>()[c] = double(of_x_[i].mean);
            buffers_.moments_m2.data<double>()[c] = double(of_x_[i].m2);
        }
        if (call_.results == Results::backward_elemt) {
            buffers_.sum_dy.data<double>()[c] = double(sums_[i].sum_dy);
            buffers_.sum_dy_xmu.data<double>()[c] = double(sums_[i].sum_dy_xhat / invstd_[i]);
        }
    }
}

// What a backward pass recomputes of a forward one must be the same, so hbn's own forward pass tells it.
void Problem::find_passed() {
    if (call_.results != Results::backward || !call_.relu || call_.add) {
        return;
    }
    const compare::Operation &forward =
        compare::operation_of(call_.training ? "forward_training_relu" : "forward_inference_relu");
    if (forward.call(library_, arguments_) != compare::kOk) {
        throw std::runtime_error(library_.last_error());
    }
    for (int64_t c = 0; c < form_.channels() && call_.training; c++) {
        mean_[size_t(c)] = buffers_.saved_mean.data<double>()[c];
        invstd_[size_t(c)] = buffers_.saved_invstd.data<double>()[c];
    }
    // A mask has its tensor's order.
    const auto loaded = [&](auto is_positive) {
        for (int64_t i = 0; i < form_.span(); i++) {
            buffers_.mask.data<uint8_t>()[i] = is_positive(i);
        }
    };
    switch (form_.dtype) {
    case compare::FLOAT32:
        loaded([&](int64_t i) { return buffers_.out.data<float>()[i] > 0; });
        break;
    case compare::FLOAT64:
        loaded([&](int64_t i) { return buffers_.out.data<double>()[i] > 0; });
        break;
    default:
        loaded([&](int64_t i) { return int16_t(buffers_.out.data<uint16_t>()[i]) > 0; });
    }
}

void Problem::find_sums() {
    const Real count = Real(form_.count());
    for (int64_t c = 0; c < form_.channels(); c++) {
        const size_t k = size_t(c);
        ChannelOracle &s = given_[k];
        if (call_.results == Results::normalize) {
            s = ChannelOracle(Real(mean_[k]),
                              1 / std::sqrt(Real(double(of_x_[k].m2)) / count + Real(kEps)), count);
        } else if (call_.results == Results::forward && call_.training) {
            s = of_x_[k];
        } else if (call_.training || call_.results == Results::backward_reduce) {
            s = ChannelOracle(Real(mean_[k]), Real(invstd_[k]), count);
        } else {
            s = ChannelOracle(parameter(buffers_.running_mean, c),
                              1 / std::sqrt(parameter(buffers_.running_var, c) + Real(kEps)),
                              count);
        }
        if (!buffers_.grad_output.data()) {
            continue;
        }
        const Values &x = channel(buffers_.x, c), &dy = channel(buffers_.grad_output, c);
        const Values *mask = mask_of(c);
        for (size_t i = 0; i < x.size(); i++) {
            sums_[k].add(passed(dy, mask, i), s.xhat(x[i]));
        }
    }
}

Real Problem::parameter(const Buffer &vector, int64_t c) const {
    return parameters_ == compare::FLOAT64 ? Real(vector.data<double>()[c])
                                           : Real(vector.data<float>()[c]);
}

const Problem::Values &Problem::channel(const Buffer &buffer, DType dtype, int64_t c) {
    auto group = std::find_if(groups_.begin(), groups_.end(),
                              [&](const Group &g) { return g.buffer == &buffer; });
    if (group == groups_.end()) {
        groups_.emplace_back();
        // References to other groups' channels stay valid.
        group = groups_.end() - 1;
        group->buffer = &buffer;
    }
    const int64_t end = group->begin + int64_t(group->channels.size());
    if (c < group->begin || c >= end) {
        group->begin = c;
        const int64_t most = form_.layout == compare::Layout::nchw
                                 ? 1
                                 : kLine / int64_t(compare::bytes_of(form_.dtype));
        group->channels.resize(size_t(std::min(most, form_.channels() - c)));
        switch (dtype) {
        case compare::FLOAT32:
            read_channels(
                form_, c, [&](int64_t i) { return double(buffer.data<float>()[i]); },
                &group->channels);
            break;
        case compare::FLOAT64:
            read_channels(
                form_, c, [&](int64_t i) { return buffer.data<double>()[i]; }, &group->channels);
            break;
        case compare::UINT8:
            read_channels(
                form_, c, [&](int64_t i) { return double(buffer.data<uint8_t>()[i]); },
                &group->channels);
            break;
        default: {
            const std::vector<double> &values = values_of_16_bits(dtype);
            read_channels(
                form_, c, [&](int64_t i) { return values[buffer.data<uint16_t>()[i]]; },
                &group->channels);
        }
        }
    }
    return group->channels[size_t(c - group->begin)];
}

void Problem::run_afresh() {
    for (const compare::Output &output : operation_.outputs) {
        (buffers_.*output.buffer).poison();
    }
    load_vectors();
    if (run() != compare::kOk) {
        throw std::runtime_error(library_.last_error());
    }
}

std::vector<uint64_t> Problem::hashes() const {
    std::vector<uint64_t> all;
    for (const compare::Output &output : operation_.outputs) {
        all.push_back((buffers_.*output.buffer).hash());
    }
    return all;
}

template<typename T>
Worst Problem::worst_of_channel(int64_t c) {
    Worst worst;
    const size_t k = size_t(c);
    const ChannelOracle &s = given_[k];
    const GradientSums &sums = sums_[k];
    const Real weight = parameter(buffers_.weight, c), bias = parameter(buffers_.bias, c);
    const auto check = [&](const char *name, Real actual, const Bounded &result) {
        const double share = double(result.share(actual));
        if (share > worst.share) {
            worst = {share, at(name, c, share)};
        }
    };
    // What must be the same bits is infinitely far off if it is not.
    const auto check_same = [&](const char *name, bool same) {
        if (!same) {
            worst = {INFINITY,
                     std::string(name) + " of channel " + std::to_string(c) + " is wrong"};
        }
    };
    const auto check_elements = [&](const char *name, const Values &actual, auto result) {
        auto share = result(0).share(actual[0]);
        for (size_t i = 1; i < actual.size(); i++) {
            share = std::max(share, result(i).share(actual[i]));
        }
        if (double(share) > worst.share) {
            worst = {double(share), at(name, c, double(share))};
        }
    };
    const auto check_parameters = [&] {
        check("grad_weight", parameter(buffers_.grad_weight, c), sums.grad_weight(dtype_, s.count));
        check("grad_bias", parameter(buffers_.grad_bias, c), sums.grad_bias(dtype_, s.count));
    };
    const auto float64 = [&](const Buffer &vector) { return Real(vector.data<double>()[c]); };
    const Values &x = channel(buffers_.x, c);
    const auto check_normalized = [&](const Values &y) {
        const test::NormalizedBounds<T> bounds(dtype_, s, weight, bias);
        check_elements("y", y, [&](size_t i) { return bounds(T(x[i])); });
    };
    switch (call_.results) {
    case Results::forward: {
        const Values &y = channel(buffers_.out, c);
        const Values *residual = call_.add ? &channel(buffers_.residual, c) : nullptr;
        if (call_.relu) {
            const test::ReluBounds<T> bounds(dtype_, s, weight, bias);
            check_elements("y", y, [&](size_t i) {
                return bounds(T(x[i]), residual ? T((*residual)[i]) : 0);
            });
        } else {
            check_normalized(y);
        }
        if (call_.mask) {
            const Values &mask = channel(buffers_.out_mask, compare::UINT8, c);
            check_same("mask", std::equal(mask.begin(), mask.end(), y.begin(),
                                          [](double m, double v) { return m == double(v > 0); }));
        }
        if (call_.training) {
            check("mean", float64(buffers_.saved_mean), test::bounded_mean(dtype_, s));
            check("invstd", float64(buffers_.saved_invstd), test::bounded_invstd(dtype_, s));
            const auto rounded = [&](double value) {
                return parameters_ == compare::FLOAT64 ? value : double(float(value));
            };
            check("running_mean", parameter(buffers_.running_mean, c),
                  test::bounded_running_mean(dtype_, s, rounded(running_mean_[k]), kMomentum));
            check("running_var", parameter(buffers_.running_var, c),
                  test::bounded_running_var(dtype_, s, rounded(running_var_[k]), kMomentum));
        }
        break;
    }
    case Results::normalize:
        check_normalized(channel(buffers_.out, c));
        break;
    case Results::stats:
        check("mean", float64(buffers_.moments_mean), test::bounded_moments_mean(dtype_, of_x_[k]));
        check("m2", float64(buffers_.moments_m2), test::bounded_moments_m2(dtype_, of_x_[k]));
        break;
    case Results::backward:
    case Results::backward_elemt: {
        const Values &dy = channel(buffers_.grad_output, c);
        const Values *mask = mask_of(c);
        const test::GradInputBounds<T> bounds(dtype_, s, sums, weight, call_.training);
        check_elements("grad_input", channel(buffers_.out, c),
                       [&](size_t i) { return bounds(T(x[i]), T(passed(dy, mask, i))); });
        if (call_.add) {
            const Values &residual = channel(buffers_.second_out, c);
            bool same = true;
            for (size_t i = 0; i < dy.size(); i++) {
                same = same && residual[i] == passed(dy, mask, i);
            }
            check_same("grad_residual", same);
        }
        if (operation_.outputs.size() > 1) {
            check_parameters();
        }
        break;
    }
    case Results::backward_reduce: {
        check("sum_dy", float64(buffers_.sum_dy), sums.float64_sum_dy(dtype_, s.count));
        const Bounded of_xhat = sums.float64_sum_dy_xhat(dtype_, s.count);
        check("sum_dy_xmu", float64(buffers_.sum_dy_xmu),
              {of_xhat.expected / s.invstd, of_xhat.bound / s.invstd});
        check_parameters();
        break;
    }
    }
    return worst;
}

Worst Problem::worst() {
    groups_.clear();
    Worst worst;
    for (int64_t c = 0; c < form_.channels(); c++) {
        // Float64 is enough to judge narrower dtypes by.
        const Worst of_channel = form_.dtype == compare::FLOAT64 ? worst_of_channel<Real>(c)
                                                                 : worst_of_channel<double>(c);
        worst.take(of_channel);
    }
    groups_.clear();
    worst.what += ", on " + inputs.description();
    return worst;
}

}  // namespace hbn::tune
