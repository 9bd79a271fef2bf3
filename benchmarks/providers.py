"""The libraries that are compared: an adapter each, and a reason where one cannot run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributions as D

from onehot_triton import OneHotCategorical

Step = tuple[Tensor, Tensor, Tensor]
"""rsample, log_prob and entropy."""


class Provider(NamedTuple):
    """One library. Every call constructs its distribution from unnormalised logits.

    Attributes:
        step: construction, rsample, log_prob of the draw, entropy; None where the library has no such thing.
        validate_args: whether its class checks its arguments by default, as it is timed.
    """

    name: str
    sample: Callable[[Tensor], Tensor]
    step: Callable[[Tensor], Step] | None
    validate_args: bool | None


def _step(make: Callable[[Tensor], D.Distribution]) -> Callable[[Tensor], Step]:
    def step(x: Tensor) -> Step:
        dist = make(x)
        draw = dist.rsample()
        return draw, dist.log_prob(draw), dist.entropy()

    return step


def _ours() -> Provider:
    return Provider(
        "onehot_triton",
        lambda x: OneHotCategorical(logits=x).sample(),
        _step(lambda x: OneHotCategorical(logits=x)),
        OneHotCategorical(torch.zeros(2))._validate_args,
    )


def _torchrl() -> Provider:
    with warnings.catch_warnings():
        # Its import warns of optional packages and of what it will rename.
        warnings.simplefilter("ignore")
        from torchrl.modules import OneHotCategorical as TorchRL
    return Provider(
        "torchrl",
        lambda x: TorchRL(logits=x).sample(),  # pyright: ignore[reportCallIssue]
        _step(lambda x: TorchRL(logits=x)),
        TorchRL(logits=torch.zeros(2))._validate_args,
    )


def _torch() -> Provider:
    return Provider(
        "torch.distributions",
        lambda x: D.OneHotCategorical(logits=x).sample(),
        _step(lambda x: D.OneHotCategoricalStraightThrough(logits=x)),
        D.OneHotCategorical(torch.ones(2))._validate_args,
    )


def _gumbel_softmax() -> Provider:
    return Provider("F.gumbel_softmax", lambda x: F.gumbel_softmax(x, hard=True), None, None)


def providers() -> tuple[list[Provider], dict[str, str]]:
    """Ours first, then the others that are installed; and, by name, why one is missing.

    TorchRL is imported before anything is timed: its import turns torch.distributions' default validation off for the
    whole process, for all of them.
    """
    found, missing = [], {}
    makers = {"torchrl": _torchrl, "torch.distributions": _torch, "F.gumbel_softmax": _gumbel_softmax}
    for name, make in makers.items():
        try:
            found.append(make())
        except ImportError as error:
            missing[name] = f"cannot be imported: {error}"
    return [_ours(), *found], missing
