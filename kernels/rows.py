"""What the kernels share about rows: how a tile lies over the threads, loads, the online logsumexp. Device functions.

A tile is [DEPTH, ROWS, LANES, VECTOR]: a lane has VECTOR adjacent columns, one 128-bit load of logits, the lanes lie
side by side, and DEPTH repeats them further along the row. A lane is a thread, also where several rows share a program
(the order in which dimensions are dealt out to threads is that of `tile_ptrs`), so that a reduction
over (VECTOR, DEPTH) costs one instruction an element: no shuffle and no barrier until the lanes are joined, once a row.
The kernels with noise have more dimensions in front; a function of a tile takes either.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .noise import LN2, LOG2E

# Stands for the -inf that log2 p is where p = 0, so that their product is 0: 2^-16384 is 0 in float64 too.
FAR = tl.constexpr(-16384.0)


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """The type that logits of `dtype` are computed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_unit_stride(tensor: Tensor) -> Tensor:
    """`tensor` itself where its last dimension is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


@triton.jit
def tile_columns(DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """The columns of a tile from its start, [DEPTH, 1, LANES, VECTOR]."""
    depth = tl.arange(0, DEPTH)[:, None, None, None]
    lane = tl.arange(0, LANES)[None, None, :, None]
    return (depth * LANES + lane) * VECTOR + tl.arange(0, VECTOR)[None, None, None, :]


@triton.jit
def tile_ptrs(ptr, offset):
    """ptr + offset, the pointers of a tile, marked so that its columns go to threads first, then its lanes, its rows,
    and its depth last. Every tile is loaded and stored by these.

    Triton orders the dimensions of a tile by their contiguity. All but the last have 1, and what breaks that tie is
    another thing from version to version: with 3.6 depth came before rows and lanes, at ten times the shuffles. The
    first dimension's number is also how wide a load or store may be, but no wider than that dimension, nor than
    its alignment; the others order, and say nothing of the memory. The mark is on this very addition: one on what a
    function is given is lost, and so is one on an addition of 0."""
    ptrs = ptr + offset
    if len(ptrs.shape) == 3:
        return tl.max_contiguous(ptrs, [2, 4, 16])
    elif len(ptrs.shape) == 4:
        return tl.max_contiguous(ptrs, [1, 2, 4, 16])
    elif len(ptrs.shape) == 5:
        return tl.max_contiguous(ptrs, [1, 1, 2, 4, 16])
    else:
        return tl.max_contiguous(ptrs, [1, 1, 1, 2, 4, 16])


@triton.jit
def over_tile(per_row):
    """[ROWS] -> [ROWS, 1, 1], to meet a tile."""
    return per_row[:, None, None]


@triton.jit
def over_lanes(per_lane):
    """[ROWS, LANES] -> [ROWS, LANES, 1], to meet a tile."""
    return per_lane[:, :, None]


@triton.jit
def lane_sum(x):
    """[..., ROWS, LANES, VECTOR] -> [ROWS, LANES]."""
    x = tl.sum(x, len(x.shape) - 1)
    for _ in tl.static_range(len(x.shape) - 2):
        x = tl.sum(x, 0)
    return x


@triton.jit
def lane_max(x):
    """[..., ROWS, LANES, VECTOR] -> [ROWS, LANES]."""
    x = tl.max(x, len(x.shape) - 1)
    for _ in tl.static_range(len(x.shape) - 2):
        x = tl.max(x, 0)
    return x


@triton.jit
def lane_min(x):
    """[..., ROWS, LANES, VECTOR] -> [ROWS, LANES]."""
    x = tl.min(x, len(x.shape) - 1)
    for _ in tl.static_range(len(x.shape) - 2):
        x = tl.min(x, 0)
    return x


def allowed_arguments(allowed: Tensor | None) -> dict:
    """The arguments of a kernel for a category mask, bool [rows, columns], or [m, n, columns] for m n rows, of any
    strides, 0 too; None: none."""
    if allowed is None:
        return {"allowed_ptr": None, "allowed_strides": None}
    allowed = with_unit_stride(allowed)
    strides = allowed.stride()[:-1]
    if len(strides) == 2:
        strides = strides[1], allowed.shape[1], strides[0] - allowed.shape[1] * strides[1]
    return {"allowed_ptr": allowed.view(torch.uint8), "allowed_strides": strides}


@triton.jit
def allowed_row(row, strides):
    """Give the start of a row's category mask, by its (stride,), or by (stride, n, jump), a jump after each n rows."""
    at = row * strides[0]
    if len(strides) == 3:
        at += row // strides[1] * strides[2]
    return at


