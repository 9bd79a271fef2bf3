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
    """Of the table whose tests are quick; `make mutants` runs all."""
    rows = [row for row in ROWS if row[0] == "ops" and not row[1].equivalent]
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
    ]
    results = run.run(rows, jobs=2, quiet=True, check=True)
    assert [r.status for r in results] == [run.SURVIVED, run.KILLED, run.BROKEN, run.EQUIVALENT, run.BROKEN]
    assert "expected `old` exactly once" in results[2].detail
    assert not run.is_enough(results)
    assert run.is_enough([results[1], results[3]])
    assert not run.is_enough([results[1]] * 18 + [results[0]])
    assert run.is_enough([results[1]] * 19 + [results[0]])
    assert "| all | 1 | 1 | 1 | 2 |" in run.report(results, markdown=True)
