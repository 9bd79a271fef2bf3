"""Log-probabilities of given columns and the entropy of their row together, and their gradient in one.

    log p_k = x_k - logsumexp
    H = -sum_j p_j log p_j
    dx_j = sum_s g_s (1[j = k_s] - p_j) - g_H p_j (log p_j + H)
         = sum_s g_s 1[j = k_s] - p_j (sum_s g_s + g_H (log p_j + H))

Forward, it is the entropy's walk over the row (`entropy.py`), after which the logsumexp is there, and a log-probability
is one number more. Backward, each logit is read once, each number of the gradient written once, and no two are added in
memory: not by a scatter, which in half precision would round in between, and whose atomics come in any order.

A draw's own gradient, PassThrough's p_j (g_j - <p, g>), joins these where there is one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .entropy import _entropy_of, _row_sums, _store_sums
from .noise import LN2, LOG2E
from .rows import (
    FAR,
    allowed_arguments,
    compute_dtype,
    compute_type,
    is_shared,
    lane_sum,
    load_chosen,
    load_grad,
    load_logits,
    load_logsumexp,
    log2_probs,
    log_sum_of,
    over_tile,
    row_logits,
    store_logsumexp,
    sum_parts,
    tile_columns,
    tile_logits,
    tile_ptrs,
    where_allowed,
    with_unit_stride,
    without_mask,
)
from .softmax_grad import _dot_kernel


@triton.jit
def _store(logits, index_ptr, out, row, rows, inside, columns, draws, sums, TYPE: tl.constexpr):
    """Store what is wanted of rows whose sums are known."""
    log_prob_ptr, entropy_ptr, logsumexp_ptr = out
    maximum, total, rest, moment = sums
    log_sum = log_sum_of(total)
    store_logsumexp(logsumexp_ptr, row, rows, inside, maximum, log_sum)
    tl.store(entropy_ptr + row, _entropy_of(total, rest, moment), mask=inside)
    for draw in range(draws):
        at = draw * rows + row
        index = tl.load(index_ptr + at, mask=inside, other=-1)
        exists = inside & (index >= 0) & (index < columns)
        x = load_chosen(logits, index, exists, TYPE)
        tl.store(log_prob_ptr + at, x - maximum - log_sum, mask=inside)


@triton.jit(do_not_specialize=["rows", "draws", "parts"])
def _forward_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    index_ptr,
    log_prob_ptr,
    entropy_ptr,
    logsumexp_ptr,
    parts_ptr,
    rows: tl.int64, columns, draws, parts,
    TYPE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    logits = row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row)
    column = tile_columns(DEPTH, LANES, VECTOR)
    sums = _row_sums(logits, parts_ptr, row, inside, column, columns, parts, TYPE, PARTS)
    if is_shared(ROWS):
        _store_sums(parts_ptr, row, sums)
    else:
        out = (log_prob_ptr, entropy_ptr, logsumexp_ptr)
        _store(logits, index_ptr, out, row, rows, inside, columns, draws, sums, TYPE)


@triton.jit(do_not_specialize=["rows", "draws", "parts"])
def _backward_kernel(
    logits_ptr, row_stride: tl.int64,
    allowed_ptr, allowed_strides,
    logsumexp_ptr,
    entropy_ptr,
    index_ptr,
    grad_log_prob_ptr,
    grad_entropy_ptr,
    grad_ptr, grad_stride: tl.int64,
    parts_ptr,
    out_ptr,
    rows: tl.int64, columns, draws, parts,
    ONE_DRAW: tl.constexpr, PARTS: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    # One tile a program.
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    tiles = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    start = tl.program_id(0) % tiles * BLOCK
    column = start + tile_columns(DEPTH, LANES, VECTOR)
    mask = over_tile(inside) & (column < columns)
    logits = tile_logits(row_logits(logits_ptr, row_stride, allowed_ptr, allowed_strides, row), column)
    if grad_ptr is not None and parts_ptr is None:
        # <p, g> is a sum over what is allowed.
        x = load_logits(logits, 0, mask, TYPE)
    else:
        x = load_logits(without_mask(logits), 0, mask, TYPE)
    maximum, log_sum = load_logsumexp(logsumexp_ptr, row, rows, inside)
    log2_p = log2_probs(x, maximum, log_sum)
    p = tl.exp2(log2_p)
    entropy = tl.load(entropy_ptr + row, mask=inside) * LOG2E
    grad_entropy = tl.load(grad_entropy_ptr + row, mask=inside).to(TYPE) * LN2
    # -g_H (log p + H), times p below, and 0 where p is.
    slope = -over_tile(grad_entropy) * (tl.maximum(log2_p, FAR) + over_tile(entropy))
    if grad_ptr is not None:
        grad = load_grad(tile_ptrs(grad_ptr + over_tile(row * grad_stride), column), mask, TYPE)
        # A row in one tile gives <p, g> itself, a longer one has left the sums of its parts.
        if parts_ptr is None:
            dot = tl.sum(lane_sum(p * grad), 1)
        else:
            dot = sum_parts(parts_ptr, row, parts, TYPE, PARTS)
        slope += grad - over_tile(dot)
    if ONE_DRAW:
        total = tl.load(grad_log_prob_ptr + row, mask=inside, other=0.0).to(TYPE)
        index = tl.load(index_ptr + row, mask=inside, other=-1)
        at_index = tl.where(column == over_tile(index), over_tile(total), 0.0)
    else:
        total = tl.zeros([ROWS], TYPE)
        at_index = tl.zeros([DEPTH, ROWS, LANES, VECTOR], TYPE)
        for draw in range(draws):
            at = draw * rows + row
            grad_log_prob = tl.load(grad_log_prob_ptr + at, mask=inside, other=0.0).to(TYPE)
            index = tl.load(index_ptr + at, mask=inside, other=-1)
            total += grad_log_prob
            # Most tiles of a row of several do not have it.
            if ROWS > 1 or tl.sum(((index >= start) & (index < start + BLOCK)).to(tl.int32), 0) > 0:
                at_index += tl.where(column == over_tile(index), over_tile(grad_log_prob), 0.0)
    out = at_index + p * (slope - over_tile(total))
    out = where_allowed(out, 0.0, logits, 0, mask)
    tl.store(tile_ptrs(out_ptr + over_tile(row * columns), column), out.to(out_ptr.dtype.element_ty), mask=mask)


@launch.on_its_device
def log_prob_and_entropy(logits: Tensor, index: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Densities of rows, in the compute dtype.

    Args:
        logits: [rows, columns].
        index: int64 [draws, rows]; of one draw, [rows] will do.
        allowed: see `rows.allowed_arguments`.

    Returns:
        log_prob: of the index's shape, NaN where the index is no column.
        entropy: [rows], in nats.
        logsumexp: [2, rows].
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    logsumexp = torch.empty(2, rows, dtype=compute_dtype(logits.dtype), device=logits.device)
    log_prob, entropy = logsumexp.new_empty(*index.shape), logsumexp.new_empty(rows)
    if rows:
        tile = launch.tile(logits)
        split = tile.parts > 1
        common = {
            "logits_ptr": logits, "index_ptr": index.contiguous(), "log_prob_ptr": log_prob, "entropy_ptr": entropy,
            "logsumexp_ptr": logsumexp, "parts_ptr": entropy.new_empty(rows, 4, tile.parts) if split else entropy,
            "row_stride": logits.stride(0), "rows": rows, "columns": columns,
            "draws": 1 if index.dim() == 1 else index.shape[0], "TYPE": compute_type(logits.dtype),
            "PARTS": tile.part_lanes, **launch.options(tile.warps), **tile.shape, **allowed_arguments(allowed),
        }  # fmt: skip
        _forward_kernel[(launch.cdiv(rows, tile.rows), tile.parts)](parts=0, **common)
        if split:
            _forward_kernel[(rows,)](parts=tile.parts, **common)
    return log_prob, entropy, logsumexp


@launch.on_its_device
def log_prob_and_entropy_grad(
    logits: Tensor,
    logsumexp: Tensor,
    entropy: Tensor,
    index: Tensor,
    grad_log_prob: Tensor,
    grad_entropy: Tensor,
    allowed: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    """sum_s g_s (onehot(k_s) - p) - g_H p (log p + H), and p (g - <p, g>) where there is a `grad`.

    Args:
        logits: [rows, columns].
        logsumexp, entropy: [2, rows] and [rows].
        index: int64 [draws, rows].
        grad_log_prob, grad_entropy: [draws, rows] and [rows].
        allowed: see `rows.allowed_arguments`.
        grad: of a draw from each row, [rows, columns].

    Returns:
        [rows, columns] in the logits' dtype.
    """
    logits = with_unit_stride(logits)
    rows, columns = logits.shape
    out = torch.empty(rows, columns, dtype=logits.dtype, device=logits.device)
    if not rows:
        return out
    grad = None if grad is None else with_unit_stride(grad)
    tile = launch.tile(logits) if grad is None else launch.tile(logits, grad)
    parts, logsumexp = None, logsumexp.contiguous()
    common = {
        "logits_ptr": logits, "logsumexp_ptr": logsumexp, "grad_ptr": grad, "row_stride": logits.stride(0),
        "grad_stride": 0 if grad is None else grad.stride(0), "columns": columns, "TYPE": compute_type(logits.dtype),
        **launch.options(tile.warps), **tile.row_shape, **allowed_arguments(allowed),
    }  # fmt: skip
    if grad is not None and not tile.one:
        parts = logsumexp.new_empty(rows, tile.parts)
        _dot_kernel[(rows, tile.parts)](parts_ptr=parts, **common)
    _backward_kernel[(launch.cdiv(rows, tile.rows) * launch.cdiv(columns, tile.columns),)](
        entropy_ptr=entropy.contiguous(), index_ptr=index.contiguous(), grad_log_prob_ptr=grad_log_prob.contiguous(),
        grad_entropy_ptr=grad_entropy.contiguous(), parts_ptr=parts, out_ptr=out, rows=rows, draws=index.shape[0],
        parts=tile.parts, ONE_DRAW=index.shape[0] == 1, PARTS=1 if tile.one else tile.part_lanes,
        ROWS=tile.rows, **common,
    )  # fmt: skip
    return out
