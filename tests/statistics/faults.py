"""Planted faults: samplers that are wrong in a known way, to show that the checks see it.

Most keep the library's own sampler and hand it faulty noise, so that nothing else differs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from samplers import Sampler, race_cost, search_cost
from torch import Tensor

from onehot_triton import rng
from onehot_triton.compute import base, cpu


class Fault(NamedTuple):
    """A faulty sampler, and the checks that must reject it."""

    sampler: Sampler
    rejected_by: tuple[str, ...]


def _draw(noise, logits: Tensor, n: int) -> Tensor:
    group = cpu.group_length(logits.shape[-1])
    return base.sample_index(logits, n, noise, group)


def _exact(shape: tuple[int, ...]) -> Tensor:
    return rng.exponential(shape, torch.device("cpu"))


def _with_noise(name: str, make_noise, *rejected_by: str) -> Fault:
    """make_noise() -> the `noise` of one call of the sampler."""
    return Fault(Sampler(name, lambda x, n: _draw(make_noise(), x, n), race_cost), rejected_by)


# Faults of the uniform --------------------------------------------------------------------------------------------


def first_of_the_highest(levels: int, columns: int, n: int) -> Tensor:
    """The arg-max, first of equals, of `columns` independent uniforms on `levels` equidistant values: n draws, int64.

    Its exact law, without the uniforms. The maximum is at most level m with probability ((m + 1) / levels)^columns.
    Given that it is m, the columns before the first one there are below m, which makes the column a geometric variate
    of ratio m / (m + 1), cut off at `columns`.
    """
    u, v = torch.rand(2, n, dtype=torch.float64)
    m = ((u.log() / columns).exp() * levels).ceil() - 1
    log_ratio = torch.log(m / (m + 1))
    column = torch.log1p(v * torch.expm1(columns * log_ratio)) / log_ratio
    return column.long().clamp(0, columns - 1)


def _float32(logits: Tensor, n: int) -> Tensor:
    """Gumbel-max over the whole row with -log(-log u), u of 24 bits. A long row of equal categories is drawn by its
    law: 16 million uniforms for each draw would take the test half an hour."""
    rows, columns = logits.shape
    if columns >= 2**18 and bool((logits == logits[:, :1]).all()):
        return first_of_the_highest(2**24, columns, n * rows).view(n, rows)
    return (logits - torch.log(-torch.log(torch.rand(n, rows, columns)))).argmax(-1)


def _float32_cost(columns: int) -> float:
    # By its law it is cheap, and gets as many draws as the library's sampler.
    return race_cost(columns) if columns >= 2**18 else columns


def _shifted():
    def noise(shape, winner):
        return torch.log((torch.rand(shape, dtype=torch.float64) + 1e-4).clamp(max=1 - 2.0**-53))

    return noise


def _bfloat16():
    """-log u with u of torch.rand's bfloat16: what rand_like gives for logits of that dtype."""

    def noise(shape, winner):
        return torch.rand(shape, dtype=torch.bfloat16).log().double()

    return noise


def _rounded():
    """A right Gumbel variate that is rounded to bfloat16: the mildest of these faults."""

    def noise(shape, winner):
        gumbel = -torch.log(-_exact(shape))
        return -torch.exp(-gumbel.bfloat16().double())

    return noise


# Faults of the words ----------------------------------------------------------------------------------------------


def _shared_by(dim: int):
    """Every two neighbours along `dim` of [draws, rows, elements] have the same word."""

    def make():
        def noise(shape, winner):
            pair = torch.arange(shape[dim]) // 2
            return _exact(shape).index_select(dim, pair)

        return noise

    return make


def _shared_by_stages():
    """The words of the groups serve again for the columns of the winning group."""
    kept: list[Tensor] = []

    def noise(shape, winner):
        fresh = _exact(shape)
        if winner is None:
            kept.append(fresh)
        else:
            # Both stages take some draws at a time, the second fewer.
            words = torch.cat(kept)
            width = min(shape[-1], words.shape[-1])
            fresh[..., :width] = words[: shape[0], :, :width]
            kept[:] = [words[shape[0] :]]
        return fresh

    return noise


def _stuck_generator(shift: int):
    """The stream of torch's seed >> shift, from its start at each call."""

    def make():
        generator = torch.Generator().manual_seed(torch.initial_seed() >> shift)
        return rng.noise_from(torch.device("cpu"), rng.Seed(generator=generator))

    return make


# Faults of the search ---------------------------------------------------------------------------------------------


