// Near-dense tensors: crops, transposes, every other column. Where kernels would be slow on them, they are copied to dense
// scratch memory, a piece that stays in cache at a time, and kernels run on that. Scratch memory is of a fixed size; where
// pieces would have to be copied twice, for sums and for what is made of them, the output's memory takes a whole copy.
#ifndef HBN_RUNTIME_ENGINE_STAGING_H
#define HBN_RUNTIME_ENGINE_STAGING_H

#include "problem.h"

#include <array>
#include <limits>

namespace hbn::internal {

// Dimensions (0 to 3 for N, C, H, W) from innermost to outermost.
using Order = std::array<int, 4>;

// Whether the tensor is dense in this order. Dimensions of one element have no steps, whatever their strides.
bool is_dense(const Order &order, const hbn_tensor &t);
// Makes it so, by its strides.
void set_dense_strides(const Order &order, hbn_tensor *t);

// As torch.empty_like orders them: by stride, where the strides of two dimensions say nothing (an expanded one) as in
// NCHW.
Order dimension_order(const int64_t *sizes, const int64_t *strides);

// Which tensors of a problem are staged, and how it is cut for that. Depends on shape, strides and dtype alone.
class Staging {
public:
    // Of nothing.
    Staging() = default;
    explicit Staging(const Problem &problem);

    // Whether there is anything to stage.
    bool used() const {
        return used_;
    }
    // Of a block, at most.
    int64_t channels() const {
        return channels_;
    }
    int64_t scratch_bytes() const {
        return slots_ * slot_bytes_;
    }

    // Sizes of a piece along N, H and W.
    const std::array<int64_t, 3> &piece() const {
        return piece_;
    }

    // Which input an output's memory is to hold a copy of, whole; Arg::none for none. Kernels then run in place.
    Arg held_by(const Use &output, const Problem &problem) const;

    // Whether kernels take `t` as it is beside others of the order.
    bool conforms(const hbn_tensor &t) const;
    // A dense tensor like `t`, of the order, in this part of `scratch`.
    hbn_tensor dense_like(const hbn_tensor &t, char *scratch, int slot) const;

private:
    void choose_order(Operation operation, const Values &values);
    // Whether blocks of channels will do.
    bool choose_blocks(const Values &values, const int64_t *sizes, int64_t element_bytes);
    void choose_pieces(const int64_t *sizes, int64_t most);
    bool single_steps_suit(const Values &values, const Problem &problem);

    bool used_ = false;
    bool outputs_hold_inputs_ = false;
    Order order_{};
    int64_t channels_ = std::numeric_limits<int64_t>::max();
    std::array<int64_t, 3> piece_{};
    int slots_ = 0, copies_ = 0;
    int64_t slot_bytes_ = 0;
};

// The tensors of one kernel's call, or of a block that is one piece, that are staged.
class Staged {
public:
    Staged(const Staging &staging, char *scratch) : staging_(staging), scratch_(scratch) {
    }

    // What to use in place of `t`: itself where it conforms. Copies inputs; give them first. An output that is the
    // same view as an input is written in place, as it would be without copies.
    hbn_status add(const hbn_tensor &t, bool is_output, hbn_tensor *result);
    // Brings outputs to where they belong.
    hbn_status store_outputs() const;

    bool any() const {
        return count_ > 0;
    }

private:
    struct Copied {
        hbn_tensor original, copy;
        bool is_output;
    };

    const Staging &staging_;
    char *scratch_;
    int count_ = 0;
    Copied all_[kTensors];
};

}  // namespace hbn::internal

#endif
