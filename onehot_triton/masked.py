"""MaskedOneHotCategorical: some categories are switched off, row by row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks
from .distribution import OneHotCategorical, _sharded
from .grad_method import ReparamGradientStrategy
from .tensors import is_sharded, scalar_tensor


class MaskedOneHotCategorical(OneHotCategorical):
    """A `OneHotCategorical` over the categories that a mask allows: softmax(logits) or probs, renormalised over them.

    A category that is masked out is never drawn, whatever its parameter, NaN included, and its gradient is 0. On a GPU
    the kernels read the mask beside the logits, a byte a category; no masked copy of the logits is made, unless
    `unimix` or `probs` asks for new logits anyway. Signature and meaning are those of TorchRL's class of that name.

    Args:
        logits: [*batch, columns], as for `OneHotCategorical`; or
        probs: [*batch, columns] in its place.
        mask: bool, broadcasts to the parameters; True where a category can be drawn. Exactly one of `mask` and
            `indices` is given. A row in which nothing is allowed is no distribution: where arguments are not
            validated, its samples are all zero and its densities NaN.
        indices: integers [*batch, n], in place of `mask`: the categories that can be drawn, in any order.
        neg_inf: what `log_prob` and `logits` give for a category that cannot be drawn.
        padding_value: an entry of `indices` that stands for no category, in rows that allow fewer than n.
        grad_method, temperature, relaxed_samples, dtype, validate_args: as for `OneHotCategorical`.
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
        mask: Tensor | None = None,
        indices: Tensor | None = None,
        neg_inf: float = -math.inf,
        padding_value: int | None = None,
        grad_method: ReparamGradientStrategy | None = None,
        *,
        temperature: float | Tensor = 1.0,
        relaxed_samples: int = 1,
        unimix: float | Tensor = 0.0,
        dtype: torch.dtype | None = None,
        validate_args: bool | None = None,
    ) -> None:
        param, _ = checks.parameter(logits=logits, probs=probs)
        checks.neg_inf(neg_inf)
        self.neg_inf = neg_inf
        allowed, name = checks.exactly_one(mask=mask, indices=indices)
        if name == "indices":
            checks.allowed_indices(
                allowed, padding_value, param.shape, param.device, checks.resolve(validate_args, param)
            )
            allowed = _mask_of(allowed, padding_value, param.shape[-1])
        checks.mask(allowed, name, param.shape, param.device)
        if is_sharded(param):
            self._mask = _sharded().place_mask(allowed, param, "logits" if probs is None else "probs")
        else:
            self._mask = allowed.expand(param.shape)
        super().__init__(
            logits,
            probs,
            grad_method,
            temperature=temperature,
            relaxed_samples=relaxed_samples,
            unimix=unimix,
            dtype=dtype,
            validate_args=validate_args,
        )

    @property
    def mask(self) -> Tensor:
        """bool [*batch, columns], True where a category can be drawn.

        Of sharded columns: placed as the parameters, and nothing is sent.
        """
        assert self._mask is not None
        return self._mask

    @property
    def logits(self) -> Tensor:
        """Normalised log-probabilities, [*batch, columns], `neg_inf` where a category cannot be drawn.

        Of sharded columns: placed as the parameters, one collective of 8 bytes.
        """
        # Not by super(): a compiled program would ask the property of an object that has no attributes.
        return self._finite(self._in_param_dtype(self._log_probs()))

    def _log_prob_result(self, log_prob: Tensor) -> Tensor:
        return self._finite(super()._log_prob_result(log_prob))

    def _finite(self, log_probs: Tensor) -> Tensor:
        """`log_probs` with `neg_inf` for -inf."""
        if self.neg_inf == -math.inf:
            return log_probs
        # A compiled program is given a tensor, so that another number needs no other program.
        neg_inf = scalar_tensor(self.neg_inf, log_probs) if torch.compiler.is_compiling() else self.neg_inf
        return log_probs.masked_fill(log_probs == -math.inf, neg_inf)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> MaskedOneHotCategorical:
        """As of `OneHotCategorical`, of sharded columns too: the mask is expanded with the parameters."""
        new: Any = self._get_checked_instance(MaskedOneHotCategorical, _instance)
        new.neg_inf = self.neg_inf
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
