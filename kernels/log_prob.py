"""The log-probability of one-hot rows, or of indices.

k = the first maximum of the value row
log p_k = x_k - logsumexp(x)
dx_j = sum over draws of g ([j = k] - p_j)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .entropy import logsumexp as row_logsumexp
from .noise import LOG2E
from .rows import add_tile, compute_dtype, compute_type, exp2_of, load_logits, logsumexp_of, with_unit_stride


@triton.jit
def _load_value(ptrs, mask, TYPE: tl.constexpr):
    """A tile of the value; where `mask` is False, less than anything."""
    if mask is None:
        value = tl.load(ptrs).to(TYPE)
    else:
        value = tl.load(ptrs, mask=mask, other=0).to(TYPE)
        if TYPE.is_floating():
            value = tl.where(mask, value, float("-inf"))
        else:
            # The least number of the type; its tie with a value that is the least goes to the value, which comes first.
            value = tl.where(mask, value, -1 << (TYPE.primitive_bitwidth - 1))
    return value


@triton.jit
def _add_value(value, column, best, index):
    """The first maximum of each row, [rows], of what was seen and a tile to the right of it."""
    top, at = tl.max(value, 1, return_indices=True)
    return tl.maximum(best, top), tl.where(top > best, column + at, index)


@triton.jit
def _log_prob_kernel(
    logits_ptr, logsumexp_ptr, value_ptr, out_ptr, index_ptr, row_stride: tl.int64, value_stride: tl.int64,
    rows: tl.int64, programs_per_draw: tl.int64, columns,
    KNOWN: tl.constexpr, TYPE: tl.constexpr, VALUE_TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    draw = tl.program_id(0).to(tl.int64) // programs_per_draw
    row = tl.program_id(0).to(tl.int64) % programs_per_draw * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = draw * rows + row
    column = tl.arange(0, BLOCK)[None, :]
    x_start = logits_ptr + (row * row_stride)[:, None]
    value_start = value_ptr + (at * value_stride)[:, None]
    maximum = tl.full([ROWS], float("-inf"), TYPE)
    total = tl.zeros([ROWS], TYPE)
    whole = columns // BLOCK * BLOCK if ROWS == 1 else 0
    # The first tile gives `best` and `index` their first values; a mask costs nothing that is done once.
    mask = inside[:, None] & (column < columns)
    best, index = tl.max(_load_value(value_start + column, mask, VALUE_TYPE), 1, return_indices=True)
    if not KNOWN:
        maximum, total = add_tile(load_logits(x_start + column, mask, TYPE), maximum, total)
    for first in range(BLOCK, whole, BLOCK):
        best, index = _add_value(_load_value(value_start + first + column, None, VALUE_TYPE), first, best, index)
        if not KNOWN:
            maximum, total = add_tile(load_logits(x_start + first + column, None, TYPE), maximum, total)
    if (whole < columns) & (whole > 0):
        mask = inside[:, None] & (whole + column < columns)
        best, index = _add_value(_load_value(value_start + whole + column, mask, VALUE_TYPE), whole, best, index)
        if not KNOWN:
            maximum, total = add_tile(load_logits(x_start + whole + column, mask, TYPE), maximum, total)
    if KNOWN:
        logsumexp = tl.load(logsumexp_ptr + row, mask=inside)
    else:
        logsumexp = logsumexp_of(maximum, total)
        tl.store(logsumexp_ptr + row, logsumexp, mask=inside)
    chosen = tl.load(logits_ptr + row * row_stride + index, mask=inside).to(TYPE)
    tl.store(out_ptr + at, chosen - logsumexp, mask=inside)
    tl.store(index_ptr + at, index.to(tl.int64), mask=inside)


@triton.jit
def _log_prob_index_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, out_ptr, row_stride: tl.int64, rows: tl.int64, count: tl.int64, columns,
    TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    row = at % rows
    index = tl.load(index_ptr + at, mask=inside, other=0)
    exists = inside & (index >= 0) & (index < columns)
    chosen = tl.load(logits_ptr + row * row_stride + index, mask=exists, other=float("nan")).to(TYPE)
    tl.store(out_ptr + at, chosen - tl.load(logsumexp_ptr + row, mask=inside, other=0.0), mask=inside)


@triton.jit
def _log_prob_grad_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, out_ptr, row_stride: tl.int64, rows: tl.int64, columns,
    ONE_DRAW: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One tile of some rows a program: nothing is reduced.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = inside[:, None] & (column < columns)
    x = load_logits(logits_ptr + (row * row_stride)[:, None] + column, mask, TYPE)
    p = tl.exp2(exp2_of(x, (tl.load(logsumexp_ptr + row, mask=inside) * LOG2E)[:, None]))
    grad = tl.load(grad_ptr + row, mask=inside).to(TYPE)[:, None]
    if ONE_DRAW:
        hot = column == tl.load(index_ptr + row, mask=inside, other=-1)[:, None]
        out = tl.where(hot, grad, 0.0) - grad * p
    else:
        out = -grad * p
    tl.store(out_ptr + (row * columns)[:, None] + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def _value_type(dtype: torch.dtype) -> tl.dtype:
    """The type that values are compared in: one that holds every value of `dtype`."""
    if dtype == torch.float64 or dtype == torch.int64:
        return tl.float64 if dtype == torch.float64 else tl.int64
    return tl.float32 if dtype.is_floating_point else tl.int32


def log_prob(logits: Tensor, logsumexp: Tensor | None, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of one-hot rows.

    Args:
        logits: [rows, columns], any row stride.
        logsumexp: [rows], where it is known: then no logit is read but the chosen one.
        value: [draws, rows, columns] of any real dtype.

    Returns:
        log_prob: [draws, rows] in the compute dtype.
        index: int64 [draws, rows], the first maximum of the value row.
        logsumexp: [rows].
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    draws = value.shape[0]
    value = value.contiguous()
    if logsumexp is None and draws != 1:
        logsumexp = row_logsumexp(logits)
    known = logsumexp is not None
    if logsumexp is None:
        logsumexp = torch.empty(rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    out = torch.empty((draws, rows), dtype=logsumexp.dtype, device=logits.device)
    index = torch.empty((draws, rows), dtype=torch.int64, device=logits.device)
    if rows and draws:
        tile = launch.tile(rows, columns)
        programs = triton.cdiv(rows, tile.rows)
        _log_prob_kernel[(programs * draws,)](
            logits, logsumexp, value, out, index, logits.stride(0), columns, rows, programs, columns, KNOWN=known,
            TYPE=compute_type(logits.dtype), VALUE_TYPE=_value_type(value.dtype),
            ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
    return out, index, logsumexp


def log_prob_index(logits: Tensor, logsumexp: Tensor, index: Tensor) -> Tensor:
    """x_k - logsumexp for `index` int64 [draws, rows], in the compute dtype; NaN where it is no column."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    out = torch.empty(index.shape, dtype=logsumexp.dtype, device=logits.device)
    if out.numel():
        _log_prob_index_kernel[(triton.cdiv(out.numel(), launch.INDEX_BLOCK),)](
            logits, logsumexp, index.contiguous(), out, logits.stride(0), rows, out.numel(), columns,
            TYPE=compute_type(logits.dtype), BLOCK=launch.INDEX_BLOCK,
        )  # fmt: skip
    return out


def log_prob_grad(logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor) -> Tensor:
    """sum_s g_s (onehot(k_s) - p), [rows, columns] in the logits' dtype, for `index` and `grad` [draws, rows]."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    draws = index.shape[0]
    # One draw is one write. Of several, the kernel writes -p sum_s g_s, and S numbers per row are added to it: a
    # comparison with every winner at every column would cost more than they do. Added before anything is rounded to
    # half precision, because they nearly cancel where p is near 1.
    dtype = logits.dtype if draws == 1 else compute_dtype(logits.dtype)
    out = torch.empty((rows, columns), dtype=dtype, device=logits.device)
    if rows:
        tile = launch.tile(rows, columns)
        total = grad.contiguous() if draws == 1 else grad.sum(0)
        _log_prob_grad_kernel[(triton.cdiv(rows, tile.rows), triton.cdiv(columns, tile.block))](
            logits, logsumexp, index.contiguous(), total, out, logits.stride(0), rows, columns, ONE_DRAW=draws == 1,
            TYPE=compute_type(logits.dtype), ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.warps,
        )  # fmt: skip
        if draws > 1:
            out.scatter_add_(-1, index.clamp(0, columns - 1).t(), grad.t().to(dtype))
    return out.to(logits.dtype)
