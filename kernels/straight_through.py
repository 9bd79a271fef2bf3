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
    allowed_row,
    compute_dtype,
    compute_type,
    has_tail,
    inverse_temperature,
    lane_sum,
    load_grad,
    load_logits,
    load_logsumexp,
    log2_probs,
    over_lanes,
    over_tile,
    store_part,
    sum_parts,
    temperature_arguments,
    tile_columns,
    tile_ptrs,
    where_allowed,
    with_unit_stride,
)

_GAP = tl.constexpr(1.0)
_PER_CALL = ["temperature_ptr", "temperature_stride", "rows"]


@triton.jit
def _weights(
    ptrs, mask, allowed_ptr, allowed_at, hot, maximum, log_sum, inverse, TYPE: tl.constexpr, METHOD: tl.constexpr
):
    """(w, p) of a tile; p is that of ReinMax alone. At temperature 1 q is p, one exponential and one sum of a
    row less."""
    x = load_logits(ptrs, mask, TYPE, allowed_ptr, allowed_at)
    d = x - over_tile(maximum)
    if METHOD == "gapped":
        w = tl.where(hot, 1.0, tl.exp2(tl.minimum(d, -_GAP) * over_tile(inverse * LOG2E)))
        return w, w
    elif METHOD == "reinmax at 1":
        p = tl.exp2(log2_probs(x, maximum, log_sum))
        return p, p
    else:
        return tl.exp2(d * over_tile(inverse * LOG2E)), tl.exp2(log2_probs(x, maximum, log_sum))


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
def _gradient(w, p, hot, g, total, dot, p_dot, winner_grad, log_sum, inverse, METHOD: tl.constexpr):
    """The gradient of a tile from its rows' sums of w, w g and p g, [ROWS]."""
    mean = dot / total
    if METHOD == "gapped":
        # Where the row is no distribution, its log_sum is NaN, and a minimum may be none.
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
def _tile(
    x_ptrs, allowed_ptr, allowed_at, grad_ptrs, start, mask, column, winner, maximum, log_sum, inverse,
    TYPE: tl.constexpr, METHOD: tl.constexpr,
):  # fmt: skip
    """(w, p, g, where the draw is) of the tile from column `start` on; `mask` is None where it is whole."""
    hot = _hot(winner, start, column)
    w, p = _weights(
        tile_ptrs(x_ptrs, start), mask, allowed_ptr, allowed_at + start, hot, maximum, log_sum, inverse, TYPE, METHOD
    )
    return w, p, load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE), hot


