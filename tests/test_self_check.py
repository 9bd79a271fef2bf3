"""`make demo`: each check of `python -m onehot_triton` passes a right library and fails one with a planted fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from onehot_triton import OneHotCategorical, ReparamGradientStrategy
from onehot_triton import __main__ as demo

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


class Powered(OneHotCategorical):
    """Draws with the weights^1.01."""

    def sample_index(self, *args: Any, **options: Any) -> Tensor:
        return OneHotCategorical(1.01 * self._param).sample_index(*args, **options)


class NoiseShared(OneHotCategorical):
    """Rows 2 i and 2 i + 1 have one noise."""

    def sample_index(self, *args: Any, **options: Any) -> Tensor:
        index = super().sample_index(*args, **options)
        return index[..., ::2].repeat_interleave(2, -1)


class LastNeverDrawn(OneHotCategorical):
    """The last of every 64 columns gives its draws to the one before."""

    def sample_index(self, *args: Any, **options: Any) -> Tensor:
        index = super().sample_index(*args, **options)
        return index - (index % 64 == 63).long()


def test_draws_pass() -> None:
    p_value, z = demo.draw_scores(demo.zipf_logits(1, demo.COLUMNS, CPU)[0])
    assert p_value > demo.SIGNIFICANCE
    assert z < 5.5


@pytest.mark.parametrize(
    ("fault", "score"),
    [(Powered, "z"), (NoiseShared, "p"), (LastNeverDrawn, "p")],
    ids=["weights^1.01", "rows that share noise", "a category never drawn"],
)
def test_a_fault_of_the_draws(fault: type, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "OneHotCategorical", fault)
    p_value, z = demo.draw_scores(demo.zipf_logits(1, demo.COLUMNS, CPU)[0])
    assert z > 5.5 if score == "z" else p_value < demo.SIGNIFICANCE


def test_chi_square_is_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its p-value is that of scipy, where every category is a cell of its own."""
    stats = pytest.importorskip("scipy.stats")
    index = torch.arange(demo.DRAWS // demo.DRAW_CALLS * demo.ROWS) % 7
    index[:42] = 0
    index = index.view(-1, demo.ROWS)
    monkeypatch.setattr(OneHotCategorical, "sample_index", lambda *_: index)
    counts = index.flatten().bincount() * demo.DRAW_CALLS
    p_value, _ = demo.draw_scores(torch.zeros(7))
    # Neither 0 nor 1, which are the p-value for any number of degrees of freedom.
    assert 1e-4 < p_value < 0.5
    assert p_value == pytest.approx(stats.chisquare(counts.numpy()).pvalue, rel=1e-6)


RELAXED_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zero": lambda right, other: 0 * right,
    "three times too large": lambda right, other: 3 * right,
    "without 1 / t": lambda right, other: demo.RELAXED_TEMPERATURE * right,
    "of another draw": lambda right, other: other,
    "of the wrong sign": lambda right, other: -right,
}


def planted(fault: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """OneHotCategorical, but for its RelaxedOneHot gradient: `fault` of the right one and of that of another draw."""

    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, temperature: float) -> Tensor:
            draws = []
            with torch.enable_grad():
                for _ in range(2):
                    leaf = x.detach().requires_grad_()
                    method = ReparamGradientStrategy.RelaxedOneHot
                    dist = OneHotCategorical(leaf, grad_method=method, temperature=temperature)
                    draws.append((leaf, dist.rsample()))
            ctx.draws = draws
            return draws[0][1].detach()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return fault(*(torch.autograd.grad(draw, leaf, grad)[0] for leaf, draw in ctx.draws)), None

    class Faulty(OneHotCategorical):
        def rsample(self, *args: Any, **options: Any) -> Tensor:
            return Planted.apply(self._param, self.temperature)  # pyright: ignore[reportReturnType]

    return Faulty


