"""README and the documents: short, their code runs, and what they point to is there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch

import onehot_triton

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("tools/*.md")]


def test_readme_fits_on_two_screens() -> None:
    assert README.count("\n") <= 110


def test_readme_code_runs() -> None:
    example, session = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 8
    scope: dict = {}
    exec(example, scope)
    assert scope["logits"].grad.isfinite().all()
    names = {"torch": torch, "OneHotCategorical": onehot_triton.OneHotCategorical}
    found = doctest.DocTestParser().get_doctest(session, names, "README.md", None, None)
    assert doctest.DocTestRunner().run(found).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_tests_that_readme_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", README))
    text = (ROOT / "tests" / "test_differences.py").read_text()
    assert len(named) > 5
    for name in named:
        assert f"def {name}(" in text


def test_tests_that_the_page_before_the_first_gpu_names_exist() -> None:
    named = re.findall(r"`(\w+\.py)::(test_\w+)`", (ROOT / "docs" / "gpu-readiness.md").read_text())
    assert len(named) > 15
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name


def test_file_map_names_what_there_is() -> None:
    (files,) = re.findall(r"## Where to find things\n\n```\n(.*?)```", README, re.DOTALL)
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "onehot_triton").glob("[a-z]*.py")]:
        assert path.name in files, path.name
