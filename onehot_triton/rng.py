"""Random numbers from torch's generators: seeds for the kernels, and the noise of the eager backends.

A kernel is a pure function of its seed. Where that seed comes from decides whether a program draws anew:

- eager, on CUDA: (seed, offset) are two host integers of the device's generator, whose offset is then advanced as
  torch's own random kernels advance it. No launch and no synchronisation.
- while a CUDA graph is captured or a graph is traced, and on devices whose generator has no offset: the seed is a
  tensor which `torch.randint` fills on the device. A replayed graph fills it again, so each replay draws anew.

Eager torch draws from the generator itself. Noise that a backward draws again comes from a seed tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tensors import can_look_at, is_recorded

Noise = Callable[[tuple[int, ...], Tensor | None], Tensor]
"""(shape, winning group or None in the group stage) -> Exp(1) noise of that shape, up to its sign."""

# torch's Philox offset counts 32-bit words and moves by whole counters of four.
_OFFSET_STEP = 4
_BATCHED = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode"))  # pyright: ignore[reportArgumentType]


class Seed(NamedTuple):
    """What noise is drawn from.

    Attributes:
        tensor: one int64 element on the device; where it is not None, nothing else counts.
        seed, offset: the host integers of a kernel.
        generator: of eager torch; None for the device's default one.
        row_offset: index of the first row in the whole batch, where these rows are a part of it.
    """

    tensor: Tensor | None = None
    seed: int = 0
    offset: int = 0
    generator: torch.Generator | None = None
    row_offset: int = 0


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
    """The seed of a kernel's draw from `logits`, from `generator` or from the default one of their device, which it
    advances."""
    device = logits.device
    if device.type != "cuda" or is_recorded(logits) or is_captured(device):
        return Seed(seed_tensor(device, generator))
    if generator is None:
        generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    seed, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + _OFFSET_STEP)
    # The schema's int is signed; the kernel reads the same 64 bits.
    return Seed(None, seed - 2**64 if seed >= 2**63 else seed, offset)


# Noise of the eager backends ------------------------------------------------------------------------------------------


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Multiples of 2^-53 in [0, 1), float64."""
    # The overload that takes a generator takes no symbolic shape.
    if generator is None:
        return torch.rand(shape, dtype=torch.float64, device=device)
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def uniform_like(tensor: Tensor, generator: torch.Generator | None) -> Tensor:
    """`uniform` of the tensor's shape and device, in less time where there is no generator."""
    if generator is None:
        return torch.rand_like(tensor, dtype=torch.float64, memory_format=torch.contiguous_format)
    return uniform(tensor.shape, tensor.device, generator)


