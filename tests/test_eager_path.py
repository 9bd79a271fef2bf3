"""What the eager path, the autograd, the operators' batching and the seeds do where no law of the numbers looks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import vmap

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    blocks,
    compute,
    rng,
    use_backend,
)
from onehot_triton.compute import cpu

pytestmark = pytest.mark.usefixtures("one_thread")

PASS, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot
# Above 512, where eager torch draws a group and then one of its columns, and above 64 terms a lane, where it adds up
# torch's softmax again; no multiple of a group.
LONG = 1100


def assert_law(index: Tensor, probs: Tensor) -> None:
    """A chi-squared test of draws of one distribution, which a right sampler fails once in a million seeds."""
    counts = index.flatten().bincount(minlength=len(probs)).double()
    expected = probs.double() / probs.double().sum() * index.numel()
    assert len(counts) == len(probs)
    assert expected.min() > 5
    assert stats.chisquare(counts, expected).pvalue > 1e-6


def logits_of_all_sizes(columns: int) -> Tensor:
    return torch.linspace(-1, 1, columns)[torch.randperm(columns)]


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, PASS, RELAXED], ids=str)
@pytest.mark.parametrize("columns", [7, LONG])
def test_compiled_draws_have_their_law(columns: int, method: ReparamGradientStrategy | None) -> None:
    torch._dynamo.reset()
    row = logits_of_all_sizes(columns)
    x = row.repeat(3000, 1).requires_grad_(method is not None)

    def draw(x: Tensor) -> Tensor:
        dist = OneHotCategorical(x, grad_method=method)
        return dist.sample((6,)) if method is None else dist.rsample((6,))

    out = torch.compile(draw, backend="aot_eager", fullgraph=True)(x).detach()
    assert (out.sum(-1) == 1).all()
    assert_law(out.argmax(-1), row.softmax(-1))


def test_the_two_stages_of_a_compiled_draw_have_noise_of_their_own() -> None:
    """With one noise for both, the first group with its first column, and so on, is drawn far too often."""
    torch._dynamo.reset()
    x = torch.zeros(1, LONG, requires_grad=True)
    draw = torch.compile(lambda x: OneHotCategorical(x, grad_method=RELAXED).rsample(), backend="aot_eager")
    group = cpu.group_length(LONG)
    index = torch.cat([draw(x).detach().argmax(-1) for _ in range(100)])
    # 1 in 32 of them: more than 15 in 100 once in 10^7 seeds.
    assert (index // group == index % group).sum() <= 15


@pytest.mark.parametrize("method", [None, PASS, RELAXED], ids=str)
@pytest.mark.parametrize("columns", [3, 7, LONG])
def test_draws_under_vmap_have_their_law(columns: int, method: ReparamGradientStrategy | None) -> None:
    row = logits_of_all_sizes(columns)

    def draw(x: Tensor) -> Tensor:
        dist = OneHotCategorical(x, grad_method=method)
        return dist.sample((6,)) if method is None else dist.rsample((6,))

    out = vmap(draw, randomness="different")(row.repeat(3000, 1))
    assert (out.sum(-1) == 1).all()
    assert_law(out.argmax(-1), row.softmax(-1))


@pytest.mark.parametrize("columns", [3, 7, LONG])
def test_eager_draws_have_their_law(columns: int, small: None) -> None:
    row = logits_of_all_sizes(columns)
    assert_law(OneHotCategorical(row.repeat(3000, 1)).sample_index((6,)), row.softmax(-1))


# The eager path -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("draws", [1, 3])
def test_a_row_that_is_no_distribution_is_drawn_nowhere_in_two_stages(bad: float, draws: int, small: None) -> None:
    x = torch.randn(3, LONG)
    x[1] = bad
    index = OneHotCategorical(x, validate_args=False).sample_index((draws,))
    assert (index[:, 1] == -1).all()
    assert ((index[:, ::2] >= 0) & (index[:, ::2] < LONG)).all()
    one_hot = OneHotCategorical(x, validate_args=False).sample((draws,))
    assert one_hot.sum(-1).tolist() == [[1, 0, 1]] * draws


def test_entropy_of_a_long_row_with_categories_switched_off(small: None) -> None:
    x = torch.randn(3, LONG, dtype=torch.float64)
    x[1, ::2] = -torch.inf
    p = x.softmax(-1)
    expected = -torch.where(p > 0, p * p.log(), 0.0).sum(-1)
    torch.testing.assert_close(OneHotCategorical(x).entropy(), expected)
    torch.testing.assert_close(OneHotCategorical(x.float()).entropy(), expected.float())
    y = x.float().requires_grad_()
    OneHotCategorical(y).entropy().sum().backward()
    assert y.grad is not None
    assert (y.grad[1, ::2] == 0).all()


@pytest.mark.parametrize("size", [50.0, 70.0, 95.0, 120.0, 3e38])
def test_large_logits_of_a_small_batch(size: float) -> None:
    """The exponential of 89 is infinite in float32, that of -104 is 0."""
    for x in (
        torch.tensor([[size, size, -size, 0.0, 0.0]]),
        torch.tensor([[-size, -size, -200 - 2 * size, -torch.inf, -torch.inf]]),
    ):
        index = OneHotCategorical(x).sample_index((200,))
        assert index.unique().tolist() == [0, 1]


@pytest.mark.parametrize("rows", [0, 1, 5, 1000, 2**12])
@pytest.mark.parametrize("elements", [0, 1, 600, 2**18 + 1, 2**20])
def test_blocks_are_all_rows_and_no_larger_than_they_may_be(rows: int, elements: int) -> None:
    parts = blocks.blocks(rows, elements)
    assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
    for part in parts:
        size = part.stop - part.start
        assert size <= 1 or size * elements <= 2**19
    # And no smaller than they need be: each costs its calls.
    assert len(parts) <= 1 or (parts[0].stop + 1) * elements > 2**19


@pytest.mark.parametrize("exp_is_fast", [False, True])
def test_results_by_blocks_are_those_of_one_block(monkeypatch: pytest.MonkeyPatch, exp_is_fast: bool) -> None:
    monkeypatch.setattr(cpu, "_EXP_IS_FAST", exp_is_fast)
    x, index = torch.randn(7, LONG), torch.randint(LONG, (3, 7))
    weight = torch.randn(7, LONG)

    def results() -> list[Tensor]:
        y = x.clone().requires_grad_()
        dist = OneHotCategorical(y, grad_method=PASS)
        log_prob, entropy = dist.log_prob_index(index), dist.entropy()
        grads = [torch.autograd.grad(out, y)[0] for out in (log_prob.square().sum(), entropy.square().sum())]
        grads += torch.autograd.grad((dist.rsample() * weight).sum(), y)
        plain = OneHotCategorical(x)
        return [log_prob, entropy, *grads, plain.log_prob_index(index), plain.entropy(), plain.probs, plain.mode]

    monkeypatch.setattr(cpu, "_SMALL", 0)
    expected = results()
    log_p = x.double().log_softmax(-1)
    torch.testing.assert_close(expected[5].double(), log_p.expand(3, 7, LONG).gather(-1, index[..., None])[..., 0])
    # Two units in float32's last place.
    torch.testing.assert_close(expected[6].double(), -(log_p.exp() * log_p).sum(-1), rtol=3e-7, atol=0)
    monkeypatch.setattr(blocks, "_BLOCK", 2 * LONG)
    torch.testing.assert_close(results(), expected)


# Second derivatives on kernels ----------------------------------------------------------------------------------------


def masked_row() -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    return x, torch.tensor([[True, True, False, True, True]] * 3)


SCORES: dict[str, Callable[[MaskedOneHotCategorical, Tensor], Tensor]] = {
    "rsample": lambda d, p: d.rsample(),
    "log_prob": lambda d, p: d.log_prob_index(torch.tensor([0, 1, 3])),
    "entropy": lambda d, p: d.entropy(),
}
ORACLES: dict[str, Callable[[Tensor], Tensor]] = {
    "rsample": lambda p: p,
    "log_prob": lambda p: p.gather(-1, torch.tensor([[0], [1], [3]])).squeeze(-1).log(),
    "entropy": lambda p: -(p * torch.where(p > 0, p, 1.0).log()).sum(-1),
}


@pytest.mark.parametrize("score", SCORES)
def test_derivatives_under_create_graph_and_a_mask(score: str, backend: str) -> None:
    pytest.importorskip("triton")
    x, mask = masked_row()
    weight = torch.randn(3, 5, dtype=torch.float64)

    def both(out: Tensor) -> tuple[Tensor, ...]:
        grad = weight if out.dim() == 2 else weight[:, 0]
        (first,) = torch.autograd.grad(out, x, grad, create_graph=True)
        return first, *torch.autograd.grad((first * weight).sum(), x)

    found = both(SCORES[score](MaskedOneHotCategorical(x, mask=mask, grad_method=PASS), x))
    expected = both(ORACLES[score](x.masked_fill(~mask, -torch.inf).softmax(-1)))
    torch.testing.assert_close(found, expected)
    assert all((grad[:, 2] == 0).all() for grad in found)


def test_the_relaxed_gradient_of_a_kernel_says_that_it_has_no_derivative() -> None:
    pytest.importorskip("triton")
    x = torch.randn(3, 5, requires_grad=True)
    with use_backend("triton"):
        out = OneHotCategorical(x, grad_method=RELAXED).rsample()
        (first,) = torch.autograd.grad(out, x, torch.randn(3, 5), create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            first.square().sum().backward()


# Seeds ----------------------------------------------------------------------------------------------------------------


def test_the_backward_of_a_kernel_reads_the_noise_of_its_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(rng, "next_seed", lambda logits, generator: rng.Seed(None, 7, 12))
    x, grad = torch.randn(3, 5, requires_grad=True), torch.randn(2, 3, 5)
    with use_backend("triton"):
        out = OneHotCategorical(x, grad_method=RELAXED, temperature=0.7).rsample((2,))
        (found,) = torch.autograd.grad(out, x, grad)
    x, t, operators = x.detach(), torch.full((3,), 0.7), torch.ops.onehot_triton
    one_hot, index, logsumexp = operators.sample(x, 2, torch.float32, None, 7, 12, 0, None)
    assert torch.equal(out.detach(), one_hot)
    expected, _ = operators.relaxed_grad(x, logsumexp, index, grad, t, 1.0, None, 7, 12, 0, None, False, 1)
    torch.testing.assert_close(found, expected)


# What else a fault planted by hand passed -----------------------------------------------------------------------------


def test_the_log_prob_that_comes_with_draws_of_long_rows(small: None) -> None:
    """Its logsumexp is that of one of the drawn groups, divided by the group's share."""
    x = torch.randn(4, LONG, dtype=torch.float64) * 3
    for draws in (1, 3):
        drawn, log_prob = OneHotCategorical(x).sample_and_log_prob((draws,))
        expected = x.log_softmax(-1).expand(draws, -1, -1).gather(-1, drawn.argmax(-1, keepdim=True)).squeeze(-1)
        torch.testing.assert_close(log_prob, expected)


