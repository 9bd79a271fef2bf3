"""What an installation puts where."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_has_no_top_level_module_kernels(tmp_path: Path) -> None:
    """That name is another project's. The sources are copied: a build leaves files beside them."""
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for package in ("onehot_triton", "onehot_triton/integrations", "kernels"):
        for file in (ROOT / package).glob("*.*"):
            if file.is_file():
                (source / package).mkdir(parents=True, exist_ok=True)
                (source / package / file.name).write_bytes(file.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in files} == {"onehot_triton"}
    assert len(files) == len(set(files))
    for name in ("py.typed", "ops.py", "integrations/torchrl.py", "kernels/__init__.py", "kernels/sample.py"):
        assert f"onehot_triton/{name}" in files
