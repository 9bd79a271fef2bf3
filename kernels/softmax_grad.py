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
from .rows import compute_type, exp2_of, load_logits, with_unit_stride


@triton.jit
def _probs_and_grad(x_ptrs, grad_ptrs, base, mask, TYPE: tl.constexpr):
    p = tl.exp2(exp2_of(load_logits(x_ptrs, mask, TYPE), base[:, None]))
    if mask is None:
        grad = tl.load(grad_ptrs)
    else:
        grad = tl.load(grad_ptrs, mask=mask, other=0.0)
    return p, grad.to(TYPE)


@triton.jit
def _softmax_grad_kernel(
    logits_ptr, logsumexp_ptr, grad_ptr, out_ptr, row_stride: tl.int64, grad_stride: tl.int64, rows: tl.int64, columns,
    TYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.arange(0, BLOCK)[None, :]
    x_start = logits_ptr + (row * row_stride)[:, None] + column
    grad_start = grad_ptr + (row * grad_stride)[:, None] + column
    out_start = out_ptr + (row * columns)[:, None] + column
    base = tl.load(logsumexp_ptr + row, mask=inside, other=0.0) * LOG2E
    if ONE:
        mask = inside[:, None] & (column < columns)
        p, grad = _probs_and_grad(x_start, grad_start, base, mask, TYPE)
        out = p * (grad - tl.sum(p * grad, 1)[:, None])
        tl.store(out_start, out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        whole = columns // BLOCK * BLOCK
        tail = whole + column < columns
        # <p, g>, lane by lane; the lanes are added once.
        dot = tl.zeros([ROWS, BLOCK], TYPE)
        for first in range(0, whole, BLOCK):
            p, grad = _probs_and_grad(x_start + first, grad_start + first, base, None, TYPE)
            dot += p * grad
        if whole < columns:
            p, grad = _probs_and_grad(x_start + whole, grad_start + whole, base, tail, TYPE)
            dot += p * grad
        dot = tl.sum(dot, 1)[:, None]
        for first in range(0, whole, BLOCK):
            p, grad = _probs_and_grad(x_start + first, grad_start + first, base, None, TYPE)
            tl.store(out_start + first, (p * (grad - dot)).to(out_ptr.dtype.element_ty))
        if whole < columns:
            p, grad = _probs_and_grad(x_start + whole, grad_start + whole, base, tail, TYPE)
            tl.store(out_start + whole, (p * (grad - dot)).to(out_ptr.dtype.element_ty), mask=tail)


def softmax_grad(logits: Tensor, logsumexp: Tensor, grad: Tensor) -> Tensor:
    """p (g - <p, g>), [rows, columns] in the logits' dtype, for `grad` of that shape and `logsumexp` [rows]."""
    logits, grad = with_unit_stride(logits), with_unit_stride(grad)
    rows, columns = logits.shape
    out = torch.empty((rows, columns), dtype=logits.dtype, device=logits.device)
    if rows:
        tile = launch.tile(rows, columns)
        _softmax_grad_kernel[(triton.cdiv(rows, tile.rows),)](
            logits, logsumexp, grad, out, logits.stride(0), grad.stride(0), rows, columns,
            TYPE=compute_type(logits.dtype), ROWS=tile.rows, BLOCK=tile.block, ONE=tile.one, num_warps=tile.warps,
        )  # fmt: skip
    return out
