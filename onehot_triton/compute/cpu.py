"""The backend of a CPU: its own ways of computing the formulas of `base.py`, and the reasons for them.

It is optional: without it everything still works, only slower.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import rng
from ..blocks import blocks, by_rows, joined, part_of
from ..rng import Seed
from ..tensors import can_look_at, compute_dtype, in_transform, is_differentiated, loses_functions
from . import base
from .base import (
    LOWEST,
    Eager,
    Rows,
    Sample,
    by_draw,
    by_row,
    columns_at,
    entropy_of,
    for_each_sample,
    masked,
    scores_given,
    shifted,
    zero_where_off,
)

# Up to so many elements, calls cost more than passes do, and `small.py` computes.
_SMALL = 2**16
# Up to so many elements, a second thread costs more than it helps.
ONE_THREAD = 2**12
# Rows up to this length are drawn by a race, as on other devices: the README's example promises its numbers.
RACED = 4
# Rows up to this length are one group.
_ONE_GROUP = 512
# The float32 numbers of a vector register, and rows enough for two views more.
_LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
_MANY_ROWS = 128
# Rows up to this length have 64 terms at most that torch's softmax adds up one after the other: it is right to 2e-6.
SHORT = 64 * _LANES
_LOG2_E = math.log2(math.e)
# torch.exp is MKL's, which is slow on processors that are not Intel's: exp2 takes a third of its time there. Older
# torch does not name the processor.
_EXP_IS_FAST = "Intel" in getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")

Choice = Callable[[Tensor, tuple[int, ...], Tensor | None], Tensor]
"""(weights [rows, n] or [draws, rows, n], (draws, rows), winning group or None in the group stage) -> int64
[draws, rows], an index drawn in proportion to its weight."""


def is_small(tensor: Tensor) -> bool:
    """Whether few calls matter more than few passes. In a recorded program, a compiler joins them."""
    return can_look_at(tensor) and tensor.numel() <= _SMALL


# Softmax --------------------------------------------------------------------------------------------------------------
#
# torch's softmax subtracts the maximum by itself, and its exponential is cheaper than torch.exp. But it divides by a
# sum that it adds up one term after the other: of 2^20 small terms behind a large one, 1e-3 of the whole is lost. Where
# rows are long, its result is added up again, by `sum`, in a tree, and divided by that. The divisor is 1 but for the
# loss: no gradient flows through it.


def _is_narrow(tensor: Tensor) -> bool:
    """Whether torch's softmax of the columns takes one number at a time, and that of the transposed tensor a register.

    For few rows, the two views more in the graph cost more than that saves.
    """
    if torch.compiler.is_compiling() or tensor.dim() != 2:
        return False
    return tensor.shape[1] < _LANES and tensor.shape[0] >= _MANY_ROWS


def nearly_softmax(logits: Tensor) -> Tensor:
    """Give softmax(x) but for that loss, which is one factor per row; of any strides.

    Weights need not add up to 1, and a gradient is off by 1e-3 of itself at most, as in torch's own backward.
    """
    dtype = compute_dtype(logits.dtype)
    if _is_narrow(logits):
        return torch.softmax(logits.t(), 0, dtype=dtype).t()
    return torch.softmax(logits, -1, dtype=dtype)


def nearly_log_softmax(logits: Tensor) -> Tensor:
    """Give log_softmax(x) but for that loss, of any strides."""
    dtype = compute_dtype(logits.dtype)
    if _is_narrow(logits):
        return torch.log_softmax(logits.t(), 0, dtype=dtype).t()
    return torch.log_softmax(logits, -1, dtype=dtype)


def softmax_backward(probs: Tensor, grad: Tensor) -> Tensor:
    """Give y (g - <y, g>) by torch's own fused operator, which is differentiable in both."""
    if _is_narrow(probs):
        return torch.ops.aten._softmax_backward_data(grad.t(), probs.t(), 0, probs.dtype).t()
    return torch.ops.aten._softmax_backward_data(grad, probs, -1, probs.dtype)


