"""How many Python functions a call enters above Triton's own launch: for small batches that is what it costs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
import triton
from fake_gpus import FakeGpus, on_tensors_of_a_cpu

from onehot_triton import OneHotCategorical, ReparamGradientStrategy, use_backend

# Triton's launch, and how a CPU asks whether it interprets.
OTHERS = (
    *(f"{triton.__path__[0]}/{part}" for part in ("runtime", "backends", "knobs")),
    "<frozen os>",
    "<frozen _coll",
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return on_tensors_of_a_cpu(monkeypatch)


def entered(call: Callable[[], Any]) -> Counter[str]:
    """The functions that the second call of `call` enters, but for those of `OTHERS` and of the stand-ins."""
    call()
    found: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and not file.startswith(OTHERS) and not file.endswith(("fake_gpus.py", __file__)):
            found[f"{file.rpartition('/')[2]}: {name}"] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("shape", [(64, 18), (1024, 32), (300, 5000), (2, 100_000)], ids=str)
def test_calls_of_a_sample(gpu: FakeGpus, shape: tuple[int, int]) -> None:
    """To make a distribution and draw from it: half of what it was before calls were counted."""
    x = torch.randn(shape)
    with use_backend("triton"):
        found = entered(lambda: OneHotCategorical(x, validate_args=False).sample())
    assert len(gpu.launches) >= 2
    assert found.total() <= 80, found.most_common()


@pytest.mark.parametrize("shape", [(64, 18), (1024, 32), (300, 5000)], ids=str)
def test_calls_of_a_train_step(gpu: FakeGpus, shape: tuple[int, int]) -> None:
    """Construct, rsample, log_prob, entropy, backward. Of the calls, torch's own backward enters 40."""
    x = torch.randn(shape, requires_grad=True)
    grads = torch.randn(shape), torch.randn(shape[0]), torch.randn(shape[0])

    def step() -> None:
        dist = OneHotCategorical(x, grad_method=ReparamGradientStrategy.PassThrough, validate_args=False)
        draw = dist.rsample()
        torch.autograd.grad([draw, dist.log_prob(draw), dist.entropy()], x, grads)

    with use_backend("triton"):
        found = entered(step)
    assert len(gpu.launches) == 12
    assert found.total() <= 350, found.most_common()


def test_a_profiler_sees_operators(gpu: FakeGpus) -> None:
    """Where nobody watches, a launcher is called without the dispatcher."""
    x = torch.randn(8, 18)
    with use_backend("triton"), torch.autograd.profiler.profile() as profile:
        OneHotCategorical(x, validate_args=False).sample()
    assert "onehot_triton::sample" in {event.name for event in profile.function_events or ()}
