"""Relaxed (Gumbel-softmax) samples, and the RelaxedOneHot backward.

    relaxed        y = softmax((x + G) / t),  G = -log E,  E iid Exp(1)

    relaxed_grad   dx = sum over draws of y (g - <y, g>) / t, with y drawn from its law given that column k won:
                   s_k = -log E_k,  s_j = -log(E_j / p_j + E_k),  y = softmax(s / t)

(https://arxiv.org/abs/1411.0030). s_k is the maximum, so with it taken out the weights need no online maximum:

                   w_k = 1,  w_j = (1 + E_j / (p_j E_k))^(-1 / t),  y = w / sum w,  <y, g> = sum w g / sum w

One Philox call serves four elements, a quarter of a group apart, see `noise.py`: a tile is one quarter of some groups,
and there are four of each. A row that no tile holds is walked twice with the same noise, for the sums and the write.
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
from .rows import (
    allowed_arguments,
    compute_type,
    exp2_of,
    load_grad,
    load_logits,
    or_zero,
    over_tile,
    with_unit_stride,
)

_GROUP = tl.constexpr(GROUP)
_CALLS = tl.constexpr(GROUP // 4)


@triton.jit
def _quarter(DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Columns of the first quarter of DEPTH groups, and their Philox calls, [1, DEPTH, LANES, VECTOR]."""
    depth = tl.arange(0, DEPTH)[None, :, None, None]
    i = tl.arange(0, LANES)[None, None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, None, :]
    return depth * _GROUP + i, depth * _CALLS + i


@triton.jit
def _over_row(per_lane):
    """The sum over a row, [ROWS], of [ROWS, DEPTH, LANES]."""
    return tl.sum(tl.sum(per_lane, 2), 1)


@triton.jit
def _add4(q):
    """The sum over the four quarters and their vectors, [ROWS, DEPTH, LANES]."""
    return tl.sum((q[0] + q[1]) + (q[2] + q[3]), 3)


@triton.jit
def _exp2(q, base):
    return (tl.exp2(q[0] - base), tl.exp2(q[1] - base), tl.exp2(q[2] - base), tl.exp2(q[3] - base))


@triton.jit
def _masks(column, columns, inside, MASK: tl.constexpr, Q: tl.constexpr):
    """Where the four quarters are inside of the row; not looked at without MASK."""
    if MASK:
        return (
            inside & (column < columns),
            inside & (column + Q < columns),
            inside & (column + 2 * Q < columns),
            inside & (column + 3 * Q < columns),
        )
    else:
        return (inside, inside, inside, inside)


@triton.jit
def _load_logits4(
    ptrs, m, MASK: tl.constexpr, TYPE: tl.constexpr, Q: tl.constexpr, allowed_ptr=None, allowed_at=0
):  # fmt: skip
    return (
        load_logits(ptrs, m[0] if MASK else None, TYPE, allowed_ptr, allowed_at),
        load_logits(ptrs + Q, m[1] if MASK else None, TYPE, allowed_ptr, allowed_at + Q),
        load_logits(ptrs + 2 * Q, m[2] if MASK else None, TYPE, allowed_ptr, allowed_at + 2 * Q),
        load_logits(ptrs + 3 * Q, m[3] if MASK else None, TYPE, allowed_ptr, allowed_at + 3 * Q),
    )


@triton.jit
def _load_grad4(ptrs, m, MASK: tl.constexpr, TYPE: tl.constexpr, Q: tl.constexpr):
    return (
        load_grad(ptrs, m[0] if MASK else None, TYPE),
        load_grad(ptrs + Q, m[1] if MASK else None, TYPE),
        load_grad(ptrs + 2 * Q, m[2] if MASK else None, TYPE),
        load_grad(ptrs + 3 * Q, m[3] if MASK else None, TYPE),
    )


