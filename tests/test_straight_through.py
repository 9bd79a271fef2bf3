"""ReinMax, GappedStraightThrough and Gumbel-Rao: by enumeration, by their definitions, and by their laws."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    ReparamGradientStrategy,
    compute,
    estimators,
    use_backend,
)
from onehot_triton.compute import CPU, EAGER, base, cpu
from onehot_triton.compute.base import Rows
from onehot_triton.rng import Seed

PASS, RELAXED, REINMAX, GAPPED = ReparamGradientStrategy
NEW = [REINMAX, GAPPED]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
]
ESTIMATORS: dict[str, dict[str, Any]] = {
    "ReinMax": {"grad_method": REINMAX},
    "GappedStraightThrough": {"grad_method": GAPPED},
    "Gumbel-Rao": {"grad_method": RELAXED, "relaxed_samples": 3},
}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
each_method = pytest.mark.parametrize("method", NEW, ids=lambda method: method.name)
both_sizes = pytest.mark.usefixtures("small")


def jacobian_product(z: Tensor, grad: Tensor) -> Tensor:
    """J(softmax(z)) g, by autograd."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(z.softmax(-1), z, grad)[0]


def definition(method: ReparamGradientStrategy, x: Tensor, hot: Tensor, grad: Tensor, t: Tensor | float) -> Tensor:
    """The gradient of each draw `hot` [..., columns] in the logits x, written as in the papers."""
    grad = grad.nan_to_num(0.0)
    if method is REINMAX:
        # J at a distribution is the Jacobian of softmax at its logarithm.
        m = ((x / t).softmax(-1) + hot) / 2
        return 2 * jacobian_product(m.log(), grad) - jacobian_product(x.expand_as(hot), grad) / 2
    top = x.amax(-1, keepdim=True)
    # 0 -inf is NaN.
    to_the_top = ((top - x.masked_fill(hot == 0, 0.0)) * hot).nan_to_num(0.0)
    moved = x + to_the_top - (x - top + 1).relu() * (1 - hot)
    return jacobian_product(moved / t, grad) / t


