"""TorchRL and tensordict: the tables in which they look a distribution up by its exact type or by its name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl

from ..distribution import OneHotCategorical, law_of
from ..masked import MaskedOneHotCategorical

NAMES = {f"onehot_triton.{cls.__name__}": cls for cls in (OneHotCategorical, MaskedOneHotCategorical)}
"""What tensordict knows each class as, where `distribution_class` is given as a string."""


def register() -> None:
    """Enters the classes of `NAMES` into tables of TorchRL, tensordict and torch. A second call changes nothing.

    - torchrl.modules.distributions.HAS_ENTROPY, without which code that asks it samples the entropy instead.
      (TorchRL 0.14 itself asks a class for `entropy`, and has it exact without this.)
    - torchrl.modules.distributions_maps, by a class's own repr, as TorchRL's classes.
    - tensordict.nn.distributions.distributions_maps, by name. The short names stay tensordict's own classes.
    - tensordict.nn.probabilistic.DETERMINISTIC_REGISTER, which decides for a distribution that is wrapped in
      torch.distributions.Independent; without it, tensordict warns and guesses.
    - torch.distributions.kl: kl_divergence between these classes and TorchRL's, masked or not, either way round.

    It imports TorchRL, which turns torch's default validation of arguments off for the process.

    Raises:
        ImportError: TorchRL is not installed.

    Example:
        >>> from onehot_triton.integrations.torchrl import register
        >>> register()  # doctest: +SKIP
        >>> from torchrl.modules.distributions import HAS_ENTROPY  # doctest: +SKIP
        >>> HAS_ENTROPY[OneHotCategorical]  # doctest: +SKIP
        True
    """
    try:
        import tensordict.nn.distributions as tensordict_distributions
        import torchrl.modules.distributions as torchrl_distributions
        from tensordict.nn.probabilistic import DETERMINISTIC_REGISTER, InteractionType
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'onehot_triton[torchrl]'"
        raise ImportError(message, name=error.name) from None
    # The tables' own annotations know TorchRL's classes alone.
    by_type: dict[Any, Any] = torchrl_distributions.HAS_ENTROPY
    by_repr: dict[Any, Any] = torchrl_distributions.distributions_maps
    by_name: dict[Any, Any] = tensordict_distributions.distributions_maps
    for name, cls in NAMES.items():
        by_type[cls] = True
        by_repr[str(cls).lower()] = cls
        by_name[name.lower()] = cls
        DETERMINISTIC_REGISTER[cls] = InteractionType.MODE
    theirs = torchrl_distributions.OneHotCategorical, torchrl_distributions.MaskedOneHotCategorical
    for cls in theirs:
        kl.register_kl(OneHotCategorical, cls)(_kl_from_ours)
        kl.register_kl(cls, OneHotCategorical)(_kl_from_theirs)


def _kl_from_ours(p: OneHotCategorical, q: Any) -> Tensor:
    return kl.kl_divergence(p, _ours(q))


def _kl_from_theirs(p: Any, q: OneHotCategorical) -> Tensor:
    return kl.kl_divergence(_ours(p), q)


def _ours(dist: Any) -> Distribution:
    """The distribution of TorchRL's `dist`, in this library's class."""
    if not getattr(dist, "_sparse_mask", False):
        return law_of(dist)
    # With `indices`, they have a column for each entry; a column more takes those that stand for no category.
    logits, columns = dist.logits, dist.num_samples
    indices = dist._mask.expand(logits.shape)
    indices = torch.where(logits == -torch.inf, columns, indices)
    full = logits.new_full((*logits.shape[:-1], columns + 1), -torch.inf)
    return OneHotCategorical(full.scatter(-1, indices, logits)[..., :columns])
