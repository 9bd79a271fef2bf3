"""Plant the faults of the tables one by one, each in a copy of the tree, and report those that no test notices.

    make mutants                                      every fault, which takes long
    python tests/mutants/run.py temperature           faults whose table, file or reason matches the pattern
    python tests/mutants/run.py --sample 10 --seed 1  ten faults chosen at random
    python tests/mutants/run.py --check               run the tests without a fault first, to show that they pass

The exit status is 1 if a row proves nothing, or if fewer than 95 % of the faults that are not equivalent are killed.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
# For the tables, which import mutants.mutant.
sys.path.insert(0, str(ROOT / "tests"))

from mutants.mutant import Mutant  # noqa: E402

KILLED, SURVIVED, EQUIVALENT, BROKEN = "killed", "survived", "equivalent", "broken"
WANTED = 0.95


class Result(NamedTuple):
    """The outcome of one mutant: `status` is one of the four above, `detail` explains any that no failing test does."""

    table: str
    mutant: Mutant
    status: str
    detail: str = ""


def tables() -> dict[str, list[Mutant]]:
    """Import the tables beside this file, and return their MUTANTS by module name."""
    names = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"run", "mutant", "conftest"}
    return {name: importlib.import_module(f"mutants.{name}").MUTANTS for name in sorted(names)}


@lru_cache
def scopes(source: str) -> list[tuple[str, int, int]]:
    """Return the dotted name, start and end in `source` of every function and class, decorators included."""
    line_starts = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                first = min(part.lineno for part in (child, *child.decorator_list))
                found.append((prefix + child.name, line_starts[first - 1], line_starts[child.end_lineno or first]))
                walk(child, f"{prefix}{child.name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(source), "")
    return found


def planted(mutant: Mutant, root: Path = ROOT) -> str:
    """Return the text of the mutant's file with the fault in it.

    Raises:
        ValueError: the row does not apply. The message names the row.
    """
    path = root / mutant.file
    text = path.read_text() if path.is_file() else ""
    spans = [(0, len(text))]
    if mutant.function is not None:
        spans = [(start, end) for name, start, end in scopes(text) if name == mutant.function]
    count = sum(text.count(mutant.old, *span) for span in spans)
    if count != 1 or mutant.old == mutant.new:
        raise ValueError(
            f"{mutant.file}, {mutant.why!r}: expected `old` exactly once in {mutant.function or 'the file'} and `new` "
            f"another text, found {mutant.old!r} {count} times, and {mutant.new!r}"
        )
    at = max(text.find(mutant.old, *span) for span in spans)
    return text[:at] + mutant.new + text[at + len(mutant.old) :]


def copy_of_the_tree(to: Path) -> Path:
    """Copy the sources to `to`, without caches and build outputs.

    In a release onehot_triton/kernels is a folder. The copy has the link of a checkout in its place, so that a fault is
    planted in one file.
    """
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, to, symlinks=True, ignore=ignored)
    link = to / "onehot_triton" / "kernels"
    if not link.is_symlink():
        shutil.rmtree(link)
        link.symlink_to(Path("..") / "kernels")
    return to


def run_tests(tests: str, root: Path, limit: float) -> tuple[int | None, str]:
    """Run pytest in the copy `root`.

    Returns:
        Its exit status, or None if it took longer than `limit` seconds, and the last lines of its output.
    """
    # pytest sets these variables for its own workers, which the child is not.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory(prefix="inductor-") as cache:
        environment |= {
            # The copy comes before an installed library, in the tests' own child processes too.
            "PYTHONPATH": str(root),
            # Python recognises bytecode by the second and the size of its source, and a fault may change neither.
            "PYTHONDONTWRITEBYTECODE": "1",
            # A new folder, lest a graph compiled without the fault is found again. Without any cache dynamo warns, and
            # warnings are errors: tests of compiled programs would fail without a fault.
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "OMP_NUM_THREADS": "1",
        }
        with subprocess.Popen(command, cwd=root, env=environment, text=True, start_new_session=True, **pipes) as child:
            try:
                output, _ = child.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                # The whole group: pytest and the processes that its tests started.
                os.killpg(child.pid, signal.SIGKILL)
                return None, ""
            return child.returncode, "\n".join(output.strip().splitlines()[-3:])


def judge(table: str, mutant: Mutant, root: Path, limit: float) -> Result:
    """Plant the fault in the copy `root`, run its tests there, and restore the file."""
    path = root / mutant.file
    try:
        text = planted(mutant, root)
    except ValueError as error:
        return Result(table, mutant, BROKEN, str(error))
    if mutant.equivalent:
        return Result(table, mutant, EQUIVALENT, mutant.equivalent)
    before = path.read_text()
    path.write_text(text)
    try:
        status, output = run_tests(mutant.tests, root, limit)
    finally:
        path.write_text(before)
    if status is None:
        return Result(table, mutant, KILLED, "by its time limit, which the tests meet without the fault")
    if status == 1:
        return Result(table, mutant, KILLED)
    if status < 0:
        return Result(table, mutant, KILLED, f"by {signal.Signals(-status).name}")
    if status == 0:
        return Result(table, mutant, SURVIVED)
    return Result(table, mutant, BROKEN, f"no test ran, pytest's status {status}: {output}")


def failing(tests: str, root: Path, limit: float) -> str | None:
    """Run the tests in the copy `root` without a fault, and return why they fail, or None if they pass."""
    status, output = run_tests(tests, root, limit)
    return None if status == 0 else f"without the fault, pytest's status is {status}: {output}"


def run(
    rows: Sequence[tuple[str, Mutant]], jobs: int = 1, limit: float = 300.0, check: bool = False, quiet: bool = False
) -> list[Result]:
    """Judge each mutant.

    Args:
        rows: pairs of a table's name and a mutant.
        jobs: number of mutants judged at once, each in its own copy of the tree.
        limit: time limit in seconds for the tests of one mutant.
        check: True to run the tests without a fault first.
        quiet: True to show no progress bar.

    Returns:
        A result per row, in the order of the rows.
    """
    results = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            copies.put(copy_of_the_tree(Path(folder) / str(number)))

        def in_a_copy(function, *args):
            root = copies.get()
            try:
                return function(*args, root, limit)
            finally:
                copies.put(root)

        def all_of(function, arguments, title):
            futures = {pool.submit(in_a_copy, function, *some): key for key, some in arguments.items()}
            progress = tqdm(as_completed(futures), total=len(futures), desc=title, disable=quiet)
            found = {}
            for future in progress:
                result = found[futures[future]] = future.result()
                if isinstance(result, Result) and result.status in (SURVIVED, BROKEN) and not quiet:
                    progress.write(f"{result.status}: {result.mutant.file}: {result.mutant.why}", file=sys.stderr)
            return found

        wrong: dict[str, str | None] = {}
        if check:
            wrong = all_of(failing, {m.tests: (m.tests,) for _, m in rows if not m.equivalent}, "without a fault")
        proving = {at: row for at, row in enumerate(rows) if wrong.get(row[1].tests) is None}
        results = all_of(judge, proving, "mutants")
    for at, (table, mutant) in enumerate(rows):
        if at not in results:
            results[at] = Result(table, mutant, BROKEN, wrong[mutant.tests] or "")
    return [results[at] for at in range(len(rows))]


def is_enough(results: Sequence[Result]) -> bool:
    """Return whether no row is broken and enough mutants are killed."""
    counts = Counter(result.status for result in results)
    return counts[BROKEN] == 0 and counts[KILLED] >= WANTED * (counts[KILLED] + counts[SURVIVED])


def report(results: Sequence[Result], markdown: bool = False) -> str:
    """Return the counts by table, and a line for every row that no failing test killed."""
    columns = (KILLED, SURVIVED, EQUIVALENT, BROKEN)
    lines = []
    if markdown:
        lines += ["| table | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for table in [*dict.fromkeys(result.table for result in results), "all"]:
        counts = Counter(result.status for result in results if table in (result.table, "all"))
        if markdown:
            lines.append(f"| {table} | " + " | ".join(str(counts[status]) for status in columns) + " |")
        else:
            lines.append(f"{table:10}" + "".join(f"  {counts[status]:4} {status}" for status in columns))
    for status in columns:
        # A failing test says what is wrong. A process ended by a signal does not, and ends the other tests with it.
        some = [result for result in results if result.status == status and (result.detail or status != KILLED)]
        if some:
            lines += ["", "Killed, but by no assertion:" if status == KILLED else f"{status.capitalize()}:", ""]
        for _, mutant, _, detail in some:
            what = f"`{mutant.file}`" if markdown else mutant.file
            lines.append(f"- {what}: {mutant.why}" + (f": {detail}" if detail else ""))
            if status == SURVIVED and not markdown:
                lines.append(f"  {mutant.old!r} -> {mutant.new!r}, seen by none of: {mutant.tests}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="", help="regular expression, searched in table, file and reason")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of mutants at once")
    parser.add_argument("--limit", type=float, default=300.0, help="time limit in seconds for the tests of one mutant")
    parser.add_argument("--sample", type=int, help="number of mutants, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="seed of that choice")
    parser.add_argument("--check", action="store_true", help="run the tests without a fault first")
    parser.add_argument("--markdown", action="store_true", help="print the report as docs/tests.md shows it")
    given = parser.parse_args(arguments)
    rows = [
        (table, mutant)
        for table, mutants in tables().items()
        for mutant in mutants
        if re.search(given.pattern, f"{table} {mutant.file} {mutant.why}")
    ]
    if given.sample is not None:
        rows = random.Random(given.seed).sample(rows, min(given.sample, len(rows)))
    results = run(rows, given.jobs, given.limit, given.check)
    print(report(results, given.markdown))
    return 0 if rows and is_enough(results) else 1


if __name__ == "__main__":
    sys.exit(main())
