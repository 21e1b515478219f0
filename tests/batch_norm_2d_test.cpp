// The module: every argument and state of torch.nn.BatchNorm2d.
#include "oracle.h"

#include <hbn/batch_norm_2d.h>

#include <fstream>
#include <sstream>

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
              "BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, "
              "track_running_stats=True)");
}

static_assert(std::is_nothrow_move_constructible_v<BatchNorm2d> &&
              std::is_nothrow_move_assignable_v<BatchNorm2d>);
static_assert(std::is_convertible_v<StateEntry, ConstStateEntry> &&
              !std::is_convertible_v<ConstStateEntry, StateEntry>);

// golden/options.csv, which golden/make_options.py describes: what PyTorch takes, and what it makes of it.
std::vector<std::vector<std::string>> rows_of_options(const std::string &kind) {
    std::ifstream file(HBN_GOLDEN_DIR "/options.csv");
    std::vector<std::vector<std::string>> rows;
    for (std::string line; std::getline(file, line);) {
        std::istringstream fields(line);
        std::vector<std::string> row;
        for (std::string field; std::getline(fields, field, row.size() == 8 ? '\n' : ',');) {
            row.push_back(field);
        }
        if (row.at(0) == kind) {
            rows.push_back(row);
        }
    }
    return rows;
}

std::string keys_of(const ConstStateDict &state) {
    std::string keys;
    for (const char *name :
         {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}) {
        if (state.count(name)) {
            keys += (keys.empty() ? "" : " ") + std::string(name);
        }
    }
    return keys;
}

TEST(Options, are_pytorchs_with_its_defaults) {
    const BatchNorm2dOptions defaults;
    const auto python = [](bool value) { return std::string(value ? "True" : "False"); };
    ASSERT_EQ(defaults.eps, 1e-5);
    ASSERT_EQ(defaults.momentum, 0.1);
    // None: the CPU and float32.
    const std::map<std::string, std::string> ours = {
        {"eps", "1e-05"},
        {"momentum", "0.1"},
        {"affine", python(defaults.affine)},
        {"track_running_stats", python(defaults.track_running_stats)},
        {"device", defaults.device == Device::cpu ? "" : "another"},
        {"dtype", defaults.dtype == DType::float32 ? "" : "another"},
        {"bias", python(defaults.bias)},
    };
    std::map<std::string, std::string> theirs;
    for (const std::vector<std::string> &row : rows_of_options("argument")) {
        theirs[row.at(1)] = row.size() > 2 ? row[2] : "";
    }
    EXPECT_EQ(ours, theirs);
    EXPECT_EQ(defaults.activation.kind, HBN_IDENTITY);
}

TEST(Options, make_what_pytorch_makes) {
    const auto rows = rows_of_options("module");
    ASSERT_GT(rows.size(), 40u);
    for (const std::vector<std::string> &row : rows) {
        BatchNorm2dOptions options;
        options.eps = std::stod(row.at(2));
        options.momentum = std::nullopt;
        if (row[3] != "None") {
            options.momentum = std::stod(row[3]);
        }
        options.affine = row[4] == "True";
        options.bias = row[5] == "True";
        options.track_running_stats = row[6] == "True";
        const int64_t num_features = std::stoll(row[1]);
        if (row.size() < 9) {
            EXPECT_THROW(BatchNorm2d(num_features, options), InvalidArgument) << num_features;
            continue;
        }
        const BatchNorm2d bn(num_features, options);
        EXPECT_EQ("\"" + bn.repr() + "\"", row[8]);
        EXPECT_EQ(keys_of(bn.state_dict()), row[7]) << bn.repr();
    }
}