def test_an_inner_choice_of_backend_leaves_the_outer() -> None:
    pytest.importorskip("triton")
    x = torch.zeros(2, 3)
    with use_backend("triton"):
        with use_backend("eager"):
            assert not compute.uses_kernels(x.device)
        assert compute.uses_kernels(x.device)
    assert not compute.uses_kernels(x.device)


@pytest.mark.parametrize("name", ["gpu", "cuda", ""])
def test_a_backend_that_is_none_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="name: expected one of"), use_backend(name):
        pass


@pytest.mark.parametrize(("columns", "draws"), [(5, 50), (640, 19)])
def test_each_draw_and_row_has_a_uniform_of_its_own(columns: int, draws: int, small: None) -> None:
    """19 draws of 640 equal categories are few enough for two stages, of 20 groups of 32."""
    index = OneHotCategorical(torch.zeros(2, columns)).sample_index((draws,))
    assert not torch.equal(index[:, 0], index[:, 1])
    within = index % cpu.group_length(columns)
    assert (within != within[:1]).any(0).all()


def test_the_last_column_of_long_rows_is_reached_and_none_behind_it(small: None) -> None:
    x = torch.zeros(40, LONG)
    x[:, -1] = 30.0
    assert (OneHotCategorical(x).sample_index((5,)) == LONG - 1).all()


