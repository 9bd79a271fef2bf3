"""The measurements of `make bench-gpu`; gpu.py, which sets the environment that triton reads, starts them.

Times are of the GPU: for the operators a CUDA graph of several calls, between two events; for the cases of the
bench_*.py files, which a user calls from Python, events around each call. Inputs rotate, and are together larger than
the L2 cache.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from types import ModuleType
from typing import Any, NamedTuple

import common
import gpu_checks
import torch
from correctness import DRAWN
from measure import Contest, questions, rotating
from operations import Case
from providers import OURS
from torch import Tensor

from onehot_triton import use_backend
from onehot_triton.kernels import entropy, log_prob, relaxed, sample, softmax_grad

SHAPES = ((1024, 128256), (4096, 50304), (32768, 32), (65536, 18), (8, 151936), (1, 262144))
DRY_SHAPES = ((3, 1500), (6, 18))
# No new measurement begins after this many seconds, so that the whole ends within nine minutes.
DEADLINE = 480
# A graph holds about this many seconds of calls, and at most so many; it is replayed so often.
GRAPH_SECONDS, MOST_CALLS, REPLAYS = 2e-3, 200, 30
# A provider has so many turns at a case, each of so many calls, of which the first is not counted.
TURNS, CALLS = 5, 11

Say = Callable[[str], None]


class Operation(NamedTuple):
    """An operator of the library, as a function of one set of inputs.

    Attributes:
        floor: the least bytes an element, for logits, one-hot and gradient of so many bytes each.
    """

    name: str
    run: Callable[[Inputs], Any]
    floor: Callable[[int], int]


class Inputs(NamedTuple):
    logits: Tensor
    grad: Tensor
    value: Tensor
    logsumexp: Tensor
    index: Tensor
    temperature: Tensor


OPERATIONS = (
    Operation("sample_index", lambda i: sample.sample(i.logits, 1, None, 5, 8), lambda s: s),
    Operation("sample", lambda i: sample.sample(i.logits, 1, i.logits.dtype, 5, 8), lambda s: 2 * s),
    Operation("sample int64", lambda i: sample.sample(i.logits, 1, torch.int64, 5, 8), lambda s: s + 8),
    Operation("log_prob", lambda i: log_prob.log_prob(i.logits, None, i.value[None]), lambda s: 2 * s),
    Operation("log_prob known", lambda i: log_prob.log_prob(i.logits, i.logsumexp, i.value[None]), lambda s: s),
    Operation("entropy", lambda i: entropy.entropy(i.logits), lambda s: s),
    Operation("softmax_grad", lambda i: softmax_grad.softmax_grad(i.logits, i.logsumexp, i.grad), lambda s: 3 * s),
    Operation(
        "relaxed_grad",
        lambda i: relaxed.relaxed_grad(i.logits, i.logsumexp, i.index, i.grad[None], i.temperature, 5, 8),
        lambda s: 3 * s,
    ),
    Operation("relaxed", lambda i: relaxed.relaxed(i.logits, i.temperature, 1, 5, 8), lambda s: 2 * s),
)


def make_inputs(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> list[Inputs]:
    """Sets of inputs whose logits alone exceed the L2 cache twice, and two at least."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = max(2, min(256, -(-2 * cache // (rows * columns * dtype.itemsize))))
    found = []
    for _ in range(count):
        logits = torch.randn(rows, columns, device=device).to(dtype)
        hot, index, logsumexp = sample.sample(logits, 1, dtype, 1, 0)
        grad = torch.randn(rows, columns, device=device).to(dtype)
        found.append(Inputs(logits, grad, hot[0], logsumexp, index, torch.ones(rows, device=device)))
    return found


# Operators, without Python --------------------------------------------------------------------------------------------


