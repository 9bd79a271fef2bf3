"""Entropy, and the logsumexp by itself.

In log2 units, with d_j = x_j log2(e) - M, S = sum 2^d_j and T = sum 2^d_j d_j:

    logsumexp = ln2 (M + log2 S)
    H = ln2 (log2 S - T / S)                           no rounding of the logsumexp enters it
    dH / dx_j = -p_j (log p_j + H)

When M grows by a, every d shrinks by a: S becomes S 2^-a, T becomes (T - a S) 2^-a.
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
    exp2_of,
    has_tail,
    lane_max,
    lane_sum,
    load_logits,
    load_parts,
    logsumexp_of,
    or_zero,
    over_lanes,
    over_tile,
    store_part,
    tile_columns,
    with_unit_stride,
)


@triton.jit
def _rebase(maximum, base, total, moment):
    """(S, T) relative to `base` in place of `maximum`. Where that is -inf, S and T are 0, whatever the growth."""
    scale = tl.exp2(maximum - base)
    return total * scale, (moment - (base - or_zero(maximum)) * total) * scale


@triton.jit
def _add_tile(x, maximum, total, moment):
    """Adds a tile to the (M, S, T) of each lane, [ROWS, LANES]."""
    new = tl.maximum(maximum, lane_max(x) * LOG2E)
    base = or_zero(new)
    total, moment = _rebase(maximum, base, total, moment)
    d = exp2_of(x, over_lanes(base))
    weight = tl.exp2(d)
    return new, total + lane_sum(weight), moment + lane_sum(weight * tl.maximum(d, FAR))


@triton.jit
def _join(maximum, total, moment):
    """(M, S, T) of the rows, [ROWS], from those of their lanes, or of their parts, [ROWS, lanes]."""
    joined = tl.max(maximum, 1)
    total, moment = _rebase(maximum, or_zero(joined)[:, None], total, moment)
    return joined, tl.sum(total, 1), tl.sum(moment, 1)


@triton.jit
def _store(entropy_ptr, logsumexp_ptr, row, inside, maximum, total, moment, ENTROPY: tl.constexpr):
    tl.store(logsumexp_ptr + row, logsumexp_of(maximum, total), mask=inside)
    if ENTROPY:
        entropy = (tl.log2(total) - moment / total) * LN2
        tl.store(entropy_ptr + row, tl.where(total > 0, entropy, float("nan")), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _entropy_kernel(
    logits_ptr, allowed_ptr, entropy_ptr, logsumexp_ptr, parts_ptr, row_stride: tl.int64, allowed_stride: tl.int64,
    rows: tl.int64, columns,
    ENTROPY: tl.constexpr, TYPE: tl.constexpr, SPLIT: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    ptrs = logits_ptr + over_tile(row * row_stride) + column
    allowed_at = over_tile(row * allowed_stride) + column
    maximum = tl.full([ROWS, LANES], float("-inf"), TYPE)
    total = tl.zeros([ROWS, LANES], TYPE)
    moment = tl.zeros([ROWS, LANES], TYPE)
    # Whole tiles without a mask (a program of several rows has one tile, under a mask), and one more with it. Without
    # the entropy, nothing reads the moment, and the compiler drops it.
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    whole = columns // BLOCK * BLOCK if ROWS == 1 else 0
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        x = load_logits(ptrs + start, None, TYPE, allowed_ptr, allowed_at + start)
        maximum, total, moment = _add_tile(x, maximum, total, moment)
    if has_tail(whole, columns, BLOCK):
        mask = over_tile(inside) & (whole + column < columns)
        x = load_logits(ptrs + whole, mask, TYPE, allowed_ptr, allowed_at + whole)
        maximum, total, moment = _add_tile(x, maximum, total, moment)
    maximum, total, moment = _join(maximum, total, moment)
    if SPLIT:
        store_part(parts_ptr, 3 * row, maximum)
        store_part(parts_ptr, 3 * row + 1, total)
        store_part(parts_ptr, 3 * row + 2, moment)
    else:
        _store(entropy_ptr, logsumexp_ptr, row, inside, maximum, total, moment, ENTROPY)


@triton.jit(do_not_specialize=["parts"])
def _join_kernel(parts_ptr, entropy_ptr, logsumexp_ptr, parts, ENTROPY: tl.constexpr, PARTS: tl.constexpr):
    # One row a program, from what the programs that shared it left.
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    maximum, total, moment = _join(
        load_parts(parts_ptr, 3 * row, parts, float("-inf"), PARTS),
        load_parts(parts_ptr, 3 * row + 1, parts, 0.0, PARTS),
        load_parts(parts_ptr, 3 * row + 2, parts, 0.0, PARTS),
    )
    _store(entropy_ptr, logsumexp_ptr, row, row >= 0, maximum, total, moment, ENTROPY)


@triton.jit(do_not_specialize=["rows"])
def _entropy_grad_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, entropy_ptr, grad_ptr, out_ptr, row_stride: tl.int64,
    allowed_stride: tl.int64, rows: tl.int64, columns,
    TYPE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # One tile a program: nothing is reduced.
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    tiles = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.program_id(0) % tiles * BLOCK + tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    allowed_at = over_tile(row * allowed_stride) + column
    x = load_logits(logits_ptr + over_tile(row * row_stride) + column, mask, TYPE, allowed_ptr, allowed_at)
    log2_p = exp2_of(x, over_tile(tl.load(logsumexp_ptr + row, mask=inside) * LOG2E))
    entropy = tl.load(entropy_ptr + row, mask=inside) * LOG2E
    grad = tl.load(grad_ptr + row, mask=inside).to(TYPE) * LN2
    # -g p (log p + H), and 0 where p is.
    out = -over_tile(grad) * tl.exp2(log2_p) * (tl.maximum(log2_p, FAR) + over_tile(entropy))
    tl.store(out_ptr + over_tile(row * columns) + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def _reduce(logits: Tensor, allowed: Tensor | None, with_entropy: bool) -> tuple[Tensor, Tensor]:
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    logsumexp = torch.empty(rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    entropy = torch.empty_like(logsumexp) if with_entropy else logsumexp
    if rows:
        tile = launch.tile(logits)
        split = tile.parts > 1
        parts = logsumexp.new_empty((rows, 3, tile.parts)) if split else logsumexp
        _entropy_kernel[(launch.cdiv(rows, tile.rows), tile.parts)](
            logits, entropy_ptr=entropy, logsumexp_ptr=logsumexp, parts_ptr=parts, row_stride=logits.stride(0),
            rows=rows, columns=columns, ENTROPY=with_entropy, TYPE=compute_type(logits.dtype), SPLIT=split,
            num_warps=tile.warps, **tile.shape, **allowed_arguments(allowed),
        )  # fmt: skip
        if split:
            _join_kernel[(rows,)](
                parts, entropy, logsumexp, tile.parts, ENTROPY=with_entropy, PARTS=launch.next_power_of_2(tile.parts)
            )
    return entropy, logsumexp


@launch.on_its_device
def logsumexp(logits: Tensor, allowed: Tensor | None = None) -> Tensor:
    """log sum exp of each row of `logits` [rows, columns], in the compute dtype; NaN for no distribution. `allowed`:
    see `rows.allowed_arguments`."""
    return _reduce(logits, allowed, with_entropy=False)[1]


@launch.on_its_device
def entropy(logits: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The entropy in nats and the logsumexp of each row of `logits` [rows, columns], in the compute dtype."""
    return _reduce(logits, allowed, with_entropy=True)


@launch.on_its_device
def entropy_grad(
    logits: Tensor, logsumexp: Tensor, entropy: Tensor, grad: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """-g p (log p + H), [rows, columns] in the logits' dtype; `logsumexp`, `entropy` and `grad` are [rows]."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    out = torch.empty((rows, columns), dtype=logits.dtype, device=logits.device)
    if rows:
        tile = launch.tile(logits)
        _entropy_grad_kernel[(launch.cdiv(rows, tile.rows) * launch.cdiv(columns, tile.columns),)](
            logits, logsumexp_ptr=logsumexp.contiguous(), entropy_ptr=entropy.contiguous(), grad_ptr=grad.contiguous(),
            out_ptr=out, row_stride=logits.stride(0), rows=rows, columns=columns, TYPE=compute_type(logits.dtype),
            num_warps=tile.warps, **tile.shape, **allowed_arguments(allowed),
        )  # fmt: skip
    return out
