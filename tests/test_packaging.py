"""What a release holds, and what an installation puts where."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import onehot_triton

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"


def build(kind: str, source: Path, to: Path) -> Path:
    """As `python -m build` does, with the setuptools that is there."""
    subprocess.run([sys.executable, "-c", BUILD, kind, str(to)], cwd=source, check=True, capture_output=True)
    (made,) = to.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked. The sources are copied: a build leaves files beside them."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("release")
    for name in ("source", "sdist", "unpacked"):
        (folder / name).mkdir()
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignored, dirs_exist_ok=True)
    with tarfile.open(build("sdist", folder / "source", folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_the_sdist_holds_what_tests_and_benchmarks_need(sdist: Path) -> None:
    for folder in ("benchmarks", "docs", "examples", "kernels", "onehot_triton", "tests", "tools"):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT)
            # Caches of tools are no part of it.
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
                assert (sdist / inside).is_file(), inside
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml"):
        assert (sdist / name).is_file(), name


def test_the_wheel_has_no_top_level_module_kernels(sdist: Path, tmp_path: Path) -> None:
    """That name is another project's. Built from the sdist, in which the link to the kernels is a folder."""
    files = [name for name in zipfile.ZipFile(build("wheel", sdist, tmp_path)).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in files} == {"onehot_triton"}
    assert len(files) == len(set(files))
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "onehot_triton").rglob("*.py")}
    expected |= {f"onehot_triton/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").glob("*.py")}
    assert set(files) == expected | {"onehot_triton/py.typed"}


def test_the_version_has_an_entry_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(onehot_triton.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
