"""The measurements of `make bench-gpu`; gpu.py, which sets the environment that triton reads, starts them.

Times are of the GPU: for the operators a CUDA graph of several calls, between two events; for the classes, which a user
calls from Python, events around each call. Inputs rotate, and are together larger than the L2 cache.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import common
import gpu_checks
import providers
import torch
from torch import Tensor

from onehot_triton import use_backend
from onehot_triton.kernels import entropy, log_prob, relaxed, sample, softmax_grad

SHAPES = ((1024, 128256), (4096, 50304), (32768, 32), (65536, 18), (8, 151936), (1, 262144))
DRY_SHAPES = ((3, 1500), (6, 18))
# No new measurement begins after this many seconds, so that the whole ends within nine minutes.
DEADLINE = 480
COPY_BYTES = 2**32
# A graph holds about this many seconds of calls, and at most so many.
GRAPH_SECONDS, MOST_CALLS, REPLAYS, CALLS = 2e-3, 200, 30, 50


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


# Clocks ---------------------------------------------------------------------------------------------------------------


def cuda_events(run: Callable[[], Any], times: int) -> list[float]:
    """Seconds of the GPU for each of `times` runs."""
    starts = [torch.cuda.Event(enable_timing=True) for _ in range(times)]
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(times)]
    torch.cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in zip(starts, ends, strict=True)]


def wall_clock(run: Callable[[], Any], times: int) -> list[float]:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


class Clock:
    """Times calls on `device`; on a CPU, for a dry run, by the wall clock and once."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def events(self, run: Callable[[], Any], times: int) -> list[float]:
        return cuda_events(run, times) if self.on_gpu else wall_clock(run, 1)

    def calls(self, function: Callable[[Any], Any], inputs: list[Any]) -> list[float]:
        """Seconds of each call, in turn on each of the inputs."""
        for one in inputs[:2]:
            function(one)
        at = iter(range(10**9))
        return self.events(lambda: function(inputs[next(at) % len(inputs)]), CALLS)

    def in_a_graph(self, function: Callable[[Any], Any], inputs: list[Any]) -> list[float]:
        """Seconds of a call, by replays of a graph of some: without what Python and the launches cost."""
        if not self.on_gpu:
            return self.calls(function, inputs)
        once = statistics.median(self.calls(function, inputs)[-10:])
        count = max(len(inputs), min(MOST_CALLS, int(GRAPH_SECONDS / once)))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(count):
                function(inputs[i % len(inputs)])
        graph.replay()
        return [seconds / count for seconds in self.events(graph.replay, REPLAYS)]


