// One block of a problem's channels, which are independent of each other: the values of its arguments, and kernels run
// on them by name.
#ifndef HBN_RUNTIME_ENGINE_BLOCK_H
#define HBN_RUNTIME_ENGINE_BLOCK_H

#include "kernels.h"
#include "pieces.h"
#include "problem.h"
#include "staging.h"

#include <optional>

namespace hbn::internal {

class Block {
public:
    // What to do with calls of kernels: a rehearsal only finds out whether all of them can be made.
    enum class Mode { run, rehearse };

    Block(const Problem &problem, const Staging &staging, int64_t first_channel, int64_t channels,
          Mode mode);
    // The same block, for calls on other values.
    Block(const Block &other, const Values &values);

    const Problem &problem() const {
        return problem_;
    }
    hbn_dtype parameter_dtype() const {
        return problem_.parameter_dtype;
    }
    bool rehearses() const {
        return mode_ == Mode::rehearse;
    }

    // ---- values: what the caller gave, and what recipes and kernels add

    bool has(Arg a) const {
        return values_.has(a);
    }
    const hbn_tensor &tensor(Arg a) const {
        return values_.tensor(a);
    }
    const hbn_vector &vector(Arg a) const {
        return values_.vector(a);
    }
    double number(Arg a) const {
        return values_.number(a);
    }
    template<typename Value>
    void set(Arg a, const Value &value) {
        values_.set(a, value);
    }
    void remove(Arg a) {
        values_.remove(a);
    }
    // From the workspace, uninitialized.
    hbn_vector scratch(hbn_dtype dtype) const;
    // Gives `to` a vector of zeros.
    hbn_status set_zeros(Arg to);
    // Gives `to` a float64 copy of `from`.
    hbn_status set_float64(Arg to, Arg from);

    // ---- kernels

    bool has_kernel(Kernel kernel) const;
    // Whether kernels reach all of the block at once, and need not be called for each of its pieces.
    bool is_one_piece() const {
        return pieces_->one();
    }
    // Runs the kernel on the values of its arguments' names. A parameter that is absent, or of another dtype, is stood in
    // for; an output that is absent goes to scratch, and is a value afterwards.
    hbn_status call(Kernel kernel);
    // What call() does for an output: a vector of this dtype to write to.
    hbn_status prepare_output(Arg a, hbn_dtype dtype);
    // Calls run() for each piece, while tensors are the piece's.
    template<typename Run>
    hbn_status for_each_piece(Run run) {
        if (is_one_piece()) {
            return run();
        }
        const Values whole = values_;
        const hbn_status status = pieces_->for_each([&](auto cut) {
            whole.for_each_tensor([&](Arg a) { values_.set(a, cut(whole.tensor(a))); });
            return run();
        });
        whole.for_each_tensor([&](Arg a) { values_.set(a, whole.tensor(a)); });
        return status;
    }
    hbn_status call_for_each_piece(Kernel kernel) {
        return for_each_piece([&] { return call(kernel); });
    }
    // Values of a channel in the tensors as they are now: a piece's within for_each_piece().
    double count() const;

    // Copies what is to be staged, where the block is one piece; otherwise call() does so for each piece. Once, first.
    hbn_status stage();
    // Brings outputs from copies, and those whose dtype kernels don't write, to where the caller wants them; once, last.
    hbn_status store_outputs();

private:
    hbn_status stage_in_outputs();
    // Which of the kernel's variants serves.
    hbn_dtype dtype_for(Kernel kernel) const;
    hbn_status prepare_input(Arg a, hbn_dtype dtype);
    hbn_status rehearse(Kernel kernel, const Signature &signature) const;

    struct KernelCall;
    hbn_status run_on_copies(const KernelCall &call);
    hbn_status run(const KernelCall &call, bool on_copies);

    const Problem &problem_;
    Mode mode_;
    int64_t channels_;
    Values values_;
    std::optional<Pieces> pieces_;  // none without tensors
    const Staging *staging_;        // of each call; null for none
    std::optional<Staged> staged_;  // the whole block's
    bool is_staged_in_outputs_ = false;
    struct Conversion {
        hbn_vector from, to;
    };
    static constexpr int kMostConversions = 4;
    int num_conversions_ = 0;
    Conversion conversions_[kMostConversions];
};

// v[c], of a float32 or float64 vector, for the odd loop over channels.
double load(const hbn_vector &v, int64_t c);
void store(const hbn_vector &v, int64_t c, double value);

// How an operation comes about from kernels (recipes.cpp).
hbn_status solve(Block &block);

// Whether the problem takes sums over channels, or maps elements alone.
bool takes_sums(const Problem &problem);
// Whether any of its kernels reads x.
bool reads_x(const Problem &problem);

// Whether an activation's operation by batch statistics is one kernel's, on a block of one piece.
bool has_fused_kernel(const Problem &problem);

}  // namespace hbn::internal

#endif
