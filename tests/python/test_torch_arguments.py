"""Tensors of every kind as every argument of modules, functions and derivatives.

Each gives what PyTorch's own module, or the same values in plain memory, give; or is refused by name, with nothing
written.
"""

import copy
import inspect
import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.distributed
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from test_exporters import OPERATIONS, PLACES, arguments_of, call, written
from test_torch_modules import assert_close, batch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.two_tensor import TwoTensor

import hbn
import hbn.torch

SHAPE = (4, 3, 2, 5)
CHANNELS = SHAPE[1]


def negative(t):
    """Of the same values, with the negative bit."""
    made = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert made.is_neg() and torch.equal(made, t)
    return made


def quantized(t):
    return torch.quantize_per_tensor(t, 0.1, 0, torch.quint8)


def faked(t):
    return FakeTensorMode().from_tensor(t)


# What has no memory of such numbers.
UNREADABLE = {
    "sparse": torch.Tensor.to_sparse,
    "meta": lambda t: t.to("meta"),
    "mkldnn": torch.Tensor.to_mkldnn,
    "quantized": quantized,
    "wrapper": lambda t: TwoTensor(t.clone(), t.clone()),
    "fake": faked,
}

# ---- the operations themselves

FLOAT_PLACES = [place for place in PLACES if place[2] not in ("mask", "counter")]
IN_PLACES = [place for place in FLOAT_PLACES if place[3] == "in"]
place_id = lambda place: "-".join(place[:2])  # noqa: E731


def as_tensors(arguments):
    return {n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for n, a in arguments.items()}


def assert_refused(operation, arguments, name, error, text=""):
    before = copy.deepcopy({n: a for n, a in arguments.items() if n != name})
    with pytest.raises(error, match=f"^{'y' if name == 'out' else name}.*{text}") as caught:
        call(operation, arguments)
    assert "\n" not in str(caught.value)
    for other, value in before.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, arguments[other]), other


def assert_same_results(operation, name, tensor):
    """As of NumPy's arrays, where `tensor` replaces an input of the values that it has."""
    arguments = arguments_of(operation)
    expected = arguments | {name: tensor.detach().resolve_neg().numpy().reshape(arguments[name].shape)}
    given_ = as_tensors(arguments_of(operation)) | {name: tensor}
    with torch.no_grad():
        call(operation, given_)
    for other, bytes_ in written(operation, expected).items():
        assert given_[other].numpy().tobytes() == bytes_, other


@pytest.mark.parametrize("place", FLOAT_PLACES, ids=place_id)
def test_negative_bit(place):
    operation, name, _, direction = place
    arguments = as_tensors(arguments_of(operation))
    if direction == "in":
        assert_same_results(operation, name, negative(arguments[name]))
    else:
        assert_refused(operation, arguments | {name: negative(arguments[name])}, name, ValueError, "resolve_neg")


@pytest.mark.parametrize("place", IN_PLACES, ids=place_id)
def test_zeros_without_memory(place):
    operation, name = place[:2]
    like = as_tensors(arguments_of(operation))[name]
    zeros = torch._efficientzerotensor(like.shape, dtype=like.dtype)
    arguments = as_tensors(arguments_of(operation)) | {name: zeros}
    same = as_tensors(arguments_of(operation)) | {name: torch.zeros_like(like)}
    call(operation, arguments)
    call(operation, same)
    for other, value in same.items():
        if other != name and isinstance(value, torch.Tensor):
            assert torch.equal(arguments[other].nan_to_num(), value.nan_to_num()), other


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("place", FLOAT_PLACES, ids=place_id)
def test_what_has_no_readable_memory_is_refused(place, kind):
    operation, name, _, _ = place
    arguments = as_tensors(arguments_of(operation))
    assert_refused(operation, arguments | {name: UNREADABLE[kind](arguments[name].float())}, name, BufferError)


# hbn.torch's modules alone call forward_and_count; they know what autograd records.
@pytest.mark.parametrize("place", [p for p in FLOAT_PLACES if p[0] != "forward_and_count"], ids=place_id)
def test_what_requires_grad_is_refused_while_autograd_records(place):
    operation, name, _, direction = place
    arguments = as_tensors(arguments_of(operation))
    watched = arguments[name].requires_grad_()
    assert_refused(operation, arguments | {name: watched}, name, ValueError, "requires grad")
    if direction == "in":
        assert_same_results(operation, name, watched)