def gradient_of_a_draw(x: Tensor, grad: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """A draw and its gradient in x."""
    x = x.detach().requires_grad_()
    mask = options.pop("mask", None)
    dist = OneHotCategorical(x, **options) if mask is None else MaskedOneHotCategorical(x, mask=mask, **options)
    hot = dist.rsample(grad.shape[: grad.dim() - x.dim()])
    hot.backward(grad)
    assert x.grad is not None
    return hot.detach(), x.grad


# ReinMax, by enumeration ----------------------------------------------------------------------------------------------


def mean_error(gradient: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """The largest error of the mean over the draw, of 20 quadratic functions of 5 categories."""
    n, worst = 5, 0.0
    for _ in range(20):
        x, a, b = torch.randn(n).double(), torch.randn(n, n).double(), torch.randn(n).double()
        every = torch.eye(n, dtype=torch.float64).requires_grad_()
        f = torch.einsum("ki,ij,kj->k", every, a, every) + every @ b
        (grads,) = torch.autograd.grad(f.sum(), every)
        exact = jacobian_product(x, f.detach())
        of_each = gradient(x.expand(n, n), torch.arange(n).unsqueeze(0), grads.unsqueeze(0))
        worst = max(worst, (x.softmax(-1) @ of_each - exact).abs().max().item())
    return worst


def test_reinmax_is_unbiased_for_every_quadratic(backend):
    chosen = compute.of(torch.zeros(1))
    kernels = backend == "triton"

    def rows_of(x: Tensor) -> Rows:
        return Rows(x, None, base.logsumexp(x) if kernels else None)

    assert mean_error(lambda x, k, g: chosen.reinmax_grad(rows_of(x), k, g, 1.0)) < 2e-15
    # The others are not, and ReinMax is not at another temperature.
    assert mean_error(lambda x, k, g: chosen.softmax_grad(rows_of(x), g[0])) > 0.05
    assert mean_error(lambda x, k, g: chosen.gapped_grad(rows_of(x), k, g, 1.0)) > 0.05
    assert mean_error(lambda x, k, g: chosen.reinmax_grad(rows_of(x), k, g, 1.5)) > 0.05


# By definition --------------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "a temperature": {"temperature": 1.7},
    "a temperature for each row": {"temperature": torch.tensor([1.0, 2.5])},
    "unimix": {"unimix": 0.2},
    "a mask": {"mask": torch.tensor([True, False, True, True, False, True])},
    "-inf": {"off": 2},
    "peaked": {"peak": 60.0},
    "a common offset": {"offset": 512.0},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": torch.bfloat16},
}


@each_method
@pytest.mark.parametrize("draws", [(), (3,)], ids=["one draw", "three draws"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_definition(case, draws, method, backend):
    options = dict(CASES[case])
    dtype = options.pop("dtype", torch.float64)
    x = torch.randn(2, 6, dtype=torch.float64)
    x[:, 1] += options.pop("peak", 0.0)
    x += options.pop("offset", 0.0)
    off = options.pop("off", None)
    x = (x if off is None else x.masked_fill(torch.arange(6) == off, -math.inf)).to(dtype)
    grad = torch.randn(*draws, 2, 6, dtype=torch.float64).to(dtype)
    hot, found = gradient_of_a_draw(x, grad, grad_method=method, **options)
    exact, mask, t = x.double(), options.get("mask"), options.get("temperature", 1.0)
    if mask is not None:
        exact = exact.masked_fill(~mask, -math.inf)
    t = t.double().unsqueeze(-1) if isinstance(t, Tensor) else t
    if "unimix" in options:
        # The chain rule through the mixed logits.
        leaf = exact.clone().requires_grad_()
        mixed = (0.8 * leaf.softmax(-1) + 0.2 / 6).log()
        of_mixed = definition(method, mixed.detach().expand_as(hot), hot.double(), grad.double(), t)
        mixed.expand_as(hot).backward(of_mixed)
        expected = leaf.grad
    else:
        expected = definition(method, exact.expand_as(hot), hot.double(), grad.double(), t)
        expected = expected.sum(0) if draws else expected
    assert expected is not None
    assert found.dtype == dtype
    eps = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 1e-12)
    torch.testing.assert_close(found.double(), expected, rtol=eps, atol=eps)


@each_method
def test_gradient_of_large_batches_of_long_rows(method):
    """Block by block."""
    x, grad = 3 * torch.randn(40, 30_000), torch.randn(40, 30_000)
    hot, found = gradient_of_a_draw(x, grad, grad_method=method, temperature=1.5)
    expected = definition(method, x.double(), hot.double(), grad.double(), 1.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@both_sizes
@each_estimator
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_has_no_gradient(bad, estimator, backend):
    x = torch.randn(4, 6)
    x[1, 2], x[2] = bad, -math.inf
    hot, found = gradient_of_a_draw(x, torch.randn(4, 6), validate_args=False, **ESTIMATORS[estimator])
    assert hot.sum(-1).tolist() == [1, 0, 0, 1]
    assert found.isnan().all(-1).tolist() == [False, True, True, False]
    assert found[[0, 3]].isfinite().all()


@both_sizes
@each_estimator
def test_no_rows_and_no_draws_have_a_gradient_of_their_shape(estimator, backend):
    for batch, draws in (((0,), 2), ((4,), 0), ((0, 3), 0)):
        x = torch.randn(*batch, 6)
        hot, found = gradient_of_a_draw(x, torch.randn(draws, *batch, 6), **ESTIMATORS[estimator])
        assert hot.shape == (draws, *batch, 6)
        assert torch.equal(found, torch.zeros_like(x))


@each_estimator
def test_of_fake_tensors(estimator, backend):
    with FakeTensorMode():
        x = torch.randn(4, 3, 6, dtype=torch.bfloat16, requires_grad=True)
        t = torch.full((4, 3), 1.5)
        hot = OneHotCategorical(x, temperature=t, validate_args=False, **ESTIMATORS[estimator]).rsample((2,))
        assert (hot.shape, hot.dtype) == ((2, 4, 3, 6), x.dtype)
        (found,) = torch.autograd.grad(hot.sum(), x)
        assert (found.shape, found.dtype) == (x.shape, x.dtype)


# Ways of differentiating ----------------------------------------------------------------------------------------------


def fixed_draw(x: Tensor, method: ReparamGradientStrategy, temperature: float = 1.5) -> Tensor:
    torch.manual_seed(3)
    return OneHotCategorical(x, grad_method=method, temperature=temperature, validate_args=False).rsample()


def test_second_derivative_of_reinmax_is_that_of_its_gradient(backend):
    """By finite differences, of the draw that a seed gives."""
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def first(x: Tensor, grad: Tensor) -> Tensor:
        return torch.autograd.grad(fixed_draw(x, REINMAX), x, grad, create_graph=True)[0]

    assert gradcheck(first, (x, grad), fast_mode=True)


def test_second_derivative_of_gapped_straight_through_is_that_of_its_definition(backend):
    """The shift is a constant in it."""
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, dtype=torch.float64)
    hot = fixed_draw(x, GAPPED)
    with torch.no_grad():
        top = x.amax(-1, keepdim=True)
        shift = (top - x) * hot - (x - top + 1).relu() * (1 - hot)
    seconds = []
    for y in (hot, ((x + shift) / 1.5).softmax(-1)):
        (first,) = torch.autograd.grad(y, x, grad, create_graph=True)
        seconds.append(torch.autograd.grad((first * weight).sum(), (x, grad)))
    torch.testing.assert_close(*seconds)


@each_method
def test_transforms(method, backend):
    """torch.func.grad alone, under vmap, and forwards."""
    x, weight = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def logits(x: Tensor) -> Tensor:
        return x.masked_fill(torch.arange(4) > 2, -math.inf)

    def draw(x: Tensor) -> Tensor:
        return OneHotCategorical(logits(x), grad_method=method, temperature=1.5, validate_args=False).rsample()

    def loss(x: Tensor) -> Tensor:
        return (draw(x) * weight).sum()

    leaf = x[0].clone().requires_grad_()
    torch.manual_seed(4)
    hot_loss = loss(leaf)
    (expected,) = torch.autograd.grad(hot_loss, leaf)
    torch.manual_seed(4)
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), expected)
    found = torch.func.vmap(torch.func.grad(loss), randomness="different")(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(-1), torch.zeros(3, 2).double(), rtol=0, atol=1e-12)
    with forward_ad.dual_level():
        v = torch.randn_like(leaf)
        hot, tangent = forward_ad.unpack_dual(draw(forward_ad.make_dual(leaf.detach(), v)))
    assert tangent is not None
    forwards = definition(method, logits(leaf.detach()), hot, weight, 1.5)
    torch.testing.assert_close((tangent * weight).sum(), (forwards * v).sum())


