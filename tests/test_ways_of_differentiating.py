"""Gradients where a program does not simply run: exported, traced, differentiated forwards."""

import shutil
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as D
from torch.autograd import forward_ad

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    use_backend,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

PASS, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot
each_length = pytest.mark.parametrize("columns", [8, 700])


def distribution(x: Tensor) -> OneHotCategorical:
    return OneHotCategorical(x, grad_method=PASS, validate_args=False)


def certain(x: Tensor) -> OneHotCategorical:
    """Draws of it are known: always category 2."""
    return distribution(x.masked_fill(torch.arange(x.shape[-1]) != 2, -torch.inf))


def weighted(one_hot: Tensor) -> Tensor:
    # Weights that grow: the PassThrough gradient of their sum does not depend on the draw.
    return one_hot * torch.arange(one_hot.shape[-1])


MEMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "rsample": lambda x: weighted(distribution(x).rsample()),
    "entropy": lambda x: distribution(x).entropy(),
    "log_prob": lambda x: distribution(x).log_prob(torch.eye(x.shape[-1])[: x.shape[0]]),
    "log_prob_index": lambda x: distribution(x).log_prob_index(torch.arange(x.shape[0])),
    "probs": lambda x: weighted(distribution(x).probs),
    "logits": lambda x: distribution(x).logits,
    "mean": lambda x: weighted(distribution(x).mean),
    "variance": lambda x: distribution(x).variance,
    "mode": lambda x: weighted(distribution(x).mode),
    "rmode": lambda x: weighted(distribution(x).rmode),
    "enumerate_support": lambda x: distribution(x).log_prob(distribution(x).enumerate_support()),
    "expand": lambda x: distribution(x).expand((2, x.shape[0])).entropy(),
    "kl": lambda x: D.kl_divergence(distribution(x), distribution(x.flip(-1))),
    "of probs": lambda x: OneHotCategorical(probs=x.exp(), unimix=0.1, validate_args=False).entropy(),
    "masked": lambda x: MaskedOneHotCategorical(x, mask=x.detach() < 1, validate_args=False).entropy(),
    "sample": lambda x: weighted(certain(x).sample((2,))),
    "sample_index": lambda x: certain(x).sample_index((2,)),
    "sample_and_log_prob": lambda x: torch.stack([weighted(y).sum() for y in certain(x).sample_and_log_prob()]),
    "rsample_and_log_prob": lambda x: certain(x).rsample_and_log_prob()[1],
    "relaxed log_prob": lambda x: relaxed(x).log_prob(torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).softmax(-1)),
    "relaxed log_prob with a mask": lambda x: relaxed(x, torch.arange(x.shape[-1]) != 2).log_prob(half(x)),
    "log_prob of log y": lambda x: relaxed(x, torch.arange(x.shape[-1]) != 2).base_dist.log_prob(half(x).log()),
}
# What the eager program draws is nothing that another has to draw.
DRAWN = list(MEMBERS).index("rsample")


def relaxed(x: Tensor, mask: Tensor | None = None) -> RelaxedOneHotCategorical:
    return RelaxedOneHotCategorical(torch.tensor(0.7), logits=x, mask=mask, validate_args=False)


def half(x: Tensor) -> Tensor:
    """A point of the simplex, 0 at category 2."""
    at = torch.arange(x.shape[-1])
    return torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype).masked_fill(at == 2, -torch.inf).softmax(-1)


def all_members(x: Tensor) -> Tensor:
    """One number of each member, [len(MEMBERS)]."""
    return torch.stack([member(x).sum().to(x.dtype) for member in MEMBERS.values()])