@triton.jit
def _row_sums(
    x_ptrs, allowed_ptr, allowed_at, grad_ptrs, column, columns, winner, maximum, log_sum, inverse, TYPE: tl.constexpr,
    METHOD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of w, w g and p g, [1], over this program's tiles of a long row."""
    whole = columns // BLOCK * BLOCK
    total = tl.zeros([1, column.shape[2]], TYPE)
    dot = tl.zeros([1, column.shape[2]], TYPE)
    p_dot = tl.zeros([1, column.shape[2]], TYPE)
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        w, p, g, _ = _tile(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, start, None, column, winner, maximum, log_sum, inverse, TYPE,
            METHOD,
        )  # fmt: skip
        total += lane_sum(w)
        dot += lane_sum(w * g)
        p_dot += lane_sum(p * g)
    if has_tail(whole, columns, BLOCK):
        w, p, g, _ = _tile(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, whole, whole + column < columns, column, winner, maximum,
            log_sum, inverse, TYPE, METHOD,
        )  # fmt: skip
        total += lane_sum(w)
        dot += lane_sum(w * g)
        p_dot += lane_sum(p * g)
    return tl.sum(total, 1), tl.sum(dot, 1), tl.sum(p_dot, 1)


@triton.jit
def _write_tile(
    x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, start, mask, column, winner, winner_grad, total, dot, p_dot,
    maximum, log_sum, inverse, TYPE: tl.constexpr, METHOD: tl.constexpr,
):  # fmt: skip
    w, p, g, hot = _tile(
        x_ptrs, None, 0, grad_ptrs, start, mask, column, winner, maximum, log_sum, inverse, TYPE, METHOD
    )
    out = _gradient(w, p, hot, g, total, dot, p_dot, winner_grad, log_sum, inverse, METHOD)
    out = where_allowed(out, 0.0, mask, allowed_ptr, allowed_at + start)
    tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit
def _write_row(
    x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, column, columns, winner, winner_grad, total, dot, p_dot,
    maximum, log_sum, inverse, TYPE: tl.constexpr, METHOD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of the same tiles, the last one first: what was read last is still in the L2."""
    whole = columns // BLOCK * BLOCK
    if has_tail(whole, columns, BLOCK):
        _write_tile(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, whole, whole + column < columns, column, winner,
            winner_grad, total, dot, p_dot, maximum, log_sum, inverse, TYPE, METHOD,
        )  # fmt: skip
    turns = tl.cdiv(whole // BLOCK - tl.program_id(1), tl.num_programs(1))
    for turn in range(turns):
        start = (tl.program_id(1) + (turns - 1 - turn) * tl.num_programs(1)) * BLOCK
        _write_tile(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, start, None, column, winner, winner_grad, total, dot,
            p_dot, maximum, log_sum, inverse, TYPE, METHOD,
        )  # fmt: skip


@triton.jit(do_not_specialize=[*_PER_CALL, "programs_per_draw"])
def _tile_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, out_ptr, row_stride: tl.int64,
    allowed_strides, grad_stride: tl.int64, temperature: tl.float64, temperature_stride: tl.int64,
    rows: tl.int64, programs_per_draw, columns,
    METHOD: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole.
    draw = (tl.program_id(0) // programs_per_draw).to(tl.int64)
    row = (tl.program_id(0) % programs_per_draw).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = draw * rows + row
    column = tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    winner, winner_grad = _winner(index_ptr, grad_ptr, at, grad_stride, inside, TYPE, METHOD)
    hot = _hot(winner, 0, column)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    w, p = _weights(x_ptrs, mask, allowed_ptr, allowed_at, hot, maximum, log_sum, inverse, TYPE, METHOD)
    g = load_grad(tile_ptrs(grad_ptr + over_tile(at * grad_stride), column), mask, TYPE)
    total, dot, p_dot = tl.sum(lane_sum(w), 1), tl.sum(lane_sum(w * g), 1), tl.sum(lane_sum(p * g), 1)
    out = _gradient(w, p, hot, g, total, dot, p_dot, winner_grad, log_sum, inverse, METHOD)
    out = where_allowed(out, 0.0, mask, allowed_ptr, allowed_at)
    tl.store(tile_ptrs(out_ptr + over_tile(at * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*_PER_CALL, "draws"])
def _rows_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, out_ptr, row_stride: tl.int64,
    allowed_strides, grad_stride: tl.int64, temperature: tl.float64, temperature_stride: tl.int64,
    rows: tl.int64, draws, columns,
    METHOD: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Long rows, one after the other: between its two walks a row is to stay in the L2, which holds as few as these.
    column = tile_columns(DEPTH, LANES, VECTOR)
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    for number in range(tl.program_id(0), draws * rows, tl.num_programs(0)):
        at = tl.zeros([1], tl.int64) + number
        row = at % rows
        maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
        inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, row >= 0, TYPE)
        winner, winner_grad = _winner(index_ptr, grad_ptr, at, grad_stride, row >= 0, TYPE, METHOD)
        x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
        allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
        grad_ptrs = tile_ptrs(grad_ptr + over_tile(at * grad_stride), column)
        out_ptrs = tile_ptrs(out_ptr + over_tile(at * columns), column)
        total, dot, p_dot = _row_sums(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, column, columns, winner, maximum, log_sum, inverse, TYPE,
            METHOD, BLOCK,
        )  # fmt: skip
        _write_row(
            x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, column, columns, winner, winner_grad, total, dot,
            p_dot, maximum, log_sum, inverse, TYPE, METHOD, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=_PER_CALL)
def _sums_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, parts_ptr, row_stride: tl.int64,
    allowed_strides, grad_stride: tl.int64, temperature: tl.float64, temperature_stride: tl.int64,
    rows: tl.int64, columns,
    METHOD: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The sums of a part of a long row a program.
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = at % rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, row >= 0, TYPE)
    winner = tl.load(index_ptr + at).to(tl.int32)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(at * grad_stride), column)
    total, dot, p_dot = _row_sums(
        x_ptrs, allowed_ptr, allowed_at, grad_ptrs, column, columns, winner, maximum, log_sum, inverse, TYPE, METHOD,
        BLOCK,
    )  # fmt: skip
    store_part(parts_ptr, 3 * at, total)
    store_part(parts_ptr, 3 * at + 1, dot)
    store_part(parts_ptr, 3 * at + 2, p_dot)


@triton.jit(do_not_specialize=_PER_CALL)
def _write_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, parts_ptr, out_ptr,
    row_stride: tl.int64, allowed_strides, grad_stride: tl.int64, temperature: tl.float64,
    temperature_stride: tl.int64, rows: tl.int64, columns,
    METHOD: tl.constexpr, PARTS: tl.constexpr, TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    # The same part of the row a program.
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = at % rows
    column = tile_columns(DEPTH, LANES, VECTOR)
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, row >= 0, TYPE)
    winner, winner_grad = _winner(index_ptr, grad_ptr, at, grad_stride, row >= 0, TYPE, METHOD)
    parts = tl.num_programs(1)
    total = sum_parts(parts_ptr, 3 * at, parts, TYPE, PARTS)
    dot = sum_parts(parts_ptr, 3 * at + 1, parts, TYPE, PARTS)
    p_dot = sum_parts(parts_ptr, 3 * at + 2, parts, TYPE, PARTS)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(at * grad_stride), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(at * columns), column)
    _write_row(
        x_ptrs, allowed_ptr, allowed_at, grad_ptrs, out_ptrs, column, columns, winner, winner_grad, total, dot, p_dot,
        maximum, log_sum, inverse, TYPE, METHOD, BLOCK,
    )  # fmt: skip


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
