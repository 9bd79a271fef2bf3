"""The operations of a categorical distribution that are timed, their inputs, and their least memory traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The inputs of a case are together larger than CPU_CACHE_BYTES, so that no logits are found in the cache. At most
# MOST_INPUTS are made.
CPU_CACHE_BYTES, MOST_INPUTS = 2**26, 64


class Operation(NamedTuple):
    """A call that constructs its distribution from unnormalised logits.

    Attributes:
        says: its name in the report.
        forward: the name of the provider's function.
        backward: True if the gradient of all results of the forward belongs to the operation.
        floor: the least bytes to move per element, for logits of `s` bytes. One-hot draws are int64, or of the logits'
            dtype if they have a gradient.
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
    """One row of a table of the report.

    Attributes:
        field: the providers that take part. "eager": all. "compiled": all, and all under torch.compile. "ours": this
            library, because the others run out of memory.
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
        """The least number of bytes that must be read and written."""
        size = getattr(torch, self.dtype).itemsize
        return OPERATIONS[self.operation].floor(size) * self.rows * self.columns


def grid(operations: str, shapes: list[tuple[int, int]], dtypes: str = "float32", field: str = "eager") -> list[Case]:
    """Return a case per combination. `operations` and `dtypes` are separated by blanks."""
    return [
        Case(operation, *shape, dtype, field)
        for operation in operations.split()
        for shape in shapes
        for dtype in dtypes.split()
    ]


class Inputs(NamedTuple):
    """The inputs of one call.

    Attributes:
        logits: [rows, columns].
        value: one-hot [rows, columns] or index [rows]. Empty if the operation takes no value.
        grad: incoming gradient of a draw, [rows, columns]. Empty if the operation has no backward.
        row_grad: incoming gradient of a result with one number per row, [rows].
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
    """Make the inputs that calls take in turn.

    Their logits together exceed the last-level cache, unless MOST_INPUTS are too few for that.
    """
    dtype = getattr(torch, case.dtype)
    cache = CPU_CACHE_BYTES
    if device.type == "cuda":
        cache = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    size = case.rows * case.columns * dtype.itemsize
    # One input suffices if it is many times the cache: only its end is still in the cache when it is read again.
    count = 1 if size > 16 * cache else max(2, min(MOST_INPUTS, -(-cache // size)))
    logits = (torch.randn(case.rows, case.columns, dtype=dtype, device=device) for _ in range(count))
    return [inputs_from(one, case.operation) for one in logits]


def call_of(forward: Callable[[Tensor, Tensor], Any], operation: str) -> Callable[[Inputs], Any]:
    """Return the operation as one call of a provider's forward, and of its backward.

    The call returns everything that it computes, so that no compiler can leave a part out.
    """
    if not OPERATIONS[operation].backward:
        return lambda given: forward(given.logits, given.value)

    def with_backward(given: Inputs) -> Any:
        logits = given.logits.detach().requires_grad_()
        out = forward(logits, given.value)
        results = out if isinstance(out, tuple) else (out,)
        incoming = [given.grad if result.shape == logits.shape else given.row_grad for result in results]
        return out, torch.autograd.grad(results, logits, incoming)[0]

    return with_backward
