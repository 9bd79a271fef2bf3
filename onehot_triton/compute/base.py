"""The formulas in plain torch, one screen an operation and no threshold: the oracle of the kernels and of `cpu.py`, and
what computes on every device that has no backend of its own.

Shapes and results are those of `interface.py`. Half precision is computed in float32. Everything is written in
differentiable operations, gradients too, so second derivatives follow from it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import rng
from ..grad_method import ReparamGradientStrategy
from ..rng import Noise, Seed
from ..tensors import compute_dtype, in_transform, is_differentiated, loses_functions
from .interface import Sample, ShardRace

GROUP = 1024
"""The columns of a group, as in the kernels (docs/noise.md)."""
LOWEST = -10_000
"""exp of it is 0, in float64 too, where 0 log 0 wants a finite number that no product of a derivative makes infinite.
An int: a compiler takes a float of a module for an input of the graph, and compiles twice."""

reads_masks = False


def records(logits: Tensor, relaxed: bool = False) -> bool:
    return is_differentiated(logits) and loses_functions()


def relaxes_first(logits: Tensor, draws: int) -> bool:
    return loses_functions()


def new_seed(logits: Tensor, generator: torch.Generator | None) -> Seed:
    return Seed(generator=generator)


def masked(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """`logits` with -inf where the mask, if there is one, is False; without gradient there."""
    return logits if mask is None else torch.where(mask, logits, -torch.inf)


def zero_where_off(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """`tensor` with 0 where the mask, if there is one, is False: in a row in which nothing is allowed it may be NaN.
    A gradient is made of such numbers alone, so that it is 0 there, and what is derived from it, too."""
    return tensor if mask is None else torch.where(mask, tensor, 0.0)


# Categories -----------------------------------------------------------------------------------------------------------


def shifted(logits: Tensor) -> Tensor:
    """x - max x, [..., columns] in the compute dtype: all that the formulas know of x. In a row that is no
    distribution, one of them at least is NaN."""
    x = logits.to(compute_dtype(logits.dtype))
    return x - x.detach().amax(-1, keepdim=True)


def log_softmax(logits: Tensor) -> Tensor:
    d = shifted(logits)
    # torch.log_softmax on a CPU adds up one term after the other: behind a large one, of 2^20 small ones it loses 1e-3.
    return d - d.exp().sum(-1, keepdim=True).log()


def softmax(logits: Tensor) -> Tensor:
    return log_softmax(logits).exp()


def logsumexp(logits: Tensor) -> Tensor:
    """The two numbers of a row, [2, rows]."""
    d = shifted(logits)
    return torch.stack([logits.amax(-1).to(d.dtype), d.exp().sum(-1).log()])


def argmax(tensor: Tensor) -> Tensor:
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor).argmax(-1)


def one_hot(index: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    return (index.unsqueeze(-1) == torch.arange(columns, device=index.device)).to(dtype)


# Draws ----------------------------------------------------------------------------------------------------------------


def race(weight: Tensor, e: Tensor) -> Tensor:
    """The index of the least E / w, E iid Exp(1): of exponentials divided by their rates, each is the least with a
    probability in proportion to its rate. It is Gumbel-max, with -log E for the Gumbel variate. `e` is -E."""
    return (weight / e).argmin(-1)


def sample_index(logits: Tensor, draws: int, noise: Noise, group: int = GROUP) -> Tensor:
    """Draws from softmax(x), int64 [draws, rows], first a group of columns, then one of its columns.

    With the row cut into groups of consecutive columns, a group in proportion to the sum of its exp x_j and then an
    element of it in proportion to exp x_j is exactly a draw from the row's softmax. A row of one group needs no first.
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
        # Of a group far below the row's maximum, the weights may all be 0: they are taken again, below its own.
        column = winner.unsqueeze(-1) * group + torch.arange(group, device=logits.device)
        inside = logits.expand(draws, rows, columns).gather(-1, column.clamp(max=columns - 1))
        weight_inside = shifted(torch.where(column < columns, inside, -torch.inf)).exp()
        index = winner * group + race(weight_inside, noise((draws, rows, group), winner))
    # With a NaN or +inf in a row, or -inf alone, a weight is NaN.
    return index.masked_fill(weight.sum(-1).isnan(), -1)


