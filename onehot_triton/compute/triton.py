"""The kernels, called through their operators in `torch_ops.py`.

The backwards need what the forward computed: `rows.logsumexp`, except in `softmax_grad`, and `rows.entropy` in the
gradients of an entropy are never None.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import rng, torch_ops
from ..rng import Seed
from ..tensors import compute_dtype
from .base import Eager, NoSecondDerivative, Rows, Sample, ShardRace


def _noise(seed: Seed) -> tuple[int | Tensor, int, int]:
    """Give what a launcher takes for the noise: seed, offset, row_offset."""
    return seed.seed if seed.tensor is None else seed.tensor, seed.offset, seed.row_offset


class Triton(Eager):
    """The backend of tensors that kernels compute on."""

    reads_masks = True

    def records(self, logits: Tensor, relaxed: bool = False) -> bool:
        return False

    def relaxes_first(self, logits: Tensor, draws: int) -> bool:
        return False

    def new_seed(self, logits: Tensor, generator: torch.Generator | None) -> Seed:
        return rng.next_seed(logits, generator)

    # Categories: torch's own, which are one kernel on a GPU

    def softmax(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, -1, dtype=compute_dtype(logits.dtype))

    def log_softmax(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1, dtype=compute_dtype(logits.dtype))

    # Draws

    def sample(self, rows: Rows, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool) -> Sample:
        given = None if draws == 1 else draws
        hot, index, logsumexp = torch_ops.sample(rows.logits, given, dtype, *_noise(seed), rows.mask)
        return Sample(None if dtype is None else hot, index, logsumexp, False, None)

    def shard_race(self, logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
        index, score, sums = torch_ops.shard_race(logits, draws, *_noise(seed), first_group)
        return ShardRace(index, score, *sums.unbind())

    def relaxed(self, logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
        return torch_ops.relaxed(logits, temperature, draws, *_noise(seed))

    # Straight-through gradients

    def softmax_grad(self, rows: Rows, grad: Tensor) -> Tensor:
        logits, mask, logsumexp, _ = rows
        logsumexp = torch_ops.logsumexp(logits, mask) if logsumexp is None else logsumexp
        return torch_ops.softmax_grad(logits, logsumexp, grad, mask)

    def relaxed_grad(
        self,
        rows: Rows,
        index: Tensor,
        grad: Tensor,
        temperature: Tensor | float,
        seed: Seed,
        with_temperature: bool = False,
        samples: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        logits, mask, logsumexp, _ = rows
        assert logsumexp is not None
        args = index, grad, temperature, *_noise(seed), mask, with_temperature, samples
        # It must have the noise of its draw, which torch's operations do not draw.
        with torch.no_grad():
            out, dt = torch_ops.relaxed_grad(logits, logsumexp, *args)
        if torch.is_grad_enabled():
            out, dt = (
                NoSecondDerivative.apply(gradient, "a kernel", logits, grad, temperature) for gradient in (out, dt)
            )
        return out, dt if with_temperature else None

    def reinmax_grad(self, rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float) -> Tensor:
        assert rows.logsumexp is not None
        return torch_ops.reinmax_grad(rows.logits, rows.logsumexp, index, grad, temperature, rows.mask)

    def gapped_grad(self, rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float) -> Tensor:
        assert rows.logsumexp is not None
        return torch_ops.gapped_grad(rows.logits, rows.logsumexp, index, grad, temperature, rows.mask)

    def soft_grad(
        self, y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        dx, dt = torch_ops.soft_grad(y, grad, temperature, with_temperature)
        return dx, dt if with_temperature else None

    # Densities

    def log_prob(self, rows: Rows, value: Tensor, hint: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        out, index, new = torch_ops.log_prob(rows.logits, rows.logsumexp, value, rows.mask, hint)
        return out, index, new if rows.logsumexp is None else None

    def log_prob_index(self, rows: Rows, index: Tensor, inside: bool = False) -> tuple[Tensor, Tensor | None]:
        logits, mask, logsumexp, _ = rows
        new = None
        if logsumexp is None:
            logsumexp = new = torch_ops.logsumexp(logits, mask)
        return torch_ops.log_prob_index(logits, logsumexp, index, mask), new

    def log_prob_grad(self, rows: Rows, index: Tensor, grad: Tensor) -> Tensor:
        assert rows.logsumexp is not None
        return torch_ops.log_prob_grad(rows.logits, rows.logsumexp, index, grad, rows.mask)

    def entropy(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        return torch_ops.entropy(rows.logits, rows.mask)

    def entropy_grad(self, rows: Rows, grad: Tensor) -> Tensor:
        logits, mask, logsumexp, entropy = rows
        assert logsumexp is not None
        assert entropy is not None
        return torch_ops.entropy_grad(logits, logsumexp, entropy, grad, mask)

    def log_prob_and_entropy(
        self, rows: Rows, index: Tensor, inside: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return torch_ops.log_prob_and_entropy(rows.logits, index, rows.mask)

    def log_prob_and_entropy_grad(
        self, rows: Rows, index: Tensor, grad_log_prob: Tensor, grad_entropy: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        logits, mask, logsumexp, entropy = rows
        assert logsumexp is not None
        assert entropy is not None
        args = index, grad_log_prob, grad_entropy, mask, grad
        return torch_ops.log_prob_and_entropy_grad(logits, logsumexp, entropy, *args)