@triton.jit
def row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row):
    """Gather what is known of the logits of rows in one tuple, which `load_logits` and the functions below it read.

    It is (where the rows start,), or with a category mask (where the rows start, the mask's pointer, the offsets of its
    rows). The length tells which, because a function of Triton 3.6 cannot return a tuple that holds None. The row of a
    kernel is a number, or several [ROWS]."""
    ptrs = logits_ptr + row * row_stride
    if allowed_ptr is None:
        return (ptrs,)
    else:
        return ptrs, allowed_ptr, allowed_row(row, allowed_strides)


@triton.jit
def tile_logits(logits, column):
    """The logits of rows [ROWS], seen from the columns of a tile."""
    ptrs = tile_ptrs(over_tile(logits[0]), column)
    if len(logits) == 1:
        return (ptrs,)
    else:
        return ptrs, logits[1], over_tile(logits[2]) + column


@triton.jit
def without_mask(logits):
    """The same logits, as if they had no category mask."""
    return (logits[0],)


@triton.jit
def load_logits(logits, at, mask, TYPE: tl.constexpr):
    """Logits in the compute type, at a number of columns from where they start, or at several; -inf where `mask`
    (None: nowhere) is False, and where the category mask is 0, whatever the logit there is."""
    ptrs = tile_ptrs(logits[0], at)
    if mask is None:
        x = tl.load(ptrs)
    else:
        x = tl.load(ptrs, mask=mask, other=float("-inf"))
    return where_allowed(x.to(TYPE), float("-inf"), logits, at, mask)


@triton.jit
def where_allowed(x, other, logits, at, mask):
    """A tile `x` of what belongs to `logits` at `at`, but `other` where the category mask is 0, or where `mask` (None:
    nowhere) is False; `x` itself where there is no category mask."""
    if len(logits) > 1:
        ptrs = tile_ptrs(logits[1], logits[2] + at)
        if mask is None:
            allowed = tl.load(ptrs)
        else:
            allowed = tl.load(ptrs, mask=mask, other=0)
        x = tl.where(allowed != 0, x, other)
    return x


@triton.jit
def load_chosen(logits, index, exists, TYPE: tl.constexpr):
    """The logit of column `index` of each row [ROWS], as `load_logits` gives it; NaN where `exists` is False."""
    x = tl.load(logits[0] + index, mask=exists, other=float("nan")).to(TYPE)
    if len(logits) > 1:
        allowed = tl.load(logits[1] + logits[2] + index, mask=exists, other=1)
        x = tl.where(allowed != 0, x, float("-inf"))
    return x


@triton.jit
def load_grad(ptrs, mask, TYPE: tl.constexpr):
    """An incoming gradient in the compute type; 0 where `mask` (None: nowhere) is False."""
    if mask is None:
        grad = tl.load(ptrs)
    else:
        grad = tl.load(ptrs, mask=mask, other=0.0)
    return grad.to(TYPE)


