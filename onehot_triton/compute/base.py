"""The formulas in plain torch: the oracle of the kernels and of the other backends, and the backend of other devices.

A backend is an object of `Eager` or of a class that overrides some of its methods: `Cpu`, `Small`, `Triton`. A method
calls the others by `self.`, so an override serves every method that needs it.

Shapes and dtypes, which are the same in all backends:

    logits          [rows, columns], unnormalised, of any floating dtype, with any strides
    temperature     [rows] in the compute dtype, or one number for all rows
    draws           a leading dimension; a single draw may come without it
    index           int64 [draws, rows], the columns drawn, -1 for an invalid row
    gradients       in the logits' dtype
    densities       in the compute dtype: float64 for float64 logits, else float32

A row is invalid if it has a NaN or +inf, or nothing but -inf. All formulas are differentiable, gradients too, so second
derivatives follow from them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .. import rng
from ..estimators import Estimator, GivenDraw
from ..rng import Noise, Seed
from ..tensors import compute_dtype, in_transform, is_differentiated, loses_functions

GROUP = 1024
"""The columns of a group, as in the kernels (docs/noise.md)."""
LOWEST = -10_000
"""A finite stand-in for log 0: its exp is 0, in float64 too, and 0 times it is 0 in every derivative.
An int, because a compiler takes a float of a module for an input of the graph and compiles twice."""
GAP = 1
"""By how much a draw wins at the logits of GappedStraightThrough, as in Fan et al. 2022."""


class Rows(NamedTuple):
    """Rows of logits, with what is known of them.

    Attributes:
        logits: [rows, columns].
        mask: bool [rows, columns], True where a category can be drawn; None for everywhere. A backend that
            `reads_masks` also takes [m, n, columns] of any strides, with m n rows.
        logsumexp: [2, rows] in the compute dtype: max x and log sum exp(x - max x), which is NaN in an invalid row.
            They stay two numbers, because their sum would lose the small one to rounding. None where it is not known.
        entropy: [rows] in the compute dtype; None where it is not known.
    """

    logits: Tensor
    mask: Tensor | None = None
    logsumexp: Tensor | None = None
    entropy: Tensor | None = None


class Sample(NamedTuple):
    """A draw.

    Attributes:
        one_hot: [draws, rows, columns], all zero in an invalid row; None where none was asked for.
        index: int64 [draws, rows].
        logsumexp: as in `Rows`.
        all_valid: True where every row was found to be valid.
        seed: one int64 element, from which `relaxed_grad` draws its noise; None where it has the noise of the draw.
        hints: whether a later `log_prob` of this draw becomes faster by first looking where its ones were.
    """

    one_hot: Tensor | None
    index: Tensor
    logsumexp: Tensor | None
    all_valid: bool
    seed: Tensor | None
    hints: bool = True


class ShardRace(NamedTuple):
    """A draw as far as one shard of the columns decides it.

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


class NoSecondDerivative(Function):
    """A gradient that `maker` computed from `sources`: in a graph it can be used, but not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, maker, *sources):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.maker = inputs[1]

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(f"rsample: the RelaxedOneHot gradient of {ctx.maker} has no second derivative")


# Parts of the formulas ------------------------------------------------------------------------------------------------


def masked(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Put -inf where the mask, if there is one, is False; no gradient flows there."""
    return logits if mask is None else torch.where(mask, logits, -torch.inf)


