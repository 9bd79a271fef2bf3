"""The log-probability of one-hot rows, or of indices.

k = the first maximum of the value row
log p_k = (x_k - max x) - log sum exp(x - max x)
dx_j = sum over draws of g ([j = k] - p_j)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .entropy import logsumexp as row_logsumexp
from .rows import (
    add_tile,
    allowed_arguments,
    compute_dtype,
    compute_type,
    from_parts,
    is_shared,
    join_lanes,
    lane_max,
    lane_min,
    load_chosen,
    load_logits,
    load_logsumexp,
    load_parts,
    log2_probs,
    log_sum_of,
    over_tile,
    row_logits,
    store_logsumexp,
    store_part,
    tail_mask,
    tile_columns,
    tile_logits,
    tile_ptrs,
    walk,
    where_allowed,
    with_unit_stride,
    without_mask,
)


@triton.jit
def _load_value(ptrs, mask, TYPE: tl.constexpr, LEAST: tl.constexpr):
    """A tile of the value in a type that holds all of its numbers; the least of them where `mask` is False. NaN is inf,
    so that it is the maximum, as torch's argmax has it."""
    if mask is None:
        value = tl.load(ptrs).to(TYPE)
    else:
        value = tl.where(mask, tl.load(ptrs, mask=mask, other=0).to(TYPE), LEAST)
    if TYPE.is_floating():
        value = tl.where(value < float("inf"), value, float("inf"))
    return value


@triton.jit
def _add_value(start, mask, best, values, CONSTANTS: tl.constexpr):
    """Add a tile of the value to the maximum of each lane and the tile that it was first met in, [ROWS, LANES]."""
    maximum, first_start = best
    top = lane_max(_load_value(tile_ptrs(values, start), mask, CONSTANTS[1], CONSTANTS[2]))
    return tl.maximum(maximum, top), tl.where(top > maximum, start, first_start)


@triton.jit
def _add_logits(start, mask, sums, logits, CONSTANTS: tl.constexpr):
    """Add a tile of the logits to (maximum, total) of each lane, [ROWS, LANES]."""
    return add_tile(load_logits(logits, start, mask, CONSTANTS[0]), sums[0], sums[1])


@triton.jit
def _add_both(start, mask, total, row, CONSTANTS: tl.constexpr):
    """Add a tile of both. `mask` is the value's. The logits have one of their own, because their columns are dealt out
    to threads in another way; made after the value is read, it takes no registers before."""
    logits, values, column, inside, columns = row
    best = _add_value(start, mask, total[1], values, CONSTANTS)
    logits_mask = None if mask is None else tail_mask(start, inside, column, columns)
    return _add_logits(start, logits_mask, total[0], logits, CONSTANTS), best


@triton.jit
def _log_prob_of(x, maximum, log_sum):
    """log p of a logit x. No more than 0, as the sum has exp 0 in it, and exact to a rounding of the difference."""
    return (x - maximum) - log_sum


@triton.jit
def _store(logits, logsumexp_ptr, out, row, rows, at, inside, found, KNOWN: tl.constexpr, TYPE: tl.constexpr):
    """Store the index that was found, its log-probability, and the logsumexp if (maximum, total) were found too."""
    out_ptr, index_ptr = out
    index, maximum, total = found
    if KNOWN:
        maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    else:
        log_sum = log_sum_of(total)
        store_logsumexp(logsumexp_ptr, row, rows, inside, maximum, log_sum)
    chosen = load_chosen(logits, index, inside, TYPE)
    tl.store(out_ptr + at, _log_prob_of(chosen, maximum, log_sum), mask=inside)
    tl.store(index_ptr + at, index.to(tl.int64), mask=inside)