@pytest.mark.parametrize("place", [p for p in IN_PLACES if p[2] != "tensor"], ids=place_id)
@pytest.mark.parametrize("shape", [(1, -1, 1, 1), (-1, 1), (1, -1)], ids=str)
def test_vectors_of_several_dimensions(place, shape):
    operation, name = place[:2]
    assert_same_results(operation, name, as_tensors(arguments_of(operation))[name].reshape(shape))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_versions_of_what_is_updated(operation):
    arguments = as_tensors(arguments_of(operation))
    call(operation, arguments)
    for name, _, direction, _ in OPERATIONS[operation]:
        if isinstance(arguments[name], torch.Tensor) and direction != "out":
            assert arguments[name]._version == (direction == "inout"), name


# ---- functions

FUNCTIONS = [getattr(hbn, name) for name in hbn.__all__ if name.startswith("batch_norm")]


def function_arguments(function):
    """Tensors for every argument that is one."""
    torch.manual_seed(0)
    sums = hbn.batch_norm_stats(torch.randn(SHAPE))
    made = {
        "training": True,
        "activation": "relu",
        "moments": sums,
        "sums": None,
        "count": sums.count,
        "mask": torch.ones(SHAPE, dtype=torch.uint8),
    }
    for name in inspect.signature(function).parameters:
        if name in ("x", "x_tangent", "grad_output", "grad_grad_input", "residual", "out"):
            made[name] = torch.randn(SHAPE)
        elif name in ("mean", "invstd", "sum_dy", "sum_dy_xmu"):
            made[name] = torch.rand(CHANNELS, dtype=torch.float64)
        elif name.startswith(("weight", "bias", "running", "grad_grad_")):
            made[name] = torch.rand(CHANNELS)
    return {n: v for n, v in made.items() if n in inspect.signature(function).parameters}


FUNCTION_PLACES = [
    (function, name)
    for function in FUNCTIONS
    for name, value in function_arguments(function).items()
    if isinstance(value, torch.Tensor) and value.is_floating_point()
]
function_id = lambda place: f"{place[0].__name__}-{place[1]}"  # noqa: E731


def assert_function_refuses(function, arguments, name, text):
    before = copy.deepcopy({n: a for n, a in arguments.items() if n != name})
    with pytest.raises(ValueError, match=f"^{'(y|grad_input)' if name == 'out' else name} {text}"):
        function(**arguments)
    for other, value in before.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, arguments[other]), other


def test_every_function_of_tensors_is_here():
    assert {function.__name__ for function, _ in FUNCTION_PLACES} == {function.__name__ for function in FUNCTIONS}


@pytest.mark.parametrize("place", FUNCTION_PLACES, ids=function_id)
def test_functions_drop_no_gradient(place):
    function, name = place
    arguments = function_arguments(function)
    arguments[name].requires_grad_()
    assert_function_refuses(function, arguments, name, "requires grad")
    with torch.no_grad():
        function(**arguments)


@pytest.mark.parametrize("place", FUNCTION_PLACES, ids=function_id)
def test_functions_drop_no_tangent(place):
    function, name = place
    arguments = function_arguments(function)
    with forward_ad.dual_level():
        arguments[name] = forward_ad.make_dual(arguments[name], torch.ones_like(arguments[name]))
        assert_function_refuses(function, arguments, name, "has a tangent")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions_tell_autograd_what_they_write(function):
    arguments = function_arguments(function)
    function(**arguments)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            assert value._version == (name == "out" or name.startswith("running") and "momentum" in names_of(function))


def names_of(function):
    return inspect.signature(function).parameters