def exponential(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Minus one Exp(1) variate per element, in float64: log1p(-v) with v uniform in the open interval (0, 1).

    The sign is left as it is because a race for the smallest E / w is one for the largest -E / w. torch.rand gives
    u = k 2^-53 in [0, 1); v = u (1 - 2^-52) + 2^-54 is never 0, which would let a category of probability 0 win
    (0 / 0), and never 1, so E is never infinite.
    """
    if device.type in ("mps", "xpu"):
        return exponential_float32(shape, device, generator)
    return exponential_of(uniform(shape, device, generator))


def exponential_of(u: Tensor) -> Tensor:
    """`exponential` from `uniform`."""
    return torch.rsub(u, -(2.0**-54), alpha=1 - 2.0**-52).log1p_()


def exponential_float32(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """`exponential` for devices without float64: the kernels' noise, from two 32-bit words an element.

    v = (hi + (lo + 1/2) 2^-32) 2^-32 and 1 - v = (~hi + (~lo + 1/2) 2^-32) 2^-32, so that whichever is small keeps its
    full relative precision, which the 24 bits of a float32 uniform do not.
    """
    hi, lo = torch.randint(2**32, (2, *shape), device=device, generator=generator, dtype=torch.int64).unbind()
    return _of_words(hi, lo, torch.float32)


def _of_words(hi: Tensor, lo: Tensor, dtype: torch.dtype) -> Tensor:
    def fraction(hi: Tensor, lo: Tensor) -> Tensor:
        return (hi.to(dtype) + (lo.to(dtype) + 0.5) * 2.0**-32) * 2.0**-32

    v, complement = fraction(hi, lo), fraction(_LOW - hi, _LOW - lo)
    return torch.where(v < 0.5, torch.log1p(-v), torch.log(complement))


def seeded_exponential(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`exponential` as a pure function of `seed` (one int64 element), for noise that a backward draws again."""
    return exponential(shape, seed.device, torch.Generator(seed.device).manual_seed(int(seed.item())))


def noise_from(device: torch.device, seed: Seed) -> Noise:
    """Fresh noise from the generator; of a seed that is a tensor, its noise of that place."""
    if seed.tensor is not None:
        return noise_again(seed_of_place(seed))
    return lambda shape, winner: exponential(shape, device, seed.generator)


def noise_of_draw(logits: Tensor, seed: Seed, again: bool) -> tuple[Noise, Callable[[], Tensor]]:
    """The noise of a draw, and the seed, to be asked for after the draw, of what is drawn again if `again`.

    The seed comes after the draw, which is therefore the same with one and without. Not so in a compiled program: a
    seed that no output needs would be left to the backward, and be another at each pass. There the draw is made of it.
    """
    if seed.tensor is not None:
        return noise_of_place(seed, logits.shape[-1]), lambda: seed_of_place(seed)
    device, generator = logits.device, seed.generator
    if not (again and torch.compiler.is_compiling()):
        return noise_from(device, seed), lambda: seed_tensor(device, generator)
    drawn, requests = seed_tensor(device, generator), itertools.count(1)
    return (
        lambda shape, winner: torch.ops.onehot_triton.seeded_exponential(drawn + next(requests), shape),
        lambda: drawn,
    )


def noise_again(seed: Tensor) -> Noise:
    """The noise of a backward, the same at each pass; a compiler and a transform see an operator."""
    if not can_look_at(seed):
        return lambda shape, winner: torch.ops.onehot_triton.seeded_exponential(seed, shape)
    generator = torch.Generator(seed.device).manual_seed(int(seed.item()))
    noise = noise_from(seed.device, Seed(generator=generator))

    def again(shape: tuple[int, ...], winner: Tensor | None) -> Tensor:
        # A batch of gradients (is_grads_batched) refuses random operators; what the seed alone decides is not one.
        with torch._C._ExcludeDispatchKeyGuard(_BATCHED):
            return noise(shape, winner)

    return again


# Noise of a place -----------------------------------------------------------------------------------------------------
#
# Ranks that draw parts of one batch, or of one row, cannot share a generator's next numbers. There eager noise is the
# kernels' (docs/noise.md): a pure function of the seed and of the row, draw and column that it is for.

_LOW = 2**32 - 1
_HALF = 512
"""Elements of half a group, which share their Philox calls with the other half."""
_ELEMENT, _GROUPS, _PLACE = 0, 1 << 30, 3 << 30
"""The stages; the last one is that of the kernels' RelaxedOneHot backward, which has no such noise here."""


def _product(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, in halves: no intermediate number reaches 2^63."""
    high, low = (a >> 16) * m, (a & 0xFFFF) * m
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _LOW


def philox(seed: Tensor, c0: Tensor, row: Tensor, draw: Tensor) -> Tensor:
    """Philox 4x32-10 at the counter of `kernels/noise.py`, for an offset of 0: four words of 32 bits, int64, in front
    of the shape to which the arguments broadcast."""
    c1, c2, c3 = row, draw, torch.full_like(seed, 1 << 31)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(c0, 0xD2511F53), _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3))


def _words(seed: Tensor, c0: Tensor, row: Tensor, draw: Tensor) -> tuple[Tensor, ...]:
    # One operator to a compiler, which would take seconds to trace the rounds.
    function = torch.ops.onehot_triton.philox if torch.compiler.is_compiling() else philox
    return function(seed, c0, row, draw).unbind()


def noise_of_place(seed: Seed, columns: int | None, first_group: int = 0) -> Noise:
    """The kernels' noise of rows of `columns`; None: of a shard of longer ones, whose groups start at `first_group`."""
    assert seed.tensor is not None
    key = seed.tensor
    stages = columns is None or columns > 2 * _HALF
    half = _HALF if columns is None else max(1, min(_HALF, (1 << max(0, columns - 1).bit_length()) // 2))

    def noise(shape: tuple[int, ...], winner: Tensor | None) -> Tensor:
        draws, rows, n = shape
        draw = torch.arange(draws, device=key.device).view(draws, 1, 1)
        row = seed.row_offset + torch.arange(rows, device=key.device).view(1, rows, 1)
        i = torch.arange(n, device=key.device)
        if stages and winner is None:
            high, low, *_ = _words(key, _GROUPS + first_group + i, row, draw)
        else:
            group = 0 if winner is None else (winner + first_group).unsqueeze(-1)
            words = _words(key, _ELEMENT + group * _HALF + i[:half], row, draw)
            w0, w1, w2, w3 = (word.expand(draws, rows, -1) for word in words)
            high, low = torch.cat([w0, w2], -1)[..., :n], torch.cat([w1, w3], -1)[..., :n]
        return _of_words(high, low, torch.float32 if key.device.type in ("mps", "xpu") else torch.float64)

    return noise


def seed_of_place(seed: Seed, first_group: int = 0) -> Tensor:
    """63 bits for noise of the rows and columns that start there, as one int64 element."""
    assert seed.tensor is not None
    at = (torch.full_like(seed.tensor, number) for number in (_PLACE, seed.row_offset, first_group))
    high, low, *_ = _words(seed.tensor, *at)
    return (high << 31) ^ (low >> 1)
