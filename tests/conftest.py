"""What every test starts from."""

import importlib.util
import os

import torch

# Read when triton.language is imported, so before anything can import it: without a GPU the kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onehot_triton import compute, rng, use_backend
from onehot_triton.compute import cpu

# The interpreter computes inf - inf and log 0 in NumPy, of rows that are not there too, and NumPy warns.
np.seterr(all="ignore")

if os.environ["TRITON_INTERPRET"] == "1" and importlib.util.find_spec("triton"):
    import quick_interpreter

    quick_interpreter.install()

# A program of its own, which compiles kernels where the tests interpret them.
collect_ignore = ["ptx"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="statistical checks of 10^8 draws (10^9 on a GPU)")
    parser.addoption("--without-cpu", action="store_true", help="the formulas of base.py in place of cpu.py")
    parser.addoption("--case", default="", help="of sharded_cases.py, those whose names contain this")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-cpu"):
        compute.BY_DEVICE.clear()
    config.addinivalue_line(
        "markers",
        "interpreted(argument=[values]): of the cases with backend=triton, those that are worth an interpreter's time",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("interpreted")
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        few = mark is not None and params.get("backend") == "triton"
        slow = few and any(params[name] not in values for name, values in mark.kwargs.items())
        (left_out if slow else kept).append(item)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(autouse=True)
def seed() -> None:
    """No test depends on those before it, and none fails only now and then."""
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def default_validation() -> Iterator[None]:
    """torch.compile and `import torchrl` turn torch's default validation off, for the process."""
    before = torch.distributions.Distribution._validate_args
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of small tensors: on busy cores, waiting for a second thread costs six times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[2**16, 0], ids=["as a small batch", "as a large batch"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of eager torch: small batches are recorded by autograd itself, their long rows drawn in one stage."""
    monkeypatch.setattr(cpu, "_SMALL", request.param)


@pytest.fixture
def set_uniforms(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes every uniform that eager torch draws by the one that is given."""

    def to(u: float) -> None:
        monkeypatch.setattr(rng, "uniform", lambda shape, *_: torch.full(shape, u, dtype=torch.float64))
        monkeypatch.setattr(rng, "uniform_like", lambda tensor, *_: torch.full(tensor.shape, u, dtype=torch.float64))

    return to


@pytest.fixture
def numpy_as_quiet_as_a_gpu() -> Iterator[None]:
    """The interpreter computes inf - inf and log 0 in NumPy, which warns where a GPU does not."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch, numpy_as_quiet_as_a_gpu: None) -> None:
    """Rows share programs, as if the GPU had one multiprocessor: interpreted, one runs after the other. What a launch
    changes is for tests/test_kernel_cases.py."""
    monkeypatch.setattr("onehot_triton.kernels.launch.FILL", 1)


@pytest.fixture(params=["eager", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both backends in turn. Interpreted kernels are slow: small cases, and few by the `interpreted` mark."""
    if request.param == "triton":
        if os.environ["TRITON_INTERPRET"] != "1":
            pytest.skip("compiled kernels take no CPU tensors")
        request.getfixturevalue("few_programs")
    with use_backend(request.param):
        yield request.param
