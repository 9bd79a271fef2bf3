"""Each operator of library.py by torch.library.opcheck: its schema, its fake results, and AOT dispatch of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onehot_triton import library

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")]

ROWS, DRAWS = 3, 2
# What opcheck looks at depends on dtypes and strides, and not on how a row is walked.
COLUMNS = 18
DTYPES = (torch.bfloat16, torch.float64)


@pytest.fixture(autouse=True)
def numpy_as_quiet_as_a_gpu() -> Iterator[None]:
    """The interpreter computes inf - inf and log 0 in NumPy, which warns where a GPU does not."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: interpreted on the CPU where there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _index(logits: Tensor) -> Tensor:
    return (torch.arange(DRAWS * ROWS, device=logits.device).view(DRAWS, ROWS) * 7) % logits.shape[1]


def _grad(logits: Tensor, *lead: int) -> Tensor:
    return torch.randn(*lead, *logits.shape, device=logits.device).to(logits.dtype)


def _row_grad(logits: Tensor, *lead: int) -> Tensor:
    return torch.randn(*lead, ROWS, device=logits.device).to(_logsumexp(logits).dtype)


def _logsumexp(logits: Tensor) -> Tensor:
    return library.operators.logsumexp(logits, None)


def _temperature(logits: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, ROWS, device=logits.device)


def _value(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.one_hot(_index(logits), logits.shape[1]).to(dtype)


def _seed(logits: Tensor) -> tuple[Tensor, int, int, int]:
    return torch.tensor(5, device=logits.device), 0, 0, 0


def _allowed(logits: Tensor) -> Tensor:
    return (torch.arange(logits.shape[1], device=logits.device) % 3 != 1).expand(logits.shape)


HOST_SEED = (None, 11, 4, 0)

# Operator -> its arguments, as functions of the logits.
CASES: dict[str, list[Callable[[Tensor], tuple[Any, ...]]]] = {
    "sample": [
        lambda x: (x, DRAWS, torch.int64, *_seed(x), _allowed(x)),
        lambda x: (x, 1, torch.bool, *HOST_SEED, None),
        lambda x: (x, DRAWS, None, *_seed(x), None),
    ],
    "relaxed": [
        lambda x: (x, _temperature(x), DRAWS, *_seed(x)),
        lambda x: (x, _temperature(x), 1, *HOST_SEED),
    ],
    "relaxed_grad": [
        lambda x: (x, _logsumexp(x), _index(x), _grad(x, DRAWS), _temperature(x), *_seed(x), _allowed(x)),
        lambda x: (x, _logsumexp(x), _index(x), _grad(x, DRAWS), _temperature(x), *HOST_SEED, None),
    ],
    "softmax_grad": [lambda x: (x, _logsumexp(x), _grad(x), _allowed(x))],
    "log_prob": [
        lambda x: (x, None, _value(x, torch.int64), _allowed(x)),
        lambda x: (x, _logsumexp(x), _value(x, torch.bool), None),
    ],
    "log_prob_index": [lambda x: (x, _logsumexp(x), _index(x), _allowed(x))],
    "log_prob_grad": [lambda x: (x, _logsumexp(x), _index(x), _row_grad(x, DRAWS), _allowed(x))],
    "logsumexp": [lambda x: (x, _allowed(x))],
    "entropy": [lambda x: (x, _allowed(x)), lambda x: (x, None)],
    "entropy_grad": [lambda x: (x, *reversed(library.operators.entropy(x, None)), _row_grad(x), _allowed(x))],
    "seeded_exponential": [lambda x: (torch.tensor(5, device=x.device), [DRAWS, *x.shape])],
}


def test_every_operator_has_its_cases() -> None:
    # The registrations that the dispatcher itself knows of.
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "onehot" in name}
    assert names == set(CASES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), [(name, i) for name, cases in CASES.items() for i in range(len(cases))])
def test_opcheck(name: str, case: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.randn(ROWS, COLUMNS, device=device).to(dtype)
    torch.library.opcheck(getattr(library.operators, name).default, CASES[name][case](logits))


@pytest.mark.parametrize("name", [name for name in CASES if name != "seeded_exponential"])
def test_opcheck_of_rows_with_a_stride(name: str, device: torch.device) -> None:
    """A slice of a wider tensor, and an expanded row: fake results have the strides of real ones."""
    wide = torch.randn(ROWS, 2, COLUMNS, device=device)[:, 1]
    expanded = torch.randn(1, COLUMNS, device=device).expand(ROWS, COLUMNS)
    for logits in (wide, expanded):
        torch.library.opcheck(getattr(library.operators, name).default, CASES[name][0](logits))