def test_a_result_that_was_saved_for_a_backward_and_is_written_again_is_noticed():
    out = torch.randn(SHAPE)
    y = (torch.ones(SHAPE, requires_grad=True) * out).sum()
    hbn.batch_norm_forward(torch.randn(SHAPE), None, None, None, None, training=True, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("name", ["mean", "m2"])
@pytest.mark.parametrize("which", [0, 1])
def test_moments_with_a_negative_bit(which, name):
    moments = [hbn.batch_norm_stats(batch(SHAPE, seed=seed)) for seed in range(2)]
    merged = hbn.merge_moments(*moments)
    tensors = [m._replace(mean=torch.from_numpy(m.mean), m2=torch.from_numpy(m.m2)) for m in moments]
    tensors[which] = tensors[which]._replace(**{name: negative(getattr(tensors[which], name))})
    for expected, actual in zip(merged, hbn.merge_moments(*tensors), strict=True):
        assert np.array_equal(expected, actual)
    tensors[which] = tensors[which]._replace(**{name: torch.ones(CHANNELS, dtype=torch.float64, requires_grad=True)})
    with pytest.raises(ValueError, match=f"^{name}.* requires grad"):
        hbn.merge_moments(*tensors)


def test_functions_of_transforms_say_so():
    for transform in (lambda f: torch.func.grad(lambda x: f(x).sum()), torch.func.vmap):
        with pytest.raises(ValueError, match="^x is transformed by torch.func"):
            transform(lambda x: hbn.batch_norm(x, None, None, training=True))(torch.randn(2, *SHAPE)[0])


def test_first_calls_of_two_threads():
    """Imports within a first call may let another thread run."""
    code = """
        import builtins, threading, time, torch, hbn
        real, x = builtins.__import__, torch.randn(2, 3, 4)
        def slow(name, *args, **kwargs):
            time.sleep(0.05 * name.startswith("torch"))
            return real(name, *args, **kwargs)
        builtins.__import__ = slow
        threads = [threading.Thread(target=hbn.batch_norm_stats, args=(x,)) for _ in range(2)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_update_running_stats_is_noticed():
    mean, var = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    hbn.update_running_stats(hbn.batch_norm_stats(torch.randn(SHAPE)), 0.1, mean, var)
    assert mean._version == var._version == 1


# ---- modules: weight, bias and running statistics

NAMES = ("weight", "bias", "running_mean", "running_var")


def modules(training=True, **options):
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(CHANNELS, **options).train(training)
    with torch.no_grad():
        for t in (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var):
            t.copy_(torch.rand(CHANNELS) + 0.5)
    return hbn.torch.convert(copy.deepcopy(theirs)), theirs


def put(module, name, tensor):
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=not (tensor.is_sparse or tensor.is_quantized))
    else:
        module._buffers[name] = tensor


def outcome(call):
    """What a call gives, or the class and the first line of what it raises."""
    try:
        return call()
    except Exception as e:
        return type(e), str(e).partition("\n")[0]


@pytest.mark.parametrize("records", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_module_with_a_negative_bit(name, training, records):
    ours, theirs = modules(training)
    put(ours, name, negative(getattr(ours, name).detach()))
    x = batch(SHAPE)
    if training and name.startswith("running"):
        before = copy.deepcopy(ours.state_dict())
        with pytest.raises(ValueError, match=f"{name} has PyTorch's negative bit"):
            ours(x)
        assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())
        return
    with torch.set_grad_enabled(records):
        assert_close(ours(x), theirs(x))
    if records:
        for model in (ours, theirs):
            model(x).square().sum().backward()
        assert_close(ours.weight.grad, theirs.weight.grad, terms=x.numel())


@pytest.mark.parametrize("records", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["x", *NAMES])
@pytest.mark.parametrize("kind", [*UNREADABLE, "zeros"])
def test_module_does_as_pytorchs_with(kind, name, training, records):
    make = UNREADABLE.get(kind) or (lambda t: torch._efficientzerotensor(t.shape))
    results = []
    for module in modules(training):
        x = batch(SHAPE)
        if name == "x":
            x = make(x)
        else:
            put(module, name, make(getattr(module, name).detach()))
        with torch.set_grad_enabled(records):
            result = outcome(lambda module=module, x=x: module(x))
        results.append((result, outcome(lambda module=module: module.num_batches_tracked.item())))
    (ours, our_count), (theirs, their_count) = results
    if isinstance(theirs, tuple):
        operators = ("hbn.batch_norm_forward", "aten.native_batch_norm")
        assert ours == (theirs[0], theirs[1].replace(operators[1], operators[0])) or ours == theirs
        return
    assert our_count == their_count
    if kind == "fake":
        assert ours.shape == theirs.shape
    else:
        plain = [t.a if isinstance(t, TwoTensor) else t.to_dense() if t.is_mkldnn else t for t in (ours, theirs)]
        assert type(ours) is type(theirs) and ours.layout == theirs.layout
        assert_close(plain[0].detach(), plain[1].detach())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["negative", "zeros", "wrapper", "subclass"])
def test_gradients_of_any_kind_flow_back(kind, training):
    make = {
        "negative": negative,
        "zeros": lambda t: torch._efficientzerotensor(t.shape),
        "wrapper": UNREADABLE["wrapper"],
        "subclass": lambda t: t.as_subclass(type("Subclass", (torch.Tensor,), {})),
    }[kind]
    results = []
    for module in modules(training):
        x = batch(SHAPE).requires_grad_()
        y = module(x)
        grads = torch.autograd.grad(y, [x, module.weight, module.bias], make(batch(SHAPE, seed=1)))
        results.append([g.a if isinstance(g, TwoTensor) else g for g in grads])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, terms=40)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["negative", "zeros"])
def test_double_backward_and_jvp_of_any_kind(kind, training):
    make = negative if kind == "negative" else lambda t: torch._efficientzerotensor(t.shape)
    results = []
    ours, theirs = modules(training)
    for module in (ours, theirs):
        x, dy = batch(SHAPE).requires_grad_(), batch(SHAPE, seed=1).requires_grad_()
        (dx,) = torch.autograd.grad(module(x), x, dy, create_graph=True)
        # In evaluation dx is no function of x.
        leaves = [x, dy, module.weight]
        if kind == "zeros" and module is not ours:
            # PyTorch's own raises, since it writes to its argument.
            result = [torch.zeros_like(leaf) for leaf in leaves]
        else:
            result = list(torch.autograd.grad(dx, leaves, make(batch(SHAPE, seed=2)), materialize_grads=True))
        with forward_ad.dual_level(), torch.no_grad():
            y = module(forward_ad.make_dual(x.detach(), make(batch(SHAPE, seed=3))))
            result.append(forward_ad.unpack_dual(y).tangent)
        results.append(result)
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, terms=400)


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("placement", [Replicate(), Shard(0), Shard(1)], ids=str)
def test_dtensors_are_pytorchs_own_affair(placement, mesh):
    results = []
    for module in modules():
        x = distribute_tensor(batch(SHAPE), mesh, [placement])
        mixed = outcome(lambda module=module, x=x: module(x))
        distribute_module(module, mesh)
        x.requires_grad_()
        y = module(x)
        y.sum().backward()
        plain = outcome(lambda module=module: module(batch(SHAPE)))
        results.append((mixed, plain, y.to_local(), x.grad.to_local(), module.running_mean.to_local()))
    ours, theirs = results
    assert ours[:2] == theirs[:2]
    for a, b in zip(ours[2:], theirs[2:], strict=True):
        assert torch.equal(a, b)
    with pytest.raises(BufferError, match="^x can't be lent: DTensor has a __torch_dispatch__"):
        hbn.batch_norm_stats(x.detach())


# ---- derivatives by running statistics, which there are none of

NO_DERIVATIVE = "not differentiable with respect to argument 'running_"


@pytest.mark.parametrize("x_requires_grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES[2:])
def test_running_statistics_that_require_grad_are_refused_as_by_pytorch(name, training, x_requires_grad):
    for module in modules(training):
        module._buffers[name].requires_grad_()
        before = copy.deepcopy(module.running_mean)
        with pytest.raises(RuntimeError, match=NO_DERIVATIVE):
            module.requires_grad_(x_requires_grad)(batch(SHAPE))
        assert torch.equal(module.running_mean, before)
    with torch.no_grad():
        ours, theirs = modules(training)
        assert_close(ours(batch(SHAPE)), theirs(batch(SHAPE)))


@pytest.mark.parametrize("name", NAMES[2:])
def test_gradients_by_running_statistics_are_refused_by_transforms_and_compilers(name):
    for module in modules(training=False):

        def loss(buffer, module=module, x=batch(SHAPE)):  # noqa: B008
            return torch.func.functional_call(module, {name: buffer}, (x,)).sum()

        with pytest.raises(RuntimeError, match=NO_DERIVATIVE):
            torch.func.grad(loss)(getattr(module, name).clone())
        with pytest.raises(RuntimeError, match=NO_DERIVATIVE):
            torch.func.vmap(torch.func.grad(loss))(getattr(module, name).expand(2, -1))
        with pytest.raises(RuntimeError, match=NO_DERIVATIVE):
            torch.compile(loss, backend="aot_eager")(getattr(module, name).clone().requires_grad_())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", NAMES[2:])
def test_tangents_of_running_statistics(name, affine):
    """PyTorch drops them. In evaluation they are right, in training there would be no place for the new ones."""
    x, tangent = batch(SHAPE, torch.float64), torch.rand(CHANNELS, dtype=torch.float64)
    module = hbn.torch.BatchNorm2d(CHANNELS, affine=affine, dtype=torch.float64).eval()

    def formula(mean, var):
        return (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + module.eps).sqrt()

    statistics = {n: getattr(module, n) for n in NAMES[2:]}
    tangents = [tangent if n == name else torch.zeros(CHANNELS, dtype=torch.float64) for n in statistics]
    _, expected = torch.func.jvp(formula, tuple(statistics.values()), tuple(tangents))

    def of_module(statistic):
        return torch.func.functional_call(module, {name: statistic}, (x,))

    _, transformed = torch.func.jvp(of_module, (statistics[name],), (tangent,))
    assert_close(transformed, expected)
    with forward_ad.dual_level():
        eager = of_module(forward_ad.make_dual(statistics[name], tangent))
        assert_close(forward_ad.unpack_dual(eager).tangent, expected)
        module.train()
        before = statistics[name].clone()
        with pytest.raises(RuntimeError, match="can't have tangents"):
            of_module(forward_ad.make_dual(statistics[name], tangent))
        assert torch.equal(statistics[name], before)


# ---- what autograd, profilers and tracers see


def test_what_training_writes_has_new_versions():
    module, _ = modules()
    before = [module.running_mean._version, module.running_var._version, module.num_batches_tracked._version]
    module(batch(SHAPE))
    with torch.no_grad():
        module(batch(SHAPE))
    after = [module.running_mean._version, module.running_var._version, module.num_batches_tracked._version]
    assert after == [version + 2 for version in before]
    module.eval()(batch(SHAPE))
    assert module.running_mean._version == after[0]


@pytest.mark.parametrize("name", NAMES[2:])
def test_running_statistics_saved_for_a_backward_and_written_are_noticed(name):
    module, _ = modules()
    loss = (torch.ones(CHANNELS, requires_grad=True) * getattr(module, name)).sum()
    module(batch(SHAPE))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("slices", [lambda t: t.split(CHANNELS), lambda t: [t[i * 3 : i * 3 + 3] for i in range(8)]])
def test_statistics_beside_parameters_in_one_tensor(slices):
    """Views share a version. PyTorch's batch normalization changes none."""
    results = []
    for of in (nn, hbn.torch):
        model = nn.Sequential(of.BatchNorm2d(CHANNELS), nn.ReLU(), of.BatchNorm2d(CHANNELS)).double()
        state = {k: v for k, v in model.state_dict().items() if not k.endswith("tracked")}
        flat = torch.cat(list(state.values())).requires_grad_()
        parameters, statistics = (dict(zip(state, slices(t), strict=True)) for t in (flat, flat.detach()))
        given_ = {k: (statistics if "running" in k else parameters)[k] for k in state}
        torch.func.functional_call(model, given_, (batch(SHAPE, torch.float64),)).sin().mean().backward()
        results += [flat.grad, flat.detach()]
    assert_close(results[2], results[0])
    assert_close(results[3], results[1])


def test_a_momentum_of_0_writes_nothing_that_autograd_must_know():
    ours, theirs = modules(training=False, momentum=0.0)
    gradients = []
    for module in (ours, theirs):
        x = batch(SHAPE).requires_grad_()
        y = module.eval()(x)
        module.train()(batch(SHAPE, seed=1))
        gradients += torch.autograd.grad(y.square().sum(), x)
    assert_close(*gradients, terms=40)


@pytest.mark.parametrize("name", ["x", "weight"])
def test_inference_tensors_are_refused_before_anything_is_written(name):
    module, _ = modules()
    x = batch(SHAPE)
    with torch.inference_mode():
        if name == "x":
            x = x.clone()
        else:
            module._parameters["weight"] = nn.Parameter(module.weight.clone())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="inference"):
        module(x)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_versions_under_inference_mode():
    module, _ = modules()
    with torch.inference_mode():
        module(batch(SHAPE))
        hbn.torch.BatchNorm2d(CHANNELS)(batch(SHAPE))


