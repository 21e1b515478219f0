"""Derivatives of hbn.torch's modules, of any order and mode, against those of the formula in PyTorch's own operations.

PyTorch's module is no oracle here: its own derivatives are wrong beyond second order in training.
"""

import itertools

import pytest
import torch
from torch.autograd import forward_ad

import hbn.torch

SHAPES = {"1d": (5, 3), "2d": (4, 3, 2, 3), "3d": (2, 3, 2, 2, 2)}
MODULES = {"1d": hbn.torch.BatchNorm1d, "2d": hbn.torch.BatchNorm2d, "3d": hbn.torch.BatchNorm3d}
ARGUMENTS = ["x", "weight", "bias"]
# What is applied, innermost first.
NESTS = [nest for depth in (1, 2, 3) for nest in itertools.product(["reverse", "forward"], repeat=depth)]
IN_BOTH_MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


class Problem:
    """A module, the formula that it stands for, and arguments of both."""

    def __init__(self, training, kind="2d", dtype=torch.float64, track_running_stats=None):
        rng = torch.Generator().manual_seed(7)

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

        track = not training if track_running_stats is None else track_running_stats
        self.module = MODULES[kind](3, track_running_stats=track).to(dtype).train(training)
        if track:
            self.module.running_mean.copy_(normal(3))
            self.module.running_var.copy_(normal(3).square() + 0.5)
        self.training = training
        self.given = {"x": normal(*SHAPES[kind]), "weight": normal(3), "bias": normal(3)}
        self.tangents = {name: normal(*value.shape) for name, value in self.given.items()}
        self.factor = normal(*SHAPES[kind])

    def ours(self, given):
        parameters = {name: given[name] for name in ("weight", "bias")}
        return torch.func.functional_call(self.module, parameters, (given["x"],))

    def formula(self, given):
        x = given["x"]
        over = [d for d in range(x.dim()) if d != 1]

        def of_channels(v):
            return v.reshape(1, -1, *[1] * (x.dim() - 2))

        if self.training:
            mean, variance = x.mean(over), x.var(over, correction=0)
        else:
            mean, variance = self.module.running_mean, self.module.running_var
        normalized = (x - of_channels(mean)) / torch.sqrt(of_channels(variance) + self.module.eps)
        return normalized * of_channels(given["weight"]) + of_channels(given["bias"])

    def function(self, batch_norm, argument):
        """A smooth function of one argument, with derivatives of every order."""
        return lambda z: torch.sin(batch_norm({**self.given, argument: z})) * self.factor


def scalar(f):
    return lambda z: (f(z) + 0.5 * f(z).square()).sum()


class Transforms:
    """torch.func's."""

    @staticmethod
    def reverse(f, _):
        return torch.func.grad(scalar(f))

    @staticmethod
    def forward(f, tangent):
        return lambda z: torch.func.jvp(f, (z,), (tangent * (1 + z),))[1]


class Eager:
    """torch.autograd's."""

    @staticmethod
    def reverse(f, _):
        def gradient(z):
            z = z if z.requires_grad else z.detach().requires_grad_()
            return torch.autograd.grad(scalar(f)(z), z, create_graph=True)[0]

        return gradient

    @staticmethod
    def forward(f, tangent):
        def derivative(z):
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(f(forward_ad.make_dual(z, tangent * (1 + z)))).tangent

        return derivative


def nested(interface, nest, f, tangent):
    for mode in nest:
        f = getattr(interface, mode)(f, tangent)
    return f


@IN_BOTH_MODES
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("nest", NESTS, ids="-".join)
def test_nested_transforms(nest, argument, training):
    p = Problem(training)
    ours, expected = (
        nested(Transforms, nest, p.function(b, argument), p.tangents[argument])(p.given[argument])
        for b in (p.ours, p.formula)
    )
    torch.testing.assert_close(ours, expected)


