"""On a GPU no operation lets the host wait, nor copies a number of the host to the device: both stop the queue, and
neither can be captured. And a number costs no launch that fills a tensor with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_gpus import FakeGpus
from torch import Tensor
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onehot_triton import (
    MaskedOneHotCategorical,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    ReparamGradientStrategy,
    use_backend,
)

PASS_THROUGH, RELAXED = ReparamGradientStrategy.PassThrough, ReparamGradientStrategy.RelaxedOneHot
# The host waits for the number, or for how many there are.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "bincount",
}
FILLING = {"full", "fill_", "full_like", "scalar_tensor", "zeros", "ones", "lift_fresh"}


class Watch(TorchDispatchMode):
    """The operators that let the host wait, that have tensors of two devices, and that fill a tensor with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.filling: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        devices = {t.device for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        chosen = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or chosen or len(devices) > 1:
            self.waiting.append(str(func))
        if name in FILLING:
            self.filling.append(str(func))
        return out


def step(dist: Any) -> Tensor:
    draw = dist.rsample()
    return draw.sum() + dist.log_prob(draw).sum() + dist.entropy().sum()


def soft(x: Tensor, temperature: float | Tensor) -> Tensor:
    dist = RelaxedOneHotCategorical(temperature, logits=x)
    draw = dist.rsample((2,))
    log_draw = dist.base_dist.rsample()
    return draw.sum() + dist.log_prob(draw).sum() + dist.base_dist.log_prob(log_draw).sum()


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "sample": lambda x: OneHotCategorical(x).sample(),
    "sample_index": lambda x: OneHotCategorical(x).sample_index((3,)),
    "sample_and_log_prob": lambda x: OneHotCategorical(x).sample_and_log_prob()[1],
    "PassThrough": lambda x: step(OneHotCategorical(x, grad_method=PASS_THROUGH)),
    "RelaxedOneHot": lambda x: step(OneHotCategorical(x, grad_method=RELAXED, temperature=0.5)),
    "soft": lambda x: soft(x, 0.5),
    "soft, a tensor": lambda x: soft(x, torch.empty(8, device=x.device).exp()),
    "probs": lambda x: step(OneHotCategorical(probs=x.exp(), grad_method=RELAXED)),
    "unimix": lambda x: step(OneHotCategorical(x, unimix=0.01, grad_method=RELAXED)),
    "unimix, a tensor": lambda x: step(OneHotCategorical(x, unimix=x.detach().amax().sigmoid(), grad_method=RELAXED)),
    "masked": lambda x: step(MaskedOneHotCategorical(x, mask=x > 0, grad_method=RELAXED)),
    "log_prob_index": lambda x: OneHotCategorical(x).log_prob_index(x.detach().argmax(-1)),
    "moments": lambda x: OneHotCategorical(x).variance + OneHotCategorical(x).probs,
    "logits": lambda x: OneHotCategorical(x).logits,
    "KL": lambda x: kl_divergence(OneHotCategorical(x), OneHotCategorical(x.exp())),
}
OTHERS: dict[str, Callable[[Tensor], Any]] = {
    "mode": lambda x: OneHotCategorical(x).mode,
    "rmode": lambda x: OneHotCategorical(x).rmode,
    "indices": lambda x: MaskedOneHotCategorical(x, indices=x.detach().topk(3).indices, padding_value=-1).sample(),
    "support": lambda x: OneHotCategorical(x).enumerate_support(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_waits_or_copies(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On a fake GPU, where a copy between devices shows; no backward, for which torch asks a real device."""
    with FakeGpus(monkeypatch).tensors():
        x = torch.empty(8, 50, device="cuda:1")
        with Watch() as watch:
            OPERATIONS[name](x)
    assert watch.waiting == []
    assert watch.filling == []


@pytest.mark.parametrize("name", [*OPERATIONS, *OTHERS])
def test_no_backward_waits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On the CPU's tensors, with the kernels that a GPU would run; and what a fake GPU refuses."""
    FakeGpus(monkeypatch)
    # As on a GPU, where values are not checked unless it is asked for.
    torch.distributions.Distribution.set_default_validate_args(False)
    with use_backend("triton"):
        x = torch.randn(8, 50, requires_grad=True)
        with Watch() as watch:
            out = (OPERATIONS | OTHERS)[name](x)
            if out.requires_grad:
                out.sum().backward()
    assert watch.waiting == []
    assert "aten.lift_fresh.default" not in watch.filling


def test_a_wait_a_copy_and_a_fill_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3)
    with Watch() as watch:
        x[x > 0]
        x.sum().item()
        torch.tensor(2.0)
        torch.full((), 0.5)
    assert watch.waiting == ["aten.index.Tensor", "aten._local_scalar_dense.default"]
    assert watch.filling == ["aten.lift_fresh.default", "aten.full.default"]
    with FakeGpus(monkeypatch).tensors(), Watch() as watch:
        torch.empty(3).to("cuda:1")
        torch.where(torch.empty(3, device="cuda:1") > 0, torch.empty(()), torch.empty(3, device="cuda:1"))
    assert watch.waiting == ["aten._to_copy.default", "aten.where.self"]