@triton.jit
def _find(logits, value_ptrs, hint_ptrs, inside, tile, columns, KNOWN: tl.constexpr, CONSTANTS: tl.constexpr):
    """The first maximum of the value rows, int32, and (maximum, total) of the logits if they are not known, [ROWS],
    over this program's tiles. `tile` has its columns twice, as they are dealt out for the logits and for the value."""
    TYPE: tl.constexpr = CONSTANTS[0]
    VALUE_TYPE: tl.constexpr = CONSTANTS[1]
    LEAST: tl.constexpr = CONSTANTS[2]
    column, value_column = tile
    ROWS: tl.constexpr = inside.shape[0]
    LANES: tl.constexpr = column.shape[2]
    logits = tile_logits(logits, column)
    values = tile_ptrs(over_tile(value_ptrs), value_column)
    sums = (tl.full([ROWS, LANES], float("-inf"), TYPE), tl.zeros([ROWS, LANES], TYPE))
    best = (tl.full([ROWS, LANES], LEAST, VALUE_TYPE), tl.zeros([ROWS, LANES], tl.int32))
    unknown = inside
    if hint_ptrs is not None:
        # A value that is 1 there is read no further. Another one is walked by itself.
        hint = tl.load(hint_ptrs, mask=inside, other=-1)
        hinted = inside & (hint >= 0) & (hint < columns)
        hinted &= _load_value(value_ptrs + hint, hinted, VALUE_TYPE, LEAST) == 1
        unknown = inside & (hinted == 0)
        searched = tl.where(tl.max(unknown.to(tl.int32), 0) > 0, columns, 0)
        best = walk(_add_value, best, values, unknown, value_column, searched, CONSTANTS)
        if not KNOWN:
            sums = walk(_add_logits, sums, logits, inside, column, columns, CONSTANTS)
    elif KNOWN:
        best = walk(_add_value, best, values, inside, value_column, columns, CONSTANTS)
    else:
        row = (logits, values, column, inside, columns)
        sums, best = walk(_add_both, (sums, best), row, inside, value_column, columns, CONSTANTS)

    # The first column of the maximum is in the first tile that has it, which is read once more.
    top = tl.max(best[0], 1)
    start = over_tile(tl.min(tl.where(best[0] == top[:, None], best[1], columns), 1))
    found = over_tile(unknown) & (start + value_column < columns)
    value = _load_value(tile_ptrs(values, start), found, VALUE_TYPE, LEAST)
    found &= value == over_tile(top)
    index = tl.min(lane_min(tl.where(found, start + value_column, columns)), 1)
    if hint_ptrs is not None:
        index = tl.where(hinted, hint.to(tl.int32), index)

    if KNOWN:
        maximum, total = tl.zeros([ROWS], TYPE), tl.zeros([ROWS], TYPE)
    else:
        maximum, total = join_lanes(sums[0], sums[1])
    return index, maximum, total


@triton.jit
def _join(value_ptrs, part_ptrs, at, columns, parts, KNOWN: tl.constexpr, CONSTANTS: tl.constexpr, PARTS: tl.constexpr):
    """The same of whole rows, from what the `parts` programs that shared each left."""
    TYPE: tl.constexpr = CONSTANTS[0]
    parts_ptr, part_index_ptr = part_ptrs
    index = load_parts(part_index_ptr, at, parts, columns, PARTS)
    # A part may have nothing above the least number.
    exists = index < columns
    best = _load_value(value_ptrs[:, None] + index, exists, CONSTANTS[1], CONSTANTS[2])
    index = tl.min(tl.where(exists & (best == tl.max(best, 1)[:, None]), index, columns), 1)
    if KNOWN:
        maximum, total = tl.zeros(at.shape, TYPE), tl.zeros(at.shape, TYPE)
    else:
        maximum, total = join_lanes(
            load_parts(parts_ptr, 2 * at, parts, float("-inf"), PARTS),
            load_parts(parts_ptr, 2 * at + 1, parts, 0.0, PARTS),
        )
    return index.to(tl.int32), maximum, total


