"""Several GPUs: a kernel is launched, and a seed taken, where the tensors are, whichever GPU is the current one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_gpus import FakeGpus, Generator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from onehot_triton import MaskedOneHotCategorical, OneHotCategorical, RelaxedOneHotCategorical, ReparamGradientStrategy
from onehot_triton.kernels import (
    entropy,
    log_prob,
    log_prob_and_entropy,
    relaxed,
    sample,
    soft_grad,
    softmax_grad,
    straight_through,
)

METHODS = tuple(ReparamGradientStrategy)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return FakeGpus(monkeypatch)


# The launchers --------------------------------------------------------------------------------------------------------


class Given:
    """Tensors of a launcher, on a GPU."""

    def __init__(self, columns: int, device: str, draws: int = 1, rows: int = 2) -> None:
        self.x = torch.empty(rows, columns, device=device)
        self.per_row = torch.empty(rows, device=device)
        self.per_draw = torch.empty(draws, rows, device=device)
        self.index = torch.empty(draws, rows, device=device, dtype=torch.int64)
        self.value = torch.empty(draws, rows, columns, device=device)
        self.draws = draws


LAUNCHERS: dict[str, Callable[[Given], Any]] = {
    "sample": lambda a: sample.sample(a.x, a.draws, torch.bool, 5, 8),
    "shard_race": lambda a: sample.shard_race(a.x, a.draws, 5, 8, 0, 0),
    "relaxed": lambda a: relaxed.relaxed(a.x, a.per_row, a.draws, 5, 8),
    "relaxed_grad": lambda a: relaxed.relaxed_grad(a.x, a.per_row, a.index, a.value, a.per_row, 5, 8),
    "soft_grad": lambda a: soft_grad.soft_grad(a.value, a.value, a.per_row, True),
    "softmax_grad": lambda a: softmax_grad.softmax_grad(a.x, a.per_row, a.x),
    "reinmax_grad": lambda a: straight_through.reinmax_grad(a.x, a.per_row, a.index, a.value, a.per_row),
    "gapped_grad": lambda a: straight_through.gapped_grad(a.x, a.per_row, a.index, a.value, a.per_row),
    "log_prob": lambda a: log_prob.log_prob(a.x, None, a.value),
    "log_prob_index": lambda a: log_prob.log_prob_index(a.x, a.per_row, a.index),
    "log_prob_grad": lambda a: log_prob.log_prob_grad(a.x, a.per_row, a.index, a.per_draw),
    "logsumexp": lambda a: entropy.logsumexp(a.x),
    "entropy": lambda a: entropy.entropy(a.x),
    "entropy_grad": lambda a: entropy.entropy_grad(a.x, a.per_row, a.per_row, a.per_row),
    "log_prob_and_entropy": lambda a: log_prob_and_entropy.log_prob_and_entropy(a.x, a.index),
    "log_prob_and_entropy_grad": lambda a: log_prob_and_entropy.log_prob_and_entropy_grad(
        a.x, a.per_row, a.per_row, a.index, a.per_draw, a.per_row
    ),
}


def test_every_launcher_is_there() -> None:
    modules = (entropy, log_prob, log_prob_and_entropy, relaxed, sample, soft_grad, softmax_grad, straight_through)
    defined = {
        name
        for module in modules
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "__wrapped__")
    }
    assert defined == set(LAUNCHERS)


@pytest.mark.parametrize("columns", [18, 5000, 100_000])
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_launches_where_its_tensors_are(gpus: FakeGpus, name: str, columns: int) -> None:
    """On the current stream of their GPU; the GPU that was the current one is it again."""
    with gpus.tensors():
        for draws in (1, 3):
            LAUNCHERS[name](Given(columns, "cuda:1", draws))
    assert gpus.launches
    assert {(launch.device, launch.stream) for launch in gpus.launches} == {(1, 1001)}
    assert gpus.current == 0


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_switches_no_gpu_on_the_current_one(gpus: FakeGpus, name: str) -> None:
    gpus.current = 1
    with gpus.tensors():
        LAUNCHERS[name](Given(5000, "cuda:1"))
    assert {launch.device for launch in gpus.launches} == {1}
    assert gpus.switches == 0


def test_the_current_gpu_is_restored_after_an_error(gpus: FakeGpus) -> None:
    with gpus.tensors():
        given = Given(18, "cuda:1")
        with pytest.raises(ValueError, match="offset: expected at least 0"):
            sample.sample(given.x, 1, None, 5, -4)
    assert gpus.switches == 1
    assert gpus.current == 0


def test_the_multiprocessors_are_those_of_each_gpu(gpus: FakeGpus) -> None:
    """Asked for once."""
    gpus.multiprocessors = [132, 40]
    with gpus.tensors():
        for device in ("cuda:1", "cuda:0", "cuda:1"):
            LAUNCHERS["softmax_grad"](Given(100_000, device, rows=300))
    assert [launch.grid[0] for launch in gpus.launches] == [40, 132, 40]
    assert gpus.asked == [1, 0]


# The library ----------------------------------------------------------------------------------------------------------


def forward(x: Tensor, generator: Any = None) -> None:
    """Every operation without its backward: a gradient asks a real device for its streams."""
    dist = OneHotCategorical(x, grad_method=METHODS[0])
    dist.sample()
    drawn = dist.rsample(generator=generator)
    dist.log_prob(drawn)
    dist.sample_and_log_prob()
    dist.log_prob_index(dist.sample_index())
    dist.entropy()
    RelaxedOneHotCategorical(0.5, logits=x).rsample()
    MaskedOneHotCategorical(x, mask=x > 0).rsample()


@pytest.mark.parametrize("current", [0, 1])
def test_the_library_computes_where_its_tensors_are(gpus: FakeGpus, current: int) -> None:
    gpus.current = current
    with gpus.tensors():
        forward(torch.empty(300, 5000, device="cuda:1"))
    assert {(launch.device, launch.stream) for launch in gpus.launches} == {(1, 1001)}
    assert gpus.current == current
    assert bool(gpus.switches) == (current == 0)
    # Six draws, each of which moves the generator of its GPU alone.
    assert [generator.offset for generator in gpus.generators] == [0, 24]


@pytest.mark.parametrize("captured", [0, 1])
def test_the_capture_that_counts_is_that_of_the_tensors_gpu(gpus: FakeGpus, captured: int) -> None:
    gpus.captured.add(captured)
    with gpus.tensors() as operators:
        OneHotCategorical(torch.empty(2, 18, device="cuda:1")).sample()
    # A seed that a replay draws anew is on the device; else it is the host's.
    assert ("aten.randint.default" in operators) == (captured == 1)
    assert gpus.generators[1].offset == (0 if captured == 1 else 4)
    assert gpus.current == 0


# Two devices in one call ----------------------------------------------------------------------------------------------


def one_hot(device: str) -> OneHotCategorical:
    return OneHotCategorical(torch.empty(2, 3, device=device), validate_args=False)


TWO_DEVICES: dict[str, Callable[[str, str], Any]] = {
    "mask": lambda a, b: MaskedOneHotCategorical(
        torch.empty(2, 3, device=a), mask=torch.empty(2, 3, device=b, dtype=torch.bool)
    ),
    "indices": lambda a, b: MaskedOneHotCategorical(
        torch.empty(2, 3, device=a), indices=torch.empty(2, 3, device=b, dtype=torch.int64)
    ),
    "temperature": lambda a, b: RelaxedOneHotCategorical(torch.empty((), device=b), logits=torch.empty(2, 3, device=a)),
    "value": lambda a, b: one_hot(a).log_prob(torch.empty(2, 3, device=b)),
    "index": lambda a, b: one_hot(a).log_prob_index(torch.empty(2, device=b, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", TWO_DEVICES)
@pytest.mark.parametrize("devices", [("cuda:1", "cuda:0"), ("cuda:0", "cpu"), ("cpu", "cuda:1")])
def test_tensors_on_two_devices(name: str, devices: tuple[str, str]) -> None:
    here, there = devices
    with FakeTensorMode():
        expected = rf"^{name}: expected a tensor on {here}, as the parameters, found one on {there}$"
        with pytest.raises(ValueError, match=expected):
            TWO_DEVICES[name](here, there)


def test_the_temperature_of_a_draw_on_another_device() -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match=r"^temperature: expected a tensor on cuda:1, .* on cpu$"):
        OneHotCategorical(
            torch.empty(2, 3, device="cuda:1"), grad_method=METHODS[1], temperature=torch.empty((), device="cpu")
        )


def test_a_unimix_of_another_gpu() -> None:
    """One of the CPU is a number to a kernel."""

    def dist(device: str) -> OneHotCategorical:
        return OneHotCategorical(torch.empty(2, 3, device="cuda:1"), unimix=torch.empty(1, device=device))

    with FakeTensorMode():
        assert dist("cpu").probs.device == torch.device("cuda:1")
        with pytest.raises(ValueError, match=r"^unimix: expected a tensor on cuda:1, .* on cuda:0$"):
            dist("cuda:0")


def test_a_generator_of_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # A torch without CUDA makes no generator of a GPU.
    monkeypatch.setattr(torch, "Generator", Generator)
    generator: Any = Generator(0)
    with FakeTensorMode():
        expected = "^generator: expected one on cuda:1, as the parameters, found one on cuda:0$"
        for draw in (one_hot("cuda:1").sample, one_hot("cuda:1").rsample, one_hot("cuda:1").sample_index):
            with pytest.raises(ValueError, match=expected):
                draw(generator=generator)
        with pytest.raises(ValueError, match=expected):
            RelaxedOneHotCategorical(0.5, logits=torch.empty(2, 3, device="cuda:1")).rsample(generator=generator)


def test_what_a_gpu_adds_in_any_order_is_torchs_own(gpus: FakeGpus) -> None:
    """Beside the kernels, of which none has an atomic addition: torch gives `scatter_add_` one order under
    `use_deterministic_algorithms`."""
    with gpus.tensors() as operators:
        for name in LAUNCHERS:
            operators.clear()
            LAUNCHERS[name](Given(18, "cuda:0", 3))
            added = [operator for operator in operators if "scatter" in operator or "index_" in operator]
            assert added == (["aten.scatter_add_.default"] if name == "log_prob_grad" else [])
    deterministic, _, others = torch.use_deterministic_algorithms.__doc__.partition(
        "will throw a\n    :class:`RuntimeError` when ``mode"
    )
    assert "scatter_add_` when called on a CUDA tensor" in deterministic
    assert "scatter_add_" not in others
    for module in (entropy, log_prob, relaxed, sample, soft_grad, softmax_grad):
        assert "atomic" not in inspect.getsource(module)
