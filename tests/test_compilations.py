"""How many kernels a train step compiles, whatever the number of rows: the JIT is Triton's own, the GPUs are not."""

from __future__ import annotations

import pytest
import torch
from fake_gpus import FakeGpus
from torch import Tensor

pytest.importorskip("triton")

from onehot_triton.kernels import entropy, log_prob, relaxed, sample, softmax_grad

ROWS = (1, 2, 3, 8, 33, 66, 100, 133, 264, 300, 999, 1024, 2111, 4096, 8191, 8448, 20_001, 65_535, 65_536)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="cuda:0", dtype=dtype)


def train_step(rows: int, columns: int, relaxed_gradient: bool) -> None:
    """What a draw, its log-probability, the entropy and the gradients of all three launch."""
    dtype = torch.bfloat16
    logits, per_row = empty(rows, columns, dtype=dtype), empty(rows)
    one_hot, index, logsumexp = sample.sample(logits, 1, dtype, 7, 0)
    log_prob.log_prob(logits, None, one_hot, hint=index)
    entropy.entropy(logits)
    if relaxed_gradient:
        relaxed.relaxed_grad(logits, logsumexp, index, empty(1, rows, columns, dtype=dtype), 0.5, 7, 0)
    else:
        softmax_grad.softmax_grad(logits, logsumexp, empty(rows, columns, dtype=dtype))
    log_prob.log_prob_grad(logits, logsumexp, index, empty(1, rows))
    entropy.entropy_grad(logits, logsumexp, per_row, per_row)


@pytest.mark.parametrize("relaxed_gradient", [False, True])
@pytest.mark.parametrize("columns", [6, 18, 32, 1024, 2000, 5000, 128256])
def test_compilations_of_a_train_step_over_rows(
    monkeypatch: pytest.MonkeyPatch, columns: int, relaxed_gradient: bool
) -> None:
    gpus = FakeGpus(monkeypatch)
    with gpus.tensors():
        for rows in ROWS:
            train_step(rows, columns, relaxed_gradient)
    assert 6 <= len(gpus.compiled) <= 8, sorted(gpus.compiled)