@pytest.mark.parametrize("records", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False])
def test_profilers_name_the_layer(training, records):
    module, _ = modules(training)
    with profile(activities=[ProfilerActivity.CPU]) as profiled, torch.set_grad_enabled(records):
        module(batch(SHAPE))
    assert [e.count for e in profiled.key_averages() if e.key == "hbn::batch_norm"] == [1]


@pytest.mark.parametrize("records", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_sees_operators(mode, training, records):
    module, theirs = modules(training)

    def step(x):
        with torch.set_grad_enabled(records):
            y = module(x)
        return torch.autograd.grad(y.square().sum(), x)[0] if records else y

    x = batch(SHAPE).requires_grad_(records)
    traced = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    operators = [str(node.target) for node in traced.graph.nodes if str(node.target).startswith("hbn.")]
    wanted = ["hbn.batch_norm_forward.default", "hbn.batch_norm_backward.default"]
    assert operators == wanted[: 1 + records]
    y = theirs(x)
    expected = torch.autograd.grad(y.square().sum(), x)[0] if records else y
    assert_close(traced(x), expected.detach(), terms=40)


@pytest.mark.parametrize("records", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False])
def test_jit_trace_sees_operators(training, records):
    module, theirs = modules(training)
    with torch.set_grad_enabled(records):
        traced = torch.jit.trace(module, batch(SHAPE), check_trace=False)
        theirs(batch(SHAPE))
    assert "hbn::batch_norm_forward" in str(traced.graph)
    x = batch((7, 3, 4, 4), seed=1)
    assert_close(traced(x).detach(), theirs(x).detach())
    assert_close(traced.running_mean, theirs.running_mean)
    assert traced.num_batches_tracked == theirs.num_batches_tracked