# Groups of columns ----------------------------------------------------------------------------------------------------


def group_length(columns: int) -> int:
    """The columns of a group on this path: all of a short row, else the power of two next to sqrt(columns).

    That makes the least of what a draw looks at one by one: every group, and every element of the winning group.
    """
    if columns <= _ONE_GROUP:
        return columns
    length = 16
    # Comparisons, which leave a symbolic number of columns a range and not a constant.
    while 2 * length**2 < columns:
        length *= 2
    return length


def _of_groups(reduction: Callable[..., Tensor], tensor: Tensor, group: int) -> Tensor:
    """reduction(., -1) of each group of consecutive columns, the last of which may be short; [..., groups]."""
    columns = tensor.shape[-1]
    whole = columns // group
    out = reduction(tensor[..., : whole * group].unflatten(-1, (whole, group)), -1)
    if whole * group < columns:
        out = torch.cat([out, reduction(tensor[..., whole * group :], -1).unsqueeze(-1)], -1)
    return out


# Draws ----------------------------------------------------------------------------------------------------------------


def race(noise: rng.Noise) -> Choice:
    """Choose by `base.race`, some draws at a time."""

    def choose(weight: Tensor, lead: tuple[int, ...], winner: Tensor | None) -> Tensor:
        draws, rows = lead
        some = []
        for part in blocks(draws, 3 * rows * weight.shape[-1]) if weight.dim() == 2 else [slice(0, draws)]:
            some.append(base.race(weight, noise((part.stop - part.start, rows, weight.shape[-1]), winner)))
        return joined(some)

    return choose


def inversion(device: torch.device, generator: torch.Generator | None) -> Choice:
    """Choose the first index whose cumulative weight is above u sum w, in float64.

    It needs one uniform u, where a race needs one, and its logarithm, for each weight. It reaches 31 nats below the
    sum, a race 36; and only a CPU sums up in a fixed order, and in float64.

    As u is a multiple of 2^-53 and below 1, u sum w is below sum w, rounded too, and an index of weight 0 is never the
    first above it.
    """

    def choose(weight: Tensor, lead: tuple[int, ...], winner: Tensor | None) -> Tensor:
        # In place where vmap need not have a rule: fresh memory costs more than the sums.
        cumulative = weight.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        cumulative = cumulative.cumsum(-1) if in_transform() else cumulative.cumsum_(-1)
        total = cumulative[..., -1:]
        if weight.dim() == 3:
            u = rng.uniform((*lead, 1), device, generator)
            return torch.searchsorted(cumulative, u * total, right=True).squeeze(-1)
        # The draws of a row share its sums.
        draws, rows = lead
        some = []
        for part in blocks(draws, 3 * rows):
            n = part.stop - part.start
            # A compiler leaves `contiguous` out, and searchsorted then warns of a copy.
            compiled = torch.compiler.is_compiling()
            u = rng.uniform((rows, n), device, generator) if compiled else rng.uniform((n, rows), device, generator).t()
            some.append(torch.searchsorted(cumulative, (u * total).contiguous(), right=True).t())
        return joined(some)

    return choose


def _logsumexp_from(logits: Tensor, weight: Tensor, winner: Tensor) -> Tensor:
    """The logsumexp, [2, rows], from the logits of one group of each row, [rows, group], and the weights of all."""
    share = weight.gather(-1, winner.unsqueeze(-1)).squeeze(-1) / weight.sum(-1)
    x = logits.to(weight.dtype)
    m = x.amax(-1)
    return torch.stack([m, (x - m.unsqueeze(-1)).logsumexp(-1) - share.log()])


