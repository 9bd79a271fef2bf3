"""The checks reject every planted fault, each in the checks that it is meant for."""

from __future__ import annotations

import pytest
import torch
from checks import ALPHA, BY_NAME, chi_square
from faults import FAULTS, Fault, first_of_the_highest


@pytest.mark.parametrize(
    ("fault", "name"),
    [(fault, name) for fault in FAULTS for name in fault.rejected_by],
    ids=[f"{fault.sampler.name}-{name}" for fault in FAULTS for name in fault.rejected_by],
)
def test_fault_is_rejected(fault: Fault, name: str) -> None:
    outcome = BY_NAME[name](fault.sampler)
    assert outcome.p < ALPHA, f"p = {outcome.p:.2g} in {outcome.draws} draws"


@pytest.mark.parametrize(("levels", "columns"), [(256, 300), (8, 5)])
def test_law_of_coarse_uniforms(levels: int, columns: int) -> None:
    """The law by which a faulty sampler is drawn is that of its definition, at a size where both can be run."""
    torch.manual_seed(0)
    n = 10**5
    u = torch.randint(levels, (n, columns))
    direct = torch.bincount(u.argmax(-1), minlength=columns)
    column = torch.arange(columns, dtype=torch.float64)
    m = torch.arange(levels, dtype=torch.float64).unsqueeze(-1)
    # All columns before this one are below level m, this one is at it, and the others are not above.
    exact = ((m / levels) ** column * ((m + 1) / levels) ** (columns - 1 - column) / levels).sum(0)
    by_law = torch.bincount(first_of_the_highest(levels, columns, n), minlength=columns)
    for counts in (direct, by_law):
        assert chi_square(counts.numpy(), exact.numpy())[0] > ALPHA
