"""`--thorough`, the progress bar of the long checks, and the import path of the modules beside the tests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path[:0] = [path for path in (str(Path(__file__).parent), str(Path(__file__).parents[1])) if path not in sys.path]


def pytest_addoption(parser: pytest.Parser) -> None:
    # Seen only where tests/statistics is named on the command line; tests/conftest.py may have added it already.
    with contextlib.suppress(ValueError):
        parser.addoption("--thorough", action="store_true", help="statistical checks of 10^8 draws (10^9 on a GPU)")


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough", default=False))


@pytest.fixture
def progress(request: pytest.FixtureRequest, thorough: bool) -> Iterator[Callable[[int], Callable[[int], object]]]:
    """progress(total) -> a function to call with numbers of draws done; it draws a bar in thorough runs."""
    if not thorough:
        yield lambda total: lambda done: None
        return
    from tqdm import tqdm

    # pytest captures what tests write, the bar among it.
    shown = request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled
    bars = []

    def start(total: int) -> Callable[[int], None]:
        with shown():
            bar = tqdm(total=total, desc=request.node.name, unit="draw", unit_scale=True, file=sys.__stderr__)
        bars.append(bar)

        def update(done: int) -> None:
            with shown():
                bar.update(done)

        return update

    yield start
    with shown():
        for bar in bars:
            bar.close()


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """No test of another file depends on what was drawn here. One thread: small operations gain little from a second,
    and where other processes want the cores, threads that wait for each other take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # The interpreter computes inf - inf in NumPy, which warns where a GPU does not.
    with torch.random.fork_rng(devices=[]), np.errstate(all="ignore"):
        yield
    torch.set_num_threads(threads)