def shard_race(logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
    rows, columns = logits.shape
    x = logits.to(compute_dtype(logits.dtype))
    maximum = x.amax(-1)
    # Of a shard that has nothing to draw, all weights are 0.
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


def sample(
    logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool
) -> Sample:
    x = masked(logits, mask)
    noise, seed_again = rng.noise_of_draw(x, seed, again)
    index = sample_index(x, draws, noise)
    hot = None if dtype is None else one_hot(index, x.shape[-1], dtype)
    return Sample(hot, index, None, False, seed_again() if again else None)


def by_row(temperature: Tensor | float, dtype: torch.dtype) -> Tensor | float:
    """A temperature [rows] as a column beside [rows, columns]; a number as it is."""
    return temperature.to(dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature


def relaxed_scores(logits: Tensor, temperature: Tensor | float, draws: int, noise: Noise) -> Tensor:
    """(x - max x + Gumbel) / t, [draws, rows, columns] in the compute dtype."""
    # A category that is off must not make the temperature's gradient 0 inf.
    d = shifted(logits).clamp_min(-1e20)
    gumbel = -torch.log(-noise((draws, *d.shape), None))
    return (d + gumbel.to(d.dtype)) / by_row(temperature, d.dtype)


def relaxed_with(logits: Tensor, temperature: Tensor | float, draws: int, noise: Noise) -> Tensor:
    """`relaxed`, of that noise."""
    return softmax(relaxed_scores(logits, temperature, draws, noise)).to(logits.dtype)


def relaxed(logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
    return relaxed_with(logits, temperature, draws, rng.noise_from(logits.device, seed))


def log_relaxed(logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
    """log y of `relaxed`, in the compute dtype: finite where y itself is 0 in it, and -inf where a category is off."""
    z = relaxed_scores(logits, temperature, draws, rng.noise_from(logits.device, seed))
    return log_softmax(z).masked_fill(shifted(logits) == -torch.inf, -torch.inf)


# Straight-through gradients -------------------------------------------------------------------------------------------


def softmax_backward(probs: Tensor, grad: Tensor) -> Tensor:
    """y (g - <y, g>)."""
    return probs * (grad - (probs * grad).sum(-1, keepdim=True))


def softmax_grad(logits: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None) -> Tensor:
    p = zero_where_off(softmax(masked(logits, mask)), mask)
    return zero_where_off(softmax_backward(p, grad.to(p.dtype)).to(logits.dtype), mask)


def scores_given(probs: Tensor, index: Tensor, e: Tensor, e_winner: Tensor) -> Tensor:
    """log p + Gumbel less its maximum, [draws, rows, columns], drawn given that column k is the maximum.

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


def relaxed_grad_with(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    e: Tensor,
    e_winner: Tensor,
    samples: int = 1,
) -> tuple[Tensor, Tensor]:
    """`relaxed_grad`, of that noise, [draws * samples, rows, columns], with both its gradients. No gradient flows
    through the noise, which does not depend on the logits. A z off by a number is as good for dt: dz sums to 0."""
    p = softmax(logits)
    t = by_row(temperature, p.dtype)
    z = scores_given(p, for_each_sample(index, samples), e, e_winner) / t
    dz = softmax_backward(softmax(z), for_each_sample(grad, samples).to(p.dtype)) / samples
    # Where y is 0, so is dz, and 0 -inf would be NaN.
    dt = -((dz * z.clamp_min(-1e30)).sum((0, 2), keepdim=True) / t).reshape(-1)
    return (dz / t).sum(0).to(logits.dtype), dt


def for_each_sample(of_draws: Tensor, samples: int) -> Tensor:
    """[draws, ...] -> [draws * samples, ...], the samples of a draw side by side."""
    return of_draws if samples == 1 else of_draws.repeat_interleave(samples, 0)


def relaxed_grad(
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
    assert seed.tensor is not None
    draws, rows, columns = grad.shape
    e = rng.noise_again(seed.tensor)((draws * samples, rows, columns + 1), None)
    dx, dt = relaxed_grad_with(masked(logits, mask), index, grad, temperature, e[..., :-1], e[..., -1], samples)
    return zero_where_off(dx, mask), dt if with_temperature else None


def reinmax_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
) -> Tensor:
    """By Heun's rule, second order where PassThrough is first: with h the draw, the gradient at (p + h) / 2 in the
    place of the one at p (Liu et al. 2023, https://arxiv.org/abs/2304.08612)."""
    x = masked(logits, mask)
    p = zero_where_off(softmax(x), mask)
    q = zero_where_off(softmax(shifted(x) / by_row(temperature, p.dtype)), mask)
    m = (q + one_hot(index, x.shape[-1], p.dtype)) / 2
    g = grad.to(p.dtype)
    dx = 2 * softmax_backward(m, g) - softmax_backward(p, g) / 2
    return zero_where_off(dx.sum(0).to(logits.dtype), mask)


GAP = 1
"""By how much a draw wins at the logits of GappedStraightThrough, as in Fan et al. 2022."""


def gapped(logits: Tensor, index: Tensor) -> Tensor:
    """x' - max x, [draws, rows, columns]: 0 at the draw, else min(x - max x, -gap), the derivative of both that of x:
    a shift of x that is not differentiated (Fan et al. 2022, https://arxiv.org/abs/2206.07235)."""
    d = shifted(logits.detach())
    hot = index.unsqueeze(-1) == torch.arange(d.shape[-1], device=d.device)
    # 0 at the draw, NaN where the row is no distribution.
    return with_derivative_of(torch.where(hot, d.amax(-1, keepdim=True), d.clamp_max(-GAP)), logits)


def with_derivative_of(score: Tensor, logits: Tensor) -> Tensor:
    """`score`, with the derivative of x. Where x is infinite, x - x would be NaN."""
    x = logits.masked_fill(logits.isinf(), 0.0).to(score.dtype)
    return score.detach() + (x - x.detach())


def gapped_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
) -> Tensor:
    score = gapped(masked(logits, mask), index)
    t = by_row(temperature, score.dtype)
    y = zero_where_off(softmax(score / t), mask)
    return zero_where_off((softmax_backward(y, grad.to(y.dtype)) / t).sum(0).to(logits.dtype), mask)


# Straight-through in torch's own operations, for programs that keep no autograd Function: y whose first derivative is
# the gradient of the method.


def relaxed_given(logits: Tensor, drawn: Sample, temperature: Tensor | float, seed: Seed, samples: int) -> Tensor:
    """The mean of relaxed samples y whose arg-max is the draw, [draws, rows, columns] in the compute dtype, in
    operations whose derivatives are those of softmax((x + Gumbel) / t) for a fixed Gumbel."""
    index = for_each_sample(drawn.index, samples)
    with torch.no_grad():
        e = rng.exponential((*index.shape, logits.shape[-1] + 1), logits.device, seed.generator)
        score = scores_given(softmax(logits), index, e[..., :-1], e[..., -1]).clamp_min(-1e30)
    y = softmax(with_derivative_of(score, logits) / by_row(temperature, score.dtype))
    return y if samples == 1 else y.unflatten(0, (-1, samples)).mean(1)


def reinmax_given(logits: Tensor, drawn: Sample, temperature: Tensor | float) -> Tensor:
    """2 softmax(log m + x) - softmax(x) / 2, with x's derivative alone: that of softmax at m is J(m)."""
    p = softmax(logits)
    q = softmax(shifted(logits.detach()) / by_row(temperature, p.dtype))
    log_m = ((q + one_hot(drawn.index, q.shape[-1], q.dtype)) / 2).log()
    return 2 * softmax(with_derivative_of(log_m, logits)) - p / 2


def smooth(
    logits: Tensor,
    drawn: Sample,
    seed: Seed,
    method: ReparamGradientStrategy,
    temperature: Tensor | float,
    samples: int,
) -> Tensor:
    """What a draw has the derivative of, [draws, rows, columns], or [rows, columns] for all draws."""
    if method is ReparamGradientStrategy.PassThrough:
        return softmax(logits)
    if method is ReparamGradientStrategy.RelaxedOneHot:
        return relaxed_given(logits, drawn, temperature, seed, samples)
    if method is ReparamGradientStrategy.ReinMax:
        return reinmax_given(logits, drawn, temperature)
    score = gapped(logits, drawn.index)
    return softmax(score / by_row(temperature, score.dtype))


def soft_grad(
    y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
) -> tuple[Tensor, Tensor | None]:
    """dt is -<dz, z> / t, where z and log y differ by one number per row, and dz sums to 0."""
    dtype = compute_dtype(y.dtype)
    y, t, out_dtype = y.to(dtype), by_row(temperature, dtype), y.dtype
    dz = softmax_backward(y, grad.to(dtype)) / t
    # Where y is 0, so is dz, and 0 -inf would be NaN.
    log_y = y.clamp(min=torch.finfo(dtype).tiny).log()
    return dz.sum(0).to(out_dtype), -(dz * log_y).sum((0, 2)) if with_temperature else None


def log_soft_grad(
    log_y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`soft_grad` of log y: dz = g - y sum g."""
    off = log_y == -torch.inf
    grad = grad.masked_fill(off, 0.0)
    dz = (grad - log_y.exp() * grad.sum(-1, keepdim=True)) / by_row(temperature, log_y.dtype)
    return dz.sum(0), -(dz * log_y.masked_fill(off, 0.0)).sum((0, 2)) if with_temperature else None


def perturbed(logits: Tensor, draws: int, seed: Seed) -> Tensor:
    """x - max x + Gumbel, [draws, rows, columns] in the dtype of the noise: the Gumbel variate of E is -log E."""
    e = rng.exponential((draws, *logits.shape), logits.device, seed.generator)
    # A category that is off must not make the temperature's gradient 0 inf.
    return shifted(logits).clamp_min(-1e20) - e.neg().log()


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
        return relaxed_first(x, draws, dtype, seed, temperature)
    drawn = sample(x.detach(), None, draws, dtype, seed, False)
    return with_gradient_of(drawn, smooth(x, drawn, seed, method, temperature, samples))


def relaxed_first(
    logits: Tensor, draws: int, dtype: torch.dtype | None, seed: Seed, temperature: Tensor | float
) -> Sample:
    """RelaxedOneHot as it is defined: the draw is the arg-max of the relaxed sample."""
    assert dtype is not None
    z = perturbed(logits, draws, seed)
    top, index = z.detach().max(-1)
    index = index.masked_fill(top.isnan(), -1)
    drawn = Sample(one_hot(index, logits.shape[-1], dtype), index, None, False, None)
    return with_gradient_of(drawn, softmax(z / by_row(temperature, z.dtype)))


def with_gradient_of(drawn: Sample, y: Tensor) -> Sample:
    """h + (y - y): the draw itself, since y - y is 0 exactly, but for NaN in a row that is no distribution."""
    assert drawn.one_hot is not None
    zero = y - y.detach()
    zero = zero if drawn.all_valid else zero.nan_to_num(0.0)
    return drawn._replace(one_hot=drawn.one_hot + zero.to(drawn.one_hot.dtype))


# Densities ------------------------------------------------------------------------------------------------------------


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


def relaxed_log_prob(logits: Tensor, temperature: Tensor | float, log_y: Tensor, of_log: bool) -> Tensor:
    """With n categories that are on and s_j = x_j - t log y_j, the log-density of log y is log Gamma(n) + (n - 1) log t
    + sum_j (s_j - logsumexp s), and that of y less sum_j log y_j (Maddison et al. 2017, equations 25 and 10). Where
    m of the y_j are 0, only they are left in the logsumexp, and the terms with log 0 have the factor of
    `relaxed_limit`."""
    # No category of an invalid row is off, and no value 0, so that the row stays NaN.
    top, empty = logits.detach().amax(-1, keepdim=True), log_y == -torch.inf
    valid = top.isfinite()
    off = (logits == -torch.inf) & valid
    on = off.logical_not()
    zero, outside = on & valid & empty, (off & empty.logical_not()).any(-1)
    n, zeros = on.sum(-1).to(log_y.dtype), zero.sum(-1).to(log_y.dtype)
    t = temperature.unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
    # What is infinite is taken out beforehand: its derivative times 0 would be NaN. A row of -inf alone, as a mask can
    # leave it, gives neither value nor temperature a gradient.
    nothing = top == -torch.inf
    log_y = log_y.masked_fill(off | empty | nothing, 0.0)
    score = logits.masked_fill(off, 0.0) - (t * log_y).masked_fill(nothing, 0.0)
    left_out = torch.where(zeros.unsqueeze(-1) > 0, zero, on).logical_not()
    log_sum = score.masked_fill(left_out, -torch.inf).logsumexp(-1, keepdim=True)
    density = (score - log_sum).masked_fill(off, 0.0).sum(-1) + relaxed_constant(n, temperature)
    density = density if of_log else density - log_y.sum(-1)
    infinite, limit = relaxed_limit(n, zeros, temperature, of_log)
    return torch.where((infinite | outside) & (density == density), limit.masked_fill(outside, -torch.inf), density)


def relaxed_constant(n: Tensor, temperature: Tensor | float) -> Tensor:
    """log Gamma(n) + (n - 1) log t."""
    log_t = temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
    return torch.lgamma(n) + (n - 1) * log_t


def columns_at(index: Tensor) -> Tensor:
    """`index`, one for each draw, beside the rows: [rows, draws]."""
    return index.unsqueeze(-1) if index.dim() == 1 else index.t()


def by_draw(of_rows: Tensor, index: Tensor) -> Tensor:
    """What was found at `columns_at(index)`, in the shape of `index`."""
    return of_rows.squeeze(-1) if index.dim() == 1 else of_rows.t()


def log_prob_index(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor | None]:
    at = index.clamp(0, logits.shape[-1] - 1)
    chosen = by_draw(log_softmax(masked(logits, mask)).gather(-1, columns_at(at)), index)
    return torch.where(index == at, chosen, torch.nan), None


def log_prob(
    logits: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    index = argmax(value)
    return log_prob_index(logits, index, mask, logsumexp, True)[0], index, None


def log_prob_grad(
    logits: Tensor, index: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None
) -> Tensor:
    smooth = zero_where_off(softmax(masked(logits, mask)), mask) * -grad.sum(0).unsqueeze(-1)
    at = index.clamp(0, logits.shape[-1] - 1).t()
    # In float32: rounded to half precision before they are added, the two would cancel to noise where p is near 1.
    return zero_where_off(smooth.scatter_add(-1, at, grad.t().to(smooth.dtype)).to(logits.dtype), mask)


def entropy_of(log_p: Tensor, p: Tensor | None = None) -> Tensor:
    """-sum p log p, [rows], of log p, and of p where it is known."""
    # Not -sum, which is -0 for a certain outcome; no term is positive.
    p = log_p.exp() if p is None else p
    return (p * log_p.clamp_min(LOWEST)).sum(-1).abs()


def entropy(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return entropy_of(log_softmax(masked(logits, mask))), None


def entropy_grad(
    logits: Tensor,
    grad: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Tensor:
    """As H = -<p, log p>, it is -g times the PassThrough gradient of log p, which is that of log p less any number."""
    x = masked(logits, mask)
    p, d = zero_where_off(softmax(x), mask), zero_where_off(shifted(x).clamp_min(LOWEST), mask)
    return zero_where_off((softmax_backward(p, d) * -grad.unsqueeze(-1)).to(logits.dtype), mask)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p (log p - log q), [...], for normalised log-probabilities [..., columns]; inf where q alone is 0.

    With d = log q - log p, each term is p (expm1(d) - d): q - p more than p (log p - log q), and those add up to 0 over
    a row. No term is negative, so the sum is as exact as its terms, and an error that log p or log q has in common over
    a row counts by its square. A category that p lacks therefore has the term q, not 0.
    """
    p, q = log_p.exp(), log_q.exp()
    q_is_0 = log_q == -torch.inf
    either_is_0 = q_is_0 | (log_p == -torch.inf)
    # A branch that is not taken gets arguments of which its derivative is finite: 0 times infinity would be NaN.
    d = (log_q - log_p).masked_fill(either_is_0, 0.0)
    is_far = either_is_0 | (d.abs() >= 1)
    near = d.masked_fill(is_far, 0.0)
    far = q - p - (p * d).masked_fill(q_is_0 & (log_p != -torch.inf), -torch.inf)
    return torch.where(is_far, far, p * (near.expm1() - near)).sum(-1)


def log_prob_and_entropy(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    x = masked(logits, mask)
    return log_prob_index(x, index, None, None, inside)[0], entropy(x)[0], None


def rsample_log_prob_and_entropy(
    logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed
) -> tuple[Sample, Tensor, Tensor]:
    x = masked(logits, mask)
    drawn = straight_through(x, None, draws, dtype, seed, ReparamGradientStrategy.PassThrough, 1.0, 1)
    log_prob, h, _ = log_prob_and_entropy(x, drawn.index, None, drawn.all_valid)
    return drawn, log_prob, h


def log_prob_and_entropy_grad(
    logits: Tensor,
    index: Tensor,
    grad_log_prob: Tensor,
    grad_entropy: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """The sum of `log_prob_grad`, `entropy_grad` and `softmax_grad`, the last two as one: the entropy's gradient is
    PassThrough's of -g log p, or of that and any number."""
    x = masked(logits, mask)
    p, d = zero_where_off(softmax(x), mask), zero_where_off(shifted(x).clamp_min(LOWEST), mask)
    of_draw = d * -grad_entropy.unsqueeze(-1)
    of_draw = of_draw if grad is None else of_draw + grad
    smooth = softmax_backward(p, of_draw) - p * grad_log_prob.sum(0).unsqueeze(-1)
    at = index.clamp(0, logits.shape[-1] - 1).t()
    return zero_where_off(smooth.scatter_add(-1, at, grad_log_prob.t().to(p.dtype)).to(logits.dtype), mask)
