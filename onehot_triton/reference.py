"""The eager twin of every kernel, in plain torch: the path of every device without Triton, and the kernels' oracle.

All functions take rows: `logits` [rows, columns], unnormalised, of any floating dtype, and per-draw tensors with a
leading dimension of draws. Half precision is promoted to float32, float64 stays. What is a gradient here is itself
written in differentiable operations, so second derivatives follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.nn import Parameter

# Elements in one block of scratch: 1 MiB of float32, which stays in a core's cache. Large inputs are worked through
# block by block, so that no second copy of the logits, the probabilities or the noise ever exists.
_BLOCK = 2**18
# exp(x) and a sum of 2^30 of them are normal float32 numbers for |x| up to this.
_SAFE = 60.0
# Rows up to this length are one group. Longer ones are cut into groups of about sqrt(columns), which makes the least of
# what a draw looks at one by one: every group, and every element of the winning group.
_ONE_GROUP = 512
# Rows up to this length are drawn by a race on a CPU, too: the README's example promises its numbers.
_RACED = 4

Noise = Callable[[tuple[int, ...], Tensor | None], Tensor]
"""(shape, winning group or None in the group stage) -> Exp(1) noise of that shape, up to its sign."""
Choice = Callable[[Tensor, tuple[int, int], Tensor | None], Tensor]
"""(weights [rows, n] or [draws, rows, n], (draws, rows), winning group or None in the group stage) -> int64
[draws, rows], an index drawn in proportion to its weight."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of `dtype` are computed in: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_recorded(tensor: Tensor) -> bool:
    """Whether the program is recorded (compiled, exported, traced) and run later: `tensor` may have no values yet, and
    what is computed of them now would become a constant."""
    return (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, Parameter)
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def in_transform() -> bool:
    """Whether a transform of torch.func (vmap, grad) is active: then a tensor may have no values to look at."""
    return peek_interpreter_stack() is not None


