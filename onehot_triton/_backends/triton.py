"""The kernels, by way of their operators in `library.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from .. import rng
from ..library import operators
from ..rng import Seed
from ..tensors import compute_dtype
from .eager import argmax, one_hot, straight_through  # noqa: F401
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


def sample(
    logits: Tensor, mask: Tensor | None, draws: int, dtype: torch.dtype | None, seed: Seed, again: bool
) -> Sample:
    hot, index, logsumexp = operators.sample(logits, draws, dtype, *seed.of_kernel, mask)
    return Sample(None if dtype is None else hot, index, logsumexp, False, None)


def shard_race(logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
    index, score, sums = operators.shard_race(logits, draws, *seed.of_kernel, first_group)
    return ShardRace(index, score, *sums.unbind())


def _either(temperature: Tensor | float) -> tuple[Tensor | None, float]:
    """The two arguments of an operator that takes either: the number counts where the tensor is None."""
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


def relaxed(logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
    return operators.relaxed(logits, *_either(temperature), draws, *seed.of_kernel)


def softmax_grad(logits: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None) -> Tensor:
    return operators.softmax_grad(logits, logsumexp, grad, mask)


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
) -> tuple[Tensor, Tensor | None]:
    args = index, grad, *_either(temperature), *seed.of_kernel, mask, with_temperature
    # It must have the noise of its draw, which torch's operations do not draw.
    with torch.no_grad():
        out, dt = operators.relaxed_grad(logits, logsumexp, *args)
    if torch.is_grad_enabled():
        out, dt = (_NoSecondDerivative.apply(gradient, logits, grad, temperature) for gradient in (out, dt))
    return out, dt if with_temperature else None


def _with_draws(tensor: Tensor, dim: int) -> Tensor:
    """`tensor` with the dimension of draws, which a single one can be without."""
    return tensor if tensor.dim() == dim else tensor.unsqueeze(0)


def log_prob(
    logits: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    hint = None if hint is None else _with_draws(hint, 2)
    out, index, new = operators.log_prob(logits, logsumexp, _with_draws(value, 3), mask, hint)
    return out, index, new if logsumexp is None else None


def log_prob_index(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor | None]:
    new = operators.logsumexp(logits, mask) if logsumexp is None else None
    return operators.log_prob_index(logits, new if logsumexp is None else logsumexp, _with_draws(index, 2), mask), new


def log_prob_grad(
    logits: Tensor, index: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None
) -> Tensor:
    return operators.log_prob_grad(logits, logsumexp, index, grad, mask)


def entropy(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return operators.entropy(logits, mask)


def entropy_grad(
    logits: Tensor,
    grad: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Tensor:
    return operators.entropy_grad(logits, logsumexp, entropy, grad, mask)
