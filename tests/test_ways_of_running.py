"""Ways of running a program that no other test has, and docs/hard-cases.md, whose rows each name a test."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from onehot_triton import OneHotCategorical

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "hard-cases.md").read_text()


def test_every_row_names_tests_that_exist() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(\w+\.py)::(\w+)`", row.rsplit(" | ", 1)[-1])
        assert named, row
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), row


def test_fake_tensors() -> None:
    with FakeTensorMode():
        dist = OneHotCategorical(torch.zeros(2, 3, requires_grad=True), validate_args=False)
        assert dist.sample((4,)).shape == dist.rsample((4,)).shape == (4, 2, 3)
        assert dist.log_prob_index(torch.zeros(2, dtype=torch.int64)).shape == dist.entropy().shape == (2,)


def test_jacrev() -> None:
    logits = torch.randn(4)

    def log_probs(x: Tensor) -> Tensor:
        return OneHotCategorical(x).log_prob(torch.eye(4))

    expected = torch.eye(4) - logits.softmax(-1)
    torch.testing.assert_close(torch.func.jacrev(log_probs)(logits), expected)


def test_threads() -> None:
    """Threads that share a distribution: each log_prob is that of its own draw."""
    dist = OneHotCategorical(torch.randn(3, 5))

    def step(seed: int) -> bool:
        draw = dist.sample((7,), generator=torch.Generator().manual_seed(seed))
        return torch.allclose(dist.log_prob(draw), (dist.logits * draw).sum(-1))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(step, range(40)))