@pytest.mark.parametrize("method", [*NEW, RELAXED], ids=lambda method: method.name)
def test_compiled_in_one_graph(method):
    def draw(x: Tensor) -> Tensor:
        options: dict[str, Any] = {"grad_method": method, "temperature": 1.5, "validate_args": False}
        return OneHotCategorical(x, relaxed_samples=3 if method is RELAXED else 1, **options).rsample()

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 9):
        x, grad = torch.randn(rows, 6, dtype=torch.float64, requires_grad=True), torch.randn(rows, 6).double()
        hot = compiled(x)
        (found,) = torch.autograd.grad(hot, x, grad)
        if method is RELAXED:
            torch.testing.assert_close(found.sum(-1), torch.zeros(rows).double())
        else:
            torch.testing.assert_close(found, definition(method, x.detach(), hot.detach(), grad, 1.5))


# Gumbel-Rao -----------------------------------------------------------------------------------------------------------

P = torch.tensor([0.45, 0.3, 0.25], dtype=torch.float64)
G = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
SAMPLES, PARTS = 4, 60


def gradients(samples: int, rows: int) -> tuple[Tensor, Tensor]:
    hot, found = gradient_of_a_draw(
        P.log().expand(rows, -1), G.expand(rows, -1), grad_method=RELAXED, temperature=0.5, relaxed_samples=samples
    )
    return hot.argmax(-1).view(PARTS, -1), found.view(PARTS, -1, 3)


def z_score(of_parts: Tensor) -> float:
    """Of the mean over parts [PARTS, ...], the largest: beyond 6 with a probability of 2e-7 for each number."""
    return (of_parts.mean(0) / of_parts.std(0) * math.sqrt(PARTS)).abs().max().item()


def predicted_variance(winner: Tensor, one: Tensor, samples: float) -> Tensor:
    """E[var(. | draw)] / K + var(E[. | draw]) of each part, of gradients of one sample."""
    mean, variance = one.mean(1), torch.zeros(PARTS, 3, dtype=one.dtype)
    for k in range(3):
        here = (winner == k).unsqueeze(-1).double()
        n = here.sum(1)
        mean_here = (one * here).sum(1) / n
        within = (((one - mean_here.unsqueeze(1)) * here) ** 2).sum(1) / (n - 1)
        variance += n / one.shape[1] * (within / samples + (mean_here - mean) ** 2)
    return variance


