"""rng.py: what a kernel's seed is, with stand-ins for a GPU's generator."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from onehot_triton import rng

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Generator:
    """A CUDA generator's seed and offset."""

    def __init__(self, seed: int, offset: int = 0) -> None:
        self.seed, self.offset = seed, offset

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


class Logits:
    """All that `next_seed` asks of logits."""

    requires_grad = False

    def __init__(self, device: torch.device = CUDA) -> None:
        self.device = device


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Generator]:
    """Two GPUs, of which the second is the current one. Nothing is traced or captured."""
    generators = [Generator(5, 8), Generator(6, 16)]
    monkeypatch.setattr(rng, "is_recorded", lambda tensor: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    # Which GPU is asked whether it is captured: test_devices.py.
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(rng, "seed_tensor", lambda device, generator: (device, generator))
    return generators


def next_seed(generator: Any = None, device: torch.device = CUDA) -> rng.Seed:
    return rng.next_seed(Logits(device), generator)  # pyright: ignore[reportArgumentType]


def test_a_seed_tensor_is_63_bits_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(1)
    seeds = [rng.seed_tensor(CPU, generator) for _ in range(64)]
    assert {(seed.dtype, seed.shape) for seed in seeds} == {(torch.int64, ())}
    numbers = [int(seed) for seed in seeds]
    assert len(set(numbers)) == 64
    assert min(numbers) >= 0
    # Each of the 63 bits is 0 in some, and 1 in some: of 64 fair ones, but once in 2^63.
    every, some = (1 << 63) - 1, 0
    for number in numbers:
        every, some = every & number, some | number
    assert every == 0
    assert some == 2**63 - 1
    assert int(rng.seed_tensor(CPU, torch.Generator().manual_seed(1))) == numbers[0]


def test_the_default_generator_where_none_is_given() -> None:
    torch.manual_seed(3)
    first = int(rng.seed_tensor(CPU, None))
    torch.manual_seed(3)
    assert int(rng.seed_tensor(CPU, None)) == first


def test_a_cpu_has_a_seed_tensor() -> None:
    generator = torch.Generator().manual_seed(1)
    seed = rng.next_seed(torch.zeros(2), generator)
    assert seed.tensor is not None
    assert int(seed.tensor) == int(rng.seed_tensor(CPU, torch.Generator().manual_seed(1)))
    assert seed[1:] == (0, 0, None, 0)


def test_a_gpu_generator_gives_two_integers_and_is_advanced(gpu: list[Generator]) -> None:
    """By a whole Philox counter, which is four words, as torch itself advances it."""
    generator = Generator(7, 12)
    assert next_seed(generator)[:3] == (None, 7, 12)
    assert next_seed(generator)[:3] == (None, 7, 16)
    assert generator.offset == 20
    assert [g.offset for g in gpu] == [8, 16]


def test_the_default_generator_is_that_of_the_logits_device(gpu: list[Generator]) -> None:
    assert next_seed()[:3] == (None, 5, 8)
    assert next_seed(device=torch.device("cuda", 1))[:3] == (None, 6, 16)
    # Without an index, it is the current one.
    assert next_seed(device=torch.device("cuda"))[:3] == (None, 6, 20)
    assert [g.offset for g in gpu] == [12, 24]


@pytest.mark.parametrize(
    ("seed", "signed"), [(0, 0), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1), (2**64 - 5, -5)]
)
def test_the_seed_is_a_signed_number(gpu: list[Generator], seed: int, signed: int) -> None:
    assert next_seed(Generator(seed)).seed == signed


@pytest.mark.parametrize("why", ["recorded", "captured"])
def test_what_is_played_again_has_a_seed_tensor(
    gpu: list[Generator], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the generator's own offset stays: a replay would not advance it."""
    if why == "recorded":
        monkeypatch.setattr(rng, "is_recorded", lambda tensor: True)
    else:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    generator = Generator(7, 12)
    assert next_seed(generator)[:3] == ((CUDA, generator), 0, 0)
    assert generator.offset == 12
