"""The ReinMax and GappedStraightThrough backwards, of a draw of column k; J(m) g = m (g - <m, g>), d = x - max x.

    ReinMax                 dx = 2 J(m) g - J(p) g / 2,  m = (q + onehot(k)) / 2,  q = softmax(x / t)
                               = 2 m (g - (<q, g> + g_k) / 2) - p (g - <p, g>) / 2
    GappedStraightThrough   dx = J(y) g / t,  y = w / sum w,  w_k = 1,  w_j = exp(min(d_j, -1) / t)

(https://arxiv.org/abs/2304.08612, https://arxiv.org/abs/2206.07235). Both are made of the weights w, exp(d / t) for
ReinMax, and of the row's sums of w, w g and p g. p is computed again from the logits and the saved logsumexp: nothing
of the size of a row is kept from the forward. Each draw is a row of its own, of the same logits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import LOG2E
from .rows import (
    allowed_arguments,
    compute_dtype,
    compute_type,
    exp2_of,
    inverse_temperature,
    lane_sum,
    load_grad,
    load_logits,
    load_logsumexp,
    over_lanes,
    over_tile,
    row_logits,
    store_part,
    sum_parts,
    temperature_arguments,
    tile_columns,
    tile_logits,
    tile_ptrs,
    walk,
    walk_back,
    where_allowed,
    with_unit_stride,
    without_mask,
)

_GAP = tl.constexpr(1.0)
_PER_CALL = ["temperature_ptr", "temperature_stride", "rows"]


@triton.jit
def _weights(logits, start, mask, hot, law, TYPE: tl.constexpr, METHOD: tl.constexpr):
    """(w, p) of a tile from column `start` on; p is ReinMax's alone. `law` is what is known of the rows. At temperature
    1 q is p, which saves an exponential and a sum of the row."""
    maximum, log_sum, inverse = law
    d = load_logits(logits, start, mask, TYPE) - over_tile(maximum)
    if METHOD == "gapped":
        w = tl.where(hot, 1.0, tl.exp2(tl.minimum(d, -_GAP) * over_tile(inverse * LOG2E)))
        return w, w
    elif METHOD == "reinmax at 1":
        p = tl.exp2(exp2_of(d, over_tile(log_sum * LOG2E)))
        return p, p
    else:
        return tl.exp2(d * over_tile(inverse * LOG2E)), tl.exp2(exp2_of(d, over_tile(log_sum * LOG2E)))


@triton.jit
def _hot(winner, start, column):
    """Where the draw is in a tile from column `start` on, [DEPTH, ROWS, LANES, VECTOR], as `column` but for the rows.
    The columns of a lane are constants, and the winner counts from its first one: a comparison an element, and no
    addition."""
    DEPTH: tl.constexpr = column.shape[0]
    LANES: tl.constexpr = column.shape[2]
    VECTOR: tl.constexpr = column.shape[3]
    lane = tl.arange(0, LANES)[None, :] * VECTOR
    depth = tl.arange(0, DEPTH)[:, None, None, None] * (LANES * VECTOR)
    return over_lanes((winner - start)[:, None] - lane) == depth + tl.arange(0, VECTOR)[None, None, None, :]


@triton.jit
def _gradient(w, p, hot, g, sums, winner_grad, law, METHOD: tl.constexpr):
    """The gradient of a tile from its rows' sums of w, w g and p g, [ROWS]."""
    total, dot, p_dot = sums
    _, log_sum, inverse = law
    mean = dot / total
    if METHOD == "gapped":
        # The log_sum of an invalid row is NaN. A minimum may drop the NaN of its logits.
        scale = tl.where(log_sum == log_sum, inverse / total, float("nan"))
        return w * (g * over_tile(scale) - over_tile(scale * mean))
    else:
        scale = 1 / total
        if METHOD == "reinmax at 1":
            scale, mean = tl.full(total.shape, 1.0, total.dtype), dot
        mean = (mean + winner_grad) * 0.5
        out = w * (g * over_tile(scale) - over_tile(scale * mean)) - p * (g * 0.5 - over_tile(p_dot * 0.5))
        return out + tl.where(hot, over_tile(winner_grad - mean), 0.0)


@triton.jit
def _winner(index_ptr, grad_ptr, at, grad_stride, inside, TYPE: tl.constexpr, METHOD: tl.constexpr):
    """The drawn column of each row, -1 for none, and the incoming gradient there, of ReinMax alone."""
    winner = tl.load(index_ptr + at, mask=inside, other=-1)
    if METHOD == "gapped":
        grad = tl.zeros(at.shape, TYPE)
    else:
        grad = tl.load(grad_ptr + at * grad_stride + winner, mask=winner >= 0, other=0.0).to(TYPE)
    # No row has more columns than 2^30.
    return winner.to(tl.int32), grad


