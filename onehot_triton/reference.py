"""The eager twin of every kernel, in plain torch: the path of every device without Triton, and the kernels' oracle.

All functions take rows: `logits` [rows, columns], unnormalised, of any floating dtype, and per-draw tensors with a
leading dimension of draws. Half precision is promoted to float32, float64 stays. What is a gradient here is itself
written in differentiable operations, so second derivatives follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing
from torch.nn import Parameter

# Elements in one block of scratch: 2 MiB of float32, which stays in the cache. Large inputs are worked through block by
# block, so that no second copy of the logits, the probabilities or the noise ever exists.
_BLOCK = 2**19
# Up to so many elements, a call costs more than the work: an autograd Function and its backward more than the memory
# that torch's own operations keep for theirs, a second stage of a draw more than it saves.
_SMALL = 2**16
# Up to so many elements, a second thread costs more than it helps.
_ONE_THREAD = 2**12
# Rows up to this length are one group. Longer ones are cut into groups of about sqrt(columns), which makes the least of
# what a draw looks at one by one: every group, and every element of the winning group.
_ONE_GROUP = 512
# exp x, and sums of it, are normal float32 numbers for |x| up to this.
_SAFE = 60.0
# exp of it is 0, in float64 too, where 0 log 0 wants a finite number that no product of a derivative makes infinite. An
# int: a compiler takes a float of a module for an input of the graph, and compiles twice.
_LOWEST = -10_000
# Rows up to this length are drawn by a race on a CPU, too: the README's example promises its numbers.
_RACED = 4

Noise = Callable[[tuple[int, ...], Tensor | None], Tensor]
"""(shape, winning group or None in the group stage) -> Exp(1) noise of that shape, up to its sign."""
Choice = Callable[[Tensor, tuple[int, ...], Tensor | None], Tensor]
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
        or is_tracing()
        or type(tensor) not in (Tensor, Parameter)
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def in_transform() -> bool:
    """Whether a transform of torch.func (vmap, grad) is active: then a tensor may have no values to look at."""
    return peek_interpreter_stack() is not None


def loses_functions() -> bool:
    """Whether a gradient has to come from torch's own operations: an exported or traced program keeps no autograd
    Function, and forward-mode differentiation, which `torch.func.jvp` enters too, has no rule for one."""
    if torch.compiler.is_exporting():
        return torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        return False
    # A dual tensor inside a transform does not say what it is.
    return forward_ad._current_level >= 0 or (is_tracing() and torch.is_grad_enabled())


def can_look_at(tensor: Tensor) -> bool:
    """Whether its values can be looked at now, by the call alone: on a CPU, in no recorded or transformed program."""
    return tensor.is_cpu and not is_recorded(tensor) and not in_transform()


def is_small(logits: Tensor) -> bool:
    """Whether few operations matter more than few passes. In a recorded program, a compiler joins them."""
    return can_look_at(logits) and logits.numel() <= _SMALL


def is_differentiated(logits: Tensor) -> bool:
    """Whether autograd may record what is computed of them, which must then not be changed in place."""
    # A transform may differentiate what does not say so.
    return in_transform() or (logits.requires_grad and torch.is_grad_enabled()) or loses_functions()


def is_short(logits: Tensor) -> bool:
    """Whether torch's softmax, which on a CPU adds up one term after the other, is right to 2e-6 all the same."""
    return logits.shape[-1] <= _ONE_GROUP or not logits.is_cpu


