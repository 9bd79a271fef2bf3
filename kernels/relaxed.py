"""Relaxed (Gumbel-softmax) samples, and the RelaxedOneHot backward.

    relaxed        y = softmax((x + G) / t),  G = -log E,  E iid Exp(1)

    relaxed_grad   dx = sum over draws of y (g - <y, g>) / t, with y drawn from its law given that column k won:
                   s_k = -log E_k,  s_j = -log(E_j / p_j + E_k),  y = softmax(s / t)

(https://arxiv.org/abs/1411.0030). s_k is the maximum, so with it taken out the weights need no online maximum:

                   w_k = 1,  w_j = (1 + E_j / (p_j E_k))^(-1 / t),  y = w / sum w,  <y, g> = sum w g / sum w

and the temperature's, where it is asked for: dt = -sum over draws and columns of y (g - <y, g>) log w / t. Each is the
mean over so many samples of y for each draw (Gumbel-Rao, https://arxiv.org/abs/2010.04838), sample number i of draw s
with the noise of draw samples s + i.

One Philox call serves four elements, a quarter of a group apart, see `noise.py`: a tile is [2, 2, DEPTH, ROWS, LANES,
VECTOR], with quarter 2 a + b of some groups at [a, b]. A row that no tile holds is walked twice with the same noise: by
one kernel for the sums and by another for the write, both with several programs a row where rows are few.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .noise import (
    GROUP,
    LN2,
    LOG2E,
    PER_CALL,
    POSTERIOR,
    RELAXED,
    WINNER_CALL,
    exponential32,
    exponential64,
    fast_log2,
    load_key,
    seed_arguments,
    word_pairs,
    words,
)
from .rows import (
    FAR,
    allowed_arguments,
    allowed_row,
    compute_dtype,
    compute_type,
    exp2_of,
    has_tail,
    inverse_temperature,
    lane_max,
    lane_min,
    lane_sum,
    load_grad,
    load_logits,
    load_logsumexp,
    load_parts,
    or_zero,
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

_GROUP = tl.constexpr(GROUP)
_CALLS = tl.constexpr(GROUP // 4)
_PER_CALL = ["temperature_ptr", "temperature_stride", *PER_CALL]


@triton.jit
def _quarters():
    """The number of the quarter, [2, 2, 1, 1, 1, 1]."""
    return (2 * tl.arange(0, 2)[:, None] + tl.arange(0, 2)[None, :])[:, :, None, None, None, None]


@triton.jit
def _columns(DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """The columns of a tile from its start, and their Philox calls, [DEPTH, 1, LANES, VECTOR]."""
    call = tile_columns(DEPTH, LANES, VECTOR)
    Q: tl.constexpr = min(_CALLS, DEPTH * LANES * VECTOR)
    return _quarters() * Q + call // Q * _GROUP + call % Q, call


@triton.jit
def _words(STAGE: tl.constexpr, call, row, draw, key, counter3):
    """The word of each element of a tile."""
    pairs = word_pairs(STAGE, call, over_tile(row), draw, key, counter3)
    return tl.permute(tl.join(pairs.to(tl.uint32), (pairs >> 32).to(tl.uint32)), (4, 5, 0, 1, 2, 3))


# The sample -----------------------------------------------------------------------------------------------------------


@triton.jit
def _races(x, top, call, row, draw, key, counter3):
    """-(x - top + G) in log2 units, G = -log E, but for a number that is the same for all, as E is in 64ths. The top
    first: beside a large |x| the noise would be rounded away."""
    return (top - x) * LOG2E + fast_log2(exponential32(_words(RELAXED, call, row, draw, key, counter3)))


@triton.jit
def _rebase(top, maximum, new_top, inverse):
    """The maximum of the scores relative to `top`, relative to `new_top`: -inf where there is no top yet."""
    return maximum + (top - or_zero(new_top)) * (inverse * LOG2E)


@triton.jit
def _add_scores(x, top, maximum, total, call, row, draw, key, counter3, inverse):
    """Adds a tile to the (top, maximum, total) of each lane, [ROWS, LANES]: with s = (x - top + G) / t in log2 units
    and top the lane's largest logit yet, sum 2^s = total 2^maximum. And the tile's 2^(s - maximum)."""
    new_top = tl.maximum(top, lane_max(x))
    race = _races(x, over_lanes(or_zero(new_top)), call, row, draw, key, counter3)
    maximum = _rebase(top, maximum, new_top, inverse[:, None])
    new = tl.maximum(maximum, -inverse[:, None] * lane_min(race))
    base = or_zero(new)
    weight = tl.exp2(race * over_tile(-inverse) - over_lanes(base))
    return new_top, new, total * tl.exp2(maximum - base) + lane_sum(weight), weight


@triton.jit
def _join(top, maximum, total, inverse):
    """The (top, maximum, total) of the rows, [ROWS], from those of their lanes, [ROWS, lanes]."""
    row_top = tl.max(top, 1)
    maximum = _rebase(top, maximum, row_top[:, None], inverse[:, None])
    row_maximum = tl.max(maximum, 1)
    return row_top, row_maximum, tl.sum(total * tl.exp2(maximum - or_zero(row_maximum)[:, None]), 1)


@triton.jit
def _log2_sum(maximum, total):
    """log2 sum 2^s; NaN for a row that is no distribution."""
    return tl.where(total > 0, maximum + tl.log2(total), float("nan"))


@triton.jit(do_not_specialize=[*_PER_CALL, "programs_per_draw"])
def _relaxed_kernel(
    logits_ptr, temperature_ptr, out_ptr, seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    row_stride: tl.int64, temperature: tl.float64, temperature_stride: tl.int64, rows: tl.int64, programs_per_draw,
    columns, TYPE: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole: one exp2 an element, relative to its lane, and then one factor a lane.
    key = load_key(seed_ptr, key)
    draw = (tl.program_id(0) // programs_per_draw).to(tl.int64)
    row = (tl.program_id(0) % programs_per_draw).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    mask = (over_tile(inside) & (column < columns)) if MASK else None
    x = load_logits(tile_ptrs(logits_ptr + over_tile(row * row_stride), column), mask, TYPE)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    nothing = tl.full([ROWS, LANES], float("-inf"), TYPE)
    zero = tl.zeros([ROWS, LANES], TYPE)
    top, maximum, total, weight = _add_scores(
        x, nothing, nothing, zero, call, row + row_offset, draw, key, counter3, inverse
    )
    row_top, row_maximum, row_total = _join(top, maximum, total, inverse)
    base = _log2_sum(row_maximum, row_total)
    maximum = _rebase(top, maximum, row_top[:, None], inverse[:, None])
    y = weight * over_lanes(tl.exp2(maximum - base[:, None]))
    out_ptrs = tile_ptrs(out_ptr + over_tile((draw * rows + row) * columns), column)
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_PER_CALL)
def _relaxed_sums_kernel(
    logits_ptr, temperature_ptr, parts_ptr, seed_ptr, key: tl.int64, counter3: tl.int64,
    row_offset: tl.int64, row_stride: tl.int64, temperature: tl.float64, temperature_stride: tl.int64, rows: tl.int64,
    columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The (top, maximum, total) of a part of one draw of one long row a program.
    key = load_key(seed_ptr, key)
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    draw = at // rows
    row = at % rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, row >= 0, TYPE)
    row += row_offset
    top = tl.full([1, LANES], float("-inf"), TYPE)
    maximum = tl.full([1, LANES], float("-inf"), TYPE)
    total = tl.zeros([1, LANES], TYPE)
    BLOCK: tl.constexpr = 4 * DEPTH * LANES * VECTOR
    whole = columns // BLOCK * BLOCK
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        x = load_logits(tile_ptrs(x_ptrs, start), None, TYPE)
        top, maximum, total, _ = _add_scores(
            x, top, maximum, total, call + start // 4, row, draw, key, counter3, inverse
        )
    if has_tail(whole, columns, BLOCK):
        x = load_logits(tile_ptrs(x_ptrs, whole), whole + column < columns, TYPE)
        top, maximum, total, _ = _add_scores(
            x, top, maximum, total, call + whole // 4, row, draw, key, counter3, inverse
        )
    top, maximum, total = _join(top, maximum, total, inverse)
    store_part(parts_ptr, 3 * at, top)
    store_part(parts_ptr, 3 * at + 1, maximum)
    store_part(parts_ptr, 3 * at + 2, total)


@triton.jit(do_not_specialize=_PER_CALL)
def _relaxed_write_kernel(
    logits_ptr, temperature_ptr, parts_ptr, out_ptr, seed_ptr, key: tl.int64, counter3: tl.int64,
    row_offset: tl.int64, row_stride: tl.int64, temperature: tl.float64, temperature_stride: tl.int64, rows: tl.int64,
    columns,
    TYPE: tl.constexpr, PARTS: tl.constexpr,
    DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The same part of the row a program: y = 2^(s - log2 sum 2^s).
    key = load_key(seed_ptr, key)
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    draw = at // rows
    row = at % rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(at * columns), column)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, row >= 0, TYPE)
    row += row_offset
    parts = tl.num_programs(1)
    top, maximum, total = _join(
        load_parts(parts_ptr, 3 * at, parts, float("-inf"), PARTS),
        load_parts(parts_ptr, 3 * at + 1, parts, float("-inf"), PARTS),
        load_parts(parts_ptr, 3 * at + 2, parts, 0.0, PARTS),
        inverse,
    )
    base = over_tile(_log2_sum(maximum, total))
    top = over_tile(or_zero(top))
    cold = over_tile(-inverse)
    BLOCK: tl.constexpr = 4 * DEPTH * LANES * VECTOR
    whole = columns // BLOCK * BLOCK
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        x = load_logits(tile_ptrs(x_ptrs, start), None, TYPE)
        y = tl.exp2(_races(x, top, call + start // 4, row, draw, key, counter3) * cold - base)
        tl.store(tile_ptrs(out_ptrs, start), y.to(out_ptr.dtype.element_ty))
    if has_tail(whole, columns, BLOCK):
        mask = whole + column < columns
        x = load_logits(tile_ptrs(x_ptrs, whole), mask, TYPE)
        y = tl.exp2(_races(x, top, call + whole // 4, row, draw, key, counter3) * cold - base)
        tl.store(tile_ptrs(out_ptrs, whole), y.to(out_ptr.dtype.element_ty), mask=mask)


@launch.on_its_device
def relaxed(
    logits: Tensor, temperature: Tensor | float, draws: int, seed: int | Tensor, offset: int, row_offset: int = 0
) -> Tensor:
    """softmax((logits + Gumbel) / t), [draws, rows, columns] in the logits' dtype.

    Args:
        logits: [rows, columns], any row stride.
        temperature: [rows] in the compute dtype, any stride; or one number.
        draws: of each row.
        seed, offset, row_offset: the noise, see `noise.py`.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws)
    out = torch.empty(draws, rows, columns, dtype=logits.dtype, device=logits.device)
    if not (rows and draws):
        return out
    tile = launch.noise_tile(logits, 4, draws)
    common = {
        "row_stride": logits.stride(0), "rows": rows, "columns": columns, **temperature_arguments(temperature),
        "TYPE": compute_type(logits.dtype), **launch.options(tile.warps), **tile.row_shape, **noise,
    }  # fmt: skip
    if tile.one:
        programs = launch.cdiv(rows, tile.rows)
        masked = tile.rows > 1 or columns != 4 * tile.columns
        _relaxed_kernel[(programs * draws,)](
            logits, out_ptr=out, programs_per_draw=programs, MASK=masked, ROWS=tile.rows, **common
        )
    else:
        parts = torch.empty(draws * rows, 3, tile.parts, dtype=compute_dtype(logits.dtype), device=logits.device)
        grid = (draws * rows, tile.parts)
        _relaxed_sums_kernel[grid](logits, parts_ptr=parts, **common)
        _relaxed_write_kernel[grid](logits, parts_ptr=parts, out_ptr=out, PARTS=tile.part_lanes, **common)
    return out


