"""The backends: an invalid row in each, and a CPU that is right without its fast path."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from onehot_triton import compute
from onehot_triton.compute import CPU, EAGER, SMALL
from onehot_triton.compute.base import Eager, Rows


@pytest.mark.parametrize("columns", [5, 2000])
@pytest.mark.parametrize("backend", [CPU, SMALL, EAGER], ids=["cpu", "small", "eager"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_wherever_it_is_not(backend: Eager, columns: int, bad: float) -> None:
    at = [0, 1, columns // 2, columns - 1]
    logits = torch.randn(6, columns)
    logits[range(4), at] = bad
    logits[5] = -math.inf
    rows = Rows(logits)
    drawn = backend.sample(rows, 2, torch.int64, backend.new_seed(logits, None), False)
    assert (drawn.index[:, [0, 1, 2, 3, 5]] == -1).all()
    assert drawn.one_hot is not None
    assert drawn.one_hot.sum(-1).tolist() == 2 * [[0, 0, 0, 0, 1, 0]]
    for density in (backend.entropy(rows)[0], backend.log_prob_index(rows, drawn.index)[0][0]):
        assert density.isnan().tolist() == [True, True, True, True, False, True]


def test_the_core_of_the_suite_without_the_fast_path_of_a_cpu(request: pytest.FixtureRequest) -> None:
    """`cpu.py` is optional: the tests of the distributions' members and of their gradients pass with the formulas in
    its place."""
    if not compute.BY_DEVICE:
        pytest.skip("is being run without it already")
    core = ["tests/test_gradients.py", "tests/test_masked.py", "-k", "not triton and not compile"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--without-cpu", *core]
    run = subprocess.run(command, capture_output=True, text=True, cwd=request.config.rootpath)
    assert run.returncode == 0, run.stdout[-3000:]
