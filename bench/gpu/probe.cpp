// Runs prototypes.py's kernels on a GPU: results/h200-cuda.md has what came of it. No CUDA toolkit is needed.
//
//   python prototypes.py FOLDER
//   g++ -std=c++17 -O1 -I FOLDER -I HALIDE/include probe.cpp FOLDER/*.o -o probe -ldl -lpthread
//   ./probe check|shared|context|time [edit] [opt_in]
//
// check compares each kernel with sums in float64 on the CPU; shared does so a hundred times, for bits that differ;
// context shows calls of the driver and times of launches; time times kernels beside copies. edit adds 1,024 to the
// addresses of shared memory; opt_in asks for more than 48 KB of it where a kernel wants that.
#include <HalideRuntimeCuda.h>

#include "all.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

// ---- the driver

void *library;
bool edit_shared = false, opt_in = false;
char halide_message[256];                       // outlives what Halide's destructors call
auto &calls = *new std::map<std::string, int>;  // of the driver, by Halide
uint32_t shared_bytes;                          // of the last launch

// CUDA's function of this name, with the types of the arguments given.
template<typename... Args>
int cuda(const char *name, Args... args) {
    static std::map<std::string, void *> functions;
    void *&function = functions[name];
    if (!function) {
        function = dlsym(library, name);
    }
    return function ? reinterpret_cast<int (*)(Args...)>(function)(args...) : -1;
}

#define CHECK_CUDA(call)                                 \
    do {                                                 \
        if (const int error = (call)) {                  \
            std::printf("error %d: %s\n", error, #call); \
            std::exit(1);                                \
        }                                                \
    } while (0)

void synchronize() {
    CHECK_CUDA(cuda("cuCtxSynchronize"));
    if (halide_message[0]) {
        std::printf("  halide_error: %s\n", halide_message);
        halide_message[0] = '\0';
    }
}

// Adds 1,024 to the address of every access to shared memory: [8], [%rd1] or [%rd1+8].
std::string with_shared_moved(const std::string &ptx) {
    std::string edited;
    for (size_t start = 0; start < ptx.size();) {
        const size_t end = std::min(ptx.find('\n', start), ptx.size());
        std::string line = ptx.substr(start, end - start);
        if (line.find("ld.shared") != std::string::npos ||
            line.find("st.shared") != std::string::npos) {
            const size_t open = line.find('[') + 1, close = line.find(']');
            const std::string address = line.substr(open, close - open);
            const size_t plus = address.find('+');
            const bool has_register = address[0] == '%';
            long offset = 1024;
            if (!has_register) {
                offset += std::atol(address.c_str());
            } else if (plus != std::string::npos) {
                offset += std::atol(address.c_str() + plus + 1);
            }
            const std::string base = has_register ? address.substr(0, plus) + "+" : "";
            line.replace(open, close - open, base + std::to_string(offset));
        }
        edited += line + "\n";
        start = end + 1;
    }
    return edited;
}

int load_module(void **module, const void *image, unsigned count, int *options, void **values) {
    calls["cuModuleLoadDataEx"]++;
    std::string ptx(static_cast<const char *>(image));
    if (edit_shared) {
        ptx = with_shared_moved(ptx);
    }
    return cuda("cuModuleLoadDataEx", module, static_cast<const void *>(ptx.c_str()), count,
                options, values);
}
int launch(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty,
           unsigned tz, unsigned shared, void *stream, void **arguments, void **extra) {
    calls["cuLaunchKernel"]++;
    shared_bytes = shared;
    if (opt_in && shared > 48 * 1024) {
        cuda("cuFuncSetAttribute", function, 8, int(shared));  // MAX_DYNAMIC_SHARED_SIZE_BYTES
    }
    return cuda("cuLaunchKernel", function, x, y, z, tx, ty, tz, shared, stream, arguments, extra);
}
int get_function(void **function, void *module, const char *name) {
    calls["cuModuleGetFunction"]++;
    return cuda("cuModuleGetFunction", function, module, name);
}
int allocate(uint64_t *address, size_t bytes) {
    calls["cuMemAlloc"]++;
    return cuda("cuMemAlloc_v2", address, bytes);
}

void *stream;
int get_context(void *, void **context, bool) {
    return cuda("cuCtxGetCurrent", context);
}
int release_context(void *) {
    return 0;
}
int get_stream(void *, void *, void **s) {
    *s = stream;
    return 0;
}

}  // namespace

