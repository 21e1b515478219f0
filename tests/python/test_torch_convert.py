"""hbn.torch.convert, revert and fuse_conv_bn: the same objects, the same state and the same outputs, or a refusal."""

import copy
import io
import itertools
import pickle
import re
import weakref
from collections import Counter

import pytest
import torch
import torch.fx.experimental.optimization
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from test_torch_modules import CLASSES, UNIT, assert_close, assert_same_state, assert_same_step, batch, torch_threads
from torch import nn
from torch.nn.utils import parametrize, prune

import hbn.torch


class Block(nn.Module):
    """A residual network's."""

    def __init__(self, channels, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + x).relu()


class UsersBatchNorm(nn.BatchNorm2d):
    pass


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(Block(4), Block(4, groups=2)),
        nn.Flatten(2),
        nn.BatchNorm1d(4),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def test_convert_replaces_all_and_keeps_everything_else():
    model = network()
    model[1].eval()
    calls = []
    model[2][0].bn1.register_forward_hook(lambda *_: calls.append("hook"))
    model[2][0].bn1.my_own_attribute = 7
    model[4].momentum = 0.25
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    names, keys = [name for name, _ in model.named_modules()], list(model.state_dict())
    modes = [module.training for module in model.modules()]

    assert hbn.torch.convert(model) is model
    assert [type(m) for m in batch_norms(model)] == [hbn.torch.BatchNorm2d] * 5 + [hbn.torch.BatchNorm1d]
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.state_dict()) == keys
    assert [module.training for module in model.modules()] == modes
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert model[2][0].bn1.my_own_attribute == 7 and model[4].momentum == 0.25
    model(batch())
    assert calls == ["hook"]


def test_converted_network_computes_the_same():
    theirs = network()
    ours = hbn.torch.convert(copy.deepcopy(theirs))
    # Six normalizations and five convolutions on top of one another: roundoffs of each are multiplied on.
    assert_same_step(ours, theirs, batch((4, 3, 7, 7)), unit=8 * UNIT[torch.float32])


def test_optimizer_goes_on_after_convert():
    models = [network().double() for _ in range(2)]
    for number, model in enumerate(models):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(4):
            if step == 2 and number == 0:
                model = hbn.torch.convert(model)
            optimizer.zero_grad()
            (model(batch((4, 3, 7, 7), torch.float64, seed=step)) ** 3).mean().backward()
            optimizer.step()
    # Adam divides by the gradient's size, so that roundoff of a gradient that is nearly 0 is not small in the step:
    # 1e-15 / 1e-8 (its eps) of 0.01, each step.
    assert_same_state(*models, unit=4e-9 / 16)


def test_revert_undoes_convert():
    model = network()
    parameters, classes = dict(model.named_parameters()), [type(m) for m in model.modules()]
    assert hbn.torch.revert(hbn.torch.convert(model)) is model
    assert [type(m) for m in model.modules()] == classes
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert_same_step(model, network(), batch((4, 3, 7, 7)))


def test_converting_twice_or_reverting_plain_modules_changes_nothing():
    model = hbn.torch.convert(network())
    before = list(model.modules())
    assert all(a is b for a, b in zip(hbn.torch.convert(model).modules(), before, strict=True))
    plain = network()
    before = list(plain.modules())
    assert all(a is b for a, b in zip(hbn.torch.revert(plain).modules(), before, strict=True))


@pytest.mark.parametrize("of", CLASSES)
def test_model_that_is_a_batch_norm_itself(of):
    module = of(3).eval()
    state = dict(module.state_dict(keep_vars=True))
    converted = hbn.torch.convert(module)
    assert converted is module and type(module) is CLASSES[of] and not module.training
    assert all(tensor is state[name] for name, tensor in module.state_dict(keep_vars=True).items())
    assert hbn.torch.revert(module) is module and type(module) is of


def test_shared_module_stays_one():
    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), nn.ModuleDict({"again": shared}))
    hbn.torch.convert(model)
    assert type(model[0]) is hbn.torch.BatchNorm2d
    assert model[0] is model[1][1] is model[2]["again"]
    hbn.torch.revert(model)
    assert type(model[0]) is nn.BatchNorm2d
    assert model[0] is model[1][1] is model[2]["again"]


def test_subclasses_are_left_alone():
    kept = [nn.SyncBatchNorm(3), UsersBatchNorm(3), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3)]
    classes = [type(module) for module in kept]
    model = nn.Sequential(*kept)
    for change in (hbn.torch.convert, hbn.torch.revert):
        change(model)
        assert all(module is before for module, before in zip(model, kept, strict=True))
        assert [type(module) for module in model] == classes
    model = nn.Sequential(hbn.torch.BatchNorm2d(3), type("Theirs", (hbn.torch.BatchNorm2d,), {})(3))
    hbn.torch.revert(model)
    assert [type(m).__name__ for m in model] == ["BatchNorm2d", "Theirs"]