TEST(Options, name_the_activation_after_pytorchs_text) {
    const auto repr = [](const Activation &activation) {
        BatchNorm2dOptions options;
        options.activation = activation;
        const std::string text = BatchNorm2d(3, options).repr(), plain = BatchNorm2d(3).repr();
        const std::string start = plain.substr(0, plain.size() - 1);
        EXPECT_EQ(text.substr(0, start.size()), start);
        return text.substr(start.size());
    };
    EXPECT_EQ(repr(Activation::none()), ")");
    EXPECT_EQ(repr(Activation::relu()), ", activation=relu())");
    EXPECT_EQ(repr(Activation::leaky_relu()), ", activation=leaky_relu(0.01))");
    EXPECT_EQ(repr(Activation::clip(-1, 2.5)), ", activation=clip(-1.0, 2.5))");
    EXPECT_EQ(repr(Activation::relu6()), ", activation=clip(0.0, 6.0))");
    EXPECT_EQ(repr(Activation::silu()), ", activation=silu())");
    EXPECT_EQ(repr(Activation::hardswish()), ", activation=hardswish())");
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

TEST_F(Module, without_bias_has_a_weight_alone) {
    BatchNorm2dOptions options;
    options.bias = false;
    BatchNorm2d bn(3, options), other(3, options);
    EXPECT_TRUE(bn.weight());
    EXPECT_FALSE(bn.bias());
    static_cast<float *>(bn.weight().data)[1] = 2;
    bn.forward(x, y);
    for (int64_t c = 0; c < 3; c++) {
        expect_normalized(x, y, c, ChannelOracle(x, c, 1e-5), c == 1 ? 2 : 1, 0);
    }
    EXPECT_TRUE(bn.backward(y, x).grad_bias) << "of the bias 0, as in PyTorch's function";
    other.load_state_dict(bn.state_dict());
    EXPECT_EQ(get(other.weight(), 1), 2);
    other.reset_parameters();
    EXPECT_EQ(get(other.weight(), 1), 1);
    BatchNorm2d with_bias(3);
    EXPECT_THROW(with_bias.load_state_dict(bn.state_dict()), InvalidArgument);
    static_cast<float *>(with_bias.bias().data)[0] = 4;
    with_bias.load_state_dict(bn.state_dict(), false);
    EXPECT_EQ(get(with_bias.weight(), 1), 2);
    EXPECT_EQ(get(with_bias.bias(), 0), 4);
    EXPECT_THROW(other.load_state_dict(with_bias.state_dict()), InvalidArgument);
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

TEST_F(Module, state_of_a_const_module_is_read) {
    BatchNorm2d trained(3), loaded(3);
    trained.forward(x);
    const BatchNorm2d &source = trained;
    const ConstStateDict state = source.state_dict("a.");
    EXPECT_EQ(state.at("a.running_var").data, source.running_var().data);
    loaded.load_state_dict(state, true, "a.");
    EXPECT_EQ(get(loaded.running_var(), 2), get(source.running_var(), 2));
    EXPECT_EQ(loaded.num_batches_tracked(), 1);
}

TEST_F(Module, its_own_state_loads_in_any_order) {
    BatchNorm2d bn(3);
    bn.forward(x);
    const Real mean = get(bn.running_mean(), 1), var = get(bn.running_var(), 1);
    StateDict state = bn.state_dict();
    bn.load_state_dict(state);
    EXPECT_EQ(get(bn.running_mean(), 1), mean);
    std::swap(state.at("running_mean"), state.at("running_var"));
    bn.load_state_dict(state);
    EXPECT_EQ(get(bn.running_mean(), 1), var);
    EXPECT_EQ(get(bn.running_var(), 1), mean);
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

// Every entry of every dtype, whether it is one or not, aligned and not: it loads, or is named and nothing is loaded.
TEST_F(Module, entries_of_any_dtype_load_or_are_named) {
    BatchNorm2d bn(3);
    alignas(8) char memory[64];
    for (const auto &[name, mine] : BatchNorm2d(3).state_dict()) {
        for (int dtype = -2; dtype < 10; dtype++) {
            for (int offset : {0, 1, 2, 4}) {
                bn.reset_parameters();
                std::memset(memory, 0, sizeof memory);
                BatchNorm2d source(3);
                ConstStateDict state = std::as_const(source).state_dict();
                static_cast<float *>(source.weight().data)[0] = 9;
                state[name].data = memory + offset;
                state[name].dtype = DType(dtype);
                const bool is_count = name == "num_batches_tracked";
                const bool fits = is_count ? DType(dtype) == DType::int64
                                           : dtype >= HBN_FLOAT32 && dtype <= HBN_FLOAT16;
                if (fits && offset % int(size_of(DType(dtype))) == 0) {
                    bn.load_state_dict(state);
                    EXPECT_EQ(get(bn.weight(), 0), name == "weight" ? 0 : 9);
                    EXPECT_EQ(get(bn.running_var(), 2), name == "running_var" ? 0 : 1);
                    continue;
                }
                try {
                    bn.load_state_dict(state);
                    ADD_FAILURE() << name << " of dtype " << dtype << " at " << offset;
                } catch (const InvalidArgument &e) {
                    EXPECT_NE(std::string(e.what()).find(" " + name), std::string::npos)
                        << e.what();
                    EXPECT_NE(std::string(e.what()).find(fits ? "aligned" : "dtype mismatch"),
                              std::string::npos)
                        << e.what();
                }
                EXPECT_EQ(get(bn.weight(), 0), 1) << "something was loaded";
            }
        }
    }
}

TEST_F(Module, a_states_prefix_tells_modules_apart) {
    BatchNorm2d first(3), second(3);
    static_cast<float *>(first.weight().data)[0] = 5;
    static_cast<float *>(second.weight().data)[0] = 7;
    ConstStateDict state;
    for (const auto &[module, prefix] : {std::pair(&first, "bn1."), std::pair(&second, "bn2.")}) {
        for (const auto &[name, entry] : std::as_const(*module).state_dict(prefix)) {
            state[name] = entry;
        }
    }
    const bool strict = true;
    BatchNorm2d loaded(3);
    loaded.load_state_dict(state, strict, "bn2.");
    EXPECT_EQ(get(loaded.weight(), 0), 7);
    EXPECT_EQ(std::as_const(loaded).num_features(), 3);
    EXPECT_EQ(std::as_const(loaded).options().eps, 1e-5);
    EXPECT_EQ(get(std::as_const(loaded).weight(), 0), 7);
    EXPECT_EQ(get(std::as_const(loaded).bias(), 0), 0);
    // Another module's entries are not this one's.
    EXPECT_THROW(loaded.load_state_dict(state, strict, "bn3."), InvalidArgument);
    EXPECT_EQ(get(loaded.weight(), 0), 7);
}

TEST_F(Module, entries_without_data_are_named) {
    BatchNorm2d bn(3), empty(0);
    for (const auto &[name, mine] : BatchNorm2d(3).state_dict()) {
        StateDict state = bn.state_dict();
        state.at(name).data = nullptr;
        try {
            bn.load_state_dict(state);
            ADD_FAILURE() << name << " was loaded";
        } catch (const InvalidArgument &e) {
            EXPECT_NE(std::string(e.what()).find("no data for " + name), std::string::npos);
        }
    }
    StateDict of_nothing = empty.state_dict();
    of_nothing.at("weight").data = nullptr;
    empty.load_state_dict(of_nothing);
}

template<typename Call>
void expect_state_error(const char *text, Call call) {
    try {
        call();
        ADD_FAILURE() << "was not refused: " << text;
    } catch (const InvalidState &e) {
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
}

TEST_F(Module, backward_takes_the_x_of_forward) {
    BatchNorm2d bn(3);
    expect_state_error("backward() needs a forward() before it", [&] { bn.backward(y, x); });
    expect_state_error("backward_add() needs a forward_add()", [&] { bn.backward_add(y, x); });
    bn.forward(x, y);
    expect_state_error("backward_add() needs a forward_add()", [&] { bn.backward_add(y, x, y); });
    const auto refused = [&](const TensorView &other, const char *text) {
        try {
            bn.backward(other, other);
            ADD_FAILURE() << "was not refused: " << text;
        } catch (const InvalidArgument &e) {
            EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
        }
    };
    TestTensor larger(DType::float32, {5, 3, 5, 6}), wide(DType::float64, {4, 3, 5, 6});
    TestTensor more_channels(DType::float32, {4, 6, 5, 3});
    refused(larger, "the shape that it had in forward, [4, 3, 5, 6], not [5, 3, 5, 6]");
    refused(more_channels, "the shape that it had in forward, [4, 3, 5, 6], not [4, 6, 5, 3]");
    refused(wide, "the dtype that it had in forward, float32, not float64");
    TensorView flat = x;
    flat.ndim = 3;
    refused(flat, "expected 4D input (got 3D input)");
    bn.backward(y, x);
    // A forward that fails leaves the last one.
    EXPECT_THROW(bn.forward(TestTensor(DType::float32, {1, 3, 1, 1})), InvalidArgument);
    bn.backward(y, x);
    bn.forward_add(x, y);
    expect_state_error("backward() needs a forward() before it", [&] { bn.backward(y, x); });
}

TEST_F(Module, moved_from_throws_from_every_method) {
    BatchNorm2d bn(3);
    bn.forward(x, y);
    BatchNorm2d owner(std::move(bn));
    owner.backward(y, x);
    const StateDict state = owner.state_dict();
    const std::vector<std::function<void()>> methods = {
        [&] { bn.clone(); },
        [&] { bn.train(); },
        [&] { bn.eval(); },
        [&] { bn.is_training(); },
        [&] { bn.forward(x); },
        [&] { bn.forward(x, y); },
        [&] { bn(x); },
        [&] { bn.forward_add(x, y); },
        [&] { bn.forward_add(x, y, y); },
        [&] { bn.backward(y, x); },
        [&] { bn.backward(y, x, {}, y); },
        [&] { bn.backward_add(y, x); },
        [&] { bn.reset_running_stats(); },
        [&] { bn.reset_parameters(); },
        [&] { bn.state_dict(); },
        [&] { std::as_const(bn).state_dict(); },
        [&] { bn.load_state_dict(state); },
        [&] { bn.load_state_dict(ConstStateDict(state.begin(), state.end())); },
        [&] { bn.num_features(); },
        [&] { bn.options(); },
        [&] { bn.weight(); },
        [&] { std::as_const(bn).weight(); },
        [&] { bn.bias(); },
        [&] { std::as_const(bn).bias(); },
        [&] { bn.running_mean(); },
        [&] { std::as_const(bn).running_mean(); },
        [&] { bn.running_var(); },
        [&] { std::as_const(bn).running_var(); },
        [&] { bn.num_batches_tracked(); },
        [&] { bn.saved_mean(); },
        [&] { bn.saved_invstd(); },
        [&] { bn.repr(); },
    };
    for (const auto &method : methods) {
        expect_state_error("was moved from", method);
    }
    bn = std::move(owner);
    bn.forward(x, y);
    expect_state_error("was moved from", [&] { owner.forward(x); });
    owner = BatchNorm2d(3);
    owner.forward(x, y);
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
    EXPECT_EQ(bn.saved_mean().dtype, DType::float64);
    EXPECT_EQ(bn.saved_invstd().dtype, DType::float64);
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
