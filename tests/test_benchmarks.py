"""benchmarks/: the baseline kernel is right, a wrong provider is seen, and what is timed is what its table says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

import measure
import naive
from correctness import CHECKS, fault, frequency_fault
from measure import QUESTIONS, Contest, peak_bytes, questions, rotating
from operations import OPERATIONS, Case, call_of, inputs_from, make_inputs
from providers import OURS, Provider, providers
from torch import distributions as D

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")
DRAWN = ((2000, 6),)


@pytest.fixture(scope="module")
def entrants():
    """By name. Without torch.compile, whose time is no test's."""
    return {provider.name: provider.forwards for provider in providers()[0]}


def test_the_suite_runs() -> None:
    """One case, in a process of its own: as `make bench`, but for the file it writes."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    options = ["-s", "-q", "-W", "ignore", "--benchmark-quiet", "-p", "no:cacheprovider"]
    few = [str(BENCHMARKS / "bench_decode.py"), "-k", "32000 and float32 and onehot_triton"]
    # pytest-benchmark times nothing in a worker of pytest-xdist, which this process may be.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", *options, *few]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_every_question_is_a_file() -> None:
    files = BENCHMARKS.glob("bench_*.py")
    assert sorted(QUESTIONS) == sorted(path.stem.removeprefix("bench_") for path in files)
    for name, module in questions().items():
        assert module.__doc__, name
        assert {case.operation for case in [*module.CPU, *module.GPU]} <= set(OPERATIONS), name


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_timed_of_ours_is_right(entrants, operation: str, dtype: str) -> None:
    assert fault(entrants[OURS], operation, dtype, CPU, DRAWN) is None


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_timed_of_the_others_is_right(entrants, operation: str) -> None:
    for name, forwards in entrants.items():
        # The naive kernel, interpreted, has a test of its own.
        if OPERATIONS[operation].forward in forwards and name != "naive Triton":
            why = fault(forwards, operation, "float32", CPU, DRAWN)
            if (name, operation) == ("torchrl", "relaxed"):
                assert "the mean gradient" in str(why)
            else:
                assert why is None, name


def hot(x: Tensor, index: Tensor) -> Tensor:
    return F.one_hot(index, x.shape[-1])


def draw(x: Tensor) -> Tensor:
    return torch.multinomial(torch.softmax(x, -1), 1)[..., 0]


def straight(soft: Tensor, drawn: Tensor) -> Tensor:
    return drawn + soft - soft.detach()


WRONG = {
    "sample": lambda x, _: hot(x, draw(0.8 * x)),
    "sample_index": lambda x, _: draw(x + torch.tensor([0.3, 0, 0, 0, 0, 0])),
    "rsample": lambda x, _: 0.5 * (hot(x, draw(x)) + hot(x, draw(x))),
    "pass_through": lambda x, _: straight(torch.softmax(x / 2, -1), hot(x, draw(x))),
    "relaxed": lambda x, _: straight(torch.softmax(x, -1), hot(x, draw(x))),
    "log_prob": lambda x, value: (value * x).sum(-1),
    "entropy": lambda x, _: torch.softmax(x, -1).square().sum(-1),
    "step": lambda x, _: (hot(x, draw(x)), x.logsumexp(-1), x.logsumexp(-1)),
    "train_step": lambda x, _: 3 * (x.sum(-1),),
    "decode": lambda x, _: (hot(x, draw(x)), x.logsumexp(-1)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_provider_is_seen(operation: str) -> None:
    assert set(WRONG) == set(CHECKS) == set(OPERATIONS)
    assert fault({OPERATIONS[operation].forward: WRONG[operation]}, operation, "float32", CPU, ((20000, 6),))


def p_of(x: Tensor) -> Tensor:
    return torch.softmax(x.float(), -1)


# As WRONG, but little: within a hundred times the tolerance of a right one.
SLIGHTLY_WRONG: dict[str, tuple[str, Callable[[Tensor, Tensor], Any]]] = {
    "log_prob": ("log_prob", lambda x, value: (value * x.log_softmax(-1)).sum(-1) + 3e-3),
    "entropy": ("entropy", lambda x, _: -(p_of(x) * x.log_softmax(-1)).sum(-1) - 3e-3),
    "a gradient": ("pass_through", lambda x, _: straight(1.01 * torch.softmax(x, -1), hot(x, draw(x)))),
    "nearly one-hot": ("rsample", lambda x, _: hot(x, draw(x)) + 1e-4),
    "log_prob of a draw": ("decode", lambda x, _: (lambda i: (hot(x, i), x.log_softmax(-1).gather(-1, i[:, None])[:, 0] + 3e-3))(draw(x))),
    "frequencies": ("sample", lambda x, _: hot(x, draw(1.1 * x))),
    "the mean of the relaxed gradient": ("relaxed", lambda x, _: straight(0.9 * F.gumbel_softmax(x), hot(x, draw(x)))),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIGHTLY_WRONG)
def test_a_slightly_wrong_provider_is_seen(name: str) -> None:
    operation, forward = SLIGHTLY_WRONG[name]
    assert fault({OPERATIONS[operation].forward: forward}, operation, "float32", CPU, ((20000, 6),))


def contest_of(monkeypatch: pytest.MonkeyPatch, **forwards: Callable[[Tensor, Tensor], Any]) -> Contest:
    found = [Provider(name, {"entropy": forward}) for name, forward in forwards.items()]
    monkeypatch.setattr(measure.providers, "providers", lambda: (found, {}))
    return Contest(CPU, ((100, 6),))


def test_a_wrong_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    contest = contest_of(
        monkeypatch, right=lambda x, _: D.OneHotCategorical(logits=x).entropy(), wrong=WRONG["entropy"]
    )
    case = Case("entropy", 4, 6, "float32")
    given = rotating(case, CPU)
    assert contest.entrants(case) == ["right", "wrong"]
    assert contest.begin(case, "right", given)["seconds"] == []
    for _ in range(2):  # the second time from what is known
        record = contest.begin(case, "wrong", given)
        assert list(record) == ["wrong"]
        assert "entropy is off by" in record["wrong"]
    assert list(contest.wrong) == [("wrong", "entropy", "float32")]


def test_each_dtype_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_in_half(x: Tensor, _: Tensor) -> Tensor:
        return D.OneHotCategorical(logits=x.float()).entropy() + (x.dtype == torch.bfloat16)

    contest = contest_of(monkeypatch, one=wrong_in_half)
    found = [contest.fault(Case("entropy", 4, 6, dtype), "one") for dtype in ("float32", "bfloat16", "float32")]
    assert [why is None for why in found] == [True, False, True]


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that comes at the case's own shape alone."""

    def small(x: Tensor, _: Tensor) -> Tensor:
        if len(x) == 7:
            raise MemoryError("too many rows")
        return D.OneHotCategorical(logits=x).entropy()

    case = Case("entropy", 7, 6, "float32")
    record = contest_of(monkeypatch, small=small).begin(case, "small", rotating(case, CPU))
    assert record == {"cannot": "MemoryError: too many rows"}


