"""Small batches on a CPU, in the fewest calls: there a call costs more than the work. What it has not is `cpu.py`'s.

Autograd records torch's own operations: a Function, with its backward in Python, costs more than the memory that they
keep. A step of construct, rsample, log_prob, entropy and backward of 64 x 6 takes 412 to 650 us by Functions, 260 so.
And a draw has one stage, since a second costs more than it saves: 45 us of calls, 16 x 1024 in 32 us, in two stages 78;
16 x 4096 in 56, in two stages 93.

Whoever calls has looked: values can be looked at, no program is recorded, and no transform is active.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import rng
from ..grad_method import ReparamGradientStrategy
from ..rng import Seed
from ..tensors import is_differentiated
from . import base, cpu
from .cpu import (  # noqa: F401
    entropy_grad,
    gapped_grad,
    log_prob_and_entropy,
    log_prob_and_entropy_grad,
    log_prob_grad,
    log_softmax,
    masked,
    new_seed,
    one_hot,
    reads_masks,
    reinmax_grad,
    relaxed,
    relaxed_grad,
    relaxed_log_prob,
    relaxes_first,
    shard_race,
    soft_grad,
    softmax,
    softmax_grad,
)
from .interface import Sample

# A sum of exp x above this in float64 has every term that a draw can reach, 31 nats below it, as a normal number.
_LEAST = 1e-290


def records(logits: Tensor, relaxed: bool = False) -> bool:  # noqa: F811
    return cpu.records(logits) if relaxed else is_differentiated(logits)


def argmax(tensor: Tensor) -> Tensor:
    if tensor.numel() > cpu._ONE_THREAD or tensor.dtype == torch.bool:
        return cpu.argmax(tensor)
    return tensor.argmax(-1)


# Draws ----------------------------------------------------------------------------------------------------------------


def sample(
    logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool
) -> Sample:
    if seed.tensor is not None:
        return cpu.sample(logits, mask, draws, dtype, seed, again)
    draw = _race if logits.shape[-1] <= cpu._RACED else _search
    drawn = draw(masked(logits, mask), draws, dtype, seed.generator)
    return drawn._replace(seed=rng.seed_tensor(logits.device, seed.generator)) if again else drawn


def _race(x: Tensor, draws: int, dtype: torch.dtype | None, generator: torch.Generator | None) -> Sample:
    """The draw of `cpu.race`."""
    weight = cpu.nearly_softmax(x)
    u = rng.uniform_like(x if draws == 1 else x.expand(draws, *x.shape), generator)
    index = base.race(weight, rng.exponential_of(u))
    all_valid = math.isfinite(weight.sum().item())
    index = index if all_valid else index.masked_fill(weight[:, 0].isnan(), -1)
    hot = None if dtype is None else one_hot(index, x.shape[1], dtype, all_valid)
    return Sample(hot, index, None, all_valid, None, hints=False)


def _search(x: Tensor, draws: int, dtype: torch.dtype | None, generator: torch.Generator | None) -> Sample:
    """The draw of `cpu.inversion`, of one group."""
    x = x if x.is_contiguous() else x.contiguous()
    cumulative, total, all_valid = _sums(x)
    rows, columns = x.shape
    # A search of so few takes less than to remember and to look.
    hints = draws * x.numel() > cpu._ONE_THREAD
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


def _sums(x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Sums of weights, [rows, columns] in float64, column by column, NaN for no distribution; the last of them, of the
    whole row, [rows, 1]; and whether all are distributions."""
    rows, last = x.shape[0], x.shape[1] - 1
    if x.numel() > 0:
        # A softmax takes more time than their exp, which is as exact wherever a row's sum shows it.
        sums = (x.exp() if x.dtype == torch.float64 else x.double().exp_()).cumsum_(1)
        total = sums[:, last:]
        # Detached: forward mode of torch 2.11 has no rule for aminmax, and the two numbers only decide.
        low, high = total.detach().aminmax() if rows > 1 else (total, total)
        if low.item() > _LEAST and high.item() < math.inf:
            return sums, total, True
    sums = cpu.softmax(x).cumsum(-1, dtype=torch.float64)
    total = sums[:, last:]
    return sums, total, math.isfinite(total.sum().item())