# ---- PyTorch's small print


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    "count",
    [
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.tensor(5, dtype=torch.int32),
        torch.tensor(255, dtype=torch.uint8),
        torch.tensor(0.0),
        torch.zeros(2, dtype=torch.int64),
        torch.tensor(True),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)
def test_counts_of_other_shapes_and_dtypes(count, momentum):
    ours, theirs = modules(momentum=momentum)
    for module in (ours, theirs):
        module.num_batches_tracked = count.clone()
    before = copy.deepcopy(ours.state_dict())
    for seed in range(2):
        expected = outcome(lambda seed=seed: theirs(batch(SHAPE, seed=seed)).detach())
        actual = outcome(lambda seed=seed: ours(batch(SHAPE, seed=seed)).detach())
        if isinstance(expected, tuple):
            # Theirs counts before it fails.
            assert isinstance(actual, tuple) and issubclass(actual[0], (TypeError, ValueError, ZeroDivisionError))
            assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())
            return
        assert_close(actual, expected)
        assert_close(ours.running_mean, theirs.running_mean)
        assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)
        assert ours.num_batches_tracked.dtype == theirs.num_batches_tracked.dtype


@pytest.mark.parametrize("shape", [(1, -1, 1, 1), (-1, 1), (1, -1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_of_several_dimensions_have_gradients_of_theirs(name, shape, training, channels):
    theirs = nn.BatchNorm2d(channels).train(training)
    ours = hbn.torch.convert(copy.deepcopy(theirs))
    ours_compiled = copy.deepcopy(ours)
    x = batch((4, channels, 2, 5))
    y = theirs(x)
    y.square().sum().backward()
    for module, run in (
        (ours, lambda: ours(x)),
        (ours_compiled, lambda: torch.compile(ours_compiled, backend="aot_eager")(x)),
    ):
        put(module, name, getattr(module, name).detach().reshape(shape))
        z = run()
        z.square().sum().backward()
        assert_close(z.detach(), y.detach())
        for each in ("weight", "bias"):
            gradient = getattr(module, each).grad
            assert gradient.shape == getattr(module, each).shape
            assert_close(gradient.flatten(), getattr(theirs, each).grad, terms=40)
        assert_close(module.running_mean.flatten(), theirs.running_mean)


@st.composite
def strided(draw):
    """A tensor of 2 to 5 dimensions, many of them of size 1, and strides that dense ones may have."""
    ndim = draw(st.integers(2, 5))
    sizes = draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=ndim, max_size=ndim))
    order = draw(st.permutations(range(ndim)))
    kind = draw(st.sampled_from(["dense", "any stride of size 1", "sliced", "expanded"]))
    strides, step = [0] * ndim, 1
    for d in order:
        strides[d] = step
        step *= sizes[d] * (2 if kind == "sliced" else 1)
    for d in range(ndim):
        if sizes[d] == 1 and kind == "any stride of size 1":
            strides[d] = draw(st.integers(0, 9))
    if kind == "expanded":
        strides[draw(st.integers(0, ndim - 1))] = 0
    return torch.randn(10000).as_strided(sizes, strides)


def test_compilers_are_told_the_strides_that_there_are():
    for shape in itertools.product((1, 2), (1, 3), (1, 2), (1, 4)):
        for formats in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
            x, dy = (torch.randn(shape).to(memory_format=f) for f in formats)
            args = (dy, x, None, torch.ones(2, shape[1], dtype=torch.float64), None, None, True, 1e-5)
            real = torch.ops.hbn.batch_norm_backward(*args, [True] * 3, torch.float32)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                faked = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
                fake = torch.ops.hbn.batch_norm_backward(*faked, [True] * 3, torch.float32)
            assert [t.stride() for t in real] == [t.stride() for t in fake]


@given(x=strided(), training=st.booleans(), data=st.data())
@bounded
def test_results_have_pytorchs_strides(x, training, data):
    order = data.draw(st.permutations(range(x.dim())))
    assert_pytorchs_strides(x, order, training and x.numel() > x.shape[1])


def test_strides_of_what_is_channels_last_but_for_a_width_of_1():
    assert_pytorchs_strides(torch.randn(8).as_strided((1, 2, 2, 1), (4, 1, 2, 0)), [0, 1, 2, 3], training=False)


@pytest.mark.parametrize("training", [True, False])
def test_strides_of_crops_of_channels_last(training):
    x = torch.randn(2, 3, 4, 5, 6)
    for crop in (slice(1, None), slice(None, None, 2)):
        assert_pytorchs_strides(x.to(memory_format=torch.channels_last_3d)[..., crop], range(5), training)
        assert_pytorchs_strides(x[0].to(memory_format=torch.channels_last)[..., crop], range(4), training)
        assert_pytorchs_strides(x[..., crop], range(5), training)


def assert_pytorchs_strides(x, order, training):
    inverse = [order.index(d) for d in range(x.dim())]
    gradients = [torch.ones(()).expand(x.shape), torch.ones([x.shape[d] for d in order]).permute(inverse)]
    name = f"BatchNorm{max(x.dim() - 2, 1)}d"
    strides = []
    for namespace in (nn, hbn.torch):
        module = getattr(namespace, name)(x.shape[1]).train(training)
        watched = x.detach().requires_grad_()
        y = module(watched)
        of_gradients = [torch.autograd.grad(y, watched, g, retain_graph=True)[0].stride() for g in gradients]
        with torch.no_grad():
            strides.append([y.stride(), module(watched).stride(), *of_gradients])
    assert strides[0] == strides[1]
