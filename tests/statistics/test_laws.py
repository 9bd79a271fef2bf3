"""Every sampler draws from the distribution that it names.

How often this fails though nothing is wrong: each check rejects a right sampler with probability ALPHA = 1e-6, and the
quick suite has 610 of them, so one set of seeds in 1,600 would fail somewhere; the thorough one has 772, one in 1,300.
The seeds are fixed: a run that passed passes again until the draws change. What each check is sure to see is computed,
and printed by `python tests/statistics/power.py`.
"""

from __future__ import annotations

import pytest
import torch
from checks import ALPHA, CHECKS, Check
from samplers import EAGER, KERNELS, Sampler, kernels_run

from onehot_triton import OneHotCategorical, ReparamGradientStrategy


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "check" in metafunc.fixturenames:
        samplers = EAGER + (KERNELS if kernels_run() else ())
        thorough = metafunc.config.getoption("--thorough", default=False)
        cells = [(s, c) for s in samplers for c in CHECKS if c.draws(s, thorough)]
        metafunc.parametrize(("sampler", "check"), cells, ids=[f"{s.name}-{c.name}" for s, c in cells])


def test_law(sampler: Sampler, check: Check, thorough: bool, progress) -> None:
    outcome = check(sampler, thorough, progress(check.draws(sampler, thorough)))
    assert outcome.p > ALPHA, f"p = {outcome.p:.2g} in {outcome.draws} draws"


@pytest.mark.parametrize("columns", [2, 1025, 50257, 131072])
@pytest.mark.parametrize("method", [None, ReparamGradientStrategy.PassThrough])
def test_one_hot_is_the_index(columns: int, method) -> None:
    """One-hot and index draws are the same draws, so that what is shown for the index, of which there can be many more,
    holds for the others."""
    dist = OneHotCategorical(torch.randn(3, columns), grad_method=method)
    torch.manual_seed(0)
    index = dist.sample_index((5,))
    torch.manual_seed(0)
    one_hot = dist.sample((5,)) if method is None else dist.rsample((5,))
    assert torch.equal(one_hot.argmax(-1), index)
    assert torch.equal(one_hot.sum(-1), torch.ones_like(index, dtype=one_hot.dtype))
