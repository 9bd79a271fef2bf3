"""The classes as Pyro's distributions, for `pyro.sample` as they are. Importing this module imports Pyro."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import distribution, masked, relaxed

try:
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ModuleNotFoundError as error:
    raise ImportError(f"{error.name} is not installed: pip install pyro-ppl", name=error.name) from None

__all__ = [
    "MaskedOneHotCategorical",
    "OneHotCategorical",
    "RelaxedOneHotCategorical",
    "RelaxedOneHotCategoricalStraightThrough",
]


class OneHotCategorical(distribution.OneHotCategorical, TorchDistributionMixin):
    """`onehot_triton.OneHotCategorical` with the conventions of Pyro's class of that name: probs come first, and draws
    have the parameters' dtype.

    Args:
        probs: [*batch, columns], as for `onehot_triton.OneHotCategorical`; or
        logits: [*batch, columns] in its place.
        dtype: of `sample`, `mode` and `enumerate_support`; None for that of the parameters.
        options: all others of `onehot_triton.OneHotCategorical`, by their names. With a `grad_method`, Pyro takes the
            gradient through the draw; without one, the score function's.

    Raises:
        ValueError: as `onehot_triton.OneHotCategorical`.

    Example:
        >>> import pyro
        >>> from onehot_triton.integrations.pyro import OneHotCategorical
        >>> pyro.sample("action", OneHotCategorical(torch.tensor([0.0, 1.0])))
        tensor([0., 1.])
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(logits, probs, dtype=_dtype(dtype, probs, logits), **options)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> OneHotCategorical:
        new: Any = self._get_checked_instance(OneHotCategorical, _instance)
        return super().expand(batch_shape, new)  # pyright: ignore[reportReturnType]

    @staticmethod
    def infer_shapes(
        probs: torch.Size | None = None, logits: torch.Size | None = None, **others: torch.Size
    ) -> tuple[torch.Size, torch.Size]:
        """The batch and event shape for parameters of these shapes, as Pyro asks for them."""
        return _infer_shapes(probs, logits)


class MaskedOneHotCategorical(masked.MaskedOneHotCategorical, TorchDistributionMixin):
    """`onehot_triton.MaskedOneHotCategorical` with the conventions of Pyro: probs come first, and draws have the
    parameters' dtype.

    `.mask(observed)` is Pyro's method, which leaves batch elements out of the log-density, as everywhere in Pyro and in
    `pyro.poutine.mask`. The mask of categories, the attribute `mask` of the base class, is `category_mask` here.

    Args:
        probs: [*batch, columns], as for `onehot_triton.MaskedOneHotCategorical`; or
        logits: [*batch, columns] in its place.
        mask: of categories, as for `onehot_triton.MaskedOneHotCategorical`; or
        indices: integers [*batch, n] in its place.
        dtype: as for `OneHotCategorical`.
        options: all others of `onehot_triton.MaskedOneHotCategorical`, by their names.

    Raises:
        ValueError: as `onehot_triton.MaskedOneHotCategorical`.
    """

    mask = TorchDistributionMixin.mask  # pyright: ignore[reportAssignmentType]

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        mask: Tensor | None = None,
        indices: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__(logits, probs, mask, indices, dtype=_dtype(dtype, probs, logits), **options)

    @property
    def category_mask(self) -> Tensor:
        """bool [*batch, columns], True where a category can be drawn."""
        assert self._mask is not None
        return self._mask

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MaskedOneHotCategorical:
        return super().expand(batch_shape, self._get_checked_instance(MaskedOneHotCategorical, _instance))  # pyright: ignore[reportReturnType]

    @staticmethod
    def infer_shapes(
        probs: torch.Size | None = None,
        logits: torch.Size | None = None,
        mask: torch.Size | None = None,
        indices: torch.Size | None = None,
        **others: torch.Size,
    ) -> tuple[torch.Size, torch.Size]:
        """The batch and event shape for arguments of these shapes, as Pyro asks for them."""
        batch, event = _infer_shapes(probs, logits)
        allowed = indices if mask is None else mask
        return (batch if allowed is None else torch.broadcast_shapes(batch, allowed[:-1])), event


class RelaxedOneHotCategorical(relaxed.RelaxedOneHotCategorical, TorchDistributionMixin):
    """`onehot_triton.RelaxedOneHotCategorical`, whose arguments have Pyro's order, with the methods of Pyro.

    Raises:
        ValueError: as `onehot_triton.RelaxedOneHotCategorical`.

    Example:
        >>> import pyro
        >>> from onehot_triton.integrations.pyro import RelaxedOneHotCategorical
        >>> pyro.sample("weights", RelaxedOneHotCategorical(0.5, logits=torch.zeros(4))).shape
        torch.Size([4])
    """

    # Before a member of that name in the base class.
    mask = TorchDistributionMixin.mask  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def infer_shapes(
        temperature: torch.Size, probs: torch.Size | None = None, logits: torch.Size | None = None, **others: torch.Size
    ) -> tuple[torch.Size, torch.Size]:
        """The batch and event shape for parameters of these shapes, as Pyro asks for them."""
        return _infer_shapes(probs, logits)


class RelaxedOneHotCategoricalStraightThrough(RelaxedOneHotCategorical):
    """Pyro's class of that name: a draw is one-hot, exactly 0 and 1; its gradient and its density are those of the
    relaxed sample that it is the arg-max of.

    The draw carries that sample under the name that Pyro's class uses, so that each class can score the other's draws.
    A density of the one-hot itself, as a categorical latent has it, is `OneHotCategorical`'s with a `grad_method`.

    Raises:
        ValueError: as `onehot_triton.RelaxedOneHotCategorical`.

    Example:
        >>> import pyro
        >>> from onehot_triton.integrations.pyro import RelaxedOneHotCategoricalStraightThrough
        >>> pyro.sample("action", RelaxedOneHotCategoricalStraightThrough(0.5, probs=torch.tensor([0.0, 1.0])))
        tensor([0., 1.])
    """

    def rsample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """One-hot draws in the parameters' dtype, [*sample_shape, *batch, columns], with the gradient of the relaxed
        sample, `draw._unquantize`. Args are those of `onehot_triton.RelaxedOneHotCategorical.rsample`."""
        soft = super().rsample(sample_shape, generator=generator)
        # Above 0 where a category is on, so that the density is finite, by so little that a row still sums to 1.
        least = torch.finfo(soft.dtype).eps / soft.shape[-1]
        soft = soft.clamp(min=least).masked_fill(self._logits() == -torch.inf, 0.0)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        # The added number is 0 and carries the gradient.
        draw: Any = hard + (soft - soft.detach())
        draw._unquantize = soft
        return draw

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the relaxed sample that `value` was made of; of another value, that of itself."""
        return super().log_prob(getattr(value, "_unquantize", value))


def _dtype(dtype: torch.dtype | None, probs: Any, logits: Any) -> torch.dtype:
    """`dtype`, or that of the parameters; what is no tensor is left to the checks."""
    param = logits if probs is None else probs
    return dtype or (param.dtype if isinstance(param, Tensor) else torch.get_default_dtype())


def _infer_shapes(probs: torch.Size | None, logits: torch.Size | None) -> tuple[torch.Size, torch.Size]:
    shape = probs if logits is None else logits
    assert shape is not None
    return shape[:-1], shape[-1:]
