"""Runs the tests that PyTorch, TorchRL and Pyro have of their one-hot classes, with this library's in their place.

    make conformance RL=path PYTORCH=path PYRO=path

Each path is a checkout of that project, of the version that is installed or near it; a project without one is left out.
PyTorch's tests import expecttest, which this project does not install.
The output is the table of docs/what-is-tested.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

# The files of each checkout, what to choose of them (pytest's -k), and the package whose version the table gives.
PROJECTS = {
    "RL": (["test/test_distributions.py"], "OneHotCategorical", "torchrl"),
    # Most tests there are of every distribution in turn.
    "PYTORCH": (["test/distributions/test_distributions.py"], "", "torch"),
    "PYRO": (
        [
            "tests/distributions/test_one_hot_categorical.py",
            "tests/distributions/test_shapes.py",
            "tests/distributions/test_pickle.py",
            "tests/infer/test_enum.py",
        ],
        "(OneHotCategorical or one_hot or test_shapes or gmm_batch_iter) and not Relaxed and not StraightThrough",
        "pyro-ppl",
    ),
}


def replace(project: str) -> None:
    """Puts this library's classes where the tests import their own from. No other name is replaced: a strategy that
    TorchRL's tests give is TorchRL's."""
    import onehot_triton

    if project == "RL":
        import torchrl.modules

        for module in (torchrl.modules, torchrl.modules.distributions):
            for name in ("OneHotCategorical", "MaskedOneHotCategorical"):
                setattr(module, name, getattr(onehot_triton, name))
    elif project == "PYRO":
        import pyro.distributions

        from onehot_triton.integrations.pyro import OneHotCategorical

        pyro.distributions.OneHotCategorical = OneHotCategorical
    else:
        import torch

        class OneHotCategorical(onehot_triton.OneHotCategorical):
            """torch's order and dtype."""

            method: onehot_triton.ReparamGradientStrategy | None = None

            def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
                param = logits if probs is None else probs
                super().__init__(logits, probs, self.method, dtype=param.dtype, validate_args=validate_args)

            def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
                return super().expand(batch_shape, self._get_checked_instance(type(self), _instance))

        class OneHotCategoricalStraightThrough(OneHotCategorical):
            method = onehot_triton.ReparamGradientStrategy.PassThrough

        for replaced in (OneHotCategorical, OneHotCategoricalStraightThrough):
            setattr(torch.distributions, replaced.__name__, replaced)


class Results:
    """A pytest plugin that writes what became of each test, a line of JSON each."""

    def __init__(self, path: str) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message.strip().splitlines()[0] if crash else ""
        with Path(self.path).open("a") as file:
            file.write(json.dumps([report.nodeid, report.outcome, why]) + "\n")


def run_inside(project: str, results: str) -> int:
    """In the checkout: pytest's own exit status."""
    sys.path.insert(0, os.getcwd())
    replace(project)
    files, chosen, _ = PROJECTS[project]
    there = [file for file in files if Path(file).exists()]
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-k", chosen]
    return int(pytest.main([*options, *there], plugins=[Results(results)]))


def run(project: str, checkout: str) -> list[tuple[str, str, str]]:
    """(test, outcome, why) of each test."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as results:
        root = Path(__file__).parents[1]
        command = [sys.executable, str(Path(__file__).resolve()), "--inside", project, "--results", results.name]
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(command, cwd=checkout, env={**os.environ, "PYTHONPATH": path}, stdout=sys.stderr)
        rows = [tuple(json.loads(line)) for line in results]
    if not rows or done.returncode > 1:
        raise SystemExit(f"{project}: pytest ran no test in {checkout} (its exit status: {done.returncode})")
    return rows  # pyright: ignore[reportReturnType]


def table(project: str, rows: list[tuple[str, str, str]]) -> str:
    package = PROJECTS[project][2]
    count = {outcome: sum(row[1] == outcome for row in rows) for outcome in ("passed", "failed", "skipped")}
    head = f"{package} {importlib.metadata.version(package)}: " + ", ".join(f"{n} {name}" for name, n in count.items())
    lines = [
        f"| `{test.split('/')[-1]}` | {why.replace('|', '/')} |" for test, outcome, why in rows if outcome == "failed"
    ]
    return "\n".join([head, *(["", "| failed | why |", "|---|---|", *lines] if lines else [])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for project in PROJECTS:
        parser.add_argument(f"--{project.lower()}", metavar="PATH", default="", help="a checkout")
    parser.add_argument("--inside", choices=PROJECTS, help=argparse.SUPPRESS)
    parser.add_argument("--results", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return run_inside(options.inside, options.results)
    given = {project: getattr(options, project.lower()) for project in PROJECTS}
    if not any(given.values()):
        parser.error("expected the path of at least one checkout, found none")
    for project, checkout in given.items():
        if checkout:
            print(table(project, run(project, checkout)), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
