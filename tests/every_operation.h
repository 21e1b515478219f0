// Every operation of the C interface on one set of operands, for properties that all must have.
#ifndef HBN_TESTS_EVERY_OPERATION_H
#define HBN_TESTS_EVERY_OPERATION_H

#include "runtime/engine/table.h"

#include <hbn/hbn.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

namespace hbn::test {

// Memory for a tensor of any strides, filled with a few different finite values.
class Memory {
public:
    Memory(hbn_dtype dtype, const int64_t (&sizes)[4], const int64_t (&strides)[4]) {
        tensor_ = {nullptr, dtype, HBN_CPU, 4, {}, {}};
        int64_t last = 0;
        bool empty = false;
        for (int d = 0; d < 4; d++) {
            tensor_.sizes[d] = sizes[d];
            tensor_.strides[d] = strides[d];
            last += (sizes[d] - 1) * strides[d];
            empty = empty || sizes[d] == 0;
        }
        allocate(empty ? 1 : last + 1, dtype);
        tensor_.data = words_.data();
    }
    Memory(hbn_dtype dtype, int64_t channels) {
        vector_ = {nullptr, dtype, channels, 1, HBN_CPU};
        allocate(channels, dtype);
        vector_.data = words_.data();
    }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    const hbn_tensor *tensor() const {
        return &tensor_;
    }
    const hbn_vector *vector() const {
        return &vector_;
    }
    double *doubles() {
        return reinterpret_cast<double *>(words_.data());
    }
    const std::vector<uint64_t> &words() const {
        return words_;
    }

private:
    void allocate(int64_t elements, hbn_dtype dtype) {
        const int64_t bytes = dtype == HBN_UINT8                              ? 1
                              : dtype == HBN_BFLOAT16 || dtype == HBN_FLOAT16 ? 2
                              : dtype == HBN_FLOAT32                          ? 4
                                                                              : 8;
        words_.resize(size_t((elements * bytes + 7) / 8 + 1));
        uint8_t *data = reinterpret_cast<uint8_t *>(words_.data());
        // 1 and 1.5, in every float dtype.
        const double wide[2] = {1, 1.5};
        const float single[2] = {1, 1.5f};
        const uint16_t brain[2] = {0x3f80, 0x3fc0}, half[2] = {0x3c00, 0x3e00};
        for (int64_t i = 0; i < elements; i++) {
            const int which = i % 3 == 0;
            const void *value = &half[which];
            if (dtype == HBN_FLOAT64) {
                value = &wide[which];
            } else if (dtype == HBN_FLOAT32) {
                value = &single[which];
            } else if (dtype == HBN_BFLOAT16) {
                value = &brain[which];
            }
            std::memcpy(data + i * bytes, value, size_t(bytes));
        }
    }

