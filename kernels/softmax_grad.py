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
    compute_type,
    lane_sum,
    load_grad,
    load_logits,
    load_logsumexp,
    log2_probs,
    over_tile,
    row_logits,
    store_part,
    sum_parts,
    tile_columns,
    tile_logits,
    tile_ptrs,
    walk,
    walk_back,
    where_allowed,
    with_unit_stride,
    without_mask,
)


@triton.jit
def _probs(logits, start, mask, maximum, log_sum, TYPE: tl.constexpr):
    return tl.exp2(log2_probs(load_logits(logits, start, mask, TYPE), maximum, log_sum))


@triton.jit
def _add_dot(start, mask, dot, row, TYPE: tl.constexpr):
    """Add a tile to <p, g> of each lane, [1, LANES]."""
    logits, grad_ptrs, maximum, log_sum = row
    p = _probs(logits, start, mask, maximum, log_sum, TYPE)
    return dot + lane_sum(p * load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE))


@triton.jit
def _write_tile(start, mask, row, TYPE: tl.constexpr):
    """Write p (g - <p, g>) of a tile."""
    logits, grad_ptrs, out_ptrs, maximum, log_sum, dot = row
    p = _probs(without_mask(logits), start, mask, maximum, log_sum, TYPE)
    out = p * (load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE) - over_tile(dot))
    out = where_allowed(out, 0.0, logits, start, mask)
    tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _softmax_grad_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    grad_ptr, grad_stride: tl.int64,
    out_ptr,
    rows: tl.int64, columns,
    TYPE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    p = _probs(logits, 0, mask, maximum, log_sum, TYPE)
    grad = load_grad(tile_ptrs(grad_ptr + over_tile(row * grad_stride), column), mask, TYPE)
    out = p * (grad - over_tile(tl.sum(lane_sum(p * grad), 1)))
    out = where_allowed(out, 0.0, logits, 0, mask)
    tl.store(tile_ptrs(out_ptr + over_tile(row * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _rows_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    grad_ptr, grad_stride: tl.int64,
    out_ptr,
    rows: tl.int64, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Long rows, one after the other: between its two walks a row is to stay in the L2, which holds as few as these.
    column = tile_columns(DEPTH, LANES, VECTOR)
    for number in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.zeros([1], tl.int64) + number
        maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
        logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
        grad_ptrs = tile_ptrs(grad_ptr + over_tile(row * grad_stride), column)
        out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
        dot = tl.zeros([1, LANES], TYPE)
        dot = tl.sum(walk(_add_dot, dot, (logits, grad_ptrs, maximum, log_sum), None, column, columns, TYPE), 1)
        walk_back(_write_tile, (logits, grad_ptrs, out_ptrs, maximum, log_sum, dot), column, columns, TYPE)


@triton.jit
def _dot_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    grad_ptr, grad_stride: tl.int64,
    parts_ptr,
    columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # <p, g> of a part of a long row a program.
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    column = tile_columns(DEPTH, LANES, VECTOR)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, tl.num_programs(0), None)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(row * grad_stride), column)
    dot = tl.zeros([1, LANES], TYPE)
    dot = walk(_add_dot, dot, (logits, grad_ptrs, maximum, log_sum), None, column, columns, TYPE)
    store_part(parts_ptr, row, tl.sum(dot, 1))


@triton.jit
def _write_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    grad_ptr, grad_stride: tl.int64,
    parts_ptr,
    out_ptr,
    columns,
    PARTS: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The same part of the row a program.
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    column = tile_columns(DEPTH, LANES, VECTOR)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, tl.num_programs(0), None)
    dot = sum_parts(parts_ptr, row, tl.num_programs(1), TYPE, PARTS)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(row * grad_stride), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
    walk_back(_write_tile, (logits, grad_ptrs, out_ptrs, maximum, log_sum, dot), column, columns, TYPE)


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
