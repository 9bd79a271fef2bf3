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
    compute_dtype,
    compute_type,
    exp2_of,
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
    row_logits,
    store_part,
    sum_parts,
    temperature_arguments,
    tile_columns,
    tile_logits,
    tile_ptrs,
    walk,
    where_allowed,
    with_unit_stride,
    without_mask,
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
def _words(STAGE: tl.constexpr, call, noise):
    """The word of each element of a tile."""
    row, draw, key, counter3 = noise
    pairs = word_pairs(STAGE, call, over_tile(row), draw, key, counter3)
    return tl.permute(tl.join(pairs.to(tl.uint32), (pairs >> 32).to(tl.uint32)), (4, 5, 0, 1, 2, 3))


# The sample -----------------------------------------------------------------------------------------------------------


@triton.jit
def _races(x, top, call, noise):
    """-(x - top + G) in log2 units, G = -log E, but for a number that is the same for all, as E is in 64ths. The top
    first: beside a large |x| the noise would be rounded away."""
    return (top - x) * LOG2E + fast_log2(exponential32(_words(RELAXED, call, noise)))


@triton.jit
def _rebase(top, maximum, new_top, inverse):
    """The maximum of the scores relative to `top`, relative to `new_top`: -inf where there is no top yet."""
    return maximum + (top - or_zero(new_top)) * (inverse * LOG2E)


@triton.jit
def _add_scores(x, sums, call, noise, inverse):
    """Add a tile to the (top, maximum, total) of each lane, [ROWS, LANES]: with s = (x - top + G) / t in log2 units
    and top the lane's largest logit yet, sum 2^s = total 2^maximum. Return the tile's 2^(s - maximum) as well."""
    top, maximum, total = sums
    new_top = tl.maximum(top, lane_max(x))
    race = _races(x, over_lanes(or_zero(new_top)), call, noise)
    maximum = _rebase(top, maximum, new_top, inverse[:, None])
    new = tl.maximum(maximum, -inverse[:, None] * lane_min(race))
    base = or_zero(new)
    weight = tl.exp2(race * over_tile(-inverse) - over_lanes(base))
    return (new_top, new, total * tl.exp2(maximum - base) + lane_sum(weight)), weight


@triton.jit
def _nothing(ROWS: tl.constexpr, LANES: tl.constexpr, TYPE: tl.constexpr):
    """The (top, maximum, total) of lanes before the first tile."""
    nothing = tl.full([ROWS, LANES], float("-inf"), TYPE)
    return nothing, nothing, tl.zeros([ROWS, LANES], TYPE)


