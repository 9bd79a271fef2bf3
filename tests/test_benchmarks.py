"""benchmarks/ and tools/gpu*.py: checks find wrong providers and kernels, and measurements are what they claim."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import gpu_checks
import gpu_times
import measure
import naive
from correctness import CHECKS, fault, frequency_fault
from gpu_steps import Step, run_steps
from measure import Contest, peak_bytes, rotating
from operations import OPERATIONS, Case, call_of, inputs_from, make_inputs
from providers import OURS, Provider, providers
from questions import QUESTIONS, Question
from torch import distributions as D

ROOT = Path(__file__).parents[1]
BENCHMARKS, TOOLS = ROOT / "benchmarks", ROOT / "tools"
CPU = torch.device("cpu")
DRAWN = ((2000, 6),)


@pytest.fixture(scope="module")
def entrants():
    """Return the forwards by provider, without the compiled ones, which take too long for a test."""
    return {provider.name: provider.forwards for provider in providers()[0]}


def test_the_suite_runs() -> None:
    """Run one case as `make bench` does, in a process of its own, without writing a file."""
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    options = ["-s", "-q", "-W", "ignore", "--benchmark-quiet", "-p", "no:cacheprovider"]
    few = [str(BENCHMARKS / "bench.py"), "--question", "decode", "-k", "32000 and float32 and onehot_triton"]
    # pytest-benchmark times nothing in a worker of pytest-xdist, which this process may be.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", *options, *few]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=list(QUESTIONS))
def test_cases_name_operations(question: Question) -> None:
    assert {case.operation for case in [*question.cpu, *question.gpu]} <= set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_timed_of_ours_is_right(entrants, operation: str, dtype: str) -> None:
    assert fault(entrants[OURS], operation, dtype, CPU, DRAWN) is None


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_timed_of_the_others_is_right(entrants, operation: str) -> None:
    for name, forwards in entrants.items():
        # The naive kernel, which is interpreted here, has a test of its own.
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
    "log_prob_index": lambda x, index: x.gather(-1, index.unsqueeze(-1)).squeeze(-1),
    "entropy": lambda x, _: torch.softmax(x, -1).square().sum(-1),
    "step": lambda x, _: (hot(x, draw(x)), x.logsumexp(-1), x.logsumexp(-1)),
    "train_step": lambda x, _: 3 * (x.sum(-1),),
    "joint_step": lambda x, _: 3 * (x.sum(-1),),
    "policy_gradient": lambda x, index: (x.log_softmax(-1)[:, 0], x.logsumexp(-1)),
    "decode": lambda x, _: (hot(x, draw(x)), x.logsumexp(-1)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_provider_is_seen(operation: str) -> None:
    assert set(WRONG) == set(CHECKS) == set(OPERATIONS)
    assert fault({OPERATIONS[operation].forward: WRONG[operation]}, operation, "float32", CPU, ((20000, 6),))


def p_of(x: Tensor) -> Tensor:
    return torch.softmax(x.float(), -1)


# Like WRONG, but with small errors, within a hundred times the tolerance of a correct provider.
SLIGHTLY_WRONG: dict[str, tuple[str, Callable[[Tensor, Tensor], Any]]] = {
    "log_prob": ("log_prob", lambda x, value: (value * x.log_softmax(-1)).sum(-1) + 3e-3),
    "entropy": ("entropy", lambda x, _: -(p_of(x) * x.log_softmax(-1)).sum(-1) - 3e-3),
    "a gradient": ("pass_through", lambda x, _: straight(1.01 * torch.softmax(x, -1), hot(x, draw(x)))),
    "nearly one-hot": ("rsample", lambda x, _: hot(x, draw(x)) + 1e-4),
    "log_prob of a draw": ("decode", lambda x, _: (h := hot(x, draw(x)), (h * x.log_softmax(-1)).sum(-1) + 3e-3)),
    "frequencies": ("sample", lambda x, _: hot(x, draw(1.1 * x))),
    "the mean of the relaxed gradient": ("relaxed", lambda x, _: straight(0.9 * F.gumbel_softmax(x), hot(x, draw(x)))),
}


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
    for _ in range(2):  # the second time from memory
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
    """The error occurs only at the shape of the case, not in the checks."""

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
    """The kernel is interpreted if there is no GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    logits = torch.randn(columns, device=device).expand(100, columns).contiguous()
    assert frequency_fault(naive.sample(logits), logits) is None
    assert frequency_fault(hot(logits, naive.sample_index(logits.bfloat16())), logits) is None


