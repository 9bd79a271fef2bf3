"""What a backend is: one function an operation, rows in, rows out. `triton.py`, `cpu.py` and `base.py` are such.

    logits          [rows, columns], unnormalised, of any floating dtype, with any strides
    temperature     [rows] in the compute dtype, or one number for all rows
    mask            bool [rows, columns], True where a category can be drawn; None for everywhere; for a backend that
                    reads masks also [m, n, columns] with m n rows, of any strides
    draws           the leading dimension of what there is for each draw; where that is one, a value, an index and what
                    is returned for them can be without it
    index           int64 [draws, rows], the columns drawn; -1 where the row is no distribution
    logsumexp       [2, rows] in the compute dtype: max x, and log sum exp(x - max x), NaN where the row is no
                    distribution. Added up, the two would be rounded to a part of the maximum, not of the difference.
                    What one function returns another takes; a backend that has no use for it gives, and takes, None.

Gradients come in the dtype of the logits, densities in the compute dtype.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..grad_method import ReparamGradientStrategy
from ..rng import Seed


class Sample(NamedTuple):
    """A draw.

    Attributes:
        one_hot: [draws, rows, columns]; None where none was asked for. A row that is no distribution is all zero.
        index, logsumexp: as above.
        all_valid: True where every row was found to be a distribution.
        seed: one int64 element, of which `relaxed_grad` draws its noise; None where it has that of the draw itself.
        hints: whether a later `log_prob` of this draw gains by looking where its ones were.
    """

    one_hot: Tensor | None
    index: Tensor
    logsumexp: Tensor | None
    all_valid: bool
    seed: Tensor | None
    hints: bool = True


class ShardRace(NamedTuple):
    """The draw of a row, as far as one shard of its columns decides it.

    Attributes:
        index: int64 [draws, rows], the winner's column in the shard; -1 where there is nothing to draw.
        score: float32 [draws, rows], E / sum exp(x - maximum) of the winner's group, up to a constant: the winner of a
            row is in the shard with the least score exp(-maximum).
        maximum, total: [rows] in the compute dtype, sum exp x = total exp(maximum).
    """

    index: Tensor
    score: Tensor
    maximum: Tensor
    total: Tensor


class Backend(Protocol):
    """See the head of this file."""

    reads_masks: bool
    """Whether it reads a mask beside the logits at no cost; else logits are better masked once than in each call."""

    def records(self, logits: Tensor, relaxed: bool = False) -> bool:
        """Whether autograd is to record the functions as they are, each a formula in differentiable operations;
        `relaxed` for all but densities and PassThrough, where that is another question."""
        ...

    def relaxes_first(self, logits: Tensor, draws: int) -> bool:
        """Whether a draw with a RelaxedOneHot gradient is the arg-max of a relaxed sample, which autograd records; else
        the draw comes first, and a relaxed sample that goes with it in the backward."""
        ...

    def new_seed(self, logits: Tensor, generator: torch.Generator | None) -> Seed:
        """The seed of a draw from `logits`."""
        ...

    # Categories

    def softmax(self, logits: Tensor) -> Tensor:
        """softmax(x), [..., columns], in the compute dtype."""
        ...

    def log_softmax(self, logits: Tensor) -> Tensor:
        """log softmax(x), [..., columns], in the compute dtype."""
        ...

    def argmax(self, tensor: Tensor) -> Tensor:
        """The first maximum, int64 [...]: NaN counts as one."""
        ...

    def one_hot(self, index: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        """[*index.shape, columns], all zero where the index is -1."""
        ...

    # Draws

    def sample(
        self, logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool
    ) -> Sample:
        """Draws from softmax(x), one-hot rows of `dtype`, None for none; `again` where `relaxed_grad` will follow."""
        ...

    def shard_race(self, logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
        """Draws from a shard of long rows, with what decides between the shards; its groups are numbered from
        `first_group`. The seed is one of a kernel."""
        ...

    def relaxed(self, logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
        """softmax((x + Gumbel) / t), [draws, rows, columns] in the logits' dtype."""
        ...

    def straight_through(
        self,
        logits: Tensor,
        mask: Tensor | None,
        draws: int,
        dtype: torch.dtype | None,
        seed: Seed,
        method: ReparamGradientStrategy,
        temperature: Tensor | float,
        samples: int,
    ) -> Sample:
        """`sample`, whose one-hot has the gradient of `method`, which autograd records. `samples`: see
        `relaxed_grad`."""
        ...

    # Straight-through gradients of a draw, for `grad` [draws, rows, columns]

    def softmax_grad(
        self, logits: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None
    ) -> Tensor:
        """PassThrough, p (g - <p, g>), [rows, columns], for `grad` [rows, columns]: the draws have p in common."""
        ...

    def relaxed_grad(
        self,
        logits: Tensor,
        index: Tensor,
        grad: Tensor,
        temperature: Tensor | float,
        seed: Seed,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
        with_temperature: bool = False,
        samples: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """RelaxedOneHot: with dz = y (g - <y, g>), y = softmax(z) drawn given that column k won, sum_s dz / t,
        [rows, columns], and sum_s -<dz, z> / t, [rows] in the compute dtype, where it is wanted. Each is the mean over
        so many `samples` of y for each draw."""
        ...

    def reinmax_grad(
        self,
        logits: Tensor,
        index: Tensor,
        grad: Tensor,
        temperature: Tensor | float,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
    ) -> Tensor:
        """ReinMax: sum_s 2 J(m) g - J(p) g / 2, [rows, columns], with J(m) g = m (g - <m, g>) and
        m = (softmax(x / t) + onehot(k)) / 2."""
        ...

    def gapped_grad(
        self,
        logits: Tensor,
        index: Tensor,
        grad: Tensor,
        temperature: Tensor | float,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
    ) -> Tensor:
        """GappedStraightThrough: sum_s y (g - <y, g>) / t, [rows, columns], with y = softmax(x' / t), x'_k = max x and
        x'_j = min(x_j, max x - 1) elsewhere."""
        ...

    def soft_grad(
        self, y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Of soft samples y = softmax(z), z = (x + Gumbel) / t, [draws, rows, columns]: with dz = y (g - <y, g>),
        sum_s dz / t, [rows, columns], and sum_s -<dz, log y> / t, [rows] in the compute dtype, where it is wanted."""
        ...

    # Densities

    def log_prob(
        self,
        logits: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
        hint: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """log p_k at the first maximum k of each row of `value` [draws, rows, columns]: log_prob [draws, rows], k, and
        the logsumexp where it was made here. `hint`, int64 [draws, rows], says where a 1 may be, -1 for nowhere: where
        it still is, no other number of that row need be read."""
        ...

    def log_prob_index(
        self,
        logits: Tensor,
        index: Tensor,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
        inside: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """log p_k, [draws, rows], NaN where k is no column, which is nowhere if `inside`; and the logsumexp where it
        was made here."""
        ...

    def log_prob_grad(
        self, logits: Tensor, index: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None
    ) -> Tensor:
        """sum_s g_s (onehot(k_s) - p), [rows, columns], for `grad` [draws, rows]."""
        ...

    def entropy(self, logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """H = -sum_j p_j log p_j with 0 log 0 = 0, [rows], and the logsumexp where it was made."""
        ...

    def entropy_grad(
        self,
        logits: Tensor,
        grad: Tensor,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
        entropy: Tensor | None = None,
    ) -> Tensor:
        """-g p_j (log p_j + H), [rows, columns], for `entropy` and `grad` [rows]."""
        ...

    def log_prob_and_entropy(
        self, logits: Tensor, index: Tensor, mask: Tensor | None = None, inside: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What `log_prob_index` and `entropy` give, of one reading of the logits: log p_k, [draws, rows], H, [rows],
        and the logsumexp where it was made."""
        ...

    def rsample_log_prob_and_entropy(
        self, logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed
    ) -> tuple[Sample, Tensor, Tensor]:
        """What `straight_through` gives by PassThrough, and `log_prob_and_entropy` of it, for autograd to record."""
        ...

    def log_prob_and_entropy_grad(
        self,
        logits: Tensor,
        index: Tensor,
        grad_log_prob: Tensor,
        grad_entropy: Tensor,
        mask: Tensor | None = None,
        logsumexp: Tensor | None = None,
        entropy: Tensor | None = None,
        grad: Tensor | None = None,
    ) -> Tensor:
        """sum_s g_s (onehot(k_s) - p) - g_H p (log p + H), [rows, columns], for `grad_log_prob` [draws, rows] and
        `grad_entropy` [rows], and beside them PassThrough's p (g - <p, g>) where there is a `grad` [rows, columns]."""
        ...

    def relaxed_log_prob(self, logits: Tensor, temperature: Tensor | float, log_y: Tensor, of_log: bool) -> Tensor:
        """The log-density of a soft sample y, or of log y if `of_log`, for autograd to record.

        Args:
            logits: [*batch, columns] in the compute dtype, -inf where a category is off.
            temperature: a number, or a tensor of that dtype that broadcasts to the batch.
            log_y: [..., columns] of that dtype, -inf where y is 0; its leading dimensions broadcast against the batch.
            of_log: whether the density is that of log y.
        """
        ...