extern "C" {

void halide_error(void *, const char *message) {
    std::snprintf(halide_message, sizeof halide_message, "%s", message);
}

// Halide's runtime asks here for each function of the driver.
void *halide_cuda_get_symbol(void *, const char *name) {
    const std::map<std::string, void *> own = {
        {"cuModuleLoadDataEx", reinterpret_cast<void *>(load_module)},
        {"cuLaunchKernel", reinterpret_cast<void *>(launch)},
        {"cuModuleGetFunction", reinterpret_cast<void *>(get_function)},
        {"cuMemAlloc_v2", reinterpret_cast<void *>(allocate)}};
    const auto found = own.find(name);
    return found != own.end() ? found->second : dlsym(library, name);
}

}  // extern "C"

namespace {

// ---- memory

using Address = uint64_t;

Address new_memory(size_t bytes) {
    Address address = 0;
    CHECK_CUDA(cuda("cuMemAlloc_v2", &address, bytes));
    return address;
}
void fill(Address address, size_t bytes) {  // with NaN
    CHECK_CUDA(cuda("cuMemsetD32_v2", address, ~0u, bytes / 4));
}
void copy_async(Address to, Address from, size_t bytes) {
    CHECK_CUDA(cuda("cuMemcpyDtoDAsync_v2", to, from, bytes, stream));
}

struct Dimension {
    int64_t extent, stride;
};

// A view of device memory.
class Buffer {
public:
    Buffer(Address address, halide_type_t type, const std::vector<Dimension> &dimensions) {
        buffer_.type = type;
        buffer_.dimensions = int(dimensions.size());
        buffer_.dim = dimensions_;
        for (size_t d = 0; d < dimensions.size(); d++) {
            dimensions_[d] =
                halide_dimension_t(0, int(dimensions[d].extent), int(dimensions[d].stride));
        }
        halide_cuda_wrap_device_ptr(nullptr, &buffer_, address);
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() {
        halide_cuda_detach_device_ptr(nullptr, &buffer_);
    }
    operator halide_buffer_t *() {
        return &buffer_;
    }

private:
    halide_buffer_t buffer_{};
    halide_dimension_t dimensions_[4];
};

// ---- a case: tensors, and what is right by sums in float64

uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_bfloat16(uint16_t value) {
    const uint32_t bits = uint32_t(value) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

struct Case {
    int n, c, plane;
    bool bf16, nhwc;
    size_t count = size_t(n) * c * plane, bytes = count * (bf16 ? 2 : 4);
    std::vector<float> x = std::vector<float>(count), dy = x, y = x, dx = x;

    Case(int n_, int c_, int plane_, bool bf16_, bool nhwc_)
        : n(n_), c(c_), plane(plane_), bf16(bf16_), nhwc(nhwc_) {
        uint32_t state = 1;
        const auto uniform = [&] {
            state = state * 1664525u + 1013904223u;
            return float(state >> 8) * 0x1p-24f;
        };
        for (size_t i = 0; i < count; i++) {
            const float channel = float((nhwc ? i % size_t(c) : i / size_t(plane) % size_t(c)) % 7);
            x[i] = channel - 3 + (1 + channel / 8) * (uniform() + uniform() - 1);
            dy[i] = uniform() - 0.3f;
            if (bf16) {
                x[i] = from_bfloat16(to_bfloat16(x[i]));
                dy[i] = from_bfloat16(to_bfloat16(dy[i]));
            }
        }
        for (int j = 0; j < c; j++) {
            find_results(j);
        }
    }
    void for_each(int channel, const std::function<void(size_t)> &visit) const {
        for (int sample = 0; sample < n; sample++) {
            for (int pixel = 0; pixel < plane; pixel++) {
                visit(nhwc ? (size_t(sample) * plane + pixel) * c + channel
                           : (size_t(sample) * c + channel) * plane + pixel);
            }
        }
    }
    void find_results(int channel) {
        const double values = double(n) * plane;
        double sum = 0, squares = 0, sum_dy = 0, sum_dy_xmu = 0;
        for_each(channel, [&](size_t i) { sum += x[i]; });
        const double mean = sum / values;
        for_each(channel, [&](size_t i) {
            squares += (x[i] - mean) * (x[i] - mean);
            sum_dy += dy[i];
            sum_dy_xmu += dy[i] * (x[i] - mean);
        });
        const double variance = squares / values + 1e-5;
        for_each(channel, [&](size_t i) {
            y[i] = float((x[i] - mean) / std::sqrt(variance) + 0.25);
            dx[i] =
                float(dy[i] - sum_dy / values - (x[i] - mean) * (sum_dy_xmu / values / variance));
        });
    }
    Address upload(const std::vector<float> &values) const {
        std::vector<uint16_t> halves;
        for (size_t i = 0; bf16 && i < count; i++) {
            halves.push_back(to_bfloat16(values[i]));
        }
        const void *data = bf16 ? static_cast<const void *>(halves.data()) : values.data();
        const Address address = new_memory(bytes);
        CHECK_CUDA(cuda("cuMemcpyHtoD_v2", address, data, bytes));
        return address;
    }
    std::vector<char> download(Address address) const {
        std::vector<char> data(bytes);
        CHECK_CUDA(cuda("cuMemcpyDtoH_v2", static_cast<void *>(data.data()), address, bytes));
        return data;
    }
    // The largest error, in units of 2^-24 or 2^-8 of max(1, |value|).
    double error(Address address, const std::vector<float> &right) const {
        const std::vector<char> data = download(address);
        double worst = 0;
        for (size_t i = 0; i < count; i++) {
            float value;
            if (bf16) {
                value = from_bfloat16(reinterpret_cast<const uint16_t *>(data.data())[i]);
            } else {
                std::memcpy(&value, &data[i * 4], 4);
            }
            const double e =
                std::fabs(double(value) - right[i]) / std::max(1.0f, std::fabs(right[i]));
            worst = e <= worst ? worst : std::isnan(e) ? INFINITY : e;
        }
        return worst * (bf16 ? 0x1p8 : 0x1p24);
    }
};

// ---- kernels on a case

class Kernels {
public:
    Kernels(const Case &k, int sets) : k_(k) {
        for (int i = 0; i < sets; i++) {
            x.push_back(k.upload(k.x));
            dy.push_back(k.upload(k.dy));
            y.push_back(new_memory(k.bytes));
        }
    }
    Kernels(const Kernels &) = delete;
    ~Kernels() {
        for (const std::vector<Address> &all : {x, dy, y, {sums_, forward_, backward_}}) {
            for (const Address address : all) {
                cuda("cuMemFree_v2", address);
            }
        }
    }

    std::vector<Address> x, dy, y;

    // Vectors, or rows of NHWC, that a thread sums; whether that is possible.
    bool set_steps(int steps, int backward_steps) {
        steps_ = steps;
        backward_steps_ = backward_steps;
        return size_t(parts(std::min(steps, backward_steps))) * size_t(k_.c) * 16 <= kSumsBytes;
    }
    void sums(int i) {
        Buffer values = k_.nhwc ? rows(x[i]) : planes(x[i]), out = sums_of(steps_);
        (k_.nhwc   ? k_.bf16 ? p_nhwc_sums_bfloat16 : p_nhwc_sums_float32
         : k_.bf16 ? p_nchw_sums_bfloat16
                   : p_nchw_sums_float32)(values, steps_, out);
    }
    void merge(int i) {
        Buffer in = sums_of(steps_), out = table(forward_),
               first = k_.nhwc ? channels(x[i]) : planes(x[i]);
        (k_.nhwc   ? k_.bf16 ? p_merge_nhwc_bfloat16 : p_merge_nhwc_float32
         : k_.bf16 ? p_merge_nchw_bfloat16
                   : p_merge_nchw_float32)(in, first, 1e-5, count(), out);
    }
    void map(int i) {
        if (k_.nhwc) {
            Buffer values = vectors_of_rows(x[i]), coefficients = planar(forward_),
                   out = vectors_of_rows(y[i]);
            (k_.bf16 ? p_nhwc_map_bfloat16 : p_nhwc_map_float32)(values, coefficients, out);
        } else {
            Buffer values = flat(x[i]), coefficients = table(forward_), out = flat(y[i]);
            (k_.bf16 ? p_nchw_map_bfloat16 : p_nchw_map_float32)(values, coefficients,
                                                                 vectors_in_plane(), k_.c, out);
        }
    }
    void forward(int i) {
        sums(i), merge(i), map(i);
    }
    void resident(int i) {
        Buffer values = planes(x[i]), out = planes(y[i]);
        (k_.bf16 ? p_resident_bfloat16 : p_resident_float32)(values, 1e-5, out);
    }
    int64_t resident_bytes() const {
        return k_.nhwc ? INT64_MAX : int64_t(k_.n) * vectors_in_plane() * 16 + 6144;
    }
    void backward_sums(int i) {
        Buffer gradients = k_.nhwc ? rows(dy[i]) : planes(dy[i]),
               values = k_.nhwc ? rows(x[i]) : planes(x[i]);
        Buffer center = k_.nhwc ? planar(forward_) : table(forward_),
               out = sums_of(backward_steps_);
        (k_.nhwc   ? k_.bf16 ? p_nhwc_backward_sums_bfloat16 : p_nhwc_backward_sums_float32
         : k_.bf16 ? p_nchw_backward_sums_bfloat16
                   : p_nchw_backward_sums_float32)(gradients, values, center, backward_steps_, out);
    }
    void backward_merge(int) {
        Buffer in = sums_of(backward_steps_), old = table(forward_), out = table(backward_);
        p_merge_backward(in, old, count(), out);
    }
    void backward_map(int i) {
        if (k_.nhwc) {
            Buffer gradients = vectors_of_rows(dy[i]), values = vectors_of_rows(x[i]);
            Buffer coefficients = planar(backward_), out = vectors_of_rows(y[i]);
            (k_.bf16 ? p_nhwc_backward_map_bfloat16 : p_nhwc_backward_map_float32)(
                gradients, values, coefficients, out);
        } else {
            Buffer gradients = flat(dy[i]), values = flat(x[i]), coefficients = table(backward_),
                   out = flat(y[i]);
            (k_.bf16 ? p_nchw_backward_map_bfloat16 : p_nchw_backward_map_float32)(
                gradients, values, coefficients, vectors_in_plane(), k_.c, out);
        }
    }
    void backward(int i) {
        backward_sums(i), backward_merge(i), backward_map(i);
    }

private:
    static constexpr size_t kSumsBytes = 1 << 26;

    halide_type_t type() const {
        return halide_type_t(k_.bf16 ? halide_type_uint : halide_type_float, 32);
    }
    int words(int64_t values) const {
        return int(k_.bf16 ? values / 2 : values);
    }
    int vectors_in_plane() const {
        return words(k_.plane) / 4;
    }
    double count() const {
        return double(k_.n) * k_.plane;
    }
    int parts(int steps) const {
        const int64_t each = k_.nhwc ? 8 * steps : 256 * steps;
        const int64_t all = int64_t(k_.n) * (k_.nhwc ? k_.plane : vectors_in_plane());
        return int((all + each - 1) / each);
    }
    Buffer planes(Address a) const {
        const int64_t plane = words(k_.plane);
        return {a, type(), {{4, 1}, {plane / 4, 4}, {k_.c, plane}, {k_.n, k_.c * plane}}};
    }
    Buffer flat(Address a) const {
        return {a, type(), {{4, 1}, {int64_t(k_.bytes / 16), 4}}};
    }
    // In vectors of 4 channels.
    Buffer rows(Address a) const {
        const int lanes = words(4);
        return {
            a, type(), {{lanes, 1}, {k_.c / 4, lanes}, {int64_t(k_.n) * k_.plane, words(k_.c)}}};
    }
    Buffer vectors_of_rows(Address a) const {
        return {a, type(), {{4, 1}, {words(k_.c) / 4, 4}, {int64_t(k_.n) * k_.plane, words(k_.c)}}};
    }
    Buffer channels(Address a) const {
        return {a, type(), {{1, 1}, {1, 1}, {k_.c, 1}, {1, 1}}};
    }
    Buffer sums_of(int steps) const {
        const int64_t n = parts(steps);
        return {sums_, halide_type_t(halide_type_float, 64), {{2, 1}, {n, 2}, {k_.c, 2 * n}}};
    }
    // Coefficients, (k, channel); NHWC keeps those of all channels side by side.
    Buffer table(Address a) const {
        const halide_type_t f32(halide_type_float, 32);
        if (k_.nhwc) {
            return {a, f32, {{4, k_.c}, {k_.c, 1}}};
        }
        return {a, f32, {{4, 1}, {k_.c, 4}}};
    }
    Buffer planar(Address a) const {
        return {a, halide_type_t(halide_type_float, 32), {{k_.c, 1}, {4, k_.c}}};
    }

    const Case &k_;
    int steps_ = 8, backward_steps_ = 8;
    Address sums_ = new_memory(kSumsBytes), forward_ = new_memory(size_t(k_.c) * 16),
            backward_ = new_memory(size_t(k_.c) * 16);
};

// ---- what is asked

// Microseconds on the device of each of `count` calls, the median of seven times.
double device_us(const std::function<void(int)> &call, int count = 40) {
    void *events[2];
    for (void *&event : events) {
        CHECK_CUDA(cuda("cuEventCreate", &event, 0u));
    }
    for (int i = 0; i < 8; i++) {
        call(i);
    }
    synchronize();
    std::vector<double> times;
    for (int round = 0; round < 7; round++) {
        CHECK_CUDA(cuda("cuEventRecord", events[0], stream));
        for (int i = 0; i < count; i++) {
            call(i);
        }
        CHECK_CUDA(cuda("cuEventRecord", events[1], stream));
        CHECK_CUDA(cuda("cuEventSynchronize", events[1]));
        float ms;
        CHECK_CUDA(cuda("cuEventElapsedTime", &ms, events[0], events[1]));
        times.push_back(ms * 1000.0 / count);
    }
    std::sort(times.begin(), times.end());
    return times[3];
}

void print_name(const Case &k) {
    std::printf("%dx%dx%d %s %s, %.2f MB\n", k.n, k.c, k.plane, k.bf16 ? "bfloat16" : "float32",
                k.nhwc ? "NHWC" : "NCHW", double(k.bytes) / 1e6);
}

void check(const Case &k) {
    print_name(k);
    Kernels kernels(k, 1);
    const auto report = [&](const char *name, const std::vector<float> &right) {
        synchronize();
        std::printf("  %-10s error %.2f units\n", name, k.error(kernels.y[0], right));
        fill(kernels.y[0], k.bytes);
    };
    fill(kernels.y[0], k.bytes);
    kernels.forward(0);
    report("forward", k.y);
    kernels.backward(0);
    report("backward", k.dx);
    if (kernels.resident_bytes() <= 48 * 1024) {
        kernels.resident(0);
        report("resident", k.y);
    }
}

void repeat(const Case &k) {
    print_name(k);
    Kernels kernels(k, 1);
    const std::pair<const char *, std::function<void()>> forms[] = {
        {"forward", [&] { kernels.forward(0); }}, {"resident", [&] { kernels.resident(0); }}};
    for (const auto &[name, call] : forms) {
        std::vector<char> first;
        int differ = 0;
        for (int i = 0; i < 100; i++) {
            fill(kernels.y[0], k.bytes);
            call();
            synchronize();
            const std::vector<char> bits = k.download(kernels.y[0]);
            if (i == 0) {
                first = bits;
                std::printf("  %-10s error %.2f units, ", name, k.error(kernels.y[0], k.y));
            }
            differ += bits != first;
        }
        std::printf("%d of 100 runs differ from the first, %u bytes of shared memory at last\n",
                    differ, shared_bytes);
    }
}

void context() {
    const Case k(4, 64, 64, false, false);
    Kernels kernels(k, 1);
    kernels.set_steps(4, 4);
    const auto print_calls = [](const char *name) {
        std::printf("  %s:", name);
        for (const auto &[function, times] : calls) {
            std::printf(" %s %d", function.c_str(), times);
        }
        std::printf("\n");
        calls.clear();
    };
    calls.clear();
    kernels.forward(0);
    print_calls("the first call of three kernels");
    kernels.forward(0);
    print_calls("the second");
    synchronize();
    const std::pair<const char *, std::function<void(int)>> forms[] = {
        {"resident", [&](int) { kernels.resident(0); }},
        {"forward, three kernels", [&](int) { kernels.forward(0); }}};
    for (const auto &[name, call] : forms) {
        const double on_device = device_us(call, 200);
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < 100; i++) {
            call(i);
        }
        const std::chrono::duration<double, std::micro> host =
            std::chrono::steady_clock::now() - start;
        synchronize();
        std::printf("  %s of 4x64x8x8: %.2f us of the host, %.2f us on the device\n", name,
                    host.count() / 100, on_device);
    }
    void *graph, *replay;
    CHECK_CUDA(cuda("cuStreamCreate", &stream, 1u));
    CHECK_CUDA(cuda("cuStreamBeginCapture_v2", stream, 0));
    kernels.forward(0);
    CHECK_CUDA(cuda("cuStreamEndCapture", stream, &graph));
    CHECK_CUDA(cuda("cuGraphInstantiateWithFlags", &replay, graph, 0ull));
    fill(kernels.y[0], k.bytes);
    const double us = device_us([&](int) { cuda("cuGraphLaunch", replay, stream); });
    std::printf("  replayed from a graph: error %.2f units, %.2f us\n", k.error(kernels.y[0], k.y),
                us);
    stream = nullptr;
}

void time(const Case &k, double cache_bytes) {
    print_name(k);
    const int sets = std::clamp(int(std::ceil(4 * cache_bytes / double(k.bytes))), 2, 12);
    Kernels kernels(k, sets);
    const double copy =
        device_us([&](int i) { copy_async(kernels.y[i % sets], kernels.x[i % sets], k.bytes); });
    const auto report = [&](const char *name, double tensors,
                            const std::function<void(int)> &call) {
        const double us = device_us([&](int i) { call(i % sets); });
        std::printf("  %-14s %8.2f us %6.0f GB/s, %.2f of the copy's rate\n", name, us,
                    tensors * double(k.bytes) / us / 1e3, tensors / 2 * copy / us);
        return us;
    };
    report("copy", 2, [&](int i) { copy_async(kernels.y[i], kernels.x[i], k.bytes); });
    double best = INFINITY, backward_best = INFINITY;
    int steps = 8, backward_steps = 8;
    for (const int tried : {8, 16, 32, 64}) {
        if (kernels.set_steps(tried, tried)) {
            const double us = device_us([&](int i) { kernels.sums(i % sets); });
            const double backward_us = device_us([&](int i) { kernels.backward_sums(i % sets); });
            steps = us < best ? tried : steps;
            backward_steps = backward_us < backward_best ? tried : backward_steps;
            best = std::min(us, best);
            backward_best = std::min(backward_us, backward_best);
        }
    }
    kernels.set_steps(steps, backward_steps);
    std::printf("  a thread sums %d vectors, backward %d\n", steps, backward_steps);
    report("sums", 1, [&](int i) { kernels.sums(i); });
    report("merge", 0, [&](int i) { kernels.merge(i); });
    report("map", 2, [&](int i) { kernels.map(i); });
    report("forward", 3, [&](int i) { kernels.forward(i); });
    report("backward sums", 2, [&](int i) { kernels.backward_sums(i); });
    report("backward map", 3, [&](int i) { kernels.backward_map(i); });
    report("backward", 5, [&](int i) { kernels.backward(i); });
    if (kernels.resident_bytes() <= (opt_in ? 227 : 48) * 1024) {
        report("resident", 2, [&](int i) { kernels.resident(i); });
    }
}

}  // namespace

int main(int argc, char **argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::string what = argc > 1 ? argv[1] : "check";
    for (int i = 2; i < argc; i++) {
        edit_shared = edit_shared || std::string(argv[i]) == "edit";
        opt_in = opt_in || std::string(argv[i]) == "opt_in";
    }
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    int device, cache_bytes;
    char name[128] = "";
    void *primary;
    CHECK_CUDA(cuda("cuInit", 0u));
    CHECK_CUDA(cuda("cuDeviceGet", &device, 0));
    CHECK_CUDA(cuda("cuDeviceGetName", static_cast<char *>(name), int(sizeof name), device));
    CHECK_CUDA(cuda("cuDeviceGetAttribute", &cache_bytes, 38, device));  // L2_CACHE_SIZE
    CHECK_CUDA(cuda("cuDevicePrimaryCtxRetain", &primary, device));
    CHECK_CUDA(cuda("cuCtxSetCurrent", primary));
    halide_set_cuda_acquire_context(get_context);
    halide_set_cuda_release_context(release_context);
    halide_set_cuda_get_stream(get_stream);
    std::printf("%s, %d MB of L2\n", name, cache_bytes >> 20);

    if (what == "check") {
        check(Case(5, 64, 196, false, false));
        check(Case(6, 64, 200, true, false));
        for (const bool bf16 : {false, true}) {
            check(Case(5, 256, 49, bf16, true));
            check(Case(3, 40, 49, bf16, true));
        }
    } else if (what == "shared") {
        repeat(Case(4, 600, 196, false, false));
        repeat(Case(8, 1056, 64, true, false));
        repeat(Case(12, 528, 196, false, false));
    } else if (what == "context") {
        context();
    } else if (what == "time") {
        for (const bool nhwc : {false, true}) {
            for (const bool bf16 : {false, true}) {
                time(Case(32, 64, 3136, bf16, nhwc), cache_bytes);
                time(Case(32, 256, 3136, bf16, nhwc), cache_bytes);
                time(Case(128, 512, bf16 && !nhwc ? 256 : 196, bf16, nhwc), cache_bytes);
            }
        }
    } else {
        std::printf("unknown: %s\n", what.c_str());
        return 1;
    }
}
