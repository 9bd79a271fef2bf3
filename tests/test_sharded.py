"""Distributions over DTensor logits, in real processes over gloo; what they run is in `sharded_cases.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
CASES = Path(__file__).with_name("sharded_cases.py")


@pytest.mark.parametrize("world", [2, 3, 4])
def test_on_ranks(world: int, pytestconfig: pytest.Config) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CASES), str(world), pytestconfig.getoption("--case")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