@triton.jit(do_not_specialize=["rows", "programs_per_draw", "parts"])
def _log_prob_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    value_ptr,
    hint_ptr,
    out_ptr,
    index_ptr,
    parts_ptr,
    part_index_ptr,
    rows: tl.int64, programs_per_draw: tl.int64, columns, parts,
    KNOWN: tl.constexpr, TYPE: tl.constexpr, VALUE_TYPE: tl.constexpr, LEAST: tl.constexpr, VALUE_VECTOR: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    draw = tl.program_id(0) // programs_per_draw
    row = tl.program_id(0) % programs_per_draw * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    at = draw * rows + row
    # The start of a row is computed when it is needed: kept over the walk it would take registers.
    if from_parts(parts, PARTS):
        value_ptrs, part_ptrs = value_ptr + at * columns, (parts_ptr, part_index_ptr)
        found = _join(value_ptrs, part_ptrs, at, columns, parts, KNOWN, (TYPE, VALUE_TYPE, LEAST), PARTS)
    else:
        logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
        value_ptrs, hint_ptrs = value_ptr + at * columns, None if hint_ptr is None else hint_ptr + at
        # The same columns and lanes twice: the value's own width makes its loads of 128 bits, too.
        value_column = tile_columns(DEPTH * VECTOR // VALUE_VECTOR, LANES, VALUE_VECTOR)
        tile = (tile_columns(DEPTH, LANES, VECTOR), value_column)
        found = _find(logits, value_ptrs, hint_ptrs, inside, tile, columns, KNOWN, (TYPE, VALUE_TYPE, LEAST))
    if is_shared(ROWS):
        index, maximum, total = found
        store_part(part_index_ptr, at, index)
        if not KNOWN:
            store_part(parts_ptr, 2 * at, maximum)
            store_part(parts_ptr, 2 * at + 1, total)
    else:
        logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
        _store(logits, logsumexp_ptr, (out_ptr, index_ptr), row, rows, at, inside, found, KNOWN, TYPE)


@triton.jit(do_not_specialize=["rows", "count"])
def _log_prob_index_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    out_ptr,
    rows: tl.int64, count: tl.int64, columns,
    TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    row = at % rows
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    index = tl.load(index_ptr + at, mask=inside, other=0)
    exists = inside & (index >= 0) & (index < columns)
    chosen = load_chosen(logits, index, exists, TYPE)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    tl.store(out_ptr + at, _log_prob_of(chosen, maximum, log_sum), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _log_prob_grad_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    index_ptr,
    grad_ptr,
    out_ptr,
    rows: tl.int64, columns,
    ONE_DRAW: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # One tile a program: nothing is reduced.
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    tiles = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    column = tl.program_id(0) % tiles * BLOCK + tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    x = load_logits(without_mask(logits), 0, mask, TYPE)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    p = tl.exp2(log2_probs(x, maximum, log_sum))
    grad = over_tile(tl.load(grad_ptr + row, mask=inside).to(TYPE))
    if ONE_DRAW:
        index = tl.load(index_ptr + row, mask=inside, other=-1)
        out = tl.where(column == over_tile(index), grad, 0.0) - grad * p
    else:
        out = -grad * p
    out = where_allowed(out, 0.0, logits, 0, mask)
    tl.store(tile_ptrs(out_ptr + over_tile(row * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


def _value_type(dtype: torch.dtype) -> tuple[tl.dtype, float | int]:
    """The type that values are compared in, which holds every value of `dtype`, and its least number."""
    if dtype.is_floating_point:
        return compute_type(dtype), float("-inf")
    return (tl.int64, -(2**63)) if dtype == torch.int64 else (tl.int32, -(2**31))


@launch.on_its_device
def log_prob(
    logits: Tensor,
    logsumexp: Tensor | None,
    value: Tensor,
    allowed: Tensor | None = None,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probability of one-hot rows.

    Args:
        logits: [rows, columns], any row stride.
        logsumexp: [2, rows], see `entropy.logsumexp`, where it is known: then no logit is read but the chosen one.
        value: [draws, rows, columns] of any real dtype; of one draw, [rows, columns] will do, and what else has a
            dimension of draws is then without.
        allowed: see `rows.allowed_arguments`.
        hint: int64 [draws, rows], where the 1 of a row may be, any number where nobody knows. A value row that has its
            1 there is read no further: with an int64 draw of bfloat16 logits, 2 bytes a column are read in place of
            10, and four numbers a row where the logsumexp is known. Another is searched, in the same launch.

    Returns:
        log_prob: [draws, rows] in the compute dtype.
        index: int64 [draws, rows], the hint where it is right, else the first maximum of the value row, for which NaN
            is inf.
        logsumexp: [2, rows].
    """
    logits, value = with_unit_stride(logits), value.contiguous()
    value = value.view(torch.uint8) if value.dtype == torch.bool else value
    rows, columns = logits.shape
    shape = value.shape[:-1]
    draws = 1 if len(shape) == 1 else shape[0]
    if logsumexp is None and draws != 1:
        logsumexp = row_logsumexp(logits, allowed)
    known = logsumexp is not None
    if logsumexp is None:
        logsumexp = torch.empty(2, rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    out = torch.empty(*shape, dtype=logsumexp.dtype, device=logits.device)
    index = torch.empty(*shape, dtype=torch.int64, device=logits.device)
    if rows and draws:
        tile = launch.tile(logits, value, draws=draws)
        split = tile.parts > 1
        programs = launch.cdiv(rows, tile.rows)
        value_type, least = _value_type(value.dtype)
        common = {
            "logits_ptr": logits, "logsumexp_ptr": logsumexp.contiguous(), "value_ptr": value,
            "hint_ptr": None if hint is None else hint.contiguous(), "out_ptr": out, "index_ptr": index,
            "parts_ptr": out.new_empty(draws * rows, 2, tile.parts) if split else out,
            "part_index_ptr": index.new_empty(draws * rows, tile.parts) if split else index,
            "row_stride": logits.stride(0), "rows": rows, "programs_per_draw": programs, "columns": columns,
            "KNOWN": known, "TYPE": compute_type(logits.dtype), "VALUE_TYPE": value_type, "LEAST": least,
            "VALUE_VECTOR": min(launch.vector(value), tile.depth * tile.vector), "PARTS": tile.part_lanes,
            **launch.options(tile.warps), **tile.shape, **allowed_arguments(allowed),
        }  # fmt: skip
        _log_prob_kernel[(programs * draws, tile.parts)](parts=0, **common)
        if split:
            _log_prob_kernel[(programs * draws,)](parts=tile.parts, **common)
    return out, index, logsumexp


@launch.on_its_device
def log_prob_index(logits: Tensor, logsumexp: Tensor, index: Tensor, allowed: Tensor | None = None) -> Tensor:
    """x_k - logsumexp for `index` int64 [..., rows], in the compute dtype; NaN where it is no column."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    out = torch.empty(*index.shape, dtype=logsumexp.dtype, device=logits.device)
    if out.numel():
        _log_prob_index_kernel[(launch.cdiv(out.numel(), launch.INDEX_BLOCK),)](
            logits, logsumexp_ptr=logsumexp.contiguous(), index_ptr=index.contiguous(), out_ptr=out,
            row_stride=logits.stride(0), rows=rows, count=out.numel(), columns=columns,
            TYPE=compute_type(logits.dtype), BLOCK=launch.INDEX_BLOCK, **launch.options(4),
            **allowed_arguments(allowed),
        )  # fmt: skip
    return out


@launch.on_its_device
def log_prob_grad(
    logits: Tensor, logsumexp: Tensor, index: Tensor, grad: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """sum_s g_s (onehot(k_s) - p), [rows, columns] in the logits' dtype, for `index` and `grad` [draws, rows]."""
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    draws = index.shape[0]
    # One draw is one write. Of several, the kernel writes -p sum_s g_s, and S numbers per row are added to it: a
    # comparison with every winner at every column would cost more than they do. They add up in the compute dtype,
    # because bfloat16 cannot count past 256. Where draws of a row meet in a column, the order in which a GPU adds them
    # is left to torch: any, or one and the same under `torch.use_deterministic_algorithms(True)`.
    dtype = logits.dtype if draws == 1 else compute_dtype(logits.dtype)
    out = torch.empty(rows, columns, dtype=dtype, device=logits.device)
    if rows:
        tile = launch.tile(logits)
        total = grad.contiguous() if draws == 1 else grad.sum(0)
        _log_prob_grad_kernel[(launch.cdiv(rows, tile.rows) * launch.cdiv(columns, tile.columns),)](
            logits, logsumexp_ptr=logsumexp.contiguous(), index_ptr=index.contiguous(), grad_ptr=total, out_ptr=out,
            row_stride=logits.stride(0), rows=rows, columns=columns, ONE_DRAW=draws == 1,
            TYPE=compute_type(logits.dtype), **launch.options(tile.warps), **tile.shape, **allowed_arguments(allowed),
        )  # fmt: skip
        if draws > 1:
            inside = index.clamp(0, columns - 1)
            counts = index == inside
            if allowed is not None:
                chosen = allowed.gather(-1, inside.t().reshape(*allowed.shape[:-1], draws))
                counts &= chosen.view(rows, draws).t()
            out.scatter_add_(-1, inside.t(), torch.where(counts, grad, 0).t().to(dtype))
    return out.to(logits.dtype)
