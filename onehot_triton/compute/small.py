"""Small batches on a CPU, in the fewest calls: there a call costs more than the work.

Autograd records torch's own operations: a Function, with its backward in Python, costs more than the memory that they
keep. And a draw has one stage, since the calls of a second cost more than it saves.

Precondition, checked by `compute.of`: the tensors are on a CPU and can be looked at, no program is recorded, and no
transform of torch.func is active.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import rng
from ..rng import Seed
from ..tensors import is_differentiated
from . import cpu
from .base import Rows, Sample, by_draw, by_row, columns_at, entropy_of, masked, race
from .cpu import SHORT, Cpu, gathered, nearly_log_softmax, nearly_softmax

# A sum of exp x above this in float64 has every term that a draw can reach, 31 nats below it, as a normal number.
_LEAST = 1e-290


class Small(Cpu):
    """The backend of small batches on a CPU."""

    def records(self, logits: Tensor, relaxed: bool = False) -> bool:
        return super().records(logits) if relaxed else is_differentiated(logits)

    def argmax(self, tensor: Tensor) -> Tensor:
        if tensor.numel() > cpu.ONE_THREAD or tensor.dtype == torch.bool:
            return super().argmax(tensor)
        return tensor.argmax(-1)

    # Draws

    def sample(self, rows: Rows, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool) -> Sample:
        if seed.tensor is not None:
            return super().sample(rows, draws, dtype, seed, again)
        draw = self._race if rows.logits.shape[-1] <= cpu.RACED else self._search
        drawn = draw(masked(rows.logits, rows.mask), draws, dtype, seed.generator)
        return drawn._replace(seed=rng.seed_tensor(rows.logits.device, seed.generator)) if again else drawn

    def _race(self, x: Tensor, draws: int, dtype: torch.dtype | None, generator: torch.Generator | None) -> Sample:
        """Draw as by `cpu.race`."""
        weight = nearly_softmax(x)
        u = rng.uniform_like(x if draws == 1 else x.expand(draws, *x.shape), generator)
        index = race(weight, rng.exponential_of(u))
        all_valid = math.isfinite(weight.sum().item())
        index = index if all_valid else index.masked_fill(weight[:, 0].isnan(), -1)
        hot = None if dtype is None else self.one_hot(index, x.shape[1], dtype, all_valid)
        return Sample(hot, index, None, all_valid, None, hints=False)

    def _search(self, x: Tensor, draws: int, dtype: torch.dtype | None, generator: torch.Generator | None) -> Sample:
        """Draw as by `cpu.inversion`, from one group."""
        x = x if x.is_contiguous() else x.contiguous()
        cumulative, total, all_valid = self._sums(x)
        rows, columns = x.shape
        # For so few elements, searching is cheaper than remembering the index and looking there.
        hints = draws * x.numel() > cpu.ONE_THREAD
        if draws == 1:
            at = torch.searchsorted(cumulative, rng.uniform_like(total, generator).mul_(total), right=True)
        else:
            u = rng.uniform((draws, rows), x.device, generator).t()
            at = torch.searchsorted(cumulative, (u * total).contiguous(), right=True)
        index, one = at, 1
        if not all_valid:
            invalid = total.isnan()
            index, at = at.masked_fill(invalid, -1), at.masked_fill(invalid, 0)
            one = (~invalid).to(dtype or torch.bool).expand(rows, draws)
        if draws == 1:
            hot = None if dtype is None else torch.zeros_like(x, dtype=dtype).scatter_(1, at, one)
            return Sample(hot, index.squeeze(1), None, all_valid, None, hints)
        if dtype is None:
            return Sample(None, index.t(), None, all_valid, None)
        one = one.unsqueeze(-1) if isinstance(one, Tensor) else one
        out = x.new_zeros((rows, draws, columns), dtype=dtype).scatter_(-1, at.unsqueeze(-1), one)
        return Sample(out.transpose(0, 1), index.t(), None, all_valid, None, hints)

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Add up weights column by column.

        Returns:
            sums: [rows, columns] in float64, NaN in an invalid row.
            total: the last of them, of the whole row, [rows, 1].
            all_valid: whether every row is valid.
        """
        rows, last = x.shape[0], x.shape[1] - 1
        if x.numel() > 0:
            # A softmax takes more time than their exp, which is as exact wherever a row's sum shows it.
            sums = (x.exp() if x.dtype == torch.float64 else x.double().exp_()).cumsum_(1)
            total = sums[:, last:]
            # Detached: forward mode of torch 2.11 has no rule for aminmax, and the two numbers only decide.
            low, high = total.detach().aminmax() if rows > 1 else (total, total)
            if low.item() > _LEAST and high.item() < math.inf:
                return sums, total, True
        sums = self.softmax(x).cumsum(-1, dtype=torch.float64)
        total = sums[:, last:]
        return sums, total, math.isfinite(total.sum().item())

    # Straight-through gradients

    def with_gradient_of(self, drawn: Sample, y: Tensor, dtype: torch.dtype | None) -> Sample:
        # In one node of the graph: copy y to inherit its graph, then write the one-hot over the values, which autograd
        # is not told.
        assert dtype is not None
        if not drawn.all_valid:
            return super().with_gradient_of(drawn, y, dtype)
        # The draws of a row have one y, [rows, columns], or one each.
        y = y.expand(*drawn.index.shape, -1) if y.dim() == drawn.index.dim() else y
        out = y.to(dtype, copy=True, memory_format=torch.contiguous_format)
        out.detach().zero_().scatter_(-1, drawn.index.unsqueeze(-1), 1)
        # In half the calls of `_replace`.
        return Sample(out, drawn.index, drawn.logsumexp, True, drawn.seed, drawn.hints)

    def relaxed_first(
        self, logits: Tensor, draws: int, dtype: torch.dtype | None, seed: Seed, temperature: Tensor | float
    ) -> Sample:
        # In float64 no maximum need be subtracted.
        x = logits
        u = rng.uniform_like(x if draws == 1 else x.expand(draws, *x.shape), seed.generator)
        z = x - rng.exponential_of(u).neg_().log_()
        top, index = z.detach().max(-1, keepdim=True)
        all_valid = math.isfinite(top.sum().item())
        index = (index if all_valid else index.masked_fill(~top.isfinite(), -1)).squeeze(-1)
        if isinstance(temperature, Tensor):
            # A category that is off must not make the temperature's gradient 0 inf.
            z = z.clamp_min(-1e20)
        drawn = Sample(None, index, None, all_valid, None, z.numel() > cpu.ONE_THREAD)
        if isinstance(temperature, Tensor) or temperature != 1:
            z = z / by_row(temperature, z.dtype)
        # Without a gradient, only the shape of y counts.
        return self.with_gradient_of(drawn, nearly_softmax(z) if is_differentiated(z) else z, dtype)

    # Densities

    def log_prob_index(self, rows: Rows, index: Tensor, inside: bool = False) -> tuple[Tensor, Tensor | None]:
        if rows.logsumexp is not None or rows.logits.shape[-1] > SHORT:
            return super().log_prob_index(rows, index, inside)
        log_p = nearly_log_softmax(masked(rows.logits, rows.mask))
        return by_draw(gathered(log_p, columns_at(index), inside), index), None

    def entropy(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        if rows.logits.shape[-1] > SHORT:
            return super().entropy(rows)
        return entropy_of(nearly_log_softmax(masked(rows.logits, rows.mask))), None

    def rsample_log_prob_and_entropy(
        self, rows: Rows, draws: int, dtype: torch.dtype | None, seed: Seed
    ) -> tuple[Sample, Tensor, Tensor]:
        # By one log_softmax, whose exponential both gradients need.
        x = masked(rows.logits, rows.mask)
        if x.shape[-1] > SHORT:
            return super().rsample_log_prob_and_entropy(Rows(x), draws, dtype, seed)
        drawn = self.sample(Rows(x.detach()), draws, None, seed, False)
        log_p = nearly_log_softmax(x)
        p = log_p.exp()
        log_prob = by_draw(gathered(log_p, columns_at(drawn.index), drawn.all_valid), drawn.index)
        return self.with_gradient_of(drawn, p, dtype), log_prob, entropy_of(log_p, p)
