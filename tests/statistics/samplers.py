"""The samplers under test: one row each, with the backends that they run on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from philox import philox_noise, philox_relaxed_noise
from torch import Tensor

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    rng,
    use_backend,
)
from onehot_triton.compute import SMALL, base, cpu

Draw = Callable[[Tensor, int], Tensor]
"""(logits [rows, columns], n) -> int64 [n, rows], from torch's default generator."""


class Sampler(NamedTuple):
    """A sampler, and what it is meant to draw.

    Attributes:
        name: for the test's id and the tables.
        draw: n draws of each row.
        cost: of a draw from a row of so many columns, in elements of noise: every check has a budget of these.
        share: of a check's budget. The first sampler has it all; most others share its code.
        weights: the unnormalised probabilities that it is meant to draw from logits, in float64.
        device: of the logits.
        supports: False for the checks that do not apply.
    """

    name: str
    draw: Draw
    cost: Callable[[int], float]
    share: float = 1.0
    weights: Callable[[Tensor], Tensor] = lambda logits: torch.softmax(logits.double(), -1)
    device: str = "cpu"
    supports: Callable[[str], bool] = lambda check: True

    def chunks(self, logits: Tensor, n: int) -> Iterator[Tensor]:
        """int64 [some, rows], n in all: no chunk makes more than 2^23 elements of a one-hot, nor 2^20 draws."""
        rows, columns = logits.shape
        step = max(1, min(2**20 // rows, int(2**23 / rows / max(1.0, self.cost(columns)))))
        logits = logits.to(self.device)
        for start in range(0, n, step):
            yield self.draw(logits, min(step, n - start)).cpu()

    def probs(self, logits: Tensor) -> Tensor:
        """Float64 probabilities [columns] of a row [columns]."""
        weights = self.weights(logits)
        return weights / weights.sum()


# The least share of a sampler of eager torch.
EAGER_SHARE = 0.15


def one_hot(**options: Any) -> Callable[[Tensor], OneHotCategorical]:
    return lambda logits: OneHotCategorical(logits, validate_args=False, **options)


UNIMIX = 0.01
_PASS = one_hot(grad_method=ReparamGradientStrategy.PassThrough)
_STRAIGHT = one_hot(grad_method=ReparamGradientStrategy.RelaxedOneHot, temperature=0.5)


def _relaxed(logits: Tensor, n: int) -> Tensor:
    # The order of the scores, and so the winner's law, is that of a hard draw at any temperature.
    return RelaxedOneHotCategorical(0.7, logits=logits, validate_args=False).sample((n,)).argmax(-1)


def _unimix_weights(logits: Tensor) -> Tensor:
    return torch.softmax(logits.double(), -1) * (1 - UNIMIX) + UNIMIX / logits.shape[-1]


def _mask(logits: Tensor) -> Tensor:
    """All but each fourth category."""
    return torch.arange(logits.shape[-1], device=logits.device) % 4 != 3


def _masked(logits: Tensor) -> OneHotCategorical:
    return MaskedOneHotCategorical(logits, mask=_mask(logits), validate_args=False)


def _in_groups(logits: Tensor, n: int) -> Tensor:
    """The two stages of large batches, for a few rows."""
    columns = logits.shape[-1]
    return cpu.sample_index(logits, n, cpu.inversion(logits.device, None), cpu.group_length(columns))[0]


def race_cost(columns: int) -> float:
    """Of a race: a number for each group and for each column of one group."""
    group = cpu.group_length(columns)
    return columns if group == columns else group + -(-columns // group)


def search_cost(columns: int) -> float:
    """Of an inversion: a number and a search, and the weights of one group where there are several."""
    group = cpu.group_length(columns)
    return min(columns, 5) if group == columns else group + 5


def _slab_cost(columns: int) -> float:
    """The one-hot is written and read again: about a quarter of an element of noise for each column."""
    return search_cost(columns) + columns / 4


PUBLIC = (
    Sampler("sample_index", lambda x, n: one_hot()(x).sample_index((n,)), search_cost),
    Sampler("sample", lambda x, n: one_hot()(x).sample((n,)).argmax(-1), _slab_cost, EAGER_SHARE),
    Sampler("rsample PassThrough", lambda x, n: _PASS(x).rsample((n,)).argmax(-1), _slab_cost, EAGER_SHARE),
    Sampler("rsample RelaxedOneHot", lambda x, n: _STRAIGHT(x).rsample((n,)).argmax(-1), _slab_cost, EAGER_SHARE),
    Sampler("relaxed arg-max", _relaxed, float, EAGER_SHARE),
    Sampler(
        "unimix",
        lambda x, n: one_hot(unimix=UNIMIX)(x).sample_index((n,)),
        search_cost,
        EAGER_SHARE,
        _unimix_weights,
        # Nothing has probability 0 in a mixture with the uniform distribution.
        supports=lambda check: not check.startswith("zero"),
    ),
    Sampler(
        "masked",
        lambda x, n: _masked(x).sample_index((n,)),
        search_cost,
        EAGER_SHARE,
        lambda x: torch.softmax(x.double(), -1) * _mask(x),
        # Equal categories are not equal where some are masked.
        supports=lambda check: check.startswith(("fit", "share", "zero")),
    ),
    Sampler(
        "bfloat16 logits",
        lambda x, n: one_hot()(x.bfloat16()).sample_index((n,)),
        search_cost,
        EAGER_SHARE,
        lambda x: torch.softmax(x.bfloat16().double(), -1),
    ),
)


def _relaxed_first(logits: Tensor, n: int) -> Tensor:
    """The RelaxedOneHot draw of small batches, for many draws at once."""
    return SMALL.relaxed_first(logits, n, torch.bool, rng.Seed(), 0.5).index.view(n, -1)


# A large batch draws for RelaxedOneHot as `sample` does.
EAGER = (
    *(s._replace(draw=_relaxed_first, cost=float) if s.name == "rsample RelaxedOneHot" else s for s in PUBLIC),
    Sampler("two stages", _in_groups, search_cost, EAGER_SHARE),
)

# The kernels ----------------------------------------------------------------------------------------------------------

# tests/conftest.py has the kernels compiled where there is a GPU, and interpreted elsewhere.
ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
_GROUP = 1024


def _philox_twin(logits: Tensor, n: int) -> Tensor:
    """The twin, fed with the kernels' noise: it draws what they draw (tests/test_kernels.py), and much faster than they
    do when they are interpreted."""
    seed = int(torch.randint(2**63 - 1, ()))
    noise = philox_noise(seed, 0, logits.shape[-1], n)
    return base.sample_index(logits, n, noise, _GROUP)


def _philox_relaxed_twin(logits: Tensor, n: int) -> Tensor:
    noise = philox_relaxed_noise(int(torch.randint(2**63 - 1, ())), 0)
    return base.Eager().relaxed_with(logits, logits.new_full(logits.shape[:1], 0.7), n, noise).argmax(-1)


def _philox_cost(columns: int) -> float:
    return columns if columns <= _GROUP else _GROUP + columns / _GROUP


@contextmanager
def _wide_tiles() -> Iterator[None]:
    """An interpreted kernel costs the same for one element as for ten thousand: short rows share a program by the
    thousand. No sample depends on it (test_launch_invariance.py)."""
    from onehot_triton.kernels import launch

    before = launch.FILL, launch.TILE
    launch.FILL, launch.TILE = 1, 2**15
    try:
        # The interpreter computes inf - inf in NumPy, which warns where a GPU does not.
        with use_backend("triton"), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice")
            yield
    finally:
        launch.FILL, launch.TILE = before


def _by_kernels(sampler: Sampler) -> Sampler:
    def draw(logits: Tensor, n: int) -> Tensor:
        if ON_GPU:
            return sampler.draw(logits, n)
        with _wide_tiles():
            if logits.shape[0] == 1 and logits.shape[1] <= _GROUP:
                # Rows of their own: of an expanded batch, a program would draw one after the other.
                return sampler.draw(logits.repeat(n, 1), 1).view(n, 1)
            return sampler.draw(logits, n)

    def interpreted_cost(columns: int) -> float:
        # A long row has a program to itself, however few its columns.
        return columns if columns <= _GROUP else 8 * (sampler.cost(columns) + _GROUP)

    return sampler._replace(
        name=f"kernels, {sampler.name}",
        draw=draw,
        cost=sampler.cost if ON_GPU else interpreted_cost,
        # Interpreted, a kernel draws hundreds of times slower than eager torch; on a GPU, hundreds of times faster.
        share=sampler.share * (100 if ON_GPU else 1 / 200),
        device="cuda" if ON_GPU else "cpu",
    )


def kernels_run() -> bool:
    """Whether the kernels can run here: on a GPU, or interpreted."""
    return ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"


KERNELS = (
    Sampler("Philox noise, twin", _philox_twin, _philox_cost, 1 / 20),
    Sampler("Philox noise, relaxed twin", _philox_relaxed_twin, float, 1 / 40),
    *map(_by_kernels, PUBLIC),
)
