"""Ways of running a program that no other test has, and docs/hard-cases.md, whose rows each name a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
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


# Of its own process: it forks, and starts a process group.
PROCESSES = """
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from onehot_triton import OneHotCategorical, ReparamGradientStrategy

PASS = ReparamGradientStrategy.PassThrough


class Policy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(3, 8)

    def forward(self, x):
        action = OneHotCategorical(self.head(x), grad_method=PASS)
        draw = action.rsample()
        return (draw * torch.arange(8)).sum() + action.log_prob(draw.detach()).sum() + action.entropy().sum()


def grads(wrap):
    policy = Policy()
    run = wrap(policy)
    torch.manual_seed(1)
    run(torch.arange(12.0).view(4, 3) / 12).backward()
    return [getattr(p.grad, "full_tensor", lambda: p.grad)() for p in policy.parameters()]


def draw(action, seed, queue):
    torch.manual_seed(seed)
    queue.put(action.sample().tolist())


def in_child(method, seed):
    context = mp.get_context(method)
    queue = context.Queue()
    child = context.Process(target=draw, args=(OneHotCategorical(torch.zeros(4, 8)), seed, queue))
    child.start()
    found = queue.get(timeout=60)
    child.join()
    return found


if __name__ == "__main__":
    torch.manual_seed(5)
    expected = OneHotCategorical(torch.zeros(4, 8)).sample().tolist()
    for method in ("fork", "spawn"):
        assert in_child(method, 5) == expected
        assert in_child(method, 6) != expected
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    alone = grads(lambda policy: policy)
    for wrap in (DistributedDataParallel, fully_shard):
        for found, grad in zip(grads(wrap), alone, strict=True):
            torch.testing.assert_close(found, grad)
    dist.destroy_process_group()
"""


def test_processes(tmp_path: Path) -> None:
    """fork and spawn: a draw is that of its seed. DDP and FSDP2, a rank of one: the gradients are those without."""
    script = tmp_path / "processes.py"
    script.write_text(textwrap.dedent(PROCESSES))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