def straight_through(
    logits: Tensor,
    mask: Tensor | None,
    draws: int,
    dtype: torch.dtype | None,
    seed: Seed,
    method: ReparamGradientStrategy,
    temperature: Tensor | float,
    samples: int,
) -> Sample:
    x = masked(logits, mask)
    if method is ReparamGradientStrategy.RelaxedOneHot and samples == 1:
        return _relaxed_first(x, draws, dtype, seed, temperature)
    if method is not ReparamGradientStrategy.PassThrough:
        return cpu.straight_through(x, None, draws, dtype, seed, method, temperature, samples)
    drawn = sample(x.detach(), None, draws, None, seed, False)
    return _with_gradient_of(drawn, cpu.nearly_softmax(x), dtype)


def _with_gradient_of(drawn: Sample, y: Tensor, dtype: torch.dtype | None) -> Sample:
    """`base.with_gradient_of` in one node of the graph: a copy of y, which autograd records, is written over, which it
    need not know. With the backward, 64 x 6 takes 37 us so, 47 by y - y.detach() added to a one-hot. The draws of a row
    have one y, [rows, columns], or one each."""
    assert dtype is not None
    y = y.expand(*drawn.index.shape, -1) if y.dim() == drawn.index.dim() else y
    if not drawn.all_valid:
        one_hot = base.one_hot(drawn.index, y.shape[-1], dtype)
        return base.with_gradient_of(drawn._replace(one_hot=one_hot), y)
    out = y.to(dtype, copy=True, memory_format=torch.contiguous_format)
    out.detach().zero_().scatter_(-1, drawn.index.unsqueeze(-1), 1)
    return drawn._replace(one_hot=out)


def _relaxed_first(x: Tensor, draws: int, dtype: torch.dtype | None, seed: Seed, temperature: Tensor | float) -> Sample:
    """`base.relaxed_first` in the fewest calls, in float64, where no maximum need be subtracted."""
    u = rng.uniform_like(x if draws == 1 else x.expand(draws, *x.shape), seed.generator)
    z = x - rng.exponential_of(u).neg_().log_()
    top, index = z.detach().max(-1, keepdim=True)
    all_valid = math.isfinite(top.sum().item())
    index = (index if all_valid else index.masked_fill(~top.isfinite(), -1)).squeeze(-1)
    if isinstance(temperature, Tensor):
        # A category that is off must not make the temperature's gradient 0 inf.
        z = z.clamp_min(-1e20)
    drawn = Sample(None, index, None, all_valid, None, z.numel() > cpu._ONE_THREAD)
    if isinstance(temperature, Tensor) or temperature != 1:
        z = z / base.by_row(temperature, z.dtype)
    # Without a gradient, nothing is asked of y but its shape.
    return _with_gradient_of(drawn, cpu.nearly_softmax(z) if is_differentiated(z) else z, dtype)


# Densities ------------------------------------------------------------------------------------------------------------


def log_prob_index(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor | None]:
    if not cpu.is_short(logits):
        return cpu.log_prob_index(logits, index, mask, logsumexp, inside)
    log_p = cpu.nearly_log_softmax(masked(logits, mask))
    return base.by_draw(cpu.gathered(log_p, base.columns_at(index), inside), index), None


def log_prob(
    logits: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    index = argmax(value)
    out, new = log_prob_index(logits, index, mask, logsumexp, True)
    return out, index, new


def entropy(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    if not cpu.is_short(logits):
        return cpu.entropy(logits, mask)
    return base.entropy_of(cpu.nearly_log_softmax(masked(logits, mask))), None


def rsample_log_prob_and_entropy(
    logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed
) -> tuple[Sample, Tensor, Tensor]:
    """Of one log_softmax, whose exponential is what both gradients need. The step of 1 x 6 with its backward takes
    147 us so, 198 by a softmax and a log_softmax, 225 by three members."""
    x = masked(logits, mask)
    if not cpu.is_short(x):
        return cpu.rsample_log_prob_and_entropy(x, None, draws, dtype, seed)
    drawn = sample(x.detach(), None, draws, None, seed, False)
    log_p = cpu.nearly_log_softmax(x)
    p = log_p.exp()
    log_prob = base.by_draw(cpu.gathered(log_p, base.columns_at(drawn.index), drawn.all_valid), drawn.index)
    return _with_gradient_of(drawn, p, dtype), log_prob, base.entropy_of(log_p, p)
