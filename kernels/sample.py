"""Draws from softmax(x): index, one-hot and logsumexp, from one pass over the row.

Group Gumbel-max, in its race form. With w_j = exp x_j, E iid Exp(1) and the row cut into groups of 1024 columns,

    g* = argmin_g E_g / sum_{j in g} w_j        one E per group
    j* = argmin_{j in g*} E_j / w_j             one E per element of the winning group alone

is exactly a draw from softmax(x), so the pass over the row is max + sum of exp2, with no noise in it.

A group's sum is kept as s_g exp m_g, m_g its maximum, which only its own logits decide; and the groups of a row meet in
one order, whichever programs summed them. So the winner does not depend on how a row is dealt out.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .entropy import logsumexp as row_logsumexp
from .noise import ELEMENT, GROUP, GROUPS, LOG2E, PER_CALL, exponential64, load_key, seed_arguments, words
from .rows import (
    allowed_arguments,
    compute_dtype,
    compute_type,
    is_shared,
    lane_max,
    lane_min,
    lane_sum,
    load_logits,
    log_sum_of,
    or_zero,
    over_tile,
    row_logits,
    store_logsumexp,
    tile_columns,
    tile_logits,
    tile_ptrs,
    walk,
    with_unit_stride,
)

_GROUP = tl.constexpr(GROUP)
_HALF = tl.constexpr(GROUP // 2)
# The second of these starts on 16 bytes or not by the number of rows, which would be two variants of each kernel.
_SUMS = ["maximum_ptr", "total_ptr"]


@triton.jit
def _race(w0, w1, x, maximum):
    """E / w of a tile, w = exp(x - maximum)."""
    weight_inverse = tl.exp2(((over_tile(maximum) - x) * LOG2E).to(tl.float32))
    return exponential64(w0, w1) * weight_inverse


@triton.jit
def _winner(x, upper, maximum, call, upper_call, HALF: tl.constexpr, first_call, noise):
    """The place in its group of the least E / w of each row, [ROWS]; the lowest of them where some are equal. A logit
    of -inf ends at inf, and is never drawn. The group is two tiles: the places `call` of its first half, and those of
    its second, HALF + `upper_call`, that may be columns. One Philox call, numbered from `first_call` on, serves a place
    of each half: where both tiles have it, the compiler makes it once."""
    row, draw, key, counter3 = noise
    row = over_tile(row)
    w0, w1, _, _ = words(ELEMENT, first_call + call, row, draw, key, counter3)
    _, _, w2, w3 = words(ELEMENT, first_call + upper_call, row, draw, key, counter3)
    race = _race(w0, w1, x, maximum)
    upper_race = _race(w2, w3, upper, maximum)
    least = over_tile(tl.min(tl.minimum(lane_min(race), lane_min(upper_race)), 1))
    place = lane_min(tl.where(race == least, call, 2**30))
    upper_place = lane_min(tl.where(upper_race == least, HALF + upper_call, 2**30))
    return tl.min(tl.minimum(place, upper_place), 1)


@triton.jit
def _zero_or_one(condition, ptr):
    """1 where `condition` holds, else 0, in the type that `ptr` points to; by way of float32 to a floating one, which
    is the way to bfloat16 that the interpreter knows."""
    number = tl.where(condition, 1, 0)
    if ptr.dtype.element_ty.is_floating():
        number = number.to(tl.float32)
    return number.to(ptr.dtype.element_ty)


@triton.jit(do_not_specialize=[*PER_CALL, "draws"])
def _short_kernel(
    logits_ptr, one_hot_ptr, index_ptr, logsumexp_ptr,
    row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    rows: tl.int64, draws: tl.int64, columns,
    ONE_HOT: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, UPPER_DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # Rows of one group: no race of groups, and the whole row stays in registers over all draws.
    key = load_key(seed_ptr, key)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    HALF: tl.constexpr = DEPTH * LANES * VECTOR
    column = tile_columns(DEPTH, LANES, VECTOR)
    call = tile_columns(UPPER_DEPTH, LANES, VECTOR)
    upper = HALF + call
    mask = over_tile(inside) & (column < columns)
    upper_mask = over_tile(inside) & (upper < columns)
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    x = load_logits(tile_logits(logits, column), 0, mask, TYPE)
    upper_x = load_logits(tile_logits(logits, upper), 0, upper_mask, TYPE)

    maximum = tl.max(tl.maximum(lane_max(x), lane_max(upper_x)), 1)
    base = over_tile(or_zero(maximum))
    total = tl.sum(lane_sum(tl.exp2((x - base) * LOG2E)) + lane_sum(tl.exp2((upper_x - base) * LOG2E)), 1)
    if tl.program_id(1) == 0:
        store_logsumexp(logsumexp_ptr, row, rows, inside, maximum, log_sum_of(total))

    for draw in range(tl.program_id(1).to(tl.int64), draws, tl.num_programs(1)):
        noise = (row + row_offset, draw, key, counter3)
        winner = _winner(x, upper_x, maximum, column, call, HALF, 0, noise)
        winner = tl.where(total > 0, winner, -1)
        at = draw * rows + row
        tl.store(index_ptr + at, winner.to(tl.int64), mask=inside)
        if ONE_HOT:
            out = one_hot_ptr + over_tile(at * columns)
            one = over_tile(winner)
            tl.store(tile_ptrs(out, column), _zero_or_one(column == one, one_hot_ptr), mask=mask)
            tl.store(tile_ptrs(out, upper), _zero_or_one(upper == one, one_hot_ptr), mask=upper_mask)


@triton.jit
def _group_columns(start, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """The columns of a tile of TILE groups from column `start` on, [DEPTH, TILE, WIDTH]: a warp for each group, a width
    of one load for all of its threads, so that a group's maximum and sum cost ten shuffles and no barrier."""
    depth = tl.arange(0, _GROUP // WIDTH)[:, None, None] * WIDTH
    return start + depth + tl.arange(0, TILE)[None, :, None] * _GROUP + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def _sum_tile(start, mask, total, row, TYPE: tl.constexpr):
    """Write (m, s) of each group of a tile, sum exp x = s exp m, and zeros to the one-hot, if there is one."""
    logits, zero_ptr, sums, column, columns = row
    TILE: tl.constexpr = column.shape[1]
    zero_column = start + tl.arange(0, TILE * _GROUP)
    zero_mask = None if mask is None else zero_column < columns
    x = load_logits(logits, _group_columns(start, TILE, column.shape[2]), mask, TYPE)
    if zero_ptr is not None:
        tl.store(zero_ptr + zero_column, tl.zeros([TILE * _GROUP], zero_ptr.dtype.element_ty), mask=zero_mask)
    maximum = tl.max(tl.max(x, 0), 1)
    total_of_group = tl.sum(tl.sum(tl.exp2((x - or_zero(maximum)[None, :, None]) * LOG2E), 0), 1)
    # By the first thread of the group's warp: as numbers of [TILE] alone they would be dealt out to other threads.
    thread = tl.arange(0, 32)[None, :]
    group = (tl.arange(0, TILE) + start // _GROUP)[:, None]
    first = (thread == 0) & (group < tl.cdiv(columns, _GROUP))
    tl.store(sums[0] + group + thread, tl.broadcast_to(maximum[:, None], [TILE, 32]), mask=first)
    tl.store(sums[1] + group + thread, tl.broadcast_to(total_of_group[:, None], [TILE, 32]), mask=first)
    return total


@triton.jit
def _sum_groups(logits, zero_ptr, sums, columns, TYPE: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Write the sums of this program's tiles of a row."""
    column = _group_columns(0, TILE, WIDTH)
    walk(_sum_tile, (), (logits, zero_ptr, sums, column, columns), None, column, columns, TYPE)


@triton.jit
def _number(group, shard):
    """The number by which the noise knows a group of this shard of a row; (): the row is whole."""
    if len(shard) > 0:
        group += shard[0]
    return group


@triton.jit
def _race_groups(sums, shard, noise, columns, TYPE: tl.constexpr, RACE: tl.constexpr):
    """The winning group of a row, its E / sum exp(x - maximum), and the row's (maximum, total), sum exp x =
    total exp(maximum)."""
    maximum_ptr, total_ptr = sums
    row, draw, key, counter3 = noise
    groups = tl.cdiv(columns, _GROUP)
    maximum = tl.full([], float("-inf"), TYPE)
    row_total = tl.full([], 0.0, TYPE)
    best = tl.full([], float("inf"), tl.float32)
    best_group = tl.full([], 0, tl.int32)
    for start in range(0, groups, RACE):
        group = start + tl.arange(0, RACE)
        group_maximum = tl.load(maximum_ptr + group, mask=group < groups, other=float("-inf"))
        total = tl.load(total_ptr + group, mask=group < groups, other=0.0)
        new = tl.maximum(maximum, tl.max(group_maximum, 0))
        base = or_zero(new)
        w0, w1, _, _ = words(GROUPS, _number(group, shard), row, draw, key, counter3)
        # A group that is all -inf has a total of 0 and ends at inf.
        result = exponential64(w0, w1) * (tl.exp2((base - group_maximum) * LOG2E) / total).to(tl.float32)
        # The first of the least, by two reductions: the interpreter's search for a least number and its place fails
        # where all are NaN.
        value = tl.min(result, 0)
        first = tl.min(tl.where(result == value, group, 2**30), 0)
        best *= tl.exp2((base - maximum) * LOG2E).to(tl.float32)
        best_group = tl.where(value < best, first, best_group)
        best = tl.minimum(best, value)
        row_total = row_total * tl.exp2((maximum - base) * LOG2E) + tl.sum(
            total * tl.exp2((group_maximum - base) * LOG2E), 0
        )
        maximum = new
    return best_group, best, maximum, row_total


@triton.jit
def _race_elements(logits, group, shard, noise, columns, TYPE: tl.constexpr):
    """The winning column of the winning group."""
    call = tile_columns(1, 128, _HALF // 128)
    column = group * _GROUP + call
    upper = column + _HALF
    x = load_logits(logits, column, column < columns, TYPE)
    upper_x = load_logits(logits, upper, upper < columns, TYPE)
    row, draw, key, counter3 = noise
    row += tl.arange(0, 1)
    maximum = tl.max(tl.maximum(lane_max(x), lane_max(upper_x)), 1)
    first_call = _number(group, shard) * _HALF
    winner = _winner(x, upper_x, maximum, call, call, _HALF, first_call, (row, draw, key, counter3))
    return group * _GROUP + tl.min(winner, 0)


@triton.jit
def _select(
    logits, out, sums, shard, noise, rows, columns, ONE_HOT: tl.constexpr, TYPE: tl.constexpr, RACE: tl.constexpr
):
    """One draw of one row, from the sums of its groups. The pointers are to the row and the draw. For a shard
    of a row, (its first group, the pointer of the score), the winner's score is stored as well, and the total in place
    of its logarithm. () is a whole row."""
    one_hot_ptr, index_ptr, logsumexp_ptr = out
    group, score, maximum, total = _race_groups(sums, shard, noise, columns, TYPE, RACE)
    winner = _race_elements(logits, group, shard, noise, columns, TYPE)
    valid = total > 0
    tl.store(index_ptr, tl.where(valid, winner, -1).to(tl.int64))
    if len(shard) == 0:
        store_logsumexp(logsumexp_ptr, 0, rows, noise[1] == 0, maximum, log_sum_of(total))
    else:
        store_logsumexp(logsumexp_ptr, 0, rows, noise[1] == 0, maximum, total)
        tl.store(shard[1], score)
    if ONE_HOT:
        tl.store(one_hot_ptr + winner, _zero_or_one(valid, one_hot_ptr), mask=valid)


@triton.jit(do_not_specialize=[*PER_CALL, *_SUMS, "summed"])
def _row_kernel(
    logits_ptr, one_hot_ptr, index_ptr, logsumexp_ptr, maximum_ptr, total_ptr,
    row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    columns, summed,
    ONE_HOT: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
    RACE: tl.constexpr,
):  # fmt: skip
    # One draw of one long row a program, which reads it once, and the winning group of 1024 a second time. Programs
    # that share a row leave the sums alone; the same kernel is launched again, and finds it summed.
    row = tl.program_id(0).to(tl.int64)
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    one_hot_ptr += row * columns
    groups = tl.cdiv(columns, _GROUP)
    sums = (maximum_ptr + row * groups, total_ptr + row * groups)
    if summed == 0:
        _sum_groups(logits, one_hot_ptr if ONE_HOT else None, sums, columns, TYPE, TILE, WIDTH)
    if not is_shared(1):
        # Every sum before other threads of this program read it; and the zeros of the row before the one 1 of it.
        tl.debug_barrier()
        out = (one_hot_ptr, index_ptr + row, logsumexp_ptr + row)
        noise = (row + row_offset, 0, load_key(seed_ptr, key), counter3)
        _select(logits, out, sums, (), noise, tl.num_programs(0), columns, ONE_HOT, TYPE, RACE)


@triton.jit(do_not_specialize=_SUMS)
def _sums_kernel(
    logits_ptr, maximum_ptr, total_ptr,
    row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    columns,
    TYPE: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # A part of a long row a program, for several draws or of a shard.
    row = tl.program_id(0).to(tl.int64)
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    groups = tl.cdiv(columns, _GROUP)
    sums = (maximum_ptr + row * groups, total_ptr + row * groups)
    _sum_groups(logits, None, sums, columns, TYPE, TILE, WIDTH)


@triton.jit(do_not_specialize=[*PER_CALL, *_SUMS, "first_group"])
def _select_kernel(
    logits_ptr, one_hot_ptr, index_ptr, logsumexp_ptr, maximum_ptr, total_ptr,
    row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    seed_ptr, key: tl.int64, counter3: tl.int64, row_offset: tl.int64,
    rows: tl.int64, columns,
    first_group, score_ptr,
    ONE_HOT: tl.constexpr, TYPE: tl.constexpr, RACE: tl.constexpr,
):  # fmt: skip
    # One draw of one long row a program.
    at = tl.program_id(0).to(tl.int64)
    row = at % rows
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    groups = tl.cdiv(columns, _GROUP)
    sums = (maximum_ptr + row * groups, total_ptr + row * groups)
    out = (one_hot_ptr + at * columns, index_ptr + at, logsumexp_ptr + row)
    noise = (row + row_offset, at // rows, load_key(seed_ptr, key), counter3)
    shard = () if score_ptr is None else (first_group, score_ptr + tl.program_id(0))
    _select(logits, out, sums, shard, noise, rows, columns, ONE_HOT, TYPE, RACE)


@launch.on_its_device
def sample(
    logits: Tensor,
    draws: int | None,
    dtype: torch.dtype | None,
    seed: int | Tensor,
    offset: int,
    row_offset: int = 0,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws from the softmax of each row.

    Args:
        logits: [rows, columns], any row stride.
        draws: of each row; None for one, whose results have no dimension of draws.
        dtype: of the one-hot; None leaves it out.
        seed, offset, row_offset: the noise, see `noise.py`; `seed` an int or an int64 tensor of one element.
        allowed: see `rows.allowed_arguments`.

    Returns:
        one_hot: [draws, rows, columns] of `dtype`, or an empty tensor; all zero for a row that is no distribution.
        index: int64 [draws, rows]; -1 for such a row.
        logsumexp: [2, rows], see `entropy.logsumexp`, in the compute dtype; NaN for such a row.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    lead = () if draws is None else (draws,)
    draws = 1 if draws is None else draws
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws)
    # Sizes one by one: of a tuple, torch takes half a microsecond more.
    index = torch.empty(*lead, rows, dtype=torch.int64, device=logits.device)
    wanted, short, one_draw = dtype is not None, columns <= GROUP, draws == 1
    # Several draws of a long row share the sums, and their zeros are no part of that pass.
    fill = torch.empty if short or one_draw or not wanted else torch.zeros
    shape = (*lead, rows, columns) if wanted else (0,)
    one_hot = fill(*shape, dtype=dtype or logits.dtype, device=logits.device)
    if not draws:
        return one_hot, index, row_logsumexp(logits, allowed)
    logsumexp = torch.empty(2, rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    if not rows:
        return one_hot, index, logsumexp
    out = (logits, one_hot, index, logsumexp)
    race = {"ONE_HOT": wanted, "TYPE": compute_type(logits.dtype), "row_stride": logits.stride(0), **noise}
    choice = allowed_arguments(allowed)
    race |= choice
    if short:
        tile = launch.noise_tile(logits, 2)
        programs = launch.cdiv(rows, tile.rows)
        _short_kernel[(programs, launch.draw_programs(logits, programs, draws))](
            *out, rows=rows, draws=draws, columns=columns, UPPER_DEPTH=launch.upper_depth(columns, tile),
            **launch.options(tile.warps), **tile.shape, **race,
        )  # fmt: skip
        return one_hot, index, logsumexp
    groups = launch.cdiv(columns, GROUP)
    sums = torch.empty(2, rows, groups, dtype=logsumexp.dtype, device=logits.device).unbind()
    race["RACE"] = min(launch.RACE, launch.next_power_of_2(groups))
    groups = launch.SAMPLE_GROUPS
    tile = {"TILE": groups, "WIDTH": 32 * launch.vector(logits), **launch.options(groups)}
    parts = launch.splits(logits, rows, launch.cdiv(columns, groups * GROUP))
    if one_draw:
        _row_kernel[(rows, parts)](*out, *sums, columns=columns, summed=0, **tile, **race)
        if parts > 1:
            _row_kernel[(rows,)](*out, *sums, columns=columns, summed=1, **tile, **race)
        return one_hot, index, logsumexp
    _sums_kernel[(rows, parts)](
        logits, *sums, row_stride=logits.stride(0), columns=columns, TYPE=race["TYPE"], **tile, **choice
    )
    _select_kernel[(draws * rows,)](
        *out, *sums, rows=rows, columns=columns, first_group=None, score_ptr=None, **launch.options(4), **race
    )
    return one_hot, index, logsumexp


@launch.on_its_device
def shard_race(
    logits: Tensor,
    draws: int,
    seed: int | Tensor,
    offset: int,
    row_offset: int,
    first_group: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The draw of a long row, as far as one shard of its columns decides it.

    Args:
        logits: [rows, columns] of the shard, at least one column, any row stride.
        draws, seed, offset, row_offset: see `sample`.
        first_group: the number of the shard's first group of 1024 columns.

    Returns:
        index: int64 [draws, rows], the winner's column in the shard; -1 where it has nothing to draw.
        score: float32 [draws, rows], E / sum exp(x - maximum) of its group: the shard of a row with the least
            score exp(-maximum) has the row's winner.
        sums: [2, rows], maximum and total, sum exp x = total exp(maximum), in the compute dtype.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    noise = seed_arguments(seed, offset, row_offset, rows, first_group * GROUP + columns, draws)
    index = torch.empty(draws, rows, dtype=torch.int64, device=logits.device)
    score = torch.empty(draws, rows, dtype=torch.float32, device=logits.device)
    result = torch.empty(2, rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    if not (rows and draws):
        return index, score, result
    count = launch.cdiv(columns, GROUP)
    sums = torch.empty(2, rows, count, dtype=result.dtype, device=logits.device).unbind()
    groups, kind, choice = launch.SAMPLE_GROUPS, compute_type(logits.dtype), allowed_arguments(None)
    parts = launch.splits(logits, rows, launch.cdiv(columns, groups * GROUP))
    _sums_kernel[(rows, parts)](
        logits, *sums, row_stride=logits.stride(0), columns=columns, TYPE=kind, TILE=groups,
        WIDTH=32 * launch.vector(logits), **launch.options(groups), **choice,
    )  # fmt: skip
    _select_kernel[(draws * rows,)](
        logits, logits, index, result, *sums, rows=rows, columns=columns, row_stride=logits.stride(0), ONE_HOT=False,
        TYPE=kind, RACE=min(launch.RACE, launch.next_power_of_2(count)), first_group=first_group, score_ptr=score,
        **launch.options(4), **noise, **choice,
    )  # fmt: skip
    return index, score, result
