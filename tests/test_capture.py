"""CUDA graphs: what was called once before is what a capture meets, and a capture neither keeps nor is given anything.

An eager call takes its seed from the host, a captured one from the device. Triton specialises a kernel by what it is
given, so these could be two variants of it, and the second would be compiled, and loaded, within the capture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_gpus import FakeGpus
from torch import Tensor

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    rng,
    use_backend,
)
from onehot_triton.kernels import log_prob as kernels

PASS_THROUGH, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return FakeGpus(monkeypatch)


def dist(x: Tensor | None, **options: Any) -> OneHotCategorical:
    return OneHotCategorical(x, validate_args=False, **options)


def rsample(x: Tensor, method: ReparamGradientStrategy, shape: tuple[int, ...] = ()) -> None:
    temperature = 1.0 if method is PASS_THROUGH else 0.5
    dist(x, grad_method=method, temperature=temperature).rsample(shape).sum().backward()


def masked(x: Tensor) -> None:
    d = MaskedOneHotCategorical(x, mask=x.detach() > 0, grad_method=RELAXED, validate_args=False)
    draw = d.rsample()
    (draw.sum() + d.log_prob(draw).sum() + d.entropy().sum()).backward()


# With their backwards.
OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "sample": lambda x: dist(x).sample(),
    "sample_index": lambda x: dist(x).sample_index((3,)),
    "sample_and_log_prob": lambda x: dist(x).sample_and_log_prob()[1].sum().backward(),
    "PassThrough": lambda x: rsample(x, PASS_THROUGH),
    "RelaxedOneHot": lambda x: rsample(x, RELAXED),
    "RelaxedOneHot, 3 draws": lambda x: rsample(x, RELAXED, (3,)),
    "log_prob": lambda x: dist(x).log_prob(torch.zeros_like(x)).sum().backward(),
    "log_prob_index": lambda x: dist(x).log_prob_index(x.detach().argmax(-1)).sum().backward(),
    "entropy": lambda x: dist(x).entropy().sum().backward(),
    "relaxed": lambda x: RelaxedOneHotCategorical(0.5, logits=x, validate_args=False).rsample().sum().backward(),
    "masked": masked,
}


@pytest.mark.parametrize("shape", [(8, 18), (7, 32), (300, 5000), (2, 100_000)], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_capture_compiles_nothing(
    gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, int]
) -> None:
    """No kernel is compiled or loaded for a seed on the device that was not for one of the host. Seed, offset and the
    address of the seed are those that Triton would specialise on: 0, 1, a multiple of 16, none."""
    seeds = [rng.Seed(None, 1, 16), rng.Seed(None, 0, 4), rng.Seed(None, 16 * 3, 8)]
    numbers = torch.arange(8)
    captured = [rng.Seed(numbers[at], 0, 0) for at in (0, 1)]
    with use_backend("triton"):
        counts = []
        for seed in (*seeds, *captured):
            monkeypatch.setattr(rng, "next_seed", lambda *_, seed=seed: seed)
            OPERATIONS[name](torch.empty(shape, requires_grad=True))
            counts.append(len(gpus.compiled))
    assert counts[0] > 0
    assert counts == counts[:1] * 5, gpus.compiled


@pytest.mark.parametrize(
    ("rows", "columns", "kernels"),
    [((300, 301, 302, 303), 5000, ["_row_kernel"]), ((3, 4, 5), 100_000, ["_row_kernel"])],
)
def test_no_variant_for_where_scratch_lies(
    gpus: FakeGpus, rows: tuple[int, ...], columns: int, kernels: list[str]
) -> None:
    """Scratch of several numbers a group is one allocation: the second begins where the number of rows says."""
    with use_backend("triton"):
        for n in rows:
            dist(torch.empty(n, columns)).sample()
    assert gpus.compiled == kernels


DERIVED: dict[str, Callable[[Tensor], OneHotCategorical]] = {
    "probs": lambda x: dist(None, probs=x),
    "unimix": lambda x: dist(x, unimix=0.1),
    "expanded": lambda x: dist(None, probs=x).expand((3, 8)),
}


@pytest.mark.parametrize("name", DERIVED)
def test_derived_logits_are_part_of_the_graph_that_uses_them(gpus: FakeGpus, name: str) -> None:
    """Kept from before, a replay would draw from the parameter as it was; kept from a capture, an eager call would read
    memory of a graph that may never have been replayed."""
    with gpus.tensors() as operators:

        def logarithms(call: Callable[[], Any]) -> int:
            before = operators.count("aten.log.default")
            call()
            return operators.count("aten.log.default") - before

        x = torch.empty(8, 50, device="cuda")
        d = DERIVED[name](x)
        each = logarithms(lambda: DERIVED[name](x))
        assert each > 0
        assert logarithms(d.sample) == 0
        gpus.captured.add(0)
        assert logarithms(d.sample) == each
        assert logarithms(d.sample) == 0
        assert logarithms(lambda: DERIVED[name](x).sample()) == each
        inside = DERIVED[name](x)
        gpus.captured.clear()
        for one in (d, inside):
            assert logarithms(one.sample) == each
            assert logarithms(one.sample) == 0


def test_a_capture_keeps_nothing_of_the_parameter(gpus: FakeGpus) -> None:
    """Of logits that are the parameter, each call reads what is there: no tensor but the arguments outlives it."""
    with gpus.tensors():
        x = torch.empty(8, 50, device="cuda")
        d = OneHotCategorical(x, grad_method=PASS_THROUGH)
        gpus.captured.add(0)
        before = {name: id(value) for name, value in vars(d).items()}
        # But for the last draw, a hint that the kernel looks at.
        draw = d.rsample()
        d.log_prob(draw)
        d.sample_and_log_prob()
        d.entropy()
        assert {name: id(value) for name, value in vars(d).items() if name != "_drawn"} == before
        assert not [value for value in vars(d).values() if isinstance(value, Tensor) and value is not x]


def test_a_graph_reads_no_index_from_before_it(gpus: FakeGpus) -> None:
    """The memory of an index that the distribution alone holds is free once it draws again."""

    def has_hint() -> bool:
        kernel, *_, arguments = gpus.launches[-1]
        assert kernel == "_log_prob_kernel"
        return arguments[list(inspect.signature(kernels._log_prob_kernel.fn).parameters).index("hint_ptr")] is not None

    with gpus.tensors():
        d = OneHotCategorical(torch.empty(8, 50, device="cuda"), validate_args=False)
        before = d.sample()
        d.log_prob(before)
        assert has_hint()
        gpus.captured.add(0)
        d.log_prob(before)
        assert not has_hint()
        within = d.sample()
        d.log_prob(within)
        assert has_hint()
        gpus.captured.clear()
        d.log_prob(within)
        assert not has_hint()
