"""Distributions over DTensor logits: all communication, and nothing that needs none.

A mesh dimension either replicates the logits, or shards a batch dimension, or, one at most, the vocabulary: the last
dimension. Everything is computed on local shards, [*local batch, n]; results are DTensors again, placed as the logits
where they have columns, and the same on all ranks of the vocabulary's mesh dimension where they have none.

Ranks send through `_gather` alone, numbers of rows and never a column of them. In what follows x is a rank's shard of a
row, m = max x, s = sum exp(x - m), and M, S are those of the whole row, which every rank computes of all (m, s).

    draw                  gather (score, m, s, column, x there): the shard of the least score exp(-m) has the winner
    log_prob              gather (m, s, x at the index) or (m, s, max of the value, x there)
    mode                  gather m, and s where it has a gradient
    entropy               gather (m, s, sum exp(x - m) (x - m))
    PassThrough           backward: gather <p, g>
    ReinMax               backward: gather (g at the draw, <p, g>), and of softmax(x / t) (sum exp, sum g exp)
    GappedStraightThrough backward: gather (sum exp x', sum g exp x')
    RelaxedOneHot         the draw sends a seed, too; backward: gather (sum exp z, sum g exp z)
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from . import checks, compute, ops, parameters, rng
from .compute import base
from .compute.base import (
    GAP,
    GROUP,
    LOWEST,
    NoSecondDerivative,
    Sample,
    for_each_sample,
    one_hot,
    relaxed_constant,
    relaxed_limit,
    with_derivative_of,
)
from .estimators import ESTIMATORS, Grads
from .grad_method import ReparamGradientStrategy
from .rng import Seed
from .tensors import compute_dtype, is_differentiated

# Where things are -----------------------------------------------------------------------------------------------------


class Ranks(NamedTuple):
    """The ranks of one mesh dimension."""

    group: str
    size: int


class Layout(NamedTuple):
    """Where the logits are.

    Attributes:
        mesh, placements: as of their DTensor.
        shape: [*batch, columns], of the whole.
        local: the shape of this rank's part.
        offset: where it starts, in each dimension.
        vocabulary: the mesh dimension that shards the columns; None where every rank has whole rows.
    """

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    shape: tuple[int, ...]
    local: tuple[int, ...]
    offset: tuple[int, ...]
    vocabulary: int | None

    @property
    def batch(self) -> tuple[int, ...]:
        return self.shape[:-1]

    @property
    def ranks(self) -> Ranks:
        """Those that share the rows of this one."""
        assert self.vocabulary is not None
        return _ranks(self.mesh, self.vocabulary)

    @property
    def first_group(self) -> int:
        """The number of this shard's first group: all shards before it are of one length, and groups start with each.
        Where the length is a multiple of 1024, groups and numbers are those of the whole row."""
        assert self.vocabulary is not None
        length = -(-self.shape[-1] // self.mesh.size(self.vocabulary))
        return -(-self.offset[-1] // length) * -(-length // GROUP)


def _ranks(mesh: DeviceMesh, dim: int) -> Ranks:
    return Ranks(mesh.get_group(dim).group_name, mesh.size(dim))


def _error(name: str, expected: str, found: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, found {found}")


def layout_of(param: Tensor, name: str) -> Layout:
    """Where a parameter is; a ValueError, on every rank, where that is no placement of those that are computed with."""
    assert isinstance(param, DTensor)
    mesh, placements, last = param.device_mesh, tuple(param.placements), param.dim() - 1
    expected = "Replicate, Shard of a batch dimension or, on one mesh dimension, of the last one"
    vocabulary = None
    if torch.compiler.is_compiling():
        # With dynamic shapes the number of a dimension is symbolic, too; a comparison makes it a number again.
        placements = tuple(
            Shard(next(d for d in range(last + 1) if p.dim == d)) if type(p) is Shard else p for p in placements
        )
    for dim, placement in enumerate(placements):
        if isinstance(placement, Partial) or not (isinstance(placement, Replicate) or type(placement) is Shard):
            raise _error(name, expected, f"{placement!r} on mesh dimension {dim}")
        if isinstance(placement, Shard) and placement.dim == last and mesh.size(dim) > 1:
            if vocabulary is not None:
                raise _error(name, expected, f"{placement!r} on mesh dimensions {vocabulary} and {dim}")
            vocabulary = dim
    if mesh.get_coordinate() is None:
        raise _error(name, "a mesh that this rank is part of", f"{mesh}")
    # By plain arithmetic: torch's own function takes numbers out of tensors, which a compiler does not know.
    local, offset = list(param.shape), [0] * param.dim()
    for dim, placement in enumerate(placements):
        if isinstance(placement, Shard):
            size, length = local[placement.dim], -(-local[placement.dim] // mesh.size(dim))
            start = min(mesh.get_local_rank(dim) * length, size)
            offset[placement.dim] += start
            local[placement.dim] = min(length, size - start)
    return Layout(mesh, placements, tuple(param.shape), tuple(local), tuple(offset), vocabulary)


def _local(logits: Tensor, layout: Layout) -> Tensor:
    """This rank's part, differentiable; the gradient is placed as the logits."""
    assert isinstance(logits, DTensor)
    return logits.to_local(grad_placements=layout.placements)


def _wrap(local: Tensor, layout: Layout, lead: Sequence[int] = (), columns: bool = False) -> DTensor:
    """A result [*lead, *local batch], or with columns, as a DTensor."""
    last = len(layout.shape) - 1
    placements = [
        Replicate() if isinstance(p, Replicate) or (p.dim == last and not columns) else Shard(p.dim + len(lead))
        for p in layout.placements
    ]
    shape = torch.Size((*lead, *(layout.shape if columns else layout.batch)))
    stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return DTensor.from_local(local, layout.mesh, placements, run_check=False, shape=shape, stride=stride)


def _part(tensor: Tensor, name: str, layout: Layout, columns: bool) -> Tensor:
    """This rank's part of a tensor that broadcasts against [*batch], or [*batch, columns]: of a DTensor that is placed
    as the logits, or replicated, or of a tensor that is the same on all ranks. No communication."""
    target = layout.shape if columns else layout.batch
    shape, split = tuple(tensor.shape), set()
    placements: Sequence[Any] = [Replicate()] * layout.mesh.ndim
    if isinstance(tensor, DTensor):
        if tensor.device_mesh != layout.mesh:
            raise _error(name, f"a tensor on the parameters' {layout.mesh}", f"one on {tensor.device_mesh}")
        placements, tensor = tensor.placements, tensor.to_local()
    for wanted, found in zip(layout.placements, placements, strict=True):
        dim = None
        if isinstance(wanted, Shard) and wanted.dim < len(target) and len(target) - wanted.dim <= len(shape):
            dim = len(shape) - (len(target) - wanted.dim)
            dim = None if shape[dim] == 1 and target[wanted.dim] != 1 else dim
        # Placed as wanted, it is there already.
        if dim is not None and found == Shard(dim):
            split.add(dim)
        elif not isinstance(found, Replicate):
            expected = "Replicate" if dim is None else f"Replicate or Shard(dim={dim})"
            raise _error(name, f"a placement {expected}, as the parameters'", repr(found))
    for d, (start, size) in enumerate(zip(layout.offset, layout.local, strict=True)):
        at = d - len(target) + len(shape)
        if d < len(target) and at >= 0 and at not in split and shape[at] == target[d] != size:
            tensor = tensor.narrow(at, min(start, shape[at] - size), size)
    return tensor