@triton.jit
def _law(logsumexp_ptr, temperature_ptr, temperature, temperature_stride, row, rows, inside, TYPE: tl.constexpr):
    """(maximum, log_sum, 1 / t) of rows."""
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    return maximum, log_sum, inverse


@triton.jit
def _add_tile(start, mask, sums, row, CONSTANTS: tl.constexpr):
    """Add a tile to the sums of w, w g and p g of each lane, [1, LANES]."""
    TYPE: tl.constexpr = CONSTANTS[0]
    total, dot, p_dot = sums
    logits, grad_ptrs, column, winner, law = row
    hot = _hot(winner, start, column)
    w, p = _weights(logits, start, mask, hot, law, TYPE, CONSTANTS[1])
    g = load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE)
    return total + lane_sum(w), dot + lane_sum(w * g), p_dot + lane_sum(p * g)


@triton.jit
def _row_sums(logits, grad_ptrs, column, columns, winner, law, TYPE: tl.constexpr, METHOD: tl.constexpr):
    """The sums of w, w g and p g, [1], over this program's tiles of a long row."""
    zeros = tl.zeros([1, column.shape[2]], TYPE)
    row = (logits, grad_ptrs, column, winner, law)
    total, dot, p_dot = walk(_add_tile, (zeros, zeros, zeros), row, None, column, columns, (TYPE, METHOD))
    return tl.sum(total, 1), tl.sum(dot, 1), tl.sum(p_dot, 1)


@triton.jit
def _write_tile(start, mask, row, CONSTANTS: tl.constexpr):
    """Write the gradient of a tile."""
    TYPE: tl.constexpr = CONSTANTS[0]
    METHOD: tl.constexpr = CONSTANTS[1]
    logits, grad_ptrs, out_ptrs, column, winner, winner_grad, law, sums = row
    hot = _hot(winner, start, column)
    w, p = _weights(without_mask(logits), start, mask, hot, law, TYPE, METHOD)
    g = load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE)
    out = where_allowed(_gradient(w, p, hot, g, sums, winner_grad, law, METHOD), 0.0, logits, start, mask)
    tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*_PER_CALL, "programs_per_draw"])
def _tile_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr, grad_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    out_ptr,
    rows: tl.int64, programs_per_draw, columns,
    METHOD: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole.
    draw = (tl.program_id(0) // programs_per_draw).to(tl.int64)
    row = (tl.program_id(0) % programs_per_draw).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = draw * rows + row
    column = tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    law = _law(logsumexp_ptr, temperature_ptr, temperature, temperature_stride, row, rows, inside, TYPE)
    winner, winner_grad = _winner(index_ptr, grad_ptr, at, grad_stride, inside, TYPE, METHOD)
    hot = _hot(winner, 0, column)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    w, p = _weights(logits, 0, mask, hot, law, TYPE, METHOD)
    g = load_grad(tile_ptrs(grad_ptr + over_tile(at * grad_stride), column), mask, TYPE)
    sums = (tl.sum(lane_sum(w), 1), tl.sum(lane_sum(w * g), 1), tl.sum(lane_sum(p * g), 1))
    out = where_allowed(_gradient(w, p, hot, g, sums, winner_grad, law, METHOD), 0.0, logits, 0, mask)
    tl.store(tile_ptrs(out_ptr + over_tile(at * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*_PER_CALL, "draws"])
def _rows_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr, grad_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    out_ptr,
    rows: tl.int64, draws, columns,
    METHOD: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Long rows, one after the other: between its two walks a row is to stay in the L2, which holds as few as these.
    column = tile_columns(DEPTH, LANES, VECTOR)
    for number in range(tl.program_id(0), draws * rows, tl.num_programs(0)):
        at = tl.zeros([1], tl.int64) + number
        row = at % rows
        law = _law(logsumexp_ptr, temperature_ptr, temperature, temperature_stride, row, rows, None, TYPE)
        winner, winner_grad = _winner(index_ptr, grad_ptr, at, grad_stride, row >= 0, TYPE, METHOD)
        logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
        grad_ptrs = tile_ptrs(grad_ptr + over_tile(at * grad_stride), column)
        out_ptrs = tile_ptrs(out_ptr + over_tile(at * columns), column)
        sums = _row_sums(logits, grad_ptrs, column, columns, winner, law, TYPE, METHOD)
        known = (logits, grad_ptrs, out_ptrs, column, winner, winner_grad, law, sums)
        walk_back(_write_tile, known, column, columns, (TYPE, METHOD))


@triton.jit(do_not_specialize=_PER_CALL)
def _sums_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr, grad_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    parts_ptr,
    rows: tl.int64, columns,
    METHOD: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The sums of a part of a long row a program.
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = at % rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    law = _law(logsumexp_ptr, temperature_ptr, temperature, temperature_stride, row, rows, None, TYPE)
    winner = tl.load(index_ptr + at).to(tl.int32)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(at * grad_stride), column)
    total, dot, p_dot = _row_sums(logits, grad_ptrs, column, columns, winner, law, TYPE, METHOD)
    store_part(parts_ptr, 3 * at, total)
    store_part(parts_ptr, 3 * at + 1, dot)
    store_part(parts_ptr, 3 * at + 2, p_dot)


@triton.jit(do_not_specialize=_PER_CALL)
def _write_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr, grad_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    parts_ptr,
    out_ptr,
    rows: tl.int64, columns,
    METHOD: tl.constexpr, PARTS: tl.constexpr, TYPE: tl.constexpr,
    DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The same part of the row a program.
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = at % rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    law = _law(logsumexp_ptr, temperature_ptr, temperature, temperature_stride, row, rows, None, TYPE)
    winner, winner_grad = _winner(index_ptr, grad_ptr, at, grad_stride, row >= 0, TYPE, METHOD)
    parts = tl.num_programs(1)
    total = sum_parts(parts_ptr, 3 * at, parts, TYPE, PARTS)
    dot = sum_parts(parts_ptr, 3 * at + 1, parts, TYPE, PARTS)
    p_dot = sum_parts(parts_ptr, 3 * at + 2, parts, TYPE, PARTS)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(at * grad_stride), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(at * columns), column)
    known = (logits, grad_ptrs, out_ptrs, column, winner, winner_grad, law, (total, dot, p_dot))
    walk_back(_write_tile, known, column, columns, (TYPE, METHOD))