@triton.jit
def _has_tail(whole, columns, BLOCK: tl.constexpr):
    """Whether the masked last tile of a row, after `whole` columns in whole ones, is this program's. The programs of a
    row, number (row, part) of a grid, take its tiles in turn."""
    return (whole < columns) & (whole // BLOCK % tl.num_programs(1) == tl.program_id(1))


@triton.jit
def tail_mask(start, inside, column, columns):
    """Which columns of the tile from column `start` on there are, in rows that are `inside`; None: every row exists."""
    mask = start + column < columns
    if inside is not None:
        mask = over_tile(inside) & mask
    return mask


@triton.jit
def walk(tile: tl.constexpr, total, row, inside, column, columns, CONSTANTS: tl.constexpr):
    """Walk this program's tiles of a row, first the whole ones without a mask, then the last one with it.

    Each is `total = tile(start, mask, total, row, CONSTANTS)`, and the last total is returned.

    tile: a function of one tile. The tile starts at column `start`. `mask` is None where it is whole.
    total: what is added up over the tiles, a tensor or a tuple of tensors. () where a tile only writes.
    row: what the function needs to know of the row, a tuple that may hold tuples. Triton takes those apart one level
        at a time.
    inside: which rows exist, [ROWS]. None where all do. Several rows are in one tile whole, always under a mask.
    column: the columns of a tile from its start. `columns` is how many the row has.
    CONSTANTS: what the function needs to know at compile time, often the compute type alone, or a tuple."""
    BLOCK: tl.constexpr = column.numel
    if inside is not None and inside.shape[0] > 1:
        whole = 0
    else:
        whole = columns // BLOCK * BLOCK
    for start in range(tl.program_id(1) * BLOCK, whole, tl.num_programs(1) * BLOCK):
        total = tile(start, None, total, row, CONSTANTS)
    if _has_tail(whole, columns, BLOCK):
        total = tile(whole, tail_mask(whole, inside, column, columns), total, row, CONSTANTS)
    return total


@triton.jit
def walk_back(tile: tl.constexpr, row, column, columns, CONSTANTS: tl.constexpr):
    """Write the tiles of `walk` by `tile(start, mask, row, CONSTANTS)`, the last one first, because what was read last
    is still in the L2."""
    BLOCK: tl.constexpr = column.numel
    whole = columns // BLOCK * BLOCK
    if _has_tail(whole, columns, BLOCK):
        tile(whole, whole + column < columns, row, CONSTANTS)
    turns = tl.cdiv(whole // BLOCK - tl.program_id(1), tl.num_programs(1))
    for turn in range(turns):
        tile((tl.program_id(1) + (turns - 1 - turn) * tl.num_programs(1)) * BLOCK, None, row, CONSTANTS)


@triton.jit
def is_shared(ROWS: tl.constexpr):
    """Whether other programs have a part of this program's row. Asked when it runs, not by a constant, which would be a
    second kernel to compile as rows become fewer; of several rows, which are in their tile whole, it is a constant."""
    return tl.num_programs(1) > 1 if ROWS == 1 else False


@triton.jit
def from_parts(parts, PARTS: tl.constexpr):
    """Whether this is the second launch, which joins what the `parts` programs of each row left; 0 in the first. One
    kernel for both, since another would be one more to compile; of rows that are in a tile whole it is a constant."""
    return parts > 0 if PARTS > 1 else False


@triton.jit
def store_part(ptr, row, value):
    """Leaves what this program found, `value` [ROWS], in the row of [..., parts] that is meant for it."""
    tl.store(ptr + row * tl.num_programs(1) + tl.program_id(1), value)


@triton.jit
def load_parts(ptr, row, parts, other, PARTS: tl.constexpr):
    """What the `parts` programs of each row left, [ROWS, PARTS], `other` beyond them: to be joined as lanes are."""
    part = tl.arange(0, PARTS)[None, :]
    return tl.load(ptr + row[:, None] * parts + part, mask=part < parts, other=other)


@triton.jit
def sum_parts(ptr, row, parts, TYPE: tl.constexpr, PARTS: tl.constexpr):
    """The sum of what the `parts` programs of the one `row`, [1], left, [1]."""
    # No more lanes than a warp has: each warp adds them up by itself, without a barrier, of which there would be one in
    # each turn of a loop. And a number first, which has no layout that a whole tile would be moved out of.
    LANES: tl.constexpr = min(PARTS, 32)
    total = tl.zeros([1, LANES], TYPE)
    for first in tl.static_range(0, PARTS, LANES):
        part = first + tl.arange(0, LANES)[None, :]
        total += tl.load(ptr + row[:, None] * parts + part, mask=part < parts, other=0.0)
    return tl.full([1], 1.0, TYPE) * tl.sum(total)


@triton.jit
def exp2_of(x, base):
    """x log2(e) - base, the argument of exp2. Fused, because x log2(e) alone would be rounded to a part of |x|, which
    for large logits is more than the noise decides by."""
    if x.dtype == tl.float64:
        return x * LOG2E - base
    else:
        return tl.fma(x, LOG2E, -base)


@triton.jit
def or_zero(maximum):
    """`maximum`, but 0 for -inf: what to subtract so that -inf - -inf is never computed."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def add_tile(x, maximum, total):
    """The online logsumexp of Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867, of each lane: adds a tile
    to (maximum, total) [ROWS, LANES], with sum exp x = total exp(maximum). The maximum is a logit itself and is
    subtracted first: its own term is 1 exactly, no logit overflows, and only differences are rounded."""
    new = tl.maximum(maximum, lane_max(x))
    base = or_zero(new)
    growth = tl.exp2((maximum - base) * LOG2E)
    return new, total * growth + lane_sum(tl.exp2((x - over_lanes(base)) * LOG2E))


@triton.jit
def join_lanes(maximum, total):
    """(maximum, total) of the rows, [ROWS], from those of their lanes, or of their parts, [ROWS, lanes]."""
    joined = tl.max(maximum, 1)
    return joined, tl.sum(total * tl.exp2((maximum - or_zero(joined)[:, None]) * LOG2E), 1)


@triton.jit
def log_sum_of(total):
    """log(total), at least 0; NaN for a row that is no distribution: one that is all -inf, whose total is 0, or that
    has a NaN or +inf, which make the total NaN."""
    return tl.where(total > 0, tl.log2(total) * LN2, float("nan"))


@triton.jit
def store_logsumexp(ptr, row, rows, inside, maximum, log_sum):
    """The logsumexp of rows as two numbers, in [2, rows]: their sum would be rounded to a part of the maximum."""
    tl.store(ptr + row, maximum, mask=inside)
    tl.store(ptr + rows + row, log_sum, mask=inside)


@triton.jit
def load_logsumexp(ptr, row, rows, inside):
    """(maximum, log_sum) of rows; 0 where `inside` (None: nowhere) is False."""
    if inside is None:
        return tl.load(ptr + row), tl.load(ptr + rows + row)
    else:
        return tl.load(ptr + row, mask=inside, other=0.0), tl.load(ptr + rows + row, mask=inside, other=0.0)


@triton.jit
def log2_probs(x, maximum, log_sum):
    """log2 p of a tile: the difference to the maximum first, then one multiply-add."""
    return exp2_of(x - over_tile(maximum), over_tile(log_sum * LOG2E))


@triton.jit
def inverse_temperature(temperature_ptr, temperature, at, inside, TYPE: tl.constexpr):
    """1 / t of each row, [ROWS]: of the tensor at the offsets `at`, or of the one number where there is no tensor; 1
    where `inside` (None: nowhere) is False."""
    if temperature_ptr is None:
        t = tl.full(at.shape, temperature, TYPE)
    elif inside is None:
        t = tl.load(temperature_ptr + at)
    else:
        t = tl.load(temperature_ptr + at, mask=inside, other=1.0)
    return 1.0 / t


def temperature_arguments(temperature: Tensor | float) -> dict:
    """The arguments of a kernel for a temperature [rows] of any stride, or for a number, which takes no memory."""
    if isinstance(temperature, Tensor):
        return {"temperature_ptr": temperature, "temperature": 1.0, "temperature_stride": temperature.stride(0)}
    return {"temperature_ptr": None, "temperature": temperature, "temperature_stride": 0}
