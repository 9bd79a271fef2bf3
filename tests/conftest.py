"""What every test starts from."""

import os

# Read when triton.language is imported, so before anything can import it: a CPU interprets the kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from onehot_triton import use_backend

# Compiled kernels take no CPU tensors, interpreted ones take those of any device.
_INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
_KERNELS = all(
    importlib.util.find_spec(f"onehot_triton.kernels.{name}")
    for name in ("sample", "relaxed", "softmax_grad", "log_prob", "entropy")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """No test depends on those before it, and none fails only now and then."""
    torch.manual_seed(20)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of small tensors: on busy cores, waiting for a second thread costs six times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["eager", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both backends in turn. Interpreted kernels are slow: few and small cases."""
    if request.param == "triton" and not (_KERNELS and _INTERPRETED):
        pytest.skip("needs the interpreted kernels")
    with use_backend(request.param):
        yield request.param
