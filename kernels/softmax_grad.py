"""The PassThrough backward.

    p_j = exp(x_j - logsumexp)
    dx_j = p_j (g_j - <p, g>)

p is computed again from the logits and the saved logsumexp: nothing of the size of a row is kept from the forward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import LOG2E
from .rows import (
    allowed_arguments,
    compute_type,
    exp2_of,
    lane_sum,
    load_grad,
    load_logits,
    over_tile,
    tile_columns,
    with_unit_stride,
)


@triton.jit
def _probs(ptrs, mask, base, TYPE: tl.constexpr, allowed_ptr, allowed_at):
    return tl.exp2(exp2_of(load_logits(ptrs, mask, TYPE, allowed_ptr, allowed_at), over_tile(base)))


@triton.jit(do_not_specialize=["rows"])
def _softmax_grad_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, grad_ptr, out_ptr, row_stride: tl.int64, allowed_stride: tl.int64,
    grad_stride: tl.int64, rows: tl.int64, columns,
    TYPE: tl.constexpr, ONE: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    x_ptrs = logits_ptr + over_tile(row * row_stride) + column
    allowed_at = over_tile(row * allowed_stride) + column
    grad_ptrs = grad_ptr + over_tile(row * grad_stride) + column
    out_ptrs = out_ptr + over_tile(row * columns) + column
    base = tl.load(logsumexp_ptr + row, mask=inside, other=0.0) * LOG2E
    if ONE:
        mask = over_tile(inside) & (column < columns)
        p = _probs(x_ptrs, mask, base, TYPE, allowed_ptr, allowed_at)
        grad = load_grad(grad_ptrs, mask, TYPE)
        dot = tl.sum(lane_sum(p * grad), 1)
        tl.store(out_ptrs, (p * (grad - over_tile(dot))).to(out_ptr.dtype.element_ty), mask=mask)
    else:
        BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
        whole = columns // BLOCK * BLOCK
        tail = over_tile(inside) & (whole + column < columns)
        dot = tl.zeros([ROWS, LANES], TYPE)
        for start in range(0, whole, BLOCK):
            p = _probs(x_ptrs + start, None, base, TYPE, allowed_ptr, allowed_at + start)
            dot += lane_sum(p * load_grad(grad_ptrs + start, None, TYPE))
        if whole < columns:
            p = _probs(x_ptrs + whole, tail, base, TYPE, allowed_ptr, allowed_at + whole)
            dot += lane_sum(p * load_grad(grad_ptrs + whole, tail, TYPE))
        dot = over_tile(tl.sum(dot, 1))
        for start in range(0, whole, BLOCK):
            p = _probs(x_ptrs + start, None, base, TYPE, allowed_ptr, allowed_at + start)
            out = p * (load_grad(grad_ptrs + start, None, TYPE) - dot)
            tl.store(out_ptrs + start, out.to(out_ptr.dtype.element_ty))
        if whole < columns:
            p = _probs(x_ptrs + whole, tail, base, TYPE, allowed_ptr, allowed_at + whole)
            out = p * (load_grad(grad_ptrs + whole, tail, TYPE) - dot)
            tl.store(out_ptrs + whole, out.to(out_ptr.dtype.element_ty), mask=tail)


def softmax_grad(logits: Tensor, logsumexp: Tensor, grad: Tensor, allowed: Tensor | None = None) -> Tensor:
    """p (g - <p, g>), [rows, columns] in the logits' dtype, for `grad` of that shape and `logsumexp` [rows]; `allowed`:
    see `rows.allowed_arguments`."""
    logits, grad = with_unit_stride(logits), with_unit_stride(grad)
    rows, columns = logits.shape
    out = torch.empty((rows, columns), dtype=logits.dtype, device=logits.device)
    if rows:
        tile = launch.tile(logits, grad)
        _softmax_grad_kernel[(triton.cdiv(rows, tile.rows),)](
            logits, logsumexp_ptr=logsumexp.contiguous(), grad_ptr=grad, out_ptr=out, row_stride=logits.stride(0),
            grad_stride=grad.stride(0), rows=rows, columns=columns, TYPE=compute_type(logits.dtype), ONE=tile.one,
            num_warps=tile.warps, **tile.shape, **allowed_arguments(allowed),
        )  # fmt: skip
    return out
