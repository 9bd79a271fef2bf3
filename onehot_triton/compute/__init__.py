"""The choice of what computes: once for each call of a user, by the device of its tensors.

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
from . import base, cpu, small, triton
from .interface import Backend

_NAMES = ("auto", "triton", "eager")
# A plain global, which torch.compile can read and guards on.
_name = "auto"
_TRITON_IS_THERE = importlib.util.find_spec("triton") is not None
BY_DEVICE: dict[str, Backend] = {"cpu": cpu}
"""The eager path of a device, where it is not the formulas as they stand."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses what computes, within a `with` block and for the whole process: for tests, comparison and debugging.

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


def of(tensor: Tensor) -> Backend:
    """What computes for `tensor`, on its device; raises RuntimeError where kernels must and cannot."""
    device = tensor.device
    # Where a Function would be lost, a gradient comes from torch's operations alone.
    if uses_kernels(device) and not loses_functions():
        return triton
    backend = BY_DEVICE.get(device.type, base)
    return small if backend is cpu and cpu.is_small(tensor) else backend


def differentiable(backend: Backend) -> Backend:
    """The backend whose gradients can be differentiated, in place of `backend`."""
    return base if backend is triton else backend


def uses_kernels(device: torch.device) -> bool:
    """Whether the kernels compute for tensors on `device`; raises RuntimeError where they must and cannot."""
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
