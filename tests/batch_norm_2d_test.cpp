// The module: every argument and state of torch.nn.BatchNorm2d.
#include "oracle.h"

#include <hbn/batch_norm_2d.h>

namespace hbn::test {
namespace {

class Module : public ::testing::Test {
protected:
    Normal normal{17};
    TestTensor x{DType::float32, {4, 3, 5, 6}}, y{DType::float32, {4, 3, 5, 6}};

    void new_batch() {
        x.fill([&](int64_t c) { return normal(double(c) + 1, 2); });
    }
    void SetUp() override {
        new_batch();
    }
    static BatchNorm2dOptions with_momentum(std::optional<double> momentum) {
        BatchNorm2dOptions options;
        options.momentum = momentum;
        return options;
    }
};

TEST_F(Module, starts_as_the_page_says) {
    BatchNorm2d bn(3);
    EXPECT_TRUE(bn.is_training());
    EXPECT_EQ(bn.num_batches_tracked(), 0);
    for (int64_t c = 0; c < 3; c++) {
        EXPECT_EQ(get(bn.weight(), c), 1);
        EXPECT_EQ(get(bn.bias(), c), 0);
        EXPECT_EQ(get(bn.running_mean(), c), 0);
        EXPECT_EQ(get(bn.running_var(), c), 1);
    }
    EXPECT_EQ(bn.repr(),
              "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)");
}

TEST_F(Module, running_statistics_follow_momentum) {
    BatchNorm2d bn(3, with_momentum(0.3));
    Real mean[3] = {0, 0, 0}, var[3] = {1, 1, 1};
    for (int step = 1; step <= 3; step++) {
        new_batch();
        bn.forward(x);
        EXPECT_EQ(bn.num_batches_tracked(), step);
        for (int64_t c = 0; c < 3; c++) {
            const ChannelOracle s(x, c, 1e-5);
            mean[c] = 0.7L * mean[c] + 0.3L * s.mean;
            var[c] = 0.7L * var[c] + 0.3L * s.m2 / (s.count - 1);
            EXPECT_NEAR(get(bn.running_mean(), c), mean[c], 1e-6 * std::fabs(mean[c]));
            EXPECT_NEAR(get(bn.running_var(), c), var[c], 1e-6 * var[c]);
        }
    }
}

TEST_F(Module, momentum_none_is_the_average) {
    BatchNorm2d bn(3, with_momentum(std::nullopt));
    Real mean[3] = {}, var[3] = {};
    for (int step = 1; step <= 4; step++) {
        new_batch();
        bn.forward(x);
        for (int64_t c = 0; c < 3; c++) {
            const ChannelOracle s(x, c, 1e-5);
            mean[c] += s.mean;
            var[c] += s.m2 / (s.count - 1);
            EXPECT_NEAR(get(bn.running_mean(), c), mean[c] / step, 2e-6);
            EXPECT_NEAR(get(bn.running_var(), c), var[c] / step, 1e-5);
        }
    }
    EXPECT_EQ(bn.num_batches_tracked(), 4);
}

TEST_F(Module, evaluation_uses_running_statistics_and_updates_nothing) {
    BatchNorm2d bn(3);
    bn.forward(x);
    bn.eval();
    EXPECT_FALSE(bn.is_training());
    new_batch();
    bn.forward(x, y);
    EXPECT_EQ(bn.num_batches_tracked(), 1);
    for (int64_t c = 0; c < 3; c++) {
        const ChannelOracle s(get(bn.running_mean(), c),
                              1 / std::sqrt(Real(get(bn.running_var(), c)) + 1e-5L), 120);
        expect_normalized(x, y, c, s, 1, 0);
    }
}

TEST_F(Module, not_tracking_uses_batch_statistics_in_both_modes) {
    BatchNorm2dOptions options;
    options.track_running_stats = false;
    BatchNorm2d bn(3, options);
    EXPECT_FALSE(bn.running_mean());
    for (bool training : {true, false}) {
        bn.train(training);
        bn.forward(x, y);
        for (int64_t c = 0; c < 3; c++) {
            expect_normalized(x, y, c, ChannelOracle(x, c, 1e-5), 1, 0);
        }
    }
    EXPECT_EQ(bn.state_dict().size(), 2u);
}

TEST_F(Module, without_affine_has_no_parameters) {
    BatchNorm2dOptions options;
    options.affine = false;
    BatchNorm2d bn(3, options);
    EXPECT_FALSE(bn.weight());
    EXPECT_FALSE(bn.bias());
    bn.forward(x, y);
    EXPECT_EQ(bn.state_dict().size(), 3u);
    EXPECT_EQ(bn.state_dict().count("weight"), 0u);
    const auto gradients = bn.backward(y, x);
    EXPECT_FALSE(gradients.grad_input.empty());
}

TEST_F(Module, examples_of_the_page) {
    for (bool affine : {true, false}) {
        BatchNorm2dOptions options;
        options.affine = affine;
        BatchNorm2d bn(100, options);
        TestTensor input(DType::float32, {20, 100, 35, 45}),
            output(DType::float32, {20, 100, 35, 45});
        input.fill([&](int64_t) { return normal(); });
        bn.forward(input, output);
        for (int64_t c = 0; c < 100; c += 33) {
            const ChannelOracle after(output, c, 0);
            EXPECT_NEAR(after.mean, 0, 1e-6);
            EXPECT_NEAR(after.m2 / after.count, 1, 1e-4);
        }
    }
}

TEST_F(Module, resets) {
    BatchNorm2d bn(3);
    bn.forward(x);
    static_cast<float *>(bn.weight().data)[1] = 5;
    bn.reset_running_stats();
    EXPECT_EQ(bn.num_batches_tracked(), 0);
    EXPECT_EQ(get(bn.running_mean(), 1), 0);
    EXPECT_EQ(get(bn.running_var(), 1), 1);
    EXPECT_EQ(get(bn.weight(), 1), 5);
    bn.reset_parameters();
    EXPECT_EQ(get(bn.weight(), 1), 1);
}

TEST_F(Module, in_place_equals_out_of_place) {
    BatchNorm2d a(3), b(3);
    a.forward(x, y);
    b.forward(x, x);
    EXPECT_EQ(x.bytes(), y.bytes());
    EXPECT_EQ(get(a.running_var(), 2), get(b.running_var(), 2));
}

TEST_F(Module, backward_follows_the_mode_of_the_forward) {
    BatchNorm2d bn(3);
    bn.forward(x, y);
    TestTensor dy(DType::float32, x.sizes()), dx(DType::float32, x.sizes());
    dy.fill([&](int64_t) { return normal(); });
    for (bool training : {true, false}) {
        bn.train(training);
        bn.forward(x, y);
        bn.backward(dy, x, {}, dx);
        for (int64_t c = 0; c < 3; c++) {
            const ChannelOracle s =
                training
                    ? ChannelOracle(get(bn.saved_mean(), c), get(bn.saved_invstd(), c), 120)
                    : ChannelOracle(get(bn.running_mean(), c),
                                    1 / std::sqrt(Real(get(bn.running_var(), c)) + 1e-5L), 120);
            expect_grad_input(dy, x, dx, c, s, 1, GradientOracle(dy, x, c, s), training);
        }
    }
}

TEST_F(Module, state_dict_lends_the_state_under_pytorchs_names) {
    BatchNorm2d bn(3);
    const StateDict state = bn.state_dict("bn1.");
    ASSERT_EQ(state.size(), 5u);
    for (const char *name : {"weight", "bias", "running_mean", "running_var"}) {
        EXPECT_EQ(state.at(std::string("bn1.") + name).shape, std::vector<int64_t>{3});
    }
    EXPECT_TRUE(state.at("bn1.num_batches_tracked").shape.empty());
    static_cast<float *>(state.at("bn1.bias").data)[2] = 7;
    EXPECT_EQ(get(bn.bias(), 2), 7);
}

TEST_F(Module, state_round_trip) {
    BatchNorm2d trained(3), loaded(3);
    trained.forward(x);
    loaded.load_state_dict(trained.state_dict("a."), true, "a.");
    EXPECT_EQ(loaded.num_batches_tracked(), 1);
    for (int64_t c = 0; c < 3; c++) {
        EXPECT_EQ(get(loaded.running_mean(), c), get(trained.running_mean(), c));
        EXPECT_EQ(get(loaded.running_var(), c), get(trained.running_var(), c));
    }
    const BatchNorm2d copy = trained.clone();
    EXPECT_EQ(get(copy.running_var(), 1), get(trained.running_var(), 1));
    EXPECT_NE(copy.running_var().data, trained.running_var().data);
}

TEST_F(Module, state_of_old_versions_counts_from_zero) {
    BatchNorm2d bn(3);
    bn.forward(x);
    StateDict state = BatchNorm2d(3).state_dict();
    BatchNorm2d source(3);
    state = source.state_dict();
    state.erase("num_batches_tracked");
    bn.load_state_dict(state);
    EXPECT_EQ(bn.num_batches_tracked(), 0);
}

TEST_F(Module, wrong_states_are_named_and_load_nothing) {
    BatchNorm2d bn(3), source(3), other(4);
    static_cast<float *>(source.weight().data)[0] = 9;
    const auto refused = [&](const StateDict &state, bool strict,
                             std::initializer_list<const char *> words) {
        try {
            bn.load_state_dict(state, strict);
            ADD_FAILURE() << "was not refused";
        } catch (const std::invalid_argument &e) {
            for (const char *word : words) {
                EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
            }
        }
        EXPECT_EQ(get(bn.weight(), 0), 1);
    };
    StateDict state = source.state_dict();
    state.erase("bias");
    state.erase("running_var");
    refused(state, true, {"Missing key(s)", "\"bias\"", "\"running_var\""});
    state = source.state_dict();
    state["gamma"] = state.at("weight");
    refused(state, true, {"Unexpected key(s)", "\"gamma\""});
    state = source.state_dict();
    state["running_mean"] = other.state_dict().at("running_mean");
    refused(state, true, {"size mismatch for running_mean", "[4]", "[3]"});
    refused(state, false, {"size mismatch for running_mean"});
    state.erase("running_mean");
    state["gamma"] = state.at("weight");
    bn.load_state_dict(state, false);
    EXPECT_EQ(get(bn.weight(), 0), 9);
}

class ModuleDType : public ::testing::TestWithParam<DType> {};

TEST_P(ModuleDType, keeps_its_state_in_its_dtype) {
    BatchNorm2dOptions options;
    options.dtype = GetParam();
    BatchNorm2d bn(3, options);
    TestTensor x(GetParam(), {4, 3, 5, 6}), y(GetParam(), {4, 3, 5, 6});
    Normal normal{3};
    x.fill([&](int64_t c) { return normal(double(c)); });
    bn.forward(x, y);
    EXPECT_EQ(bn.running_mean().dtype, GetParam());
    for (int64_t c = 0; c < 3; c++) {
        const ChannelOracle s(x, c, 1e-5);
        expect_normalized(x, y, c, s, 1, 0);
        const Real var = 0.9L + 0.1L * s.m2 / (s.count - 1);
        EXPECT_NEAR(get(bn.running_var(), c), var, 2 * unit_roundoff(GetParam()) * var);
    }
    EXPECT_EQ(bn.saved_mean().dtype, statistic_dtype(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(, ModuleDType,
                         ::testing::Values(DType::float32, DType::float64, DType::bfloat16,
                                           DType::float16),
                         [](const auto &info) { return name_of(info.param); });

TEST_F(Module, empty_batch) {
    BatchNorm2d bn(3);
    TestTensor none(DType::float32, {0, 3, 5, 6});
    const Tensor out = bn.forward(none);
    EXPECT_EQ(out.view().sizes, none.sizes());
    EXPECT_EQ(get(bn.running_mean(), 0), 0);
    EXPECT_EQ(get(bn.running_var(), 0), 1);
}

}  // namespace
}  // namespace hbn::test
