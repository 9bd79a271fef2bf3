"""Seeds for the kernels, taken from torch's generators.

A kernel is a pure function of its seed. Where that seed comes from decides whether a program draws anew:

- eager, on CUDA: (seed, offset) are two host integers of the device's generator, whose offset is then advanced as
  torch's own random kernels advance it. No launch and no synchronisation.
- while a CUDA graph is captured or a graph is traced, and on devices whose generator has no offset: the seed is a
  tensor which `torch.randint` fills on the device. A replayed graph fills it again, so each replay draws anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference import is_recorded

# torch's Philox offset counts 32-bit words and moves by whole counters of four.
_OFFSET_STEP = 4


class Seed(NamedTuple):
    """What a kernel draws its noise from: `tensor` (one int64 element on the device) where it is not None, else the
    host integers `key` and `offset`."""

    tensor: Tensor | None
    key: int
    offset: int


def seed_tensor(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """63 fresh bits from the generator, as one int64 element on `device`."""
    # `generator=None` would be another overload, for which torch's compiler launches a kernel of torch's. Without it,
    # the seeds of a graph are random numbers of its own, made together.
    given: dict[str, Any] = {} if generator is None else {"generator": generator}
    return torch.randint(2**63 - 1, (), device=device, **given)


def is_captured(device: torch.device) -> bool:
    """Whether the current stream of that GPU is being captured; torch tells of the current GPU."""
    if device.type != "cuda":
        return False
    if device.index is None or device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def next_seed(logits: Tensor, generator: torch.Generator | None) -> Seed:
    """The seed of a draw from `logits`, from `generator` or from the default one of their device, which it advances."""
    device = logits.device
    if device.type != "cuda" or is_recorded(logits) or is_captured(device):
        return Seed(seed_tensor(device, generator), 0, 0)
    if generator is None:
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    key, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + _OFFSET_STEP)
    # The schema's int is signed; the kernel reads the same 64 bits.
    return Seed(None, key - 2**64 if key >= 2**63 else key, offset)
