"""The plan of `make bench-gpu`, and its measurements. gpu.py sets the environment and starts them.

Times are GPU times. The operators are timed by a CUDA graph of several calls between two events. The cases of
questions.py are calls from Python with events around each. Inputs rotate, and together exceed the L2 cache. The most
important results come first, and the steps that may take longest come last.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import common
import gpu_checks
import gpu_compile
import operations
import torch
from correctness import DRAWN
from gpu_steps import Say, Step, run_steps
from measure import Contest, rotating
from operations import Case, grid
from providers import COMPILED, OURS
from questions import QUESTIONS, Question
from torch import Tensor

from onehot_triton import OneHotCategorical, ReparamGradientStrategy, use_backend
from onehot_triton.kernels import entropy, log_prob, relaxed, sample, soft_grad, softmax_grad

# No step begins that could still run after DEADLINE seconds, because the run may be killed after ten minutes.
DEADLINE = 560
# Time limits of steps, in seconds. The step of a case times all of its providers.
COMPILE, CHECK, OPERATORS, CASE, COMPILED_CASE = 90, 30, 10, 15, 60
# The most memory that torch may hold.
MOST_BYTES = 40e9

BIG = (1024, 128256)
FIRST_SHAPES = (BIG, (65536, 18), (32768, 32), (8, 151936))
SHAPES = (BIG, (4096, 50304), (32768, 32), (65536, 18), (8, 151936), (1, 262144))
DRY_SHAPES = ((3, 1500), (6, 18))
DTYPES = (torch.bfloat16, torch.float32)
# A graph holds calls for about GRAPH_SECONDS, but at most MOST_CALLS, and is replayed REPLAYS times.
GRAPH_SECONDS, MOST_CALLS, REPLAYS = 2e-3, 200, 30
# A provider has TURNS turns at a case, each of CALLS calls. The first call of a turn does not count.
TURNS, CALLS = 5, 11
# The host's share of a call is the median over this many calls.
HOST_CALLS = 300


class Operation(NamedTuple):
    """An operator of the library, as a function of one set of inputs.

    Attributes:
        floor: the least bytes per element, for logits, one-hot and gradient of `s` bytes each.
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
        lambda i: relaxed.relaxed_grad(i.logits, i.logsumexp, i.index, i.grad[None], 0.5, 5, 8),
        lambda s: 3 * s,
    ),
    Operation("relaxed", lambda i: relaxed.relaxed(i.logits, 0.5, 1, 5, 8), lambda s: 2 * s),
    # A one-hot serves as a soft sample: it is one at a low temperature.
    Operation("soft_grad", lambda i: soft_grad.soft_grad(i.value[None], i.grad[None], 0.5), lambda s: 3 * s),
)