    hbn_tensor tensor_{};
    hbn_vector vector_{};
    std::vector<uint64_t> words_;
};

struct Operation {
    std::string name;
    std::function<hbn_status()> call;
};

inline std::vector<int> all_activations() {
    std::vector<int> kinds(internal::kActivations);
    std::iota(kinds.begin(), kinds.end(), 0);
    return kinds;
}

class EveryOperation {
public:
    // Parameters and statistics are of `vectors`, which the tensors' dtype must allow beside it.
    // Of the activations, each by itself and after an addition, those of `kinds`.
    EveryOperation(hbn_dtype dtype, const int64_t (&sizes)[4], const int64_t (&strides)[4],
                   hbn_dtype vectors, const std::vector<int> &kinds = all_activations())
        : x(dtype, sizes, strides),
          dy(dtype, sizes, strides),
          ddx(dtype, sizes, strides),
          y(dtype, sizes, strides),
          dx(dtype, sizes, strides),
          mask(HBN_UINT8, sizes, strides),
          weight(vectors, sizes[1]),
          bias(vectors, sizes[1]),
          running_mean(vectors, sizes[1]),
          running_var(vectors, sizes[1]),
          mean(HBN_FLOAT64, sizes[1]),
          invstd(HBN_FLOAT64, sizes[1]),
          grad_weight(vectors, sizes[1]),
          grad_bias(vectors, sizes[1]),
          moments_mean(HBN_FLOAT64, sizes[1]),
          moments_m2(HBN_FLOAT64, sizes[1]),
          sums{{HBN_FLOAT64, sizes[1]}, {HBN_FLOAT64, sizes[1]}},
          moments{3, moments_mean.doubles(), moments_m2.doubles(), sizes[1]},
          others{3, sums[0].doubles(), sums[1].doubles(), sizes[1]} {
        const hbn_tensor *X = x.tensor(), *DY = dy.tensor(), *DDX = ddx.tensor(), *Y = y.tensor(),
                         *DX = dx.tensor(), *K = mask.tensor();
        const hbn_vector *W = weight.vector(), *B = bias.vector(), *RM = running_mean.vector(),
                         *RV = running_var.vector(), *M = mean.vector(), *S = invstd.vector(),
                         *GW = grad_weight.vector(), *GB = grad_bias.vector();
        for (const int training : {1, 0}) {
            const std::string mode = training ? ", training" : ", inference";
            const auto add = [&](const std::string &name, std::function<hbn_status()> call) {
                operations.push_back({name + mode, std::move(call)});
            };
            add("forward", [=] {
                return hbn_batch_norm_forward(X, W, B, RM, RV, training, 0.1, 1e-5, Y, M, S);
            });
            add("backward", [=] {
                return hbn_batch_norm_backward(DY, X, W, M, S, RM, RV, training, 1e-5, DX, GW, GB);
            });
            add("backward of the input", [=] {
                return hbn_batch_norm_backward(DY, X, W, M, S, RM, RV, training, 1e-5, DX, nullptr,
                                               nullptr);
            });
            add("backward of the parameters", [=] {
                return hbn_batch_norm_backward(DY, X, W, M, S, RM, RV, training, 1e-5, nullptr, GW,
                                               GB);
            });
            for (const int kind : kinds) {
                const hbn_activation activation{hbn_activation_kind(kind), 0.25, 0.75};
                const std::string which = std::to_string(kind);
                const bool masks = kind == HBN_RELU;
                add("activation_forward " + which, [=] {
                    return hbn_batch_norm_activation_forward(X, nullptr, W, B, RM, RV, training,
                                                             0.1, 1e-5, &activation, Y, nullptr, M,
                                                             S);
                });
                add("activation_backward " + which, [=] {
                    return hbn_batch_norm_activation_backward(DY, X, nullptr, nullptr, W, B, M, S,
                                                              RM, RV, training, 1e-5, &activation,
                                                              DX, nullptr, GW, GB);
                });
                add("activation_forward after an addition " + which, [=] {
                    return hbn_batch_norm_activation_forward(X, DY, W, B, RM, RV, training, 0.1,
                                                             1e-5, &activation, Y,
                                                             masks ? K : nullptr, M, S);
                });
                add("activation_backward after an addition " + which, [=] {
                    return hbn_batch_norm_activation_backward(
                        DY, X, masks ? nullptr : DDX, masks ? K : nullptr, W, B, M, S, RM, RV,
                        training, 1e-5, &activation, DX, Y, GW, GB);
                });
            }
            add("jvp", [=] {
                return hbn_batch_norm_jvp(DY, X, W, B, GB, M, S, RM, RV, training, 1e-5, Y);
            });
            add("double_backward", [=] {
                return hbn_batch_norm_double_backward(DDX, W, B, DY, X, W, M, S, RM, RV, training,
                                                      1e-5, Y, DX, GW);
            });
        }
        const auto add = [&](const char *name, std::function<hbn_status()> call) {
            operations.push_back({name, std::move(call)});
        };
        add("stats", [=] { return hbn_batch_norm_stats(X, &moments); });
        add("merge_moments", [=] { return hbn_merge_moments(&moments, &others); });
        add("finalize_moments",
            [=] { return hbn_finalize_moments(&moments, 0.1, 1e-5, RM, RV, M, S); });
        add("normalize", [=] { return hbn_batch_norm_normalize(X, &moments, W, B, 1e-5, Y); });
        add("backward_reduce", [=] {
            return hbn_batch_norm_backward_reduce(DY, X, M, S, sums[0].doubles(), sums[1].doubles(),
                                                  GW, GB);
        });
        add("backward_elemt", [=] {
            return hbn_batch_norm_backward_elemt(DY, X, M, S, W, sums[0].doubles(),
                                                 sums[1].doubles(), 3, DX);
        });
    }
    EveryOperation(const EveryOperation &) = delete;
    EveryOperation &operator=(const EveryOperation &) = delete;

    // Every bit that an operation may read or write.
    std::vector<uint64_t> bits() const {
        std::vector<uint64_t> all;
        for (const Memory *m :
             {&x, &dy, &ddx, &y, &dx, &mask, &weight, &bias, &running_mean, &running_var, &mean,
              &invstd, &grad_weight, &grad_bias, &moments_mean, &moments_m2, &sums[0], &sums[1]}) {
            all.insert(all.end(), m->words().begin(), m->words().end());
        }
        for (const double count : {moments.count, others.count}) {
            uint64_t word;
            std::memcpy(&word, &count, sizeof(word));
            all.push_back(word);
        }
        return all;
    }

    std::vector<Operation> operations;

private:
    Memory x, dy, ddx, y, dx, mask;
    Memory weight, bias, running_mean, running_var, mean, invstd, grad_weight, grad_bias;
    Memory moments_mean, moments_m2, sums[2];
    hbn_moments moments, others;
};

}  // namespace hbn::test

#endif