def _straight_through(
    logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor, temperature: Tensor | float,
    allowed: Tensor | None, method: str,
) -> Tensor:  # fmt: skip
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    draws = index.shape[0]
    # One draw is the result itself, the rows of several are added up.
    dtype = logits.dtype if draws == 1 else compute_dtype(logits.dtype)
    out = torch.empty(draws * rows, columns, dtype=dtype, device=logits.device)
    if rows and draws:
        grad = with_unit_stride(grad.reshape(draws * rows, columns))
        tile = launch.tile(logits, grad, draws=draws, twice=True)
        common = {
            "logits_ptr": logits, "logsumexp_ptr": logsumexp.contiguous(), "index_ptr": index.contiguous(),
            "grad_ptr": grad, "row_stride": logits.stride(0), "grad_stride": grad.stride(0), "rows": rows,
            "columns": columns, "METHOD": method, "TYPE": compute_type(logits.dtype), **launch.options(tile.warps),
            **tile.row_shape, **temperature_arguments(temperature), **allowed_arguments(allowed),
        }  # fmt: skip
        if tile.one:
            programs = launch.cdiv(rows, tile.rows)
            _tile_kernel[(programs * draws,)](out_ptr=out, programs_per_draw=programs, ROWS=tile.rows, **common)
        elif tile.parts == 1:
            _rows_kernel[(min(draws * rows, launch.multiprocessors(logits)),)](out_ptr=out, draws=draws, **common)
        else:
            parts = logsumexp.new_empty(draws * rows, 3, tile.parts)
            _sums_kernel[(draws * rows, tile.parts)](parts_ptr=parts, **common)
            _write_kernel[(draws * rows, tile.parts)](parts_ptr=parts, out_ptr=out, PARTS=tile.part_lanes, **common)
    return out if draws == 1 else out.view(draws, rows, columns).sum(0).to(logits.dtype)


@launch.on_its_device
def reinmax_grad(
    logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor, temperature: Tensor | float,
    allowed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The ReinMax gradient, summed over draws, [rows, columns] in the logits' dtype.

    Args:
        logits: [rows, columns], any row stride.
        logsumexp: [2, rows], see `entropy.logsumexp`.
        index: int64 [draws, rows], the columns drawn.
        grad: [draws, rows, columns].
        temperature: [rows] in the compute dtype, any stride; or one number.
        allowed: see `rows.allowed_arguments`.
    """
    method = "reinmax at 1" if not isinstance(temperature, Tensor) and temperature == 1 else "reinmax"
    return _straight_through(logits, logsumexp, index, grad, temperature, allowed, method)


@launch.on_its_device
def gapped_grad(
    logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor, temperature: Tensor | float,
    allowed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The GappedStraightThrough gradient, summed over draws; the arguments are those of `reinmax_grad`."""
    return _straight_through(logits, logsumexp, index, grad, temperature, allowed, "gapped")