class TimmsBatchNormAct(nn.BatchNorm2d):
    """timm's BatchNormAct2d in short: an activation is a submodule."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def test_subclass_with_an_activation_keeps_it():
    models = [nn.Sequential(TimmsBatchNormAct(3), nn.BatchNorm2d(3)) for _ in range(2)]
    hbn.torch.convert(models[0])
    assert [type(m) for m in models[0]] == [TimmsBatchNormAct, hbn.torch.BatchNorm2d]
    assert_same_step(*models, batch())


def test_whatever_holds_a_module_sees_it_converted():
    class Holder:
        def __init__(self, module):
            self.module = module

    model = network()
    norm = model[2][0].bn1
    other_model = nn.Sequential(norm)
    held = [norm, norm.forward, weakref.ref(norm), Holder(norm), {norm: "key"}, lambda: norm, norm._parameters]
    hbn.torch.convert(model)
    assert held[0] is model[2][0].bn1 is other_model[0] and type(held[0]) is hbn.torch.BatchNorm2d
    assert held[1].__self__ is held[2]() is held[3].module is held[5]() is norm and held[4][norm] == "key"
    assert held[6] is norm._parameters
    held[1](batch((4, 4, 5, 5)))  # PyTorch's method, bound before, on the same state
    assert norm.num_batches_tracked == 1
    hbn.torch.revert(other_model)
    assert type(model[2][0].bn1) is nn.BatchNorm2d and type(model[1]) is hbn.torch.BatchNorm2d


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("name", ["weight", "running_mean"])
def test_parametrizations_and_conversions_come_and_go_in_any_order(name):
    def add(norm):
        parametrize.register_parametrization(norm, name, Doubled())

    def remove(norm):
        parametrize.remove_parametrizations(norm, name, leave_parametrized=False)

    for changes in itertools.permutations([add, remove, hbn.torch.convert, hbn.torch.revert]):
        if changes.index(add) > changes.index(remove):
            continue
        norm = nn.BatchNorm2d(3)
        original, keys, of = getattr(norm, name), list(norm.state_dict()), nn.BatchNorm2d
        for change in changes:
            change(norm)
            of = {hbn.torch.convert: hbn.torch.BatchNorm2d, hbn.torch.revert: nn.BatchNorm2d}.get(change, of)
            assert parametrize.type_before_parametrizations(norm) is of
            theirs = nn.BatchNorm2d(3)
            if parametrize.is_parametrized(norm):
                assert type(norm).__name__ == "ParametrizedBatchNorm2d"
                assert type(copy.deepcopy(norm)) is type(norm)
                add(theirs)
            assert_close(copy.deepcopy(norm).eval()(batch()), theirs.eval()(batch()))
        assert getattr(norm, name) is original and set(norm.state_dict()) == set(keys) and type(norm) is of


def test_copies_of_parametrized_modules_are_changed_alone():
    norm = nn.BatchNorm2d(3)
    parametrize.register_parametrization(norm, "weight", Doubled())
    other = copy.deepcopy(norm)
    hbn.torch.convert(norm)
    assert isinstance(norm, hbn.torch.BatchNorm2d) and not isinstance(other, hbn.torch.BatchNorm2d)
    parametrize.remove_parametrizations(norm, "weight")
    assert parametrize.is_parametrized(other) and other.weight.equal(torch.full((3,), 2.0))


def test_parametrized_subclasses_are_left_alone():
    norm = UsersBatchNorm(3)
    parametrize.register_parametrization(norm, "weight", Doubled())
    of = type(norm)
    assert type(hbn.torch.convert(norm)) is of and type(hbn.torch.revert(norm)) is of


@pytest.mark.parametrize("dimensions, shape", [(1, (4, 3, 5)), (2, (4, 3, 5, 6)), (3, (4, 3, 2, 5, 6))])
def test_lazy_modules_become_hbns_on_their_first_input(dimensions, shape):
    lazy = getattr(nn, f"LazyBatchNorm{dimensions}d")
    of = getattr(nn, f"BatchNorm{dimensions}d")
    model = nn.Sequential(lazy(), lazy())
    first, description = model[0], repr(model)
    assert hbn.torch.convert(model) is model and repr(model) == description
    reverted = hbn.torch.revert(pickle.loads(pickle.dumps(model)))
    assert [type(module) for module in reverted] == [lazy, lazy]
    assert_same_step(model, nn.Sequential(of(3), of(3)), batch(shape))
    assert model[0] is first and [type(module) for module in model] == [CLASSES[of]] * 2
    reverted(batch(shape))
    assert [type(module) for module in reverted] == [of] * 2


def test_compiled_modules_are_compiled_anew():
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    compiled = torch.compile(model, backend=backend)
    compiled(batch())
    assert hbn.torch.convert(compiled) is compiled and type(model[0]) is hbn.torch.BatchNorm2d
    compiled(batch())
    assert ["hbn" in graph for graph in graphs] == [False, True]
    assert model[0].num_batches_tracked == 2
    alone = nn.BatchNorm2d(3)
    compiled = torch.compile(alone, backend=backend)
    hbn.torch.convert(compiled)
    compiled(batch())
    assert "hbn" in graphs[2] and alone.num_batches_tracked == 1


def test_scripted_modules_are_left_alone_and_other_wrappers_entered():
    scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(3)))
    of = type(scripted[0])
    norm = nn.BatchNorm2d(3)
    graph_module = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), norm))
    wrapped = nn.DataParallel(nn.Sequential(nn.BatchNorm2d(3)))
    model = nn.ModuleList([scripted, graph_module, wrapped])
    hbn.torch.convert(model)
    assert type(scripted[0]) is of
    assert type(norm) is hbn.torch.BatchNorm2d and graph_module.get_submodule("1") is norm
    assert type(wrapped.module[0]) is hbn.torch.BatchNorm2d
    replica = wrapped.module[0]._replicate_for_data_parallel()
    assert type(replica) is hbn.torch.BatchNorm2d and type(hbn.torch.revert(replica)) is nn.BatchNorm2d
    assert type(wrapped.module[0]) is hbn.torch.BatchNorm2d


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pruned_and_back(model):
    prune.l1_unstructured(model[1], "weight", 0)
    hbn.torch.convert(hbn.torch.revert(model))
    model(batch((2, 4, 9, 9)))
    prune.remove(model[1], "weight")
    assert type(model[1]) is hbn.torch.BatchNorm2d
    return model


def with_its_state(model):
    plain = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    return plain


USES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "pruning": pruned_and_back,
    "dtype": lambda model: model.to(torch.float64).to(torch.float32),
    "freezing": lambda model: model.requires_grad_(False),
    "fuse_conv_bn_eval": lambda model: nn.Sequential(nn.utils.fuse_conv_bn_eval(*model[:2]), model[2]),
    "torch.fx": torch.fx.symbolic_trace,
    "torch.fx's fuse": torch.fx.experimental.optimization.fuse,
    "torch.jit.trace": lambda model: torch.jit.trace(model, batch((2, 4, 9, 9))),
    "torch.export": lambda model: torch.export.export(model, (batch((2, 4, 9, 9)),)).module(),
    "averaging": torch.optim.swa_utils.AveragedModel,
    "a state_dict": with_its_state,
}


@pytest.mark.parametrize("use", USES)
def test_what_users_do_next(use):
    theirs = fused_pair(CONVOLUTIONS["plain"])
    ours = hbn.torch.convert(copy.deepcopy(theirs))
    x = batch((2, 4, 9, 9))
    assert_close(USES[use](ours)(x), theirs(x), terms=64)


def test_pytorchs_quantization_fuses_reverted_models_and_refuses_converted_ones():
    theirs = fused_pair(CONVOLUTIONS["plain"])
    ours = hbn.torch.convert(copy.deepcopy(theirs))
    with pytest.raises(AssertionError, match="hbn.torch"):
        torch.ao.quantization.fuse_modules(ours, ["0", "1", "2"])
    x = batch((2, 4, 9, 9))
    fused = torch.ao.quantization.fuse_modules(hbn.torch.revert(ours), ["0", "1", "2"])
    assert_close(fused(x), theirs(x), terms=64)


CONVERSION = pytest.mark.parametrize("change", [hbn.torch.convert, lambda model: model], ids=["converted", "plain"])


def assert_fuses(model, x, fused_norms, change):
    """That so many normalizations are gone, and the output is the same within what refactoring a sum costs."""
    expected = copy.deepcopy(model).double()(x.double())
    norms = len(batch_norms(model))
    model = change(model)
    assert hbn.torch.fuse_conv_bn(model) is model
    assert norms - len(batch_norms(model)) == fused_norms
    # Some dozen products a pixel and layer of size 1, whose roundoffs layers multiply on.
    assert (model(x).double() - expected).abs().max() <= 64 * UNIT[torch.float32] * expected.abs().max()


@CONVERSION
def test_fuse_residual_network(change):
    # All but the 1d one, which follows no convolution.
    assert_fuses(network().eval(), batch((4, 3, 7, 7)), 5, change)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3),
    "without bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "strided, dilated, padded": lambda: nn.Conv2d(4, 6, 3, 2, 1, 2, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
}


def fused_pair(convolution, **options):
    torch.manual_seed(1)
    layer = convolution()
    norm = nn.BatchNorm2d(layer.out_channels, **options)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    return nn.Sequential(layer, norm, nn.ReLU()).eval()


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@CONVERSION
def test_fuse_kinds_of_convolutions(kind, change):
    fused = 0 if "transposed" in kind else 1
    assert_fuses(fused_pair(CONVOLUTIONS[kind]), batch((2, 4, 9, 9)), fused, change)


@pytest.mark.parametrize("options, fused", [({"affine": False}, 1), ({"bias": False}, 1)], ids=str)
@CONVERSION
def test_fuse_normalizations_without_parameters(options, fused, change):
    assert_fuses(fused_pair(CONVOLUTIONS["plain"], **options), batch((2, 4, 9, 9)), fused, change)


@CONVERSION
def test_fuse_leaves_batch_statistics_alone(change):
    model = fused_pair(CONVOLUTIONS["plain"], track_running_stats=False)
    assert_fuses(model, batch((2, 4, 9, 9)), 0, change)


@pytest.mark.parametrize("dimensions, shape", [(1, (2, 4, 9)), (3, (2, 4, 5, 5, 5))])
@CONVERSION
def test_fuse_other_dimensions(dimensions, shape, change):
    convolution = getattr(nn, f"Conv{dimensions}d")(4, 6, 3)
    norm = getattr(nn, f"BatchNorm{dimensions}d")(6)
    nn.init.uniform_(norm.running_mean, -1, 1)
    assert_fuses(nn.Sequential(convolution, norm).eval(), batch(shape), 1, change)


class OutputUsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        nn.init.uniform_(self.bn.running_mean, -1, 1)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class ConvolutionUsedTwice(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(2 * x)


class NormUsedTwice(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn(2 * x)


class TiedWeight(OutputUsedTwice):
    """Two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x):
        return self.bn(self.conv(x)) + self.other(x)


