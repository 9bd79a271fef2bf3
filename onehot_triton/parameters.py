"""From what a user gives (logits or probs, unimix, a mask) to the unnormalised logits that all is computed of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from . import checks, compute
from .compute.base import masked
from .ops import again, apply, once, repeated
from .tensors import batch_sizes, compute_dtype, is_sharded, loses_functions


class _Log(Function):
    """log w, with gradient 0 where w is 0: that category is switched off, as one with logit -inf is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weights):
        return weights.log()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (weights,) = ctx.saved_tensors
        return grad / torch.where(weights == 0, torch.inf, weights)


def _log(weights: Tensor) -> Tensor:
    if not loses_functions():
        return apply(_Log, weights)
    off = weights == 0
    return weights.masked_fill(off, 1.0).log().masked_fill(off, -torch.inf)


def _in_rows(mask: Tensor, logits: Tensor) -> Tensor:
    """`mask` [*batch, columns], copied where it cannot be viewed as rows in two dimensions, as each call would do. Not
    one that repeats itself where the logits do, since neither is read more than once."""
    repeats = any(mask.shape[d] != 1 and mask.stride(d) == logits.stride(d) == 0 for d in range(mask.dim() - 1))
    return mask if repeats or len(batch_sizes(mask)) <= 2 else mask.contiguous()


def over_batch_of(mask: Tensor, param: Tensor) -> Tensor:
    """`param` [*batch, columns], expanded to the batch that it makes with a mask: one row of parameters may have a mask
    for each state. Nothing is copied, and its gradient is summed."""
    if mask.shape == param.shape:
        return param
    shape = torch.broadcast_shapes(mask.shape, param.shape)
    return param if param.shape == shape else param.expand(shape)


def with_mask(param: Tensor, name: str, mask: Tensor, validate_args: bool | None) -> tuple[Tensor, Tensor]:
    """Give the parameters, over the batch that they make with a checked mask, and the mask in their shape and place."""
    if is_sharded(param):
        # Not at the top: its import takes seconds, which only users of DTensors need.
        from . import sharded

        return sharded.place_mask(mask, param, name, checks.resolve(validate_args, param))
    param = over_batch_of(mask, param)
    return param, mask.expand(param.shape)


def mixes(unimix: float | Tensor) -> bool:
    """Whether there is something to mix in. A tensor is not looked at: that would wait for it."""
    return isinstance(unimix, Tensor) or unimix != 0


def logits_of(
    param: Tensor, is_probs: bool, unimix: float | Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Unnormalised logits of softmax(param), or of param / sum(param), mixed with `unimix` of the uniform distribution.

    Args:
        param: [*batch, columns].
        is_probs: whether it is probabilities.
        unimix: the weight of the uniform distribution, over the categories that `mask` allows; a tensor is 0-d.
        mask: bool of param's shape; what is False is switched off, whatever the parameter is there.

    Returns:
        logits: the parameter itself where it is logits and nothing is to be done; else a new tensor, in float32 at
            least, because half precision has too few digits for the logarithm of a small probability.
        mask: the mask where it is still to be applied, by a backend that reads it beside the logits; else None.
    """
    as_given = not (is_probs or mixes(unimix))
    if as_given:
        if mask is None:
            return param, None
        if compute.of(param).reads_masks:
            return param, _in_rows(mask, param)
    dims = repeated(param, mask)
    if dims:
        logits, _ = logits_of(once(param, dims), is_probs, unimix, None if mask is None else once(mask, dims))
        return again(logits, dims, param.shape[:-1]), None
    if as_given:
        return masked(param, mask), None
    param = param.to(compute_dtype(param.dtype))
    param = param if mask is None else torch.where(mask, param, 0.0 if is_probs else -torch.inf)
    logits = _log(param) if is_probs else param
    if not mixes(unimix):
        return logits, None
    # 0 / 0 where nothing is allowed, which is -inf in the end, as without `unimix`.
    uniform = 1 / logits.shape[-1] if mask is None else mask.to(logits.dtype) / mask.sum(-1, keepdim=True)
    return masked(_log(compute.of(param).softmax(logits) * (1 - unimix) + unimix * uniform), mask), None