# The gradient ---------------------------------------------------------------------------------------------------------


@triton.jit
def _log2(x):
    if x.dtype == tl.float64:
        return tl.log2(x)
    else:
        return fast_log2(x)


@triton.jit
def _weights(x, call, winner, row, draw, key, counter3, base, inverse):
    """w_j = (1 + E_j / (p_j E_k))^(-1/t), 1 for the winner, and log2 w_j; `x` is relative to the row's maximum, `base`
    the log2 of its sum. p_j = 0 makes the quotient inf and the weight 0."""
    hi, lo, _, _ = words(POSTERIOR, WINNER_CALL, row, draw, key, counter3)
    base -= fast_log2(exponential64(hi, lo))
    # -1.0 *: a sign, where 0 - is an instruction.
    one_over_p = tl.exp2(-1.0 * exp2_of(x, over_tile(base)))
    one_plus = 1.0 + exponential32(_words(POSTERIOR, call, row, draw, key, counter3)) * one_over_p
    log2_weight = _log2(one_plus) * over_tile(-inverse)
    # The winner by its Philox call and quarter, which take fewer registers than the columns.
    winner = winner.to(tl.int32)
    Q: tl.constexpr = min(_CALLS, x.shape[2] * x.shape[4] * x.shape[5])
    its_call = winner // _GROUP * _CALLS + winner % Q
    its_quarter = winner % _GROUP // Q
    hot = (call == over_tile(its_call)) & (_quarters() == over_tile(its_quarter))
    return tl.where(hot, 1.0, tl.exp2(log2_weight)), tl.where(hot, 0.0, tl.maximum(log2_weight, FAR))


