"""torch.compile(fullgraph=True) of everything a policy step does, and torch.export of a module that samples."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
)
from onehot_triton import __main__ as demo

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot]
COLUMNS = 20


class Graphs:
    """A backend that counts the graphs that it is given."""

    def __init__(self, backend: str = "eager") -> None:
        self.count = 0
        self._compile = torch._dynamo.lookup_backend(backend)

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return self._compile(module, inputs)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    # torch memorises the function of a pair of classes while it is traced, and would compile once more because of it.
    kl_divergence(OneHotCategorical(torch.zeros(2)), OneHotCategorical(torch.zeros(2)))


def step(logits: Tensor, method: ReparamGradientStrategy | None, validate: bool | None) -> dict[str, Tensor]:
    dist = OneHotCategorical(logits, grad_method=method, validate_args=validate)
    action = dist.sample()
    other = OneHotCategorical(torch.zeros_like(logits), validate_args=validate)
    return {
        "sample": action,
        "rsample": dist.rsample(),
        "log_prob": dist.log_prob(action),
        "entropy": dist.entropy(),
        "mode": dist.mode,
        "kl": kl_divergence(dist, other),
    }


def loss_of(out: dict[str, Tensor]) -> Tensor:
    """Of every second row, the draw has a part in it."""
    draws = (out["rsample"][::2] * torch.arange(COLUMNS)).sum()
    return draws + out["log_prob"].sum() + 2 * out["entropy"].sum() + 3 * out["kl"].sum()


def check(out: dict[str, Tensor], logits: Tensor, validate: bool | None) -> None:
    """What does not depend on the draw is eager's, and a draw is a draw."""
    dist = OneHotCategorical(logits.detach(), validate_args=validate)
    for name in ("sample", "rsample"):
        assert ((out[name] == 0) | (out[name] == 1)).all()
        assert (out[name].sum(-1) == 1).all()
    assert torch.equal(out["mode"], dist.mode)
    uniform = OneHotCategorical(torch.zeros_like(dist.logits))
    exact = {"log_prob": dist.log_prob(out["sample"]), "entropy": dist.entropy(), "kl": kl_divergence(dist, uniform)}
    for name, expected in exact.items():
        torch.testing.assert_close(out[name].detach(), expected, rtol=1e-5, atol=1e-6)


def check_gradient(logits: Tensor, out: dict[str, Tensor], method: ReparamGradientStrategy | None) -> None:
    (found,) = torch.autograd.grad(loss_of(out), logits)
    # Every term leaves the logits' common offset alone, so a row of the gradient sums to 0.
    torch.testing.assert_close(found.sum(-1), torch.zeros(len(logits)), rtol=0, atol=2e-4)
    x = logits.detach().requires_grad_()
    dist = OneHotCategorical(x)
    soft = {"log_prob": dist.log_prob(out["sample"]), "entropy": dist.entropy(), "rsample": x.softmax(-1)}
    soft["kl"] = kl_divergence(dist, OneHotCategorical(torch.zeros_like(x)))
    (expected,) = torch.autograd.grad(loss_of(soft), x)
    if method is ReparamGradientStrategy.RelaxedOneHot:
        # With the draw's part it is random: test_the_compiled_relaxed_gradient_is_that_of_its_draw.
        assert (found != expected)[::2].any(-1).all()
        found, expected = found[1::2], expected[1::2]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def run(compiled: Callable[..., dict[str, Tensor]], rows: int, method: Any, validate: bool | None) -> None:
    logits = torch.randn(rows, COLUMNS, requires_grad=True)
    out = compiled(logits, method, validate)
    check(out, logits, validate)
    check_gradient(logits, out, method)


# aot_eager is given what eager is given, and traces it and its backward once more.
@pytest.mark.parametrize("validate", [False, None, True])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_one_graph(method: ReparamGradientStrategy | None, validate: bool | None) -> None:
    graphs = Graphs("aot_eager")
    run(torch.compile(step, fullgraph=True, backend=graphs), 5, method, validate)
    assert graphs.count == 1


