"""What the kernels share about rows: loads, the online logsumexp, the arg-min with its column. Device functions."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .noise import LN2, LOG2E, exponential64


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """The type that logits of `dtype` are computed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_unit_stride(tensor: Tensor) -> Tensor:
    """`tensor` itself where its last dimension is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


@triton.jit
def load_logits(ptrs, mask, TYPE: tl.constexpr):
    """Logits in the compute type; -inf where `mask` (None: nowhere) is False."""
    if mask is None:
        x = tl.load(ptrs)
    else:
        x = tl.load(ptrs, mask=mask, other=float("-inf"))
    return x.to(TYPE)


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
    """The online logsumexp of Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867: adds a tile x [rows,
    columns] to (maximum, total) [rows], in log2 units, with sum exp x = total 2^maximum."""
    new = tl.maximum(maximum, tl.max(x, 1) * LOG2E)
    base = or_zero(new)
    return new, total * tl.exp2(maximum - base) + tl.sum(tl.exp2(exp2_of(x, base[:, None])), 1)


@triton.jit
def logsumexp_of(maximum, total):
    """log sum exp in nats, from log2 units; NaN for a row that is no distribution: one that is all -inf, whose total is
    0, or that has a NaN or +inf, which make the total NaN."""
    value = (maximum + tl.log2(total)) * LN2
    return tl.where(total > 0, value, float("nan"))


@triton.jit
def zero_or_one(condition, ptr):
    """1 where `condition` holds, else 0, in the type that `ptr` points to; by way of float32 to a floating one, which
    is the way to bfloat16 that the interpreter knows."""
    number = tl.where(condition, 1, 0)
    if ptr.dtype.element_ty.is_floating():
        return number.to(tl.float32).to(ptr.dtype.element_ty)
    else:
        return number.to(ptr.dtype.element_ty)


@triton.jit
def race(x, maximum, hi, lo):
    """E / w of each element, E from the words (hi, lo) and w = exp(x - maximum): the least of a row wins. inf for a
    logit of -inf, which is never drawn."""
    return exponential64(hi, lo) * tl.exp2(((maximum[:, None] - x) * LOG2E).to(tl.float32))


@triton.jit
def first_least(low, high, HALF: tl.constexpr):
    """The column of the least of the two halves of a tile, [rows]; the lower column where two are equal."""
    low_value, low_index = tl.min(low, 1, return_indices=True)
    high_value, high_index = tl.min(high, 1, return_indices=True)
    return tl.where(high_value < low_value, high_index + HALF, low_index)