def in_a_graph(function: Callable[[Inputs], Any], inputs: list[Inputs], on_gpu: bool) -> list[float]:
    """Seconds of a call, by replays of a CUDA graph of some: without what Python and the launches cost."""
    given = cycle(inputs)
    run = lambda: function(next(given))  # noqa: E731
    if not on_gpu:
        return common.wall_clock(run, 1)
    once = statistics.median(common.cuda_events(run, 12)[2:])
    count = max(len(inputs), min(MOST_CALLS, int(GRAPH_SECONDS / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            function(inputs[i % len(inputs)])
    graph.replay()
    return [seconds / count for seconds in common.cuda_events(graph.replay, REPLAYS)]


def time_operators(shape: tuple[int, int], many: list[Inputs], copy: float, say: Say) -> list[dict[str, Any]]:
    found = []
    dtype = many[0].logits.dtype
    name = str(dtype).removeprefix("torch.")
    for operation in OPERATIONS:
        times = in_a_graph(operation.run, many, many[0].logits.is_cuda)
        low, median, high = common.quartiles(times)
        floor = operation.floor(dtype.itemsize) * shape[0] * shape[1]
        found.append({
            "operation": operation.name, "rows": shape[0], "columns": shape[1], "dtype": name, "floor_bytes": floor,
            "seconds": common.rounded(times),
        })  # fmt: skip
        say(
            f"{operation.name:15} {shape[0]:6} x {shape[1]:<6} {name:9} {1e6 * median:10.2f} us"
            f" ({1e6 * low:.2f} .. {1e6 * high:.2f}) {floor / median / 1e9:8.0f} GB/s"
            f"  {floor / median / copy:6.1%} of copy"
        )
    return found


# Calls, as a user makes them ------------------------------------------------------------------------------------------


def time_case(contest: Contest, case: Case) -> dict[str, dict[str, Any]]:
    """Every provider's record, timed in turns."""
    given = rotating(case, contest.device)
    records = {name: contest.begin(case, name, given) for name in contest.entrants(case)}
    on_gpu = contest.device.type == "cuda"
    for _ in range(TURNS if on_gpu else 1):
        for name, record in records.items():
            if "seconds" in record:
                call = contest.call(case, name)
                run = lambda call=call: call(given())  # noqa: E731
                times = common.cuda_events(run, CALLS)[1:] if on_gpu else common.wall_clock(run, 1)
                record["seconds"] += common.rounded(times)
    return records


def tell(case: Case, records: dict[str, dict[str, Any]], say: Say) -> None:
    ours = statistics.median(records[OURS].get("seconds", [math.nan]))
    for name, record in records.items():
        if "seconds" in record:
            median = statistics.median(record["seconds"])
            what = f"{1e6 * median:10.2f} us {median / ours:6.2f} times ours"
        else:
            what = str(record)
        say(f"{case!s:40} {name:24} {what}")


def cases_of(question: ModuleType, dry: bool) -> list[Case]:
    """In a dry run one tiny case of each operation, and nothing compiled."""
    if not dry:
        return question.GPU
    names = {case.operation for case in question.GPU if case.field != "compiled"}
    return [Case(name, 3, 18, "float32") for name in sorted(names)]


# The run --------------------------------------------------------------------------------------------------------------


def run(dry: bool) -> int:
    """Checks, then times, and gives the exit status."""
    device = torch.device("cpu" if dry else "cuda")
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    def out_of_time() -> bool:
        return time.perf_counter() - start > DEADLINE

    info = common.environment()
    name = "dry run on a CPU" if dry else torch.cuda.get_device_name()
    say(f"{name}; " + ", ".join(f"{package} {version}" for package, version in info["packages"].items()))
    wrong = gpu_checks.failures(device, dry, say)
    if wrong:
        say(f"{len(wrong)} checks failed: nothing is timed")
        return 1

    copy = common.copy_bandwidth(device)
    say(f"a copy on the device moves {copy / 1e9:.0f} GB/s")
    operators: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    skipped: list[str] = []
    with use_backend("triton" if dry else "auto"):
        for shape in DRY_SHAPES if dry else SHAPES:
            for dtype in (torch.bfloat16, torch.float32):
                if out_of_time():
                    skipped.append(f"operators {shape[0]} x {shape[1]} {dtype}")
                    continue
                operators += time_operators(shape, make_inputs(*shape, dtype, device), copy, say)
        contest = Contest(device, ((300, 6),) if dry else DRAWN)
        for missing, why in contest.missing.items():
            say(f"{missing}: not timed, {why}")
        for question, module in questions().items():
            for case in cases_of(module, dry):
                if out_of_time():
                    skipped.append(f"{question}: {case}")
                    continue
                records = time_case(contest, case)
                if OURS not in records or "wrong" in records[OURS]:
                    say(f"{case}: ours is wrong: {records}")
                    return 1
                tell(case, records, say)
                cases.append(common.case_record(question, case, records))
                if not dry:
                    torch.cuda.empty_cache()
    for one in skipped:
        say(f"{one}: skipped, out of time")
    if not dry:
        properties = torch.cuda.get_device_properties(device)
        info |= {
            "gpu": name, "cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
        }  # fmt: skip
        result = {
            "environment": info, "copy_bytes_per_second": copy, "missing": contest.missing, "skipped": skipped,
            "operators": operators, "cases": cases,
        }  # fmt: skip
        say(f"wrote {os.path.relpath(common.save('-'.join(name.lower().split()), result))}")
    say("done")
    return 0
