"""Entropy, and the logsumexp by itself.

With M = max x, and in log2 units d_j = (x_j - M) log2(e), S = sum 2^d_j, R the same over x_j < M, T = sum 2^d_j d_j:

    logsumexp = M + ln2 log2 S                         kept as these two numbers
    H = ln2 (log2 S - T / S)                           both terms are at least 0
    dH / dx_j = -p_j (log p_j + H)

Of a peaked row S = 1 + R, with R far below a rounding of 1, but most of H: there log2 S is taken from R.

When M grows by a ln2, every d shrinks by a: S becomes S 2^-a, R the same, T becomes (T - a S) 2^-a.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import LN2, LOG2E
from .rows import (
    FAR,
    allowed_arguments,
    compute_dtype,
    compute_type,
    from_parts,
    is_shared,
    lane_max,
    lane_sum,
    load_logits,
    load_logsumexp,
    load_parts,
    log2_probs,
    log_sum_of,
    or_zero,
    over_lanes,
    over_tile,
    row_logits,
    store_logsumexp,
    store_part,
    tile_columns,
    tile_logits,
    tile_ptrs,
    walk,
    where_allowed,
    with_unit_stride,
    without_mask,
)


@triton.jit
def _rebase(maximum, base, total, rest, moment):
    """(S, R, T) relative to `base` in place of `maximum`. Where that is -inf, they are 0, whatever the shift."""
    shift = tl.maximum((maximum - base) * LOG2E, FAR)
    scale = tl.exp2(shift)
    return total * scale, tl.where(maximum < base, total, rest) * scale, (moment + shift * total) * scale


@triton.jit
def _add_tile(start, mask, sums, logits, TYPE: tl.constexpr):
    """Add a tile to the (M, S, R, T) of each lane, [ROWS, LANES]."""
    x = load_logits(logits, start, mask, TYPE)
    maximum, total, rest, moment = sums
    new = tl.maximum(maximum, lane_max(x))
    base = or_zero(new)
    total, rest, moment = _rebase(maximum, base, total, rest, moment)
    d = (x - over_lanes(base)) * LOG2E
    weight = tl.exp2(d)
    # 1 where d < 0: by a multiplication that saturates, as the comparison would cost more.
    less = tl.minimum(tl.maximum(d * -(2.0**100), 0.0), 1.0)
    return (
        new,
        total + lane_sum(weight),
        rest + lane_sum(weight * less),
        moment + lane_sum(weight * tl.maximum(d, FAR)),
    )


@triton.jit
def _join(maximum, total, rest, moment):
    """(M, S, R, T) of the rows, [ROWS], from those of their lanes, or of their parts, [ROWS, lanes]."""
    joined = tl.max(maximum, 1)
    total, rest, moment = _rebase(maximum, or_zero(joined)[:, None], total, rest, moment)
    return joined, tl.sum(total, 1), tl.sum(rest, 1), tl.sum(moment, 1)


@triton.jit
def _tile_sums(logits, inside, column, columns, TYPE: tl.constexpr):
    """(M, S, R, T) of the rows, [ROWS], over this program's tiles of them. The compiler drops what the caller does not
    read: rest and moment where only the logsumexp is wanted."""
    zeros = tl.zeros([inside.shape[0], column.shape[2]], TYPE)
    sums = (zeros + float("-inf"), zeros, zeros, zeros)
    maximum, total, rest, moment = walk(_add_tile, sums, tile_logits(logits, column), inside, column, columns, TYPE)
    return _join(maximum, total, rest, moment)


@triton.jit
def _store_sums(parts_ptr, row, sums):
    """Leave the sums of this program's tiles."""
    maximum, total, rest, moment = sums
    store_part(parts_ptr, 4 * row, maximum)
    store_part(parts_ptr, 4 * row + 1, total)
    store_part(parts_ptr, 4 * row + 2, rest)
    store_part(parts_ptr, 4 * row + 3, moment)


@triton.jit
def _load_sums(parts_ptr, row, parts, PARTS: tl.constexpr):
    """(M, S, R, T) of the rows, from what the programs that shared them left."""
    return _join(
        load_parts(parts_ptr, 4 * row, parts, float("-inf"), PARTS),
        load_parts(parts_ptr, 4 * row + 1, parts, 0.0, PARTS),
        load_parts(parts_ptr, 4 * row + 2, parts, 0.0, PARTS),
        load_parts(parts_ptr, 4 * row + 3, parts, 0.0, PARTS),
    )


@triton.jit
def _row_sums(logits, parts_ptr, row, inside, column, columns, parts, TYPE: tl.constexpr, PARTS: tl.constexpr):
    """(M, S, R, T) of the rows, [ROWS]: over this program's tiles of them, or over all, from what `parts` programs left
    in a launch before."""
    if from_parts(parts, PARTS):
        sums = _load_sums(parts_ptr, row, parts, PARTS)
    else:
        sums = _tile_sums(logits, inside, column, columns, TYPE)
    return sums


