"""README and the documents: short, their code runs, and what they point to is there."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import onehot_triton

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("tools/*.md")]


def test_readme_fits_on_two_screens() -> None:
    assert README.count("\n") <= 110


# What each comment beside README's first example states, of the names that the example defines.
STATED: dict[str, Callable[..., bool]] = {
    "a vocabulary, an action space, a latent": lambda logits, **_: logits.shape[-1] > 100_000,
    "float32 one-hot, and its score, from one pass": lambda dist, token, log_prob, **_: (
        is_one_hot(token) and token.dtype == torch.float32 and torch.allclose(log_prob, dist.log_prob(token))
    ),
    "exactly 0 and 1, with a straight-through gradient": lambda latent, **_: (
        is_one_hot(latent) and latent.requires_grad
    ),
    # <y, 1> is 1, so a row of it sums to 0.
    "y (g - <y, g>) / t, the Gumbel-softmax gradient": lambda logits, **_: bool(
        (logits.grad.sum(-1).abs() < 1e-3 * logits.grad.abs().sum(-1)).all()
    ),
}


def is_one_hot(draw: Tensor) -> bool:
    return bool((draw.count_nonzero(-1) == 1).all() and (draw.amax(-1) == 1).all())


def test_readme_code_runs() -> None:
    example, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 8
    scope: dict = {}
    exec(example, scope)
    assert scope["logits"].grad.isfinite().all()
    comments = [line.split("  # ", 1)[1] for line in example.splitlines() if "  # " in line]
    assert comments == list(STATED)
    for comment in comments:
        assert STATED[comment](**scope), comment


WITH_SESSIONS = [page for page in PAGES if ">>>" in page.read_text()]


@pytest.mark.parametrize("page", WITH_SESSIONS, ids=lambda page: page.name)
def test_sessions_of_the_pages(page: Path) -> None:
    """What stands after >>> prints what stands below it."""
    assert {page.name for page in WITH_SESSIONS} == {"README.md", "guide.md", "language-models.md"}
    names = {"torch": torch, "OneHotCategorical": onehot_triton.OneHotCategorical}
    sessions = "\n".join(re.findall(r"```python\n(>>>.*?)```", page.read_text(), re.DOTALL))
    found = doctest.DocTestParser().get_doctest(sessions, names, page.name, None, None)
    assert found.examples
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


def test_tests_that_the_page_of_tests_names_exist() -> None:
    """`file.py::test_x`, `test_x`, or `test_x_*` for several."""
    page = (ROOT / "docs" / "what-is-tested.md").read_text()
    with_files = re.findall(r"`(\w+\.py)::(test_\w+)`", page)
    assert len(with_files) > 100
    for file, name in with_files:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name
    everything = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for name, several in re.findall(r"`(test_\w+)(\*?)`", page):
        assert f"def {name}" + ("" if several else "(") in everything, name


def test_file_map_names_what_there_is() -> None:
    (files,) = re.findall(r"## Where to find things\n\n```\n(.*?)```", README, re.DOTALL)
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "onehot_triton").glob("[a-z]*.py")]:
        assert path.name in files, path.name