@IN_BOTH_MODES
@pytest.mark.parametrize("argument", ARGUMENTS)
# PyTorch has one level of dual numbers.
@pytest.mark.parametrize("nest", [n for n in NESTS if n.count("forward") < 2], ids="-".join)
def test_nested_eagerly(nest, argument, training):
    p = Problem(training)
    results = []
    for batch_norm in (p.ours, p.formula):
        z = p.given[argument].clone().requires_grad_()
        results.append(nested(Eager, nest, p.function(batch_norm, argument), p.tangents[argument])(z))
    torch.testing.assert_close(*results)


@IN_BOTH_MODES
@pytest.mark.parametrize("nest", [n for n in NESTS if n.count("forward") < 2], ids="-".join)
def test_last_by_every_argument_at_once(nest, training):
    """Nested derivatives by x, and then the gradient of that by all: mixed derivatives."""
    p = Problem(training)
    results = []
    for batch_norm in (p.ours, p.formula):
        given = {name: value.clone().requires_grad_() for name, value in p.given.items()}
        q = Problem(training)
        q.module, q.given = p.module, given
        inner = nested(Eager, nest, q.function(batch_norm, "x"), p.tangents["x"])(given["x"])
        results.append(torch.autograd.grad(inner.square().sum(), list(given.values())))
    torch.testing.assert_close(*results)


@IN_BOTH_MODES
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("nest", [("forward", "reverse"), ("reverse", "reverse"), ("reverse", "forward")], ids="-".join)
def test_other_ranks_and_float32(nest, kind, training):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        p = Problem(training, kind, dtype)
        ours, expected = (
            nested(Transforms, nest, p.function(b, "x"), p.tangents["x"])(p.given["x"]) for b in (p.ours, p.formula)
        )
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def stacked(z):
    return torch.stack([z, 2 * z, z.square()])


WHOLE = {
    "jacrev": lambda f, z: torch.func.jacrev(f)(z),
    "jacfwd": lambda f, z: torch.func.jacfwd(f)(z),
    "jacfwd of jacrev": lambda f, z: torch.func.jacfwd(torch.func.jacrev(scalar(f)))(z),
    "jacrev of jacfwd": lambda f, z: torch.func.jacrev(torch.func.jacfwd(scalar(f)))(z),
    "hessian": lambda f, z: torch.func.hessian(scalar(f))(z),
    "vmap": lambda f, z: torch.func.vmap(f)(stacked(z)),
    "per-sample gradients": lambda f, z: torch.func.vmap(torch.func.grad(scalar(f)))(stacked(z)),
    "vjp": lambda f, z: torch.func.vjp(f, z)[1](f(z).detach())[0],
    "linearize": lambda f, z: torch.func.linearize(f, z)[1](z.cos()),
    "functionalize": lambda f, z: torch.func.functionalize(f)(z),
    "functionalize of grad": lambda f, z: torch.func.functionalize(torch.func.grad(scalar(f)))(z),
    "autograd.functional.hessian": lambda f, z: torch.autograd.functional.hessian(scalar(f), z),
    "the same, vectorized": lambda f, z: torch.autograd.functional.hessian(scalar(f), z, vectorize=True),
    "jacobian, forward mode": lambda f, z: torch.autograd.functional.jacobian(
        f, z, vectorize=True, strategy="forward-mode"
    ),
    "hvp": lambda f, z: torch.autograd.functional.hvp(scalar(f), z, z.cos())[1],
}


@IN_BOTH_MODES
@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("what", WHOLE)
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_what_pytorch_makes_of_derivatives(what, argument, training):
    p = Problem(training)
    ours, expected = (WHOLE[what](p.function(b, argument), p.given[argument].clone()) for b in (p.ours, p.formula))
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(expected))


@IN_BOTH_MODES
@pytest.mark.parametrize("order", [1, 2, 3])
def test_batched_gradients(order, training):
    p = Problem(training)
    results = []
    for batch_norm in (p.ours, p.formula):
        given = {name: value.clone().requires_grad_() for name, value in p.given.items()}
        y = torch.sin(batch_norm(given)) * p.factor
        for _ in range(order - 1):
            (y,) = torch.autograd.grad(y.square().sum(), given["x"], create_graph=True)
        directions = stacked(p.tangents["x"])
        results.append(
            torch.autograd.grad(y, list(given.values()), directions, is_grads_batched=True, allow_unused=True)
        )
    torch.testing.assert_close(*results)


