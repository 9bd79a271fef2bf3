"""The backward of soft samples y = softmax(z), z = (x + G) / t, from y alone: z and log y differ by one number per row,
and dz sums to 0, so the noise has no part in it.

    dz = y (g - <g, y>),   dx = sum over draws of dz / t,   dt = -sum over draws of <dz, log y> / t

A row that no tile holds is walked twice, by one kernel for <g, y> and by another for the write, both with several
programs a row where rows are few.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import LN2
from .rows import (
    compute_dtype,
    compute_type,
    inverse_temperature,
    lane_sum,
    load_grad,
    over_tile,
    store_part,
    sum_parts,
    temperature_arguments,
    tile_columns,
    tile_ptrs,
    walk,
    with_unit_stride,
)

# log2 of the least normal float32, for 0: dz is 0 there, and 0 -inf would be NaN.
_LEAST = tl.constexpr(-126.0)
_PER_CALL = ["temperature_ptr", "temperature_stride", "rows"]


@triton.jit
def _add_dot(start, mask, dot, row, TYPE: tl.constexpr):
    """Add a tile to <g, y> of each lane, [1, LANES]."""
    y_ptrs, grad_ptrs = row
    y = load_grad(tile_ptrs(y_ptrs, start), mask, TYPE)
    return dot + lane_sum(y * load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE))


@triton.jit(do_not_specialize=["rows"])
def _soft_dot_kernel(
    y_ptr, y_draw_stride: tl.int64, y_row_stride: tl.int64,
    grad_ptr, grad_draw_stride: tl.int64, grad_row_stride: tl.int64,
    parts_ptr,
    rows: tl.int64, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # <g, y> of a part of one draw of one long row a program.
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    draw = at // rows
    row = at % rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    y_ptrs = tile_ptrs(y_ptr + over_tile(draw * y_draw_stride + row * y_row_stride), column)
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(draw * grad_draw_stride + row * grad_row_stride), column)
    dot = walk(_add_dot, tl.zeros([1, LANES], TYPE), (y_ptrs, grad_ptrs), None, column, columns, TYPE)
    store_part(parts_ptr, at, tl.sum(dot, 1))


@triton.jit
def _write_tile(start, mask, product, known, CONSTANTS: tl.constexpr):
    """Write a tile of dx, which stays in registers over all draws. <g, y> comes from the tile itself where the rows
    are in it whole, else from the PARTS of it. Add <dx, log2 y> to that of each lane, [ROWS, LANES]."""
    DT: tl.constexpr = CONSTANTS[0]
    TYPE: tl.constexpr = CONSTANTS[1]
    PARTS: tl.constexpr = CONSTANTS[2]
    y, grad, out_ptrs, parts_ptr, row, counts, inverse = known
    rows, draws = counts
    y_ptrs = tile_ptrs(y[0], start)
    grad_ptrs = tile_ptrs(grad[0], start)
    out = tl.zeros(y_ptrs.shape, TYPE)
    for draw in range(draws):
        y_of_draw = load_grad(tile_ptrs(y_ptrs, draw * y[1]), mask, TYPE)
        g = load_grad(tile_ptrs(grad_ptrs, draw * grad[1]), mask, TYPE)
        if PARTS == 0:
            dot = tl.sum(lane_sum(y_of_draw * g), 1)
        else:
            dot = sum_parts(parts_ptr, draw * rows + row, tl.num_programs(1), TYPE, PARTS)
        dx = y_of_draw * (g - over_tile(dot)) * over_tile(inverse)
        out += dx
        if DT:
            product += lane_sum(dx * tl.maximum(tl.log2(y_of_draw), _LEAST))
    tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty), mask=mask)
    return product


@triton.jit(do_not_specialize=_PER_CALL, do_not_specialize_on_alignment=["draws"])
def _soft_grad_kernel(
    y_ptr, y_draw_stride: tl.int64, y_row_stride: tl.int64,
    grad_ptr, grad_draw_stride: tl.int64, grad_row_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    parts_ptr,
    out_ptr,
    dt_ptr,
    rows: tl.int64, draws, columns,
    DT: tl.constexpr, TYPE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole, PARTS = 0, or a part of a long row. One draw has no loop: `draws` is specialised.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    y = (tile_ptrs(y_ptr + over_tile(row * y_row_stride), column), y_draw_stride)
    grad = (tile_ptrs(grad_ptr + over_tile(row * grad_row_stride), column), grad_draw_stride)
    out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    known = (y, grad, out_ptrs, parts_ptr, row, (rows, draws), inverse)
    product = tl.zeros([ROWS, LANES], TYPE)
    if PARTS == 0:
        mask = over_tile(inside) & (column < columns)
        product = _write_tile(0, mask, product, known, (DT, TYPE, PARTS))
    else:
        product = walk(_write_tile, product, known, None, column, columns, (DT, TYPE, PARTS))
    if DT:
        dt = -LN2 * tl.sum(product, 1)
        tl.store(dt_ptr + row * tl.num_programs(1) + tl.program_id(1), dt, mask=inside)


@launch.on_its_device
def soft_grad(
    y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradient of soft samples.

    Args:
        y: the samples, [draws, rows, columns], any strides.
        grad: of their shape, any strides.
        temperature: [rows] in the compute dtype, any stride; or one number.
        with_temperature: whether the temperature's gradient is wanted.

    Returns:
        dx: [rows, columns] in the samples' dtype.
        dt: [rows] in the compute dtype; an empty tensor where it is not wanted.
    """
    y, grad = with_unit_stride(y), with_unit_stride(grad)
    draws, rows, columns = y.shape
    compute = compute_dtype(y.dtype)
    out = torch.empty(rows, columns, dtype=y.dtype, device=y.device)
    dt = torch.empty(0, dtype=compute, device=y.device)
    if not (rows and draws):
        return out.zero_(), out.new_zeros(rows, dtype=compute) if with_temperature else dt
    tile = launch.tile(y.select(0, 0), grad.select(0, 0), draws=draws)
    parts = 0 if tile.one else tile.parts
    if with_temperature:
        # What each program of a row adds to it.
        dt = torch.empty(rows, max(1, parts), dtype=compute, device=y.device)
    common = {
        "y_ptr": y, "grad_ptr": grad, "y_draw_stride": y.stride(0), "y_row_stride": y.stride(1),
        "grad_draw_stride": grad.stride(0), "grad_row_stride": grad.stride(1), "rows": rows, "columns": columns,
        "parts_ptr": torch.empty(draws * rows, parts, dtype=compute, device=y.device),
        "TYPE": compute_type(y.dtype), **launch.options(tile.warps), **tile.row_shape,
    }  # fmt: skip
    if parts:
        _soft_dot_kernel[(draws * rows, parts)](**common)
    _soft_grad_kernel[(launch.cdiv(rows, tile.rows), max(1, parts))](
        out_ptr=out, dt_ptr=dt, draws=draws, DT=with_temperature, ROWS=tile.rows,
        PARTS=tile.part_lanes if parts else 0, **temperature_arguments(temperature), **common,
    )  # fmt: skip
    return out, dt.sum(-1) if with_temperature else dt