def make_inputs(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> list[Inputs]:
    """Make at least two sets of inputs, whose logits are together at least twice as large as the L2 cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = max(2, min(256, -(-2 * cache // (rows * columns * dtype.itemsize))))
    found = []
    for _ in range(count):
        logits = torch.randn(rows, columns, device=device).to(dtype)
        hot, index, logsumexp = sample.sample(logits, 1, dtype, 1, 0)
        grad = torch.randn(rows, columns, device=device).to(dtype)
        found.append(Inputs(logits, grad, hot[0], logsumexp, index))
    return found


# Operators, without Python --------------------------------------------------------------------------------------------


def in_a_graph(function: Callable[[Inputs], Any], inputs: list[Inputs], on_gpu: bool) -> list[float]:
    """Return the seconds per call in a CUDA graph of several calls, so without Python and launches."""
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


def time_operator(
    operation: Operation, shape: tuple[int, int], many: list[Inputs], copy: float, say: Say
) -> dict[str, Any]:
    dtype = many[0].logits.dtype
    name = str(dtype).removeprefix("torch.")
    times = in_a_graph(operation.run, many, many[0].logits.is_cuda)
    low, median, high = common.quartiles(times)
    floor = operation.floor(dtype.itemsize) * shape[0] * shape[1]
    say(
        f"{operation.name:15} {shape[0]:6} x {shape[1]:<6} {name:9} {1e6 * median:10.2f} us"
        f" ({1e6 * low:.2f} .. {1e6 * high:.2f}) {floor / median / 1e9:8.0f} GB/s"
        f"  {floor / median / copy:6.1%} of copy"
    )
    return {
        "operation": operation.name, "rows": shape[0], "columns": shape[1], "dtype": name, "floor_bytes": floor,
        "seconds": common.rounded(times),
    }  # fmt: skip


# Calls, as a user makes them ------------------------------------------------------------------------------------------

# Operators that must be right for this library to be timed at an operation.
NEEDS = {
    "sample": "sample",
    "sample_index": "sample",
    "rsample": "sample",
    "pass_through": "sample softmax_grad",
    "relaxed": "sample relaxed_grad",
    "log_prob": "log_prob",
    "log_prob_index": "log_prob",
    "entropy": "entropy",
    "step": "sample log_prob entropy",
    "train_step": "sample log_prob entropy softmax_grad",
    "joint_step": "sample log_prob entropy softmax_grad",
    "policy_gradient": "log_prob entropy",
    "decode": "sample log_prob",
}


def time_case(contest: Contest, case: Case, wrong: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Time every provider in turns, and return their records. `wrong` holds our operators that failed a check."""
    given = rotating(case, contest.device)
    bad = [f"{name}: {wrong[name]}" for name in NEEDS[case.operation].split() if name in wrong]
    records: dict[str, dict[str, Any]] = {
        name: {"wrong": "; ".join(bad)} if bad and name in (OURS, OURS + COMPILED) else contest.begin(case, name, given)
        for name in contest.entrants(case)
    }
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
    ours = statistics.median(records.get(OURS, {}).get("seconds", [math.nan]))
    for name, record in records.items():
        if "seconds" in record:
            median = statistics.median(record["seconds"])
            what = f"{1e6 * median:10.2f} us {median / ours:6.2f} times ours"
        else:
            what = str(record)
        say(f"{case!s:40} {name:24} {what}")


def cases_of(question: Question, dry: bool) -> list[Case]:
    """Return the GPU cases of a question, or for a dry run one tiny case without torch.compile."""
    return [Case(question.gpu[0].operation, 3, 18, "float32")] if dry else question.gpu


def compared(dry: bool) -> list[Case]:
    """Return the cases of the first comparison. A compiled program serves all shapes of its operation."""
    if dry:
        return [Case(name, 3, 18, "float32") for name in operations.OPERATIONS]
    return [
        *grid("sample_index", list(FIRST_SHAPES), "bfloat16", "compiled"),
        *grid("sample_index", list(FIRST_SHAPES), "float32"),
        *grid("sample train_step", [BIG, (65536, 18)], "bfloat16", "compiled"),
        *grid("relaxed log_prob entropy", [BIG, (65536, 18)], "bfloat16"),
    ]


# Graphs and the host --------------------------------------------------------------------------------------------------


def _sample(x: Tensor) -> Tensor:
    return OneHotCategorical(logits=x).sample()


def _train_step(x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    dist = OneHotCategorical(logits=x, grad_method=ReparamGradientStrategy.PassThrough)
    draw = dist.rsample()
    results = (draw, dist.log_prob(draw.detach()), dist.entropy())
    return torch.autograd.grad(results, x, [torch.ones_like(result) for result in results])[0]


CALLED: dict[str, Callable[[Tensor], Any]] = {
    "construct": lambda x: OneHotCategorical(logits=x),
    "sample": _sample,
    "train_step": _train_step,
}


def time_graph(name: str, shape: tuple[int, int], device: torch.device, say: Say) -> dict[str, Any]:
    """Time replays of a CUDA graph of one call of the class. Each replay draws new noise."""
    x = torch.randn(*shape, dtype=torch.bfloat16, device=device)
    drawn = gpu_checks.replays(device, partial(CALLED[name], x), clone=False)
    next(drawn)
    replay = partial(next, drawn)
    times = common.cuda_events(replay, 5 * CALLS)[1:] if x.is_cuda else common.wall_clock(replay, 1)
    say(f"graph of {name:10} {shape[0]:6} x {shape[1]:<6} bfloat16 {1e6 * statistics.median(times):10.2f} us")
    return _timed(name, shape, times)


def time_host(name: str, shape: tuple[int, int], device: torch.device, say: Say) -> dict[str, Any]:
    """Time the host's share of a call: Python, torch's dispatcher and the launches.

    It is the wall-clock time until the call returns, with so little work that the GPU is never the slower one.
    """
    x = torch.randn(*shape, dtype=torch.bfloat16, device=device)
    run = partial(CALLED[name], x)
    times = []
    for _ in range(HOST_CALLS if x.is_cuda else 2):
        times += common.wall_clock(run, 1)
        if x.is_cuda:
            # Lest the queue of launches fills.
            torch.cuda.synchronize()
    times = times[len(times) // 10 :]
    say(f"host, {name:12} {shape[0]:6} x {shape[1]:<6} bfloat16 {1e6 * statistics.median(times):10.2f} us")
    return _timed(name, shape, times)


def _timed(name: str, shape: tuple[int, int], times: list[float]) -> dict[str, Any]:
    return {
        "operation": name, "rows": shape[0], "columns": shape[1], "dtype": "bfloat16",
        "seconds": common.rounded(times),
    }  # fmt: skip


# The plan -------------------------------------------------------------------------------------------------------------


class Run:
    """The state that the steps of a run share."""

    def __init__(self, dry: bool, say: Say) -> None:
        self.dry, self.say = dry, say
        self.device = torch.device("cpu" if dry else "cuda")
        self.wrong: dict[str, str] = {}
        self.result: dict[str, Any] = {"operators": [], "cases": [], "missing": {}}
        self._contest: Contest | None = None
        self._inputs: tuple[Any, list[Inputs]] = (None, [])

    @property
    def contest(self) -> Contest:
        if self._contest is None:
            self._contest = Contest(self.device, ((12, 6),) if self.dry else DRAWN)
            self.result["missing"] = self._contest.missing
        return self._contest

    def compile(self, wanted: list[gpu_compile.Wanted]) -> None:
        arch, multiprocessors = "sm_90", None
        if not self.dry:
            properties = torch.cuda.get_device_properties(self.device)
            arch, multiprocessors = f"sm_{properties.major}{properties.minor}", properties.multi_processor_count
        found = gpu_compile.compile_all(wanted, arch, COMPILE - 10, multiprocessors, 1 if self.dry else None)
        self.result["compilation"] = found
        self.say("compiled {compiled} of {launches} in {seconds:.0f} s, {processes} processes".format(**found))
        for why in found["failed"][:5]:
            self.say(f"does not compile: {why}")

    def copy(self) -> None:
        found = self.result["copy_bytes_per_second"] = common.copy_bandwidth(self.device)
        self.say(f"a copy on the device moves {found / 1e9:.0f} GB/s")

    def operator(self, operation: Operation, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        key = (shape, dtype)
        if self._inputs[0] != key:
            # Free the old inputs before making new ones.
            self._inputs = (None, [])
            self._inputs = (key, make_inputs(*shape, dtype, self.device))
        copy = self.result.get("copy_bytes_per_second", math.nan)
        with use_backend("triton" if self.dry else "auto"):
            return time_operator(operation, shape, self._inputs[1], copy, self.say)

    def case(self, question: str, case: Case) -> dict[str, Any]:
        self._inputs = (None, [])
        with use_backend("triton" if self.dry else "auto"):
            records = time_case(self.contest, case, self.wrong)
        tell(case, records, self.say)
        if not self.dry:
            torch.cuda.empty_cache()
        return common.case_record(question, case, records)

    def of_class(self, time_it: Callable[..., dict[str, Any]], name: str, shape: tuple[int, int]) -> dict[str, Any]:
        self._inputs = (None, [])
        with use_backend("triton" if self.dry else "auto"):
            return time_it(name, shape, self.device, self.say)

    def check(self, check: Callable[..., None], *arguments: object) -> None:
        self._inputs = (None, [])
        gpu_checks.checked(self.device, self.dry, check, *arguments)
        if not self.dry:
            torch.cuda.empty_cache()


def wanted_launches(shapes: tuple[tuple[int, int], ...]) -> list[gpu_compile.Wanted]:
    """Return the launches of the first steps, in their order. The checks use a temperature per row."""
    same = ("sample", "softmax_grad", "relaxed", "relaxed_temperatures", "relaxed_grad", "relaxed_grad_temperatures",
            "sample_index", "log_prob", "entropy", "soft_grad")  # fmt: skip
    found: list[gpu_compile.Wanted] = []
    for shape, dtype in product(shapes, ("bfloat16", "float32")):
        found += [(name, *shape, dtype, dtype, 1) for name in same]
        found += [(name, *shape, dtype, "int64", 1) for name in ("sample", "log_prob_known")]
        found += [(name, *shape, dtype, None, 1) for name in ("log_prob_index", "log_prob_grad", "entropy_grad")]
    return found


# The most bytes per element that a check holds in any dtype: logits, gradient, result and bool masks; and the float64
# values of some rows.
CHECK_BYTES, SLICE_BYTES = 24, 2**25 * 8 * 8
# Bytes per element that a provider holds beside its inputs: several float32 values, and int64 one-hots.
OTHERS_BYTES = 6 * 4 + 2 * 8


def case_bytes(case: Case) -> int:
    elements = case.rows * case.columns
    dtype = getattr(torch, case.dtype)
    # Inputs rotate: two of them, or as many as fill the cache a few times, or one if it is large.
    inputs = max(3 * 2 * elements * dtype.itemsize, 3 * 16 * 2**27)
    return inputs + (2 * case.floor_bytes if case.field == "ours" else OTHERS_BYTES * elements)


def operator_bytes(shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Return the bytes of two sets of inputs, of the float32 noise they are made from, and of two int64 results."""
    elements = math.prod(shape)
    return max(2 * elements, 2**27) * 3 * dtype.itemsize + elements * (4 + 2 * 8)


def plan(run: Run) -> list[Step]:
    """Return the steps, in their order."""
    dry, steps = run.dry, []
    first = DRY_SHAPES if dry else FIRST_SHAPES

    def add(question: str, name: str, limit: float, function: Callable[..., Any], *given: Any, **more: Any) -> None:
        steps.append(Step(question, name, partial(function, *given), 300 if dry else limit, **more))

    def add_operators(question: str, names: Callable[[str], bool], shape: tuple[int, int]) -> None:
        dtypes = DTYPES[:1] if dry else DTYPES
        for dtype, operation in product(dtypes, filter(lambda one: names(one.name), OPERATIONS)):
            name = f"operator {operation.name}, {shape[0]} x {shape[1]} {dtype}"
            needs = frozenset({operation.name.split()[0].replace("sample_index", "sample")})
            size = operator_bytes(shape, dtype)
            add(question, name, OPERATORS, run.operator, operation, shape, dtype,
                needs=needs, record="operators", peak_bytes=size)  # fmt: skip

    def add_case(step: str, question: str, case: Case) -> None:
        limit = COMPILED_CASE if case.field == "compiled" else CASE
        needs = frozenset({"limits"} if case.rows * case.columns > 2**29 else ())
        name = f"{question}: {case}" + (", compiled too" if case.field == "compiled" else "")
        add(step, name, limit, run.case, question, case, needs=needs, record="cases", peak_bytes=case_bytes(case))

    launches = wanted_launches(tuple(dict.fromkeys((*FIRST_SHAPES, *SHAPES))))
    add("0 the floor", "copy", OPERATORS, run.copy, peak_bytes=2 * common.COPY_BYTES["cuda"])
    add("0 the floor", "compilation", COMPILE, run.compile, launches[:1] if dry else launches)

    for operation, check in gpu_checks.AT_A_SHAPE.items():
        for shape, dtype in product(first, DTYPES):
            size = CHECK_BYTES * math.prod(shape) + SLICE_BYTES
            add("1 right?", f"{operation}, {shape[0]} x {shape[1]} {dtype}", CHECK, run.check, check, *shape, dtype,
                vouches=frozenset({operation}), peak_bytes=size)  # fmt: skip

    checked = set(gpu_checks.AT_A_SHAPE)
    add_operators("2 bandwidth", lambda name: name.split()[0] in checked, first[0])

    for case in compared(dry):
        add_case("3 against others", "first", case)

    graphs = frozenset({"graphs"})
    add("4 graphs", "graphs draw anew", CHECK, run.check, gpu_checks.graphs_draw_anew, dry,
        vouches=graphs, peak_bytes=SLICE_BYTES)  # fmt: skip
    for name, shape in product(("sample", "train_step"), first):
        needs = graphs | frozenset(NEEDS[name].split())
        add("4 graphs", f"graph of {name}, {shape[0]} x {shape[1]}", OPERATORS, run.of_class, time_graph, name, shape,
            needs=needs, record="graphs", peak_bytes=60 * math.prod(shape))  # fmt: skip

    for name in CALLED:
        add("5 host", f"host, {name}", OPERATORS, run.of_class, time_host, name, (3 if dry else 64, 18), record="host",
            needs=frozenset(NEEDS.get(name, "").split()))  # fmt: skip

    for check, name, vouches in gpu_checks.CHECKS:
        size = 2**31 * 10 if check is gpu_checks.more_than_2_to_the_31_elements else 2**30
        add("6 the rest", name, 2 * CHECK, run.check, check, dry, vouches=frozenset(vouches.split()), peak_bytes=size)
    for shape in DRY_SHAPES if dry else SHAPES:
        add_operators(
            "6 the rest", lambda name, first_too=shape != first[0]: first_too or name.split()[0] not in checked, shape
        )
    for name, question in QUESTIONS.items():
        for case in cases_of(question, dry):
            add_case("6 the rest", name, case)
    return steps


def outline(steps: list[Step]) -> str:
    """Return the plan as text, a line per heading."""
    lines = []
    for question in dict.fromkeys(step.question for step in steps):
        asked = [step for step in steps if step.question == question]
        peak = max(step.peak_bytes for step in asked)
        lines.append(
            f"{question:18} {len(asked):4} steps, {peak / 1e9:5.1f} GB at most: {asked[0].name} .. {asked[-1].name}"
        )
    return "\n".join(lines)


def run(dry: bool, output: Path | None) -> int:
    """Run the plan, and return the exit status: 1 if a kernel is wrong, else 0."""
    if dry:
        import quick_interpreter

        quick_interpreter.install()
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {text}", flush=True)

    info = common.environment()
    name = "dry run on a CPU" if dry else torch.cuda.get_device_name()
    say(f"{name}; " + ", ".join(f"{package} {version}" for package, version in info["packages"].items()))
    this = Run(dry, say)
    if not dry:
        properties = torch.cuda.get_device_properties(this.device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, MOST_BYTES / properties.total_memory))
        info |= {
            "gpu": name, "cuda": torch.version.cuda, "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
        }  # fmt: skip
        output = output or common.result_path("-".join(name.lower().split()))
    this.result["environment"] = info
    steps = plan(this)
    say(f"the plan:\n{outline(steps)}")
    end = math.inf if dry else start + DEADLINE
    run_steps(steps, this.result, end, say, this.wrong, output, lambda found: common.dumps(found) + "\n")
    for missing, why in this.result["missing"].items():
        say(f"{missing}: not timed, {why}")
    if output is not None:
        say(f"wrote {os.path.relpath(output)}")
    if this.wrong:
        say(f"WRONG: {', '.join(sorted(this.wrong))}")
    say("done")
    return 1 if this.wrong else 0
