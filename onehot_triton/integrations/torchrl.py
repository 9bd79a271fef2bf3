"""TorchRL and tensordict: the tables in which they look a distribution up by its exact type or by its name."""

from __future__ import annotations

from types import ModuleType
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
      (tensordict 0.15 has made both of its tables private. A table that a version does not have is left out.)
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
        import tensordict.nn.probabilistic as tensordict_probabilistic
        import torchrl.modules.distributions as torchrl_distributions
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: pip install 'onehot_triton[torchrl]'"
        raise ImportError(message, name=error.name) from None
    for name, cls in NAMES.items():
        _table(torchrl_distributions, "HAS_ENTROPY")[cls] = True
        _table(torchrl_distributions, "distributions_maps")[str(cls).lower()] = cls
        _table(tensordict_distributions, "distributions_maps")[name.lower()] = cls
        by_type = _table(tensordict_probabilistic, "DETERMINISTIC_REGISTER")
        by_type[cls] = tensordict_probabilistic.InteractionType.MODE
    theirs = torchrl_distributions.OneHotCategorical, torchrl_distributions.MaskedOneHotCategorical
    for cls in theirs:
        kl.register_kl(OneHotCategorical, cls)(_kl_from_ours)
        kl.register_kl(cls, OneHotCategorical)(_kl_from_theirs)


def _table(module: ModuleType, name: str) -> dict[Any, Any]:
    """Return the table `name` of `module`, or the one that it has under a private name, or one that nobody reads.

    The module's dictionary is read, since tensordict 0.15 gives the public name by `__getattr__`, with a warning.
    """
    names = vars(module)
    return names.get(name, names.get(f"_{name}", {}))


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
