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
from .rows import (
    allowed_arguments,
    allowed_row,
    compute_type,
    has_tail,
    lane_sum,
    load_grad,
    load_logits,
    load_logsumexp,
    log2_probs,
    over_tile,
    store_part,
    sum_parts,
    tile_columns,
    tile_ptrs,
    where_allowed,
    with_unit_stride,
)


@triton.jit
def _probs(ptrs, mask, maximum, log_sum, TYPE: tl.constexpr, allowed_ptr=None, allowed_at=0):
    return tl.exp2(log2_probs(load_logits(ptrs, mask, TYPE, allowed_ptr, allowed_at), maximum, log_sum))


@triton.jit
def _row_dot(
    x_ptrs, allowed_ptr, allowed_at, grad_ptrs, column, columns, maximum, log_sum, TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """<p, g>, [1], over this program's tiles of a long row."""
    whole = columns // BLOCK * BLOCK
    dot = tl.zeros([1, column.shape[2]], TYPE)
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        p = _probs(tile_ptrs(x_ptrs, start), None, maximum, log_sum, TYPE, allowed_ptr, allowed_at + start)
        dot += lane_sum(p * load_grad(tile_ptrs(grad_ptrs, start), None, TYPE))
    if has_tail(whole, columns, BLOCK):
        mask = whole + column < columns
        p = _probs(tile_ptrs(x_ptrs, whole), mask, maximum, log_sum, TYPE, allowed_ptr, allowed_at + whole)
        dot += lane_sum(p * load_grad(tile_ptrs(grad_ptrs, whole), mask, TYPE))
    return tl.sum(dot, 1)


@triton.jit
def _write_row(
    x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, column, columns, maximum, log_sum, dot, TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """p (g - <p, g>) of the same tiles, the last one first: what was read last is still in the L2."""
    whole = columns // BLOCK * BLOCK
    dot = over_tile(dot)
    if has_tail(whole, columns, BLOCK):
        mask = whole + column < columns
        p = _probs(tile_ptrs(x_ptrs, whole), mask, maximum, log_sum, TYPE)
        out = p * (load_grad(tile_ptrs(grad_ptrs, whole), mask, TYPE) - dot)
        out = where_allowed(out, 0.0, mask, allowed_ptr, allowed_at + whole)
        tl.store(tile_ptrs(out_ptrs, whole), out.to(out_ptrs.dtype.element_ty), mask=mask)
    turns = tl.cdiv(whole // BLOCK - tl.program_id(1), tl.num_programs(1))
    for turn in range(turns):
        start = (tl.program_id(1) + (turns - 1 - turn) * tl.num_programs(1)) * BLOCK
        p = _probs(tile_ptrs(x_ptrs, start), None, maximum, log_sum, TYPE)
        out = p * (load_grad(tile_ptrs(grad_ptrs, start), None, TYPE) - dot)
        out = where_allowed(out, 0.0, None, allowed_ptr, allowed_at + start)
        tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty))


@triton.jit(do_not_specialize=["rows"])
def _softmax_grad_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, grad_ptr, out_ptr, row_stride: tl.int64, allowed_strides,
    grad_stride: tl.int64, rows: tl.int64, columns,
    TYPE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    p = _probs(x_ptrs, mask, maximum, log_sum, TYPE, allowed_ptr, allowed_at)
    grad = load_grad(tile_ptrs(grad_ptr + over_tile(row * grad_stride), column), mask, TYPE)
    out = p * (grad - over_tile(tl.sum(lane_sum(p * grad), 1)))
    out = where_allowed(out, 0.0, mask, allowed_ptr, allowed_at)
    tl.store(tile_ptrs(out_ptr + over_tile(row * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _rows_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, grad_ptr, out_ptr, row_stride: tl.int64, allowed_strides,
    grad_stride: tl.int64, rows: tl.int64, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Long rows, one after the other: between its two walks a row is to stay in the L2, which holds as few as these.
    column = tile_columns(DEPTH, LANES, VECTOR)
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros([1], tl.int64) + number
        maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
        x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
        allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
        grad_ptrs = tile_ptrs(grad_ptr + over_tile(row * grad_stride), column)
        out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
        dot = _row_dot(x_ptrs, allowed_ptr, allowed_at, grad_ptrs, column, columns, maximum, log_sum, TYPE, BLOCK)
        _write_row(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, column, columns, maximum, log_sum, dot, TYPE, BLOCK
        )


@triton.jit
def _dot_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, grad_ptr, parts_ptr, row_stride: tl.int64, allowed_strides,
    grad_stride: tl.int64, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # <p, g> of a part of a long row a program.
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    column = tile_columns(DEPTH, LANES, VECTOR)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, tl.num_programs(0), None)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(row * grad_stride), column)
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    store_part(
        parts_ptr,
        row,
        _row_dot(x_ptrs, allowed_ptr, allowed_at, grad_ptrs, column, columns, maximum, log_sum, TYPE, BLOCK),
    )


@triton.jit
def _write_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, grad_ptr, parts_ptr, out_ptr, row_stride: tl.int64,
    allowed_strides, grad_stride: tl.int64, columns,
    PARTS: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The same part of the row a program.
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    column = tile_columns(DEPTH, LANES, VECTOR)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, tl.num_programs(0), None)
    dot = sum_parts(parts_ptr, row, tl.num_programs(1), TYPE, PARTS)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(row * grad_stride), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    _write_row(
        x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, column, columns, maximum, log_sum, dot, TYPE, BLOCK
    )


@launch.on_its_device
def softmax_grad(logits: Tensor, logsumexp: Tensor, grad: Tensor, allowed: Tensor | None = None) -> Tensor:
    """p (g - <p, g>), [rows, columns] in the logits' dtype, for `grad` of that shape and `logsumexp` [2, rows];
    `allowed`: see `rows.allowed_arguments`."""
    logits, grad = with_unit_stride(logits), with_unit_stride(grad)
    rows, columns = logits.shape
    out = torch.empty(rows, columns, dtype=logits.dtype, device=logits.device)
    if not rows:
        return out
    tile = launch.tile(logits, grad, twice=True)
    common = {
        "logits_ptr": logits, "logsumexp_ptr": logsumexp.contiguous(), "grad_ptr": grad,
        "row_stride": logits.stride(0), "grad_stride": grad.stride(0), "columns": columns,
        "TYPE": compute_type(logits.dtype), **launch.options(tile.warps), **tile.row_shape,
        **allowed_arguments(allowed),
    }  # fmt: skip
    if tile.one:
        _softmax_grad_kernel[(launch.cdiv(rows, tile.rows),)](out_ptr=out, rows=rows, ROWS=tile.rows, **common)
    elif tile.parts == 1:
        _rows_kernel[(min(rows, launch.multiprocessors(logits)),)](out_ptr=out, rows=rows, **common)
    else:
        parts = logsumexp.new_empty(rows, tile.parts)
        _dot_kernel[(rows, tile.parts)](parts_ptr=parts, **common)
        _write_kernel[(rows, tile.parts)](parts_ptr=parts, out_ptr=out, PARTS=tile.part_lanes, **common)
    return out