def test_a_rare_draw_is_not_doubted() -> None:
    """One draw of a category that is expected 0.02 times occurs in two of a hundred runs."""
    logits = torch.tensor([1e-6, 1 - 1e-6]).log().expand(20000, 2).contiguous()
    index = torch.ones(20000, dtype=torch.int64)
    index[7] = 0
    assert frequency_fault(hot(logits, index), logits) is None
    index[:20] = 0
    assert frequency_fault(hot(logits, index), logits) is not None


# make bench-gpu -------------------------------------------------------------------------------------------------------


def steps_of(run: Callable[[str], object]) -> list[Step]:
    """Return a check and a timing of each of two operations."""
    return [
        step
        for name in ("first", "second")
        for step in (
            Step("", f"check {name}", lambda n=name: run(f"check {n}"), 5.0, vouches=frozenset({name})),
            Step("", f"time {name}", lambda n=name: run(f"time {n}"), 5.0, needs=frozenset({name}), record="times"),
        )
    ]


def carried_out(run: Callable[[str], object], seconds: float = 60.0, limit: float = 5.0) -> tuple[dict, dict]:
    result, wrong = {}, {}
    steps = [step._replace(limit=limit) for step in steps_of(run)]
    run_steps(steps, result, time.perf_counter() + seconds, lambda text: None, wrong)
    return result, wrong


def test_what_a_check_finds_wrong_is_not_timed_and_the_rest_is() -> None:
    def run(name: str) -> str:
        if name == "check first":
            raise AssertionError("3 draws are not the twin's")
        return name

    result, wrong = carried_out(run)
    assert wrong == {"first": "check first"}
    assert result["wrong"] == {"check first": "AssertionError: 3 draws are not the twin's"}
    assert result["skipped"] == {"time first": "first: wrong"}
    assert result["times"] == ["time second"]


def test_a_timing_that_raises_is_told_and_the_rest_goes_on() -> None:
    def run(name: str) -> str:
        if name == "time first":
            raise RuntimeError("out of memory")
        return name

    result, wrong = carried_out(run)
    assert (wrong, result["failed"]) == ({}, {"time first": "RuntimeError: out of memory"})
    assert result["times"] == ["time second"]


def test_a_step_ends_at_its_limit() -> None:
    """It ends even if it swallows every exception."""

    def run(name: str) -> str:
        end = time.perf_counter() + 20
        while name == "check first" and time.perf_counter() < end:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
        return name

    start = time.perf_counter()
    result, wrong = carried_out(run, limit=0.2)
    assert time.perf_counter() - start < 10
    assert wrong == {"first": "check first"}
    assert "stopped after" in result["wrong"]["check first"]
    assert result["times"] == ["time second"]


def test_nothing_begins_that_cannot_end_in_time() -> None:
    begun = []
    result, _ = carried_out(begun.append, seconds=4.9)
    assert begun == []
    assert result["skipped"] == dict.fromkeys((step.name for step in steps_of(print)), "out of time")


def test_what_is_killed_leaves_what_it_found(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(TOOLS)!r})
from gpu_steps import Step, run_steps
steps = [
    Step("", "quick", lambda: "found", 5, record="times"),
    Step("", "slow", lambda: time.sleep(60), 100, record="times"),
]
run_steps(steps, {{}}, time.perf_counter() + 600, print, {{}}, Path({str(path)!r}))
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    end = time.perf_counter() + 60
    while not path.exists() and time.perf_counter() < end:
        time.sleep(0.02)
    child.kill()
    child.wait()
    result = json.loads(path.read_text())
    assert (result["times"], result["remaining"]) == (["found"], ["slow"])