def zero_where_off(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Put 0 where the mask, if there is one, is False: a row that allows nothing may have NaN there.

    Gradients are made of such numbers alone, so they, and what is derived from them, are 0 there.
    """
    return tensor if mask is None else torch.where(mask, tensor, 0.0)


def shifted(logits: Tensor) -> Tensor:
    """Give x - max x, [..., columns] in the compute dtype. In an invalid row at least one of them is NaN."""
    x = logits.to(compute_dtype(logits.dtype))
    return x - x.detach().amax(-1, keepdim=True)


def logsumexp(logits: Tensor) -> Tensor:
    """Give the `Rows.logsumexp` of [rows, columns]: [2, rows]."""
    d = shifted(logits)
    return torch.stack([logits.amax(-1).to(d.dtype), d.exp().sum(-1).log()])


def one_hot(index: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Give [*index.shape, columns], all zero where the index is -1."""
    return (index.unsqueeze(-1) == torch.arange(columns, device=index.device)).to(dtype)


def by_row(temperature: Tensor | float, dtype: torch.dtype) -> Tensor | float:
    """Make a temperature [rows] a column beside [rows, columns]; a number stays as it is."""
    return temperature.to(dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature


def columns_at(index: Tensor) -> Tensor:
    """Put `index`, [draws, rows] or [rows], beside the rows: [rows, draws]."""
    return index.unsqueeze(-1) if index.dim() == 1 else index.t()


def by_draw(of_rows: Tensor, index: Tensor) -> Tensor:
    """Give what was found at `columns_at(index)` the shape of `index`."""
    return of_rows.squeeze(-1) if index.dim() == 1 else of_rows.t()


def for_each_sample(of_draws: Tensor, samples: int) -> Tensor:
    """Repeat [draws, ...] to [draws * samples, ...], the samples of a draw side by side."""
    return of_draws if samples == 1 else of_draws.repeat_interleave(samples, 0)


def race(weight: Tensor, e: Tensor) -> Tensor:
    """Give the index of the least E / w, with E iid Exp(1) and `e` = -E.

    Among exponentials divided by their rates, each is the least with a probability in proportion to its rate. It is
    Gumbel-max, with -log E for the Gumbel variate.
    """
    return (weight / e).argmin(-1)


def sample_index(logits: Tensor, draws: int, noise: Noise, group: int = GROUP) -> Tensor:
    """Draw from softmax(x), int64 [draws, rows]: first a group of columns, then one of its columns.

    The row is cut into groups of consecutive columns. A group in proportion to the sum of its exp x_j, and then a
    column of it in proportion to exp x_j, is exactly a draw from the row's softmax. A row of one group needs no first
    choice.
    """
    rows, columns = logits.shape
    weight = shifted(logits).exp()
    if columns <= group:
        index = race(weight, noise((draws, *weight.shape), None))
    else:
        groups = -(-columns // group)
        beyond = groups * group - columns
        in_groups = torch.nn.functional.pad(weight, (0, beyond)).view(rows, groups, group).sum(-1)
        winner = race(in_groups, noise((draws, *in_groups.shape), None))
        # In a group far below the row's maximum, all weights may be 0: they are taken again, below its own maximum.
        column = winner.unsqueeze(-1) * group + torch.arange(group, device=logits.device)
        inside = logits.expand(draws, rows, columns).gather(-1, column.clamp(max=columns - 1))
        weight_inside = shifted(torch.where(column < columns, inside, -torch.inf)).exp()
        index = winner * group + race(weight_inside, noise((draws, rows, group), winner))
    # With a NaN or +inf in a row, or -inf alone, a weight is NaN.
    return index.masked_fill(weight.sum(-1).isnan(), -1)


def relaxed_scores(logits: Tensor, temperature: Tensor | float, draws: int, noise: Noise) -> Tensor:
    """Give (x - max x + Gumbel) / t, [draws, rows, columns] in the compute dtype."""
    # A category that is off must not make the temperature's gradient 0 inf.
    d = shifted(logits).clamp_min(-1e20)
    gumbel = -torch.log(-noise((draws, *d.shape), None))
    return (d + gumbel.to(d.dtype)) / by_row(temperature, d.dtype)


def perturbed(logits: Tensor, draws: int, seed: Seed) -> Tensor:
    """Give x - max x + Gumbel, [draws, rows, columns] in the dtype of the noise: the Gumbel variate of E is -log E."""
    e = rng.exponential((draws, *logits.shape), logits.device, seed.generator)
    # A category that is off must not make the temperature's gradient 0 inf.
    return shifted(logits).clamp_min(-1e20) - e.neg().log()


def scores_given(probs: Tensor, index: Tensor, e: Tensor, e_winner: Tensor) -> Tensor:
    """Draw log p + Gumbel less its maximum, [draws, rows, columns], given that column k is the maximum.

    With E iid Exp(1), s_k = -log E_k and s_j = -log(E_j / p_j + E_k) has the law of log p + Gumbel given that k is its
    arg-max: the winner's value is a Gumbel variate, independent of which column won, and the others are Gumbel
    variates truncated at it (Maddison, Tarlow and Minka 2014, https://arxiv.org/abs/1411.0030). Less s_k that is 0 at
    k, and -log(1 + E_j / (p_j E_k)) elsewhere.

    Args:
        probs: [rows, columns].
        index: int64 [draws, rows], the winners k.
        e: E, [draws, rows, columns], of either sign.
        e_winner: E_k, of `index`'s shape, of the same sign.
    """
    # p = 0 makes the ratio infinite; E_j / E_k can overflow float32 to the same effect.
    ratio = (e / e_winner.unsqueeze(-1)).to(probs.dtype) / probs
    score, at = torch.log1p(ratio).neg_(), index.clamp(min=0).unsqueeze(-1)
    # vmap has a rule for the one that does not write in place.
    return score.scatter(-1, at, 0.0) if in_transform() else score.scatter_(-1, at, 0.0)


def softmax_backward(probs: Tensor, grad: Tensor) -> Tensor:
    """Give y (g - <y, g>)."""
    return probs * (grad - (probs * grad).sum(-1, keepdim=True))


def with_derivative_of(score: Tensor, logits: Tensor) -> Tensor:
    """Give `score` the derivative of x."""
    # An infinite x would give x - x = NaN.
    x = logits.masked_fill(logits.isinf(), 0.0).to(score.dtype)
    return score.detach() + (x - x.detach())


def gapped(logits: Tensor, index: Tensor) -> Tensor:
    """Give x' - max x, [draws, rows, columns]: 0 at the draw, else min(x - max x, -gap), with the derivative of x.

    x' is x with a shift that is not differentiated (Fan et al. 2022, https://arxiv.org/abs/2206.07235).
    """
    d = shifted(logits.detach())
    hot = index.unsqueeze(-1) == torch.arange(d.shape[-1], device=d.device)
    # 0 at the draw, NaN in an invalid row.
    return with_derivative_of(torch.where(hot, d.amax(-1, keepdim=True), d.clamp_max(-GAP)), logits)


def log_soft_grad(
    log_y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Give the gradients of `Eager.soft_grad` from log y and its gradient: dz = g - y sum g."""
    off = log_y == -torch.inf
    grad = grad.masked_fill(off, 0.0)
    dz = (grad - log_y.exp() * grad.sum(-1, keepdim=True)) / by_row(temperature, log_y.dtype)
    return dz.sum(0), -(dz * log_y.masked_fill(off, 0.0)).sum((0, 2)) if with_temperature else None


def entropy_of(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """Give -sum p log p, [rows], from log p, and from p where it is known."""
    # Not -sum, which is -0 for a certain outcome; no term is positive.
    p = log_p.exp() if p is None else p
    return (p * log_p.clamp_min(LOWEST)).sum(-1).abs()


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Give sum p (log p - log q), [...], for normalised log-probabilities [..., columns]; inf where q alone is 0.

    With d = log q - log p, each term is p (expm1(d) - d): q - p more than p (log p - log q), and those add up to 0 over
    a row. No term is negative, so the sum is as exact as its terms, and an error that log p or log q has in common over
    a row counts by its square. A category that p lacks therefore has the term q, not 0.
    """
    p, q = log_p.exp(), log_q.exp()
    q_is_0 = log_q == -torch.inf
    either_is_0 = q_is_0 | (log_p == -torch.inf)
    # A branch that is not taken gets arguments at which its derivative is finite: 0 times infinity would be NaN.
    d = (log_q - log_p).masked_fill(either_is_0, 0.0)
    is_far = either_is_0 | (d.abs() >= 1)
    near = d.masked_fill(is_far, 0.0)
    far = q - p - (p * d).masked_fill(q_is_0 & (log_p != -torch.inf), -torch.inf)
    return torch.where(is_far, far, p * (near.expm1() - near)).sum(-1)


def relaxed_limit(n: Tensor, zeros: Tensor, temperature: Tensor | float, of_log: bool) -> tuple[Tensor, Tensor]:
    """Tell where zeros make the density of a relaxed value infinite, and its limit there, +inf or -inf.

    m zeros that go to 0 together add ((n - m) t - m) log 0 to the log-density of y, and (n - m) t log 0 to that of
    log y.

    Args:
        n: the number of categories that are on, per row, in the compute dtype.
        zeros: m, the number of those whose value is 0, likewise.
        temperature: t, which broadcasts against them.
        of_log: whether the density is that of log y.
    """
    t = temperature.detach() if isinstance(temperature, Tensor) else temperature
    # A division, since the nearest number to m / (n - m) is a temperature that users give.
    critical = zeros * 0 if of_log else zeros / (n - zeros)
    return (zeros > 0) & (critical != t), (critical - t) * torch.inf


def relaxed_constant(n: Tensor, temperature: Tensor | float) -> Tensor:
    """Give log Gamma(n) + (n - 1) log t."""
    log_t = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
    return torch.lgamma(n) + (n - 1) * log_t


class Eager:
    """The formulas, one method an operation: rows in, rows out."""

    reads_masks: bool = False
    """Whether a mask beside the logits costs nothing; else logits are better masked once than in each call."""

    def records(self, logits: Tensor, relaxed: bool = False) -> bool:
        """Tell whether autograd is to record the methods as they are, each a formula in differentiable operations.

        `relaxed` asks for all but densities and PassThrough, which may have another answer.
        """
        return is_differentiated(logits) and loses_functions()

    def relaxes_first(self, logits: Tensor, draws: int) -> bool:
        """Tell whether a draw with a RelaxedOneHot gradient is the arg-max of a relaxed sample, which autograd records.

        Else the draw comes first, and the backward draws a relaxed sample that goes with it.
        """
        return loses_functions()

    def new_seed(self, logits: Tensor, generator: torch.Generator | None) -> Seed:
        """Give the seed of a draw from `logits`."""
        return Seed(generator=generator)

    # Categories

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Give log softmax(x), [..., columns] in the compute dtype."""
        d = shifted(logits)
        # torch.log_softmax on a CPU adds up one term after the other: behind a large one, of 2^20 small ones it loses
        # 1e-3.
        return d - d.exp().sum(-1, keepdim=True).log()

    def softmax(self, logits: Tensor) -> Tensor:
        """Give softmax(x), [..., columns] in the compute dtype."""
        return self.log_softmax(logits).exp()

    def nearly_softmax(self, logits: Tensor) -> Tensor:
        """Give softmax(x) where a factor per row, near 1, does no harm, as in what has the derivative of a softmax."""
        return self.softmax(logits)

    def argmax(self, tensor: Tensor) -> Tensor:
        """Find the first maximum, int64 [...]; NaN counts as one."""
        return (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor).argmax(-1)

    def one_hot(self, index: Tensor, columns: int, dtype: torch.dtype, all_valid: bool = False) -> Tensor:
        """Give [*index.shape, columns], all zero where the index is -1; `all_valid` tells that it is so nowhere."""
        return one_hot(index, columns, dtype)

    # Draws

    def sample(self, rows: Rows, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool) -> Sample:
        """Draw from softmax(x): one-hot rows of `dtype`, None for none; `again` where `relaxed_grad` will follow."""
        x = masked(rows.logits, rows.mask)
        noise, seed_again = rng.noise_of_draw(x, seed, again)
        index = sample_index(x, draws, noise)
        hot = None if dtype is None else self.one_hot(index, x.shape[-1], dtype)
        return Sample(hot, index, None, False, seed_again() if again else None)

    def shard_race(self, logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
        """Draw from a shard of long rows, with what decides between the shards.

        The groups are numbered from `first_group`. The seed is one of a kernel.
        """
        rows, columns = logits.shape
        x = logits.to(compute_dtype(logits.dtype))
        maximum = x.amax(-1)
        # In a shard that has nothing to draw, all weights are 0.
        weight = (x - maximum.masked_fill(maximum == -torch.inf, 0.0).unsqueeze(-1)).exp()
        groups = -(-columns // GROUP)
        in_groups = torch.nn.functional.pad(weight, (0, groups * GROUP - columns)).view(rows, groups, GROUP).sum(-1)
        noise = rng.noise_of_place(seed, None, first_group)
        rate = in_groups / noise((draws, rows, groups), None)
        best, winner = rate.min(-1)
        width = min(GROUP, columns)
        column = winner.unsqueeze(-1) * GROUP + torch.arange(width, device=x.device)
        inside = x.expand(draws, rows, columns).gather(-1, column.clamp(max=columns - 1))
        weight_inside = shifted(torch.where(column < columns, inside, -torch.inf)).exp()
        index = winner * GROUP + race(weight_inside, noise((draws, rows, width), winner))
        total = in_groups.sum(-1)
        return ShardRace(index.masked_fill(~(total > 0), -1), (-1 / best).float(), maximum, total)

    def relaxed(self, logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
        """Draw softmax((x + Gumbel) / t), [draws, rows, columns] in the logits' dtype."""
        return self.relaxed_with(logits, temperature, draws, rng.noise_from(logits.device, seed))

    def relaxed_with(self, logits: Tensor, temperature: Tensor | float, draws: int, noise: Noise) -> Tensor:
        """Give `relaxed` for the noise that is given."""
        return self.softmax(relaxed_scores(logits, temperature, draws, noise)).to(logits.dtype)

    def log_relaxed(self, logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
        """Give log y of `relaxed`, in the compute dtype: finite where y itself rounds to 0, -inf in what is off."""
        z = relaxed_scores(logits, temperature, draws, rng.noise_from(logits.device, seed))
        return self.log_softmax(z).masked_fill(shifted(logits) == -torch.inf, -torch.inf)

    # Straight-through gradients of a draw, for `grad` [draws, rows, columns]

    def softmax_grad(self, rows: Rows, grad: Tensor) -> Tensor:
        """PassThrough: give p (g - <p, g>), [rows, columns], for `grad` [rows, columns]: the draws share p."""
        p = zero_where_off(self.softmax(masked(rows.logits, rows.mask)), rows.mask)
        return zero_where_off(softmax_backward(p, grad.to(p.dtype)).to(rows.logits.dtype), rows.mask)

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
        """RelaxedOneHot: with dz = y (g - <y, g>) and y = softmax(z) drawn given that column k won, give sum_s dz / t,
        [rows, columns], and sum_s -<dz, z> / t, [rows] in the compute dtype, where it is wanted.

        Each is the mean over so many `samples` of y for each draw.
        """
        assert seed.tensor is not None
        draws, n, columns = grad.shape
        e = rng.noise_again(seed.tensor)((draws * samples, n, columns + 1), None)
        x = masked(rows.logits, rows.mask)
        dx, dt = self.relaxed_grad_with(x, index, grad, temperature, e[..., :-1], e[..., -1], samples)
        return zero_where_off(dx, rows.mask), dt if with_temperature else None

    def relaxed_grad_with(
        self,
        logits: Tensor,
        index: Tensor,
        grad: Tensor,
        temperature: Tensor | float,
        e: Tensor,
        e_winner: Tensor,
        samples: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Give both gradients of `relaxed_grad` for the noise that is given, [draws * samples, rows, columns].

        No gradient flows through the noise, which does not depend on the logits. Adding a constant to z does not change
        dt, because dz sums to 0.
        """
        p = self.softmax(logits)
        t = by_row(temperature, p.dtype)
        z = scores_given(p, for_each_sample(index, samples), e, e_winner) / t
        dz = softmax_backward(self.softmax(z), for_each_sample(grad, samples).to(p.dtype)) / samples
        # dz is 0 where y is 0, and 0 -inf would be NaN.
        dt = -((dz * z.clamp_min(-1e30)).sum((0, 2), keepdim=True) / t).reshape(-1)
        return (dz / t).sum(0).to(logits.dtype), dt

    def reinmax_grad(self, rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float) -> Tensor:
        """ReinMax: give sum_s 2 J(m) g - J(p) g / 2, [rows, columns], with J(m) g = m (g - <m, g>) and
        m = (softmax(x / t) + onehot(k)) / 2.

        Heun's rule, second order where PassThrough is first: the gradient at (p + h) / 2, with h the draw, takes the
        place of the one at p (Liu et al. 2023, https://arxiv.org/abs/2304.08612).
        """
        x, mask = masked(rows.logits, rows.mask), rows.mask
        p = zero_where_off(self.softmax(x), mask)
        q = zero_where_off(self.softmax(shifted(x) / by_row(temperature, p.dtype)), mask)
        m = (q + one_hot(index, x.shape[-1], p.dtype)) / 2
        g = grad.to(p.dtype)
        dx = 2 * softmax_backward(m, g) - softmax_backward(p, g) / 2
        return zero_where_off(dx.sum(0).to(x.dtype), mask)

    def gapped_grad(self, rows: Rows, index: Tensor, grad: Tensor, temperature: Tensor | float) -> Tensor:
        """GappedStraightThrough: give sum_s y (g - <y, g>) / t, [rows, columns], with y = softmax(x' / t), x'_k = max x
        and x'_j = min(x_j, max x - 1) elsewhere."""
        score = gapped(masked(rows.logits, rows.mask), index)
        t = by_row(temperature, score.dtype)
        y = zero_where_off(self.softmax(score / t), rows.mask)
        dx = (softmax_backward(y, grad.to(y.dtype)) / t).sum(0)
        return zero_where_off(dx.to(rows.logits.dtype), rows.mask)

    def soft_grad(
        self, y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Give the gradients of soft samples y = softmax(z), z = (x + Gumbel) / t, [draws, rows, columns]: with
        dz = y (g - <y, g>), sum_s dz / t, [rows, columns], and sum_s -<dz, log y> / t, [rows] in the compute dtype,
        where it is wanted.

        dt is -<dz, z> / t, where z and log y differ by one number per row, and dz sums to 0.
        """
        dtype = compute_dtype(y.dtype)
        y, t, out_dtype = y.to(dtype), by_row(temperature, dtype), y.dtype
        dz = softmax_backward(y, grad.to(dtype)) / t
        # dz is 0 where y is 0, and 0 -inf would be NaN.
        log_y = y.clamp(min=torch.finfo(dtype).tiny).log()
        return dz.sum(0).to(out_dtype), -(dz * log_y).sum((0, 2)) if with_temperature else None

    # Straight-through in torch's own operations, for programs that keep no autograd Function: a draw plus y - y, whose
    # first derivative in y is the gradient of the method

    def straight_through(
        self,
        rows: Rows,
        draws: int,
        dtype: torch.dtype | None,
        seed: Seed,
        estimator: Estimator,
        temperature: Tensor | float,
        samples: int,
    ) -> Sample:
        """Draw as `sample` does, for autograd to record: the one-hot has the gradient of `estimator`.

        `samples` is that of `relaxed_grad`.
        """
        x = masked(rows.logits, rows.mask)
        if estimator.relaxed and samples == 1:
            return self.relaxed_first(x, draws, dtype, seed, temperature)
        drawn = self.sample(Rows(x.detach()), draws, None, seed, False)
        y = estimator.smooth(self, x, GivenDraw(drawn.index, temperature, seed, samples))
        return self.with_gradient_of(drawn, y, dtype)

    def with_gradient_of(self, drawn: Sample, y: Tensor, dtype: torch.dtype | None) -> Sample:
        """Give the draw a one-hot of `dtype` that has the derivative of y, [draws, rows, columns] or [rows, columns].

        h + (y - y) is the draw itself, since y - y is exactly 0, except for NaN in an invalid row.
        """
        assert dtype is not None
        zero = y - y.detach()
        zero = zero if drawn.all_valid else zero.nan_to_num(0.0)
        hot = self.one_hot(drawn.index, y.shape[-1], dtype, drawn.all_valid)
        return drawn._replace(one_hot=hot + zero.to(dtype))

    def relaxed_first(
        self, logits: Tensor, draws: int, dtype: torch.dtype | None, seed: Seed, temperature: Tensor | float
    ) -> Sample:
        """RelaxedOneHot as it is defined: the draw is the arg-max of the relaxed sample."""
        z = perturbed(logits, draws, seed)
        top, index = z.detach().max(-1)
        drawn = Sample(None, index.masked_fill(top.isnan(), -1), None, False, None)
        return self.with_gradient_of(drawn, self.softmax(z / by_row(temperature, z.dtype)), dtype)

    def relaxed_given(
        self, logits: Tensor, index: Tensor, temperature: Tensor | float, seed: Seed, samples: int
    ) -> Tensor:
        """Give the mean of relaxed samples y whose arg-max is the draw, [draws, rows, columns] in the compute dtype.

        Their derivatives are those of softmax((x + Gumbel) / t) for a fixed Gumbel.
        """
        index = for_each_sample(index, samples)
        with torch.no_grad():
            e = rng.exponential((*index.shape, logits.shape[-1] + 1), logits.device, seed.generator)
            score = scores_given(self.softmax(logits), index, e[..., :-1], e[..., -1]).clamp_min(-1e30)
        y = self.softmax(with_derivative_of(score, logits) / by_row(temperature, score.dtype))
        return y if samples == 1 else y.unflatten(0, (-1, samples)).mean(1)

    def reinmax_given(self, logits: Tensor, index: Tensor, temperature: Tensor | float) -> Tensor:
        """Give 2 softmax(log m + x) - softmax(x) / 2, with x's derivative alone: that of softmax at m is J(m)."""
        p = self.softmax(logits)
        q = self.softmax(shifted(logits.detach()) / by_row(temperature, p.dtype))
        log_m = ((q + one_hot(index, q.shape[-1], q.dtype)) / 2).log()
        return 2 * self.softmax(with_derivative_of(log_m, logits)) - p / 2

    def gapped_given(self, logits: Tensor, index: Tensor, temperature: Tensor | float) -> Tensor:
        """Give softmax(x' / t)."""
        score = gapped(logits, index)
        return self.softmax(score / by_row(temperature, score.dtype))

    # Densities

    def log_prob(self, rows: Rows, value: Tensor, hint: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give log p_k, [draws, rows], at the first maximum k of each row of `value` [draws, rows, columns]; k; and the
        logsumexp where it was computed here.

        `hint`, int64 [draws, rows], says where a 1 may be, -1 for nowhere: where it still is, no other number of that
        row need be read.
        """
        index = self.argmax(value)
        out, new = self.log_prob_index(rows, index, True)
        return out, index, new

    def log_prob_index(self, rows: Rows, index: Tensor, inside: bool = False) -> tuple[Tensor, Tensor | None]:
        """Give log p_k, [draws, rows], NaN where k is no column; and the logsumexp where it was computed here.

        `inside` tells that every k is a column.
        """
        at = index.clamp(0, rows.logits.shape[-1] - 1)
        log_p = self.log_softmax(masked(rows.logits, rows.mask))
        return torch.where(index == at, by_draw(log_p.gather(-1, columns_at(at)), index), torch.nan), None

    def log_prob_grad(self, rows: Rows, index: Tensor, grad: Tensor) -> Tensor:
        """Give sum_s g_s (onehot(k_s) - p), [rows, columns], for `grad` [draws, rows]."""
        p = zero_where_off(self.softmax(masked(rows.logits, rows.mask)), rows.mask)
        smooth = p * -grad.sum(0).unsqueeze(-1)
        at = index.clamp(0, rows.logits.shape[-1] - 1).t()
        # In float32: rounded to half precision before they are added, the two would cancel to noise where p is near 1.
        dx = smooth.scatter_add(-1, at, grad.t().to(smooth.dtype))
        return zero_where_off(dx.to(rows.logits.dtype), rows.mask)

    def entropy(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Give H = -sum_j p_j log p_j with 0 log 0 = 0, [rows], and the logsumexp where it was computed here."""
        return entropy_of(self.log_softmax(masked(rows.logits, rows.mask))), None

    def entropy_grad(self, rows: Rows, grad: Tensor) -> Tensor:
        """Give -g p_j (log p_j + H), [rows, columns], for `grad` [rows].

        As H = -<p, log p>, it is -g times the PassThrough gradient of log p, or of log p plus any constant.
        """
        x, mask = masked(rows.logits, rows.mask), rows.mask
        p, d = zero_where_off(self.softmax(x), mask), zero_where_off(shifted(x).clamp_min(LOWEST), mask)
        return zero_where_off((softmax_backward(p, d) * -grad.unsqueeze(-1)).to(x.dtype), mask)

    def log_prob_and_entropy(
        self, rows: Rows, index: Tensor, inside: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Give log p_k, [draws, rows], H, [rows], and the logsumexp where it was computed: `log_prob_index` and
        `entropy` by one reading of the logits."""
        x = Rows(masked(rows.logits, rows.mask))
        return self.log_prob_index(x, index, inside)[0], self.entropy(x)[0], None

    def rsample_log_prob_and_entropy(
        self, rows: Rows, draws: int, dtype: torch.dtype | None, seed: Seed
    ) -> tuple[Sample, Tensor, Tensor]:
        """Draw with the gradient of PassThrough, and give the draw's `log_prob_and_entropy`, for autograd to record."""
        x = masked(rows.logits, rows.mask)
        drawn = self.sample(Rows(x.detach()), draws, None, seed, False)
        log_prob, h, _ = self.log_prob_and_entropy(Rows(x), drawn.index, drawn.all_valid)
        return self.with_gradient_of(drawn, self.nearly_softmax(x), dtype), log_prob, h

    def log_prob_and_entropy_grad(
        self, rows: Rows, index: Tensor, grad_log_prob: Tensor, grad_entropy: Tensor, grad: Tensor | None = None
    ) -> Tensor:
        """Give sum_s g_s (onehot(k_s) - p) - g_H p (log p + H), [rows, columns], for `grad_log_prob` [draws, rows] and
        `grad_entropy` [rows]; and PassThrough's p (g - <p, g>) added to it, where there is a `grad` [rows, columns].

        The last two are one: the entropy's gradient is PassThrough's of -g log p, or of that plus any constant.
        """
        x, mask = masked(rows.logits, rows.mask), rows.mask
        p, d = zero_where_off(self.softmax(x), mask), zero_where_off(shifted(x).clamp_min(LOWEST), mask)
        of_draw = d * -grad_entropy.unsqueeze(-1)
        of_draw = of_draw if grad is None else of_draw + grad
        smooth = softmax_backward(p, of_draw) - p * grad_log_prob.sum(0).unsqueeze(-1)
        at = index.clamp(0, x.shape[-1] - 1).t()
        return zero_where_off(smooth.scatter_add(-1, at, grad_log_prob.t().to(p.dtype)).to(x.dtype), mask)

    def relaxed_log_prob(self, logits: Tensor, temperature: Tensor | float, log_y: Tensor, of_log: bool) -> Tensor:
        """Give the log-density of a soft sample y, or of log y if `of_log`, for autograd to record.

        With n categories that are on and s_j = x_j - t log y_j, the log-density of log y is
        log Gamma(n) + (n - 1) log t + sum_j (s_j - logsumexp s), and that of y less sum_j log y_j (Maddison et al.
        2017, equations 25 and 10). Where m of the y_j are 0, only they are left in the logsumexp, and the terms with
        log 0 have the factor of `relaxed_limit`.

        Args:
            logits: [*batch, columns] in the compute dtype, -inf where a category is off.
            temperature: a number, or a tensor of that dtype that broadcasts to the batch.
            log_y: [..., columns] of that dtype, -inf where y is 0; its leading dimensions broadcast against the batch.
            of_log: whether the density is that of log y.
        """
        # No category of an invalid row is off, and no value 0, so that the row stays NaN.
        top, empty = logits.detach().amax(-1, keepdim=True), log_y == -torch.inf
        valid = top.isfinite()
        off = (logits == -torch.inf) & valid
        on = off.logical_not()
        zero, outside = on & valid & empty, (off & empty.logical_not()).any(-1)
        n, zeros = on.sum(-1).to(log_y.dtype), zero.sum(-1).to(log_y.dtype)
        t = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
        # Infinite numbers are taken out beforehand: their derivative times 0 would be NaN. A row of -inf alone, as a
        # mask can leave it, gives neither value nor temperature a gradient.
        nothing = top == -torch.inf
        log_y = log_y.masked_fill(off | empty | nothing, 0.0)
        score = logits.masked_fill(off, 0.0) - (t * log_y).masked_fill(nothing, 0.0)
        left_out = torch.where(zeros.unsqueeze(-1) > 0, zero, on).logical_not()
        log_sum = score.masked_fill(left_out, -torch.inf).logsumexp(-1, keepdim=True)
        density = (score - log_sum).masked_fill(off, 0.0).sum(-1) + relaxed_constant(n, temperature)
        density = density if of_log else density - log_y.sum(-1)
        infinite, limit = relaxed_limit(n, zeros, temperature, of_log)
        return torch.where((infinite | outside) & (density == density), limit.masked_fill(outside, -torch.inf), density)
