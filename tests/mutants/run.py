"""Plants the faults of the tables one by one, each in a copy of the tree, and says which of them no test sees.

    make mutants                                     all of them, which takes long
    python tests/mutants/run.py temperature          those whose table, file or reason matches the pattern
    python tests/mutants/run.py --sample 10 --seed 1 a few
    python tests/mutants/run.py --check              first shows that the tests pass on the tree as it is

Ends with status 1 where fewer than 95 % of the faults that are not equivalent are killed, or a row proves nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
# The tables import mutants.mutant.
sys.path.insert(0, str(ROOT / "tests"))

from mutants.mutant import Mutant  # noqa: E402

KILLED, SURVIVED, EQUIVALENT, BROKEN = "killed", "survived", "equivalent", "broken"
WANTED = 0.95


class Result(NamedTuple):
    """What became of a mutant: `status` is one of the four above, `detail` says more where no test failed."""

    table: str
    mutant: Mutant
    status: str
    detail: str = ""


def tables(folder: Path = ROOT / "tests" / "mutants") -> dict[str, list[Mutant]]:
    """Every table beside this file, by name: a module that has MUTANTS."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("run", "mutant", "conftest"):
            spec = importlib.util.spec_from_file_location(f"mutants.{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found[path.stem] = module.MUTANTS
    return found


def planted(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of the mutant's file with the fault in it.

    Raises:
        ValueError: where the row does not apply, naming it.
    """
    path = root / mutant.file
    text = path.read_text() if path.is_file() else ""
    count = text.count(mutant.old)
    if count != 1 or mutant.old == mutant.new:
        raise ValueError(
            f"{mutant.file}, {mutant.why!r}: expected `old` exactly once in the file and `new` another text, "
            f"found {mutant.old!r} {count} times, and {mutant.new!r}"
        )
    return text.replace(mutant.old, mutant.new)


def copy_of_the_tree(to: Path) -> Path:
    """The sources, without what tools left there. In a release, the link to the kernels is a folder."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, to, symlinks=True, ignore=ignored)
    link = to / "onehot_triton" / "kernels"
    if not link.is_symlink():
        shutil.rmtree(link)
        link.symlink_to(Path("..") / "kernels")
    return to


def run_tests(tests: str, root: Path, limit: float) -> tuple[int | None, str]:
    """pytest's exit status in the copy `root`, None where it ran out of time, and the end of what it printed."""
    environment = os.environ | {
        # The copy comes before an installed library, in the tests' own child processes too.
        "PYTHONPATH": str(root),
        # Bytecode is known by the second and the size of its source: a fault planted at once may have both.
        "PYTHONDONTWRITEBYTECODE": "1",
        # A graph compiled without the fault would be found again.
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "OMP_NUM_THREADS": "1",
    }
    # What an outer pytest says to its workers is none of the child's business.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=root, env=environment, text=True, start_new_session=True, **pipes) as child:
        try:
            output, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            # With the processes that the tests started.
            os.killpg(child.pid, signal.SIGKILL)
            return None, ""
        return child.returncode, "\n".join(output.strip().splitlines()[-3:])


def judge(table: str, mutant: Mutant, root: Path, limit: float) -> Result:
    """Plants the fault in the copy `root`, runs its tests there, and restores the file."""
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
        return Result(table, mutant, KILLED, "by its limit: without the fault the tests end in time")
    if status == 1:
        return Result(table, mutant, KILLED)
    if status < 0:
        return Result(table, mutant, KILLED, f"by {signal.Signals(-status).name}")
    if status == 0:
        return Result(table, mutant, SURVIVED)
    return Result(table, mutant, BROKEN, f"no test ran, pytest's status {status}: {output}")


def failing(tests: str, root: Path, limit: float) -> str | None:
    """Why `tests` prove nothing: they do not pass in the copy `root`, in which no fault is."""
    status, output = run_tests(tests, root, limit)
    return None if status == 0 else f"without the fault, pytest's status is {status}: {output}"


def run(
    rows: Sequence[tuple[str, Mutant]], jobs: int = 1, limit: float = 300.0, check: bool = False, quiet: bool = False
) -> list[Result]:
    """What becomes of each (table, mutant).

    Args:
        rows: the mutants with the names of their tables.
        jobs: how many run at once, each in a copy of the tree.
        limit: the seconds that the tests of a mutant may take.
        check: True to run the tests without a fault first.
        quiet: True for no progress bar.
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
    """Whether the tests kill what they should."""
    counts = Counter(result.status for result in results)
    return counts[BROKEN] == 0 and counts[KILLED] >= WANTED * (counts[KILLED] + counts[SURVIVED])


def report(results: Sequence[Result], markdown: bool = False) -> str:
    """The counts by table, and every row that is not killed."""
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
        # A test that fails says what is wrong. A process that a signal ends does not, and takes the other tests along.
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
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression: table, file, reason")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the tests of a mutant")
    parser.add_argument("--sample", type=int, help="so many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--check", action="store_true", help="first run the tests without a fault")
    parser.add_argument("--markdown", action="store_true", help="the report as docs/tests.md shows it")
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