@pytest.mark.parametrize("requires_grad", [False, True])
def test_one_graph_of_long_rows(requires_grad: bool) -> None:
    graphs = Graphs("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=graphs, dynamic=True)
    for rows in (5, 9):
        logits = torch.randn(rows, 3000, requires_grad=requires_grad)
        check(compiled(logits, None, False), logits, False)
    assert graphs.count == 1


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_new_batch_size_compiles_nothing_new(method: ReparamGradientStrategy, validate: bool | None) -> None:
    graphs = Graphs("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=graphs, dynamic=True)
    for rows in (5, 7, 64):
        run(compiled, rows, method, validate)
    assert graphs.count == 1


def test_without_dynamic_the_second_batch_size_compiles_for_all() -> None:
    """torch's own habit: what changes once is symbolic from then on."""
    graphs = Graphs()
    compiled = torch.compile(step, fullgraph=True, backend=graphs)
    for rows in (5, 7, 9, 64):
        run(compiled, rows, METHODS[0], False)
    assert graphs.count == 2


ONE_CALL: dict[str, Callable[[Tensor], Tensor]] = {
    "construct_from_probs": lambda x: OneHotCategorical(probs=x.exp()).entropy(),
    "unimix": lambda x: OneHotCategorical(x, unimix=0.01).log_prob(OneHotCategorical(x).mode),
    "sample_shape": lambda x: OneHotCategorical(x).sample((3,)),
    "sample_index": lambda x: OneHotCategorical(x, dtype=torch.bool).sample_index((2,)),
    "log_prob_index": lambda x: OneHotCategorical(x).log_prob_index(x.argmax(-1)),
    "sample_and_log_prob": lambda x: OneHotCategorical(x).sample_and_log_prob()[1],
    "rsample_and_log_prob": lambda x: OneHotCategorical(x).rsample_and_log_prob((2,))[1],
    "expand": lambda x: OneHotCategorical(x).expand((2, *x.shape[:-1])).sample(),
    "mean": lambda x: OneHotCategorical(x).mean,
    "variance": lambda x: OneHotCategorical(x).variance,
    "probs": lambda x: OneHotCategorical(x).probs,
    "logits": lambda x: OneHotCategorical(x).logits,
    "enumerate_support": lambda x: OneHotCategorical(x).enumerate_support(),
    "tensor_temperature": lambda x: OneHotCategorical(
        x, grad_method=METHODS[1], temperature=torch.ones(x.shape[0])
    ).rsample(),
    "masked_logits": lambda x: MaskedOneHotCategorical(x, mask=x < 1).logits,
    "relaxed_rsample": lambda x: RelaxedOneHotCategorical(0.5, logits=x).rsample(),
    "relaxed_log_prob": lambda x: RelaxedOneHotCategorical(0.5, logits=x).log_prob(x.softmax(-1)),
    "relaxed_mask": lambda x: RelaxedOneHotCategorical(0.5, logits=x, mask=x < 1).log_prob(
        x.masked_fill(x >= 1, -torch.inf).softmax(-1)
    ),
    "log_relaxed_rsample": lambda x: RelaxedOneHotCategorical(0.5, logits=x).base_dist.rsample(),
    "log_relaxed_log_prob": lambda x: RelaxedOneHotCategorical(0.5, logits=x).base_dist.log_prob(x.log_softmax(-1)),
}


RANDOM = {name for name in ONE_CALL if "sample" in name} | {"expand", "tensor_temperature"}


@pytest.mark.parametrize("name", ONE_CALL)
def test_one_call(name: str) -> None:
    function = ONE_CALL[name]
    graphs = Graphs()
    compiled = torch.compile(function, fullgraph=True, backend=graphs, dynamic=True)
    for rows in (5, 7):
        logits = torch.randn(rows, COLUMNS, requires_grad=True)
        out, eager = compiled(logits), function(logits)
        assert (out.shape, out.dtype) == (eager.shape, eager.dtype)
        is_random = name in RANDOM
        if not is_random:
            torch.testing.assert_close(out, eager)
        assert out.requires_grad == eager.requires_grad
        if out.requires_grad:
            weights = torch.randn_like(out)
            found, expected = (torch.autograd.grad(result, logits, weights)[0] for result in (out, eager))
            assert found.isfinite().all()
            if not is_random:
                torch.testing.assert_close(found, expected)
    assert graphs.count == 1


def test_validation_speaks_in_a_compiled_graph() -> None:
    compiled = torch.compile(lambda x: OneHotCategorical(x, validate_args=True).entropy(), backend="eager")
    with pytest.raises(RuntimeError, match="expected a distribution in every row"):
        compiled(torch.full((2, COLUMNS), torch.nan))


def test_a_compiled_draw_is_new_each_time() -> None:
    compiled = torch.compile(
        lambda x: OneHotCategorical(x).sample_index(), fullgraph=True, backend="aot_eager", dynamic=True
    )
    draws = torch.stack([compiled(torch.zeros(200, COLUMNS)) for _ in range(10)])
    assert len({tuple(draw.tolist()) for draw in draws}) == 10
    counts = draws.flatten().bincount(minlength=COLUMNS).double()
    statistic = ((counts - 100) ** 2 / 100).sum()
    assert torch.special.gammaincc(torch.tensor((COLUMNS - 1) / 2).double(), statistic / 2) > 1e-6


@pytest.mark.parametrize("columns", demo.RELAXED_ROWS)
def test_the_compiled_relaxed_gradient_is_that_of_its_draw(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the z-scores of the self-check, which compare gradient and draw together, in one stage and in two."""

    def rsample(logits: Tensor, temperature: float) -> Tensor:
        method = ReparamGradientStrategy.RelaxedOneHot
        return OneHotCategorical(logits, grad_method=method, temperature=temperature).rsample()

    compiled = torch.compile(rsample, fullgraph=True, backend="aot_eager")

    class Compiled(OneHotCategorical):
        def rsample(self, *args: Any, **options: Any) -> Tensor:
            return compiled(self._param, self.temperature)

    monkeypatch.setattr(demo, "OneHotCategorical", Compiled)
    monkeypatch.setattr(demo, "RELAXED_STEPS", 2)
    assert demo.relaxed_z_score(columns, torch.device("cpu")) < 6.5


# Inductor -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
def test_inductor() -> None:
    """PassThrough's is among the members of test_ways_of_differentiating.py."""
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (5, 7):
        run(compiled, rows, ReparamGradientStrategy.RelaxedOneHot, False)


# Export ---------------------------------------------------------------------------------------------------------------


class Policy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(8, COLUMNS)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        return OneHotCategorical(self.net(observation)).sample_and_log_prob()


@pytest.mark.parametrize("strict", [False, True])
def test_a_saved_program_samples_every_batch_size(strict: bool, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Policy(), (torch.randn(5, 8),), dynamic_shapes=({0: batch},), strict=strict)
    torch.export.save(program, tmp_path / "policy.pt2")
    module = torch.export.load(tmp_path / "policy.pt2").module()
    for rows in (5, 300):
        one_hot, log_prob = module(torch.zeros(rows, 8))
        assert one_hot.shape == (rows, COLUMNS)
        assert (one_hot.sum(-1) == 1).all()
        assert log_prob.shape == (rows,)
    assert not torch.equal(one_hot, module(torch.zeros(300, 8))[0])