@pytest.mark.parametrize("columns", demo.RELAXED_ROWS)
def test_the_relaxed_gradient_passes(columns: int) -> None:
    assert demo.relaxed_z_score(columns, CPU) < 6.5


@pytest.mark.parametrize("columns", demo.RELAXED_ROWS)
@pytest.mark.parametrize("fault", RELAXED_GRADIENTS)
def test_a_fault_of_the_relaxed_gradient(fault: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "OneHotCategorical", planted(RELAXED_GRADIENTS[fault]))
    # A fifth of the draws is enough.
    monkeypatch.setattr(demo, "RELAXED_STEPS", 2)
    # Not `>`: where the score is NaN, the check is off too.
    assert not demo.relaxed_z_score(columns, CPU) < 6.5


def test_errors_of_densities_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 50)
    assert max(demo.density_errors(logits).values()) < 2e-6
    right = OneHotCategorical.log_prob, OneHotCategorical.entropy
    row = torch.arange(4)
    monkeypatch.setattr(OneHotCategorical, "log_prob", lambda d, v: right[0](d, v) - 1e-3 * (row == 3))
    monkeypatch.setattr(OneHotCategorical, "entropy", lambda d: right[1](d) + 2e-3 * (row == 1))
    errors = demo.density_errors(logits)
    assert errors == pytest.approx({"log_prob": 1e-3, "entropy": 2e-3}, rel=1e-2)


@pytest.mark.parametrize("part", [0.01, -0.01])
def test_the_error_of_the_pass_through_gradient_is_seen(part: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 50)
    assert demo.pass_through_error(logits) < 1e-6
    right = OneHotCategorical.rsample
    # In the forward nothing, in the backward a hundredth: of either sign, as the largest entry has one of them.
    monkeypatch.setattr(OneHotCategorical, "rsample", lambda d: (lambda h: h + part * (h - h.detach()))(right(d)))
    assert demo.pass_through_error(logits) == pytest.approx(0.01, rel=1e-2)


SCORES = {
    "draws, chi-square p-value": ("draw_scores", (1e-7, 0.0)),
    "draws, z-score of the mean log_prob": ("draw_scores", (0.5, 6.0)),
    "log_prob, largest error in nats": ("density_errors", {"log_prob": 3e-5, "entropy": 0.0}),
    "entropy, largest error in nats": ("density_errors", {"log_prob": 0.0, "entropy": 3e-5}),
    "PassThrough gradient, relative error": ("pass_through_error", 2e-5),
    "RelaxedOneHot gradient, 8 columns, z-score": ("relaxed_z_score", {8: 7.0, 1024: 0.0}),
    "RelaxedOneHot gradient, 1024 columns, z-score": ("relaxed_z_score", {8: 0.0, 1024: math.nan}),
}


@pytest.fixture
def all_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """No score is off, and nothing large is computed."""
    for name, score in (
        ("draw_scores", (0.5, 0.0)), ("density_errors", {"log_prob": 0.0, "entropy": 0.0}), ("pass_through_error", 0.0),
        ("relaxed_z_score", 0.0),
    ):  # fmt: skip
        monkeypatch.setattr(demo, name, lambda *_, score=score: score)
    monkeypatch.setattr(demo, "COLUMNS", 10)
    monkeypatch.setattr(demo, "table", lambda device: None)


def test_status_0_where_every_check_is_good(all_good: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "OFF" not in out
    assert out.count("  ok   ") == len(SCORES)


@pytest.mark.parametrize("check", SCORES)
def test_status_1_and_what_is_off(
    check: str, all_good: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, score = SCORES[check]
    by_columns = name == "relaxed_z_score"
    monkeypatch.setattr(demo, name, (lambda columns, _: score[columns]) if by_columns else lambda *_: score)
    assert demo.main() == 1
    out, err = capsys.readouterr()
    assert err == f"\nThe library computes wrongly on this machine: {check}.\n"
    assert [line for line in out.splitlines() if "OFF" in line and check in line]
    assert out.count("OFF") == 1