def _broadcast(layout: Layout, lead: Sequence[int], name: str) -> tuple[Layout, tuple[int, ...]]:
    """The layout of logits that are expanded to a batch of which `lead` are the last dimensions or more; and what is in
    front of it."""
    full = tuple(torch.broadcast_shapes(tuple(lead), layout.batch))
    extra = len(full) - len(layout.batch)
    shape, local = list(layout.shape), list(layout.local)
    for d, (size, now) in enumerate(zip(full[extra:], layout.batch, strict=True)):
        if size == now:
            continue
        if any(isinstance(p, Shard) and p.dim == d for p in layout.placements):
            raise _error(name, f"the batch {list(layout.batch)} where that is sharded", list(lead))
        shape[d] = local[d] = size
    return layout._replace(shape=tuple(shape), local=tuple(local)), full[:extra]


def _rows(tensor: Tensor, columns: bool) -> Tensor:
    """[*batch] or [*batch, columns] -> [rows] or [rows, columns]."""
    end = tensor.dim() - columns
    return tensor.reshape(math.prod(tensor.shape[:end]), *tensor.shape[end:])


# Communication --------------------------------------------------------------------------------------------------------


def _gather(tensors: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """What all ranks have of these tensors, [size, *shape] each, in the order of the shards: one collective. Elements
    are as long as those of the first, or of several such lengths; there is no gradient."""
    word = torch.int64 if tensors[0].element_size() == 8 else torch.int32
    mine = [tensor.detach().contiguous().reshape(-1).view(word) for tensor in tensors]
    lengths, mine = [part.numel() for part in mine], torch.cat(mine)
    if mine.numel():
        sent = torch.ops._c10d_functional.all_gather_into_tensor(mine, ranks.size, ranks.group)
        mine = torch.ops._c10d_functional.wait_tensor(sent)
    parts = mine.view(ranks.size, -1).split(lengths, 1)
    return [
        part.contiguous().view(tensor.dtype).view(ranks.size, *tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


class _Total(Function):
    """The sum over the shards: of parts that differ, a number that all ranks have. Its gradient is theirs, too."""

    @staticmethod
    def forward(part, ranks):
        return _gather([part], ranks)[0].sum(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return _spread(grad, ctx.ranks), None


class _Spread(Function):
    """A number that all ranks have, for use with each shard: its gradient is the sum of what the shards give."""

    @staticmethod
    def forward(number, ranks):
        return number.view_as(number)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return _total(grad, ctx.ranks), None


def _total(part: Tensor, ranks: Ranks | None) -> Tensor:
    return part if ranks is None else ops.apply(_Total, part, ranks)


def _spread(number: Tensor, ranks: Ranks | None) -> Tensor:
    return number if ranks is None else ops.apply(_Spread, number, ranks)


def _totals(parts: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """The sums of several parts, [..., 1] each, for use beside the columns of each shard: one collective."""
    sums = _spread(_total(torch.cat([part.reshape(-1) for part in parts]), ranks), ranks)
    whole = sums.split([part.numel() for part in parts])
    return [total.view(part.shape).unsqueeze(-1) for total, part in zip(whole, parts, strict=True)]


def _on_all(flag: Tensor, layout: Layout) -> Tensor:
    """The maximum of an int64 number over the whole mesh, for what all ranks are to decide alike."""
    for dim in range(layout.mesh.ndim):
        if layout.mesh.size(dim) > 1:
            flag = _gather([flag], _ranks(layout.mesh, dim))[0].amax(0)
    return flag


def _raise_if(bad: Tensor, layout: Layout, name: str, expected: str, found: str) -> None:
    """A ValueError, on every rank of the mesh, that names the first of the rows [*lead, *local batch] that are bad."""
    if torch.compiler.is_compiling():
        message = f"{name}: expected {expected}"
        torch._assert_async(_on_all(bad.any().long(), layout) == 0, message)  # pyright: ignore
        return
    lead = bad.dim() - len(layout.batch)
    shape = (*bad.shape[:lead], *layout.batch)
    number, none = torch.zeros((), dtype=torch.int64, device=bad.device), 1 + math.prod(shape)
    if bad.any():
        at = torch.nonzero(bad)[0].tolist()
        at = [a + (layout.offset[d - lead] if d >= lead else 0) for d, a in enumerate(at)]
        # The least of the positions is the greatest of what is left to the end.
        number += none - sum(a * math.prod(shape[d + 1 :]) for d, a in enumerate(at))
    left = int(_on_all(number, layout).item())
    if left:
        at, position = [], none - left
        for d in range(len(shape)):
            at.append(position // math.prod(shape[d + 1 :]) % shape[d])
        raise _error(name, expected, f"{found} at {at}")


# What a row is --------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """Of whole rows, [rows], on every rank: M, and log S, NaN where the row is no distribution."""

    maximum: Tensor
    log_sum: Tensor


def _shard_maximum(x: Tensor) -> Tensor:
    """Find the maximum of a shard [..., n] in the compute dtype; -inf where it has no columns."""
    m = x.amax(-1) if x.shape[-1] else x.new_full(x.shape[:-1], -torch.inf)
    return m.to(compute_dtype(x.dtype))


def _shard_sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(m, s, x - m) of a shard [..., n] in the compute dtype; (-inf, 0) where it has nothing to draw."""
    x = x.to(compute_dtype(x.dtype))
    m = _shard_maximum(x)
    d = x - m.masked_fill(m == -torch.inf, 0.0).unsqueeze(-1)
    return m, d.exp().sum(-1), d


def _join(m: Tensor, s: Tensor) -> tuple[Sums, Tensor]:
    """The sums of rows from those of their shards, [size, rows], and exp(m - M) of each. NaN stays NaN."""
    maximum = m.amax(0)
    scale = (m - maximum.masked_fill(maximum == -torch.inf, 0.0)).exp()
    total = (s * scale).sum(0)
    return Sums(maximum, torch.where(total > 0, total, torch.nan).log()), scale


def _log_p(x: Tensor, sums: Sums) -> Tensor:
    return (x.to(sums.maximum.dtype) - sums.maximum.unsqueeze(-1)) - sums.log_sum.unsqueeze(-1)


class _LogSoftmax(Function):
    """x - M - log S, of a shard [..., n], in the compute dtype."""

    @staticmethod
    def forward(x, ranks):
        m, s, _ = _shard_sums(x)
        return _log_p(x, _join(*_gather([m, s], ranks))[0])

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.ranks = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        (log_p,) = ctx.saved_tensors
        whole = _spread(_total(grad.sum(-1), ctx.ranks), ctx.ranks)
        return (grad - log_p.exp() * whole.unsqueeze(-1)).to(ctx.dtype), None


def _log_softmax(x: Tensor, layout: Layout) -> Tensor:
    """log softmax of whole rows, [..., n] of this rank, with as many derivatives as are asked for."""
    if layout.vocabulary is None:
        return compute.of(x).log_softmax(x)
    return ops.apply(_LogSoftmax, x, layout.ranks)


def _backward_log_p(x: Tensor, sums: Sums, ranks: Ranks) -> Tensor:
    """log p in a backward: of the sums that are known, or, where the backward is differentiated, anew."""
    return ops.apply(_LogSoftmax, x, ranks) if torch.is_grad_enabled() else _log_p(x, sums)


def log_softmax(logits: Tensor) -> DTensor:
    layout = layout_of(logits, "logits")
    return _wrap(_log_softmax(_local(logits, layout), layout), layout, columns=True)


# Parameters -----------------------------------------------------------------------------------------------------------


def place_mask(mask: Tensor, param: Tensor, name: str, validate: bool) -> tuple[Tensor, DTensor]:
    """The parameters, expanded to the batch that they make with a category mask, and the mask as bool, placed as they
    are. A mask of another dtype holds 0 and 1; `validate` says whether that is checked, on every rank."""
    # One row that ranks share out cannot become several.
    _broadcast(layout_of(param, name), mask.shape[:-1], "mask")
    param = parameters.over_batch_of(mask, param)
    layout = layout_of(param, name)
    allowed = _part(mask, "mask", layout, True).expand(layout.local)
    if allowed.dtype != torch.bool:
        if validate:
            bad = ((allowed != 0) & (allowed != 1)).any(-1)
            _raise_if(bad, layout, "mask", "0 and 1", "a row with another number")
        allowed = allowed != 0
    return param, _wrap(allowed, layout, columns=True)


def logits_of(
    param: Tensor, is_probs: bool, unimix: float | Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """`parameters.logits_of`, with the mask applied: of a mask beside them, only whole rows would have a use."""
    layout = layout_of(param, "probs" if is_probs else "logits")
    mixes = parameters.mixes(unimix)
    if mask is None and not is_probs and not mixes:
        return param, None
    unimix = _part(unimix, "unimix", layout, False) if isinstance(unimix, Tensor) else unimix
    x, allowed = _local(param, layout), None if mask is None else _part(mask, "mask", layout, True)
    if layout.vocabulary is None:
        local, left = parameters.logits_of(x, is_probs, unimix, allowed)
        return _wrap(parameters.masked(local, left), layout, columns=True), None
    if not is_probs and not mixes:
        return _wrap(parameters.masked(x, allowed), layout, columns=True), None
    local, left = parameters.logits_of(x.to(compute_dtype(x.dtype)), is_probs, 0.0, allowed)
    local = parameters.masked(local, left)
    if mixes:
        uniform: Any = 1 / layout.shape[-1]
        if allowed is not None:
            count = _total(allowed.sum(-1, dtype=torch.int32), layout.ranks).unsqueeze(-1)
            uniform = allowed.to(local.dtype) / count
        local = parameters._log(_log_softmax(local, layout).exp() * (1 - unimix) + unimix * uniform)
        local = parameters.masked(local, allowed)
    return _wrap(local, layout, columns=True), None


def check_rows(logits: Tensor, name: str) -> None:
    """Raises, on every rank, where a row on any of them is no distribution."""
    layout = layout_of(logits, name)
    x = _local(logits, layout).detach()
    m = _shard_sums(x)[0]
    if layout.vocabulary is not None:
        m = _gather([m], layout.ranks)[0].amax(0)
    _raise_if(~m.isfinite(), layout, name, "a distribution in every row", "a row with NaN, inf or nothing above zero")


# Draws ----------------------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """What a draw leaves known, on every rank, of rows whose columns are sharded.

    Attributes:
        at: int64 [draws, rows], the drawn column in this rank's shard; -1 where it is in another.
        chosen: [draws, rows], the logit there.
        sums: of the rows.
    """

    at: Tensor
    chosen: Tensor
    sums: Sums


class Drawn(NamedTuple):
    """A draw: DTensors [*sample_shape, *batch, columns], None where none was asked for, and [*sample_shape, *batch]."""

    one_hot: Tensor | None
    index: Tensor
    known: Known | None


def _seed(x: Tensor, layout: Layout, generator: torch.Generator | None) -> Seed:
    """The seed of a draw from the local logits, the same on all ranks that replicate them: the first one's."""
    replicated = [
        dim for dim, p in enumerate(layout.placements) if isinstance(p, Replicate) and layout.mesh.size(dim) > 1
    ]
    if compute.uses_kernels(x.device) and not replicated:
        return rng.next_seed(x, generator)
    tensor = rng.seed_tensor(x.device, generator)
    for dim in replicated:
        tensor = _gather([tensor], _ranks(layout.mesh, dim))[0][0]
    return Seed(tensor)


def _by_runs(function: Callable[..., Any], layout: Layout, seed: Seed, *tensors: Any) -> list[Any]:
    """function(seed, *tensors) of each run of local rows whose numbers in the whole batch follow each other; the seed
    has the number of the first. One run, unless a batch dimension behind another one is sharded."""
    batch = layout.batch
    inner = max([d for d in range(len(batch)) if layout.local[d] != batch[d]], default=0)
    outer = layout.local[:inner]
    strides = [math.prod(batch[d + 1 :]) for d in range(len(batch))]
    start = sum(o * s for o, s in zip(layout.offset, strides, strict=False))
    length, results = math.prod(layout.local[inner:-1]), []
    for run in range(math.prod(outer)):
        at = (run // math.prod(outer[d + 1 :]) % outer[d] * strides[d] for d in range(inner))
        first = start + sum(at)
        part = slice(run * length, (run + 1) * length)
        parts = (t[part] if isinstance(t, Tensor) and t.dim() else t for t in tensors)
        results.append(function(seed._replace(row_offset=first), *parts))
    return results


def _shard_race(x: Tensor, layout: Layout, draws: int, seed: Seed, *numbers: Tensor) -> tuple[Tensor, Known, Any]:
    """The drawn columns of whole rows, int64 [draws, rows], from this rank's [rows, n] and one collective, in which all
    ranks get the first one's `numbers`, too."""
    rows, n = x.shape
    dtype = compute_dtype(x.dtype)
    if n and rows:
        runs = _by_runs(lambda seed, x: compute.of(x).shard_race(x, draws, seed, layout.first_group), layout, seed, x)
        index, score = (torch.cat([run[i] for run in runs], 1) for i in range(2))
        m, s = (torch.cat([run[i] for run in runs]) for i in (2, 3))
        chosen = x.expand(draws, rows, n).gather(-1, index.clamp(min=0).unsqueeze(-1)).squeeze(-1).to(dtype)
    else:
        index = torch.full((draws, rows), -1, dtype=torch.int64, device=x.device)
        score, chosen = (x.new_full((draws, rows), value, dtype=dtype) for value in (torch.inf, -torch.inf))
        m, s, _ = _shard_sums(x)
    word = torch.int64 if dtype == torch.float64 else torch.int32
    column = (index + layout.offset[-1]).to(word)
    sent = score.to(dtype), m, s, column, chosen
    scores, ms, totals, columns, choices, *others = _gather([*sent, *numbers], layout.ranks)
    sums, _ = _join(ms, totals)
    base = sums.maximum.masked_fill(sums.maximum == -torch.inf, 0.0)
    exact = torch.float32 if x.device.type in ("mps", "xpu") else torch.float64
    # E / sum exp(x - M) of each shard's winner, the first of equals.
    winner = (scores.to(exact) * (base - ms).to(exact).exp().unsqueeze(1)).argmin(0, keepdim=True)
    valid = ~sums.log_sum.isnan()
    column = columns.gather(0, winner)[0].long()
    inside = valid & (winner[0] == layout.mesh.get_local_rank(layout.vocabulary))
    known = Known(torch.where(inside, index, -1), choices.gather(0, winner)[0], sums)
    return torch.where(valid, column, -1), known, [other[0] for other in others]


def _in_shape(one_hot: Tensor | None, index: Tensor, known: Known | None, draw: ops.Draw, layout: Layout) -> Drawn:
    lead = draw.sample_shape
    hot = None if one_hot is None else _wrap(one_hot.reshape(*lead, *layout.local), layout, lead, True)
    return Drawn(hot, _wrap(index.reshape(*lead, *layout.local[:-1]), layout, lead), known)


def sample(logits: Tensor, draw: ops.Draw) -> Drawn:
    """Draws from softmax(logits), without a gradient."""
    layout = layout_of(logits, "logits")
    x = _rows(_local(logits, layout).detach(), True)
    seed = _seed(x, layout, draw.generator)
    draws = math.prod(draw.sample_shape)
    if layout.vocabulary is None:
        return _of_whole_rows(lambda seed, x: ops.sample(x, None, _flat(draw), seed), layout, seed, draw, x)
    index, known, _ = _shard_race(x, layout, draws, seed)
    hot = None if draw.dtype is None else one_hot(known.at, x.shape[-1], draw.dtype)
    return _in_shape(hot, index, known, draw, layout)


def _flat(draw: ops.Draw) -> ops.Draw:
    return draw._replace(sample_shape=(math.prod(draw.sample_shape),))


def _of_whole_rows(function: Callable[..., Any], layout: Layout, seed: Seed, draw: ops.Draw, *tensors: Any) -> Drawn:
    """A draw of rows that this rank has whole, run by run."""
    if not math.prod(layout.local[:-1]):
        runs = [function(seed, *tensors)]
    else:
        runs = _by_runs(function, layout, seed, *tensors)
    hot = None if draw.dtype is None else torch.cat([run.one_hot for run in runs], 1)
    return _in_shape(hot, torch.cat([run.index for run in runs], 1), None, draw, layout)


class _StraightThrough(Function):
    """A one-hot draw of this rank's columns, with the gradient of `estimator`; `seeds` are those of its noise."""

    @staticmethod
    def forward(x, temperature, maximum, log_sum, at, seeds, ranks, dtype, estimator, samples):
        return one_hot(at, x.shape[-1], dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, temperature, maximum, log_sum, at, seeds, ctx.ranks, _, ctx.estimator, ctx.samples = inputs
        tensor, ctx.temperature = (temperature, None) if isinstance(temperature, Tensor) else (None, temperature)
        ctx.save_for_backward(x, tensor, maximum, log_sum, at, seeds)

    @staticmethod
    def backward(ctx, grad):
        x, temperature, maximum, log_sum, at, seeds = ctx.saved_tensors
        t = ctx.temperature if temperature is None else temperature.unsqueeze(-1)
        args = x, t, Sums(maximum, log_sum), at, grad.to(maximum.dtype), ctx.ranks
        dx, dt = ctx.estimator.shard_grad(*args, seeds, ctx.samples, ctx.needs_input_grad[1])
        return dx.to(x.dtype), dt, None, None, None, None, None, None, None, None


# The arguments of the gradients: this rank's logits x [rows, n]; t, a number or [rows, 1]; the sums of whole rows; the
# draws, [draws, rows], as columns of this rank, -1 for those of another; the incoming gradient [draws, rows, n] in the
# compute dtype; the ranks. Then, for `relaxed_grad` alone: the seeds, the samples, and whether the temperature's
# gradient is wanted.


def pass_through_grad(x: Tensor, t: Any, sums: Sums, at: Tensor, grad: Tensor, ranks: Ranks, *_: Any) -> Grads:
    """p (g - <p, g>), of the sum of g: the draws have p in common."""
    p, grad = _backward_log_p(x, sums, ranks).exp(), grad.sum(0)
    (of_grad,) = _totals([(p * grad).sum(-1)], ranks)
    return p * (grad - of_grad), None


def reinmax_grad(x: Tensor, t: Any, sums: Sums, at: Tensor, grad: Tensor, ranks: Ranks, *_: Any) -> Grads:
    """sum_s 2 J(m) g - J(p) g / 2, m = (softmax(x / t) + onehot(k)) / 2 (`Eager.reinmax_grad`)."""
    p, hot, whole = _backward_log_p(x, sums, ranks).exp(), one_hot(at, x.shape[-1], grad.dtype), grad.sum(0)
    parts = [(hot * grad).sum(-1), (p * whole).sum(-1)]
    if isinstance(t, Tensor) or t != 1:
        # Not yet divided by their sum, for one collective.
        w = ((x.to(grad.dtype) - sums.maximum.unsqueeze(-1)) / t).exp()
        of_draw, of_p, total, of_w = _totals([*parts, w.sum(-1), (w * grad).sum(-1)], ranks)
        q, of_q = w / total, of_w / total
    else:
        of_draw, of_p, of_q = _totals([*parts, (p * grad).sum(-1)], ranks)
        q = p
    m, of_m = (q + hot) / 2, (of_q + of_draw) / 2
    return (2 * m * (grad - of_m)).sum(0) - p * (whole - of_p) / 2, None


def gapped_grad(x: Tensor, t: Any, sums: Sums, at: Tensor, grad: Tensor, ranks: Ranks, *_: Any) -> Grads:
    """sum_s J(y) g / t, y = softmax(x' / t), x' - max x = 0 at the draw and min(x - max x, -gap) elsewhere, with the
    derivative of x (`base.gapped`)."""
    d = (x.detach().to(grad.dtype) - sums.maximum.unsqueeze(-1)).clamp_max(-GAP)
    score = with_derivative_of(torch.where(one_hot(at, x.shape[-1], torch.bool), 0.0, d), x)
    w = (score / t).exp()
    total, of_grad = _totals([w.sum(-1), (w * grad).sum(-1)], ranks)
    return (w / total * (grad - of_grad / total) / t).sum(0), None


def relaxed_grad(
    x: Tensor,
    t: Any,
    sums: Sums,
    at: Tensor,
    grad: Tensor,
    ranks: Ranks,
    seeds: Tensor,
    samples: int,
    with_temperature: bool,
) -> Grads:
    """Give the gradients of `_relaxed_grad`, which have no derivative: it would need the noise of the draw again."""
    with torch.no_grad():
        dx, dt = _relaxed_grad(x, t, sums, at, grad, ranks, seeds, samples, with_temperature)
    if not torch.is_grad_enabled():
        return dx, dt
    maker = "sharded logits", x, grad, t
    return NoSecondDerivative.apply(dx, *maker), None if dt is None else NoSecondDerivative.apply(dt, *maker)


def _relaxed_grad(
    x: Tensor,
    t: Any,
    sums: Sums,
    at: Tensor,
    grad: Tensor,
    ranks: Ranks,
    seeds: Tensor,
    samples: int,
    with_temperature: bool,
) -> Grads:
    """sum_s J(y) g / t, y = softmax(z) drawn given winner k: z_j = -log(1 + E_j / (p_j E_k)) / t, 0 at k, E iid Exp(1)
    (`base.scores_given`). 0 is the maximum, so that no rank need know another's. The mean over the `samples`. E is of
    the first of the seeds, but for E_k: that is of the second, which all ranks have in common."""
    p = _log_p(x, sums).exp()
    at, g = for_each_sample(at, samples), for_each_sample(grad, samples)
    # A collective for the winner's noise would be one of a backward that needs no gradient: torch's compiler plans such
    # as the sizes say, on each rank its own way, and ranks with uneven shards would wait for each other.
    e, winners = (
        rng.noise_again(seed)((*at.shape, n), None).neg().to(p.dtype)
        for seed, n in zip(seeds.unbind(), (x.shape[-1], 1), strict=True)
    )
    z = torch.log1p(e / winners / p).neg()
    z = z.masked_fill(one_hot(at, x.shape[-1], torch.bool), 0.0) / t
    w = z.exp()
    parts = [w.sum(-1), (w * g).sum(-1)]
    if with_temperature:
        # Where y is 0, 0 -inf would be NaN.
        z = z.clamp_min(-1e30)
        parts += [(w * z).sum(-1), (w * g * z).sum(-1)]
    total, of_grad, *rest = _totals(parts, ranks)
    dx = (w / total * (g - of_grad / total) / t).sum(0) / samples
    if not with_temperature:
        return dx, None
    of_z, of_gz = rest
    return dx, (-((of_gz - of_grad / total * of_z) / total).sum(0) / t / samples).squeeze(-1)


def _temperature(temperature: Tensor | float, layout: Layout) -> Tensor | float:
    """The temperature of this rank's rows, [local batch], or a number. Its gradient is the sum over the batch's shards:
    a tensor of one rank is taken for one that is the same on all."""
    if not isinstance(temperature, Tensor):
        return temperature
    mesh, last = layout.mesh, len(layout.shape) - 1
    if not isinstance(temperature, DTensor):
        temperature = DTensor.from_local(temperature, mesh, [Replicate()] * mesh.ndim, run_check=False)
    if any(not isinstance(p, Replicate) for p in temperature.placements):
        raise _error("temperature", "a tensor that is the same on all ranks", f"{temperature.placements}")
    grads = [Partial() if isinstance(p, Shard) and p.dim != last else Replicate() for p in layout.placements]
    local = temperature.to_local(grad_placements=grads)
    if local.numel() == 1:
        return local.reshape(())
    return _part(local, "temperature", layout, False).expand(layout.local[:-1]).reshape(-1)


def rsample(
    logits: Tensor, draw: ops.Draw, method: ReparamGradientStrategy, temperature: Tensor | float, samples: int
) -> Drawn:
    """`sample` in the logits' dtype, with the gradient of `method`."""
    layout = layout_of(logits, "logits")
    estimator = ESTIMATORS[method]
    relaxed = estimator.relaxed
    learned = relaxed and isinstance(temperature, Tensor) and is_differentiated(temperature)
    if not (learned or is_differentiated(logits)):
        return sample(logits, draw)
    x = _rows(_local(logits, layout), True)
    t = _temperature(temperature, layout)
    seed = _seed(x, layout, draw.generator)
    if layout.vocabulary is None:

        def of_run(seed: Seed, x: Tensor, t: Tensor | float) -> Sample:
            t = ops.constant_where_empty(t, x) if relaxed else t
            return ops.rsample(x, None, _flat(draw), method, t, samples, seed)

        return _of_whole_rows(of_run, layout, seed, draw, x, t)
    numbers = [_number(seed, x.device)] if relaxed else []
    index, known, numbers = _shard_race(x.detach(), layout, math.prod(draw.sample_shape), seed, *numbers)
    if isinstance(t, Tensor):
        t = t.to(compute_dtype(x.dtype)).expand(x.shape[0])
        t = ops.constant_where_empty(t, known.sums.maximum.unsqueeze(-1)) if relaxed else t
    seeds = torch.stack([_place(numbers[0], layout, at) for at in (1 + layout.first_group, 0)]) if relaxed else None
    how = layout.ranks, draw.dtype, estimator, samples
    hot = ops.apply(_StraightThrough, x, t, *known.sums, known.at, seeds, *how)
    return _in_shape(hot, index, known, draw, layout)


def _number(seed: Seed, device: torch.device) -> Tensor:
    """The seed as one int64 element."""
    if seed.tensor is not None:
        return seed.tensor
    # Of the counter of a generator, which moves by four, another number at each call.
    number = (seed.seed + seed.offset * 0x9E3779B97F4A7C15) % 2**63
    return torch.full((), number, dtype=torch.int64, device=device)


def _place(number: Tensor, layout: Layout, first_group: int) -> Tensor:
    """Of a seed, that of the noise of this rank's rows from that group on."""
    row_offset = sum(o * math.prod(layout.batch[d + 1 :]) for d, o in enumerate(layout.offset[:-1]))
    return rng.seed_of_place(Seed(number, row_offset=row_offset), first_group)


def relaxed_sample(logits: Tensor, temperature: Tensor | float, draw: ops.Draw, log: bool = False) -> DTensor:
    """softmax((logits + Gumbel) / temperature), placed as the logits, with gradients in both; of `log`, its logarithm
    in float32 at least."""
    layout = layout_of(logits, "logits")
    x, lead = _rows(_local(logits, layout), True), draw.sample_shape
    t = _temperature(temperature, layout)
    seed = _seed(x, layout, draw.generator)
    if layout.vocabulary is None:
        seed = Seed(_number(seed, x.device)) if log else seed
        function: Callable[..., Tensor] = lambda seed, x, t: ops.relaxed_sample(x, t, _flat(draw), seed, log)  # noqa: E731
        runs = _by_runs(function, layout, seed, x, t) if x.shape[0] else [function(seed, x, t)]
        y = torch.cat(runs, 1)
    else:
        place = _place(_number(seed, x.device), layout, layout.first_group)
        e = rng.noise_again(place)((math.prod(lead), *x.shape), None)
        if isinstance(t, Tensor):
            t = torch.as_tensor(ops.constant_where_empty(_spread(t.to(e.dtype), layout.ranks), x)).unsqueeze(-1)
        # In the noise's float64: a float32 sum of a large logit and a Gumbel variate would lose the variate. Infinite
        # scores come last: their derivative times 0 would be NaN.
        off = x == -torch.inf
        z = (x.to(e.dtype).masked_fill(off, 0.0) - e.neg().log()) / t
        log_y = _log_softmax(z.masked_fill(off, -torch.inf), layout)
        log_y = log_y.masked_fill(log_y == -torch.inf, -torch.inf)
        y = log_y.to(compute_dtype(x.dtype)) if log else log_y.exp().to(x.dtype)
    return _wrap(y.reshape(*lead, *layout.local), layout, lead, True)


def mode(logits: Tensor, dtype: torch.dtype) -> DTensor:
    """Give one 1 at the first maximum per row, placed as the logits; an invalid row is all zero."""
    layout = layout_of(logits, "logits")
    x = _rows(_local(logits, layout).detach(), True)
    if layout.vocabulary is None:
        at = ops.mode(x, None)
    else:
        m = _shard_maximum(x)
        at = _mode_at(x, _gather([m], layout.ranks)[0], layout)
    return _wrap(one_hot(at, x.shape[-1], dtype).reshape(layout.local), layout, columns=True)


def _mode_at(x: Tensor, maxima: Tensor, layout: Layout) -> Tensor:
    """Find the first maximum per row of this rank's [rows, n], int64 [rows], from the maxima of all shards,
    [size, rows]; -1 where the row's first maximum is in another shard, and for an invalid row."""
    rows, n = x.shape
    at = compute.of(x).argmax(x) if n else torch.zeros(rows, dtype=torch.int64, device=x.device)
    elsewhere = maxima.argmax(0) != layout.mesh.get_local_rank(layout.vocabulary)
    # NaN counts as the maximum: in an invalid row, it is not finite.
    return at.masked_fill(elsewhere | ~maxima.amax(0).isfinite(), -1)


def rmode(logits: Tensor) -> DTensor:
    """Give `mode` in the logits' dtype, with the gradient of PassThrough."""
    if not is_differentiated(logits):
        return mode(logits, logits.dtype)
    layout = layout_of(logits, "logits")
    x = _rows(_local(logits, layout), True)
    if layout.vocabulary is None:
        hot = ops.rmode(x, None)
    else:
        m, s, _ = _shard_sums(x.detach())
        maxima, totals = _gather([m, s], layout.ranks)
        at, sums = _mode_at(x.detach(), maxima, layout), _join(maxima, totals)[0]
        how = layout.ranks, x.dtype, ESTIMATORS[ReparamGradientStrategy.PassThrough], 1
        hot = ops.apply(_StraightThrough, x, 1.0, *sums, at.unsqueeze(0), None, *how)
    return _wrap(hot.reshape(layout.local), layout, columns=True)


def enumerate_support(param: Tensor, name: str, dtype: torch.dtype, expand: bool) -> DTensor:
    """Every one-hot vector, its columns placed as those of the parameters."""
    layout = layout_of(param, name)
    columns, first, n = layout.shape[-1], layout.offset[-1], layout.local[-1]
    each = torch.arange(columns, device=param.device)
    values = (each.unsqueeze(-1) == each[first : first + n]).to(dtype)
    ones = (1,) * len(layout.batch)
    values = values.view(columns, *ones, n)
    if expand:
        return _wrap(values.expand(columns, *layout.local), layout, (columns,), True)
    alone = [p if isinstance(p, Shard) and p.dim == len(ones) else Replicate() for p in layout.placements]
    layout = layout._replace(placements=tuple(alone), shape=(*ones, columns))
    return _wrap(values, layout, (columns,), True)


# Densities ------------------------------------------------------------------------------------------------------------


class _LogProb(Function):
    """x_k - M - log S, [draws, rows], of what is known: `at` is k in this rank's shard, -1 where it is in another."""

    @staticmethod
    def forward(x, maximum, log_sum, at, chosen, ranks):
        return (chosen - maximum) - log_sum

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, maximum, log_sum, at, _, ctx.ranks = inputs
        ctx.save_for_backward(x, maximum, log_sum, at)

    @staticmethod
    def backward(ctx, grad):
        x, *sums, at = ctx.saved_tensors
        # sum_s g_s (onehot(k_s) - p)
        grad = _spread(grad, ctx.ranks)
        dx = _backward_log_p(x, Sums(*sums), ctx.ranks).exp() * -grad.sum(0).unsqueeze(-1)
        if x.shape[-1]:
            dx = dx.scatter_add(-1, at.clamp(min=0).t(), grad.masked_fill(at < 0, 0.0).t().to(dx.dtype))
        return dx.to(x.dtype), None, None, None, None, None


def _densities(x: Tensor, known: Known, layout: Layout, lead: Sequence[int]) -> DTensor:
    """log p of what is known, [*lead, *batch]."""
    out = ops.apply(_LogProb, x, *known.sums, known.at, known.chosen, layout.ranks)
    return _wrap(out.reshape(*lead, *layout.local[:-1]), layout, lead)


def log_prob_of(logits: Tensor, drawn: Drawn, lead: Sequence[int]) -> Tensor:
    """log p of a draw of these logits: no communication."""
    if drawn.known is None:
        return log_prob_index(logits, drawn.index)
    layout = layout_of(logits, "logits")
    return _densities(_rows(_local(logits, layout), True), drawn.known, layout, lead)


def _expanded(logits: Tensor, layout: Layout, lead: Sequence[int], name: str) -> tuple[Tensor, Layout, tuple[int, ...]]:
    """This rank's [*local batch, n], the batch broadcast against `lead`, where that is, and what is in front of it."""
    layout, front = _broadcast(layout, lead, name)
    return _local(logits, layout).expand(layout.local), layout, front


def log_prob_index(logits: Tensor, index: Tensor, validate: bool = False) -> Tensor:
    layout = layout_of(logits, "logits")
    if validate:
        local = _part(index, "index", layout, False)
        bad = (local < 0) | (local >= layout.shape[-1])
        bad = bad.any().expand(layout.local[:-1]) if bad.dim() < len(layout.batch) else bad
        _raise_if(bad, layout, "index", f"0 .. {layout.shape[-1] - 1}", "another number")
    x, layout, front = _expanded(logits, layout, index.shape, "index")
    index = _part(index, "index", layout, False).long().expand(*front, *layout.local[:-1])
    if layout.vocabulary is None:
        out = ops.log_prob(x, None, None, index=index)
        return _wrap(out, layout, front)
    rows, n, columns = math.prod(layout.local[:-1]), layout.local[-1], layout.shape[-1]
    index, x = index.reshape(math.prod(front), rows), _rows(x, True)
    here = index - layout.offset[-1]
    here = here.masked_fill((here < 0) | (here >= n), -1)
    m, s, _ = _shard_sums(x.detach())
    ms, totals, choices = _gather([m, s, _at(x.detach(), here)], layout.ranks)
    chosen = choices.amax(0).masked_fill((index < 0) | (index >= columns), torch.nan)
    return _densities(x, Known(here, chosen, _join(ms, totals)[0]), layout, front)


def _at(x: Tensor, at: Tensor) -> Tensor:
    """x [rows, n] at `at` [draws, rows] in the compute dtype; -inf where that is -1."""
    dtype = compute_dtype(x.dtype)
    if not x.shape[-1]:
        return torch.full(at.shape, -torch.inf, dtype=dtype, device=x.device)
    return x.gather(-1, at.clamp(min=0).t()).t().to(dtype).masked_fill(at < 0, -torch.inf)


def log_prob(logits: Tensor, value: Tensor, validate: bool = False) -> Tensor:
    layout = layout_of(logits, "logits")
    x, layout, front = _expanded(logits, layout, value.shape[:-1], "value")
    value = _part(value.detach(), "value", layout, True).expand(*front, *layout.local)
    if layout.vocabulary is None:
        if validate:
            good = (value.bool().sum(-1) == 1) & (value.amax(-1) == 1)
            _raise_if(~good, layout, "value", "one-hot rows, a single 1 among zeros", "another")
        out = ops.log_prob(x, None, None, value=value)
        return _wrap(out, layout, front)
    rows, n = math.prod(layout.local[:-1]), layout.local[-1]
    x, value = _rows(x, True), value.reshape(math.prod(front), rows, n)
    m, s, _ = _shard_sums(x.detach())
    at, best = (
        torch.zeros(value.shape[:-1], dtype=torch.int64, device=x.device),
        m.new_full(value.shape[:-1], -torch.inf),
    )
    if n:
        at = compute.of(value).argmax(value)
        best = value.gather(-1, at.unsqueeze(-1)).squeeze(-1).to(m.dtype)
    if validate:
        # 1 and 0 are good, and all zeros is a shard without the 1; NaN is anything else.
        count = value.bool().sum(-1)
        best = torch.where(count == 0, 0.0, torch.where((count == 1) & (best == 1), 1.0, torch.nan)).to(m.dtype)
    ms, totals, bests, choices = _gather([m, s, best, _at(x.detach(), at)], layout.ranks)
    if validate:
        bad = (bests.sum(0) != 1).reshape(*front, *layout.local[:-1])
        _raise_if(bad, layout, "value", "one-hot rows, a single 1 among zeros", "another")
    winner = bests.argmax(0, keepdim=True)
    at = at.masked_fill(winner[0] != layout.mesh.get_local_rank(layout.vocabulary), -1)
    return _densities(x, Known(at, choices.gather(0, winner)[0], _join(ms, totals)[0]), layout, front)


class _Entropy(Function):
    """-sum p log p = log S - sum exp(x - M) (x - M) / S, [rows], of which no term is negative."""

    @staticmethod
    def forward(x, ranks):
        m, s, d = _shard_sums(x)
        parts = [m, s, (d.exp() * d.clamp_min(LOWEST)).sum(-1)]
        ms, totals, products = _gather(parts, ranks)
        sums, scale = _join(ms, totals)
        # sum exp(x - M) (x - M) = exp(m - M) (sum exp(x - m) (x - m) + (m - M) s); of a shard far below it is 0.
        below = (ms - sums.maximum).clamp_min(LOWEST)
        product = (scale * (products + below * totals)).sum(0)
        return sums.log_sum - product / sums.log_sum.exp(), *sums

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.ranks = inputs
        entropy, *sums = output
        ctx.mark_non_differentiable(*sums)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, entropy, *sums)

    @staticmethod
    def backward(ctx, grad, *_):
        x, entropy, *sums = ctx.saved_tensors
        if grad is None:
            return None, None
        log_p = _backward_log_p(x, Sums(*sums), ctx.ranks).clamp_min(LOWEST)
        entropy, grad = _spread(entropy, ctx.ranks), _spread(grad, ctx.ranks)
        # -g p (log p + H)
        return (log_p.exp() * (log_p + entropy.unsqueeze(-1)) * -grad.unsqueeze(-1)).to(x.dtype), None


def entropy(logits: Tensor) -> Tensor:
    layout = layout_of(logits, "logits")
    x = _local(logits, layout)
    if layout.vocabulary is None:
        return _wrap(ops.entropy(x, None), layout)
    out = ops.apply(_Entropy, _rows(x, True), layout.ranks)[0]
    return _wrap(out.reshape(layout.local[:-1]), layout)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Give sum p (log p - log q), [*batch], for normalised log-probabilities, as `base.kl` does."""
    if not isinstance(log_p, DTensor):
        raise _error("p", "sharded logits where those of q are", "others")
    layout = layout_of(log_p, "p")
    # One of another batch would broadcast.
    if log_q.shape != log_p.shape:
        raise _error("q", f"the shape {list(log_p.shape)} of p, where that is sharded", list(log_q.shape))
    part = base.kl(_local(log_p, layout), _part(log_q, "q", layout, True))
    return _wrap(_total(part, None if layout.vocabulary is None else layout.ranks), layout)


class _LogSum(Function):
    """The log sum exp of scores over all shards, [..., 1], which is known, with its derivative in those of this one.
    Those that are `left_out` have none."""

    @staticmethod
    def forward(score, left_out, log_sum, ranks):
        return log_sum.view_as(log_sum)

    @staticmethod
    def setup_context(ctx, inputs, output):
        score, left_out, _, ctx.ranks = inputs
        ctx.save_for_backward(score, left_out, output)

    @staticmethod
    def backward(ctx, grad):
        score, left_out, log_sum = ctx.saved_tensors
        p = (score.masked_fill(left_out, -torch.inf) - _spread(log_sum, ctx.ranks)).exp()
        return p * _spread(grad, ctx.ranks), None, None, None


def _relaxed_sums(score: Tensor, on: Tensor, zero: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Join the shards of each row: the log sum exp of its scores, or of those of its zeros if it has any, NaN for an
    invalid row; the number of categories that are on; the number of zeros. All are in the scores' dtype."""
    here = torch.where(zero.any(-1, keepdim=True), zero, on)
    m, s, _ = _shard_sums(score.masked_fill(here.logical_not(), -torch.inf))
    word = torch.int64 if score.dtype == torch.float64 else torch.int32
    ms, totals, zeros, n = _gather([m, s, zero.sum(-1, dtype=word), on.sum(-1, dtype=word)], ranks)
    # Beside a zero of another shard, a shard without one does not count.
    left_out = (zeros == 0) & (zeros.sum(0) > 0)
    sums, _ = _join(ms.masked_fill(left_out, -torch.inf), totals.masked_fill(left_out, 0.0))
    return sums.maximum + sums.log_sum, n.sum(0).to(score.dtype), zeros.sum(0).to(score.dtype)


def relaxed_log_prob(
    logits: Tensor, temperature: Tensor | float, value: Tensor, of_log: bool = False, validate: bool = False
) -> Tensor:
    """The density of `ops.relaxed_log_prob`, [..., *batch]."""
    layout = layout_of(logits, "logits")
    batch, t = layout.local[:-1], _temperature(temperature, layout)
    x, layout, front = _expanded(logits, layout, value.shape[:-1], "value")
    value = _part(value, "value", layout, True)
    if isinstance(t, Tensor) and t.dim():
        t = t.view(batch)
    if validate:
        _check_relaxed(x.detach(), value.detach(), t, layout, of_log)
    if layout.vocabulary is None:
        return _wrap(ops.relaxed_log_prob(x, t, value, of_log), layout, front)
    ranks, dtype = layout.ranks, compute_dtype(x.dtype)
    x, log_y = x.to(dtype), value.to(dtype) if of_log else ops.log_of_value(value, dtype)
    t = t.to(dtype) if isinstance(t, Tensor) else t
    column_t = _spread(t, ranks).unsqueeze(-1) if isinstance(t, Tensor) else t
    # As in `Eager.relaxed_log_prob`.
    off, empty = x == -torch.inf, log_y == -torch.inf
    on = off.logical_not()
    zero, outside = on & empty, (off & empty.logical_not()).any(-1)

    nothing = on.any(-1, keepdim=True).logical_not()

    def scores(off: Tensor) -> tuple[Tensor, Tensor]:
        finite = log_y.masked_fill(off | empty | nothing, 0.0)
        return finite, x.masked_fill(off, 0.0) - (column_t * finite).masked_fill(nothing, 0.0)

    with torch.no_grad():
        known, n, zeros = _relaxed_sums(scores(off)[1], on, zero, ranks)
    # No category of an invalid row is off, so that its gradient is NaN.
    off = off & known.isfinite().unsqueeze(-1)
    log_y, score = scores(off)
    left_out = torch.where(zeros.unsqueeze(-1) > 0, zero, on).logical_not()
    log_sum = ops.apply(_LogSum, score, left_out, known.unsqueeze(-1), ranks).squeeze(-1)
    part = (score - known.unsqueeze(-1)).masked_fill(off, 0.0).sum(-1)
    part = part if of_log else part - log_y.sum(-1)
    total = _total(part.masked_fill(outside, -torch.inf), ranks)
    # n times the logarithm of the sum is in `total`, term by term; here is its derivative, of which no rank need hear.
    density = total - n * (log_sum - known) + relaxed_constant(n, t)
    infinite, limit = relaxed_limit(n, zeros, t, of_log)
    is_outside = total.detach() == -torch.inf
    limit = limit.masked_fill(is_outside, -torch.inf)
    density = torch.where((infinite | is_outside) & (density == density), limit, density)
    return _wrap(density, layout, front)


def _check_relaxed(x: Tensor, value: Tensor, t: Tensor | float, layout: Layout, of_log: bool) -> None:
    """`checks.relaxed_value`, of which all ranks hear."""
    y = value.to(compute_dtype(value.dtype))
    y = y.exp() if of_log else y
    outside = (x == -torch.inf) & (value != (-torch.inf if of_log else 0))
    total = y.masked_fill(~(y >= 0) | outside, torch.nan).sum(-1)
    if layout.vocabulary is not None:
        total = _gather([total], layout.ranks)[0].sum(0)
    tolerance = checks.sum_tolerance(value, x, layout.shape[-1], t.detach() if isinstance(t, Tensor) else t)
    what = "the logarithm of a point of the simplex" if of_log else "a point of the simplex"
    bad = ~((total - 1).abs() <= tolerance)
    _raise_if(bad, layout, "value", f"{what} in every row, without mass where a category is off", "another")


# The last draw --------------------------------------------------------------------------------------------------------


class Last(NamedTuple):
    """The last draw, and what it left known. Every rank must see alike whether it still holds, or one would wait for
    others: what is looked at is what torch does to a DTensor, on all ranks at once.

    Attributes:
        logits, draws: the tensors, and how often each had been changed in place.
        drawn: without the tensors.
    """

    logits: tuple[weakref.ref[Tensor], Any]
    draws: list[tuple[weakref.ref[Tensor], Any]]
    drawn: Drawn


def _changes(tensor: Tensor) -> tuple[int, int]:
    """How often a DTensor was changed in place: itself, and this rank's part by itself, which count apart."""
    assert isinstance(tensor, DTensor)
    return tensor._version, tensor._local_tensor._version


def remember(logits: Tensor, drawn: Drawn) -> Last | None:
    if drawn.known is None or torch.compiler.is_compiling():
        return None
    kept = [t for t in (drawn.one_hot, drawn.index) if t is not None]
    # Inference mode counts no changes.
    if any(t.is_inference() for t in (logits, *kept)):
        return None
    logits_now, *draws_now = ((weakref.ref(t), _changes(t)) for t in (logits, *kept))
    return Last(logits_now, draws_now, drawn._replace(one_hot=None, index=drawn.known.at))


def recall(last: Last | None, logits: Tensor, value: Tensor) -> Drawn | None:
    """What is known of `value`, a one-hot or an index, if it is the last draw of these logits, or its `detach()`."""
    if last is None or torch.compiler.is_compiling() or not isinstance(value, DTensor):
        return None
    reference, changes = last.logits
    if reference() is not logits or _changes(logits) != changes:
        return None
    for reference, changes in last.draws:
        draw = reference()
        if not isinstance(draw, DTensor) or not _changes(draw) == _changes(value) == changes:
            continue
        if value is draw or (_memory(value) == _memory(draw) and value.placements == draw.placements):
            return last.drawn
    return None


def _memory(tensor: DTensor) -> tuple[Any, ...]:
    local = tensor._local_tensor
    return local.untyped_storage()._cdata, local.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
