"""The baseline: the usual sampling kernel, which draws a Gumbel per element.

index = argmax_j (x_j + Gumbel_j),  Gumbel = -log(-log u),  u of 24 bits
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["seed"])
def _kernel(logits_ptr, index_ptr, seed, columns, row_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = float("-inf")
    best_column = tl.full([], 0, tl.int64)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        x = tl.load(logits_ptr + row * row_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
        u = tl.maximum(tl.rand(seed, row * columns + column), 1e-10)
        value, at = tl.max(x - tl.log(-tl.log(u)), 0, return_indices=True)
        best_column = tl.where(value > best, start + at, best_column)
        best = tl.maximum(value, best)
    tl.store(index_ptr + row, best_column)


def sample_index(logits: Tensor) -> Tensor:
    """Draw category indices, int64 [rows], from logits [rows, columns]."""
    rows, columns = logits.shape
    index = torch.empty(rows, dtype=torch.int64, device=logits.device)
    seed = int(torch.randint(2**31 - 1, ()))
    _kernel[(rows,)](logits, index, seed, columns, logits.stride(0), BLOCK)  # pyright: ignore[reportArgumentType]
    return index


def sample(logits: Tensor) -> Tensor:
    """Draw one-hot rows, int64 [rows, columns]."""
    return torch.zeros_like(logits, dtype=torch.int64).scatter_(-1, sample_index(logits).unsqueeze(-1), 1)
