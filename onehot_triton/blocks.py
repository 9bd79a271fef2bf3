"""Work on large inputs block by block, so that no second copy of the logits, the probabilities or the noise exists."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .tensors import loses_functions

# Elements in one block of scratch: 2 MiB of float32, which stays in a CPU's cache. The first touch of a fresh page
# costs more than the work on it. With blocks of 2^20, 16 x 131072 took 2,000 fresh pages a call in some processes, a
# millisecond; with 2^18, eight rounds of small operations in place of four, 20 % more.
_BLOCK = 2**19


def blocks(rows: int, elements_per_row: int, per_thread: bool = False) -> list[slice]:
    """Cut `rows` into slices of at most `_BLOCK` elements; one slice while compiling, because the compiler fuses.

    `per_thread` gives each thread a part of that size, which fits its own cache: the threads wait for each other after
    every operation on a block. Noise must not depend on the number of threads, so draws do without.
    """
    # Compiled, no branch and no range on `rows`, either of which would fix it as a constant of the graph.
    if torch.compiler.is_compiling():
        return [slice(0, rows)]
    block = _BLOCK * torch.get_num_threads() if per_thread else _BLOCK
    if rows * elements_per_row <= block:
        return [slice(0, rows)]
    step = max(1, block // max(1, elements_per_row))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def by_rows(function: Callable[..., Tensor], *tensors: Tensor, scratch: int = 1, dim: int = 0) -> Tensor:
    """function(*tensors), a block of rows at a time.

    Args:
        function: of some rows of the tensors.
        tensors: whose first dimension is the rows.
        scratch: how much of it there is for each element of the first tensor, in float32 numbers.
        dim: the dimension of the result that is the rows.
    """
    # What torch's own operations are to be the gradient of is not written in place. A compiled program must not ask for
    # the number of elements.
    if loses_functions() or (not torch.compiler.is_compiling() and scratch * tensors[0].numel() <= _BLOCK):
        return function(*tensors)
    rows = tensors[0].shape[0]
    parts = blocks(rows, scratch * math.prod(tensors[0].shape[1:]))
    if len(parts) == 1:
        return function(*tensors)
    out = None
    for part in parts:
        result = function(*(tensor[part] for tensor in tensors))
        if out is None:
            shape = list(result.shape)
            shape[dim] = rows
            out = result.new_empty(shape)
        out.narrow(dim, part.start, part.stop - part.start).copy_(result)
        # The next block's result takes this one's memory.
        del result
    assert out is not None
    return out


def part_of(tensor: Tensor, part: slice) -> Tensor:
    """The rows `part` of a tensor: itself where that is all of it, since a slice costs as much as a small operation."""
    return tensor if part.stop - part.start == tensor.shape[0] else tensor[part]


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """The parts in one tensor: itself where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