@triton.jit
def _add_tile(start, mask, sums, row, TYPE: tl.constexpr):
    logits, call, noise, inverse = row
    return _add_scores(load_logits(logits, start, mask, TYPE), sums, call + start // 4, noise, inverse)[0]


@triton.jit
def _write_scores(start, mask, total, row, TYPE: tl.constexpr):
    """Write y = 2^(s - log2 sum 2^s) of a tile."""
    logits, out_ptrs, call, noise, top, base, cold = row
    x = load_logits(logits, start, mask, TYPE)
    y = tl.exp2(_races(x, top, call + start // 4, noise) * cold - base)
    tl.store(tile_ptrs(out_ptrs, start), y.to(out_ptrs.dtype.element_ty), mask=mask)
    return total


@triton.jit
def _join(sums, inverse):
    """The (top, maximum, total) of the rows, [ROWS], from those of their lanes, [ROWS, lanes]."""
    top, maximum, total = sums
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
    logits_ptr, row_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    out_ptr,
    rows: tl.int64, programs_per_draw, columns,
    TYPE: tl.constexpr, MASK: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole: one exp2 an element, relative to its lane, and then one factor a lane.
    key = load_key(seed_ptr, key)
    draw = (tl.program_id(0) // programs_per_draw).to(tl.int64)
    row = (tl.program_id(0) % programs_per_draw).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    mask = (over_tile(inside) & (column < columns)) if MASK else None
    x = load_logits(tile_logits(row_logits(logits_ptr, row_stride, None, None, row), column), 0, mask, TYPE)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    noise = (row + row_offset, draw, key, counter3)
    sums, weight = _add_scores(x, _nothing(ROWS, LANES, TYPE), call, noise, inverse)
    row_top, row_maximum, row_total = _join(sums, inverse)
    base = _log2_sum(row_maximum, row_total)
    maximum = _rebase(sums[0], sums[1], row_top[:, None], inverse[:, None])
    y = weight * over_lanes(tl.exp2(maximum - base[:, None]))
    out_ptrs = tile_ptrs(out_ptr + over_tile((draw * rows + row) * columns), column)
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_PER_CALL)
def _relaxed_sums_kernel(
    logits_ptr, row_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    parts_ptr,
    rows: tl.int64, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The (top, maximum, total) of a part of one draw of one long row a program.
    key = load_key(seed_ptr, key)
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = at % rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    logits = tile_logits(row_logits(logits_ptr, row_stride, None, None, row), column)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, None, TYPE)
    known = (logits, call, (row + row_offset, at // rows, key, counter3), inverse)
    sums = walk(_add_tile, _nothing(1, LANES, TYPE), known, None, column, columns, TYPE)
    top, maximum, total = _join(sums, inverse)
    store_part(parts_ptr, 3 * at, top)
    store_part(parts_ptr, 3 * at + 1, maximum)
    store_part(parts_ptr, 3 * at + 2, total)


@triton.jit(do_not_specialize=_PER_CALL)
def _relaxed_write_kernel(
    logits_ptr, row_stride: tl.int64,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    parts_ptr,
    out_ptr,
    rows: tl.int64, columns,
    TYPE: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # The same part of the row a program.
    key = load_key(seed_ptr, key)
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    row = at % rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    logits = tile_logits(row_logits(logits_ptr, row_stride, None, None, row), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(at * columns), column)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, None, TYPE)
    parts = tl.num_programs(1)
    sums = (
        load_parts(parts_ptr, 3 * at, parts, float("-inf"), PARTS),
        load_parts(parts_ptr, 3 * at + 1, parts, float("-inf"), PARTS),
        load_parts(parts_ptr, 3 * at + 2, parts, 0.0, PARTS),
    )
    top, maximum, total = _join(sums, inverse)
    noise = (row + row_offset, at // rows, key, counter3)
    base = over_tile(_log2_sum(maximum, total))
    known = (logits, out_ptrs, call, noise, over_tile(or_zero(top)), base, over_tile(-inverse))
    walk(_write_scores, (), known, None, column, columns, TYPE)


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
def _weights(x, call, winner, noise, base, inverse):
    """w_j = (1 + E_j / (p_j E_k))^(-1/t), 1 for the winner, and log2 w_j; `x` is relative to the row's maximum, `base`
    the log2 of its sum. p_j = 0 makes the quotient inf and the weight 0."""
    row, draw, key, counter3 = noise
    hi, lo, _, _ = words(POSTERIOR, WINNER_CALL, row, draw, key, counter3)
    base -= fast_log2(exponential64(hi, lo))
    # -1.0 *: a sign, where 0 - is an instruction.
    one_over_p = tl.exp2(-1.0 * exp2_of(x, over_tile(base)))
    one_plus = 1.0 + exponential32(_words(POSTERIOR, call, noise)) * one_over_p
    log2_weight = _log2(one_plus) * over_tile(-inverse)
    # The winner by its Philox call and quarter, which take fewer registers than the columns.
    winner = winner.to(tl.int32)
    Q: tl.constexpr = min(_CALLS, x.shape[2] * x.shape[4] * x.shape[5])
    its_call = winner // _GROUP * _CALLS + winner % Q
    its_quarter = winner % _GROUP // Q
    hot = (call == over_tile(its_call)) & (_quarters() == over_tile(its_quarter))
    return tl.where(hot, 1.0, tl.exp2(log2_weight)), tl.where(hot, 0.0, tl.maximum(log2_weight, FAR))


@triton.jit
def _add_weights(start, mask, sums, row, TYPE: tl.constexpr):
    """Add a tile to (sum w, sum w g) of each lane, [1, LANES]."""
    total, dot = sums
    logits, grad_ptrs, call, winner, noise, law = row
    maximum, base, inverse = law
    x = load_logits(logits, start, mask, TYPE) - over_tile(maximum)
    w, _ = _weights(x, call + start // 4, winner, noise, base, inverse)
    return total + lane_sum(w), dot + lane_sum(w * load_grad(tile_ptrs(grad_ptrs, start), mask, TYPE))


@triton.jit(do_not_specialize=_PER_CALL)
def _grad_sums_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    parts_ptr,
    rows: tl.int64, samples, columns,
    TYPE: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # (sum w, sum w g) of a part of one sample of one long row a program.
    key = load_key(seed_ptr, key)
    at = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    sample = at // rows
    row = at % rows
    drawn_at = sample // samples * rows + row
    column, call = _columns(DEPTH, LANES, VECTOR)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    grad_ptrs = tile_ptrs(grad_ptr + over_tile(drawn_at * columns), column)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, None)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, None, TYPE)
    winner = tl.load(index_ptr + drawn_at)
    noise = (row + row_offset, sample, key, counter3)
    known = (logits, grad_ptrs, call, winner, noise, (maximum, log_sum * LOG2E, inverse))
    zeros = tl.zeros([1, LANES], TYPE)
    total, dot = walk(_add_weights, (zeros, zeros), known, None, column, columns, TYPE)
    store_part(parts_ptr, 2 * at, tl.sum(total, 1))
    store_part(parts_ptr, 2 * at + 1, tl.sum(dot, 1))


@triton.jit
def _write_tile(start, mask, product, known, CONSTANTS: tl.constexpr):
    """Write a tile of the gradient, which stays in registers over all samples. Their sums come from the tile itself
    where the rows are in it whole, otherwise from the PARTS of them. Add <dx, log2 w> to that of each lane,
    [ROWS, LANES]."""
    DT: tl.constexpr = CONSTANTS[0]
    TYPE: tl.constexpr = CONSTANTS[1]
    PARTS: tl.constexpr = CONSTANTS[2]
    logits, index_ptr, grad_ptrs, parts_ptr, out_ptrs, call, place, counts, noise, law = known
    row, inside = place
    rows, draws, samples, columns = counts
    noise_row, key, counter3 = noise
    maximum, base, inverse = law
    if PARTS == 0 or DT:
        # A category that is off is no part of a sum.
        x = load_logits(logits, start, mask, TYPE) - over_tile(maximum)
    else:
        x = load_logits(without_mask(logits), start, mask, TYPE) - over_tile(maximum)
    out = tl.zeros(x.shape, TYPE)
    for sample in range(draws * samples):
        at = sample * rows + row
        drawn_at = sample // samples * rows + row
        winner = tl.load(index_ptr + drawn_at, mask=inside, other=-1)
        w, log2_w = _weights(x, call + start // 4, winner, (noise_row, sample, key, counter3), base, inverse)
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
    out = where_allowed(out, 0.0, logits, start, mask)
    tl.store(tile_ptrs(out_ptrs, start), out.to(out_ptrs.dtype.element_ty), mask=mask)
    return product


@triton.jit(do_not_specialize=_PER_CALL, do_not_specialize_on_alignment=["draws", "samples"])
def _relaxed_grad_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr,
    temperature_ptr, temperature: tl.float64, temperature_stride: tl.int64,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    parts_ptr,
    out_ptr,
    dt_ptr,
    rows: tl.int64, draws, samples, columns,
    DT: tl.constexpr, TYPE: tl.constexpr, MASK: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows that are in a tile whole, PARTS = 0, or a part of a long row. One draw has no loop: `draws` and `samples` are
    # specialised.
    key = load_key(seed_ptr, key)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column, call = _columns(DEPTH, LANES, VECTOR)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    out_ptrs = tile_ptrs(out_ptr + over_tile(row * columns), column)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    inverse = inverse_temperature(temperature_ptr, temperature, row * temperature_stride, inside, TYPE)
    known = (
        logits, index_ptr, grad_ptr + column, parts_ptr, out_ptrs, call, (row, inside), (rows, draws, samples, columns),
        (row + row_offset, key, counter3), (maximum, log_sum * LOG2E, inverse),
    )  # fmt: skip
    product = tl.zeros([ROWS, LANES], TYPE)
    if PARTS == 0:
        mask = (over_tile(inside) & (column < columns)) if MASK else None
        product = _write_tile(0, mask, product, known, (DT, TYPE, PARTS))
    else:
        product = walk(_write_tile, product, known, None, column, columns, (DT, TYPE, PARTS))
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