class _Largest(TorchDispatchMode):
    """Record the most elements of any tensor that is created in the block."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in [out] if isinstance(x, Tensor))])
        return out


def test_the_plan_fits_80_gb() -> None:
    run = gpu_times.Run(True, print)
    run.dry = False
    steps = gpu_times.plan(run)
    assert len({step.name for step in steps}) == len(steps)
    assert 20e9 < max(step.peak_bytes for step in steps) < gpu_times.MOST_BYTES
    assert max(step.limit for step in steps) < gpu_times.DEADLINE
    questions_in_order = list(dict.fromkeys(step.question[0] for step in steps))
    assert questions_in_order == list("0123456")
    assert set(gpu_times.FIRST_SHAPES) <= set(gpu_times.SHAPES)


@pytest.mark.parametrize("case", gpu_checks.cases.CASES, ids=lambda case: case.name)
def test_no_check_makes_a_square_of_the_columns(case) -> None:
    columns = 400
    with _Largest() as largest:
        case.twin(torch.randn(3, columns), torch.randn(3, columns), torch.randn(2, 3))
        case.kernel(torch.randn(3, columns), torch.randn(3, columns), torch.randn(2, 3))
    assert 0 < largest.elements < columns**2 // 4


# (operation, module, function, change): the result is one percent off, or the one-hot or two of three draws are moved.
FAULTS = [
    ("sample", gpu_checks.sample, "sample", lambda found: (found[0].roll(1, -1), *found[1:])),
    ("sample", gpu_checks.sample, "sample", lambda found: (*(two_moved(x) for x in found[:2]), found[2])),
    ("softmax_grad", torch.autograd, "grad", lambda found: (1.01 * found[0],)),
    ("relaxed", gpu_checks.relaxed, "relaxed", lambda found: 1.01 * found),
    ("relaxed_grad", gpu_checks.relaxed, "relaxed_grad", lambda found: (1.01 * found[0], found[1])),
]


def two_moved(found: Tensor) -> Tensor:
    """Move two rows of draws [1, 3] or one-hots [1, 3, 18] by one column to the right."""
    moved = found.roll(1, -1) if found.dim() == 3 else (found + 1) % 18
    return torch.cat([moved[:, :2], found[:, 2:]], 1)


@pytest.mark.parametrize(("operation", "place", "name", "spoil"), FAULTS)
def test_a_kernel_that_is_off_is_seen(operation: str, place, name, spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(place, name)
    check = gpu_checks.AT_A_SHAPE[operation]
    gpu_checks.checked(CPU, True, check, 3, 18, torch.float32)
    monkeypatch.setattr(place, name, lambda *args, **kwargs: spoil(right(*args, **kwargs)))
    with pytest.raises(AssertionError):
        gpu_checks.checked(CPU, True, check, 3, 18, torch.float32)


@pytest.mark.parametrize("of", [0, 1], ids=["dx", "dt"])
def test_a_gradient_of_soft_samples_that_is_off_is_seen(of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_checks.soft_grad.soft_grad
    gpu_checks.checked(CPU, True, gpu_checks.soft_gradients, True)
    spoiled = lambda *args: tuple(1.01 * f if i == of else f for i, f in enumerate(right(*args)))  # noqa: E731
    monkeypatch.setattr(gpu_checks.soft_grad, "soft_grad", spoiled)
    with pytest.raises(AssertionError, match=("logits", "temperature")[of]):
        gpu_checks.checked(CPU, True, gpu_checks.soft_gradients, True)


def test_a_fault_of_every_check_at_a_shape_is_planted() -> None:
    assert {operation for operation, *_ in FAULTS} == set(gpu_checks.AT_A_SHAPE)


def test_dry_run(tmp_path: Path) -> None:
    """Run the whole plan in a process of its own: nothing fails, and each question has an answer."""
    path = tmp_path / "result.json"
    command = [sys.executable, str(TOOLS / "gpu.py"), "--dry-run", "--output", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert (result["wrong"], result["failed"], result["skipped"], result["remaining"]) == ({}, {}, {}, [])
    assert result["compilation"]["compiled"] == 1, result["compilation"]
    assert {case["question"] for case in result["cases"]} == {"first", *QUESTIONS}
    assert {one["operation"] for one in result["operators"]} == {one.name for one in gpu_times.OPERATIONS}
    assert {one["operation"] for one in result["host"]} == set(gpu_times.CALLED)
    assert len(result["graphs"]) == 4
    for case in result["cases"]:
        assert "seconds" in case["providers"][OURS], case


def test_inputs_exceed_the_cache() -> None:
    many = make_inputs(Case("sample", 64, 4096, "float32"), CPU)
    assert sum(given.logits.nbytes for given in many) >= 2**26
    assert len({given.logits.data_ptr() for given in many}) == len(many)


def test_floor_of_a_case() -> None:
    """sample reads logits and writes an int64 one-hot; log_prob reads two bfloat16 operands."""
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


@pytest.mark.parametrize(("rows", "columns", "dtype"), [(3, 32, torch.float32), (2, 64, torch.bfloat16)])
def test_bytes_of_ranks_are_counted(rows: int, columns: int, dtype: torch.dtype) -> None:
    """A draw is one collective: 20 bytes per row from each of three ranks, or their columns. Nothing is really sent."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    bench_sharded = pytest.importorskip("bench_sharded", reason="torch without torch.distributed")
    dist = torch.distributed
    dist.init_process_group("fake", store=fake.FakeStore(), rank=1, world_size=4)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (4,))
        x = bench_sharded.place(torch.randn(rows, columns, dtype=dtype), mesh)
        assert x.to_local().shape == (rows, columns // 4)
        for name, draw in bench_sharded.PROVIDERS.items():
            with bench_sharded.Received() as received:
                draw(x)
            wanted = 3 * rows * (20 if name == OURS else columns // 4 * dtype.itemsize)
            assert (received.collectives, received.bytes) == (1, wanted), name
    finally:
        dist.destroy_process_group()
