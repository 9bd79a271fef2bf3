"""The gradient methods of `rsample`: one row each, which every layer looks up.

The formulas are methods of the backends (`compute/base.py`) and functions of `sharded.py`. The options of users, with
their references, are in `grad_method.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .grad_method import ReparamGradientStrategy

if TYPE_CHECKING:
    from .compute.base import Eager, Rows
    from .rng import Seed

Grads = tuple[Tensor, Tensor | None]
"""The gradients in the logits, [rows, columns], and in the temperature, [rows]; None where the latter is not wanted."""


class GivenDraw(NamedTuple):
    """A draw whose gradient is asked for.

    Attributes:
        index: int64 [draws, rows].
        temperature: [rows], or a number.
        seed: of the noise that is drawn given the draw.
        samples: how many relaxed samples there are for each draw.
    """

    index: Tensor
    temperature: Tensor | float
    seed: Seed
    samples: int


# eq=False: an estimator is compared, and hashed, by identity.
@dataclass(frozen=True, eq=False)
class Estimator:
    """A gradient method.

    Attributes:
        grad: (backend, rows, draw, incoming gradient [draws, rows, columns], whether that of the temperature is wanted)
            -> the gradients of the draws.
        smooth: (backend, logits [rows, columns], draw) -> y, [draws, rows, columns], or [rows, columns] for all draws,
            in differentiable operations: its first derivative is the gradient of the draw. For programs that keep no
            autograd Function.
        shard_grad: `grad` where the columns are over several ranks, with the arguments of `sharded.relaxed_grad`.
        relaxed: whether the gradient is that of relaxed samples given the draw: the backward draws their noise, the
            temperature has a gradient, and `relaxed_samples` counts.
        takes_temperature: whether there is a temperature.
        least_temperature: the least of them; 0 for all above 0.
    """

    grad: Callable[[Eager, Rows, GivenDraw, Tensor, bool], Grads]
    smooth: Callable[[Eager, Tensor, GivenDraw], Tensor]
    shard_grad: Callable[..., Grads]
    relaxed: bool = False
    takes_temperature: bool = True
    least_temperature: int = 0


def _sharded() -> ModuleType:
    # Not at the top: its import takes seconds, which only users of DTensors need.
    from . import sharded

    return sharded


ESTIMATORS = {
    ReparamGradientStrategy.PassThrough: Estimator(
        # The draws share p.
        grad=lambda backend, rows, draw, g, with_dt: (
            backend.softmax_grad(rows, g[0] if g.shape[0] == 1 else g.sum(0)),
            None,
        ),
        smooth=lambda backend, logits, draw: backend.nearly_softmax(logits),
        shard_grad=lambda *args: _sharded().pass_through_grad(*args),
        takes_temperature=False,
    ),
    ReparamGradientStrategy.RelaxedOneHot: Estimator(
        grad=lambda backend, rows, draw, g, with_dt: backend.relaxed_grad(
            rows, draw.index, g, draw.temperature, draw.seed, with_dt, draw.samples
        ),
        smooth=lambda backend, logits, draw: backend.relaxed_given(logits, *draw),
        shard_grad=lambda *args: _sharded().relaxed_grad(*args),
        relaxed=True,
    ),
    ReparamGradientStrategy.ReinMax: Estimator(
        grad=lambda backend, rows, draw, g, with_dt: (
            backend.reinmax_grad(rows, draw.index, g, draw.temperature),
            None,
        ),
        smooth=lambda backend, logits, draw: backend.reinmax_given(logits, draw.index, draw.temperature),
        shard_grad=lambda *args: _sharded().reinmax_grad(*args),
        least_temperature=1,
    ),
    ReparamGradientStrategy.GappedStraightThrough: Estimator(
        grad=lambda backend, rows, draw, g, with_dt: (
            backend.gapped_grad(rows, draw.index, g, draw.temperature),
            None,
        ),
        smooth=lambda backend, logits, draw: backend.gapped_given(logits, draw.index, draw.temperature),
        shard_grad=lambda *args: _sharded().gapped_grad(*args),
    ),
}
