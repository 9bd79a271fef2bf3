"""What a tensor tells before anything is computed: the dtype to compute in, and how the program around it runs."""

from __future__ import annotations

from types import NoneType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

# The `__torch_dispatch__` of a class whose tensors have their values in memory. A class that overrides it (fake,
# functional and sharded tensors) may have none; one that overrides `__torch_function__`, or nothing, is as any tensor.
_NO_DISPATCH: Any = Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]
# By its name, it would be looked for at each call, in 2 us.
_VMAP_MODE: Any = torch._C._parse_dispatch_key("VmapMode")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of `dtype` are computed in: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scalar_tensor(number: float, like: Tensor) -> Tensor:
    """Make a 0-d tensor, in the compute dtype of `like` and on its device, of a number that may change from one run of
    a compiled program to the next.

    A product keeps the number a symbol. `torch.full((), number)` would be another program for each value.
    """
    return torch.ones((), dtype=compute_dtype(like.dtype), device=like.device) * number


def batch_sizes(tensor: Tensor) -> list[int]:
    """The batch of `tensor` [*batch, columns] in as few dimensions as a view of it has."""
    sizes, last = [], 0
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size != 1:
            if sizes and last == size * stride:
                sizes[-1] *= size
            else:
                sizes.append(size)
            last = stride
    return sizes


def is_recorded(tensor: Tensor) -> bool:
    """Whether the program is recorded (compiled, exported, traced) and run later: `tensor` may have no values yet, and
    what is computed of them now would become a constant."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or type(tensor).__torch_dispatch__ is not _NO_DISPATCH  # pyright: ignore[reportAttributeAccessIssue]
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    )


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, known by its name: to import the class takes seconds, and who has none never does."""
    return type(tensor).__name__ == "DTensor"


def is_plain(tensor: Tensor) -> bool:
    """Whether what is called with `tensor` runs now and as it is: nothing records, transforms or differentiates it, and
    no profiler, mode or `__torch_function__` watches. A non-strict export shows in the type or as a mode."""
    return (
        not torch.compiler.is_dynamo_compiling()
        and type(tensor) in (Tensor, Parameter)
        and peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        # A batch of gradients (is_grads_batched), which no type shows.
        and not torch._C._dispatch_tls_is_dispatch_key_included(_VMAP_MODE)  # pyright: ignore[reportAttributeAccessIssue]
        and not torch._C._is_tracing()
        and forward_ad._current_level < 0
        and not torch._C._autograd._profiler_enabled()  # pyright: ignore[reportAttributeAccessIssue]
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def in_transform() -> bool:
    """Whether a transform of torch.func (vmap, grad) is active: then a tensor may have no values to look at."""
    # Not `is None`: torch.compile, which traces this, gives an object of that type that is another one.
    return not isinstance(peek_interpreter_stack(), NoneType)


def can_look_at(tensor: Tensor) -> bool:
    """Whether its values can be looked at now, by the call alone: on a CPU, in no recorded or transformed program."""
    # `not is_recorded(tensor) and not in_transform()`, without their calls: the eager path asks at each.
    return (
        tensor.is_cpu
        and not torch.compiler.is_compiling()
        and type(tensor).__torch_dispatch__ is _NO_DISPATCH  # pyright: ignore[reportAttributeAccessIssue]
        and peek_interpreter_stack() is None
        and not torch._C._is_tracing()
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None
    )


def loses_functions() -> bool:
    """Whether a gradient has to come from torch's own operations: an exported or traced program keeps no autograd
    Function, and forward-mode differentiation, which `torch.func.jvp` enters too, has no rule for one."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting() and torch.is_grad_enabled()
    # A dual tensor inside a transform does not say what it is.
    return forward_ad._current_level >= 0 or torch._C._is_tracing()


def is_differentiated(tensor: Tensor) -> bool:
    """Whether autograd may record what is computed of it, which must then not be changed in place."""
    # A transform may differentiate what does not say so.
    return in_transform() or (tensor.requires_grad and torch.is_grad_enabled()) or loses_functions()