def _search(weight: Tensor, u: Tensor) -> Tensor:
    """cpu.inversion with uniforms u [draws, rows] that are given."""
    cumulative = weight.cumsum(-1, dtype=torch.float64)
    if weight.dim() == 3:
        return torch.searchsorted(cumulative, u.unsqueeze(-1) * cumulative[..., -1:], right=True).squeeze(-1)
    return torch.searchsorted(cumulative, u.t().contiguous() * cumulative[..., -1:], right=True).t()


def _by_search(name: str, make_choice, *rejected_by: str) -> Fault:
    """make_choice() -> the `choose` of one call of the sampler."""

    def draw(logits: Tensor, n: int) -> Tensor:
        group = cpu.group_length(logits.shape[-1])
        return cpu.sample_index(logits, n, make_choice(), group)[0]

    return Fault(Sampler(name, draw, search_cost), rejected_by)


def _one_uniform_for_both_stages():
    kept: list[Tensor] = []

    def choose(weight, lead, winner):
        if winner is None:
            kept[:] = [torch.rand(lead, dtype=torch.float64)]
            return _search(weight, kept[0])
        # The second stage takes so many draws at a time.
        u, kept[0] = kept[0][: lead[0]], kept[0][lead[0] :]
        return _search(weight, u)

    return choose


def _uniform_shared_by(dim: int):
    """Every two neighbours along `dim` of [draws, rows] have the same uniform."""

    def choose(weight, lead, winner):
        u = torch.rand(lead, dtype=torch.float64)
        return _search(weight, u.index_select(dim, torch.arange(lead[dim]) // 2))

    return lambda: choose


# Faults of the sampler --------------------------------------------------------------------------------------------


def _group_by_maximum(logits: Tensor, n: int) -> Tensor:
    """Group Gumbel-max with max_j x_j of a group in the place of its logsumexp."""
    rows, columns = logits.shape
    group = cpu.group_length(columns)
    padded = torch.nn.functional.pad(logits, (0, -columns % group), value=-math.inf).unflatten(-1, (-1, group))
    weights = (padded - padded.amax((-1, -2), keepdim=True)).exp().double()
    winner = (weights.amax(-1) / _exact((n, rows, weights.shape[1]))).argmin(-1)
    inside = weights.expand(n, *weights.shape).gather(2, winner[..., None, None].expand(n, rows, 1, group)).squeeze(2)
    return winner * group + (inside / _exact(inside.shape)).argmin(-1)


def _clamped_probs(logits: Tensor, n: int) -> Tensor:
    """Probabilities are clamped to [eps, 1 - eps] before their logarithm is taken."""
    eps = torch.finfo(torch.float32).eps
    return _draw(lambda shape, winner: _exact(shape), torch.softmax(logits, -1).clamp(eps, 1 - eps).log(), n)


FAULTS = (
    Fault(
        Sampler("float32 torch.rand", _float32, _float32_cost),
        ("position mean 16777216", "position KS 16777216"),
    ),
    _with_noise("uniform + 1e-4", _shifted, "share first 2", "share 10 nats down 16"),
    _with_noise("bfloat16 noise", _bfloat16, "fit uniform 18", "fit zipf 1000", "share 10 nats down 16"),
    _with_noise("Gumbel rounded to bfloat16", _rounded, "position mean 262144"),
    _with_noise("word shared by two columns", _shared_by(2), "fit uniform 2", "fit uniform 1025"),
    _with_noise("word shared by two rows", _shared_by(1), "independent draws 0 rows 1"),
    _with_noise("word shared by two draws", _shared_by(0), "independent draws 1 rows 0"),
    _with_noise("word shared by both stages", _shared_by_stages, "fit uniform 1000"),
    _with_noise("seed without its lowest bit", _stuck_generator(1), "independent seeds 1048576"),
    _with_noise("seed that does not advance", _stuck_generator(0), "independent calls"),
    _by_search("uniform shared by both stages", _one_uniform_for_both_stages, "fit uniform 1000"),
    _by_search("uniform shared by two rows", _uniform_shared_by(1), "independent draws 0 rows 1"),
    _by_search("uniform shared by two draws", _uniform_shared_by(0), "independent draws 1 rows 0"),
    Fault(Sampler("group by maximum", _group_by_maximum, race_cost), ("fit zipf 1025", "fit heavy 50257")),
    Fault(Sampler("probs clamped to eps", _clamped_probs, race_cost), ("zero whole groups 4096",)),
)
