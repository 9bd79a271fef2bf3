"""The tables of planted faults apply, and their runner says what it sees."""

from __future__ import annotations

import random

import pytest
from mutants import run
from mutants.mutant import Mutant

ROWS = [(table, mutant) for table, mutants in run.tables().items() for mutant in mutants]


@pytest.mark.parametrize("table", run.tables())
def test_every_row_applies(table: str) -> None:
    for mutant in run.tables()[table]:
        assert run.planted(mutant) != (run.ROOT / mutant.file).read_text()
        assert mutant.why
        assert mutant.tests or mutant.equivalent


def test_no_row_is_there_twice() -> None:
    assert len({(m.file, m.old, m.new) for _, m in ROWS}) == len(ROWS)


def test_a_sample_is_killed() -> None:
    """Of those whose tests are quick, which those of the operators are not; `make mutants` runs all."""
    rows = [(table, m) for table, m in ROWS if table == "ops" and not m.equivalent and "operators" not in m.tests]
    results = run.run(random.Random(20).sample(rows, min(10, len(rows))), jobs=2, quiet=True)
    assert {result.status for result in results} == {run.KILLED}, run.report(results)


def test_the_runner_tells_a_survivor_and_a_row_that_proves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def row(old: str, new: str, tests: str, equivalent: str = "") -> tuple[str, Mutant]:
        return "table", Mutant("onehot_triton/grad_method.py", old, new, "why", tests, equivalent)

    quick = "onehot_triton/grad_method.py"
    rows = [
        row("PassThrough = 1", "PassThrough = 7", quick),
        row("PassThrough = 1", "Passthrough = 1", quick),
        row("no such text", "", quick),
        row("RelaxedOneHot = 2", "RelaxedOneHot = 3", quick, "none"),
        row("RelaxedOneHot = 2", "RelaxedOneHot = 4", "tests/no_such_test.py"),
        row("from enum import Enum", "import os; os.abort()", quick),
    ]
    results = run.run(rows, jobs=2, quiet=True, check=True)
    assert [r.status for r in results] == [run.SURVIVED, run.KILLED, run.BROKEN, run.EQUIVALENT, run.BROKEN, run.KILLED]
    assert [r.detail for r in results if r.status == run.KILLED] == ["", "by SIGABRT"]
    assert "Killed, but by no assertion:\n\n- onehot_triton/grad_method.py: why: by SIGABRT" in run.report(results)
    assert "expected `old` exactly once" in results[2].detail
    assert not run.is_enough(results)
    assert run.is_enough([results[1], results[3]])
    assert not run.is_enough([results[1]] * 18 + [results[0]])
    assert run.is_enough([results[1]] * 19 + [results[0]])
    assert "| all | 2 | 1 | 1 | 2 |" in run.report(results, markdown=True)
