"""The backends: one interface, and a CPU that is right without its fast path."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from onehot_triton import compute
from onehot_triton.compute import base, cpu, small, triton
from onehot_triton.compute.interface import Backend

OPERATIONS = [name for name, member in vars(Backend).items() if inspect.isfunction(member) and not name.startswith("_")]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("backend", [triton, cpu, small, base], ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_backend_has_the_signatures_of_the_interface(backend: ModuleType, name: str) -> None:
    asked = inspect.signature(getattr(Backend, name))
    asked = asked.replace(parameters=list(asked.parameters.values())[1:])
    found = inspect.signature(getattr(backend, name))
    # A backend may have more, with a default, for itself.
    extra = list(found.parameters.values())[len(asked.parameters) :]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in extra)
    assert found.replace(parameters=list(found.parameters.values())[: len(asked.parameters)]) == asked


def test_the_interface_is_all_that_is_asked_of_a_backend() -> None:
    """What the library takes from a backend that it chose is in the interface."""
    assert set(Backend.__annotations__) == {"reads_masks"}
    assert {module.reads_masks for module in (cpu, small, base)} == {False}
    assert triton.reads_masks


@pytest.mark.parametrize("columns", [5, 2000])
@pytest.mark.parametrize("backend", [cpu, small, base], ids=["cpu", "small", "base"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_wherever_it_is_not(backend: Backend, columns: int, bad: float) -> None:
    at = [0, 1, columns // 2, columns - 1]
    logits = torch.randn(6, columns)
    logits[range(4), at] = bad
    logits[5] = -math.inf
    drawn = backend.sample(logits, None, 2, torch.int64, backend.new_seed(logits, None), False)
    assert (drawn.index[:, [0, 1, 2, 3, 5]] == -1).all()
    assert drawn.one_hot is not None
    assert drawn.one_hot.sum(-1).tolist() == 2 * [[0, 0, 0, 0, 1, 0]]
    for density in (backend.entropy(logits)[0], backend.log_prob_index(logits, drawn.index)[0][0]):
        assert density.isnan().tolist() == [True, True, True, True, False, True]


def test_the_core_of_the_suite_without_the_fast_path_of_a_cpu(request: pytest.FixtureRequest) -> None:
    """`cpu.py` deleted, nothing is wrong but the speed: the tests of the distributions' members and of their gradients
    pass with the formulas in its place."""
    if not compute.BY_DEVICE:
        pytest.skip("is being run without it already")
    core = ["tests/test_gradients.py", "tests/test_masked.py", "-k", "not triton and not compile"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--without-cpu", *core]
    run = subprocess.run(command, capture_output=True, text=True, cwd=request.config.rootpath)
    assert run.returncode == 0, run.stdout[-3000:]