def sample_index(logits: Tensor, draws: int, choose: Choice, group: int) -> tuple[Tensor, Tensor | None, bool]:
    """Draw as `base.sample_index` does, a block of rows at a time.

    The sums of groups are vectorised; cumulative sums are not, so they are taken of few numbers.

    Args:
        logits: [rows, columns].
        draws: how many draws of each row.
        choose: draws in proportion to weights.
        group: columns in a group; one group, and no first choice, where it is at least `columns`.

    Returns:
        index: int64 [draws, rows], -1 for an invalid row.
        logsumexp: [2, rows], where it is a by-product of the groups.
        all_valid: whether every row was found to be valid.
    """
    rows, columns = logits.shape
    groups = -(-columns // group)
    # The weights to choose from, and their sums in float64.
    scratch = 3 * (groups + group if groups > 1 else columns)
    indices, logsumexps, found_invalid = [], [], False
    for part in blocks(rows, scratch):
        x = part_of(logits, part)
        if groups > 1:
            weight = by_rows(lambda x: _of_groups(torch.sum, nearly_softmax(x), group), x)
        else:
            weight = nearly_softmax(x)
        index = choose(weight, (draws, x.shape[0]), None)
        if groups > 1:
            # In an invalid row, a search ends anywhere.
            winners, some = index.clamp(max=groups - 1), []
            for chunk in blocks(draws, 3 * group * x.shape[0]):
                winner = part_of(winners, chunk)
                column = winner.unsqueeze(-1) * group + torch.arange(group, device=x.device)
                inside = x.expand(*winner.shape, columns).gather(-1, column.clamp(max=columns - 1))
                if columns % group:
                    inside = torch.where(column < columns, inside, -torch.inf)
                if draws and not some:
                    logsumexps.append(_logsumexp_from(inside[0], weight, winner[0]))
                some.append(winner * group + choose(nearly_softmax(inside), winner.shape, winner))
            index = joined(some)
        # With a NaN or +inf in a row, or -inf alone, every element of its softmax is NaN.
        first = weight[:, 0]
        if not (can_look_at(first) and math.isfinite(first.sum().item())):
            found_invalid, index = True, index.masked_fill(first.isnan(), -1)
        indices.append(index)
    return joined(indices, 1), joined(logsumexps, 1) if logsumexps else None, not found_invalid


def _exports_onnx() -> bool:
    """Whether torch.onnx is exporting. Only a program that has imported it, which takes 100 ms, can be."""
    return "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


# Densities ------------------------------------------------------------------------------------------------------------


def _exp(d: Tensor, out: Tensor) -> Tensor:
    """Write exp d into `out`, which d may be.

    By exp2, the product's rounding is a part |d| 6e-8 of the result, no more than that of d.
    """
    if _EXP_IS_FAST or d.dtype != torch.float32:
        return torch.exp(d, out=out)
    return torch.mul(d, _LOG2_E, out=out).exp2_()


def _logsumexp(logits: Tensor) -> Tensor:
    """Compute `base.logsumexp`."""
    if not can_look_at(logits):
        return base.logsumexp(logits)
    x = logits.to(compute_dtype(logits.dtype))
    m = x.amax(-1, keepdim=True)
    d = x - m
    return torch.stack([m.squeeze(-1), _exp(d, d).sum(-1).log_()])


def gathered(tensor: Tensor, at: Tensor, inside: bool) -> Tensor:
    """Take tensor [rows, columns] at [rows, draws], NaN where that is outside: gather itself looks whether it is."""
    if inside:
        return tensor.gather(-1, at)
    if can_look_at(at):
        try:
            return tensor.gather(-1, at)
        except RuntimeError:
            pass
    inner = at.clamp(0, tensor.shape[-1] - 1)
    return torch.where(at == inner, tensor.gather(-1, inner), torch.nan)


def _entropy_and_logsumexp(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the entropy, [rows], and the logsumexp, [2, rows], with one exponential per element.

    With d = x - max x and w in proportion to exp d, H = log sum exp d - (sum w d) / sum w: neither is negative.
    """
    dtype = compute_dtype(x.dtype)
    entropies, maxima, log_sums = out = x.new_empty((3, x.shape[0]), dtype=dtype)
    for part, d, weight, m in _weights(x):
        total = weight.sum(-1)
        log_total = total.log()
        # 0 -inf is NaN, and counts 0. In an invalid row, the total is NaN.
        entropies[part] = log_total - weight.mul_(d).nansum(-1) / total
        maxima[part], log_sums[part] = m.squeeze(-1), log_total
    return entropies, out[1:]


def _weights(x: Tensor, maximum: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Go through blocks of rows: which they are, d = x - max x, exp d, and max x, which may be given.

    The caller may write over d and exp d. All blocks have the same memory, since fresh pages cost more than the work on
    them. Half precision is converted first, because its maximum takes longer than the conversion and that of float32.
    """
    rows, columns = x.shape
    dtype = compute_dtype(x.dtype)
    # With the rows that are read and written, a block is four times its size: scratch that fills the cache is slower.
    parts = blocks(rows, 4 * columns, per_thread=True)
    scratch = x.new_empty((2, parts[0].stop, columns), dtype=dtype)
    for part in parts:
        some = part_of(x, part)
        d, weight = scratch[:, : some.shape[0]]
        some = some if some.dtype == dtype else d.copy_(some)
        m = some.amax(-1, keepdim=True) if maximum is None else maximum[part].unsqueeze(-1)
        torch.sub(some, m, out=d)
        yield part, d, _exp(d, weight), m


class Cpu(Eager):
    """The backend of a CPU. Its gradients, too, are written in differentiable operations."""

    def relaxes_first(self, logits: Tensor, draws: int) -> bool:
        # With a gradient, without one, and in a transform, which must not look: a seed gives one draw.
        return loses_functions() or (not torch.compiler.is_compiling() and draws * logits.numel() <= _SMALL)

    # Categories

    def softmax(self, logits: Tensor) -> Tensor:
        p = nearly_softmax(logits)
        if logits.shape[-1] <= SHORT:
            return p.contiguous()
        total = p.detach().sum(-1, keepdim=True)
        return p / total if is_differentiated(logits) else p.div_(total)

    def log_softmax(self, logits: Tensor) -> Tensor:
        log_p = nearly_log_softmax(logits)
        if logits.shape[-1] <= SHORT:
            return log_p.contiguous()
        log_total = log_p.detach().exp().sum(-1, keepdim=True).log()
        return log_p - log_total if is_differentiated(logits) else log_p.sub_(log_total)

    def nearly_softmax(self, logits: Tensor) -> Tensor:
        return nearly_softmax(logits)

    def argmax(self, tensor: Tensor) -> Tensor:
        # torch's own argmax looks at one element after the other, on one thread. A vectorised maximum of each group of
        # columns leaves it one group of a long row, with the same answer for every tensor, ties and NaN too.
        columns = tensor.shape[-1]
        if tensor.dtype == torch.bool:
            tensor = tensor.view(torch.uint8)
        if not can_look_at(tensor) or tensor.numel() <= ONE_THREAD:
            return tensor.argmax(-1)
        if tensor.dtype in (torch.bfloat16, torch.float16):
            # The maximum of half precision takes longer than the conversion and that of float32.
            return by_rows(lambda some: self.argmax(some.float()), tensor)
        if columns <= 4 * _ONE_GROUP:
            # This one shares the rows among the threads.
            return tensor.max(-1)[1]
        group = group_length(columns)
        first = group * _of_groups(torch.amax, tensor, group).argmax(-1)
        column = first.unsqueeze(-1) + torch.arange(group, device=tensor.device)
        return first + tensor.gather(-1, column.clamp(max=columns - 1)).argmax(-1)

    def one_hot(self, index: Tensor, columns: int, dtype: torch.dtype, all_valid: bool = False) -> Tensor:
        # One write per row, beside the zeros: no comparison of every element.
        out = index.new_zeros((*index.shape, columns), dtype=dtype)
        index = index.unsqueeze(-1)
        one = 1 if all_valid else (index >= 0).to(dtype)
        index = index if all_valid else index.clamp(min=0)
        # vmap has a rule for the one that does not write in place.
        return out.scatter(-1, index, one) if in_transform() else out.scatter_(-1, index, one)

    # Draws

    def sample(self, rows: Rows, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool) -> Sample:
        if seed.tensor is not None:
            return super().sample(rows, draws, dtype, seed, again)
        x, columns = masked(rows.logits, rows.mask), rows.logits.shape[-1]
        noise, seed_again = rng.noise_of_draw(x, seed, again)
        # Compiled, a backward replays its noise from a seed, which only the race supports; ONNX has no searchsorted.
        by_race = columns <= RACED or (again and torch.compiler.is_compiling()) or _exports_onnx()
        group = group_length(columns)
        # One search in place of two stages where the second stages would look at more than a row has.
        if not by_race and draws * group >= columns:
            group = columns
        choose = race(noise) if by_race else inversion(x.device, seed.generator)
        index, logsumexp, all_valid = sample_index(x, draws, choose, group)
        hot = None if dtype is None else self.one_hot(index, columns, dtype, all_valid)
        return Sample(hot, index, logsumexp, all_valid, seed_again() if again else None)

    def relaxed(self, logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
        noise = rng.noise_from(logits.device, seed)

        def block(x: Tensor, t: Tensor | float = temperature) -> Tensor:
            return self.relaxed_with(x, t, draws, noise)

        return by_rows(block, logits, *_of_rows(temperature), scratch=4 * draws, dim=1)

    # Straight-through gradients

    def softmax_grad(self, rows: Rows, grad: Tensor) -> Tensor:
        def block(x: Tensor, g: Tensor) -> Tensor:
            p = nearly_softmax(x)
            return softmax_backward(p, g.to(p.dtype)).to(x.dtype)

        return by_rows(block, masked(rows.logits, rows.mask), grad)

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
        assert seed.tensor is not None
        noise, draws, columns = rng.noise_again(seed.tensor), index.shape[0], rows.logits.shape[-1]

        def block(g: Tensor, x: Tensor, k: Tensor, t: Tensor | float = temperature) -> Tensor:
            e = noise((draws * samples, x.shape[0], columns + 1), None)
            p = nearly_softmax(x)
            z = scores_given(p, for_each_sample(k.t(), samples), e[..., :-1], e[..., -1])
            # Each of these passes takes a twentieth of the time.
            is_one = not isinstance(t, Tensor) and t == 1
            inverse = 1.0 if is_one else 1 / by_row(t, p.dtype)
            z = z if is_one else z * inverse
            dz = softmax_backward(nearly_softmax(z), for_each_sample(g.transpose(0, 1), samples).to(p.dtype))
            dz = dz if samples == 1 else dz / samples
            dx = dz if is_one else dz * inverse
            dx = dx.squeeze(0) if draws * samples == 1 else dx.sum(0)
            if not with_temperature:
                return dx.to(x.dtype)
            # dt as one column more. dz is 0 where y is 0, and 0 -inf would be NaN.
            return torch.cat([dx, -(dz * z.clamp_min(-1e30)).sum((0, 2)).unsqueeze(-1) * inverse], -1)

        x, t = masked(rows.logits, rows.mask), _of_rows(temperature)
        out = by_rows(block, grad.transpose(0, 1), x, index.t(), *t, scratch=4 * samples)
        return (out[:, :-1].to(x.dtype), out[:, -1]) if with_temperature else (out, None)

    def reinmax_grad(self, rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float) -> Tensor:
        return _by_rows_of_draws(super().reinmax_grad, rows, index, grad, temperature)

    def gapped_grad(self, rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float) -> Tensor:
        return _by_rows_of_draws(super().gapped_grad, rows, index, grad, temperature)

    def soft_grad(
        self, y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        def block(y: Tensor, g: Tensor, t: Tensor | float = temperature) -> Tensor:
            dtype = compute_dtype(y.dtype)
            p = y.to(dtype)
            dz = softmax_backward(p, g.to(dtype))
            inverse = 1 / by_row(t, dtype)
            dx = dz.sum(1) * inverse
            if not with_temperature:
                return dx.to(y.dtype)
            # dt as one column more. dz is 0 where y is 0, and 0 -inf would be NaN.
            log_y = p.clamp(min=torch.finfo(dtype).tiny).log()
            return torch.cat([dx, -(dz * log_y).sum((1, 2)).unsqueeze(-1) * inverse], -1)

        out = by_rows(block, y.transpose(0, 1), grad.transpose(0, 1), *_of_rows(temperature), scratch=4)
        return (out[:, :-1].to(y.dtype), out[:, -1]) if with_temperature else (out, None)

    # Densities

    def log_prob_index(self, rows: Rows, index: Tensor, inside: bool = False) -> tuple[Tensor, Tensor | None]:
        # By the logsumexp where nothing records it: no normalised copy of the logits.
        x, known, new = masked(rows.logits, rows.mask), rows.logsumexp, None
        if known is None and x.shape[-1] > SHORT and not is_differentiated(x):
            known = new = by_rows(_logsumexp, x, dim=1)
        at = columns_at(index)
        if known is None:
            chosen = by_draw(by_rows(lambda x, k: gathered(self.log_softmax(x), k, inside), x, at), index)
            # A rounding of the correction can bring it above 0.
            return chosen if x.shape[-1] <= SHORT else chosen - chosen.detach().clamp_min(0.0), None
        m, log_sum = known
        # A rounding can bring it above 0, where m is the maximum of one group and not of the row.
        return (by_draw(gathered(x, at, inside), index).to(m.dtype) - m - log_sum).clamp_max_(0.0), new

    def log_prob_grad(self, rows: Rows, index: Tensor, grad: Tensor) -> Tensor:
        def block(x: Tensor, k: Tensor, g: Tensor) -> Tensor:
            smooth = nearly_softmax(x) * -g.sum(-1, keepdim=True)
            return smooth.scatter_add(-1, k, g.to(smooth.dtype)).to(x.dtype)

        x = masked(rows.logits, rows.mask)
        out = by_rows(block, x, index.clamp(0, x.shape[-1] - 1).t(), grad.t())
        return zero_where_off(out, rows.mask)

    def entropy(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        # Short rows, and what is differentiated, by the formula.
        x = masked(rows.logits, rows.mask)
        if x.shape[-1] <= SHORT or is_differentiated(x):
            return by_rows(self._entropy_by_formula, x), None
        return _entropy_and_logsumexp(x)

    def _entropy_by_formula(self, logits: Tensor) -> Tensor:
        log_p = self.log_softmax(logits)
        p = log_p.exp()
        product = p * log_p.clamp_min(LOWEST) if is_differentiated(logits) else p.mul_(log_p.clamp_min_(LOWEST))
        # Not -sum, which is -0 for a certain outcome; no term is positive.
        return product.sum(-1).abs()

    def entropy_grad(self, rows: Rows, grad: Tensor) -> Tensor:
        def block(x: Tensor, g: Tensor) -> Tensor:
            d = shifted(x).clamp_min(LOWEST)
            return (softmax_backward(nearly_softmax(d), d) * -g.unsqueeze(-1)).to(x.dtype)

        return by_rows(block, masked(rows.logits, rows.mask), grad)

    def log_prob_and_entropy(
        self, rows: Rows, index: Tensor, inside: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        # By the logsumexp that comes with the entropy. Differentiated or compiled programs take one log_softmax.
        x = masked(rows.logits, rows.mask)
        if not (is_differentiated(x) or torch.compiler.is_compiling()):
            h, logsumexp = _entropy_and_logsumexp(x)
            return self.log_prob_index(Rows(x, None, logsumexp), index, inside)[0], h, logsumexp
        log_p = self.log_softmax(x)
        chosen = by_draw(gathered(log_p, columns_at(index), inside), index)
        # As in `log_prob_index` and in `entropy`.
        chosen = chosen if x.shape[-1] <= SHORT else chosen - chosen.detach().clamp_min(0.0)
        return chosen, entropy_of(log_p), None

    def log_prob_and_entropy_grad(
        self, rows: Rows, index: Tensor, grad_log_prob: Tensor, grad_entropy: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        # The formula, with the numbers of a row that are known, in as few passes over a block as they leave.
        logits, mask, logsumexp, entropy = rows
        given = logits, grad_log_prob, grad_entropy, grad
        differentiated = any(tensor is not None and is_differentiated(tensor) for tensor in given)
        if differentiated or logsumexp is None or entropy is None:
            return super().log_prob_and_entropy_grad(rows, index, grad_log_prob, grad_entropy, grad)
        x = masked(logits, mask)
        m, log_sum = logsumexp
        dtype, out = m.dtype, torch.empty_like(x, memory_format=torch.contiguous_format)
        k, g_k = index.clamp(0, x.shape[1] - 1).t(), grad_log_prob.t().to(dtype)
        over_sum, slope, total = (-log_sum).exp(), -grad_entropy.to(dtype), g_k.sum(-1)
        # Per row, with w = exp d: p = w / sum w, and -g_H (log p + H) - sum g_s = -g_H d + constant.
        constant = slope * (entropy - log_sum) - total
        over_sum, slope, total, constant = (t.unsqueeze(-1) for t in (over_sum, slope, total, constant))
        factor, offset = slope * over_sum, constant * over_sum
        for part, d, weight, _ in _weights(x, m):
            d.clamp_(min=LOWEST)
            result = out[part] if out.dtype == dtype else d
            if grad is None:
                torch.mul(torch.addcmul(offset[part], d, factor[part], out=d), weight, out=result)
            else:
                # The constant is of no use where <p, g> must be found: it drops out of p (h - <p, h>).
                wh = torch.addcmul(part_of(grad, part), d, slope[part], out=d).mul_(weight)
                mean = wh.sum(-1, keepdim=True).mul_(over_sum[part]).add_(total[part])
                torch.addcmul(wh, weight, mean, value=-1, out=result).mul_(over_sum[part])
            result.scatter_add_(-1, k[part], g_k[part])
            if result is d:
                out[part] = d
        return zero_where_off(out, mask)

    def relaxed_log_prob(self, logits: Tensor, temperature: Tensor | float, log_y: Tensor, of_log: bool) -> Tensor:
        # In a third of the calls where no category is off and no value is 0.
        looks = can_look_at(logits) and can_look_at(log_y)
        if not looks or not math.isfinite(logits.detach().sum().item() + log_y.detach().sum().item()):
            return super().relaxed_log_prob(logits, temperature, log_y, of_log)
        columns = logits.shape[-1]
        score = logits - by_row(temperature, log_y.dtype) * log_y
        log_t = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
        density = self.log_softmax(score).sum(-1) + (columns - 1) * log_t + math.lgamma(columns)
        return density if of_log else density - log_y.sum(-1)


def _of_rows(temperature: Tensor | float) -> tuple[Tensor, ...]:
    """The arguments of `by_rows` for a temperature: none for a number."""
    return (temperature,) if isinstance(temperature, Tensor) else ()


def _by_rows_of_draws(
    formula: Callable[..., Tensor], rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float
) -> Tensor:
    """A gradient of the formulas, some rows at a time."""

    def block(g: Tensor, x: Tensor, k: Tensor, t: Tensor | float = temperature) -> Tensor:
        return formula(Rows(x), k.t(), g.transpose(0, 1), t)

    x, t = masked(rows.logits, rows.mask), (temperature,) if isinstance(temperature, Tensor) else ()
    return by_rows(block, grad.transpose(0, 1), x, index.t(), *t, scratch=4)