@pytest.mark.parametrize("columns", [2, LONG])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_entropy_counts_small_probabilities(columns: int, requires_grad: bool, small: None) -> None:
    x = torch.full((2, columns), -14.0, dtype=torch.float64)
    x[:, 0] = 0.0
    p = x.softmax(-1)
    found = OneHotCategorical(x.clone().requires_grad_(requires_grad)).entropy()
    torch.testing.assert_close(found.detach(), -(p * p.log()).sum(-1), rtol=1e-9, atol=0)


def test_relaxed_draws_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 100)
    out = RelaxedOneHotCategorical(0.5, logits=torch.zeros(7, 5)).rsample((3,))
    assert out.shape == (3, 7, 5)
    torch.testing.assert_close(out.sum(-1), torch.ones(3, 7))
    assert len(out.flatten(0, 1).unique(dim=0)) == 21


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logsumexp_of_rows_of_all_sizes(dtype: torch.dtype) -> None:
    """Of those, too, whose sum of exp x would overflow, be too small, or be none."""
    x = torch.randn(9, LONG).to(dtype)
    x[1], x[2], x[3], x[4] = x[1] + 200, x[2] - 200, 1e4, -1e4
    x[5] = torch.where(torch.arange(LONG) % 7 > 0, -torch.inf, -95.0)
    x[6], x[7, 3], x[8, 3] = -torch.inf, torch.nan, torch.inf
    expected = torch.logsumexp(x.double(), -1)
    expected[6:] = torch.nan
    for rows in (slice(0, 9), *(slice(at, at + 1) for at in range(9))):
        found = cpu._logsumexp(x[rows]).sum(0)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), expected[rows], rtol=2e-6, atol=2e-6, equal_nan=True)