@IN_BOTH_MODES
def test_a_grad_output_that_is_x(training):
    """One tensor in two roles: its gradient is the sum of both."""
    p = Problem(training)
    results = []
    for batch_norm in (p.ours, p.formula):
        x = p.given["x"].clone().requires_grad_()
        y = batch_norm({**p.given, "x": x})
        (first,) = torch.autograd.grad(y, x, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        results.append((first, second, torch.autograd.grad(second.square().sum(), x)[0]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("nest", NESTS, ids="-".join)
def test_running_statistics_are_written_once_a_forward(nest):
    """Whatever computes the derivative, and with no derivative of their own. A count would be PyTorch's error."""
    p = Problem(True, track_running_stats=True)
    plain = Problem(True, track_running_stats=True)
    p.module.num_batches_tracked = plain.module.num_batches_tracked = None
    calls = 0

    def counted(given):
        nonlocal calls
        calls += 1
        return p.ours(given)

    nested(Transforms, nest, p.function(counted, "x"), p.tangents["x"])(p.given["x"])
    for _ in range(calls):
        plain.ours(plain.given)
    assert calls == 2 ** nest.count("reverse")
    for name in ("running_mean", "running_var"):
        ours = getattr(p.module, name)
        assert not ours.requires_grad
        torch.testing.assert_close(ours, getattr(plain.module, name))


def test_running_statistics_of_dual_numbers_that_require_grad():
    p, plain = Problem(True, track_running_stats=True), Problem(True, track_running_stats=True)
    p.module.momentum = plain.module.momentum = None  # 1 / num_batches_tracked
    for _ in range(2):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(p.given["x"].clone().requires_grad_(), p.tangents["x"])
            (gradient,) = torch.autograd.grad(p.module(x).square().sum(), x)
            assert forward_ad.unpack_dual(gradient).tangent is not None
        plain.module(p.given["x"])
    for name, ours in p.module.named_buffers():
        assert not ours.requires_grad
        torch.testing.assert_close(ours, plain.module.get_buffer(name))


def test_vmap_can_not_write_one_set_of_running_statistics():
    p = Problem(True, track_running_stats=True)
    p.module.num_batches_tracked = None
    before = p.module.running_mean.clone()
    with pytest.raises(RuntimeError, match="running statistics"):
        torch.func.vmap(lambda x: p.ours({**p.given, "x": x}))(stacked(p.given["x"]))
    assert torch.equal(p.module.running_mean, before)


def test_operators_without_derivatives_say_so():
    p = Problem(False)
    x = p.given["x"].clone().requires_grad_()
    running = (p.module.running_mean, p.module.running_var, False, 1e-5)
    y = torch.ops.hbn.batch_norm_jvp(p.tangents["x"], x, None, None, None, None, *running)
    z, *_ = torch.ops.hbn.batch_norm_double_backward(p.tangents["x"], None, None, p.factor, x, None, None, *running)
    for result in (y, z):
        with pytest.raises(NotImplementedError, match="have no derivatives"):
            result.sum().backward()


def test_reported_third_derivative():
    module = hbn.torch.BatchNorm1d(2).double().eval()
    x = torch.tensor([[0.3, -0.4], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    (a,) = torch.autograd.grad(torch.sin(module(x)).sum(), x, create_graph=True)
    (b,) = torch.autograd.grad(a.square().sum(), x, create_graph=True)
    (c,) = torch.autograd.grad(b.square().sum(), x)
    # y = s * x: a = s cos(y), b = -s^3 sin(2y), c = -2 b s^4 2 cos(2y).
    s = (1 + module.eps) ** -0.5
    y = s * x.detach()
    torch.testing.assert_close(c, 4 * s**7 * torch.sin(2 * y) * torch.cos(2 * y))
