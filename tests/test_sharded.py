"""Distributions over DTensor logits, in real processes over gloo; what they run is in `sharded_cases.py`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import sharded_cases
import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, str]]]:
    """What failed on each rank of each world, which is started once."""
    found = {}
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    for world in (2, 3, 4):
        folder = tmp_path_factory.mktemp(f"world{world}")
        try:
            spawn(sharded_cases.run, (world, str(folder)), world)
        except (ProcessExitedException, ProcessRaisedException) as error:
            files = [folder / f"{world}-{rank}" for rank in range(world)]
            if not any(file.exists() and json.loads(file.read_text()) for file in files):
                raise error
        found[world] = [
            json.loads(file.read_text()) if (file := Path(folder / f"{world}-{rank}")).exists() else {}
            for rank in range(world)
        ]
    os.environ.pop("OMP_NUM_THREADS")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads
    return found


@pytest.mark.parametrize(("world", "name"), sharded_cases.CASES)
def test_on_ranks(worlds: dict[int, list[dict[str, str]]], world: int, name: str) -> None:
    for rank, failed in enumerate(worlds[world]):
        assert name not in failed, f"rank {rank}\n{failed[name]}"
        # A world ends at its first failure.
        assert not failed, f"not reached after {next(iter(failed))}"
