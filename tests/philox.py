"""Philox 4x32-10 in NumPy, from the published algorithm, and the noise of the kernels drawn from it.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. It shares no line with Triton's
or torch's Philox: it is the oracle of the kernels' words (tests/statistics/test_words.py), and feeds the twin with the
noise that a kernel uses, so that the two can be compared draw for draw:

    index, one_hot = kernels.sample.sample(logits, draws, dtype, seed, offset, row_offset)
    noise = philox_noise(seed, offset, columns, draws, row_offset)
    base.sample_index(logits, draws, noise, GROUP)

The layout of the counter is that of docs/noise.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from onehot_triton.compute import base

GROUP = 1024
ELEMENT, GROUP_STAGE, RELAXED, RELAXED_GRAD = range(4)

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: tuple, key: tuple[int, int], rounds: int = 10) -> tuple[np.ndarray, ...]:
    """Four words, uint64 arrays below 2^32, for counters c0 .. c3 (integers or arrays that broadcast) and a key of two
    32-bit words."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) & _LOW for c in counter))
    k0, k1 = key
    for _ in range(rounds):
        # A 32 x 32 bit product fits 64 bits.
        even, odd = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (odd >> _HALF) ^ c1 ^ np.uint64(k0),
            odd & _LOW,
            (even >> _HALF) ^ c3 ^ np.uint64(k1),
            even & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed: int, offset: int, stage: int, call, row, draw) -> tuple[np.ndarray, ...]:
    """The four words of one call, at the counter of docs/noise.md. `call`, `row` and `draw` broadcast."""
    key = (seed + ((offset >> 33) << 32)) % 2**64
    call = np.asarray(call, dtype=np.uint64)
    counter = (np.uint64(stage << 30) | call, row, draw, 1 << 31 | (offset >> 2) & 0x7FFFFFFF)
    return philox4x32(counter, (key & 0xFFFFFFFF, key >> 32))


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def element_words(seed: int, offset: int, columns: int, row, draw, column) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) word of columns `column` of a row of `columns`."""
    half = max(1, min(512, next_power_of_2(columns) // 2))
    column = np.asarray(column, dtype=np.int64)
    inside = column % GROUP
    w = words(seed, offset, ELEMENT, column // GROUP * 512 + inside % half, row, draw)
    first = inside < half
    return np.where(first, w[0], w[2]), np.where(first, w[1], w[3])


def group_words(seed: int, offset: int, row, draw, group) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) word of group `group`."""
    high, low, *_ = words(seed, offset, GROUP_STAGE, group, row, draw)
    return high, low


def relaxed_words(seed: int, offset: int, columns: int, row, draw, column, stage: int = RELAXED) -> np.ndarray:
    """The one word of columns `column` of a relaxed sample."""
    quarter = max(1, min(256, next_power_of_2(columns) // 4))
    column = np.asarray(column, dtype=np.int64)
    inside = column % GROUP
    w = words(seed, offset, stage, column // GROUP * 256 + inside % quarter, row, draw)
    return np.choose(np.broadcast_to(inside // quarter, w[0].shape), w)


def exponential(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """-log1p(-v), v = (high + (low + 1/2) 2^-32) 2^-32, in float64. Of v and 1 - v, both sums of the same words or of
    their complements, the one below 1/2 is used: it keeps its relative precision."""
    high, low = high.astype(np.float64), low.astype(np.float64)
    v = (high + (low + 0.5) * 2.0**-32) * 2.0**-32
    complement = ((2.0**32 - 1 - high) + (2.0**32 - 0.5 - low) * 2.0**-32) * 2.0**-32
    return np.where(v < 0.5, -np.log1p(-np.minimum(v, 0.5)), -np.log(complement))


def relaxed_exponential(word: np.ndarray) -> np.ndarray:
    """-log1p(-v), v = (word + 1/2) 2^-32, exact in float64."""
    return -np.log1p(-(word.astype(np.float64) + 0.5) * 2.0**-32)


def philox_noise(
    seed: int, offset: int, columns: int, draws: int, row_offset: int = 0
) -> Callable[[tuple[int, ...], Tensor | None], Tensor]:
    """The `noise` argument of `base.sample_index`: the noise of the sample kernel.

    It asks for all at once, first for the groups, where there is more than one, then for the columns of the winning
    ones. `cpu.sample_index` asks in blocks: all draws of some rows, then of the next rows, each some draws at a time.
    This follows along, so one such function serves one call, with group=GROUP.
    """
    at = {"row": row_offset, "group draw": 0, "draw": 0}
    groups = -(-columns // GROUP)

    def noise(shape: tuple[int, ...], winner: Tensor | None) -> Tensor:
        count, rows, width = shape
        of_groups = winner is None and groups > 1
        stage = "group draw" if of_groups else "draw"
        draw = (at[stage] + np.arange(count))[:, None, None]
        row = (at["row"] + np.arange(rows))[None, :, None]
        at[stage] += count
        if of_groups:
            high, low = group_words(seed, offset, row, draw, np.arange(width))
        else:
            start = 0 if winner is None else winner.cpu().numpy()[..., None] * GROUP
            high, low = element_words(seed, offset, columns, row, draw, start + np.arange(width))
            if at["draw"] == draws:
                at.update({"row": at["row"] + rows, "group draw": 0, "draw": 0})
        device = torch.device("cpu") if winner is None else winner.device
        return -torch.from_numpy(exponential(high, low)).to(device)

    return noise


def philox_relaxed_noise(
    seed: int, offset: int, row_offset: int = 0
) -> Callable[[tuple[int, ...], Tensor | None], Tensor]:
    """The `noise` argument of `EAGER.relaxed_with`: the noise of the relaxed kernel."""

    def noise(shape: tuple[int, ...], winner: Tensor | None) -> Tensor:
        draws, rows, columns = shape
        draw, row = np.arange(draws)[:, None, None], (row_offset + np.arange(rows))[None, :, None]
        return -torch.from_numpy(
            relaxed_exponential(relaxed_words(seed, offset, columns, row, draw, np.arange(columns)))
        )

    return noise


def twin_sample(
    logits: Tensor, draws: int, dtype: torch.dtype | None, seed: int, offset: int, row_offset: int = 0
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(one_hot, index, logsumexp) of the twin, draw for draw those of `kernels.sample.sample`."""
    noise = philox_noise(seed, offset, logits.shape[1], draws, row_offset)
    index = base.sample_index(logits, draws, noise)
    one_hot = None if dtype is None else base.one_hot(index, logits.shape[1], dtype)
    return one_hot, index, base.logsumexp(logits)


def posterior_noise(
    seed: int, offset: int, draws: int, rows: int, columns: int, row_offset: int = 0
) -> tuple[Tensor, Tensor]:
    """(E_j, E_k) of `EAGER.relaxed_grad_with`: the noise of the relaxed_grad kernel."""
    draw, row = np.arange(draws)[:, None], row_offset + np.arange(rows)[None, :]
    high, low, _, _ = words(seed, offset, RELAXED_GRAD, 2**30 - 1, row, draw)
    each = relaxed_words(seed, offset, columns, row[..., None], draw[..., None], np.arange(columns), RELAXED_GRAD)
    return torch.from_numpy(relaxed_exponential(each)), torch.from_numpy(exponential(high, low))