@triton.jit
def _log2_of_sum(total, rest):
    """log2 S, which is log2(1 + R) where one logit alone is the maximum: where S < 2."""
    one_plus = 1.0 + rest
    # What one_plus was rounded by is all of a small R.
    log2_one_plus = tl.log2(one_plus) + (rest - (one_plus - 1.0)) / one_plus * LOG2E
    return tl.where(total < 2.0, log2_one_plus, tl.log2(total))


@triton.jit
def _entropy_of(total, rest, moment):
    """In nats, NaN where the row is no distribution."""
    return tl.where(total > 0, (_log2_of_sum(total, rest) - moment / total) * LN2, float("nan"))


@triton.jit
def _store(entropy_ptr, logsumexp_ptr, row, rows, inside, sums, ENTROPY: tl.constexpr):
    maximum, total, rest, moment = sums
    store_logsumexp(logsumexp_ptr, row, rows, inside, maximum, log_sum_of(total))
    if ENTROPY:
        tl.store(entropy_ptr + row, _entropy_of(total, rest, moment), mask=inside)


@triton.jit(do_not_specialize=["rows", "parts"])
def _entropy_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    entropy_ptr,
    logsumexp_ptr,
    parts_ptr,
    rows: tl.int64, columns, parts,
    ENTROPY: tl.constexpr, TYPE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    column = tile_columns(DEPTH, LANES, VECTOR)
    sums = _row_sums(logits, parts_ptr, row, inside, column, columns, parts, TYPE, PARTS)
    if is_shared(ROWS):
        _store_sums(parts_ptr, row, sums)
    else:
        _store(entropy_ptr, logsumexp_ptr, row, rows, inside, sums, ENTROPY)


@triton.jit(do_not_specialize=["rows"])
def _entropy_grad_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    entropy_ptr,
    grad_ptr,
    out_ptr,
    rows: tl.int64, columns,
    TYPE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # One tile a program: nothing is reduced.
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    tiles = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.program_id(0) % tiles * BLOCK + tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    x = load_logits(without_mask(logits), 0, mask, TYPE)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    log2_p = log2_probs(x, maximum, log_sum)
    entropy = tl.load(entropy_ptr + row, mask=inside) * LOG2E
    grad = tl.load(grad_ptr + row, mask=inside).to(TYPE) * LN2
    # -g p (log p + H), and 0 where p is.
    out = -over_tile(grad) * tl.exp2(log2_p) * (tl.maximum(log2_p, FAR) + over_tile(entropy))
    out = where_allowed(out, 0.0, logits, 0, mask)
    tl.store(tile_ptrs(out_ptr + over_tile(row * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


def _reduce(logits: Tensor, allowed: Tensor | None, with_entropy: bool) -> tuple[Tensor, Tensor]:
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    logsumexp = torch.empty(2, rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    entropy = logsumexp.new_empty(rows) if with_entropy else logsumexp
    if rows:
        tile = launch.tile(logits)
        split = tile.parts > 1
        common = {
            "logits_ptr": logits, "entropy_ptr": entropy, "logsumexp_ptr": logsumexp,
            "parts_ptr": logsumexp.new_empty(rows, 4, tile.parts) if split else logsumexp,
            "row_stride": logits.stride(0), "rows": rows, "columns": columns, "ENTROPY": with_entropy,
            "TYPE": compute_type(logits.dtype), "PARTS": tile.part_lanes, **launch.options(tile.warps), **tile.shape,
            **allowed_arguments(allowed),
        }  # fmt: skip
        _entropy_kernel[(launch.cdiv(rows, tile.rows), tile.parts)](parts=0, **common)
        if split:
            _entropy_kernel[(rows,)](parts=tile.parts, **common)
    return entropy, logsumexp


@launch.on_its_device
def logsumexp(logits: Tensor, allowed: Tensor | None = None) -> Tensor:
    """log sum exp of each row of `logits` [rows, columns], as two numbers whose sum it is, [2, rows] in the compute
    dtype: the maximum, and log sum exp(x - maximum), NaN for no distribution. `allowed`: see
    `rows.allowed_arguments`."""
    return _reduce(logits, allowed, with_entropy=False)[1]


@launch.on_its_device
def entropy(logits: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The entropy in nats, [rows], and the logsumexp, [2, rows], of each row of `logits`, in the compute dtype."""
    return _reduce(logits, allowed, with_entropy=True)


@launch.on_its_device
def entropy_grad(
    logits: Tensor, logsumexp: Tensor, entropy: Tensor, grad: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """-g p (log p + H), [rows, columns] in the logits' dtype; `logsumexp` is [2, rows], `entropy` and `grad` [rows]."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    out = torch.empty(rows, columns, dtype=logits.dtype, device=logits.device)
    if rows:
        tile = launch.tile(logits)
        _entropy_grad_kernel[(launch.cdiv(rows, tile.rows) * launch.cdiv(columns, tile.columns),)](
            logits, logsumexp_ptr=logsumexp.contiguous(), entropy_ptr=entropy.contiguous(), grad_ptr=grad.contiguous(),
            out_ptr=out, row_stride=logits.stride(0), rows=rows, columns=columns, TYPE=compute_type(logits.dtype),
            **launch.options(tile.warps), **tile.shape, **allowed_arguments(allowed),
        )  # fmt: skip
    return out
