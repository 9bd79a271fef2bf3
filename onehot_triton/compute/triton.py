"""The kernels, called through their operators in `torch_ops.py`.

Most kernels of a backward need what the forward computed: where one does, `logsumexp` and `entropy` are never None.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from .. import rng, torch_ops
from ..rng import Seed
from ..tensors import compute_dtype
from .base import argmax, one_hot, relaxed_log_prob, rsample_log_prob_and_entropy, straight_through  # noqa: F401
from .interface import Sample, ShardRace

reads_masks = True


def records(logits: Tensor, relaxed: bool = False) -> bool:
    return False


def relaxes_first(logits: Tensor, draws: int) -> bool:
    return False


def new_seed(logits: Tensor, generator: torch.Generator | None) -> Seed:
    return rng.next_seed(logits, generator)


# torch's own, which are one kernel on a GPU.


def softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1, dtype=compute_dtype(logits.dtype))


def log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, -1, dtype=compute_dtype(logits.dtype))


def _noise(seed: Seed) -> tuple[int | Tensor, int, int]:
    """Return what a launcher takes for the noise: seed, offset, row_offset."""
    return seed.seed if seed.tensor is None else seed.tensor, seed.offset, seed.row_offset


def sample(
    logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool
) -> Sample:
    given = None if draws == 1 else draws
    hot, index, logsumexp = torch_ops.sample(logits, given, dtype, *_noise(seed), mask)
    return Sample(None if dtype is None else hot, index, logsumexp, False, None)


def shard_race(logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
    index, score, sums = torch_ops.shard_race(logits, draws, *_noise(seed), first_group)
    return ShardRace(index, score, *sums.unbind())


def relaxed(logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
    return torch_ops.relaxed(logits, temperature, draws, *_noise(seed))


def softmax_grad(logits: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None) -> Tensor:
    logsumexp = torch_ops.logsumexp(logits, mask) if logsumexp is None else logsumexp
    return torch_ops.softmax_grad(logits, logsumexp, grad, mask)


class _NoSecondDerivative(Function):
    """A gradient that a kernel computed, of `sources`: in a graph it can be used, but not differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, *sources):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("rsample: the RelaxedOneHot gradient of a kernel has no second derivative")


def relaxed_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    seed: Seed,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    with_temperature: bool = False,
    samples: int = 1,
) -> tuple[Tensor, Tensor | None]:
    assert logsumexp is not None
    args = index, grad, temperature, *_noise(seed), mask, with_temperature, samples
    # It must have the noise of its draw, which torch's operations do not draw.
    with torch.no_grad():
        out, dt = torch_ops.relaxed_grad(logits, logsumexp, *args)
    if torch.is_grad_enabled():
        out, dt = (_NoSecondDerivative.apply(gradient, logits, grad, temperature) for gradient in (out, dt))
    return out, dt if with_temperature else None


def reinmax_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
) -> Tensor:
    assert logsumexp is not None
    return torch_ops.reinmax_grad(logits, logsumexp, index, grad, temperature, mask)


def gapped_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
) -> Tensor:
    assert logsumexp is not None
    return torch_ops.gapped_grad(logits, logsumexp, index, grad, temperature, mask)


def soft_grad(
    y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
) -> tuple[Tensor, Tensor | None]:
    dx, dt = torch_ops.soft_grad(y, grad, temperature, with_temperature)
    return dx, dt if with_temperature else None


def log_prob(
    logits: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    out, index, new = torch_ops.log_prob(logits, logsumexp, value, mask, hint)
    return out, index, new if logsumexp is None else None


def log_prob_index(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor | None]:
    new = None
    if logsumexp is None:
        logsumexp = new = torch_ops.logsumexp(logits, mask)
    return torch_ops.log_prob_index(logits, logsumexp, index, mask), new


def log_prob_grad(
    logits: Tensor, index: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None
) -> Tensor:
    assert logsumexp is not None
    return torch_ops.log_prob_grad(logits, logsumexp, index, grad, mask)


def entropy(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return torch_ops.entropy(logits, mask)


def entropy_grad(
    logits: Tensor,
    grad: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Tensor:
    assert logsumexp is not None
    assert entropy is not None
    return torch_ops.entropy_grad(logits, logsumexp, entropy, grad, mask)


def log_prob_and_entropy(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    return torch_ops.log_prob_and_entropy(logits, index, mask)


def log_prob_and_entropy_grad(
    logits: Tensor,
    index: Tensor,
    grad_log_prob: Tensor,
    grad_entropy: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
    grad: Tensor | None = None,
) -> Tensor:
    assert logsumexp is not None
    assert entropy is not None
    args = index, grad_log_prob, grad_entropy, mask, grad
    return torch_ops.log_prob_and_entropy_grad(logits, logsumexp, entropy, *args)
