"""CUDA graphs: what was called once before is what a capture meets, and a capture neither keeps nor is given anything.

An eager call takes its seed from the host, a captured one from the device. Triton specialises a kernel by what it is
given, so these could be two variants of it, and the second would be compiled, and loaded, within the capture.
"""

from __future__ import annotations

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

PASS_THROUGH, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return FakeGpus(monkeypatch)


def dist(x: Tensor, **options: Any) -> OneHotCategorical:
    return OneHotCategorical(x, validate_args=False, **options)


def rsample(x: Tensor, method: ReparamGradientStrategy, shape: tuple[int, ...] = ()) -> None:
    dist(x, grad_method=method, temperature=0.5).rsample(shape).sum().backward()


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