def test_an_error_is_a_fault() -> None:
    def broken(x: Tensor, _: Tensor) -> Tensor:
        raise RuntimeError("out of luck")

    assert "out of luck" in str(fault({"entropy": broken}, "entropy", "float32", CPU))


@pytest.mark.parametrize("columns", [6, 3000])
def test_naive_kernel(columns: int) -> None:
    """Interpreted where there is no GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits = torch.randn(columns, device=device).expand(100, columns).contiguous()
    assert frequency_fault(naive.sample(logits), logits) is None
    assert frequency_fault(hot(logits, naive.sample_index(logits.bfloat16())), logits) is None


def test_inputs_exceed_the_cache() -> None:
    many = make_inputs(Case("sample", 64, 4096, "float32"), CPU)
    assert sum(given.logits.nbytes for given in many) >= 2**26
    assert len({given.logits.data_ptr() for given in many}) == len(many)


def test_floor_of_a_case() -> None:
    """Logits read, an int64 one-hot written; and for two reads of a bfloat16."""
    assert Case("sample", 10, 100, "float32").floor_bytes == 1000 * (4 + 8)
    assert Case("log_prob", 10, 100, "bfloat16").floor_bytes == 1000 * (2 + 2)


def test_peak_memory_is_what_a_call_needs_beside_its_results() -> None:
    x = torch.randn(2**16)
    assert peak_bytes(lambda: x.exp(), CPU) == 0
    assert peak_bytes(lambda: x.exp().log(), CPU) == x.nbytes
    assert peak_bytes(lambda: (x.exp() + x.exp(), x.sin()), CPU) == x.nbytes


def test_a_backward_gives_the_gradient() -> None:
    given = inputs_from(torch.randn(3, 5), "pass_through")
    out, gradient = call_of(lambda x, _: 2 * x, "pass_through")(given)
    torch.testing.assert_close(out, 2 * given.logits)
    torch.testing.assert_close(gradient, 2 * given.grad)
