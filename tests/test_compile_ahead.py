"""Every kernel compiles for every architecture, with its launcher's own configuration, where no GPU is; and what
executes the compiled code there finds the faults that it is for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent


def script(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because this one interprets the kernels."""
    imported = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    # As Triton 3.10 has it: a launch says for itself whether products and sums are fused.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "0", "PYTHONPATH": imported}
    return subprocess.run([sys.executable, ROOT / path, *arguments], env=environment, capture_output=True, text=True)


def test_every_kernel_compiles_for_every_architecture() -> None:
    done = script("tools/ahead_of_time.py", "--spread")
    assert done.returncode == 0, done.stdout + done.stderr
    for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert f"{arch:7} ok " in done.stdout


def test_the_emulator_of_compiled_kernels_finds_planted_faults() -> None:
    done = script("tests/ptx/check.py", "--self-test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
