"""How many Python functions a call enters above Triton's own launch: for small batches that is what it costs."""

from __future__ import annotations

import _collections_abc
import os
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
import triton
from fake_gpus import FakeGpus, on_tensors_of_a_cpu
from torch import Tensor
from torch.utils import _pytree as pytree

from onehot_triton import OneHotCategorical, ReparamGradientStrategy, ops, parameters, use_backend
from onehot_triton.compute import cpu

PASS, REINMAX = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.ReinMax
GAPPED = ReparamGradientStrategy.GappedStraightThrough

# Triton's launch, and how a CPU asks whether it interprets.
OTHERS = (
    *(f"{triton.__path__[0]}/{part}" for part in ("runtime", "backends", "knobs")),
    # The second names are those of Python 3.10.
    "<frozen os>",
    os.__file__,
    "<frozen _coll",
    _collections_abc.__file__,
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return on_tensors_of_a_cpu(monkeypatch)


def entered(call: Callable[[], Any]) -> Counter[str]:
    """The functions that the second call of `call` enters, but for those of `OTHERS` and of the stand-ins."""
    call()
    found: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and not file.startswith(OTHERS) and not file.endswith(("fake_gpus.py", __file__)):
            found[f"{file.rpartition('/')[2]}: {name}"] += 1

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("shape", [(64, 18), (1024, 32), (300, 5000), (2, 100_000)], ids=str)
def test_calls_of_a_sample(gpu: FakeGpus, shape: tuple[int, int]) -> None:
    """To make a distribution and draw from it: half of what it was before calls were counted."""
    x = torch.randn(shape)
    with use_backend("triton"):
        found = entered(lambda: OneHotCategorical(x, validate_args=False).sample())
    assert len(gpu.launches) >= 2
    assert found.total() <= 80, found.most_common()


def train_step(shape: tuple[int, int], method: ReparamGradientStrategy) -> Callable[[], Any]:
    """Construct, rsample, log_prob, entropy, backward."""
    x = torch.randn(shape, requires_grad=True)
    grads = torch.randn(shape), torch.randn(shape[0]), torch.randn(shape[0])

    def step() -> None:
        dist = OneHotCategorical(x, grad_method=method, validate_args=False)
        draw = dist.rsample()
        torch.autograd.grad([draw, dist.log_prob(draw), dist.entropy()], x, grads)

    return step


@pytest.mark.parametrize("shape", [(64, 18), (1024, 32), (300, 5000)], ids=str)
@pytest.mark.parametrize("method", [PASS, REINMAX, GAPPED], ids=str)
def test_calls_of_a_train_step(gpu: FakeGpus, shape: tuple[int, int], method: ReparamGradientStrategy) -> None:
    """torch's own backward enters 40 of them."""
    with use_backend("triton"):
        found = entered(train_step(shape, method))
    assert len(gpu.launches) == 12
    assert found.total() <= (350 if method is PASS else 365), found.most_common()


@pytest.mark.parametrize(
    ("shape", "method", "limit"),
    [((64, 6), PASS, 165), ((64, 6), REINMAX, 225), ((64, 6), GAPPED, 225), ((1024, 128), PASS, 350)],
    ids=str,
)
def test_calls_of_a_train_step_on_a_cpu(shape: tuple[int, int], method: ReparamGradientStrategy, limit: int) -> None:
    found = entered(train_step(shape, method))
    assert found.total() <= limit, found.most_common()


OPERATIONS: dict[str, Callable[[Tensor, Tensor, Any], Any]] = {
    **{
        f"rsample, {method}": lambda x, t, _, method=method: ops.rsample(x, None, ops.Draw((2,), x.dtype), method, t, 2)
        for method in ReparamGradientStrategy
    },
    "relaxed_sample": lambda x, t, _: ops.relaxed_sample(x, t, ops.Draw((2,), x.dtype)),
    "log_prob": lambda x, _, eye: ops.log_prob(x, None, None, value=eye),
    "log_prob of an index": lambda x, _, eye: ops.log_prob(x, eye > 0, None, index=eye.argmax(-1)),
    "entropy": lambda x, *_: ops.entropy(x, None),
    "both": lambda x, _, eye: ops.log_prob_and_entropy(x, None, value=eye),
    "a draw with both": lambda x, *_: ops.rsample_log_prob_and_entropy(x, None, ops.Draw((2,), x.dtype)),
    "logits of probs": lambda x, *_: parameters.logits_of(x.exp(), True, 0.0, None)[0],
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_recorded_is_what_torch_records(operation: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ops.apply` spares what `Function.apply` does first: results, gradients, second derivatives are the same."""
    monkeypatch.setattr(cpu, "_SMALL", 0)
    x, t, eye = torch.randn(3, 8), torch.tensor([0.5, 1.0, 2.0]), torch.eye(8)[:3]

    def recorded() -> tuple[list[Any], list[Any]]:
        torch.manual_seed(3)
        leaves = [x.clone().requires_grad_(), t.clone().requires_grad_()]
        tensors = [leaf for leaf in pytree.tree_leaves(OPERATIONS[operation](*leaves, eye)) if isinstance(leaf, Tensor)]
        found: list[Any] = [tensor.detach() for tensor in tensors]
        for tensor in tensors:
            if tensor.requires_grad:
                # Each by itself: what the others have is no gradient, not one of zeros.
                grads = torch.autograd.grad(tensor.square().sum(), leaves, allow_unused=True, create_graph=True)
                found += grads
                if "RelaxedOneHot" not in operation and grads[0] is not None and grads[0].requires_grad:
                    second = grads[0].square().sum()
                    found += torch.autograd.grad(second, leaves, allow_unused=True, retain_graph=True)
        return [tensor.grad_fn and tensor.grad_fn.name() for tensor in tensors], found

    names, found = recorded()
    for module in (ops, parameters):
        monkeypatch.setattr(module, "apply", lambda function, *args: function.apply(*args))
    expected_names, expected = recorded()
    assert any(names)
    assert names == expected_names
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_a_profiler_sees_operators(gpu: FakeGpus) -> None:
    """Where nobody watches, a launcher is called without the dispatcher."""
    x = torch.randn(8, 18)
    with use_backend("triton"), torch.autograd.profiler.profile() as profile:
        OneHotCategorical(x, validate_args=False).sample()
    assert "onehot_triton::sample" in {event.name for event in profile.function_events or ()}
