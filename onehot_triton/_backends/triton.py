"""The kernels, by way of their operators in `torch_ops.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from .. import rng
from ..rng import Seed
from ..tensors import compute_dtype
from ..torch_ops import called
from .eager import argmax, one_hot, rsample_log_prob_and_entropy, straight_through  # noqa: F401
from .interface import Sample, ShardRace

reads_masks = True

_sample, _relaxed, _relaxed_grad, _soft_grad = map(called, ("sample", "relaxed", "relaxed_grad", "soft_grad"))
_softmax_grad, _logsumexp, _entropy, _entropy_grad = map(
    called, ("softmax_grad", "logsumexp", "entropy", "entropy_grad")
)
_shard_race = called("shard_race")
_reinmax_grad, _gapped_grad = map(called, ("reinmax_grad", "gapped_grad"))
_log_prob, _log_prob_index, _log_prob_grad = map(called, ("log_prob", "log_prob_index", "log_prob_grad"))
_log_prob_and_entropy, _log_prob_and_entropy_grad = map(called, ("log_prob_and_entropy", "log_prob_and_entropy_grad"))


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
    given = None if draws == 1 else draws
    hot, index, logsumexp = _sample(logits, given, dtype, seed.tensor, seed.key, seed.offset, seed.first_row, mask)
    return Sample(None if dtype is None else hot, index, logsumexp, False, None)


def shard_race(logits: Tensor, draws: int, seed: Seed, first_group: int) -> ShardRace:
    index, score, sums = _shard_race(logits, draws, seed.tensor, seed.key, seed.offset, seed.first_row, first_group)
    return ShardRace(index, score, *sums.unbind())


def _either(temperature: Tensor | float) -> tuple[Tensor | None, float]:
    """The two arguments of an operator that takes either: the number counts where the tensor is None."""
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


def relaxed(logits: Tensor, temperature: Tensor | float, draws: int, seed: Seed) -> Tensor:
    return _relaxed(logits, *_either(temperature), draws, seed.tensor, seed.key, seed.offset, seed.first_row)


def softmax_grad(logits: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None) -> Tensor:
    return _softmax_grad(logits, logsumexp, grad, mask)


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
    args = (
        index,
        grad,
        *_either(temperature),
        seed.tensor,
        seed.key,
        seed.offset,
        seed.first_row,
        mask,
        with_temperature,
        samples,
    )
    # It must have the noise of its draw, which torch's operations do not draw.
    with torch.no_grad():
        out, dt = _relaxed_grad(logits, logsumexp, *args)
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
    return _reinmax_grad(logits, logsumexp, index, grad, *_either(temperature), mask)


def gapped_grad(
    logits: Tensor,
    index: Tensor,
    grad: Tensor,
    temperature: Tensor | float,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
) -> Tensor:
    return _gapped_grad(logits, logsumexp, index, grad, *_either(temperature), mask)


def soft_grad(
    y: Tensor, grad: Tensor, temperature: Tensor | float, with_temperature: bool = False
) -> tuple[Tensor, Tensor | None]:
    dx, dt = _soft_grad(y, grad, *_either(temperature), with_temperature)
    return dx, dt if with_temperature else None


def log_prob(
    logits: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    out, index, new = _log_prob(logits, logsumexp, value, mask, hint)
    return out, index, new if logsumexp is None else None


def log_prob_index(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor | None]:
    new = _logsumexp(logits, mask) if logsumexp is None else None
    return _log_prob_index(logits, new if logsumexp is None else logsumexp, index, mask), new


def log_prob_grad(
    logits: Tensor, index: Tensor, grad: Tensor, mask: Tensor | None = None, logsumexp: Tensor | None = None
) -> Tensor:
    return _log_prob_grad(logits, logsumexp, index, grad, mask)


def entropy(logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    return _entropy(logits, mask)


def entropy_grad(
    logits: Tensor,
    grad: Tensor,
    mask: Tensor | None = None,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
) -> Tensor:
    return _entropy_grad(logits, logsumexp, entropy, grad, mask)


def log_prob_and_entropy(
    logits: Tensor, index: Tensor, mask: Tensor | None = None, inside: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _log_prob_and_entropy(logits, index, mask)


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
    args = index, grad_log_prob, grad_entropy, mask, grad
    return _log_prob_and_entropy_grad(logits, logsumexp, entropy, *args)