def test_gumbel_rao_has_the_mean_and_less_of_the_variance():
    """Three components of a mean and of a variance: a right one fails at 6 of 12 numbers' 2e-7, 3e-6 over seeds."""
    winner, one = gradients(1, 480_000)
    _, mean_of_four = gradients(SAMPLES, 480_000)
    assert z_score(mean_of_four.mean(1) - one.mean(1)) < 6
    variance = mean_of_four.var(1)
    assert z_score(variance - predicted_variance(winner, one, SAMPLES)) < 6
    # The bounds are sharp.
    assert z_score(mean_of_four.mean(1) + 0.02 * one.std((0, 1)) - one.mean(1)) > 6
    assert z_score(variance - predicted_variance(winner, one, SAMPLES + 0.5)) > 6
    assert z_score(variance - predicted_variance(winner, one, SAMPLES - 0.5)) > 6


def test_samples_of_a_draw_are_its_own_on_a_cpu():
    """The mean over draws that are the same: in the logits and in the temperature."""
    x, grad = torch.randn(3, 6).double(), torch.randn(2, 3, 6).double()
    index, t = torch.randint(6, (2, 3)), torch.tensor([0.5, 1.0, 2.0]).double()
    seed = Seed(torch.tensor(5))
    each = EAGER.relaxed_grad(Rows(x), index.repeat_interleave(4, 0), grad.repeat_interleave(4, 0), t, seed, True)
    for backend in (EAGER, CPU):
        found = backend.relaxed_grad(Rows(x), index, grad, t, seed, True, 4)
        for f, e in zip(found, each, strict=True):
            assert f is not None
            assert e is not None
            torch.testing.assert_close(f, e / 4)


# Options, and what each stands for: of one seed the draw and its gradient are the same.
STAND_FOR: dict[str, tuple[Callable[[Tensor], OneHotCategorical], Callable[[Tensor], OneHotCategorical]]] = {
    "a mask": (
        lambda x: MaskedOneHotCategorical(x, mask=torch.arange(6) != 2, **ESTIMATORS["Gumbel-Rao"]),
        lambda x: OneHotCategorical(x.masked_fill(torch.arange(6) == 2, -math.inf), **ESTIMATORS["Gumbel-Rao"]),
    ),
    "unimix": (
        lambda x: OneHotCategorical(x, unimix=0.2, **ESTIMATORS["Gumbel-Rao"]),
        lambda x: OneHotCategorical((0.8 * x.softmax(-1) + 0.2 / 6).log(), **ESTIMATORS["Gumbel-Rao"]),
    ),
    "a temperature for each row": (
        lambda x: OneHotCategorical(x, temperature=torch.tensor([0.5, 0.5]), **ESTIMATORS["Gumbel-Rao"]),
        lambda x: OneHotCategorical(x, temperature=0.5, **ESTIMATORS["Gumbel-Rao"]),
    ),
    "half precision": (
        lambda x: OneHotCategorical(x.bfloat16(), **ESTIMATORS["Gumbel-Rao"]),
        lambda x: OneHotCategorical(x.bfloat16().float(), **ESTIMATORS["Gumbel-Rao"]),
    ),
}


@both_sizes
@pytest.mark.parametrize("draws", [(), (2,)], ids=["one draw", "two draws"])
@pytest.mark.parametrize("option", STAND_FOR)
def test_gumbel_rao_with_options(option, draws, backend):
    x, grad = torch.randn(2, 6), torch.randn(*draws, 2, 6).bfloat16().float()
    found = []
    for make in STAND_FOR[option]:
        leaf = x.clone().requires_grad_()
        torch.manual_seed(7)
        hot = make(leaf).rsample(draws)
        found.append((hot.detach().float(), torch.autograd.grad(hot, leaf, grad.to(hot.dtype))[0]))
    assert torch.equal(found[0][0], found[1][0])
    eps = 2**-7 if option == "half precision" else 1e-5
    torch.testing.assert_close(found[0][1], found[1][1], rtol=eps, atol=eps)
    assert found[0][1].abs().sum() > 0.01


def test_gumbel_rao_of_rows_of_different_temperatures(backend):
    """As each row is by itself, of its own noise: the ratio of two gradients of one seed."""
    x, grad = torch.randn(1, 6).expand(3, 6), torch.randn(1, 6).expand(3, 6)
    found = []
    for t in (0.3, 2.0, torch.tensor([0.3, 2.0, 0.3])):
        torch.manual_seed(7)
        found.append(gradient_of_a_draw(x, grad, temperature=t, **ESTIMATORS["Gumbel-Rao"])[1])
    torch.testing.assert_close(found[2], torch.stack([found[0][0], found[1][1], found[0][2]]))


