// The memory bound as a contestant: an operation's compulsory bytes and nothing else. With
// HBN_BENCH_TWO_SWEEPS everything is read once more beforehand, as statistics need where nothing
// stays in a cache.
#include "bench/contestant_limit.h"

#include <algorithm>
#include <stdexcept>

namespace {

namespace bench = hbn::bench;
using bench::detail::Move;

#if defined(HBN_BENCH_TWO_SWEEPS)
constexpr bool kTwoSweeps = true;
#else
constexpr bool kTwoSweeps = false;
#endif

#if defined(__x86_64__)
__attribute__((target("avx"))) float read_part(const float *a, size_t begin, size_t end) {
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                      _mm256_setzero_ps()};
    // Bitwise or: it has no slow operands, whatever the bytes mean.
    for (size_t i = begin; i + 32 <= end; i += 32) {
        for (int k = 0; k < 4; k++) {
            sums[k] = _mm256_or_ps(sums[k], _mm256_loadu_ps(a + i + 8 * k));
        }
    }
    const __m256 sum = _mm256_or_ps(_mm256_or_ps(sums[0], sums[1]), _mm256_or_ps(sums[2], sums[3]));
    return _mm256_cvtss_f32(sum);
}
#else
float read_part(const float *a, size_t begin, size_t end) {
    float sum = 0;
    for (size_t i = begin; i < end; i++) {
        sum += a[i];
    }
    return sum;
}
#endif

void sweep_share(void *context, int index, int size) {
    const Move &m = *static_cast<const Move *>(context);
    if (kTwoSweeps) {
        const size_t share = (m.floats / size + 15) / 16 * 16;
        const size_t begin = std::min(m.floats, share * index);
        // From the last to the first: what is moved first is then what was read last, and in cache.
        constexpr size_t kFloats = 16384;
        for (size_t end = std::min(m.floats, begin + share); end > begin;) {
            const size_t from = end - std::min(end - begin, kFloats);
            volatile float used = read_part(m.a, from, end);
            if (m.b) {
                used = read_part(m.b, from, end);
            }
            (void)used;
            end = from;
        }
    }
    bench::detail::move_share(context, index, size);
}

class Bound : public TeamLimit {
public:
    explicit Bound(const problem &p)
        : TeamLimit(p),
          move(p.x, p.operation == BACKWARD ? p.grad_output : nullptr, p.out, tensor_bytes(),
               false) {
    }

protected:
    void store_by(bool streaming) override {
        move.streaming = streaming;
    }
    void call() override {
        team->run(sweep_share, &move);
    }

private:
    Move move;
};

}  // namespace

std::unique_ptr<Contestant> make_contestant(const problem &p) {
    if (kTwoSweeps && p.operation == FORWARD_INFERENCE) {
        throw std::invalid_argument("inference needs no statistics, so no second sweep");
    }
    return std::make_unique<Bound>(p);
}

std::string contestant_version() {
    return kTwoSweeps ? "2 reads and 1 write (backward 4 and 1)"
                      : "1 read and 1 write (backward 2 and 1)";
}
