"""Ways of running a program that no other test has, and the hard cases of docs/what-is-tested.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from onehot_triton import OneHotCategorical, ReparamGradientStrategy

pytestmark = [
    # Parts of torch use deprecated other parts.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]

ROOT = Path(__file__).parents[1]
PASS = ReparamGradientStrategy.PassThrough
HARD_CASES = (ROOT / "docs" / "what-is-tested.md").read_text().split("\n## Hard cases\n")[1].split("\n## ")[0]


# Each has a row of the page.
WAYS = {
    "eager", "inference_mode", "no_grad", "autocast", "compile, default", "compile, reduce-overhead",
    "compile, max-autotune", "export, strict", "export, not strict", "export, saved and loaded", "AOTInductor",
    "jit.trace", "make_fx", "FakeTensor", "vmap", "grad", "jvp", "jacrev", "hessian", "checkpoint, reentrant",
    "checkpoint, not reentrant", "DDP", "FSDP2", "spawn", "fork", "threads", "pickle", "deepcopy", "ONNX",
}  # fmt: skip


def test_every_way_has_a_row_that_names_tests_that_exist() -> None:
    lines = [line.strip("| ").split(" | ") for line in HARD_CASES.splitlines() if line.startswith("| ")]
    rows = [line for line in lines if line[2] != "test"]
    assert len(lines) - len(rows) == HARD_CASES.count("| case | result | test |")
    assert {way for way, _, _ in rows} >= WAYS
    assert len({way for way, _, _ in rows}) == len(rows)
    for way, result, tests in rows:
        assert result, way
        named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
        assert named, way
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), way


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


class Draws(torch.nn.Module):
    """Draws [50, rows], and the densities [rows] of some index."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dist = OneHotCategorical(x, validate_args=False)
        return dist.sample_index((50,)), dist.log_prob_index(index), dist.entropy()


def check_draws(program: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> None:
    """New ones each time, of the law of their logits as far as 50 of a sure category show it, with eager densities."""
    x, index = 3 * torch.randn(3, 8), torch.arange(3)
    x[0, 5] = 200.0
    (first, log_prob, entropy), (second, *_) = program(x, index), program(x, index)
    assert (first != second).any()
    for draw in (first, second):
        assert (draw[:, 0] == 5).all()
        assert ((draw >= 0) & (draw < 8)).all()
    dist = OneHotCategorical(x)
    torch.testing.assert_close(log_prob, dist.log_prob_index(index))
    torch.testing.assert_close(entropy, dist.entropy())


def examples() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64)


needs_a_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)


@needs_a_compiler
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_of_compile(mode: str) -> None:
    """On a CPU. The default has every member in test_ways_of_differentiating.py."""
    torch._dynamo.reset()
    check_draws(torch.compile(Draws(), mode=mode, fullgraph=True))


@needs_a_compiler
def test_aot_inductor(tmp_path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(Draws(), examples())
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "draws.pt2"))
    check_draws(torch._inductor.aoti_load_package(package))


@pytest.mark.parametrize("columns", [3, 8, 700])
def test_onnx(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
    from onnx.reference import ReferenceEvaluator, ops  # pyright: ignore[reportMissingImports]

    # The evaluator's own compares the wrong dimensions where the axis is -1.
    gather = ops.op_gather_elements
    monkeypatch.setattr(gather, "gather_numpy", lambda data, axis, index: np.take_along_axis(data, index, axis))

    class Program(Draws):
        def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
            dist = OneHotCategorical(x, grad_method=PASS, validate_args=False)
            others = dist.sample(), dist.rsample(), dist.mode, dist.log_prob(dist.mode), dist.probs, dist.variance
            return *super().forward(x, index), *others

    x, index = torch.randn(3, columns), torch.arange(3)
    program = torch.onnx.export(Program().eval(), (x, index), dynamo=True, verbose=False)
    evaluator = ReferenceEvaluator(program.model_proto)  # pyright: ignore[reportOptionalMemberAccess]

    def run(*args: Tensor) -> list[Tensor]:
        given = {name: arg.numpy() for name, arg in zip(evaluator.input_names, args, strict=True)}
        return [torch.from_numpy(result) for result in evaluator.run(None, given)]

    dist = OneHotCategorical(x)
    draws, log_prob, entropy, sample, rsample, mode, log_prob_of_mode, probs, variance = run(x, index)
    draws = torch.cat([draws, *(run(x, index)[0] for _ in range(40))])
    assert not torch.equal(draws[:50], draws[50:100])
    found = torch.nn.functional.one_hot(draws, columns).float().mean(0)
    # Six standard deviations of a mean of 2050 draws.
    torch.testing.assert_close(found, dist.probs, rtol=0, atol=0.07)
    assert (sample.sum(-1) == 1).all()
    assert (rsample.sum(-1) == 1).all()
    exact = dist.log_prob_index(index), dist.entropy(), dist.mode, dist.log_prob(dist.mode), dist.probs, dist.variance
    for one, other in zip((log_prob, entropy, mode, log_prob_of_mode, probs, variance), exact, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype))


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
