"""Draws from softmax(x): index, one-hot and logsumexp, from one pass over the row.

Group Gumbel-max, in its race form. With w_j = exp x_j, E iid Exp(1) and the row cut into groups of 1024 columns,

    g* = argmin_g E_g / sum_{j in g} w_j        one E per group
    j* = argmin_{j in g*} E_j / w_j             one E per element of the winning group alone

is exactly a draw from softmax(x), so the pass over the row is max + sum of exp2, with no noise in it.

A group's sum is kept as s_g 2^e_g with an integer e_g: rescaling by a power of two is exact, so the winner does not
depend on the order in which groups meet.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .entropy import logsumexp as row_logsumexp
from .noise import ELEMENT, GROUP, GROUPS, LOG2E, exponential64, load_key, seed_arguments, words
from .rows import (
    compute_dtype,
    compute_type,
    exp2_of,
    first_least,
    load_logits,
    logsumexp_of,
    or_zero,
    race,
    with_unit_stride,
    zero_or_one,
)

_GROUP = tl.constexpr(GROUP)
_HALF = tl.constexpr(GROUP // 2)


@triton.jit
def _short_kernel(
    logits_ptr, one_hot_ptr, index_ptr, logsumexp_ptr, seed_ptr, key: tl.int64, counter3: tl.int64,
    row_offset: tl.int64, row_stride: tl.int64, rows: tl.int64, draws: tl.int64, columns,
    ONE_HOT: tl.constexpr, SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    # Rows of one group: no race of groups, and the whole row stays in registers over all draws.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    low_column = tl.arange(0, HALF)[None, :]
    high_column = low_column + HALF
    low_mask = inside[:, None] & (low_column < columns)
    high_mask = inside[:, None] & (high_column < columns)
    start = logits_ptr + (row * row_stride)[:, None]
    low = load_logits(start + low_column, low_mask, TYPE)
    high = load_logits(start + high_column, high_mask, TYPE)

    maximum = tl.maximum(tl.max(low, 1), tl.max(high, 1))
    base = maximum * LOG2E
    total = tl.sum(tl.exp2(exp2_of(low, base[:, None])), 1) + tl.sum(tl.exp2(exp2_of(high, base[:, None])), 1)
    valid = total > 0
    if tl.program_id(1) == 0:
        tl.store(logsumexp_ptr + row, logsumexp_of(base, total), mask=inside)

    for draw in range(tl.program_id(1).to(tl.int64), draws, tl.num_programs(1)):
        w0, w1, w2, w3 = words(ELEMENT, low_column, (row + row_offset)[:, None], draw, key, counter3)
        winner = first_least(race(low, maximum, w0, w1), race(high, maximum, w2, w3), HALF)
        winner = tl.where(valid, winner, -1)
        at = draw * rows + row
        tl.store(index_ptr + at, winner.to(tl.int64), mask=inside)
        if ONE_HOT:
            out = one_hot_ptr + (at * columns)[:, None]
            one = zero_or_one(low_column == winner[:, None], one_hot_ptr)
            tl.store(out + low_column, one, mask=low_mask)
            one = zero_or_one(high_column == winner[:, None], one_hot_ptr)
            tl.store(out + high_column, one, mask=high_mask)


@triton.jit
def _group_sums(
    logits_ptr, one_hot_ptr, start, columns,
    MASK: tl.constexpr, ZERO: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(e, s) of each group of the tile that starts at column `start`, with sum exp x = s 2^e; stores zeros beside."""
    column = start + tl.arange(0, TILE)[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    if MASK:
        mask = column < columns
    else:
        mask: tl.constexpr = None
    x = load_logits(logits_ptr + column, mask, TYPE)
    if ZERO:
        tl.store(one_hot_ptr + column, tl.zeros([TILE, _GROUP], one_hot_ptr.dtype.element_ty), mask=mask)
    exponent = tl.ceil(tl.max(x, 1) * LOG2E)
    return exponent, tl.sum(tl.exp2(exp2_of(x, or_zero(exponent)[:, None])), 1)


@triton.jit
def _race_groups(group, exponent, total, row, draw, key, counter3, running, running_total, best, best_group):
    """Lets a tile of groups (exponent, total) race; carries the row's running maximum and sum, and the best."""
    w0, w1, _, _ = words(GROUPS, group, row, draw, key, counter3)
    new = tl.maximum(running, tl.max(exponent, 0))
    base = or_zero(new)
    # A group that is all -inf has a total of 0 and its race ends at inf.
    result = exponential64(w0, w1) * (tl.exp2(base - exponent) / total).to(tl.float32)
    value, at = tl.min(result, 0, return_indices=True)
    first = tl.min(group, 0)
    best *= tl.exp2(base - running).to(tl.float32)
    best_group = tl.where(value < best, first + at, best_group)
    best = tl.minimum(best, value)
    running_total = running_total * tl.exp2(running - base) + tl.sum(total * tl.exp2(exponent - base), 0)
    return new, running_total, best, best_group


@triton.jit
def _race_elements(logits_ptr, group, row, draw, key, counter3, columns, TYPE: tl.constexpr):
    """The winning column of the winning group."""
    i = tl.arange(0, _HALF)[None, :]
    low_column = group * _GROUP + i
    high_column = low_column + _HALF
    low = load_logits(logits_ptr + low_column, low_column < columns, TYPE)
    high = load_logits(logits_ptr + high_column, high_column < columns, TYPE)
    maximum = tl.maximum(tl.max(low, 1), tl.max(high, 1))
    w0, w1, w2, w3 = words(ELEMENT, group * _HALF + i, row, draw, key, counter3)
    winner = first_least(race(low, maximum, w0, w1), race(high, maximum, w2, w3), _HALF)
    return group * _GROUP + tl.min(winner, 0)


@triton.jit
def _row_kernel(
    logits_ptr, one_hot_ptr, index_ptr, logsumexp_ptr, seed_ptr, key: tl.int64, counter3: tl.int64,
    row_offset: tl.int64, row_stride: tl.int64, columns,
    ONE_HOT: tl.constexpr, SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One long row a program, one draw: reads it once, and the winning group of 1024 a second time.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    one_hot_ptr += row * columns
    running = tl.full([], float("-inf"), TYPE)
    running_total = tl.full([], 0.0, TYPE)
    best = tl.full([], float("inf"), tl.float32)
    best_group = tl.full([], 0, tl.int32)
    # Whole tiles without a mask, and one more with it.
    whole = columns // (TILE * _GROUP) * (TILE * _GROUP)
    for start in range(0, whole, TILE * _GROUP):
        exponent, total = _group_sums(logits_ptr, one_hot_ptr, start, columns, False, ONE_HOT, TYPE, TILE)
        group = start // _GROUP + tl.arange(0, TILE)
        running, running_total, best, best_group = _race_groups(
            group, exponent, total, row + row_offset, 0, key, counter3, running, running_total, best, best_group
        )
    if whole < columns:
        exponent, total = _group_sums(logits_ptr, one_hot_ptr, whole, columns, True, ONE_HOT, TYPE, TILE)
        group = whole // _GROUP + tl.arange(0, TILE)
        running, running_total, best, best_group = _race_groups(
            group, exponent, total, row + row_offset, 0, key, counter3, running, running_total, best, best_group
        )

    winner = _race_elements(logits_ptr, best_group, row + row_offset, 0, key, counter3, columns, TYPE)
    valid = running_total > 0
    tl.store(index_ptr + row, tl.where(valid, winner, -1).to(tl.int64))
    tl.store(logsumexp_ptr + row, logsumexp_of(running, running_total))
    if ONE_HOT:
        # The zeros of the whole row before the one 1 of it.
        tl.debug_barrier()
        tl.store(one_hot_ptr + winner, zero_or_one(valid, one_hot_ptr), mask=valid)


@triton.jit
def _sums_kernel(
    logits_ptr, one_hot_ptr, exponent_ptr, total_ptr, row_stride: tl.int64, columns, groups,
    ZERO: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # A part of a row a program: what the race of the groups needs of it.
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    one_hot_ptr += row * columns
    exponent_ptr += row * groups
    total_ptr += row * groups
    step = tl.num_programs(1) * (TILE * _GROUP)
    whole = columns // (TILE * _GROUP) * (TILE * _GROUP)
    for start in range(tl.program_id(1) * (TILE * _GROUP), whole, step):
        exponent, total = _group_sums(logits_ptr, one_hot_ptr, start, columns, False, ZERO, TYPE, TILE)
        group = start // _GROUP + tl.arange(0, TILE)
        tl.store(exponent_ptr + group, exponent)
        tl.store(total_ptr + group, total)
    # The last tile, where it is not whole, belongs to the program whose turn it is.
    if whole < columns and (whole // (TILE * _GROUP)) % tl.num_programs(1) == tl.program_id(1):
        exponent, total = _group_sums(logits_ptr, one_hot_ptr, whole, columns, True, ZERO, TYPE, TILE)
        group = whole // _GROUP + tl.arange(0, TILE)
        tl.store(exponent_ptr + group, exponent, mask=group < groups)
        tl.store(total_ptr + group, total, mask=group < groups)


@triton.jit
def _select_kernel(
    logits_ptr, one_hot_ptr, index_ptr, logsumexp_ptr, exponent_ptr, total_ptr, seed_ptr, key: tl.int64,
    counter3: tl.int64, row_offset: tl.int64, row_stride: tl.int64, rows: tl.int64, columns, groups,
    ONE_HOT: tl.constexpr, SEED_TENSOR: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One draw of one row a program, from the sums of its groups.
    key = load_key(seed_ptr, key, SEED_TENSOR)
    at = tl.program_id(0).to(tl.int64)
    draw = at // rows
    row = at % rows
    running = tl.full([], float("-inf"), TYPE)
    running_total = tl.full([], 0.0, TYPE)
    best = tl.full([], float("inf"), tl.float32)
    best_group = tl.full([], 0, tl.int32)
    for start in range(0, groups, TILE):
        group = start + tl.arange(0, TILE)
        exponent = tl.load(exponent_ptr + row * groups + group, mask=group < groups, other=float("-inf"))
        total = tl.load(total_ptr + row * groups + group, mask=group < groups, other=0.0)
        running, running_total, best, best_group = _race_groups(
            group, exponent, total, row + row_offset, draw, key, counter3, running, running_total, best, best_group
        )
    logits_ptr += row * row_stride
    winner = _race_elements(logits_ptr, best_group, row + row_offset, draw, key, counter3, columns, TYPE)
    valid = running_total > 0
    tl.store(index_ptr + at, tl.where(valid, winner, -1).to(tl.int64))
    if draw == 0:
        tl.store(logsumexp_ptr + row, logsumexp_of(running, running_total))
    if ONE_HOT:
        tl.store(one_hot_ptr + at * columns + winner, zero_or_one(valid, one_hot_ptr), mask=valid)


def sample(
    logits: Tensor, draws: int, dtype: torch.dtype | None, seed: int | Tensor, offset: int, row_offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws from the softmax of each row.

    Args:
        logits: [rows, columns], any row stride.
        draws: of each row.
        dtype: of the one-hot; None leaves it out.
        seed, offset, row_offset: the noise, see `noise.py`; `seed` an int or an int64 tensor of one element.

    Returns:
        one_hot: [draws, rows, columns] of `dtype`, or an empty tensor; all zero for a row that is no distribution.
        index: int64 [draws, rows]; -1 for such a row.
        logsumexp: [rows] in the compute dtype; NaN for such a row.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    noise = seed_arguments(seed, offset, row_offset, rows, columns, draws, logits)
    index = torch.empty((draws, rows), dtype=torch.int64, device=logits.device)
    logsumexp = torch.empty(rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    wanted, short, one_draw = dtype is not None, columns <= GROUP, draws == 1
    # Several draws of a long row share the sums, and their zeros are no part of that pass.
    shape = (draws, rows, columns) if wanted else (0,)
    fill = torch.empty if short or one_draw or not wanted else torch.zeros
    one_hot = fill(shape, dtype=dtype or logits.dtype, device=logits.device)
    if not (rows and draws):
        return one_hot, index, row_logsumexp(logits)
    common = {"ONE_HOT": wanted, "TYPE": compute_type(logits.dtype), "row_stride": logits.stride(0), **noise}
    if short:
        tile = launch.part_tile(rows, columns, parts=2)
        programs = triton.cdiv(rows, tile.rows)
        _short_kernel[(programs, launch.draw_programs(programs, draws))](
            logits, one_hot, index, logsumexp, rows=rows, draws=draws, columns=columns,
            ROWS=tile.rows, HALF=tile.block, num_warps=tile.warps, **common,
        )  # fmt: skip
        return one_hot, index, logsumexp
    splits = launch.splits(rows, columns)
    if one_draw and splits == 1:
        _row_kernel[(rows,)](
            logits, one_hot, index, logsumexp, columns=columns,
            TILE=launch.GROUPS, num_warps=launch.SAMPLE_WARPS, **common,
        )  # fmt: skip
        return one_hot, index, logsumexp
    groups = triton.cdiv(columns, GROUP)
    exponent, total = torch.empty((2, rows, groups), dtype=logsumexp.dtype, device=logits.device)
    _sums_kernel[(rows, splits)](
        logits, one_hot, exponent, total, logits.stride(0), columns, groups, ZERO=wanted and one_draw,
        TYPE=common["TYPE"], TILE=launch.GROUPS, num_warps=launch.SAMPLE_WARPS,
    )  # fmt: skip
    _select_kernel[(draws * rows,)](
        logits, one_hot, index, logsumexp, exponent, total, rows=rows, columns=columns, groups=groups,
        TILE=min(launch.RACE, triton.next_power_of_2(groups)), num_warps=launch.SAMPLE_WARPS, **common,
    )  # fmt: skip
    return one_hot, index, logsumexp
