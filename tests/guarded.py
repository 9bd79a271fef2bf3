"""Tensors between canaries, and an interpreter that says of every access whether it is an element of a tensor.

    with Guards() as guards:
        x = guards.place(logits, stride=(100, 1))
        result = kernels.entropy.entropy(x)
    guards.check()

Within the block every tensor that torch makes, outputs and scratch of a launcher too, lies in a buffer of its own
between canaries: bytes that are NaN in a floating type, True in a mask, and beyond every column as an index. What is
allocated without a value starts as canaries, so an element that no kernel writes does not pass for a result. A load or
store that an interpreted kernel does elsewhere, also between the rows of a padded tensor, raises before it happens: a
wrong address is a failed assertion, never a segmentation fault, and a read is seen whose value nothing uses.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.runtime.interpreter import InterpreterBuilder

# Bytes on either side; a multiple of every alignment that a launcher asks for.
MARGIN = 2**14
_EMPTY = (torch.empty, torch.empty_like, Tensor.new_empty)


def _canary(dtype: torch.dtype) -> int:
    return 0xFF if dtype.is_floating_point else 0x01 if dtype == torch.bool else 0x7E


class _Buffer(NamedTuple):
    """The bytes of a tensor and its margins, and which of them are the tensor's."""

    bytes: Tensor
    inside: np.ndarray
    canary: int


class Guards(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[int, _Buffer] = {}
        self._starts: list[int] = []

    def place(self, tensor: Tensor, stride: tuple[int, ...] | None = None, shift: int = 0) -> Tensor:
        """`tensor` in a guarded buffer, with these strides (None: contiguous), `shift` elements off its alignment. A
        stride of 0 keeps the first of that dimension."""
        with torch._C.DisableTorchFunction():
            stride = torch.empty(tensor.shape, device="meta").stride() if stride is None else stride
            shape = [n if s else 1 for n, s in zip(tensor.shape, stride, strict=True)]
            extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            margin, canary = MARGIN // tensor.element_size(), _canary(tensor.dtype)
            data = torch.empty((2 * margin + shift + extent) * tensor.element_size(), dtype=torch.uint8).fill_(canary)
            elements = data.view(tensor.dtype)
            inside = torch.zeros(len(elements), dtype=torch.bool)
            inside.as_strided(shape, stride, margin + shift).fill_(True)
            first = tensor[tuple(slice(0, n) for n in shape)]
            elements.as_strided(shape, stride, margin + shift).copy_(first)
            placed = elements.as_strided(tensor.shape, stride, margin + shift)
            start = data.data_ptr()
            self._buffers[start] = _Buffer(data, np.repeat(inside.numpy(), tensor.element_size()), canary)
            self._starts = sorted(self._buffers)
            return placed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            if not isinstance(out, Tensor) or not out.numel() or out.is_meta:
                return out
            if out.untyped_storage().data_ptr() in self._buffers:
                return out
            if func in _EMPTY:
                out.untyped_storage().fill_(0)
                out.view(torch.uint8).fill_(_canary(out.dtype))
            return self.place(out)

    def check(self) -> None:
        """No canary has changed: compiled kernels are checked by this alone."""
        for buffer in self._buffers.values():
            outside = buffer.bytes.numpy()[~buffer.inside]
            assert (outside == buffer.canary).all(), "written beside a tensor"

    def _access(self, what: str, addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        addresses = addresses[mask]
        if not addresses.size:
            return
        least, most = int(addresses.min()), int(addresses.max())
        at = bisect_right(self._starts, least) - 1
        assert at >= 0, f"{what} outside of every tensor"
        start = self._starts[at]
        inside = self._buffers[start].inside
        assert most + size <= start + len(inside), f"{what} outside of every tensor"
        first = (addresses - np.uint64(start)).astype(np.int64)
        assert (first % size == 0).all(), f"{what} between two elements"
        assert inside[first].all(), f"{what} beside a tensor"

    def __enter__(self) -> Guards:
        self._methods = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        load, store = self._methods

        def checked_load(builder: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self._access("read", ptrs.data, mask.data, _element_size(ptrs))
            return load(builder, ptrs, mask, *rest, **named)

        def checked_store(builder: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self._access("written", ptrs.data, mask.data, _element_size(ptrs))
            return store(builder, ptrs, value, mask, *rest, **named)

        InterpreterBuilder.create_masked_load = checked_load
        InterpreterBuilder.create_masked_store = checked_store
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = self._methods


def _element_size(ptrs: Any) -> int:
    return math.ceil(ptrs.get_element_ty().primitive_bitwidth / 8)