def blocks(rows: int, elements_per_row: int) -> list[slice]:
    """Cuts `rows` into slices of at most `_BLOCK` elements; one slice while compiling, where the compiler fuses."""
    # Compiled, no branch and no range on `rows`, either of which would fix it as a constant of the graph.
    if torch.compiler.is_compiling():
        return [slice(0, rows)]
    if rows * elements_per_row <= _BLOCK:
        return [slice(0, rows)]
    step = max(1, _BLOCK // max(1, elements_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def by_rows(function: Callable[..., Tensor], *tensors: Tensor, scratch: int = 1, dim: int = 0) -> Tensor:
    """function(*tensors), a block of rows at a time.

    Args:
        function: of some rows of the tensors.
        tensors: whose first dimension is the rows.
        scratch: how much of it there is for each element of the first tensor, in float32 numbers.
        dim: the dimension of the result that is the rows.
    """
    # What torch's own operations are to be the gradient of is not written in place.
    if loses_functions():
        return function(*tensors)
    rows = tensors[0].shape[0]
    parts = blocks(rows, scratch * math.prod(tensors[0].shape[1:]))
    if len(parts) == 1:
        return function(*tensors)
    out = None
    for part in parts:
        result = function(*(tensor[part] for tensor in tensors))
        if out is None:
            shape = list(result.shape)
            shape[dim] = rows
            out = result.new_empty(shape)
        out.narrow(dim, part.start, part.stop - part.start).copy_(result)
        # Not beside the next one.
        del result
    assert out is not None
    return out


def _at(tensor: Tensor, part: slice) -> Tensor:
    """The rows `part` of a tensor: itself where that is all of it, since a slice costs as much as a small operation."""
    return tensor if part.stop - part.start == tensor.shape[0] else tensor[part]


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def valid_rows(logits: Tensor) -> Tensor:
    """Which rows of `logits` [..., columns] are distributions, bool [...]: amax keeps NaN."""
    return logits.amax(-1).isfinite()


# Softmax --------------------------------------------------------------------------------------------------------------
#
# On a CPU, torch's softmax and log_softmax divide by a sum that they add up one term after the other: behind a large
# one, of 2^20 small ones a part is lost, 1e-3 of the whole. Where rows are long, what they give is added up again, by
# `sum`, in a tree, and divided by that, which is 1 but for the loss: no gradient flows through it.


def softmax(logits: Tensor) -> Tensor:
    """softmax(x), [..., columns], in the compute dtype."""
    p = nearly_softmax(logits)
    if is_short(logits):
        return p
    total = p.detach().sum(-1, keepdim=True)
    return p / total if is_differentiated(logits) else p.div_(total)


def log_softmax(logits: Tensor) -> Tensor:
    """log softmax(x), [..., columns], in the compute dtype."""
    log_p = torch.log_softmax(logits, -1, dtype=compute_dtype(logits.dtype))
    if is_short(logits):
        return log_p
    log_total = log_p.detach().exp().sum(-1, keepdim=True).log()
    return log_p - log_total if is_differentiated(logits) else log_p.sub_(log_total)


def nearly_softmax(logits: Tensor) -> Tensor:
    """softmax(x) but for that loss, which is one number for a row: weights need not add up to 1, and of a gradient it
    is a part of 1e-3 at most, as in torch's own backward."""
    return torch.softmax(logits, -1, dtype=compute_dtype(logits.dtype))


def _log_total(weight: Tensor, total: Tensor) -> Tensor:
    """log sum_j exp(x_j - max x), [rows], from weights w in proportion to softmax(x), and their sum."""
    return (total / weight.amax(-1)).log()


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

    def choose(weight: Tensor, lead: tuple[int, ...], winner: Tensor | None) -> Tensor:
        draws, rows = lead
        some = []
        for part in blocks(draws, 3 * rows * weight.shape[-1]) if weight.dim() == 2 else [slice(0, draws)]:
            e = noise((part.stop - part.start, rows, weight.shape[-1]), winner)
            some.append((weight / e).argmin(-1))
        return _joined(some)

    return choose


def inversion(device: torch.device, generator: torch.Generator | None) -> Choice:
    """The first index whose cumulative weight is above u sum w, in float64: one uniform u, not one for each weight.

    As u is a multiple of 2^-53 and below 1, u sum w is below sum w, rounded too, and an index of weight 0 never the
    first above it.
    """

    def choose(weight: Tensor, lead: tuple[int, ...], winner: Tensor | None) -> Tensor:
        # In place where vmap need not have a rule: fresh memory costs more than the sums.
        cumulative = weight.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        cumulative = cumulative.cumsum(-1) if in_transform() else cumulative.cumsum_(-1)
        total = cumulative[..., -1:]
        if weight.dim() == 3:
            u = _uniform((*lead, 1), device, generator)
            return torch.searchsorted(cumulative, u * total, right=True).squeeze(-1)
        # The draws of a row have its sums in common.
        draws, rows = lead
        some = []
        for part in blocks(draws, 3 * rows):
            u = _uniform((part.stop - part.start, rows), device, generator)
            some.append(torch.searchsorted(cumulative, (u.t() * total).contiguous(), right=True).t())
        return _joined(some)

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


def sample_index(logits: Tensor, draws: int, choose: Choice, group: int) -> tuple[Tensor, Tensor | None, bool]:
    """The twin of `kernels.sample.sample` but for its one-hot: draws from softmax(logits), first a group of columns,
    then one of its columns.

    With the row cut into groups of consecutive columns, a group in proportion to the sum of its softmax and then an
    element of it in proportion to exp x_j is exactly a draw from the row's softmax.

    Args:
        logits: [rows, columns].
        draws: how many draws of each row.
        choose: draws in proportion to weights.
        group: columns in a group; one group, and no first choice, where it is at least `columns`.

    Returns:
        index: int64 [draws, rows]; -1 where the row is no distribution.
        logsumexp: [2, rows], see `logsumexp`; None where it is no by-product of the groups.
        all_valid: True where every row was found to be a distribution.
    """
    rows, columns = logits.shape
    groups = -(-columns // group)
    # What is chosen from, and its sums in float64.
    scratch = 3 * (groups + group if groups > 1 else columns)
    indices, logsumexps, found_invalid = [], [], False
    for part in blocks(rows, scratch):
        x = _at(logits, part)
        if groups > 1:
            weight, known = by_rows(lambda x: _of_groups(torch.sum, nearly_softmax(x), group), x), False
        else:
            weight, known = _weights(x)
        index = choose(weight, (draws, x.shape[0]), None)
        if groups > 1:
            # In a row that is no distribution, a search ends anywhere.
            winners, some = index.clamp(max=groups - 1), []
            for chunk in blocks(draws, 3 * group * x.shape[0]):
                winner = _at(winners, chunk)
                column = winner.unsqueeze(-1) * group + torch.arange(group, device=x.device)
                inside = x.expand(*winner.shape, columns).gather(-1, column.clamp(max=columns - 1))
                if columns % group:
                    inside = torch.where(column < columns, inside, -torch.inf)
                if draws and not some:
                    logsumexps.append(_logsumexp_from(inside[0], weight, winner[0]))
                some.append(winner * group + choose(nearly_softmax(inside), winner.shape, winner))
            index = _joined(some)
        if not known:
            # With a NaN or +inf in a row, or -inf alone, every element of its softmax is NaN.
            first = weight[:, 0]
            if not (can_look_at(first) and math.isfinite(first.sum().item())):
                found_invalid, index = True, index.masked_fill(first.isnan(), -1)
        indices.append(index)
    return _joined(indices, 1), _joined(logsumexps, 1) if logsumexps else None, not found_invalid


def _weights(logits: Tensor) -> tuple[Tensor, bool]:
    """Weights [rows, columns] in proportion to softmax(logits), and whether every row is known to be a distribution."""
    if can_look_at(logits) and 0 < logits.numel() <= _ONE_THREAD:
        # So small a softmax costs three times as much as two numbers that say that no maximum need be subtracted.
        low, high = logits.aminmax()
        if low.item() > -_SAFE and high.item() < _SAFE:
            return logits.to(compute_dtype(logits.dtype)).exp(), True
    return nearly_softmax(logits), False


def _logsumexp_from(logits: Tensor, weight: Tensor, winner: Tensor) -> Tensor:
    """The logsumexp, [2, rows], from the logits of one group of each row, [rows, group], and the weights of all."""
    share = weight.gather(-1, winner.unsqueeze(-1)).squeeze(-1) / weight.sum(-1)
    x = logits.to(weight.dtype)
    m = x.amax(-1)
    return torch.stack([m, (x - m.unsqueeze(-1)).logsumexp(-1) - share.log()])


def _of_groups(reduction: Callable[..., Tensor], tensor: Tensor, group: int) -> Tensor:
    """reduction(., -1) of each group of consecutive columns, the last of which may be short; [..., groups]."""
    columns = tensor.shape[-1]
    whole = columns // group
    out = reduction(tensor[..., : whole * group].unflatten(-1, (whole, group)), -1)
    if whole * group < columns:
        out = torch.cat([out, reduction(tensor[..., whole * group :], -1).unsqueeze(-1)], -1)
    return out


def one_hot(index: Tensor, columns: int, dtype: torch.dtype, all_valid: bool = False) -> Tensor:
    """The one-hot rows of `index`, [*index.shape, columns]; zero where it is -1, which is nowhere if `all_valid`."""
    out = index.new_zeros((*index.shape, columns), dtype=dtype)
    index = index.unsqueeze(-1)
    one = 1 if all_valid else (index >= 0).to(dtype)
    index = index if all_valid else index.clamp(min=0)
    # vmap has a rule for the one that does not write in place.
    return out.scatter(-1, index, one) if in_transform() else out.scatter_(-1, index, one)


# Densities ------------------------------------------------------------------------------------------------------------


def logsumexp(logits: Tensor) -> Tensor:
    """log sum_j exp x_j as two numbers whose sum it is, [2, rows] in the compute dtype: max x and log sum exp(x - max),
    which is NaN for a row that is no distribution. Added up, they would be rounded to a part of the maximum."""

    def block(x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x.dtype))
        top = x.amax(-1, keepdim=True)
        return torch.stack([top.squeeze(-1), (x - top).exp_().sum(-1).log()])

    return by_rows(block, logits, dim=1)


def one_hot_index(value: Tensor) -> Tensor:
    """The column of the first maximum of each row of `value`, int64 [..., ]."""
    return argmax(value.view(torch.uint8) if value.dtype == torch.bool else value)


def argmax(tensor: Tensor) -> Tensor:
    """tensor.argmax(-1), [...]: the first of equal ones, and NaN before all.

    On a CPU, torch's own looks at one element after the other, on one thread. A vectorised maximum of each group of
    columns leaves it one group of a long row.
    """
    columns = tensor.shape[-1]
    if not can_look_at(tensor) or tensor.numel() <= _ONE_THREAD:
        return tensor.argmax(-1)
    if columns <= 4 * _ONE_GROUP:
        # This one shares the rows among the threads.
        return tensor.max(-1)[1]
    group = group_length(columns)
    first = group * _of_groups(torch.amax, tensor, group).argmax(-1)
    column = first.unsqueeze(-1) + torch.arange(group, device=tensor.device)
    return first + tensor.gather(-1, column.clamp(max=columns - 1)).argmax(-1)


def log_prob(logits: Tensor, index: Tensor, logsumexp: Tensor | None = None, *, inside: bool = False) -> Tensor:
    """log p_k for `index` [draws, rows], in the compute dtype; NaN where k is no column, which is nowhere if `inside`.

    Without the logsumexp it costs a normalised copy of a block of rows, and is differentiable.
    """
    at = (index if inside else index.clamp(0, logits.shape[-1] - 1)).t()
    if logsumexp is None:
        chosen = by_rows(lambda x, k: log_softmax(x).gather(-1, k), logits, at).t()
        if not is_short(logits):
            # By a rounding of the correction it is above 0.
            chosen = chosen - chosen.detach().clamp_min(0.0)
    else:
        m, log_sum = logsumexp
        # Above 0 it is by a rounding, where m is the maximum of one group and not of the row.
        chosen = (logits.gather(-1, at).t().to(m.dtype) - m - log_sum).clamp_max(0.0)
    return chosen if inside else torch.where(index == at.t(), chosen, torch.nan)


def log_prob_grad(logits: Tensor, index: Tensor, grad: Tensor) -> Tensor:
    """sum_s g_s (onehot(k_s) - p), [rows, columns], for `index` and `grad` [draws, rows]."""

    def block(x: Tensor, k: Tensor, g: Tensor) -> Tensor:
        smooth = nearly_softmax(x) * -g.sum(-1, keepdim=True)
        return smooth.scatter_add(-1, k, g.to(smooth.dtype)).to(x.dtype)

    return by_rows(block, logits, index.clamp(0, logits.shape[-1] - 1).t(), grad.t())


def entropy(logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """H = -sum_j p_j log p_j with 0 log 0 = 0, [rows], and the logsumexp, [2, rows] or None, in the compute dtype.

    Short rows, and what is differentiated, by that formula. Else, with d = x - max x and w in proportion to exp d,
    H = log sum exp d - (sum w d) / sum w: two numbers that are not negative, and one exponential.
    """

    def direct(x: Tensor) -> Tensor:
        log_p = log_softmax(x)
        p = log_p.exp()
        product = p * log_p.clamp_min(_LOWEST) if is_differentiated(x) else p.mul_(log_p.clamp_min_(_LOWEST))
        # Not -sum, which is -0 for a certain outcome; no term is positive.
        return product.sum(-1).abs()

    if is_short(logits) or is_differentiated(logits):
        return by_rows(direct, logits), None
    rows, columns = logits.shape
    dtype = compute_dtype(logits.dtype)
    parts = blocks(rows, columns)
    entropies, maxima, log_sums = out = logits.new_empty((3, rows), dtype=dtype)
    # The same memory for each block: fresh pages cost more than the work on them.
    scratch = logits.new_empty((2, parts[0].stop, columns), dtype=dtype)
    for part in parts:
        x = _at(logits, part)
        d, weight = scratch[:, : x.shape[0]]
        m = x.amax(-1, keepdim=True).to(dtype)
        torch.sub(x, m, out=d)
        torch.softmax(d, -1, out=weight)
        total = weight.sum(-1)
        log_total = _log_total(weight, total)
        # 0 -inf is NaN, and counts 0. In a row that is no distribution, the total is NaN.
        entropies[part] = log_total - weight.mul_(d).nansum(-1) / total
        maxima[part], log_sums[part] = m.squeeze(-1), log_total
    return entropies, out[1:]


def entropy_grad(logits: Tensor, grad: Tensor) -> Tensor:
    """-g p_j (log p_j + H), [rows, columns], for `grad` [rows].

    As H = -<p, log p>, it is -g times the PassThrough gradient of log p, which is that of log p less any number.
    """

    def block(x: Tensor, g: Tensor) -> Tensor:
        dtype = compute_dtype(x.dtype)
        d = (x.to(dtype) - x.detach().amax(-1, keepdim=True).to(dtype)).clamp_min(_LOWEST)
        return (softmax_backward(nearly_softmax(d), d) * -g.unsqueeze(-1)).to(x.dtype)

    return by_rows(block, logits, grad)


# Straight-through gradients -------------------------------------------------------------------------------------------


def softmax_grad(logits: Tensor, grad: Tensor) -> Tensor:
    """The PassThrough gradient p (g - <p, g>), [rows, columns], for `grad` of that shape."""

    def block(x: Tensor, g: Tensor) -> Tensor:
        p = nearly_softmax(x)
        return softmax_backward(p, g.to(p.dtype)).to(x.dtype)

    return by_rows(block, logits, grad)


def softmax_backward(probs: Tensor, grad: Tensor) -> Tensor:
    """y (g - <y, g>): torch's own fused operator, which is differentiable in both."""
    return torch.ops.aten._softmax_backward_data(grad, probs, -1, probs.dtype)


def relaxed_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor,
    noise: Tensor,
    winner_noise: Tensor,
    with_temperature: bool = False,
) -> Tensor:
    """The RelaxedOneHot gradient sum_s y (g - <y, g>) / t, [rows, columns], y drawn given that column k won.

    With E iid Exp(1), s_k = -log E_k and s_j = -log(E_j / p_j + E_k) has the law of log p + Gumbel given that k is its
    arg-max: the winner's value is a Gumbel variate, independent of which column won, and the others are Gumbel
    variates truncated at it (Maddison, Tarlow and Minka 2014, https://arxiv.org/abs/1411.0030). So y = softmax(s / t)
    is the softmax of z_k = 0, z_j = -log(1 + E_j / (p_j E_k)) / t. The noise does not depend on the logits: no gradient
    flows through it.

    Args:
        logits: [rows, columns].
        index: int64 [draws, rows], the winners k.
        grad: [draws, rows, columns].
        temperature: [rows].
        noise: E, of `grad`'s shape, of either sign.
        winner_noise: E_k, of `index`'s shape, of the same sign.
        with_temperature: whether the temperature's gradient is wanted.

    Returns:
        [rows, columns] in the logits' dtype; with the temperature's, [rows, columns + 1] in the compute dtype, whose
        last column is sum_s -<dz, z> / t with dz = y (g - <y, g>). A z off by a number is as good: dz sums to 0.
    """
    p = nearly_softmax(logits)
    inverse = temperature.to(p.dtype).reciprocal().unsqueeze(-1)
    z = _scores_given(p, index, noise, winner_noise) * inverse
    y = nearly_softmax(z)
    dz = softmax_backward(y, grad.to(y.dtype))
    dx = (dz * inverse).sum(0)
    if not with_temperature:
        return dx.to(logits.dtype)
    # Where y is 0, so is dz, and 0 -inf would be NaN.
    return torch.cat([dx, -(dz * z.clamp_min(-1e30)).sum((0, 2)).unsqueeze(-1) * inverse], -1)


def _scores_given(probs: Tensor, index: Tensor, noise: Tensor, winner_noise: Tensor) -> Tensor:
    """log p + Gumbel less its maximum, [draws, rows, columns], drawn given that column k is the maximum: 0 there, and
    -log(1 + E_j / (p_j E_k)). p = 0 makes the ratio infinite; E_j / E_k can overflow float32 to the same effect."""
    ratio = (noise / winner_noise.unsqueeze(-1)).to(probs.dtype) / probs
    return torch.log1p(ratio).neg().scatter(-1, index.clamp(min=0).unsqueeze(-1), 0.0)


def relaxed_given(logits: Tensor, index: Tensor, temperature: Tensor, noise: Tensor, winner_noise: Tensor) -> Tensor:
    """y of `relaxed_grad`, [draws, rows, columns] in the compute dtype, in operations whose derivatives are those of
    softmax((x + Gumbel) / t) for a fixed Gumbel: its arguments are `relaxed_grad`'s."""
    with torch.no_grad():
        score = _scores_given(nearly_softmax(logits), index, noise, winner_noise).clamp_min(-1e30)
    # x - x would be NaN where it is infinite.
    x = logits.masked_fill(logits.isinf(), 0.0).to(score.dtype)
    return nearly_softmax((score.detach() + (x - x.detach())) / temperature.to(score.dtype).unsqueeze(-1))


def relaxed(logits: Tensor, temperature: Tensor, draws: int, noise: Noise) -> Tensor:
    """softmax((x + Gumbel) / t), [draws, rows, columns], in the logits' dtype, for `temperature` [rows]."""

    def block(x: Tensor, t: Tensor) -> Tensor:
        gumbel = -torch.log(-noise((draws, *x.shape), None))
        # The maximum first: beside a large x the noise would be rounded away.
        shifted = x.to(t.dtype) - x.detach().amax(-1, keepdim=True).to(t.dtype)
        score = (shifted + gumbel.to(t.dtype)) / t.unsqueeze(-1)
        return softmax(score).to(x.dtype)

    return by_rows(block, logits, temperature.to(compute_dtype(logits.dtype)), scratch=4 * draws, dim=1)