@triton.jit
def _store4(ptrs, q, m, MASK: tl.constexpr, Q: tl.constexpr):
    tl.store(ptrs, q[0].to(ptrs.dtype.element_ty), mask=m[0] if MASK else None)
    tl.store(ptrs + Q, q[1].to(ptrs.dtype.element_ty), mask=m[1] if MASK else None)
    tl.store(ptrs + 2 * Q, q[2].to(ptrs.dtype.element_ty), mask=m[2] if MASK else None)
    tl.store(ptrs + 3 * Q, q[3].to(ptrs.dtype.element_ty), mask=m[3] if MASK else None)


# The sample -----------------------------------------------------------------------------------------------------------


@triton.jit
def _score(x, top, word, inverse):
    # (x - top + G) / t in log2 units, G = -log E. The top first: beside a large |x| the noise would be rounded away.
    return exp2_of(x - top, fast_log2(exponential32(word))) * inverse


@triton.jit
def _scores(x, top, call, row, draw, key, counter3, inverse):
    w = words(RELAXED, call, row, draw, key, counter3)
    return (
        _score(x[0], top, w[0], inverse),
        _score(x[1], top, w[1], inverse),
        _score(x[2], top, w[2], inverse),
        _score(x[3], top, w[3], inverse),
    )


@triton.jit
def _max4(q):
    """The maximum of the four quarters and their vectors, [ROWS, DEPTH, LANES]."""
    return tl.max(tl.maximum(tl.maximum(q[0], q[1]), tl.maximum(q[2], q[3])), 3)


@triton.jit
def _add_scores(x, call, row, draw, key, counter3, inverse, top, maximum, total):
    """The online log2 sum 2^s of each lane, [ROWS, DEPTH, LANES], with four more quarters of logits: (maximum, total),
    of scores relative to `top`, the lane's largest logit yet."""
    new_top = tl.maximum(top, _max4(x))
    s = _scores(x, or_zero(new_top)[:, :, :, None], call, row, draw, key, counter3, inverse)
    maximum += (or_zero(top) - or_zero(new_top)) * LOG2E * tl.sum(inverse, 3)
    new = tl.maximum(maximum, _max4(s))
    base = or_zero(new)
    return new_top, new, total * tl.exp2(maximum - base) + _add4(_exp2(s, base[:, :, :, None]))


@triton.jit
def _join(inverse, top, maximum, total):
    """The largest logit of each row, and its log2 sum 2^s relative to that, [ROWS, 1, 1, 1], from its lanes; NaN for a
    row that is no distribution."""
    row_top = or_zero(tl.max(tl.max(top, 2), 1))
    maximum += (or_zero(top) - row_top[:, None, None]) * LOG2E * tl.sum(inverse, 3)
    highest = tl.max(tl.max(maximum, 2), 1)
    total = _over_row(total * tl.exp2(maximum - or_zero(highest)[:, None, None]))
    return over_tile(row_top), over_tile(tl.where(total > 0, highest + tl.log2(total), float("nan")))