def copy_bandwidth(clock: Clock, device: torch.device) -> float:
    """Bytes a second that a copy on the device reads and writes."""
    source = torch.empty(COPY_BYTES if clock.on_gpu else 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = clock.events(lambda: target.copy_(source), 20)
    return 2 * source.numel() / statistics.median(times)


# The run --------------------------------------------------------------------------------------------------------------


def time_operators(clock: Clock, shape: tuple[int, int], many: list[Inputs], copy: float, say: Any) -> list[dict]:
    found = []
    dtype = many[0].logits.dtype
    name = str(dtype).removeprefix("torch.")
    for operation in OPERATIONS:
        times = clock.in_a_graph(operation.run, many)
        low, median, high = common.quartiles(times)
        floor = operation.floor(dtype.itemsize) * shape[0] * shape[1]
        record = {
            "operation": operation.name, "rows": shape[0], "columns": shape[1], "dtype": name, "floor_bytes": floor,
            "gigabytes_per_second": floor / median / 1e9, "fraction_of_copy": floor / median / copy, "seconds": times,
        }  # fmt: skip
        found.append(record)
        say(
            f"{operation.name:15} {shape[0]:6} x {shape[1]:<6} {name:9} {1e6 * median:10.2f} us"
            f" ({1e6 * low:.2f} .. {1e6 * high:.2f}) {floor / median / 1e9:8.0f} GB/s"
            f"  {floor / median / copy:6.1%} of copy"
        )
    return found


class Rival(NamedTuple):
    """A library's way to one of our calls."""

    name: str
    operation: str
    run: Callable[[Tensor], Any]


def rivals() -> tuple[list[Rival], dict[str, str]]:
    """Every provider of `providers.py`, and FlashInfer; with a reason for each that is not there."""
    many, missing = providers.providers()
    found = [Rival(p.name, "sample", p.sample) for p in many]
    found += [Rival(p.name, "step", p.step) for p in many if p.step is not None]
    found.append(Rival("onehot_triton", "index", lambda x: providers.OneHotCategorical(logits=x).sample_index()))
    try:
        # Not in this project's environment: a GPU's own may have it. It takes float32 alone.
        flashinfer = importlib.import_module("flashinfer.sampling")
        found.append(Rival("flashinfer", "index", lambda x: flashinfer.sampling_from_logits(x.float())))
    except ImportError as error:
        missing["flashinfer"] = f"cannot be imported: {error}"
    return found, missing


def right_rivals(found: list[Rival], device: torch.device, small: bool, say: Any) -> tuple[list[Rival], dict[str, str]]:
    """Those whose draws have the right shape and frequencies; and what is wrong with the others."""
    wrong: dict[str, str] = {}
    for rival in found:
        for rows, columns in ((300, 6),) if small else ((20000, 6), (512, 4096)):
            x = torch.randn(columns, device=device).expand(rows, columns).contiguous()

            def draw(x: Tensor, rival: Rival = rival) -> Tensor:
                out = rival.run(x)
                if rival.operation == "index":
                    return torch.nn.functional.one_hot(out.long(), x.shape[-1])
                return out[0] if rival.operation == "step" else out

            try:
                why = common.frequency_fault(draw, x)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            if why is not None:
                wrong[f"{rival.name} {rival.operation}"] = f"{rows} x {columns}: {why}"
                say(f"{rival.name} {rival.operation}: WRONG, not timed: {why}")
                break
    return [rival for rival in found if f"{rival.name} {rival.operation}" not in wrong], wrong


def time_rivals(
    clock: Clock, shape: tuple[int, int], many: list[Inputs], competing: list[Rival], say: Any
) -> list[dict]:
    found, ours = [], {}
    name = str(many[0].logits.dtype).removeprefix("torch.")
    logits = [one.logits for one in many]
    for rival in competing:
        try:
            times = clock.calls(rival.run, logits)
        except Exception as error:
            # Out of memory, or more categories than torch.multinomial takes: an answer too.
            say(f"{rival.name:20} {rival.operation:7} {shape[0]:6} x {shape[1]:<6} {name:9} cannot: {error}")
            continue
        median = statistics.median(times)
        if rival.name == "onehot_triton":
            ours[rival.operation] = median
        ratio = median / ours[rival.operation] if rival.operation in ours else float("nan")
        found.append({
            "provider": rival.name, "operation": rival.operation, "rows": shape[0], "columns": shape[1],
            "dtype": name, "times_ours": ratio, "seconds": times,
        })  # fmt: skip
        say(
            f"{rival.name:20} {rival.operation:7} {shape[0]:6} x {shape[1]:<6} {name:9} {1e6 * median:10.2f} us"
            f"  {ratio:6.2f} times ours"
        )
    return found


def run(dry: bool) -> int:
    """Checks, then times, and gives the exit status."""
    device = torch.device("cpu" if dry else "cuda")
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    info = common.environment()
    name = "dry run on a CPU" if dry else torch.cuda.get_device_name()
    say(f"{name}; " + ", ".join(f"{package} {version}" for package, version in info["packages"].items()))
    wrong = gpu_checks.failures(device, dry, say)
    if wrong:
        say(f"{len(wrong)} checks failed: nothing is timed")
        return 1

    clock = Clock(device)
    copy = copy_bandwidth(clock, device)
    say(f"a copy on the device moves {copy / 1e9:.0f} GB/s")
    with use_backend("triton" if dry else "auto"):
        found, missing = rivals()
        for rival, why in missing.items():
            say(f"{rival}: not timed, {why}")
        competing, wrong_rivals = right_rivals(found, device, dry, say)
        if any(rival.startswith("onehot_triton") for rival in wrong_rivals):
            return 1
        operators: list[dict] = []
        calls: list[dict] = []
        skipped = []
        for shape in DRY_SHAPES if dry else SHAPES:
            for dtype in (torch.bfloat16, torch.float32):
                if time.perf_counter() - start > DEADLINE:
                    skipped.append(f"{shape[0]} x {shape[1]} {dtype}")
                    say(f"{skipped[-1]}: skipped, out of time")
                    continue
                many = make_inputs(*shape, dtype, device)
                operators += time_operators(clock, shape, many, copy, say)
                calls += time_rivals(clock, shape, many, competing, say)
                del many
                if not dry:
                    torch.cuda.empty_cache()
    if not dry:
        capability = torch.cuda.get_device_properties(device)
        info |= {
            "gpu": name, "cuda": torch.version.cuda, "multiprocessors": capability.multi_processor_count,
            "l2_bytes": capability.L2_cache_size, "memory_bytes": capability.total_memory,
        }  # fmt: skip
        result = {
            "environment": info, "copy_bytes_per_second": copy, "missing": missing, "wrong": wrong_rivals,
            "skipped": skipped, "operators": operators, "calls": calls,
        }  # fmt: skip
        folder = "-".join(name.lower().split())
        say(f"wrote {os.path.relpath(common.save(folder, result))}")
    say("done")
    return 0
