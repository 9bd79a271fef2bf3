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


def test_readme_is_short() -> None:
    assert README.count("\n") <= 200
    words = " ".join(README.split())
    assert words.index("No GPU has run") < words.index("pip install") < words.index("```diff") < 2000


# The claim of each comment beside README's first example, as a check of the names that the example defines.
STATED: dict[str, Callable[..., bool]] = {
    "32 rows of 4096 actions, tokens or latent classes": lambda logits, **_: logits.shape == (32, 4096),
    "an int64 one-hot and its log-probability": lambda dist, action, log_prob, **_: (
        is_one_hot(action) and action.dtype == torch.int64 and torch.allclose(log_prob, dist.log_prob(action))
    ),
    "exactly 0 and 1, in float32": lambda latent, **_: (
        is_one_hot(latent) and latent.requires_grad and latent.dtype == torch.float32
    ),
    # <y, 1> is 1, so a row of it sums to 0.
    "y (g - <y, g>) / t: `temperature` is the gradient's alone": lambda logits, **_: bool(
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


def test_before_and_after() -> None:
    """The import is all that changes. Each side's comment is about the rows of its draws."""
    pytest.importorskip("torchrl")
    (difference,) = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    lines = difference.splitlines()
    assert [line[0] for line in lines] == ["-", "+", " ", " ", " ", " "]
    sums, scope = {}, {}
    for side in "-+":
        scope = {"logits": torch.randn(1000, 6, requires_grad=True), "cost": torch.randn(1000, 6)}
        exec("\n".join(line[1:] for line in lines if line[0] in (side, " ")), scope)
        assert scope["logits"].grad.isfinite().all()
        sums[side] = scope["action"].detach().double().sum(-1)
    assert f"{sums['-'].float().min().item():.8f}" == "0.99999994"
    assert (sums["+"] == 1).all()
    assert is_one_hot(scope["action"])


WITH_SESSIONS = [page for page in PAGES if ">>>" in page.read_text()]


@pytest.mark.parametrize("page", WITH_SESSIONS, ids=lambda page: page.name)
def test_sessions_of_the_pages(page: Path) -> None:
    """A line after >>> prints the lines below it."""
    assert {page.name for page in WITH_SESSIONS} == {"README.md", "guide.md", "language-models.md"}
    names = {"torch": torch, "OneHotCategorical": onehot_triton.OneHotCategorical}
    sessions = "\n".join(re.findall(r"```python\n(>>>.*?)```", page.read_text(), re.DOTALL))
    found = doctest.DocTestParser().get_doctest(sessions, names, page.name, None, None)
    assert found.examples
    assert doctest.DocTestRunner().run(found).failed == 0


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
            assert not anchor or anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


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


def test_readme_names_every_page_and_every_file() -> None:
    pages = README.split("\n## Pages\n")[1].split("\n## ")[0]
    for path in (ROOT / "docs").glob("*.md"):
        assert f"[{path.name}](docs/{path.name})" in pages, path.name
    files = README.split("\n## Files\n")[1].split("\n## ")[0]
    sources = [*ROOT.glob("onehot_triton/**/[a-z]*.py"), *ROOT.glob("kernels/[a-z]*.py")]
    for path in sources:
        assert re.search(rf"\b{path.name}\b", files), path.name
    for name in re.findall(r"\b\w+\.py\b", files):
        assert list(ROOT.glob(f"*/{name}")) + list(ROOT.glob(f"onehot_triton/*/{name}")), name
