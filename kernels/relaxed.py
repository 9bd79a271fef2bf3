"""Relaxed (Gumbel-softmax) samples, and the RelaxedOneHot backward.

    relaxed        y = softmax((x + G) / t),  G = -log E,  E iid Exp(1)

    relaxed_grad   dx = sum over draws of y (g - <y, g>) / t, with y drawn from its law given that column k won:
                   s_k = -log E_k,  s_j = -log(E_j / p_j + E_k),  y = softmax(s / t)       [Maddison et al. 2014]

s_k is the maximum, so with it taken out the weights need no online maximum:

                   w_k = 1,  w_j = (1 + E_j / (p_j E_k))^(-1 / t),  y = w / sum w,  <y, g> = sum w g / sum w

The noise is drawn in four quarters of a group of columns, see `noise.py`: a tile is [rows or groups, quarter] four
times over. A row longer than a group is walked twice with the same noise, for the sums and for the write.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import (
    GROUP,
    LOG2E,
    POSTERIOR,
    RELAXED,
    WINNER_CALL,
    exponential32,
    exponential64,
    fast_log2,
    load_key,
    seed_arguments,
    words,
)
from .rows import compute_type, exp2_of, load_logits, or_zero, with_unit_stride

_GROUP = tl.constexpr(GROUP)
_QUARTER = tl.constexpr(GROUP // 4)


@triton.jit
def _load_quarters(start, column, mask, columns, QUARTER: tl.constexpr, TYPE: tl.constexpr, MASKED: tl.constexpr):
    """Four tiles of logits, a quarter of a group apart; -inf outside of the row where MASKED."""
    if MASKED:
        x0 = load_logits(start + column, mask & (column < columns), TYPE)
        x1 = load_logits(start + column + QUARTER, mask & (column + QUARTER < columns), TYPE)
        x2 = load_logits(start + column + 2 * QUARTER, mask & (column + 2 * QUARTER < columns), TYPE)
        x3 = load_logits(start + column + 3 * QUARTER, mask & (column + 3 * QUARTER < columns), TYPE)
    else:
        x0 = load_logits(start + column, None, TYPE)
        x1 = load_logits(start + column + QUARTER, None, TYPE)
        x2 = load_logits(start + column + 2 * QUARTER, None, TYPE)
        x3 = load_logits(start + column + 3 * QUARTER, None, TYPE)
    return x0, x1, x2, x3


@triton.jit
def _load_quarter(ptrs, mask, TYPE: tl.constexpr, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(ptrs, mask=mask, other=0.0).to(TYPE)
    else:
        return tl.load(ptrs).to(TYPE)


@triton.jit
def _store_quarter(ptrs, value, mask, MASKED: tl.constexpr):
    if MASKED:
        tl.store(ptrs, value.to(ptrs.dtype.element_ty), mask=mask)
    else:
        tl.store(ptrs, value.to(ptrs.dtype.element_ty))


# Soft samples ---------------------------------------------------------------------------------------------------------


@triton.jit
def _score(x, reference, word, inverse, TYPE: tl.constexpr):
    """(x - reference + Gumbel) / t in log2 units. The reference is subtracted first: added to a large |x|, the noise
    would be rounded away."""
    return exp2_of(x - reference, fast_log2(exponential32(word)).to(TYPE)) * inverse


@triton.jit
def _max4(a, b, c, d, AXIS: tl.constexpr):
    return tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), AXIS)


@triton.jit
def _relaxed_short_kernel(
    logits_ptr, temperature_ptr, out_ptr, seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    row_stride: tl.int64, temperature_stride: tl.int64, rows: tl.int64, draws: tl.int64, columns,
    SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    # Rows of one group stay in registers over all draws.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    mask = inside[:, None]
    column = tl.arange(0, QUARTER)[None, :]
    start = logits_ptr + (row * row_stride)[:, None]
    x0, x1, x2, x3 = _load_quarters(start, column, mask, columns, QUARTER, TYPE, True)
    top = _max4(x0, x1, x2, x3, 1)[:, None]
    inverse = (1.0 / tl.load(temperature_ptr + row * temperature_stride, mask=inside, other=1.0).to(TYPE))[:, None]
    for draw in range(tl.program_id(1).to(tl.int64), draws, tl.num_programs(1)):
        w0, w1, w2, w3 = words(RELAXED, column, (row + row_offset)[:, None], draw, key, counter3)
        z0 = _score(x0, top, w0, inverse, TYPE)
        z1 = _score(x1, top, w1, inverse, TYPE)
        z2 = _score(x2, top, w2, inverse, TYPE)
        z3 = _score(x3, top, w3, inverse, TYPE)
        maximum = _max4(z0, z1, z2, z3, 1)[:, None]
        z0, z1, z2, z3 = tl.exp2(z0 - maximum), tl.exp2(z1 - maximum), tl.exp2(z2 - maximum), tl.exp2(z3 - maximum)
        scale = 1.0 / tl.sum(z0 + z1 + z2 + z3, 1)[:, None]
        out = out_ptr + ((draw * rows + row) * columns)[:, None] + column
        _store_quarter(out, z0 * scale, mask & (column < columns), True)
        _store_quarter(out + QUARTER, z1 * scale, mask & (column + QUARTER < columns), True)
        _store_quarter(out + 2 * QUARTER, z2 * scale, mask & (column + 2 * QUARTER < columns), True)
        _store_quarter(out + 3 * QUARTER, z3 * scale, mask & (column + 3 * QUARTER < columns), True)


@triton.jit
def _long_words(STAGE: tl.constexpr, first, row, draw, key, counter3, TILE: tl.constexpr):
    """The words of a tile of TILE groups that starts at column `first`, and its columns in the first quarter."""
    group = first // _GROUP + tl.arange(0, TILE)[:, None]
    i = tl.arange(0, _QUARTER)[None, :]
    w0, w1, w2, w3 = words(STAGE, group * _QUARTER + i, row, draw, key, counter3)
    return group * _GROUP + i, w0, w1, w2, w3


@triton.jit
def _relaxed_scores(
    logits_ptr, first, columns, row, draw, key, counter3, top, inverse,
    GROWS: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The scores of a tile relative to `top`, which the tile raises to its own maximum where GROWS; and its columns."""
    column, w0, w1, w2, w3 = _long_words(RELAXED, first, row, draw, key, counter3, TILE)
    x0, x1, x2, x3 = _load_quarters(logits_ptr, column, column >= 0, columns, _QUARTER, TYPE, MASKED)
    if GROWS:
        top = tl.maximum(top, tl.max(_max4(x0, x1, x2, x3, 1), 0))
    base = or_zero(top)
    z0 = _score(x0, base, w0, inverse, TYPE)
    z1 = _score(x1, base, w1, inverse, TYPE)
    z2 = _score(x2, base, w2, inverse, TYPE)
    z3 = _score(x3, base, w3, inverse, TYPE)
    return top, column, z0, z1, z2, z3


