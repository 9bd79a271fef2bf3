"""The classes as distributions of Pyro, for `pyro.sample` as they are. Importing this module imports Pyro."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import distribution, masked

try:
    from pyro.distributions.torch_distribution import TorchDistributionMixin
except ModuleNotFoundError as error:
    raise ImportError(f"{error.name} is not installed: pip install pyro-ppl", name=error.name) from None

__all__ = ["MaskedOneHotCategorical", "OneHotCategorical"]


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
        probs: torch.Size | None = None, logits: torch.Size | None = None, **others: torch.Size
    ) -> tuple[torch.Size, torch.Size]:
        """The batch and event shape for parameters of these shapes, as Pyro asks for them."""
        return _infer_shapes(probs, logits)


def _dtype(dtype: torch.dtype | None, probs: Any, logits: Any) -> torch.dtype:
    """`dtype`, or that of the parameters; what is no tensor is left to the checks."""
    param = logits if probs is None else probs
    return dtype or (param.dtype if isinstance(param, Tensor) else torch.get_default_dtype())


def _infer_shapes(probs: torch.Size | None, logits: torch.Size | None) -> tuple[torch.Size, torch.Size]:
    shape = probs if logits is None else logits
    assert shape is not None
    return shape[:-1], shape[-1:]
