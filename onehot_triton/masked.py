"""MaskedOneHotCategorical: some categories are switched off, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import checks, parameters
from .distribution import OneHotCategorical
from .grad_method import ReparamGradientStrategy

if TYPE_CHECKING:
    import numpy as np


class MaskedOneHotCategorical(OneHotCategorical):
    """A `OneHotCategorical` over the categories that a mask allows: softmax(logits) or probs, renormalised over them.

    A category that is masked out is never drawn, whatever its parameter, NaN included, and its gradient is 0. On a GPU
    the kernels read the mask beside the logits, a byte a category; no masked copy of the logits is made, unless
    `unimix` or `probs` asks for new logits anyway. Signature and meaning are those of TorchRL's class of that name.

    Args:
        logits: [*batch, columns], as for `OneHotCategorical`; or
        probs: [*batch, columns] in its place.
        mask: [*batch, columns], True where a category can be drawn: a tensor or a NumPy array, bool, or 0 and 1 of any
            dtype, which are copied. Exactly one of `mask` and `indices` is given. The batches of mask and parameters
            broadcast: masks for several states make a batch of one row of logits, which are not copied. Where
            arguments are not validated, a number other than 0 is True. A row in which nothing is allowed is invalid:
            where arguments are not validated, its samples are all zero, its densities NaN and its
            gradient 0.
        indices: integers [*batch, n], in place of `mask`: the categories that can be drawn, in any order. A tensor or
            a NumPy array, whose batch broadcasts as that of `mask`.
        padding_value: an entry of `indices` that stands for no category, in rows that allow fewer than n.
        neg_inf, grad_method, temperature, relaxed_samples, dtype, validate_args: as for `OneHotCategorical`.
        unimix: e in [0, 1]: mixes in the uniform distribution over the categories that are allowed.

    Of sharded parameters all is as for `OneHotCategorical`; the mask is a DTensor that is placed as they are, or
    replicated, or a tensor that is the same on all ranks.

    Raises:
        ValueError: naming the argument, what was expected and what was found, with the first bad position.

    Example:
        >>> import torch
        >>> from onehot_triton import MaskedOneHotCategorical
        >>> mask = torch.tensor([True, False, True])
        >>> dist = MaskedOneHotCategorical(logits=torch.zeros(3), mask=mask)
        >>> dist.probs
        tensor([0.5000, 0.0000, 0.5000])
        >>> dist.log_prob(torch.eye(3))
        tensor([-0.6931,    -inf, -0.6931])
    """

    def __init__(
        self,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        mask: Tensor | np.ndarray | None = None,
        indices: Tensor | np.ndarray | None = None,
        neg_inf: float | None = None,
        padding_value: int | None = None,
        grad_method: ReparamGradientStrategy | None = None,
        *,
        temperature: float | Tensor = 1.0,
        relaxed_samples: int = 1,
        unimix: float | Tensor = 0.0,
        dtype: torch.dtype | None = None,
        validate_args: bool | None = None,
    ) -> None:
        param, kind = checks.parameter(logits=logits, probs=probs)
        allowed, name = checks.exactly_one(mask=mask, indices=indices)
        if name == "indices":
            validate = checks.resolve(validate_args, param)
            allowed = checks.allowed_indices(allowed, padding_value, param.shape, param.device, validate)
            allowed = _mask_of(allowed, padding_value, param.shape[-1])
        else:
            allowed = checks.mask(allowed, param, validate_args)
        param, self._mask = parameters.with_mask(param, kind, allowed, validate_args)
        super().__init__(
            param if kind == "logits" else None,
            param if kind == "probs" else None,
            grad_method,
            temperature=temperature,
            relaxed_samples=relaxed_samples,
            unimix=unimix,
            dtype=dtype,
            neg_inf=neg_inf,
            validate_args=validate_args,
        )

    @property
    def mask(self) -> Tensor:
        """bool [*batch, columns], True where a category can be drawn.

        Sharded columns: placed as the parameters, and nothing is sent.
        """
        assert self._mask is not None
        return self._mask

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MaskedOneHotCategorical:
        """As of `OneHotCategorical`, of sharded columns too: the mask is expanded with the parameters."""
        new: Any = self._get_checked_instance(MaskedOneHotCategorical, _instance)
        return super().expand(batch_shape, new)  # pyright: ignore[reportReturnType]


def _mask_of(indices: Tensor, padding: int | None, columns: int) -> Tensor:
    """The mask [*batch, columns] that is True at `indices` [*batch, n], but for those that are `padding`."""
    indices = indices.long()
    # A column more takes what stands for no category, and what is none.
    none = (indices < 0) | (indices >= columns)
    if padding is not None:
        none |= indices == padding
    mask = indices.new_zeros((*indices.shape[:-1], columns + 1), dtype=torch.bool)
    return mask.scatter_(-1, indices.masked_fill(none, columns), True)[..., :columns].contiguous()
