"""What is timed: each operation of a categorical distribution, its inputs, and the least traffic that it can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What the logits of a case exceed together, so that none waits in the cache, and the most of them that are made.
CPU_CACHE_BYTES, MOST_INPUTS = 2**26, 64


class Operation(NamedTuple):
    """A call that constructs its distribution from unnormalised logits.

    Attributes:
        says: what it is, for a reader.
        forward: the provider's function.
        backward: whether the gradient of everything that the forward gives is a part of it.
        floor: the least bytes for each element of the logits, of `s` bytes each; one-hot draws are int64, those with a
            gradient have the logits' dtype.
    """

    says: str
    forward: str
    backward: bool
    floor: Callable[[int], int]


OPERATIONS = {
    "sample": Operation("sample", "sample", False, lambda s: s + 8),
    "sample_index": Operation("sample_index", "sample_index", False, lambda s: s),
    "rsample": Operation("rsample", "rsample", False, lambda s: 2 * s),
    "pass_through": Operation("rsample and backward, PassThrough", "rsample", True, lambda s: 5 * s),
    "relaxed": Operation("rsample and backward, RelaxedOneHot", "rsample_relaxed", True, lambda s: 5 * s),
    "log_prob": Operation("log_prob", "log_prob", False, lambda s: 2 * s),
    "log_prob_index": Operation("log_prob of an index", "log_prob_index", False, lambda s: s),
    "entropy": Operation("entropy", "entropy", False, lambda s: s),
    "step": Operation("rsample, log_prob, entropy", "step", False, lambda s: 4 * s),
    "train_step": Operation("rsample, log_prob, entropy, backward", "step", True, lambda s: 7 * s),
    "joint_step": Operation("rsample, log_prob, entropy, backward, as one node", "joint_step", True, lambda s: 5 * s),
    "policy_gradient": Operation(
        "log_prob of an index, entropy, backward", "log_prob_index_and_entropy", True, lambda s: 3 * s
    ),
    "decode": Operation("sample and its log_prob", "decode", False, lambda s: s + 8),
}


class Case(NamedTuple):
    """One row of a table.

    Attributes:
        field: who takes part: "eager" is everybody as they are, "compiled" is everybody under torch.compile too, "ours"
            is us alone, where the others have not the memory.
    """

    operation: str
    rows: int
    columns: int
    dtype: str
    field: str = "eager"

    def __str__(self) -> str:
        return f"{self.operation} {self.rows} x {self.columns} {self.dtype}"

    @property
    def floor_bytes(self) -> int:
        """The least that must be read and written."""
        size = getattr(torch, self.dtype).itemsize
        return OPERATIONS[self.operation].floor(size) * self.rows * self.columns


def grid(operations: str, shapes: list[tuple[int, int]], dtypes: str = "float32", field: str = "eager") -> list[Case]:
    """Every combination; operations and dtypes are separated by blanks."""
    return [
        Case(operation, *shape, dtype, field)
        for operation in operations.split()
        for shape in shapes
        for dtype in dtypes.split()
    ]


class Inputs(NamedTuple):
    """Of one call.

    Attributes:
        logits: [rows, columns], which require a gradient where one is taken.
        value: a one-hot, [rows, columns], or an index, [rows]; empty where no operation asks for it.
        grad: incoming gradient of a draw, [rows, columns]; empty where there is no backward.
        row_grad: incoming gradient of one number a row, [rows].
    """

    logits: Tensor
    value: Tensor
    grad: Tensor
    row_grad: Tensor


def inputs_from(logits: Tensor, operation: str) -> Inputs:
    value = grad = logits.new_empty(0)
    if operation in ("log_prob", "log_prob_index", "policy_gradient"):
        value = torch.randint(logits.shape[-1], logits.shape[:-1], device=logits.device)
    if operation == "log_prob":
        value = torch.zeros_like(logits).scatter_(-1, value.unsqueeze(-1), 1)
    if OPERATIONS[operation].backward and operation != "policy_gradient":
        grad = torch.randn_like(logits)
    return Inputs(logits, value, grad, torch.randn(logits.shape[:-1], dtype=logits.dtype, device=logits.device))


def make_inputs(case: Case, device: torch.device) -> list[Inputs]:
    """Calls take them in turn. The logits of all exceed the last-level cache, or there are MOST_INPUTS of them."""
    dtype = getattr(torch, case.dtype)
    cache = CPU_CACHE_BYTES
    if device.type == "cuda":
        cache = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    size = case.rows * case.columns * dtype.itemsize
    # Of one that is many times the cache, only the end is still there when it is read again.
    count = 1 if size > 16 * cache else max(2, min(MOST_INPUTS, -(-cache // size)))
    logits = (torch.randn(case.rows, case.columns, dtype=dtype, device=device) for _ in range(count))
    return [inputs_from(one, case.operation) for one in logits]


def call_of(forward: Callable[[Tensor, Tensor], Any], operation: str) -> Callable[[Inputs], Any]:
    """The operation as one call, by a provider's forward. Everything computed is given back, so that no compiler may
    leave it out."""
    if not OPERATIONS[operation].backward:
        return lambda given: forward(given.logits, given.value)

    def with_backward(given: Inputs) -> Any:
        logits = given.logits.detach().requires_grad_()
        out = forward(logits, given.value)
        results = out if isinstance(out, tuple) else (out,)
        incoming = [given.grad if result.shape == logits.shape else given.row_grad for result in results]
        return out, torch.autograd.grad(results, logits, incoming)[0]

    return with_backward
