"""Every kernel compiles for every architecture, with its launcher's own configuration, where no GPU is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "ahead_of_time.py"


def test_every_kernel_compiles_for_every_architecture() -> None:
    # A process of its own, because this one interprets the kernels.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, SCRIPT, "--spread"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for arch in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert f"{arch:7} ok " in done.stdout
