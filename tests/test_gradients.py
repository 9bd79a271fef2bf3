"""Gradients: of densities against float64 autograd of torch.distributions, of draws against their definitions."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as D
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, ReparamGradientStrategy, use_backend
from onehot_triton.compute import cpu

COLUMNS = 6
PASS, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot

pytestmark = pytest.mark.usefixtures("one_thread", "small")

each_batch = pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
each_kind = pytest.mark.parametrize("kind", ["logits", "probs"])
each_unimix = pytest.mark.parametrize("unimix", [0.0, 0.2], ids="unimix {}".format)
each_method = pytest.mark.parametrize("method", [PASS, RELAXED], ids=str)
each_draws = pytest.mark.parametrize("draws", [(), (4,), (2, 2)], ids="draws {}".format)


def parameter(kind: str, batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.randn(*batch, COLUMNS, dtype=torch.float64)
    return (x if kind == "logits" else x.exp()).to(dtype)


def probabilities(kind: str, param: Tensor, unimix: float) -> Tensor:
    """The definition: (1 - e) softmax(x) + e / V, or of weights over their sum."""
    p = torch.softmax(param, -1) if kind == "logits" else param / param.sum(-1, keepdim=True)
    return (1 - unimix) * p + unimix / param.shape[-1]


def leaves(param: Tensor) -> tuple[Tensor, Tensor]:
    """Two leaves with the same numbers: in their own dtype, and in float64."""
    return param.clone().requires_grad_(), param.double().requires_grad_()


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def assert_gradient_accurate(found: Tensor, oracle: Tensor) -> None:
    """Computed in float32 at least, rounded once."""
    compute = torch.finfo(torch.float64 if found.dtype == torch.float64 else torch.float32)
    result = torch.finfo(found.dtype)
    scale = max(1.0, oracle.abs().max().item())
    error = (found.double() - oracle).abs()
    assert found.shape == oracle.shape
    assert (error <= 32 * compute.eps * scale + result.eps * oracle.abs() + result.smallest_normal).all(), error.max()


# Densities ------------------------------------------------------------------------------------------------------------

DENSITIES: dict[str, Callable[[D.Distribution, D.Distribution, Tensor], Tensor]] = {
    "log_prob": lambda p, q, value: p.log_prob(value),
    "entropy": lambda p, q, value: p.entropy(),
    "kl": lambda p, q, value: D.kl_divergence(p, q),
    "kl reversed": lambda p, q, value: D.kl_divergence(q, p),
    "logits": lambda p, q, value: (p.logits * value).sum(-1),
    "probs": lambda p, q, value: (p.probs * value).sum(-1),
    "mean": lambda p, q, value: (p.mean * value).sum(-1),
    "variance": lambda p, q, value: (p.variance * value).sum(-1),
}


@each_unimix
@each_kind
@each_dtype
@each_batch
@pytest.mark.parametrize("density", DENSITIES)
def test_density_gradient(density, batch, dtype, kind, unimix):
    param, other = parameter(kind, batch, dtype), parameter(kind, batch, dtype)
    value = F.one_hot(torch.randint(COLUMNS, batch), COLUMNS)
    weight = torch.randn(batch).to(dtype)
    ours, oracle = leaves(param)
    p, q = (OneHotCategorical(**{kind: t}, unimix=unimix) for t in (ours, other))
    (DENSITIES[density](p, q, value) * weight).sum().backward()
    p, q = (D.OneHotCategorical(probs=probabilities(kind, t, unimix)) for t in (oracle, other.double()))
    (DENSITIES[density](p, q, value.double()) * weight.double()).sum().backward()
    # Between a weight and its logits lies a logarithm, rounded to the dtype that is computed in.
    assert gradient(ours).dtype == dtype
    assert_gradient_accurate(gradient(ours), gradient(oracle))


@each_dtype
@pytest.mark.parametrize("columns", [513, 2000])
def test_gradients_of_long_rows(columns, dtype):
    """First and second derivatives, a category switched off among them."""
    param = (3 * torch.randn(2, columns, dtype=torch.float64)).to(dtype)
    param[:, 7] = -math.inf
    index = torch.tensor([0, columns - 1])
    weight, direction = torch.randn(2, 2, columns).to(dtype)
    found = []
    for leaf, oracle in zip(leaves(param), (False, True), strict=True):
        if oracle:
            log_p = torch.log_softmax(leaf, -1)
            p = log_p.exp()
            entropy, log_prob = -(p * log_p.nan_to_num(neginf=0.0)).sum(-1), log_p[[0, 1], index]
        else:
            dist = OneHotCategorical(leaf, grad_method=PASS)
            p, log_prob, entropy = dist.rsample(), dist.log_prob_index(index), dist.entropy()
        for loss in (entropy.sum(), log_prob.sum(), (p * weight.to(p.dtype)).sum()):
            (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
            (second,) = torch.autograd.grad((first * direction.to(leaf.dtype)).sum(), leaf, retain_graph=True)
            found.append((first, second))
    for (first, second), (expected_first, expected_second) in zip(found[:3], found[3:], strict=True):
        assert_gradient_accurate(first, expected_first)
        tolerance = 40 * torch.finfo(dtype).eps
        torch.testing.assert_close(second.double(), expected_second, rtol=tolerance, atol=tolerance)


@each_kind
@pytest.mark.parametrize("members", ["sample_and_log_prob", "rsample_and_log_prob"])
def test_gradient_of_the_log_prob_that_comes_with_a_draw(members, kind, backend):
    param = parameter(kind, (3,), torch.float32)
    ours, oracle = leaves(param)
    drawn, log_prob = getattr(OneHotCategorical(**{kind: ours}), members)((2,))
    weight = torch.randn(2, 3)
    (log_prob * weight).sum().backward()
    torch_log_prob = D.OneHotCategorical(
        **{kind: oracle / oracle.sum(-1, keepdim=True)} if kind == "probs" else {kind: oracle}
    ).log_prob(drawn.double())
    (torch_log_prob * weight.double()).sum().backward()
    assert_gradient_accurate(gradient(ours), gradient(oracle))


@pytest.mark.parametrize("lead", [(5, 2, 3), (5, 1, 3), (3,), (), (2, 1)], ids=str)
@pytest.mark.parametrize("by_index", [True, False], ids=["log_prob_index", "log_prob"])
def test_log_prob_gradient_of_broadcast_values(lead, by_index):
    ours, oracle = leaves(parameter("logits", (2, 3), torch.float32))
    index = torch.randint(COLUMNS, lead)
    value = F.one_hot(index, COLUMNS)
    dist = OneHotCategorical(ours)
    found = dist.log_prob_index(index) if by_index else dist.log_prob(value)
    weight = torch.randn(found.shape)
    (found * weight).sum().backward()
    (D.OneHotCategorical(logits=oracle).log_prob(value.double()) * weight.double()).sum().backward()
    assert_gradient_accurate(gradient(ours), gradient(oracle))


def test_log_prob_has_no_gradient_in_the_value():
    value = F.one_hot(torch.tensor([1]), COLUMNS).float().requires_grad_()
    log_prob = OneHotCategorical(torch.randn(1, COLUMNS, requires_grad=True), validate_args=False).log_prob(value)
    assert torch.autograd.grad(log_prob.sum(), value, allow_unused=True) == (None,)


CHECKED: dict[str, Callable[[OneHotCategorical], Tensor]] = {
    "log_prob": lambda d: d.log_prob(F.one_hot(torch.tensor([[0, 1], [3, 0]]), d.num_samples)),
    "log_prob_index": lambda d: d.log_prob_index(torch.tensor([[0, 1], [3, 0]])),
    "entropy": lambda d: d.entropy(),
    "logits": lambda d: d.logits,
    "probs": lambda d: d.probs,
    "variance": lambda d: d.variance,
}


def check_both_derivatives(member: str, kind: str, unimix: float = 0.0, fast: bool = False) -> None:
    def function(param: Tensor) -> Tensor:
        return CHECKED[member](OneHotCategorical(**{kind: param}, unimix=unimix))

    param = parameter(kind, (2,), torch.float64)[..., :4].detach().requires_grad_()
    assert gradcheck(function, (param,), fast_mode=fast)
    assert gradgradcheck(function, (param,), fast_mode=fast)


@pytest.mark.interpreted(member=["log_prob", "entropy"], kind=["logits"])
@each_kind
@pytest.mark.parametrize("member", CHECKED)
def test_gradcheck_and_gradgradcheck(member, kind, backend):
    check_both_derivatives(member, kind, fast=backend == "triton")


@each_kind
@pytest.mark.parametrize("member", CHECKED)
def test_gradcheck_and_gradgradcheck_of_a_mixture(member, kind):
    check_both_derivatives(member, kind, unimix=0.2)


@pytest.mark.parametrize("of_torch", [(False, False), (False, True), (True, False)], ids=["ours", "q torch", "p torch"])
@each_unimix
@each_kind
def test_kl_gradcheck_and_gradgradcheck(kind, unimix, of_torch):
    params = tuple(parameter(kind, (2,), torch.float64)[..., :4].detach().requires_grad_() for _ in range(2))

    def function(*params: Tensor) -> Tensor:
        p, q = (
            # torch checks that probabilities sum to 1.
            D.OneHotCategorical(probs=probabilities(kind, param, unimix))
            if by_torch
            else OneHotCategorical(**{kind: param}, unimix=unimix)
            for param, by_torch in zip(params, of_torch, strict=True)
        )
        return D.kl_divergence(p, q)

    assert gradcheck(function, params)
    assert gradgradcheck(function, params)


def test_fisher_information_is_the_hessian_of_kl():
    """What natural gradients and TRPO take: the second derivative of KL(p0 || p) at p0 is diag(p) - p p^T."""
    x = torch.randn(COLUMNS, dtype=torch.float64)
    fixed = OneHotCategorical(x)

    def divergence(y: Tensor) -> Tensor:
        return D.kl_divergence(fixed, OneHotCategorical(y))

    p = torch.softmax(x, -1)
    hessian = torch.autograd.functional.hessian(divergence, x)
    torch.testing.assert_close(hessian, p.diag() - torch.outer(p, p))


# PassThrough ----------------------------------------------------------------------------------------------------------


def one_hot_rows(drawn: Tensor) -> bool:
    return bool(((drawn == 0) | (drawn == 1)).all() and (drawn.sum(-1) == 1).all())


@pytest.mark.parametrize("method", [None, PASS], ids=str)
@each_draws
@each_unimix
@each_kind
@each_dtype
@each_batch
def test_pass_through_gradient(batch, dtype, kind, unimix, draws, method):
    """The gradient of sum g h is that of sum g p, by autograd of the definition of p."""
    ours, oracle = leaves(parameter(kind, batch, dtype))
    drawn = OneHotCategorical(**{kind: ours}, grad_method=method, unimix=unimix).rsample(draws)
    assert one_hot_rows(drawn)
    assert drawn.dtype == dtype
    grad = torch.randn(drawn.shape).to(dtype)
    drawn.backward(grad)
    (probabilities(kind, oracle, unimix) * grad.double()).sum().backward()
    if draws and dtype in (torch.float16, torch.bfloat16):
        # The gradients of draws are summed in their own dtype.
        error = (gradient(ours).double() - gradient(oracle)).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * (1 + gradient(oracle).abs().max())
    else:
        assert_gradient_accurate(gradient(ours), gradient(oracle))


@each_method
def test_samples_are_exactly_0_and_1(method, backend):
    x = torch.randn(5, 30, requires_grad=True)
    t = 1.0 if method is PASS else 0.1
    drawn = OneHotCategorical(x, grad_method=method, temperature=t).rsample((2,))
    assert drawn.unique().tolist() == [0, 1]
    assert one_hot_rows(drawn)


# What a leaf becomes before it is the logits, [4, 3, COLUMNS].
LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "contiguous": ((4, 3, COLUMNS), lambda x: x),
    "expanded batch": ((COLUMNS,), lambda x: x.expand(4, 3, COLUMNS)),
    "expanded row": ((3, 1), lambda x: x.expand(4, 3, COLUMNS)),
    "transposed": ((COLUMNS, 3, 4), lambda x: x.permute(2, 1, 0)),
    "every other": ((4, 6, 2 * COLUMNS), lambda x: x[:, ::2, 1::2]),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.mark.interpreted(layout=["transposed", "expanded batch"])
@each_layout
def test_pass_through_gradient_of_strided_logits(layout, backend):
    shape, view = LAYOUTS[layout]
    ours, oracle = leaves(torch.randn(shape))
    drawn = OneHotCategorical(view(ours), grad_method=PASS).rsample()
    grad = torch.randn(drawn.shape)
    drawn.backward(grad)
    (torch.softmax(view(oracle), -1) * grad.double()).sum().backward()
    assert_gradient_accurate(gradient(ours), gradient(oracle))


@pytest.mark.interpreted(layout=["transposed", "expanded batch"])
@each_layout
@pytest.mark.parametrize("member", ["log_prob", "entropy"])
def test_density_gradient_of_strided_logits(member, layout, backend):
    shape, view = LAYOUTS[layout]
    ours, oracle = leaves(torch.randn(shape))
    weight, value = torch.randn(4, 3), F.one_hot(torch.randint(COLUMNS, (4, 3)), COLUMNS)
    for x, dist in ((ours, OneHotCategorical(view(ours))), (oracle, D.OneHotCategorical(logits=view(oracle)))):
        out = dist.entropy() if member == "entropy" else dist.log_prob(value.to(x.dtype))
        (out * weight.to(x.dtype)).sum().backward()
    assert_gradient_accurate(gradient(ours), gradient(oracle))


@each_method
@pytest.mark.parametrize(
    "strided",
    [lambda g: g.sum(0, keepdim=True).expand_as(g), lambda g: g.mT.contiguous().mT],
    ids=["expanded", "strided"],
)
def test_incoming_gradient_may_be_strided(method, strided, backend):
    x = torch.randn(3, COLUMNS, requires_grad=True)
    drawn = OneHotCategorical(x, grad_method=method).rsample((2,))
    grad = strided(torch.randn(2, 3, COLUMNS))
    (found,) = torch.autograd.grad(drawn, x, grad, retain_graph=True)
    (expected,) = torch.autograd.grad(drawn, x, grad.contiguous())
    torch.testing.assert_close(found, expected)


def test_pass_through_second_derivative():
    """The gradient is that of softmax, and so is the gradient's gradient, in the logits and in what comes in."""
    x = torch.randn(3, COLUMNS, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, COLUMNS, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, COLUMNS, dtype=torch.float64)

    def second(out: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(out, x, grad, create_graph=True)
        return torch.autograd.grad((first * weight).sum(), (x, grad))

    found = second(OneHotCategorical(x, grad_method=PASS).rsample())
    torch.testing.assert_close(found, second(torch.softmax(x, -1)))


# The mode with a gradient ---------------------------------------------------------------------------------------------

ALLOWED = torch.tensor([True, False, True, True, False, True])


def of_kind(kind: str, x: Tensor, **options: Any) -> OneHotCategorical:
    """A distribution of logits x, and of exp x where that is probs."""
    if kind == "mask":
        return MaskedOneHotCategorical(x, mask=ALLOWED, **options)
    if kind == "unimix":
        return OneHotCategorical(x, unimix=0.2, **options)
    return OneHotCategorical(**{kind: x}, **options)


@pytest.mark.interpreted(dtype=[torch.bfloat16], method=[None])
@pytest.mark.parametrize("method", [None, *ReparamGradientStrategy], ids=str)
@each_dtype
@pytest.mark.parametrize("kind", ["logits", "probs", "unimix", "mask"])
def test_rmode_is_the_mode_with_the_gradient_of_pass_through(kind, dtype, method, backend):
    """The norm is that of mode + p - p.detach() in float64, which DreamerV3's `pred()` is."""
    param, grad = parameter("probs" if kind == "probs" else "logits", (2, 3), dtype), torch.randn(2, 3, COLUMNS)
    ours, oracle = leaves(param)
    dist = of_kind(kind, ours, grad_method=method)
    found = dist.rmode
    assert found.dtype == dtype
    assert torch.equal(found, dist.mode.to(dtype))
    found.backward(grad.to(dtype))
    if kind == "mask":
        p = probabilities("logits", oracle.masked_fill(~ALLOWED, -math.inf), 0.0)
    else:
        p = probabilities("probs" if kind == "probs" else "logits", oracle, 0.2 if kind == "unimix" else 0.0)
    (dist.mode.double() + p - p.detach()).backward(grad.to(dtype).double())
    assert_gradient_accurate(gradient(ours), gradient(oracle))
    error = 4 * torch.finfo(torch.promote_types(dtype, torch.float32) if dtype.itemsize > 2 else dtype).eps
    torch.testing.assert_close(gradient(ours).double().norm(), gradient(oracle).norm(), rtol=error, atol=0)


def test_rmode_of_large_and_of_expanded_batches(backend):
    """Large on a CPU is above 65,536 logits."""
    columns = 30_000 if backend == "eager" else 40
    ours, oracle = leaves(torch.randn(3, columns))
    grad = torch.randn(2, 3, columns)
    dist = OneHotCategorical(ours).expand((2, 3))
    assert torch.equal(dist.rmode, dist.mode)
    dist.rmode.backward(grad)
    oracle.softmax(-1).expand(2, 3, columns).backward(grad.double())
    assert_gradient_accurate(gradient(ours), gradient(oracle))
    with torch.no_grad():
        assert torch.equal(dist.rmode, dist.mode)
        assert not dist.rmode.requires_grad


def test_rmode_of_an_invalid_row_is_that_of_rsample(backend):
    x = torch.randn(5, COLUMNS)
    x[1, 2], x[2, 0], x[3] = math.nan, math.inf, -math.inf
    grad = torch.randn(5, COLUMNS)
    grads = []
    for name in ("rmode", "rsample"):
        leaf = x.clone().requires_grad_()
        member = getattr(OneHotCategorical(leaf, grad_method=PASS, validate_args=False), name)
        draw = member if name == "rmode" else member()
        assert draw.sum(-1).tolist() == [1, 0, 0, 0, 1]
        draw.backward(grad)
        grads.append(gradient(leaf))
    torch.testing.assert_close(*grads, equal_nan=True)
    assert grads[0][[0, 4]].isfinite().all()


def test_rmode_in_transforms_and_twice(backend):
    x, weight = torch.randn(3, COLUMNS), torch.randn(COLUMNS)

    def score(x: Tensor) -> Tensor:
        return (OneHotCategorical(x).rmode * weight).sum()

    def soft(x: Tensor) -> Tensor:
        return (x.softmax(-1) * weight).sum()

    torch.testing.assert_close(torch.vmap(torch.func.grad(score))(x), torch.vmap(torch.func.grad(soft))(x))
    assert torch.equal(torch.vmap(lambda x: OneHotCategorical(x).rmode)(x), OneHotCategorical(x).mode.float())
    doubles = []
    for function in (score, soft):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        doubles.append(torch.autograd.grad((first * weight.flip(0)).sum(), leaf)[0])
    torch.testing.assert_close(*doubles)


def test_rmode_of_ties_is_one_hot(backend):
    assert OneHotCategorical(torch.tensor([[0.0, 1.0, 1.0]], requires_grad=True)).rmode.tolist() == [[0, 1, 0]]


# RelaxedOneHot --------------------------------------------------------------------------------------------------------

P = torch.tensor([0.45, 0.3, 0.25], dtype=torch.float64)
G = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
DRAWS = 1_200_000
Z = 6.0


def per_draw(draw: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Winners, and the gradient in the logits of each draw."""
    x = P.log().expand(DRAWS, -1).clone().requires_grad_()
    hard = draw(x)
    hard.backward(G.expand_as(hard))
    return hard.argmax(-1), gradient(x)


def z_scores(a: Tensor, b: Tensor) -> Tensor:
    """Of the differences between a and b [n, k] in mean and in variance; the latter by the fourth moment."""
    scores = []
    for u, v in ((a, b), ((a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2)):
        scores.append((u.mean(0) - v.mean(0)) / (u.var(0) / len(u) + v.var(0) / len(v)).sqrt())
    return torch.stack(scores)


# Each case compares the three components over all draws and given each of three winners, in mean and in variance: 24
# z-scores, 120 in the five cases. A right gradient has one of them beyond 6 with a probability of 120 * 2e-9 = 2.4e-7,
# over seeds; the seed is fixed.
@pytest.mark.parametrize(
    ("temperature", "unimix", "small"),
    [(0.5, 0.0, 0), (1.0, 0.0, 0), (2.0, 0.0, 0), (1.0, 0.3, 0), (0.7, 0.0, 2**30)],
    ids=["0.5", "1", "2", "1 with unimix", "as a small batch"],
)
def test_relaxed_gradient_has_the_law_of_the_direct_construction(temperature, unimix, small, monkeypatch):
    """torch.nn.functional's straight-through Gumbel-softmax, unconditionally and given the winner."""
    monkeypatch.setattr(cpu, "_SMALL", small)

    def ours(x: Tensor) -> Tensor:
        options: dict[str, Any] = {"grad_method": RELAXED, "temperature": temperature, "unimix": unimix}
        return OneHotCategorical(x, **options).rsample()

    def direct(x: Tensor) -> Tensor:
        return F.gumbel_softmax(probabilities("logits", x, unimix).log(), tau=temperature, hard=True)

    (winner, found), (expected_winner, expected) = per_draw(ours), per_draw(direct)
    assert z_scores(found, expected).abs().max() < Z
    for k in range(len(P)):
        a, b = found[winner == k], expected[expected_winner == k]
        assert z_scores(a, b).abs().max() < Z, k
        # The bound is sharp: a mean or a spread that is off by two percent of the spread does not pass.
        assert z_scores(a + 0.02 * a.std(0), b).abs().max() > Z
        assert z_scores(a.mean(0) + 1.02 * (a - a.mean(0)), b).abs().max() > Z


def relaxed(x: Tensor, temperature: float | Tensor = 1.0, **options: Any) -> OneHotCategorical:
    return OneHotCategorical(x, grad_method=RELAXED, temperature=temperature, **options)


def test_relaxed_gradient_of_one_draw_is_one_gradient(backend):
    """Both passes see the same noise, and the gradient is linear in what comes in."""
    x = torch.randn(3, COLUMNS, requires_grad=True)
    drawn = relaxed(x, 0.7).rsample((2,))
    grads = torch.randn(2, *drawn.shape)
    one, again, other, both = (
        torch.autograd.grad(drawn, x, g, retain_graph=True)[0] for g in (grads[0], grads[0], grads[1], grads.sum(0))
    )
    assert torch.equal(one, again)
    torch.testing.assert_close(one + other, both)
    # The gradient of a softmax: an equal push on every column moves nothing.
    torch.testing.assert_close(one.sum(-1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(drawn, x, torch.ones_like(drawn))[0], torch.zeros_like(x), rtol=0, atol=1e-5
    )


def test_relaxed_gradients_of_two_draws_differ(backend):
    x = torch.randn(2, COLUMNS, requires_grad=True)
    grad = torch.randn(2, COLUMNS)
    one, other = (torch.autograd.grad(relaxed(x).rsample(), x, grad)[0] for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "as_tensor",
    [lambda t: t, lambda t: t.double(), lambda t: t.unsqueeze(0)],
    ids=["as it is", "float64", "one dimension more"],
)
def test_relaxed_temperature_of_each_row(as_tensor, backend):
    x, grad = torch.randn(2, COLUMNS, requires_grad=True), torch.randn(2, COLUMNS)

    def at(temperature: float | Tensor) -> Tensor:
        torch.manual_seed(1)
        return torch.autograd.grad(relaxed(x, temperature).rsample(), x, grad)[0]

    temperature = as_tensor(torch.tensor([0.5, 2.0]))
    if temperature.dim() == 2:
        x, grad = x.detach().unsqueeze(0).requires_grad_(), grad.unsqueeze(0)
    found = at(temperature)
    torch.testing.assert_close(found[..., 0, :], at(0.5)[..., 0, :])
    torch.testing.assert_close(found[..., 1, :], at(torch.tensor([2.0]))[..., 1, :])
    torch.testing.assert_close(found[..., 1, :], at(torch.tensor(2.0))[..., 1, :])


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_gradient_of_the_temperature_has_its_shape(batch, backend):
    x = torch.randn(*batch, COLUMNS)
    x[..., 0] = -math.inf
    for shape in {(), (1,), batch}:
        temperature = torch.full(shape, 0.5, requires_grad=True)
        relaxed(x, temperature).rsample((4,)).square().cumsum(-1).sum().backward()
        found = gradient(temperature)
        assert found.shape == shape
        assert found.isfinite().all()
        assert (found != 0).all()


@pytest.mark.usefixtures("numpy_as_quiet_as_a_gpu")
def test_gradient_of_the_temperature_by_a_kernel():
    """In a transform that of autograd, whose law is that of torch's operations; it has no second derivative."""
    pytest.importorskip("triton")
    x = torch.randn(3, COLUMNS)

    def loss(t: Tensor) -> Tensor:
        torch.manual_seed(1)
        return relaxed(x, t).rsample((2,)).square().cumsum(-1).sum()

    with use_backend("triton"):
        t = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        (expected,) = torch.autograd.grad(loss(t), t)
        torch.testing.assert_close(torch.func.grad(loss)(t.detach()), expected)
        (found,) = torch.autograd.grad(loss(t), t, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            found.sum().backward()


def test_gradient_of_the_temperature_has_the_law_of_the_direct_construction():
    """That of torch.nn.functional.gumbel_softmax, in mean and spread, also given the winner."""

    def per_row(draw: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        t = torch.full((DRAWS // 4, 1), 0.7, dtype=torch.float64, requires_grad=True)
        hard = draw(P.log().expand(len(t), -1), t)
        hard.backward(G.expand_as(hard))
        return hard.argmax(-1), gradient(t)

    winner, found = per_row(lambda x, t: relaxed(x, t.squeeze(-1)).rsample())
    # Its temperature may be a tensor that broadcasts.
    expected_winner, expected = per_row(lambda x, t: F.gumbel_softmax(x, tau=t, hard=True))  # pyright: ignore
    assert z_scores(found, expected).abs().max() < Z
    assert z_scores(1.05 * found, expected).abs().max() > Z
    for k in range(len(P)):
        assert z_scores(found[winner == k], expected[expected_winner == k]).abs().max() < Z, k


@each_dtype
@each_draws
@each_kind
def test_relaxed_gradient_in_each_dtype(dtype, draws, kind):
    """That of float64 with the same noise, whose law is tested above."""
    found = []
    for leaf in leaves(parameter(kind, (2, 3), dtype)):
        torch.manual_seed(1)
        drawn = OneHotCategorical(**{kind: leaf}, grad_method=RELAXED, temperature=0.7).rsample(draws)
        assert drawn.dtype == leaf.dtype
        assert one_hot_rows(drawn)
        drawn.backward(torch.randn(drawn.shape, dtype=torch.float64).to(dtype).to(leaf.dtype))
        found.append((drawn.double(), gradient(leaf)))
    (drawn, low), (expected_draw, high) = found
    assert torch.equal(drawn, expected_draw)
    assert low.dtype == dtype
    assert_gradient_accurate(low, high)


def test_relaxed_gradient_at_low_and_high_temperature():
    """y is the draw itself at temperature 0, which has no gradient, and uniform at infinity."""
    x, grad = torch.zeros(3, COLUMNS, dtype=torch.float64, requires_grad=True), torch.randn(3, COLUMNS).double()
    (cold,) = torch.autograd.grad(relaxed(x, 1e-3).rsample(), x, grad)
    assert cold.abs().max() < 1e-3
    (hot,) = torch.autograd.grad(relaxed(x, 1e6).rsample(), x, grad)
    torch.testing.assert_close(hot * 1e6, (grad - grad.mean(-1, keepdim=True)) / COLUMNS, rtol=0, atol=1e-4)


@pytest.mark.interpreted(layout=["transposed"])
@each_layout
def test_relaxed_gradient_of_strided_logits(layout, backend):
    """The noise does not depend on the layout, but for an expanded batch by the kernels (docs/noise.md)."""
    shape, view = LAYOUTS[layout]
    x, found = torch.randn(shape, requires_grad=True), []
    grad = torch.randn(4, 3, COLUMNS)
    for logits in (view(x), view(x).contiguous()):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(relaxed(logits, 0.7).rsample(), x, grad)[0])
    torch.testing.assert_close(*found)


# Categories that are never drawn --------------------------------------------------------------------------------------

SCORES: dict[str, Callable[[OneHotCategorical], Tensor]] = {
    "rsample": lambda d: (d.rsample((5,)) * torch.randn(5, 2, 4)).sum(),
    "log_prob": lambda d: d.log_prob(F.one_hot(torch.tensor([0, 3]), 4)).sum(),
    "entropy": lambda d: d.entropy().sum(),
    "kl": lambda d: D.kl_divergence(d, OneHotCategorical(torch.randn(2, 4))).sum(),
    "probs": lambda d: (d.probs * torch.randn(2, 4)).sum(),
}


@pytest.mark.interpreted(kind=["logits"])
@each_method
@each_kind
@pytest.mark.parametrize("score", SCORES)
def test_gradient_of_a_category_that_is_never_drawn_is_0(score, kind, method, backend):
    never = torch.tensor([[False, True, True, False], [False, True, False, False]])
    x = torch.randn(2, 4).masked_fill(never, -math.inf)
    leaf = (x if kind == "logits" else x.exp()).requires_grad_()
    SCORES[score](OneHotCategorical(**{kind: leaf}, grad_method=method)).backward()
    assert (gradient(leaf)[never] == 0).all()
    assert gradient(leaf).isfinite().all()
    assert (gradient(leaf)[~never] != 0).all()


@each_method
@pytest.mark.parametrize("score", SCORES)
def test_unimix_keeps_gradients_finite(score, method):
    x = torch.tensor([[0.0, -math.inf, -1e4, 1.0], [0.0, -math.inf, 88.0, 0.0]], requires_grad=True)
    SCORES[score](OneHotCategorical(x, grad_method=method, unimix=0.01)).backward()
    assert gradient(x).isfinite().all()
    assert (gradient(x)[:, 1] == 0).all()


@each_method
def test_one_category_has_no_gradient(method, backend):
    x = torch.zeros(3, 1, requires_grad=True)
    dist = OneHotCategorical(x, grad_method=method)
    (dist.rsample() * 5).sum().backward(retain_graph=True)
    (dist.log_prob(torch.ones(3, 1)) + dist.entropy()).sum().backward()
    assert (gradient(x) == 0).all()