@triton.jit
def _relaxed_add(
    logits_ptr, first, columns, row, draw, key, counter3, top, inverse, maximum, total,
    TYPE: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a tile to the online sum of 2^score = total 2^maximum, both relative to the largest logit yet, `top`."""
    new_top, _, z0, z1, z2, z3 = _relaxed_scores(
        logits_ptr, first, columns, row, draw, key, counter3, top, inverse, True, TYPE, TILE, MASKED
    )
    # What was summed relative to the old top counts less relative to the new one.
    maximum += (or_zero(top) - or_zero(new_top)) * LOG2E * inverse
    new = tl.maximum(maximum, tl.max(_max4(z0, z1, z2, z3, 1), 0))
    base = or_zero(new)
    parts = tl.exp2(z0 - base) + tl.exp2(z1 - base) + tl.exp2(z2 - base) + tl.exp2(z3 - base)
    return new_top, new, total * tl.exp2(maximum - base) + tl.sum(tl.sum(parts, 1), 0)


@triton.jit
def _relaxed_write(
    logits_ptr, out_ptr, first, columns, row, draw, key, counter3, top, inverse, maximum, scale,
    TYPE: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    _, column, z0, z1, z2, z3 = _relaxed_scores(
        logits_ptr, first, columns, row, draw, key, counter3, top, inverse, False, TYPE, TILE, MASKED
    )
    out = out_ptr + column
    _store_quarter(out, tl.exp2(z0 - maximum) * scale, column < columns, MASKED)
    _store_quarter(out + _QUARTER, tl.exp2(z1 - maximum) * scale, column + _QUARTER < columns, MASKED)
    _store_quarter(out + 2 * _QUARTER, tl.exp2(z2 - maximum) * scale, column + 2 * _QUARTER < columns, MASKED)
    _store_quarter(out + 3 * _QUARTER, tl.exp2(z3 - maximum) * scale, column + 3 * _QUARTER < columns, MASKED)


@triton.jit
def _relaxed_long_kernel(
    logits_ptr, temperature_ptr, out_ptr, seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    row_stride: tl.int64, temperature_stride: tl.int64, rows: tl.int64, columns,
    SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One draw of one row a program.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    at = tl.program_id(0).to(tl.int64)
    draw = at // rows
    row = at % rows
    logits_ptr += row * row_stride
    out_ptr += at * columns
    inverse = 1.0 / tl.load(temperature_ptr + row * temperature_stride).to(TYPE)
    row += row_offset
    top = tl.full([], float("-inf"), TYPE)
    maximum = tl.full([], float("-inf"), TYPE)
    total = tl.full([], 0.0, TYPE)
    whole = columns // (TILE * _GROUP) * (TILE * _GROUP)
    for first in range(0, whole, TILE * _GROUP):
        top, maximum, total = _relaxed_add(
            logits_ptr, first, columns, row, draw, key, counter3, top, inverse, maximum, total, TYPE, TILE, False
        )
    if whole < columns:
        top, maximum, total = _relaxed_add(
            logits_ptr, whole, columns, row, draw, key, counter3, top, inverse, maximum, total, TYPE, TILE, True
        )
    # A row that is no distribution has a total of 0 or NaN.
    scale = tl.where(total > 0, 1.0 / total, float("nan"))
    for first in range(0, whole, TILE * _GROUP):
        _relaxed_write(
            logits_ptr, out_ptr, first, columns, row, draw, key, counter3, top, inverse, maximum, scale, TYPE, TILE,
            False,
        )  # fmt: skip
    if whole < columns:
        _relaxed_write(
            logits_ptr, out_ptr, whole, columns, row, draw, key, counter3, top, inverse, maximum, scale, TYPE, TILE,
            True,
        )  # fmt: skip


def relaxed(
    logits: Tensor, temperature: Tensor, draws: int, seed: int | Tensor, offset: int, row_offset: int = 0
) -> Tensor:
    """softmax((logits + Gumbel) / temperature).

    Args:
        logits: [rows, columns], any row stride.
        temperature: [rows], any stride.
        draws: of each row.
        seed, offset, row_offset: the noise, see `noise.py`.

    Returns:
        [draws, rows, columns] in the logits' dtype; NaN for a row that is no distribution.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws, logits)
    out = torch.empty((draws, rows, columns), dtype=logits.dtype, device=logits.device)
    if not (rows and draws):
        return out
    common = {
        "row_stride": logits.stride(0), "temperature_stride": temperature.stride(0), "rows": rows, "columns": columns,
        "TYPE": compute_type(logits.dtype), **noise,
    }  # fmt: skip
    if columns <= GROUP:
        tile = launch.part_tile(rows, columns, parts=4)
        programs = triton.cdiv(rows, tile.rows)
        _relaxed_short_kernel[(programs, launch.draw_programs(programs, draws))](
            logits, temperature, out, draws=draws, ROWS=tile.rows, QUARTER=tile.block, num_warps=tile.warps, **common
        )
    else:
        _relaxed_long_kernel[(draws * rows,)](
            logits, temperature, out, TILE=launch.GROUPS, num_warps=launch.NOISE_WARPS, **common
        )
    return out


# The RelaxedOneHot backward -------------------------------------------------------------------------------------------


@triton.jit
def _posterior_weight(x, base, column, winner, word, scale, inverse, TYPE: tl.constexpr):
    """w_j = (1 + E_j / (p_j E_k))^(-1 / t), and 1 for the winner; `scale` = 1 / E_k. 0 where p is 0."""
    ratio = exponential32(word).to(TYPE) * tl.exp2(base - exp2_of(x, 0.0)) * scale
    # A ratio below 2^-24 leaves the weight 1 in float32.
    weight = tl.exp2(-inverse * _log2_of(1.0 + ratio))
    return tl.where(column == winner, 1.0, weight)


@triton.jit
def _log2_of(x):
    if x.dtype == tl.float64:
        return tl.log2(x)
    else:
        return fast_log2(x)


@triton.jit
def _winner_scale(row, draw, key, counter3, TYPE: tl.constexpr):
    w0, w1, _, _ = words(POSTERIOR, WINNER_CALL, row, draw, key, counter3)
    return 1.0 / exponential64(w0, w1).to(TYPE)


@triton.jit
def _posterior_quarters(
    x0, x1, x2, x3, base, column, winner, w0, w1, w2, w3, scale, inverse, QUARTER: tl.constexpr, TYPE: tl.constexpr
):
    y0 = _posterior_weight(x0, base, column, winner, w0, scale, inverse, TYPE)
    y1 = _posterior_weight(x1, base, column + QUARTER, winner, w1, scale, inverse, TYPE)
    y2 = _posterior_weight(x2, base, column + 2 * QUARTER, winner, w2, scale, inverse, TYPE)
    y3 = _posterior_weight(x3, base, column + 3 * QUARTER, winner, w3, scale, inverse, TYPE)
    return y0, y1, y2, y3


@triton.jit
def _load_grad_quarters(ptr, column, mask, columns, QUARTER: tl.constexpr, TYPE: tl.constexpr, MASKED: tl.constexpr):
    g0 = _load_quarter(ptr + column, mask & (column < columns), TYPE, MASKED)
    g1 = _load_quarter(ptr + column + QUARTER, mask & (column + QUARTER < columns), TYPE, MASKED)
    g2 = _load_quarter(ptr + column + 2 * QUARTER, mask & (column + 2 * QUARTER < columns), TYPE, MASKED)
    g3 = _load_quarter(ptr + column + 3 * QUARTER, mask & (column + 3 * QUARTER < columns), TYPE, MASKED)
    return g0, g1, g2, g3


@triton.jit
def _relaxed_grad_short_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, out_ptr, seed_ptr, key: tl.int64,
    counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, temperature_stride: tl.int64, rows: tl.int64,
    draws: tl.int64, columns,
    SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, QUARTER: tl.constexpr,
):  # fmt: skip
    # Rows of one group: the gradient is added up in registers over all draws.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    mask = inside[:, None]
    column = tl.arange(0, QUARTER)[None, :]
    start = logits_ptr + (row * row_stride)[:, None]
    x0, x1, x2, x3 = _load_quarters(start, column, mask, columns, QUARTER, TYPE, True)
    base = (tl.load(logsumexp_ptr + row, mask=inside, other=0.0) * LOG2E)[:, None]
    inverse = 1.0 / tl.load(temperature_ptr + row * temperature_stride, mask=inside, other=1.0).to(TYPE)
    inverse = inverse[:, None]
    out0 = tl.zeros([ROWS, QUARTER], TYPE)
    out1, out2, out3 = out0, out0, out0
    for draw in range(draws):
        at = draw * rows + row
        winner = tl.load(index_ptr + at, mask=inside, other=0)[:, None]
        scale = _winner_scale(row + row_offset, draw, key, counter3, TYPE)[:, None]
        w0, w1, w2, w3 = words(POSTERIOR, column, (row + row_offset)[:, None], draw, key, counter3)
        y0, y1, y2, y3 = _posterior_quarters(
            x0, x1, x2, x3, base, column, winner, w0, w1, w2, w3, scale, inverse, QUARTER, TYPE
        )
        grad = grad_ptr + (at * columns)[:, None]
        g0, g1, g2, g3 = _load_grad_quarters(grad, column, mask, columns, QUARTER, TYPE, True)
        total = tl.sum(y0 + y1 + y2 + y3, 1)[:, None]
        dot = tl.sum(y0 * g0 + y1 * g1 + y2 * g2 + y3 * g3, 1)[:, None] / total
        factor = inverse / total
        out0 += y0 * (g0 - dot) * factor
        out1 += y1 * (g1 - dot) * factor
        out2 += y2 * (g2 - dot) * factor
        out3 += y3 * (g3 - dot) * factor
    out = out_ptr + (row * columns)[:, None] + column
    _store_quarter(out, out0, mask & (column < columns), True)
    _store_quarter(out + QUARTER, out1, mask & (column + QUARTER < columns), True)
    _store_quarter(out + 2 * QUARTER, out2, mask & (column + 2 * QUARTER < columns), True)
    _store_quarter(out + 3 * QUARTER, out3, mask & (column + 3 * QUARTER < columns), True)


