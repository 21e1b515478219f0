// One call of hbn with its memory, and what must come of it.
#ifndef HBN_BENCH_TUNE_PROBLEM_H
#define HBN_BENCH_TUNE_PROBLEM_H

#include "bench/compare/buffers.h"
#include "bench/compare/library.h"
#include "bench/compare/operations.h"
#include "bench/tune/kernels.h"
#include "tests/bounds.h"

#include <cstdint>
#include <string>
#include <vector>

namespace hbn::tune {

// The numbers in a problem's tensors: ordinary ones, or those that are hard to sum and to normalize, which every channel has
// of another kind. Where there are fewer channels than kinds, it takes several problems to have them all.
struct Inputs {
    int first_kind = -1;  // of the first channel; -1: ordinary

    bool are_hard() const {
        return first_kind >= 0;
    }
    std::string description() const;
};

// Ordinary ones first, then as many as it takes.
std::vector<Inputs> all_inputs(compare::DType dtype, int64_t channels);

// What was furthest off.
struct Worst {
    double share = 0;  // of its bound
    std::string what;

    void take(const Worst &other);
};

class Problem {
public:
    // Fills memory, touched, with `inputs`. What a backward pass needs of a forward one, hbn's own kernels make.
    // @throws std::runtime_error with hbn's text where hbn can't do it
    Problem(const compare::Library &library, const KernelCall &call,
            const compare::TensorForm &form, Inputs inputs);
    // Another one like it, with memory of its own.
    Problem(const Problem &other);
    // The same, but what it reads first, input(), is `read`, and `written` what it writes. Its statistics and parameters are
    // such that numbers stay about what they are, however often they come by.
    Problem(const Problem &other, const compare::Buffer &read, const compare::Buffer &written);
    Problem &operator=(const Problem &) = delete;

    // The operation, once. Returns hbn's status.
    int run() {
        return operation_.call(library_, arguments_);
    }

    // Spoils what the operation writes and brings back what it changes, then runs it.
    // @throws std::runtime_error with hbn's text where that fails
    void run_afresh();
    // Of everything that run_afresh() wrote.
    std::vector<uint64_t> hashes() const;
    // How far from right what run_afresh() wrote is.
    Worst worst();

    // Of the tensors that the kernel reads and writes.
    int64_t bytes() const {
        return bytes_;
    }
    // Whether it writes a tensor that another layer reads as input().
    bool passes_on() const;
    // Whether that tensor is needed once more, by a backward pass.
    bool keeps_what_it_reads() const;
    const compare::Buffer &input() const {
        return buffers_.*input_member();
    }
    // Of input().
    int64_t tensor_bytes() const;
    const compare::Buffers &buffers() const {
        return buffers_;
    }
    const Inputs inputs;

private:
    using Values = std::vector<double>;

    Problem(const Problem &other, const compare::Buffer *read, const compare::Buffer *written);
    compare::BufferMember input_member() const;
    void pass_numbers_through();
    void fill();
    void find_statistics();
    void find_passed();
    void find_sums();
    void load_vectors();
    // Elements are compared in T.
    template<typename T>
    Worst worst_of_channel(int64_t c);
    // A channel of a tensor, read with its neighbours in memory.
    const Values &channel(const compare::Buffer &buffer, compare::DType dtype, int64_t c);
    const Values &channel(const compare::Buffer &buffer, int64_t c) {
        return channel(buffer, form_.dtype, c);
    }
    // grad_output, or what an activation lets pass of it.
    double passed(const Values &dy, const Values *mask, size_t i) const {
        return mask && (*mask)[i] == 0 ? 0 : dy[i];
    }
    const Values *mask_of(int64_t c) {
        return call_.results == Results::backward && call_.relu
                   ? &channel(buffers_.mask, compare::UINT8, c)
                   : nullptr;
    }
    test::Real parameter(const compare::Buffer &vector, int64_t c) const;

    const compare::Library &library_;
    const KernelCall &call_;
    const compare::Operation &operation_;
    const compare::TensorForm form_;
    const hbn::DType dtype_;
    const compare::DType parameters_;
    compare::Buffers buffers_;
    int64_t bytes_ = 0;
    compare::Arguments arguments_;

    // Of each channel.
    std::vector<test::ChannelOracle> of_x_;   // the batch's own statistics
    std::vector<test::ChannelOracle> given_;  // those that the operation is given, or takes
    std::vector<test::GradientSums> sums_;
    Values weight_, bias_, running_mean_, running_var_, mean_, invstd_;

    // What channel() read last of each tensor.
    struct Group {
        const compare::Buffer *buffer = nullptr;
        int64_t begin = 0;
        std::vector<Values> channels;
    };
    std::vector<Group> groups_;
};

}  // namespace hbn::tune

#endif
