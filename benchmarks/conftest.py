"""`make bench`: time the cases of questions.py on this CPU, with pytest-benchmark.

A test is one turn of one provider at one case. The providers take turns, so that other load on the machine affects all
of them alike. Each call gets another input. With `--save` the times are written to results/cpu/<date>.json.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from common import case_record, copy_bandwidth, environment, parallel_speedup, rounded, save, wall_clock
from measure import WARM_UP, Contest, rotating
from operations import Case, Inputs
from questions import QUESTIONS
from tqdm import tqdm

CPU, THREADS = torch.device("cpu"), 2
# A provider has TURNS turns at a case, each of about TURN_SECONDS, but of one call at least and MOST_CALLS at most.
TURNS, TURN_SECONDS, MOST_CALLS = 3, 0.015, 20


class Run:
    """The state and the results of this run."""

    def __init__(self) -> None:
        torch.set_num_threads(THREADS)
        torch.manual_seed(1)
        self.result: dict[str, Any] = {
            "environment": environment(),
            "threads": THREADS,
            # Measured again at every case, because other programs may come and use the cores.
            "parallel_speedup": [parallel_speedup(THREADS)],
            "copy_bytes_per_second": copy_bandwidth(CPU),
        }
        self.contest = Contest(CPU)
        self.records: dict[tuple[str, Case], dict[str, dict[str, Any]]] = {}
        self._calls: dict[tuple[Case, str], int] = {}
        self._case: Case | None = None
        self._given: Callable[[], Inputs] | None = None

    def given(self, case: Case) -> Callable[[], Inputs]:
        """Return the inputs of the case, and drop those of the case before."""
        if self._given is None or case != self._case:
            self._given = None
            self._case, self._given = case, rotating(case, CPU)
            self.result["parallel_speedup"].append(parallel_speedup(THREADS))
        return self._given

    def turn(self, benchmark: Any, question: str, case: Case, name: str) -> None:
        given, call = self.given(case), self.contest.call(case, name)
        records = self.records.setdefault((question, case), {})
        if name not in records:
            records[name] = self.contest.begin(case, name, given)
        record = records[name]
        if "seconds" not in record:
            pytest.skip(f"{name}: {record}")
        if (case, name) not in self._calls:
            (once,) = wall_clock(partial(call, given()), 1)
            self._calls[case, name] = max(1, min(MOST_CALLS, int(TURN_SECONDS / once)))
        calls = self._calls[case, name]
        benchmark.group = f"{question}: {case}"
        benchmark.pedantic(call, setup=lambda: ((given(),), {}), rounds=calls, warmup_rounds=min(WARM_UP, calls - 1))
        record["seconds"] += rounded(benchmark.stats.stats.data)

    def save(self) -> str:
        self.result |= {
            "missing": self.contest.missing,
            "cases": [case_record(question, case, records) for (question, case), records in self.records.items()],
        }
        return os.path.relpath(save("cpu", self.result))


RUN, BAR = pytest.StashKey[Run](), pytest.StashKey[tqdm]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--question", choices=list(QUESTIONS), help="time one question of questions.py, not all")
    parser.addoption("--save", action="store_true", help="write all times to results/cpu/<date>.json")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUN] = Run()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    contest = metafunc.config.stash[RUN].contest
    wanted = metafunc.config.getoption("--question")
    turns = [
        pytest.param((question, case, name), id=f"{question}: {case} turn {i} {name}")
        for question in ([wanted] if wanted else QUESTIONS)
        for case in QUESTIONS[question].cpu
        for i in range(TURNS)
        for name in contest.entrants(case)
    ]
    metafunc.parametrize("turn", turns, indirect=True)


@pytest.fixture
def turn(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[], None]:
    return partial(request.config.stash[RUN].turn, benchmark, *request.param)


# Output on the terminal -----------------------------------------------------------------------------------------------


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[BAR] = tqdm(total=len(session.items), unit="turn", smoothing=0)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    bar = item.config.stash[BAR]
    bar.set_description(item.name.partition("[")[2].partition(" turn")[0], refresh=False)
    bar.update()


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Print no dot per test, because the bar shows the progress. Failures are printed as usual."""
    if report.failed:
        return None
    return (report.outcome if report.when == "call" or report.skipped else "", "", "")


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[BAR].close()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    run = config.stash[RUN]
    for name, why in run.contest.missing.items():
        terminalreporter.write_line(f"{name}: not timed, {why}")
    for (name, operation, dtype), why in run.contest.wrong.items():
        terminalreporter.write_line(f"{name}: {operation} in {dtype} is WRONG, and not timed: {why}")
    if config.getoption("--save") and run.records:
        terminalreporter.write_line(f"every time is in {run.save()}")