class AllMembers(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return all_members(x)


class Relaxed(torch.nn.Module):
    """Draws of one row are what shows that noise is drawn anew and the gradient has its law."""

    def forward(self, x: Tensor, temperature: Tensor) -> Tensor:
        return OneHotCategorical(x, grad_method=RELAXED, temperature=temperature, validate_args=False).rsample()


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(function, x)  # pyright: ignore[reportReturnType]


def value_and_gradients(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """By one forward, which is compiled once."""
    x = x.clone().requires_grad_()
    value = function(x)
    return value.detach(), torch.stack([torch.autograd.grad(one, x, retain_graph=True)[0] for one in value])


# Compiled, exported, traced -------------------------------------------------------------------------------------------


def saved_and_loaded(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    file = BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


HAS_COMPILER = shutil.which("g++") is not None or shutil.which("clang++") is not None
WAYS: dict[str, Callable[[torch.nn.Module, tuple[Tensor, ...]], Any]] = {
    "compile": lambda module, _: torch.compile(module, fullgraph=True),
    "compile, aot_eager": lambda module, _: torch.compile(module, fullgraph=True, backend="aot_eager"),
    "export, strict": lambda module, args: torch.export.export(module, args, strict=True).module(),
    "export, not strict": lambda module, args: torch.export.export(module, args, strict=False).module(),
    "export, loaded": lambda module, args: saved_and_loaded(torch.export.export(module, args)).module(),
    "jit.trace": lambda module, args: torch.jit.trace(module, args, check_trace=False),
}


# Short rows by Inductor, which is slow, long ones by what comes before it.
@pytest.mark.parametrize(
    ("way", "columns"),
    [
        pytest.param("compile", 8, marks=pytest.mark.skipif(not HAS_COMPILER, reason="needs a C++ compiler")),
        ("compile, aot_eager", 700),
        *((way, columns) for way in list(WAYS)[2:] for columns in (8, 700)),
    ],
)
def test_recorded_program_has_the_values_and_gradients_of_the_eager_one(way, columns):
    torch._dynamo.reset()
    x, other = torch.randn(2, 3, columns)
    program = WAYS[way](AllMembers(), (x,))
    fixed = torch.arange(len(MEMBERS)) != DRAWN
    value, gradients = value_and_gradients(program, other)
    expected, expected_gradients = value_and_gradients(all_members, other)
    torch.testing.assert_close(value[fixed], expected[fixed], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def moments(hard: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Means of a RelaxedOneHot gradient in the logits [4] and the temperature, and of their squares, [10]; exact 0 and
    1 come first."""
    assert ((hard == 0) | (hard == 1)).all()
    assert (hard.sum(-1) == 1).all()
    weight = torch.arange(hard.shape[-1], dtype=hard.dtype)
    gx, gt = torch.autograd.grad((hard * weight).sum(), (x, t))
    each = torch.cat([gx, gt.unsqueeze(-1)], -1)
    return torch.cat([each.mean(0), each.square().mean(0)])


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_recorded_relaxed_gradient_is_that_of_the_eager_program(way):
    x = torch.linspace(-1, 1, 4).expand(50_000, 4).clone().requires_grad_()
    t = torch.full((len(x),), 0.7, requires_grad=True)
    torch._dynamo.reset()
    module = Relaxed()
    recorded = WAYS[way](module, (x, t))
    expected = moments(module(x, t), x, t)
    torch.testing.assert_close(moments(recorded(x, t), x, t), expected, rtol=0.05, atol=0.02)


# Traced ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [8, 4096])
def test_traced_draws_are_new_and_inside_for_other_inputs(columns):
    def draw(x: Tensor) -> Tensor:
        return OneHotCategorical(x, validate_args=False).sample_index((50,))

    x = torch.randn(3, columns)
    traced = torch.jit.trace(draw, x, check_trace=False)
    assert (traced(x) != traced(x)).any()
    for other in (100 * x, x - 1000, torch.full_like(x, -torch.inf).index_fill(1, torch.tensor([5]), 300.0)):
        index = traced(other)
        assert ((index >= 0) & (index < columns)).all()
    assert (index == 5).all()
    assert (traced(torch.full_like(x, torch.nan)) == -1).all()


@pytest.mark.parametrize("member", ["entropy", "mean", "enumerate_support", "variance", "log_prob"])
@pytest.mark.parametrize("given", ["logits", "probs"])
def test_two_traces_are_one_graph_with_the_values_of_the_eager_program(given, member):
    def value(x: Tensor) -> Tensor:
        dist = OneHotCategorical(**{given: x if given == "logits" else x.exp()}, validate_args=False)
        if member == "log_prob":
            return dist.log_prob(torch.eye(8)[:3])
        attribute: Any = getattr(dist, member)
        result: Any = attribute() if callable(attribute) else attribute
        return result

    x, other = torch.randn(2, 3, 8)
    # Torch's own check traces once more, without gradients.
    first, second = (torch.jit.trace(value, param.requires_grad_()) for param in (x, 30 * other))
    assert str(first.graph) == str(second.graph)
    torch.testing.assert_close(first(other), value(other))


# Forwards -------------------------------------------------------------------------------------------------------------


@pytest.mark.interpreted(columns=[8], requires_grad=[False])
@each_length
@pytest.mark.parametrize("requires_grad", [False, True])
def test_tangents_are_the_products_with_the_jacobian(columns, requires_grad, backend):
    x, v = torch.randn(2, 3, columns, dtype=torch.float64)
    with use_backend("eager"):
        expected = jacobian(all_members, x).flatten(1) @ v.flatten()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(all_members(forward_ad.make_dual(x.requires_grad_(requires_grad), v))).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-6)
    found = torch.func.jvp(all_members, (x.detach(),), (v,))[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_jacfwd_jacrev_and_hessian():
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = jacobian(all_members, x)
    torch.testing.assert_close(torch.func.jacfwd(all_members, randomness="same")(x), expected)
    torch.testing.assert_close(torch.func.jacrev(all_members)(x), expected)

    def entropy(x: Tensor) -> Tensor:
        return MEMBERS["entropy"](x).sum()

    second = torch.autograd.functional.hessian(lambda x: D.Categorical(logits=x).entropy().sum(), x)
    torch.testing.assert_close(torch.func.hessian(entropy)(x), second)


@pytest.mark.parametrize("kind", ["RelaxedOneHot", "RelaxedOneHotCategorical", "ExpRelaxedOneHotCategorical"])
def test_tangents_of_relaxed_draws(kind):
    """A draw given its seed is a function; the tangent and the gradient of that function agree."""
    x, v = torch.randn(2, 3, 8, dtype=torch.float64)
    t, tv = torch.full((3,), 0.7, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def draw(x: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(5)
        if kind == "RelaxedOneHot":
            return Relaxed()(x, t)
        dist = RelaxedOneHotCategorical(t, logits=x, validate_args=False)
        return (dist if kind == "RelaxedOneHotCategorical" else dist.base_dist).rsample()

    value, tangent, *_ = torch.func.jvp(draw, (x, t), (v, tv))
    weight = torch.randn_like(value)
    with forward_ad.dual_level():  # which chooses the same noise
        x, t = x.requires_grad_(), t.requires_grad_()
        gx, gt = torch.autograd.grad((draw(x, t) * weight).sum(), (x, t))
    torch.testing.assert_close((tangent * weight).sum(), (gx * v).sum() + (gt * tv).sum())
    assert tangent.abs().max() > 1e-3