def test_small_weights_behind_a_large_one_are_summed(small: None, set_uniforms: Callable[[float], None]) -> None:
    """2e-9 beside 1: nothing in float32, where the largest uniform would fall on the first category."""
    set_uniforms(1 - 2.0**-53)
    x = torch.full((1, 40), -20.0)
    x[0, 0] = 0.0
    assert OneHotCategorical(x).sample_index().item() == 39


@pytest.mark.parametrize("columns", [1, 2, 7, 15, 16])
def test_few_columns_of_many_rows(columns: int, small: None) -> None:
    """Their softmax is computed along the other dimension."""
    x = torch.randn(300, columns, requires_grad=True)
    value, grad, row_grad = torch.randint(columns, (300,)), torch.randn(300, columns), torch.randn(300)
    dist = OneHotCategorical(x)
    y = x.detach().double().requires_grad_()
    log_p = torch.log_softmax(y, -1)
    expected_entropy = -(log_p.exp() * log_p).sum(-1)
    expected_log_prob = log_p.gather(-1, value.unsqueeze(-1)).squeeze(-1)
    for found, expected, g in (
        (dist.probs, log_p.exp(), grad),
        (dist.logits, log_p, grad),
        (dist.rsample(), log_p.exp(), grad),
        (dist.log_prob_index(value), expected_log_prob, row_grad),
        (dist.entropy(), expected_entropy, row_grad),
    ):
        if found.dim() == 1 or not found.detach().eq(found.detach().round()).all() or columns == 1:
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        assert found.is_contiguous()
        (of_x,) = torch.autograd.grad(found, x, g, retain_graph=True)
        (of_y,) = torch.autograd.grad(expected, y, g.double(), retain_graph=True)
        torch.testing.assert_close(of_x.double(), of_y, rtol=1e-4, atol=1e-6)


def test_a_temperature_of_one_element_serves_a_row_without_batch(backend: str) -> None:
    out = RelaxedOneHotCategorical(torch.tensor([0.5]), logits=torch.zeros(4)).rsample()
    assert out.shape == (4,)


def test_a_draw_imports_no_torch_onnx():
    """It takes 100 ms, at the first large draw of a process, and only who exports to ONNX has a use for it."""
    code = (
        "import sys, torch; from onehot_triton import OneHotCategorical; "
        "OneHotCategorical(torch.zeros(64, 2000)).sample_index(); assert 'torch.onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_onnx_draws_by_a_race(monkeypatch: pytest.MonkeyPatch):
    """Which it has operators for; the export itself is tested where onnxscript is installed."""
    raced: list[bool] = []
    race = cpu.race
    monkeypatch.setattr(cpu, "race", lambda noise: raced.append(True) or race(noise))
    OneHotCategorical(torch.zeros(64, 2000)).sample_index()
    assert raced == []
    monkeypatch.setattr("torch.onnx.is_in_onnx_export", lambda: True)
    OneHotCategorical(torch.zeros(64, 2000)).sample_index()
    assert raced == [True]
