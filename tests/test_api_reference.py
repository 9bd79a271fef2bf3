"""`make docs`: the API reference has every public name, each with a docstring, and is made without a warning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import onehot_triton

pytest.importorskip("pdoc", reason="pdoc is not installed")

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def public_names() -> Iterator[tuple[str, object]]:
    """Every public name, and the public members that this library's classes define."""
    for name in onehot_triton.__all__:
        thing = getattr(onehot_triton, name)
        yield name, thing
        if inspect.isclass(thing):
            yield from ((f"{name}.{key}", value) for key, value in vars(thing).items() if not key.startswith("_"))


def test_every_public_name_is_in_the_reference(tmp_path: Path) -> None:
    (line,) = re.findall(r"^\t\$\(BIN\)/python (.*-m pdoc .*) -o (?:\S+)(.*)$", MAKEFILE.read_text(), re.MULTILINE)
    command = [sys.executable, *line[0].split(), "-o", str(tmp_path), *line[1].split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "onehot_triton.html").read_text()
    for name, _ in public_names():
        assert f'id="{name}"' in page, name
    assert 'id="register"' in (tmp_path / "onehot_triton" / "integrations" / "torchrl.html").read_text()


def test_every_public_function_and_class_has_a_docstring() -> None:
    for name, thing in public_names():
        if inspect.isroutine(thing) or inspect.isclass(thing) or isinstance(thing, property):
            assert inspect.getdoc(thing), name


@pytest.mark.parametrize("name", ["OneHotCategorical", "MaskedOneHotCategorical", "RelaxedOneHotCategorical"])
def test_every_member_says_what_it_is_of_sharded_columns(name: str) -> None:
    known = {"param_shape", "num_samples", "cdf", "icdf"}
    for key, value in vars(getattr(onehot_triton, name)).items():
        if not key.startswith("_") and key not in known and (inspect.isroutine(value) or isinstance(value, property)):
            assert re.search(r"sharded\s+columns", inspect.getdoc(value) or "", re.IGNORECASE), key