def blocks(rows: int, elements_per_row: int) -> list[slice]:
    """Cuts `rows` into slices of at most `_BLOCK` elements; one slice while compiling, where the compiler fuses."""
    # Compiled, no branch and no range on `rows`, either of which would fix it as a constant of the graph.
    if torch.compiler.is_compiling():
        return [slice(0, rows)]
    if rows * elements_per_row <= _BLOCK:
        return [slice(0, rows)]
    step = max(1, _BLOCK // max(1, elements_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _by_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), a block of rows at a time; the tensors share their first dimension, the rows."""
    parts = blocks(tensors[0].shape[0], tensors[0][0].numel() if tensors[0].shape[0] else 1)
    return _joined([function(*(_at(tensor, part) for tensor in tensors)) for part in parts])


def _at(tensor: Any, part: slice) -> Any:
    """The rows `part` of a tensor: itself where that is all of it, since a slice costs as much as a small operation."""
    return tensor if tensor is None or part.stop - part.start == tensor.shape[0] else tensor[part]


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class Survey(NamedTuple):
    """What one look at the logits tells.

    Attributes:
        row_maximum: [rows] in the logits' dtype, finite exactly for the rows that are distributions, since amax keeps
            NaN; None where every exp(x) is safe as it is, and no maximum need be subtracted.
        all_valid: True where every row is known to be a distribution.
    """

    row_maximum: Tensor | None
    all_valid: bool


def survey(logits: Tensor) -> Survey:
    """Looks at `logits` [..., columns]: on the CPU, where values can be looked at, one number or two tell."""
    if logits.device.type != "cpu" or is_recorded(logits) or in_transform():
        return Survey(logits.amax(-1), False)
    if logits.numel() == 0:
        return Survey(None, True)
    low, high = logits.aminmax()
    if low.item() > -_SAFE and high.item() < _SAFE:
        return Survey(None, True)
    row_maximum = logits.amax(-1)
    return Survey(row_maximum, math.isfinite(row_maximum.sum(dtype=compute_dtype(logits.dtype)).item()))


# Noise ----------------------------------------------------------------------------------------------------------------


def exponential(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Minus one Exp(1) variate per element, in float64: log1p(-v) with v uniform in the open interval (0, 1).

    The sign is left as it is because a race for the smallest E / w is one for the largest -E / w. torch.rand gives
    u = k 2^-53 in [0, 1); v = u (1 - 2^-52) + 2^-54 is never 0 and never 1, so E is never 0 and never infinite.
    """
    if device.type in ("mps", "xpu"):
        return exponential_float32(shape, device, generator)
    return torch.rsub(_uniform(shape, device, generator), -(2.0**-54), alpha=1 - 2.0**-52).log1p_()


def _uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    # The overload that takes a generator takes no symbolic shape.
    if generator is None:
        return torch.rand(shape, dtype=torch.float64, device=device)
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def exponential_float32(
    shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """`exponential` for devices without float64: the kernels' noise, from two 32-bit words an element.

    v = (hi + (lo + 1/2) 2^-32) 2^-32 and 1 - v = (~hi + (~lo + 1/2) 2^-32) 2^-32, so that whichever is small keeps its
    full relative precision, which the 24 bits of a float32 uniform do not.
    """
    hi, lo = torch.randint(2**32, (2, *shape), device=device, generator=generator, dtype=torch.int64).unbind()
    top = 2**32 - 1

    def uniform(hi: Tensor, lo: Tensor) -> Tensor:
        return (hi.float() + (lo.float() + 0.5) * 2.0**-32) * 2.0**-32

    v, complement = uniform(hi, lo), uniform(top - hi, top - lo)
    return torch.where(v < 0.5, torch.log1p(-v), torch.log(complement))


def noise_from(device: torch.device, generator: torch.Generator | None) -> Noise:
    """Fresh noise from the generator."""
    return lambda shape, winner: exponential(shape, device, generator)


def seeded_exponential(seed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`exponential` as a pure function of `seed` (one int64 element), for noise that a backward draws again."""
    return exponential(shape, seed.device, torch.Generator(seed.device).manual_seed(int(seed.item())))


# Sampling -------------------------------------------------------------------------------------------------------------


def race(noise: Noise) -> Choice:
    """The index of the smallest E / w, E iid Exp(1): of exponentials divided by their rates, each is the smallest with
    a probability in proportion to its rate. It is Gumbel-max, with -log E for the Gumbel variate, and what the kernels
    do."""
    return lambda weight, lead, winner: (weight / noise((*lead, weight.shape[-1]), winner)).argmin(-1)


def inversion(device: torch.device, generator: torch.Generator | None) -> Choice:
    """The first index whose cumulative weight is above u sum w, in float64: one uniform u, not one for each weight.

    As u is a multiple of 2^-53 and below 1, u sum w is below sum w, rounded too, and an index of weight 0 never the
    first above it.
    """

    def choose(weight: Tensor, lead: tuple[int, int], winner: Tensor | None) -> Tensor:
        cumulative = weight.cumsum(-1, dtype=torch.float64)
        u = _uniform(lead, device, generator)
        if weight.dim() == 3:
            u = u.unsqueeze(-1) * cumulative[..., -1:]
            return torch.searchsorted(cumulative, u, right=True).squeeze(-1)
        # All draws of a row search it at once.
        u = u.t().contiguous() * cumulative[:, -1:]
        return torch.searchsorted(cumulative, u, right=True).t()

    return choose


def choice(columns: int, device: torch.device, generator: torch.Generator | None) -> Choice:
    """How this path draws. Only a CPU sums up a row in a fixed order and in float64, as `inversion` needs."""
    if columns > _RACED and device.type == "cpu":
        return inversion(device, generator)
    return race(noise_from(device, generator))


def group_length(columns: int) -> int:
    """The columns of a group on this path: all of a short row, else the power of two next to sqrt(columns)."""
    if columns <= _ONE_GROUP:
        return columns
    length = 16
    # Comparisons, which leave a symbolic number of columns a range and not a constant.
    while 2 * length**2 < columns:
        length *= 2
    return length


def sample_index(
    logits: Tensor,
    row_maximum: Tensor | None,
    draws: int,
    choose: Choice,
    group: int,
    want_logsumexp: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Draws from softmax(logits), first a group of columns, then one of its columns.

    With w_j = exp(x_j - max x), or exp(x_j) where that is safe, and the row cut into groups of consecutive columns, a
    group in proportion to sum w and then an element of it in proportion to w is exactly a draw from softmax(x).

    Args:
        logits: [rows, columns].
        row_maximum: `survey(logits).row_maximum`.
        draws: how many draws of each row.
        choose: draws in proportion to weights.
        group: columns in a group; one group, and no first choice, where it is at least `columns`.
        want_logsumexp: False to leave it out where it is not a by-product of the groups.

    Returns:
        index: int64 [draws, rows]. A row that is no distribution gets an arbitrary column.
        logsumexp: [rows] in the compute dtype, or None.
    """
    rows, columns = logits.shape
    group = min(group, columns)
    groups = -(-columns // group)
    per_draw = groups + group if groups > 1 else columns
    indices, logsumexps = [], []
    for part in blocks(rows, columns):
        x, m = _at(logits, part), _at(row_maximum, part)
        weight = _weights(x, m)
        group_weight = _group_sums(weight, group, groups) if groups > 1 else weight
        if groups > 1 or want_logsumexp:
            log_total = group_weight.sum(-1).log()
            logsumexps.append(log_total if m is None else log_total + m)
        some = []
        for chunk in blocks(draws, x.shape[0] * per_draw):
            lead = (chunk.stop - chunk.start, x.shape[0])
            if groups == 1:
                some.append(choose(weight, lead, None))
                continue
            winner = choose(group_weight, lead, None)
            column = winner.unsqueeze(-1) * group + torch.arange(group, device=x.device)
            inside = column.clamp(max=columns - 1)
            row_weight = weight.expand(*lead, columns).gather(-1, inside)
            if columns % group:
                row_weight = torch.where(column < columns, row_weight, 0.0)
            some.append(winner * group + choose(row_weight, lead, winner))
        indices.append(_joined(some))
    return _joined(indices, 1), _joined(logsumexps) if logsumexps else None


def _weights(logits: Tensor, row_maximum: Tensor | None) -> Tensor:
    """exp(x - max x), or exp(x) without a maximum, in the compute dtype, in which the maximum is subtracted too."""
    dtype = compute_dtype(logits.dtype)
    if row_maximum is None:
        return logits.to(dtype).exp()
    return torch.sub(logits.to(dtype), row_maximum.to(dtype).unsqueeze(-1)).exp_()


def _group_sums(weight: Tensor, group: int, groups: int) -> Tensor:
    """sum of `weight` over each group of consecutive columns, the last of which may be short; [rows, groups]."""
    whole = weight.shape[-1] // group
    sums = weight[..., : whole * group].unflatten(-1, (whole, group)).sum(-1)
    if whole < groups:
        sums = torch.cat([sums, weight[..., whole * group :].sum(-1, keepdim=True)], -1)
    return sums


def sample(
    logits: Tensor,
    row_maximum: Tensor | None,
    draws: int,
    dtype: torch.dtype | None,
    choose: Choice,
    group: int,
    *,
    all_valid: bool = False,
    want_logsumexp: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The twin of `kernels.sample.sample`: `sample_index`, with the one-hot, and with what invalid rows give.

    Returns:
        one_hot: [draws, rows, columns] of `dtype`, or None where that is None. All zero where the row is no
            distribution.
        index: int64 [draws, rows], -1 there.
        logsumexp: [rows] in the compute dtype, NaN there; or None.
    """
    index, logsumexp = sample_index(logits, row_maximum, draws, choose, group, want_logsumexp)
    valid = None if all_valid or row_maximum is None else row_maximum.isfinite()
    if valid is not None:
        # Among NaN, a search ends anywhere.
        index = index.clamp(max=logits.shape[-1] - 1)
    hot = None if dtype is None else one_hot(index, logits.shape[-1], dtype, valid)
    if valid is not None:
        index = torch.where(valid, index, -1)
    return hot, index, logsumexp


def one_hot(index: Tensor, columns: int, dtype: torch.dtype, valid: Tensor | None = None) -> Tensor:
    """The one-hot rows of `index`, [*index.shape, columns]; all zero where `valid`, broadcast to it, is False."""
    out = index.new_zeros((*index.shape, columns), dtype=dtype)
    one = 1 if valid is None else valid.expand_as(index).unsqueeze(-1).to(dtype)
    # vmap has a rule for the one that does not write in place.
    scatter = out.scatter if in_transform() else out.scatter_
    return scatter(-1, index.unsqueeze(-1), one)


# Densities ------------------------------------------------------------------------------------------------------------


def logsumexp(logits: Tensor, row_maximum: Tensor | None) -> Tensor:
    """log sum_j exp x_j, [rows], in the compute dtype; NaN for a row that is no distribution.

    `row_maximum` is `survey(logits).row_maximum`. Where it is NaN or infinite, x - max x and the sum hold a NaN.
    """
    totals = _joined([_weights(_at(logits, part), _at(row_maximum, part)).sum(-1) for part in blocks(*logits.shape)])
    return totals.log_() if row_maximum is None else totals.log_().add_(row_maximum)


def one_hot_index(value: Tensor) -> Tensor:
    """The column of the first maximum of each row of `value`, int64 [..., ]."""
    return (value.view(torch.uint8) if value.dtype == torch.bool else value).argmax(-1)


def log_prob(logits: Tensor, logsumexp: Tensor, index: Tensor) -> Tensor:
    """x_k - logsumexp(x) for `index` [draws, rows], in the compute dtype; NaN where k is no column."""
    inside = index.clamp(0, logits.shape[-1] - 1)
    chosen = logits.gather(-1, inside.t()).t().to(logsumexp.dtype)
    return torch.where(index == inside, chosen - logsumexp, torch.nan)


def log_prob_grad(logits: Tensor, index: Tensor, grad: Tensor) -> Tensor:
    """sum_s g_s (onehot(k_s) - p), [rows, columns], for `index` and `grad` [draws, rows]."""
    dtype = compute_dtype(logits.dtype)
    smooth = torch.softmax(logits, -1, dtype=dtype) * -grad.sum(0).unsqueeze(-1)
    inside = index.clamp(0, logits.shape[-1] - 1)
    return smooth.scatter_add(-1, inside.t(), grad.t().to(dtype)).to(logits.dtype)


def entropy(logits: Tensor, row_maximum: Tensor | None) -> tuple[Tensor, Tensor]:
    """H = -sum_j p_j log p_j with 0 log 0 = 0, and the logsumexp, both [rows] in the compute dtype.

    With d = x - max x: H = log sum e^d - (sum e^d d) / (sum e^d), a sum of two numbers that are not negative, in which
    no rounding of the logsumexp enters. Without the maximum they would be as large as x, and cancel. `row_maximum` is
    `survey(logits).row_maximum`; None where it is yet to be taken.
    """
    dtype = compute_dtype(logits.dtype)
    entropies, logsumexps = [], []
    for part in blocks(*logits.shape):
        x = _at(logits, part)
        m = (x.amax(-1) if row_maximum is None else _at(row_maximum, part)).to(dtype)
        d = torch.sub(x.to(dtype), m.unsqueeze(-1))
        weight = d.exp()
        total = weight.sum(-1)
        # Where the weight is 0, d can be -inf; any finite number in its place makes the product 0.
        moment = weight.mul_(d.clamp(min=torch.finfo(dtype).min)).sum(-1)
        log_total = total.log()
        entropies.append(log_total - moment / total)
        logsumexps.append(log_total + m)
    return _joined(entropies), _joined(logsumexps)


def entropy_grad(logits: Tensor, grad: Tensor) -> Tensor:
    """-g p_j (log p_j + H), [rows, columns], for `grad` [rows]."""
    dtype = compute_dtype(logits.dtype)

    def block(x: Tensor, g: Tensor) -> Tensor:
        log_p = torch.log_softmax(x, -1, dtype=dtype)
        log_p = torch.where(log_p == -math.inf, torch.zeros_like(log_p), log_p)
        p = torch.softmax(x, -1, dtype=dtype)
        entropy = -(p * log_p).sum(-1, keepdim=True)
        return (-g.unsqueeze(-1) * p * (log_p + entropy)).to(x.dtype)

    return _by_rows(block, logits, grad)


# Straight-through gradients -------------------------------------------------------------------------------------------


def softmax_grad(logits: Tensor, grad: Tensor) -> Tensor:
    """The PassThrough gradient p (g - <p, g>), [rows, columns], for `grad` of that shape."""
    dtype = compute_dtype(logits.dtype)

    def block(x: Tensor, g: Tensor) -> Tensor:
        return softmax_backward(torch.softmax(x, -1, dtype=dtype), g.to(dtype)).to(x.dtype)

    return _by_rows(block, logits, grad)


def softmax_backward(probs: Tensor, grad: Tensor) -> Tensor:
    """y (g - <y, g>): torch's own fused operator, which is differentiable in both."""
    return torch.ops.aten._softmax_backward_data(grad, probs, -1, probs.dtype)


def relaxed_grad(
    logits: Tensor, index: Tensor, grad: Tensor, temperature: Tensor, noise: Tensor, winner_noise: Tensor
) -> Tensor:
    """The RelaxedOneHot gradient sum_s y (g - <y, g>) / t, [rows, columns], y drawn given that column k won.

    With E iid Exp(1), s_k = -log E_k and s_j = -log(E_j / p_j + E_k) has the law of log p + Gumbel given that k is its
    arg-max: the winner's value is a Gumbel variate, independent of which column won, and the others are Gumbel
    variates truncated at it (Maddison, Tarlow and Minka 2014, https://arxiv.org/abs/1411.0030). So y = softmax(s / t)
    is in proportion to w_k = 1, w_j = (1 + E_j / (p_j E_k))^(-1/t). The noise does not depend on the logits: no
    gradient flows through it.

    Args:
        logits: [rows, columns].
        index: int64 [draws, rows], the winners k.
        grad: [draws, rows, columns].
        temperature: [rows].
        noise: E, of `grad`'s shape, of either sign.
        winner_noise: E_k, of `index`'s shape, of the same sign.
    """
    dtype = compute_dtype(logits.dtype)
    p = torch.softmax(logits, -1, dtype=dtype)
    inverse = temperature.to(dtype).reciprocal().unsqueeze(-1)
    ratio = (noise / winner_noise.unsqueeze(-1)).to(dtype) / p
    # p = 0 makes the ratio infinite and the weight 0. E_j / E_k can overflow float32 to the same effect.
    weight = torch.exp(-inverse * torch.log1p(ratio)).scatter(-1, index.clamp(min=0).unsqueeze(-1), 1.0)
    y = weight / weight.sum(-1, keepdim=True)
    return (softmax_backward(y, grad.to(dtype)) * inverse).sum(0).to(logits.dtype)


def relaxed(logits: Tensor, temperature: Tensor, draws: int, noise: Noise) -> Tensor:
    """softmax((x + Gumbel) / t), [draws, rows, columns], in the logits' dtype, for `temperature` [rows]."""
    dtype = compute_dtype(logits.dtype)
    gumbel = -torch.log(-noise((draws, *logits.shape), None))
    score = (logits.to(dtype) + gumbel.to(dtype)) / temperature.to(dtype).unsqueeze(-1)
    return torch.softmax(score, -1).to(logits.dtype)
