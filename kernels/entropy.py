"""Entropy, and the logsumexp by itself.

In log2 units, with d_j = x_j log2(e) - M, S = sum 2^d_j and T = sum 2^d_j d_j:

    logsumexp = ln2 (M + log2 S)
    H = ln2 (log2 S - T / S)                           no rounding of the logsumexp enters it
    dH / dx_j = -p_j (log p_j + H)

When the running maximum grows by a, every d shrinks by a: S becomes S 2^-a, T becomes (T - a S) 2^-a.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import LN2, LOG2E
from .rows import compute_dtype, compute_type, exp2_of, load_logits, logsumexp_of, or_zero, with_unit_stride

# Stands for the -inf that d is where a weight is 0, so that their product is 0: 2^-16384 is 0 in float64 too.
_FAR = tl.constexpr(-16384.0)


@triton.jit
def _add_tile(x, maximum, total, moment, ENTROPY: tl.constexpr):
    """Adds a tile x [rows, columns] to (M, S, T) [rows]."""
    new = tl.maximum(maximum, tl.max(x, 1) * LOG2E)
    base = or_zero(new)
    scale = tl.exp2(maximum - base)
    d = exp2_of(x, base[:, None])
    weight = tl.exp2(d)
    if ENTROPY:
        # Before the first finite logit S and T are 0, and the growth is of no consequence.
        grown = base - or_zero(maximum)
        moment = (moment - grown * total) * scale + tl.sum(weight * tl.maximum(d, _FAR), 1)
    return new, total * scale + tl.sum(weight, 1), moment


@triton.jit
def _entropy_kernel(
    logits_ptr, entropy_ptr, logsumexp_ptr, row_stride: tl.int64, rows: tl.int64, columns,
    ENTROPY: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.arange(0, BLOCK)[None, :]
    start = logits_ptr + (row * row_stride)[:, None]
    maximum = tl.full([ROWS], float("-inf"), TYPE)
    total = tl.zeros([ROWS], TYPE)
    moment = tl.zeros([ROWS], TYPE)
    # Whole tiles without a mask (a program of several rows has one tile, which is not whole), and one more with it.
    whole = columns // BLOCK * BLOCK if ROWS == 1 else 0
    for first in range(0, whole, BLOCK):
        x = load_logits(start + first + column, None, TYPE)
        maximum, total, moment = _add_tile(x, maximum, total, moment, ENTROPY)
    if whole < columns:
        x = load_logits(start + whole + column, inside[:, None] & (whole + column < columns), TYPE)
        maximum, total, moment = _add_tile(x, maximum, total, moment, ENTROPY)
    logsumexp = logsumexp_of(maximum, total)
    tl.store(logsumexp_ptr + row, logsumexp, mask=inside)
    if ENTROPY:
        entropy = (tl.log2(total) - moment / total) * LN2
        tl.store(entropy_ptr + row, tl.where(total > 0, entropy, float("nan")), mask=inside)


@triton.jit
def _entropy_grad_kernel(
    logits_ptr, logsumexp_ptr, entropy_ptr, grad_ptr, out_ptr, row_stride: tl.int64, rows: tl.int64, columns,
    TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One tile of some rows a program: nothing is reduced.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = inside[:, None] & (column < columns)
    x = load_logits(logits_ptr + (row * row_stride)[:, None] + column, mask, TYPE)
    log2_p = exp2_of(x, (tl.load(logsumexp_ptr + row, mask=inside) * LOG2E)[:, None])
    entropy = tl.load(entropy_ptr + row, mask=inside) * LOG2E
    grad = tl.load(grad_ptr + row, mask=inside).to(TYPE) * LN2
    # -g p (log p + H), and 0 where p is.
    out = -grad[:, None] * tl.exp2(log2_p) * (tl.maximum(log2_p, _FAR) + entropy[:, None])
    tl.store(out_ptr + (row * columns)[:, None] + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def _reduce(logits: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    logsumexp = torch.empty(rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    entropy = torch.empty_like(logsumexp) if with_entropy else logsumexp
    if rows:
        tile = launch.tile(rows, columns)
        _entropy_kernel[(triton.cdiv(rows, tile.rows),)](
            logits, entropy, logsumexp, logits.stride(0), rows, columns, ENTROPY=with_entropy,
            TYPE=compute_type(logits.dtype), ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
    return entropy, logsumexp


def logsumexp(logits: Tensor) -> Tensor:
    """log sum exp of each row of `logits` [rows, columns], in the compute dtype; NaN where it is no distribution."""
    return _reduce(logits, with_entropy=False)[1]


def entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy in nats and the logsumexp of each row of `logits` [rows, columns], in the compute dtype."""
    return _reduce(logits, with_entropy=True)


def entropy_grad(logits: Tensor, logsumexp: Tensor, entropy: Tensor, grad: Tensor) -> Tensor:
    """-g p (log p + H), [rows, columns] in the logits' dtype; `logsumexp`, `entropy` and `grad` are [rows]."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    out = torch.empty((rows, columns), dtype=logits.dtype, device=logits.device)
    if rows:
        tile = launch.tile(rows, columns)
        _entropy_grad_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.block))](
            logits, logsumexp, entropy, grad.contiguous(), out, logits.stride(0), rows, columns,
            TYPE=compute_type(logits.dtype), ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
    return out