@triton.jit(do_not_specialize=_PER_CALL)
def _grad_sums_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, parts_ptr, seed_ptr,
    key: tl.int64, counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, allowed_strides,
    temperature: tl.float64, temperature_stride: tl.int64, rows: tl.int64, samples, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # (sum w, sum w g) of a part of one sample of one long row a program.
    key = load_key(seed_ptr, key)
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    sample = at // rows
    row = at % rows
    drawn_at = sample // samples * rows + row
    column, call = _columns(DEPTH, LANES, VECTOR)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(drawn_at * columns), column)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
    base = log_sum * LOG2E
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, row >= 0, TYPE)
    winner = tl.load(index_ptr + drawn_at)
    row += row_offset
    total = tl.zeros([1, LANES], TYPE)
    dot = tl.zeros([1, LANES], TYPE)
    BLOCK: tl.constexpr = 4 * DEPTH * LANES * VECTOR
    whole = columns // BLOCK * BLOCK
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        x = load_logits(tile_ptrs(x_ptrs, start), None, TYPE, allowed_ptr, allowed_at + start) - over_tile(maximum)
        w, _ = _weights(x, call + start // 4, winner, row, sample, key, counter3, base, inverse)
        total += lane_sum(w)
        dot += lane_sum(w * load_grad(tile_ptrs(grad_ptrs, start), None, TYPE))
    if has_tail(whole, columns, BLOCK):
        mask = whole + column < columns
        x = load_logits(tile_ptrs(x_ptrs, whole), mask, TYPE, allowed_ptr, allowed_at + whole) - over_tile(maximum)
        w, _ = _weights(x, call + whole // 4, winner, row, sample, key, counter3, base, inverse)
        total += lane_sum(w)
        dot += lane_sum(w * load_grad(tile_ptrs(grad_ptrs, whole), mask, TYPE))
    store_part(parts_ptr, 2 * at, tl.sum(total, 1))
    store_part(parts_ptr, 2 * at + 1, tl.sum(dot, 1))


@triton.jit
def _write_tile(
    start, mask, x_ptrs, allowed_ptr, allowed_at, index_ptr, grad_ptrs, parts_ptr, out_ptrs, call, row, inside,
    row_offset, rows, draws, samples, columns, key, counter3, maximum, base, inverse, DT: tl.constexpr,
    TYPE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Writes a tile of the gradient, which stays in registers over all samples. Their sums come from the tile itself
    where the rows are in it whole, else from the PARTS of them. Returns <dx, log2 w> of each lane, [ROWS, LANES]."""
    if PARTS == 0 or DT:
        # What is off is no part of a sum.
        x = load_logits(tile_ptrs(x_ptrs, start), mask, TYPE, allowed_ptr, allowed_at + start) - over_tile(maximum)
    else:
        x = load_logits(tile_ptrs(x_ptrs, start), mask, TYPE) - over_tile(maximum)
    out = tl.zeros(x.shape, TYPE)
    product = tl.zeros([x.shape[3], x.shape[4]], TYPE)
    for sample in range(draws * samples):
        at = sample * rows + row
        drawn_at = sample // samples * rows + row
        winner = tl.load(index_ptr + drawn_at, mask=inside, other=-1)
        w, log2_w = _weights(x, call + start // 4, winner, row + row_offset, sample, key, counter3, base, inverse)
        # After the noise, which needs all the registers there are.
        g = load_grad(tile_ptrs(grad_ptrs + start, over_tile(drawn_at * columns)), mask, TYPE)
        if PARTS == 0:
            total = tl.sum(lane_sum(w), 1)
            dot = tl.sum(lane_sum(w * g), 1)
        else:
            total = sum_parts(parts_ptr, 2 * at, tl.num_programs(1), TYPE, PARTS)
            dot = sum_parts(parts_ptr, 2 * at + 1, tl.num_programs(1), TYPE, PARTS)
        # y (g - <y, g>) / t with y = w / total, <y, g> = dot / total.
        dx = w * over_tile(inverse / (total * samples)) * (g - over_tile(dot / total))
        out += dx
        product += lane_sum(dx * log2_w)
    out = where_allowed(out, 0.0, mask, allowed_ptr, allowed_at + start)
    tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty), mask=mask)
    return product


@triton.jit(do_not_specialize=_PER_CALL, do_not_specialize_on_alignment=["draws", "samples"])
def _relaxed_grad_kernel(
    logits_ptr, allowed_ptr, logsumexp_ptr, index_ptr, grad_ptr, temperature_ptr, parts_ptr, out_ptr, dt_ptr, seed_ptr,
    key: tl.int64, counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, allowed_strides,
    temperature: tl.float64, temperature_stride: tl.int64, rows: tl.int64, draws, samples, columns,
    DT: tl.constexpr, TYPE: tl.constexpr, MASK: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole, PARTS = 0, or a part of a long row. One draw has no loop: `draws` and `samples` are
    # specialised.
    key = load_key(seed_ptr, key)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    x_ptrs = tile_ptrs(logits_ptr + over_tile(row * row_stride), column)
    allowed_at = over_tile(allowed_row(row, allowed_strides)) + column
    grad_ptrs = grad_ptr + column
    out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    base = log_sum * LOG2E
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    if PARTS == 0:
        mask = (over_tile(inside) & (column < columns)) if MASK else None
        product = _write_tile(
            0, mask, x_ptrs, allowed_ptr, allowed_at, index_ptr, grad_ptrs, parts_ptr, out_ptrs, call, row,
            inside, row_offset, rows, draws, samples, columns, key, counter3, maximum, base, inverse, DT, TYPE,
            PARTS,
        )  # fmt: skip
    else:
        product = tl.zeros([ROWS, LANES], TYPE)
        BLOCK: tl.constexpr = 4 * DEPTH * LANES * VECTOR
        whole = columns // BLOCK * BLOCK
        for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
            product += _write_tile(
                start, None, x_ptrs, allowed_ptr, allowed_at, index_ptr, grad_ptrs, parts_ptr, out_ptrs, call,
                row, inside, row_offset, rows, draws, samples, columns, key, counter3, maximum, base, inverse, DT,
                TYPE, PARTS,
            )  # fmt: skip
        if has_tail(whole, columns, BLOCK):
            product += _write_tile(
                whole, whole + column < columns, x_ptrs, allowed_ptr, allowed_at, index_ptr, grad_ptrs, parts_ptr,
                out_ptrs, call, row, inside, row_offset, rows, draws, samples, columns, key, counter3, maximum, base,
                inverse, DT, TYPE, PARTS,
            )  # fmt: skip
    if DT:
        # Without it nothing reads the product, and the compiler drops it.
        dt = -LN2 * tl.sum(product, 1)
        if allowed_ptr is not None:
            # In a row that has nothing to draw, the temperature has no part.
            dt = tl.where(maximum == float("-inf"), 0.0, dt)
        tl.store(dt_ptr + row * tl.num_programs(1) + tl.program_id(1), dt, mask=inside)


@launch.on_its_device
def relaxed_grad(
    logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor, temperature: Tensor | float,
    seed: int | Tensor, offset: int, row_offset: int = 0, allowed: Tensor | None = None, with_temperature: bool = False,
    samples: int = 1,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The RelaxedOneHot gradient.

    Args:
        logits: [rows, columns], any row stride.
        logsumexp: [2, rows], see `entropy.logsumexp`.
        index: int64 [draws, rows], the winners.
        grad: [draws, rows, columns].
        temperature: [rows] in the compute dtype, any stride; or one number.
        seed, offset, row_offset: the noise, see `noise.py`.
        allowed: see `rows.allowed_arguments`.
        with_temperature: whether the temperature's gradient is wanted.
        samples: for each draw, of which the mean is taken.

    Returns:
        dx: [rows, columns] in the logits' dtype.
        dt: [rows] in the compute dtype; an empty tensor where it is not wanted.
    """
    logits, logsumexp, index, grad = (
        with_unit_stride(logits),
        logsumexp.contiguous(),
        index.contiguous(),
        grad.contiguous(),
    )
    rows, columns = logits.shape
    draws = index.shape[0]
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws * samples)
    out, dt = torch.empty(rows, columns, dtype=logits.dtype, device=logits.device), logsumexp.new_empty(0)
    if rows:
        tile = launch.noise_tile(logits, 4, draws * samples)
        parts = 0 if tile.one else tile.parts
        # What each program of a row adds to it.
        dt = logsumexp.new_empty(rows, max(1, parts)) if with_temperature else dt
        common = {
            "logits_ptr": logits, "logsumexp_ptr": logsumexp, "index_ptr": index, "grad_ptr": grad,
            "row_stride": logits.stride(0), "rows": rows, "samples": samples, "columns": columns,
            **temperature_arguments(temperature),
            "TYPE": compute_type(logits.dtype), **launch.options(tile.warps),
            "parts_ptr": torch.empty(draws * samples * rows, 2, parts, dtype=logsumexp.dtype, device=logits.device),
            **tile.row_shape, **noise, **allowed_arguments(allowed),
        }  # fmt: skip
        if parts and draws:
            _grad_sums_kernel[(draws * samples * rows, parts)](**common)
        _relaxed_grad_kernel[(launch.cdiv(rows, tile.rows), max(1, parts))](
            out_ptr=out, dt_ptr=dt, draws=draws, DT=with_temperature, MASK=tile.rows > 1 or columns != 4 * tile.columns,
            PARTS=tile.part_lanes if parts else 0, ROWS=tile.rows, **common,
        )  # fmt: skip
        dt = dt.sum(-1) if with_temperature else dt
    return out, dt