def test_gumbel_rao_under_vmap(backend):
    """Of draws that differ: each gradient sums to 0, and is 0 where a category is off."""
    x, weight = torch.randn(3, 2, 6).double(), torch.randn(2, 6).double()
    x[..., 4] = -math.inf

    def loss(x: Tensor) -> Tensor:
        dist = OneHotCategorical(x, temperature=0.7, validate_args=False, **ESTIMATORS["Gumbel-Rao"])
        return (dist.rsample() * weight).sum()

    found = torch.func.vmap(torch.func.grad(loss), randomness="different")(x)
    torch.testing.assert_close(found.sum(-1), torch.zeros(3, 2).double(), rtol=0, atol=1e-12)
    assert torch.equal(found[..., 4], torch.zeros(3, 2).double())
    assert found.abs().sum(-1).gt(0.01).all()


def test_second_derivative_of_gumbel_rao_is_that_of_its_gradient(monkeypatch: pytest.MonkeyPatch):
    """By finite differences, of the noise that a seed gives; a kernel's says that it has none."""
    monkeypatch.setattr(cpu, "_SMALL", 0)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def first(x: Tensor, grad: Tensor) -> Tensor:
        torch.manual_seed(3)
        hot = OneHotCategorical(x, temperature=1.5, validate_args=False, **ESTIMATORS["Gumbel-Rao"]).rsample()
        return torch.autograd.grad(hot, x, grad, create_graph=True)[0]

    assert gradcheck(first, (x, grad), fast_mode=True)
    with use_backend("triton"), pytest.raises((RuntimeError, NotImplementedError)):
        first(x, grad).sum().backward()


def test_gumbel_rao_in_forward_mode_is_a_mean():
    """Where torch's own operations are recorded, too."""
    x, grad = P.log().expand(200_000, -1), G.expand(200_000, -1)
    with forward_ad.dual_level():
        hot, found = gradient_of_a_draw(x, grad, grad_method=RELAXED, temperature=0.5, relaxed_samples=SAMPLES)
    expected_hot, expected = gradient_of_a_draw(x, grad, grad_method=RELAXED, temperature=0.5, relaxed_samples=SAMPLES)
    for k in range(3):
        a, b = found[hot.argmax(-1) == k], expected[expected_hot.argmax(-1) == k]
        for u, v in ((a, b), ((a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2)):
            z = (u.mean(0) - v.mean(0)) / (u.var(0) / len(u) + v.var(0) / len(v)).sqrt()
            assert z.abs().max() < 6


def test_options_are_kept():
    dist = OneHotCategorical(torch.zeros(2, 3), grad_method=RELAXED, relaxed_samples=4)
    assert dist.expand((5, 2)).relaxed_samples == 4
    assert "relaxed_samples: 4" in repr(dist)
    assert "relaxed_samples" not in repr(OneHotCategorical(torch.zeros(2, 3)))


# Rows of estimators.py ------------------------------------------------------------------------------------------------


def test_every_method_has_a_row():
    assert list(estimators.ESTIMATORS) == list(ReparamGradientStrategy)


@both_sizes
@each_method
@pytest.mark.parametrize("takes_temperature", [True, False])
def test_a_method_is_what_its_row_says(takes_temperature, method, backend, monkeypatch):
    """A row that passes the gradient on, times a number, does so in backward and forward mode."""
    row = estimators.Estimator(
        grad=lambda backend, rows, draw, g, with_dt: (3 * g.sum(0), None),
        smooth=lambda backend, logits, draw: 3 * logits,
        shard_grad=lambda *args: pytest.fail("has no shards"),
        takes_temperature=takes_temperature,
    )
    monkeypatch.setitem(estimators.ESTIMATORS, method, row)
    x, grad = torch.randn(3, 5), torch.randn(2, 3, 5)
    hot, found = gradient_of_a_draw(x, grad, grad_method=method)
    assert hot.sum(-1).eq(1).all()
    torch.testing.assert_close(found, 3 * grad.sum(0))
    with forward_ad.dual_level():
        dist = OneHotCategorical(forward_ad.make_dual(x, grad[0]), grad_method=method)
        tangent = forward_ad.unpack_dual(dist.rsample()).tangent
    torch.testing.assert_close(tangent, 3 * grad[0])
    if not takes_temperature:
        with pytest.raises(ValueError, match=f"temperature: expected 1 for grad_method {method.name}"):
            OneHotCategorical(x, grad_method=method, temperature=2.0)