@triton.jit
def _relaxed_grad_sums(
    logits_ptr, grad_ptr, first, columns, winner, row, draw, key, counter3, base, scale, inverse,
    TYPE: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """sum w and sum w g of a tile, lane by lane."""
    column, w0, w1, w2, w3 = _long_words(POSTERIOR, first, row, draw, key, counter3, TILE)
    x0, x1, x2, x3 = _load_quarters(logits_ptr, column, column >= 0, columns, _QUARTER, TYPE, MASKED)
    g0, g1, g2, g3 = _load_grad_quarters(grad_ptr, column, column >= 0, columns, _QUARTER, TYPE, MASKED)
    y0, y1, y2, y3 = _posterior_quarters(
        x0, x1, x2, x3, base, column, winner, w0, w1, w2, w3, scale, inverse, _QUARTER, TYPE
    )
    return y0 + y1 + y2 + y3, y0 * g0 + y1 * g1 + y2 * g2 + y3 * g3


@triton.jit
def _relaxed_grad_sums_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, seed_ptr, key: tl.int64,
    counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, temperature_stride: tl.int64, rows: tl.int64,
    columns, SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One draw of one row a program.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    at = tl.program_id(0).to(tl.int64)
    draw = at // rows
    row = at % rows
    logits_ptr += row * row_stride
    grad_ptr += at * columns
    base = tl.load(logsumexp_ptr + row) * LOG2E
    inverse = 1.0 / tl.load(temperature_ptr + row * temperature_stride).to(TYPE)
    winner = tl.load(index_ptr + at)
    row += row_offset
    scale = _winner_scale(row, draw, key, counter3, TYPE)
    total = tl.zeros([TILE, _QUARTER], TYPE)
    dot = tl.zeros([TILE, _QUARTER], TYPE)
    whole = columns // (TILE * _GROUP) * (TILE * _GROUP)
    for first in range(0, whole, TILE * _GROUP):
        weights, products = _relaxed_grad_sums(
            logits_ptr, grad_ptr, first, columns, winner, row, draw, key, counter3, base, scale, inverse, TYPE, TILE,
            False,
        )  # fmt: skip
        total += weights
        dot += products
    if whole < columns:
        weights, products = _relaxed_grad_sums(
            logits_ptr, grad_ptr, whole, columns, winner, row, draw, key, counter3, base, scale, inverse, TYPE, TILE,
            True,
        )  # fmt: skip
        total += weights
        dot += products
    all_weights = tl.sum(tl.sum(total, 1), 0)
    tl.store(total_ptr + at, all_weights)
    tl.store(dot_ptr + at, tl.sum(tl.sum(dot, 1), 0) / all_weights)


@triton.jit
def _relaxed_grad_write(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, out_ptr, first, row,
    row_offset, temperature_stride, rows, draws, columns, key, counter3,
    TYPE: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    group = first // _GROUP + tl.arange(0, TILE)[:, None]
    column = group * _GROUP + tl.arange(0, _QUARTER)[None, :]
    x0, x1, x2, x3 = _load_quarters(logits_ptr, column, column >= 0, columns, _QUARTER, TYPE, MASKED)
    base = tl.load(logsumexp_ptr + row) * LOG2E
    inverse = 1.0 / tl.load(temperature_ptr + row * temperature_stride).to(TYPE)
    out0 = tl.zeros([TILE, _QUARTER], TYPE)
    out1, out2, out3 = out0, out0, out0
    for draw in range(draws):
        at = draw * rows + row
        _, w0, w1, w2, w3 = _long_words(POSTERIOR, first, row + row_offset, draw, key, counter3, TILE)
        scale = _winner_scale(row + row_offset, draw, key, counter3, TYPE)
        winner = tl.load(index_ptr + at)
        y0, y1, y2, y3 = _posterior_quarters(
            x0, x1, x2, x3, base, column, winner, w0, w1, w2, w3, scale, inverse, _QUARTER, TYPE
        )
        g0, g1, g2, g3 = _load_grad_quarters(
            grad_ptr + at * columns, column, column >= 0, columns, _QUARTER, TYPE, MASKED
        )
        dot = tl.load(dot_ptr + at)
        factor = inverse / tl.load(total_ptr + at)
        out0 += y0 * (g0 - dot) * factor
        out1 += y1 * (g1 - dot) * factor
        out2 += y2 * (g2 - dot) * factor
        out3 += y3 * (g3 - dot) * factor
    out = out_ptr + column
    _store_quarter(out, out0, column < columns, MASKED)
    _store_quarter(out + _QUARTER, out1, column + _QUARTER < columns, MASKED)
    _store_quarter(out + 2 * _QUARTER, out2, column + 2 * _QUARTER < columns, MASKED)
    _store_quarter(out + 3 * _QUARTER, out3, column + 3 * _QUARTER < columns, MASKED)


@triton.jit
def _relaxed_grad_long_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, out_ptr, seed_ptr,
    key: tl.int64, counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, temperature_stride: tl.int64,
    rows: tl.int64, draws: tl.int64, columns,
    SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One tile of one row a program, over all draws: nothing is left to reduce.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * (TILE * _GROUP)
    logits_ptr += row * row_stride
    out_ptr += row * columns
    if first + TILE * _GROUP <= columns:
        _relaxed_grad_write(
            logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, out_ptr, first, row,
            row_offset, temperature_stride, rows, draws, columns, key, counter3, TYPE, TILE, False,
        )  # fmt: skip
    else:
        _relaxed_grad_write(
            logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, out_ptr, first, row,
            row_offset, temperature_stride, rows, draws, columns, key, counter3, TYPE, TILE, True,
        )  # fmt: skip


def relaxed_grad(
    logits: Tensor,
    logsumexp: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor,
    seed: int | Tensor,
    offset: int,
    row_offset: int = 0,
) -> Tensor:
    """sum over draws of y (g - <y, g>) / t, y drawn given the winners.

    Args:
        logits: [rows, columns], any row stride.
        logsumexp: [rows].
        index: int64 [draws, rows], the winners.
        grad: [draws, rows, columns].
        temperature: [rows], any stride.
        seed, offset, row_offset: those of the draw; the noise is another stage of it.

    Returns:
        [rows, columns] in the logits' dtype; NaN for a row that is no distribution.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    draws = index.shape[0]
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws, logits)
    if not (rows and draws):
        return torch.zeros((rows, columns), dtype=logits.dtype, device=logits.device)
    out = torch.empty((rows, columns), dtype=logits.dtype, device=logits.device)
    index, grad = index.contiguous(), grad.contiguous()
    common = {
        "row_stride": logits.stride(0), "temperature_stride": temperature.stride(0), "rows": rows, "columns": columns,
        "TYPE": compute_type(logits.dtype), **noise,
    }  # fmt: skip
    if columns <= GROUP:
        tile = launch.part_tile(rows, columns, parts=4)
        _relaxed_grad_short_kernel[(triton.cdiv(rows, tile.rows),)](
            logits, logsumexp, index, grad, temperature, out, draws=draws,
            ROWS=tile.rows, QUARTER=tile.block, num_warps=tile.warps, **common,
        )  # fmt: skip
        return out
    total, dot = torch.empty((2, draws, rows), dtype=logsumexp.dtype, device=logits.device)
    shape = {"TILE": launch.GROUPS, "num_warps": launch.NOISE_WARPS}
    _relaxed_grad_sums_kernel[(draws * rows,)](
        logits, logsumexp, index, grad, temperature, total, dot, **shape, **common
    )
    _relaxed_grad_long_kernel[(rows, triton.cdiv(columns, launch.GROUPS * GROUP))](
        logits, logsumexp, index, grad, temperature, total, dot, out, draws=draws, **shape, **common
    )
    return out