class WeightSeenOutside(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.sum()


@pytest.mark.parametrize("model", [OutputUsedTwice, ConvolutionUsedTwice, NormUsedTwice])
@CONVERSION
def test_fuse_leaves_alone_what_something_else_uses(model, change):
    assert_fuses(model().eval(), batch(), 0, change)


@CONVERSION
def test_fuse_leaves_the_other_user_of_a_weight_as_it_was(change):
    assert_fuses(TiedWeight().eval(), batch(), 1, change)


@CONVERSION
def test_fuse_where_a_models_forward_reads_the_weight(change):
    assert_fuses(WeightSeenOutside().eval(), batch(), 0, change)


@pytest.mark.parametrize("number", [0, 1], ids=["convolution", "normalization"])
@pytest.mark.parametrize(
    "alter",
    [
        lambda module: module.register_forward_hook(lambda module, args, output: 3 * output),
        lambda module: module.register_forward_pre_hook(lambda module, args: (3 * args[0],)),
        lambda module: parametrize.register_parametrization(module, "weight", Doubled()),
    ],
    ids=["forward hook", "forward pre-hook", "parametrization"],
)
@CONVERSION
def test_fuse_keeps_the_output_where_hooks_and_parametrizations_alter_it(alter, number, change):
    model = change(fused_pair(CONVOLUTIONS["plain"]))
    alter(model[number])
    x = batch((2, 4, 9, 9))
    expected = model(x)
    # Left alone or folded, but never silently another function.
    assert_close(hbn.torch.fuse_conv_bn(model)(x), expected, terms=64)


class UsersDoubledBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@CONVERSION
def test_fuse_leaves_a_users_batch_norm_alone_and_fuses_others(change):
    theirs = fused_pair(CONVOLUTIONS["plain"])
    model = nn.Sequential(theirs, nn.Conv2d(6, 3, 1), UsersDoubledBatchNorm(3)).eval()
    x = batch((2, 4, 9, 9))
    expected = model(x)
    fused = hbn.torch.fuse_conv_bn(change(model))
    assert [type(m) for m in batch_norms(fused)] == [UsersDoubledBatchNorm]
    assert_close(fused(x), expected, terms=64)


@pytest.mark.parametrize("of", [nn.BatchNorm2d, hbn.torch.BatchNorm2d])
def test_fuse_of_a_batch_norm_alone_changes_nothing(of):
    module = of(3).eval()
    assert hbn.torch.fuse_conv_bn(module) is module


@CONVERSION
def test_fuse_refuses_training_mode(change):
    model = change(network())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="evaluation mode"):
        hbn.torch.fuse_conv_bn(model)
    model.eval()
    model[2][1].bn2.train()
    with pytest.raises(ValueError, match=re.escape("2.1.bn2")):
        hbn.torch.fuse_conv_bn(model)
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name]), name


