"""Every planted fault applies to the sources, and the runner tells killed, survived and broken rows apart."""

from __future__ import annotations

import random
from pathlib import Path

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
    assert len({(m.file, m.function, m.old, m.new) for _, m in ROWS}) == len(ROWS)


SOURCE = """import functools

one = 1

class C:
    @functools.cache
    def f(self):
        def inner():
            return one
        return one + inner()

def f():
    return one
"""


@pytest.mark.parametrize(
    ("function", "old", "line"),
    [
        ("f", "one", 13),
        ("C.f.inner", "one", 9),
        ("C.f", "one + ", 10),
        ("C.f", "@functools.cache", 6),
        ("C", "class C", 5),
        (None, "one = 1", 3),
        (None, "one + ", 10),
    ],
)
def test_a_fault_is_planted_in_its_function(function: str | None, old: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(SOURCE)
    lines = run.planted(Mutant("file.py", old, "XX", "why", "", function=function), tmp_path).split("\n")
    assert [number for number, text in enumerate(lines, 1) if "XX" in text] == [line]
    assert [text.replace("XX", old) for text in lines] == SOURCE.split("\n")


@pytest.mark.parametrize(
    ("function", "old", "count"), [("C.f", "one", 2), ("g", "one", 0), ("f", "inner", 0), (None, "one", 4)]
)
def test_a_row_whose_text_is_not_there_once_is_refused(
    function: str | None, old: str, count: int, tmp_path: Path
) -> None:
    (tmp_path / "file.py").write_text(SOURCE)
    with pytest.raises(ValueError, match=rf"file.py, 'why': expected .* in {function or 'the file'} .* {count} times"):
        run.planted(Mutant("file.py", old, "", "why", "", function=function), tmp_path)


def test_compiled_graphs_are_cached_but_never_found_again(tmp_path: Path) -> None:
    """Dynamo warns where caches are disabled, and a warning would pass for a fault that is noticed."""
    (tmp_path / "test_it.py").write_text(
        "import os, torch.compiler.config\n"
        "def test_it():\n"
        "    assert not torch.compiler.config.force_disable_caches\n"
        "    assert os.listdir(os.environ['TORCHINDUCTOR_CACHE_DIR']) == []\n"
    )
    status, output = run.run_tests("-W error test_it.py", tmp_path, 300)
    assert status == 0, output


def test_a_sample_is_killed() -> None:
    """The sample leaves out the rows of the operators, whose tests are slow. `make mutants` runs all rows."""
    rows = [(table, m) for table, m in ROWS if table == "ops" and not m.equivalent and "operators" not in m.tests]
    results = run.run(random.Random(20).sample(rows, min(10, len(rows))), jobs=2, quiet=True)
    assert {result.status for result in results} == {run.KILLED}, run.report(results)


def test_the_runner_tells_a_survivor_and_a_row_that_proves_nothing() -> None:
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
    assert "expected `old` exactly once in the file" in results[2].detail
    assert not run.is_enough(results)
    assert run.is_enough([results[1], results[3]])
    assert not run.is_enough([results[1]] * 18 + [results[0]])
    assert run.is_enough([results[1]] * 19 + [results[0]])
    assert "| all | 2 | 1 | 1 | 2 |" in run.report(results, markdown=True)