@triton.jit(do_not_specialize=["key", "counter3", "row_offset", "rows", "programs_per_draw"])
def _relaxed_kernel(
    logits_ptr, temperature_ptr, out_ptr, seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    row_stride: tl.int64, temperature_stride: tl.int64, rows: tl.int64, programs_per_draw: tl.int64, columns,
    SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, ONE: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    key = load_key(seed_ptr, key, SEED_TENSOR)
    Q: tl.constexpr = LANES * VECTOR
    draw = tl.program_id(0) // programs_per_draw
    row = tl.program_id(0) % programs_per_draw * ROWS + tl.arange(0, ROWS)
    inside = over_tile(row < rows)
    column, call = _quarter(DEPTH, LANES, VECTOR)
    x_ptrs = logits_ptr + over_tile(row * row_stride) + column
    out_ptrs = out_ptr + over_tile((draw * rows + row) * columns) + column
    inverse = over_tile(1.0 / tl.load(temperature_ptr + row * temperature_stride, mask=row < rows, other=1.0))
    row = over_tile(row + row_offset)
    top = tl.full([ROWS, DEPTH, LANES], float("-inf"), TYPE)
    maximum = tl.full([ROWS, DEPTH, LANES], float("-inf"), TYPE)
    total = tl.zeros([ROWS, DEPTH, LANES], TYPE)
    if ONE:
        m = _masks(column, columns, inside, True, Q)
        x = _load_logits4(x_ptrs, m, True, TYPE, Q)
        top = over_tile(or_zero(tl.max(tl.max(_max4(x), 2), 1)))
        s = _scores(x, top, call, row, draw, key, counter3, inverse)
        maximum = _max4(s)
        total = _add4(_exp2(s, or_zero(maximum)[:, :, :, None]))
        _, base = _join(inverse, tl.sum(top, 3), maximum, total)
        _store4(out_ptrs, _exp2(s, base), m, True, Q)
    else:
        BLOCK: tl.constexpr = DEPTH * _GROUP
        whole = columns // BLOCK * BLOCK
        every = _masks(column, columns, inside, False, Q)
        tail = _masks(column + whole, columns, inside, True, Q)
        for start in range(0, whole, BLOCK):
            x = _load_logits4(x_ptrs + start, every, False, TYPE, Q)
            top, maximum, total = _add_scores(
                x, call + start // 4, row, draw, key, counter3, inverse, top, maximum, total
            )
        if whole < columns:
            x = _load_logits4(x_ptrs + whole, tail, True, TYPE, Q)
            top, maximum, total = _add_scores(
                x, call + whole // 4, row, draw, key, counter3, inverse, top, maximum, total
            )
        row_top, base = _join(inverse, top, maximum, total)
        for start in range(0, whole, BLOCK):
            x = _load_logits4(x_ptrs + start, every, False, TYPE, Q)
            s = _scores(x, row_top, call + start // 4, row, draw, key, counter3, inverse)
            _store4(out_ptrs + start, _exp2(s, base), every, False, Q)
        if whole < columns:
            x = _load_logits4(x_ptrs + whole, tail, True, TYPE, Q)
            s = _scores(x, row_top, call + whole // 4, row, draw, key, counter3, inverse)
            _store4(out_ptrs + whole, _exp2(s, base), tail, True, Q)


def relaxed(
    logits: Tensor, temperature: Tensor, draws: int, seed: int | Tensor, offset: int, row_offset: int = 0
) -> Tensor:
    """softmax((logits + Gumbel) / t), [draws, rows, columns] in the logits' dtype.

    Args:
        logits: [rows, columns], any row stride.
        temperature: [rows] in the compute dtype, any stride.
        draws: of each row.
        seed, offset, row_offset: the noise, see `noise.py`.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws, logits)
    out = torch.empty((draws, rows, columns), dtype=logits.dtype, device=logits.device)
    if rows and draws:
        tile = launch.noise_tile(logits, parts=4)
        programs = triton.cdiv(rows, tile.rows)
        _relaxed_kernel[(programs * draws,)](
            logits, temperature, out, row_stride=logits.stride(0), temperature_stride=temperature.stride(0),
            rows=rows, programs_per_draw=programs, columns=columns, TYPE=compute_type(logits.dtype), ONE=tile.one,
            num_warps=tile.warps, **tile.shape, **noise,
        )  # fmt: skip
    return out


# The gradient ---------------------------------------------------------------------------------------------------------


@triton.jit
def _log2(x):
    if x.dtype == tl.float64:
        return tl.log2(x)
    else:
        return fast_log2(x)


@triton.jit
def _weight(x, word, column, winner, base, inverse):
    # w_j = (1 + E_j / (p_j E_k))^(-1/t), 1 for the winner. p_j = 0 makes the quotient inf and the weight 0.
    one_plus = 1.0 + exponential32(word) * tl.exp2(-exp2_of(x, base))
    return tl.where(column == winner, 1.0, tl.exp2(-inverse * _log2(one_plus)))


@triton.jit
def _weights(x, column, call, winner, row, draw, key, counter3, base, inverse, Q: tl.constexpr):
    """The weights w of the four quarters. `base` is the row's logsumexp, in log2 units; E_k joins it."""
    hi, lo, _, _ = words(POSTERIOR, WINNER_CALL, row, draw, key, counter3)
    base -= fast_log2(exponential64(hi, lo))
    w = words(POSTERIOR, call, row, draw, key, counter3)
    return (
        _weight(x[0], w[0], column, winner, base, inverse),
        _weight(x[1], w[1], column + Q, winner, base, inverse),
        _weight(x[2], w[2], column + 2 * Q, winner, base, inverse),
        _weight(x[3], w[3], column + 3 * Q, winner, base, inverse),
    )


@triton.jit
def _mul4(a, b):
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3])


@triton.jit(do_not_specialize=["key", "counter3", "row_offset", "rows"])
def _sums_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, allowed_ptr, seed_ptr,
    key: tl.int64, counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, allowed_stride: tl.int64,
    temperature_stride: tl.int64, rows: tl.int64, columns, SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr,
    DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # (sum w, sum w g) of one draw of one long row a program.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    Q: tl.constexpr = LANES * VECTOR
    at = tl.program_id(0).to(tl.int64)
    draw = at // rows
    row = at % rows
    column, call = _quarter(DEPTH, LANES, VECTOR)
    x_ptrs = logits_ptr + row * row_stride + column
    allowed_at = row * allowed_stride + column
    grad_ptrs = grad_ptr + at * columns + column
    base = tl.load(logsumexp_ptr + row) * LOG2E
    inverse = 1.0 / tl.load(temperature_ptr + row * temperature_stride)
    winner = tl.load(index_ptr + at)
    row += row_offset
    total = tl.zeros([1, DEPTH, LANES], TYPE)
    dot = tl.zeros([1, DEPTH, LANES], TYPE)
    BLOCK: tl.constexpr = DEPTH * _GROUP
    whole = columns // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        m = _masks(column, columns, column >= 0, False, Q)
        x = _load_logits4(x_ptrs + start, m, False, TYPE, Q, allowed_ptr, allowed_at + start)
        w = _weights(x, column + start, call + start // 4, winner, row, draw, key, counter3, base, inverse, Q)
        total += _add4(w)
        dot += _add4(_mul4(w, _load_grad4(grad_ptrs + start, m, False, TYPE, Q)))
    if whole < columns:
        m = _masks(column + whole, columns, column >= 0, True, Q)
        x = _load_logits4(x_ptrs + whole, m, True, TYPE, Q, allowed_ptr, allowed_at + whole)
        w = _weights(x, column + whole, call + whole // 4, winner, row, draw, key, counter3, base, inverse, Q)
        total += _add4(w)
        dot += _add4(_mul4(w, _load_grad4(grad_ptrs + whole, m, True, TYPE, Q)))
    one = tl.arange(0, 1)
    tl.store(total_ptr + at + one, _over_row(total))
    tl.store(dot_ptr + at + one, _over_row(dot))


@triton.jit(do_not_specialize=["key", "counter3", "row_offset", "rows", "draws"])
def _relaxed_grad_kernel(
    logits_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, total_ptr, dot_ptr, out_ptr, allowed_ptr, seed_ptr,
    key: tl.int64, counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, allowed_stride: tl.int64,
    temperature_stride: tl.int64, rows: tl.int64, draws: tl.int64, columns,
    SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, ONE: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # One tile a program: its gradient stays in registers over all draws. ONE: rows that are in it whole, summed here.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    Q: tl.constexpr = LANES * VECTOR
    BLOCK: tl.constexpr = DEPTH * 4 * Q
    tiles = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = tl.program_id(0) % tiles * BLOCK
    in_rows = row < rows
    column, call = _quarter(DEPTH, LANES, VECTOR)
    column += start
    call += start // 4
    m = _masks(column, columns, over_tile(in_rows), MASK, Q)
    allowed_at = over_tile(row * allowed_stride) + column
    x = _load_logits4(
        logits_ptr + over_tile(row * row_stride) + column, m, MASK, TYPE, Q, allowed_ptr, allowed_at
    )  # fmt: skip
    base = over_tile(tl.load(logsumexp_ptr + row, mask=in_rows, other=0.0) * LOG2E)
    inverse = over_tile(1.0 / tl.load(temperature_ptr + row * temperature_stride, mask=in_rows, other=1.0))
    noise_row = over_tile(row + row_offset)
    zero = tl.zeros([ROWS, DEPTH, LANES, VECTOR], TYPE)
    out = (zero, zero, zero, zero)
    for draw in range(draws):
        at = draw * rows + row
        winner = over_tile(tl.load(index_ptr + at, mask=in_rows, other=-1))
        w = _weights(x, column, call, winner, noise_row, draw, key, counter3, base, inverse, Q)
        g = _load_grad4(grad_ptr + over_tile(at * columns) + column, m, MASK, TYPE, Q)
        if ONE:
            total = _over_row(_add4(w))
            dot = _over_row(_add4(_mul4(w, g)))
        else:
            total = tl.load(total_ptr + at)
            dot = tl.load(dot_ptr + at)
        # y (g - <y, g>) / t with y = w / total.
        dot = over_tile(dot / total)
        scale = inverse / over_tile(total)
        out = (
            out[0] + w[0] * scale * (g[0] - dot),
            out[1] + w[1] * scale * (g[1] - dot),
            out[2] + w[2] * scale * (g[2] - dot),
            out[3] + w[3] * scale * (g[3] - dot),
        )
    _store4(out_ptr + over_tile(row * columns) + column, out, m, MASK, Q)


def relaxed_grad(
    logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor, temperature: Tensor,
    seed: int | Tensor, offset: int, row_offset: int = 0, allowed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The RelaxedOneHot gradient, [rows, columns] in the logits' dtype.

    Args:
        logits: [rows, columns], any row stride.
        logsumexp: [rows].
        index: int64 [draws, rows], the winners.
        grad: [draws, rows, columns].
        temperature: [rows] in the compute dtype, any stride.
        seed, offset, row_offset: the noise, see `noise.py`.
        allowed: see `rows.allowed_arguments`.
    """
    logits, logsumexp, index, grad = (
        with_unit_stride(logits),
        logsumexp.contiguous(),
        index.contiguous(),
        grad.contiguous(),
    )
    rows, columns = logits.shape
    draws = index.shape[0]
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws, logits)
    out = torch.empty((rows, columns), dtype=logits.dtype, device=logits.device)
    if rows:
        tile = launch.noise_tile(logits, parts=4)
        sums = torch.empty((2, 0 if tile.one else draws, rows), dtype=logsumexp.dtype, device=logits.device).unbind()
        given = (logits, logsumexp, index, grad, temperature, *sums)
        common = {
            "row_stride": logits.stride(0), "temperature_stride": temperature.stride(0), "rows": rows,
            "columns": columns, "TYPE": compute_type(logits.dtype), "num_warps": tile.warps, **noise,
            **allowed_arguments(allowed),
        }  # fmt: skip
        shape = tile.shape
        if draws and not tile.one:
            _sums_kernel[(draws * rows,)](*given, **{k: v for k, v in shape.items() if k != "ROWS"}, **common)
        block = 4 * tile.columns
        _relaxed_grad_kernel[(triton.cdiv(rows, tile.rows) * triton.cdiv(columns, block),)](
            *given, out, draws=draws, ONE=tile.one, MASK=tile.rows > 1 or columns % block != 0, **shape, **common,
        )  # fmt: skip
    return out