@CONVERSION
def test_fuse_keeps_low_precision_parameters_dtype(change):
    model = change(fused_pair(CONVOLUTIONS["plain"]).to(torch.bfloat16))
    hbn.torch.fuse_conv_bn(model)
    assert model[0].weight.dtype == model[0].bias.dtype == torch.bfloat16


# ---- fuse_conv_bn where something else sees the modules


class SeveralNames(OutputUsedTwice):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(self.conv, self.bn)
        self.held = [self.conv, self.bn]
        self.table = {"conv": self.conv, "bn": self.bn}
        self.called = lambda x: self.bn(self.conv(x))


class ThroughBlock(SeveralNames):
    def forward(self, x):
        return self.block(x)


class ThroughList(SeveralNames):
    def forward(self, x):
        for module in self.held:
            x = module(x)
        return x


class ThroughDictionary(SeveralNames):
    def forward(self, x):
        return self.table["bn"](self.table["conv"](x))


class ThroughClosure(SeveralNames):
    def forward(self, x):
        return self.called(x)


class ThroughAllOfThem(SeveralNames):
    def forward(self, x):
        return self.called(self.bn(self.conv(self.held[1](self.held[0](self.block(x))))))


class ReadsWhatStays(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn.eps * 1e5 + self.bn.num_features + self.conv.stride[0]


class KeepsItsOutput(OutputUsedTwice):
    def forward(self, x):
        self.seen = self.bn(self.conv(x)) + torch.ones(3, 1, 1) + torch.randn(3, 1, 1) * 0
        return self.seen


THROUGH = [ThroughBlock, ThroughList, ThroughDictionary, ThroughClosure, ThroughAllOfThem]


@pytest.mark.parametrize("model", [*THROUGH, ReadsWhatStays, KeepsItsOutput])
@CONVERSION
def test_fuse_where_modules_have_several_names_and_holders(model, change):
    model = change(model().double().eval())
    conv, bn, attributes = model.conv, model.bn, set(vars(model))
    x = batch(dtype=torch.float64)
    expected = copy.deepcopy(model)(x)
    assert hbn.torch.fuse_conv_bn(model) is model
    assert model.conv is conv and model.bn is bn and type(bn) is nn.Identity
    assert not list(bn.parameters()) and not list(bn.buffers())
    assert set(vars(model)) == attributes  # nothing of the trace stays
    assert_close(model(x), expected, terms=64)


class StatisticsSeenOutside(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn.running_mean.sum()


class NormWeightSeenOutside(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn.weight.sum()


class TiedWeightSeenOutside(OutputUsedTwice):
    """The weight's first name is another module's."""

    def __init__(self):
        nn.Module.__init__(self)
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        convolution, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        nn.init.uniform_(norm.running_mean, -1, 1)
        self.conv, self.bn = convolution, norm
        self.conv.weight = self.other.weight

    def forward(self, x):
        return self.bn(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight, padding=1)


class CalledInsideALeaf(OutputUsedTwice):
    """torch.fx does not look into torch.nn's modules."""

    def __init__(self):
        super().__init__()
        self.wrapped = nn.DataParallel(self.conv)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.wrapped(x)


class CalledInsideCompiled(OutputUsedTwice):
    def __init__(self):
        super().__init__()
        self.wrapped = torch.compile(nn.Sequential(self.conv), backend="eager")

    def forward(self, x):
        return self.bn(self.conv(x)) + self.wrapped(x)


class OwnForward(OutputUsedTwice):
    def __init__(self):
        super().__init__()
        self.conv.forward = lambda x: 2 * nn.Conv2d.forward(self.conv, x)

    def forward(self, x):
        return self.bn(self.conv(x))


class HookOfAnotherModule(OutputUsedTwice):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()
        self.relu.register_forward_hook(lambda module, args, output: output + self.conv.weight.sum())

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class OtherDimension(OutputUsedTwice):
    """An unbatched (C, H, W): the 1d module takes its channels for H."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(5)
        nn.init.uniform_(self.bn.running_mean, -1, 1)

    def forward(self, x):
        return self.bn(self.conv(x[0]))


WRAPPED = {}


@torch.fx.wrap
def function_that_torch_fx_does_not_enter(x):
    return WRAPPED["conv"](x)


class CalledInsideAWrappedFunction(OutputUsedTwice):
    def forward(self, x):
        WRAPPED["conv"] = self.conv
        return self.bn(self.conv(x)) + function_that_torch_fx_does_not_enter(x)


@pytest.mark.parametrize(
    "model",
    [
        StatisticsSeenOutside,
        NormWeightSeenOutside,
        TiedWeightSeenOutside,
        CalledInsideALeaf,
        CalledInsideCompiled,
        OwnForward,
        HookOfAnotherModule,
        OtherDimension,
        CalledInsideAWrappedFunction,
    ],
)
@CONVERSION
def test_fuse_leaves_alone_what_is_seen_elsewhere(model, change):
    model = change(model().eval())
    x = batch()
    expected = model(x)
    assert len(batch_norms(hbn.torch.fuse_conv_bn(model))) == 1
    assert model(x).equal(expected)


class AnotherPathWithoutSkip(OutputUsedTwice):
    def forward(self, x, skip=None):
        y = self.conv(x)
        return self.bn(y.relu() if skip is None else y)


class AnotherPathWithoutKeyword(OutputUsedTwice):
    def forward(self, x, **options):
        y = self.conv(x)
        return self.bn(y.relu() if options.get("skip") is None else y)


class AnotherPathWithoutTheSecond(OutputUsedTwice):
    def forward(self, x, skip):
        y = self.conv(x)
        return self.bn(y.relu() if skip is None else y)


@pytest.mark.parametrize("model", [AnotherPathWithoutSkip, AnotherPathWithoutKeyword, AnotherPathWithoutTheSecond])
@CONVERSION
def test_fuse_where_forward_goes_another_way_without_an_argument(model, change):
    model = change(model().eval())
    arguments = [{"skip": None}, {"skip": batch(seed=1)}]
    expected = [model(batch(), **options) for options in arguments]
    hbn.torch.fuse_conv_bn(model)
    for options, before in zip(arguments, expected, strict=True):
        assert_close(model(batch(), **options), before, terms=64)


class OptionalArguments(OutputUsedTwice):
    def forward(self, x, skip=None, *more, scale=1.0, **options):
        y = self.bn(self.conv(x))
        return scale * (y if skip is None else y + skip)


@CONVERSION
def test_fuse_with_optional_arguments(change):
    model = change(OptionalArguments().eval())
    arguments = [{}, {"skip": batch(seed=1)}, {"scale": 2.0}]
    expected = [model(batch(), **options) for options in arguments]
    assert not batch_norms(hbn.torch.fuse_conv_bn(model))
    for options, before in zip(arguments, expected, strict=True):
        assert_close(model(batch(), **options), before, terms=64)


class ReadsRawWeight(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + 2 * self.conv._parameters["weight"].detach().sum()


class ReadsRawStatistics(OutputUsedTwice):
    def forward(self, x):
        return self.bn(self.conv(x)) + float(self.bn._buffers["running_mean"].sum())


class AsksForTheClass(OutputUsedTwice):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return y if isinstance(self.bn, nn.BatchNorm2d) else y + 1


class CallsWhatIsNoSubmodule(OutputUsedTwice):
    def __init__(self):
        super().__init__()
        self.free = [nn.Conv2d(3, 3, 1)]

    def forward(self, x):
        return self.bn(self.conv(self.free[0](x)))


class TooManyOptions(OutputUsedTwice):
    def forward(self, x, a=None, b=None, c=None, d=None, e=None, f=None, g=None):
        return self.bn(self.conv(x))


@pytest.mark.parametrize(
    "model, named",
    [
        (ReadsRawWeight, "conv and bn"),
        (ReadsRawStatistics, "conv and bn"),
        (AsksForTheClass, "conv and bn"),
        (CallsWhatIsNoSubmodule, "Conv2d(3, 3, kernel_size=(1, 1)"),
        (TooManyOptions, "TooManyOptions"),
    ],
)
@CONVERSION
def test_fuse_refuses_by_name_and_changes_nothing(model, named, change):
    model = change(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), model()).eval()[2])
    model.harmless = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    before, classes = dict(model.state_dict(keep_vars=True)), [type(module) for module in model.modules()]
    expected = model(batch())
    with pytest.raises(ValueError, match=re.escape(named)) as refusal:
        hbn.torch.fuse_conv_bn(model)
    assert "harmless" not in str(refusal.value)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(tensor is before[name] for name, tensor in after.items())
    assert [type(module) for module in model.modules()] == classes
    assert model(batch()).equal(expected)


def test_fuse_refuses_a_forward_that_is_not_the_classs():
    model = fused_pair(CONVOLUTIONS["plain"])
    model.forward = lambda x: 2 * x
    with pytest.raises(ValueError, match="Sequential"):
        hbn.torch.fuse_conv_bn(model)
    with pytest.raises(ValueError, match="ScriptModule"):
        hbn.torch.fuse_conv_bn(torch.jit.script(fused_pair(CONVOLUTIONS["plain"])))


class CompiledInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.optimized = torch.compile(fused_pair(lambda: nn.Conv2d(4, 4, 3)), backend="eager")
        self.scripted = torch.jit.script(fused_pair(lambda: nn.Conv2d(4, 4, 3)))
        self.compiled = fused_pair(lambda: nn.Conv2d(4, 4, 3))
        self.compiled.compile(backend="eager")
        self.plain = fused_pair(lambda: nn.Conv2d(4, 4, 3))

    def forward(self, x):
        return self.plain(self.compiled(self.scripted(self.optimized(x))))


@CONVERSION
def test_fuse_leaves_alone_what_is_inside_compiled_modules(change):
    model = change(CompiledInside().eval())
    x = batch((2, 4, 11, 11))
    expected = model(x)
    hbn.torch.fuse_conv_bn(model)
    assert len(batch_norms(model)) == 2 and type(model.plain[1]) is nn.Identity
    assert_close(model(x), expected, terms=64)


@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "compile()"])
@CONVERSION
def test_fuse_of_a_compiled_model(change, in_place):
    model = change(fused_pair(CONVOLUTIONS["plain"]))
    compiled = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
    x = batch((2, 4, 9, 9))
    expected = compiled(x)
    assert hbn.torch.fuse_conv_bn(compiled) is compiled and not batch_norms(model)
    assert_close(compiled(x), expected, terms=64)


@CONVERSION
def test_fuse_makes_trainable_what_was(change):
    for frozen in ([], ["0.weight", "1.weight"], ["1.bias"], ["0.weight", "1.weight", "1.bias"]):
        model = change(fused_pair(CONVOLUTIONS["without bias"]))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        hbn.torch.fuse_conv_bn(model)
        wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert wanted == {"0.weight": "0.weight" not in frozen, "0.bias": "1.bias" not in frozen}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@CONVERSION
def test_fuse_rounds_low_precision_parameters_once(dtype, change):
    model = fused_pair(CONVOLUTIONS["plain"]).to(dtype)
    exact = copy.deepcopy(model).double()
    scale = exact[1].weight / (exact[1].running_var + exact[1].eps).sqrt()
    weight = exact[0].weight * scale.reshape(-1, 1, 1, 1)
    bias = (exact[0].bias - exact[1].running_mean) * scale + exact[1].bias
    hbn.torch.fuse_conv_bn(change(model))
    assert model[0].weight.equal(weight.to(dtype)) and model[0].bias.equal(bias.to(dtype))


# ---- random models with shared and aliased modules

HOLDERS = ["attribute", "sequence", "list", "dictionary", "block"]  # whose modules are submodules
VIAS = [*HOLDERS, "plain list", "plain dictionary", "closure"]


class Pair(nn.Module):
    def __init__(self, convolution, norm):
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, x):
        return self.norm(self.convolution(x))


class RandomModel(nn.Module):
    """Pairs of a convolution and a batch normalization, under some names, and a forward of some steps."""

    def __init__(self, pairs, holders, steps):
        super().__init__()
        torch.manual_seed(len(steps))
        modules = []
        for tied, bias, affine in pairs:
            modules.append((nn.Conv2d(3, 3, 3, padding=1, bias=bias), nn.BatchNorm2d(3, affine=affine)))
            nn.init.uniform_(modules[-1][1].running_mean, -1, 1)
            nn.init.uniform_(modules[-1][1].running_var, 0.5, 2)
            if tied:
                modules[-1][0].weight = modules[0][0].weight
        for holder in holders:
            if holder == "attribute":
                for number, (convolution, norm) in enumerate(modules):
                    self.add_module(f"norm{number}", norm)
                    self.add_module(f"convolution{number}", convolution)
            elif holder == "sequence":
                self.sequence = nn.Sequential(*(nn.Sequential(*pair) for pair in modules))
            elif holder == "list":
                self.list = nn.ModuleList([module for pair in modules for module in pair])
            elif holder == "dictionary":
                names = itertools.product(range(len(modules)), range(2))
                self.dictionary = nn.ModuleDict({f"{pair}_{part}": modules[pair][part] for pair, part in names})
            else:
                self.block = nn.ModuleList([Pair(*pair) for pair in modules])
        self.plain_list = modules
        self.plain_dictionary = {number: {"pair": pair} for number, pair in enumerate(modules)}
        self.closure = [[lambda x, module=module: module(x) for module in pair] for pair in modules]
        self.steps = steps

    def part(self, pair, part, via):
        if via == "plain dictionary":
            return self.plain_dictionary[pair]["pair"][part]
        if via == "closure":
            return self.closure[pair][part]
        return {
            "attribute": lambda: getattr(self, f"{['convolution', 'norm'][part]}{pair}"),
            "sequence": lambda: self.sequence[pair][part],
            "list": lambda: self.list[2 * pair + part],
            "dictionary": lambda: self.dictionary[f"{pair}_{part}"],
            "block": lambda: [self.block[pair].convolution, self.block[pair].norm][part],
            "plain list": lambda: self.plain_list[pair][part],
        }[via]()

    def forward(self, x, skip=None):
        before = x
        for kind, pair, via in self.steps:
            convolution, norm = self.plain_list[pair]
            if kind == "both" and via in ("sequence", "block"):
                x = getattr(self, via)[pair](x)
            elif kind == "both":
                x = self.part(pair, 1, via)(self.part(pair, 0, via)(x))
            elif kind in ("convolution", "norm"):
                x = self.part(pair, int(kind == "norm"), via)(x)
            elif kind == "relu":
                x = x.relu()
            elif kind == "add":
                x, before = x + before, x
            elif kind == "skip":
                x = x.sin() if skip is None else x + skip
            elif kind == "weight":
                x = x + convolution.weight.sum()
            elif kind == "running_var":
                # A copy: a later step may write it before backward needs it, which autograd notices with hbn's module.
                x = x * norm.running_var.clone().reshape(-1, 1, 1)
            elif kind == "eps":
                x = x + 1e4 * norm.eps
            elif kind == "raw weight":
                x = x + convolution._parameters["weight"].sum()
            elif kind == "class":
                x = x + isinstance(norm, nn.BatchNorm2d)
        return x


KINDS = ["both"] * 6 + ["convolution", "norm", "relu", "add", "skip"] * 2
READS = ["weight", "running_var", "eps", "raw weight", "class"]


@st.composite
def random_models(draw, kinds):
    """A function that makes the same model over and over."""
    pairs = draw(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=3))
    holders = draw(st.lists(st.sampled_from(HOLDERS), min_size=1, unique=True))
    vias = [via for via in VIAS if via in holders or via not in HOLDERS]
    step = st.tuples(st.sampled_from(kinds), st.integers(0, len(pairs) - 1), st.sampled_from(vias))
    steps = draw(st.lists(step, min_size=1, max_size=7))
    return lambda: RandomModel(pairs, holders, steps).double()


X, SKIP = (batch((4, 3, 4, 4), torch.float64, seed) for seed in (11, 12))


def all_names(model):
    return list(model.named_modules(remove_duplicate=False))


def everything(model):
    """Names, objects, classes and state."""
    names = all_names(model)
    state = list(model.state_dict(keep_vars=True).items())
    holders = [pair for pair in model.plain_list] + [value["pair"] for value in model.plain_dictionary.values()]
    held = [closure.__defaults__[0] for pair in model.closure for closure in pair]
    return names, [type(module) for _, module in names], state, holders, held


def assert_all_close(ours, theirs):
    # A few layers multiply roundoffs on, channels of no deviation by 1 / sqrt(eps).
    assert (ours - theirs).abs().max() <= 1e-9 * max(1, theirs.abs().max())


@pytest.fixture
def one_thread():
    with torch_threads(1):  # the tensors are tiny
        yield


@bounded
@given(random_models(KINDS + READS[:-1]))
@pytest.mark.usefixtures("one_thread")
def test_random_models_converted_and_reverted(make):
    ours, theirs = make(), make()
    before = everything(ours)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in (ours, theirs)]
    assert hbn.torch.convert(ours) is ours
    names, classes, state, *held = everything(ours)
    assert names == before[0] and held == list(before[3:])
    assert [key for key, _ in state] == list(theirs.state_dict())
    assert all(tensor is before[2][number][1] for number, (_, tensor) in enumerate(state))
    assert classes == [CLASSES.get(of, of) for of in before[1]]
    for step in range(2):
        x = batch(X.shape, torch.float64, seed=step)
        outputs = [model(x, SKIP if step else None) for model in (ours, theirs)]
        assert_all_close(*outputs)
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            if output.requires_grad:
                output.sin().mean().backward()
            optimizer.step()
    for (name, tensor), (key, expected) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == key
        assert_all_close(tensor, expected)
    assert_all_close(ours.eval()(X), theirs.eval()(X))
    assert hbn.torch.revert(ours) is ours
    names, classes, state, *held = everything(ours)
    assert (names, classes, held) == (before[0], before[1], list(before[3:]))
    assert all(tensor is before[2][number][1] for number, (_, tensor) in enumerate(state))
    theirs.load_state_dict(ours.state_dict())
    assert ours(X).equal(theirs(X))


def test_random_models_fused(one_thread):
    seen = Counter()

    @bounded
    @given(random_models(KINDS + READS), st.booleans())
    def check(make, converted):
        model = make().eval()
        if converted:
            hbn.torch.convert(model)
        expected = [model(X), model(X, SKIP)]
        before, norms = everything(model), len(batch_norms(model))
        try:
            hbn.torch.fuse_conv_bn(model)
        except ValueError as refusal:
            seen["refused"] += 1
            assert any(f" {name} and " in str(refusal) for name, _ in model.named_modules() if name)
            names, classes, state, *held = everything(model)
            assert (names, classes, held) == (before[0], before[1], list(before[3:]))
            assert all(tensor is before[2][number][1] for number, (_, tensor) in enumerate(state))
            assert model(X).equal(expected[0]) and model(X, SKIP).equal(expected[1])
            return
        assert [name for name, _ in all_names(model)] == [name for name, _ in before[0]]
        assert all(a is b for (_, a), (_, b) in zip(all_names(model), before[0], strict=True))
        assert_all_close(model(X), expected[0])
        assert_all_close(model(X, SKIP), expected[1])
        seen["fused" if len(batch_norms(model)) < norms else "left alone"] += 1

    check()
    assert all(seen[outcome] >= 5 for outcome in ("fused", "left alone", "refused")), seen


# ---- what forward puts away


class Keeping(nn.Module):
    """Keeps what its convolution, or else its normalization, returns."""

    def __init__(self, kept, place):
        super().__init__()
        self.c, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        nn.init.constant_(self.b.running_mean, 3.0)
        self.kept, self.place, self.seen, self.by_name = kept, place, [], {"of": [0]}

    def keep(self, value):
        if self.place == "attribute":
            self.feature = value
        elif self.place == "list":
            self.seen.append(value)
        elif self.place == "dictionary":
            self.by_name["of"].append(value)
        else:
            SEEN.append(value)

    def forward(self, x):
        x = self.c(x)
        if self.kept == "convolution":
            self.keep(x)
        x = self.b(x)
        if self.kept == "normalization":
            self.keep(x)
        return x


SEEN = []


@pytest.mark.parametrize("place", ["attribute", "list", "dictionary", "global"])
@pytest.mark.parametrize("kept", ["convolution", "normalization"])
def test_fuse_sees_what_forward_keeps(kept, place):
    SEEN.clear()
    model, x = Keeping(kept, place).eval(), batch((4, 3, 4, 4))
    expected = model(x)
    before = list(model.seen), list(model.by_name["of"])
    hbn.torch.fuse_conv_bn(model)
    assert all(a is b for a, b in zip(model.seen + model.by_name["of"], before[0] + before[1], strict=True))
    # Only what nobody else reads may change.
    assert (type(model.b) is nn.Identity) == (kept == "normalization")
    assert_close(model(x), expected)


class Untouchable(dict):
    def values(self):
        raise OSError("remote")


REMOTE = Untouchable()


def test_fuse_reads_hooks_that_name_odd_things():
    def with_an_empty_cell():
        def hook(module, args, output):
            return output if True else (never, REMOTE)

        if REMOTE:
            never = 1
        return hook

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).eval()
    model[2].register_forward_hook(with_an_empty_cell())
    x = batch((4, 3, 4, 4))
    expected = model(x)
    assert type(hbn.torch.fuse_conv_bn(model)[1]) is nn.Identity
    assert_close(model(x), expected)
