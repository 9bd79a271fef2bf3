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
from fake_gpus import FakeGpus

from onehot_triton import OneHotCategorical, rng, use_backend

# Triton's launch, and how a CPU asks whether it interprets.
OTHERS = (
    *(f"{triton.__path__[0]}/{part}" for part in ("runtime", "backends", "knobs")),
    "<frozen os>",
    "<frozen _coll",
)


class Logits:
    """All that `next_seed` asks of logits."""

    requires_grad = False
    device = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Tensors of the CPU, which cost the least, with the seeds that a GPU would have."""
    next_seed: Any = rng.next_seed
    gpus = FakeGpus(monkeypatch)
    monkeypatch.setattr(rng, "is_recorded", lambda tensor: False)
    monkeypatch.setattr(rng, "next_seed", lambda logits, generator: next_seed(Logits, generator))
    return gpus


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
