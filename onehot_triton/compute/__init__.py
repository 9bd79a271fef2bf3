"""The backends, rows in, rows out, and the choice of one for each call, by the device and the size of its tensors.

The package is not called `backends`: torch.compile traces into no file whose path has "triton/backends" in it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..tensors import loses_functions
from .base import Eager
from .cpu import Cpu, is_small
from .small import Small
from .triton import Triton

_NAMES = ("auto", "triton", "eager")
# A plain global, which torch.compile can read and guards on.
_name = "auto"
_TRITON_IS_THERE = importlib.util.find_spec("triton") is not None
EAGER, CPU, SMALL, TRITON = Eager(), Cpu(), Small(), Triton()
BY_DEVICE: dict[str, Eager] = {"cpu": CPU}
"""The backends of devices without kernels that have one of their own; the others have `EAGER`."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Choose what computes, within a `with` block and for the whole process: for tests, comparison and debugging.

    Args:
        name: "auto", the default: kernels for CUDA, ROCm and XPU tensors where Triton is there, eager torch for all
            others. "triton": kernels, or an error that says why not. "eager": torch operations everywhere.

    Raises:
        ValueError: `name` is none of these.

    Example:
        >>> import torch
        >>> from onehot_triton import OneHotCategorical, use_backend
        >>> with use_backend("eager"):
        ...     OneHotCategorical(torch.zeros(3)).entropy()
        tensor(1.0986)
    """
    if name not in _NAMES:
        raise ValueError(f"name: expected one of {', '.join(map(repr, _NAMES))}, found {name!r}")
    global _name
    before, _name = _name, name
    try:
        yield
    finally:
        _name = before


def of(tensor: Tensor) -> Eager:
    """Choose the backend of `tensor`; raises RuntimeError where kernels must compute and cannot."""
    device = tensor.device
    # A gradient comes from torch's operations alone where a Function would be lost.
    if uses_kernels(device) and not loses_functions():
        return TRITON
    backend = BY_DEVICE.get(device.type, EAGER)
    return SMALL if backend is CPU and is_small(tensor) else backend


def differentiable(backend: Eager) -> Eager:
    """Give the backend whose gradients can be differentiated, in place of `backend`."""
    return EAGER if backend is TRITON else backend


def uses_kernels(device: torch.device) -> bool:
    """Tell whether the kernels compute for tensors on `device`; raises RuntimeError where they must and cannot."""
    if _name == "eager":
        return False
    if device.type in ("cuda", "xpu") and _TRITON_IS_THERE:
        return True
    if _name == "auto":
        return False
    if not _TRITON_IS_THERE:
        raise RuntimeError('use_backend("triton"): Triton is not installed')
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return True
    hint = "; TRITON_INTERPRET=1, set before the start, interprets them there" if device.type == "cpu" else ""
    raise RuntimeError(f'use_backend("triton"): the kernels do not run on {device.type} tensors{hint}')
