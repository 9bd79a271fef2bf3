"""Autograd, one Function an operation: forward, what is kept, backward. All arithmetic is the backend's, but for the
backward of a soft sample, which needs the sample alone.

The functions take `logits` [*batch, columns], unnormalised, a `mask` of their shape or None, and give the rows that a
backend takes (`backends/interface.py`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import _backends as backends
from ._backends.interface import Backend, Sample
from .grad_method import ReparamGradientStrategy
from .rng import Seed
from .tensors import compute_dtype, in_transform, is_differentiated


def apply(function: type[Function], *args: Any) -> Any:
    """function.apply(*args), or its forward alone where no gradient is asked for: recording costs more than the work
    of a small batch."""
    # A tensor under vmap does not tell whether a transform outside of it wants a gradient.
    if in_transform() or torch.compiler.is_compiling():
        return function.apply(*args)
    if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        # Function.apply itself first binds the arguments to the signature of `forward`, 13 us, to find defaults
        # (https://github.com/pytorch/pytorch/issues/189573).
        return super(Function, function).apply(*args)  # pyright: ignore
    return function.forward(*args)  # pyright: ignore


def _keep(ctx: Any, saved: tuple[Tensor | None, ...], by_products: tuple[Tensor | None, ...]) -> None:
    """Saves tensors for the backward; no gradient comes in for by-products, not even one of zeros."""
    ctx.mark_non_differentiable(*(t for t in by_products if t is not None))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*saved)


def _of_backward(backend: Backend) -> Backend:
    """What computes a gradient: under create_graph, and in a transform, one that can be differentiated again."""
    return backends.differentiable(backend) if torch.is_grad_enabled() else backend


def _shaped(tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in that shape; itself where it has it, since even a view is a call through the dispatcher."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def _rows(tensor: Tensor) -> Tensor:
    """[*batch, columns] -> [rows, columns]."""
    return tensor if tensor.dim() == 2 else tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _mask_rows(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else _rows(mask)


# Samples --------------------------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """What a draw is to be, beside its parameters.

    Attributes:
        sample_shape: leading dimensions of the draw.
        dtype: of the one-hot; None leaves it out.
        generator: None for the default one of the device.
    """

    sample_shape: tuple[int, ...]
    dtype: torch.dtype | None
    generator: torch.Generator | None = None


def _in_shape(drawn: Sample, draw: Draw, logits: Tensor) -> Sample:
    """A backend's rows in the shapes that a user asked for."""
    shape = draw.sample_shape + logits.shape[:-1]
    if drawn.index.shape == shape:
        return drawn
    one_hot = None if drawn.one_hot is None else drawn.one_hot.reshape(*shape, logits.shape[-1])
    return drawn._replace(one_hot=one_hot, index=drawn.index.reshape(shape))


def sample(logits: Tensor, mask: Tensor | None, draw: Draw, seed: Seed | None = None) -> Sample:
    """Draws from softmax(logits), without a gradient.

    Args:
        logits: [*batch, columns].
        mask: of the logits' shape, or None.
        draw: what is wanted.
        seed: in place of a new one of the draw's generator.

    Returns:
        one_hot [*sample_shape, *batch, columns] and index [*sample_shape, *batch]; the logsumexp stays inside of the
        library, so nobody gives it the batch's shape, which is an operator more.
    """
    backend = backends.of(logits)
    x, draws = _rows(logits.detach() if logits.requires_grad else logits), math.prod(draw.sample_shape)
    seed = backend.new_seed(x, draw.generator) if seed is None else seed
    return _in_shape(backend.sample(x, _mask_rows(mask), draws, draw.dtype, seed, False), draw, logits)


class _StraightThrough(Function):
    """A one-hot draw, exactly 0 and 1, with the gradient of PassThrough, or of RelaxedOneHot where a temperature is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, mask, temperature, seed_tensor, key, offset, first_row, backend, draw):
        seed = Seed(seed_tensor, key, offset, draw.generator, first_row)
        args = math.prod(draw.sample_shape), draw.dtype, seed, temperature is not None
        drawn = _in_shape(backend.sample(_rows(logits), _mask_rows(mask), *args), draw, logits)
        return drawn.one_hot, drawn.index, drawn.logsumexp, drawn.seed

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, temperature, seed_tensor, ctx.key, ctx.offset, ctx.first_row, ctx.backend, _ = inputs
        # A tensor is kept by autograd, which sees where it is changed in place.
        tensor, ctx.temperature = (temperature, None) if isinstance(temperature, Tensor) else (None, temperature)
        _, index, logsumexp, seed_again = output
        seed_tensor = seed_tensor if seed_again is None else seed_again
        _keep(ctx, (logits, mask, tensor, seed_tensor, index, logsumexp), (index, logsumexp, seed_again))

    @staticmethod
    def backward(ctx, grad, *_):
        logits, mask, temperature, seed_tensor, index, logsumexp = ctx.saved_tensors
        temperature = ctx.temperature if temperature is None else temperature
        dx = dt = None
        if grad is not None:
            x, mask = _rows(logits), _mask_rows(mask)
            draws = math.prod(index.shape[: index.dim() - logits.dim() + 1])
            grad = _shaped(grad, draws, *x.shape)
            if temperature is None:
                grad = grad[0] if draws == 1 else grad.sum(0)
                dx = _of_backward(ctx.backend).softmax_grad(x, grad, mask, logsumexp)
            else:
                index, seed = (
                    _shaped(index, draws, x.shape[0]),
                    Seed(seed_tensor, ctx.key, ctx.offset, None, ctx.first_row),
                )
                with_dt = ctx.needs_input_grad[2]
                dx, dt = ctx.backend.relaxed_grad(x, index, grad, temperature, seed, mask, logsumexp, with_dt)
            dx = _shaped(dx, *logits.shape)
        return dx, None, dt, None, None, None, None, None, None


def rsample(
    logits: Tensor,
    mask: Tensor | None,
    draw: Draw,
    method: ReparamGradientStrategy,
    temperature: Tensor | float,
    seed: Seed | None = None,
) -> Sample:
    """`sample` in the logits' dtype, with the gradient of `method` in the logits.

    Args:
        logits: [*batch, columns].
        mask: of the logits' shape, or None.
        draw: what is wanted; its dtype is the logits'.
        method: the gradient.
        temperature: of RelaxedOneHot; a tensor broadcasts to the batch, and has a gradient.
        seed: in place of a new one of the draw's generator.
    """
    backend = backends.of(logits)
    relaxed = method is ReparamGradientStrategy.RelaxedOneHot
    relaxes_first = relaxed and seed is None and backend.relaxes_first(logits, math.prod(draw.sample_shape))
    learned = relaxed and isinstance(temperature, Tensor) and is_differentiated(temperature)
    if not (learned or relaxes_first or is_differentiated(logits)):
        return sample(logits, mask, draw, seed)
    t = _temperature(temperature, logits) if relaxed else None
    is_given = seed is not None
    seed = backend.new_seed(logits, draw.generator) if seed is None else seed
    if relaxes_first or (not relaxed and not is_given and backend.records(logits)):
        x, draws = _rows(logits), math.prod(draw.sample_shape)
        return _in_shape(backend.straight_through(x, _mask_rows(mask), draws, draw.dtype, seed, t), draw, logits)
    args = seed.tensor, seed.key, seed.offset, seed.first_row, backend, draw
    one_hot, index, logsumexp, _ = apply(_StraightThrough, logits, mask, t, *args)
    return Sample(one_hot, index, logsumexp, False, None)


def _temperature(temperature: Tensor | float, logits: Tensor) -> Tensor | float:
    """The temperature of each row, [rows], in the compute dtype; a number as it is, which saves a launch. A compiled
    program is given a tensor, so that another number needs no other program."""
    dtype = compute_dtype(logits.dtype)
    if not isinstance(temperature, Tensor):
        if not torch.compiler.is_compiling():
            return temperature
        temperature = torch.full((), temperature, dtype=dtype, device=logits.device)
    if temperature.numel() == 1:
        temperature = temperature.reshape(())
    batch = logits.shape[:-1]
    return temperature.to(dtype).expand(batch).reshape(math.prod(batch))


class _Relaxed(Function):
    """softmax((x + Gumbel) / t). Its backward needs the sample alone, not the noise: with z = (x + Gumbel) / t,

        dz = y (g - <y, g>),   dx = dz / t,   dt = -<dz, z> / t = -<dz, log y> / t,

    the last because z and log y differ by one number per row, and dz sums to 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, temperature, seed_tensor, key, offset, first_row, backend, draw):
        seed = Seed(seed_tensor, key, offset, draw.generator, first_row)
        out = backend.relaxed(_rows(logits), temperature, math.prod(draw.sample_shape), seed)
        return _shaped(out, *draw.sample_shape, *logits.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, temperature, *_ = inputs
        tensor, ctx.temperature = (temperature, None) if isinstance(temperature, Tensor) else (None, temperature)
        ctx.save_for_backward(tensor, output)
        ctx.batch = logits.shape[:-1]

    @staticmethod
    def backward(ctx, grad):
        temperature, y = ctx.saved_tensors
        rows, columns = math.prod(ctx.batch), y.shape[-1]
        draws = math.prod(y.shape[: y.dim() - 1 - len(ctx.batch)])
        dtype = compute_dtype(y.dtype)
        probs, grad = (_shaped(tensor, draws, rows, columns).to(dtype) for tensor in (y, grad))
        dz = torch.ops.aten._softmax_backward_data(grad, probs, -1, dtype)
        dx = dt = None
        if ctx.needs_input_grad[0]:
            divisor = ctx.temperature if temperature is None else temperature.unsqueeze(-1)
            dx = (dz.sum(0) / divisor).to(y.dtype).view(*ctx.batch, columns)
        if temperature is not None and ctx.needs_input_grad[1]:
            log_y = probs.clamp(min=torch.finfo(dtype).tiny).log()
            dt = -(dz * log_y).sum((0, 2)) / temperature
        return dx, dt, None, None, None, None, None, None


def relaxed_sample(logits: Tensor, temperature: Tensor | float, draw: Draw, seed: Seed | None = None) -> Tensor:
    """A point of the simplex, softmax((logits + Gumbel) / temperature), in the logits' dtype.

    Args:
        logits: [*batch, columns].
        temperature: a number, or a tensor that broadcasts to the batch.
        draw: what is wanted, but for a dtype.
        seed: in place of a new one of the draw's generator.

    Returns:
        [*sample_shape, *batch, columns], with gradients in the logits and the temperature.
    """
    backend = backends.of(logits)
    seed = backend.new_seed(logits, draw.generator) if seed is None else seed
    args = _temperature(temperature, logits), seed.tensor, seed.key, seed.offset, seed.first_row, backend, draw
    return _Relaxed.forward(logits, *args) if backend.records(logits, True) else apply(_Relaxed, logits, *args)


# Densities ------------------------------------------------------------------------------------------------------------


class _LogProb(Function):
    """log p_k of `value`, one-hot rows [draws, *batch, columns], or of `index` [draws, *batch], whichever is given.
    Beside a value, the index says where its ones may be."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, mask, logsumexp, value, index, inside, backend):
        x, mask, batch = _rows(logits), _mask_rows(mask), logits.shape[:-1]
        # What was given is not returned: an argument returned as it is could not be saved for the backward.
        new_index = None
        lead = index.shape[: index.dim() - len(batch)] if value is None else value.shape[: value.dim() - logits.dim()]
        draws = (math.prod(lead),) if lead else ()
        index = None if index is None else _shaped(index, *draws, x.shape[0])
        if value is None:
            out, new_logsumexp = backend.log_prob_index(x, index, mask, logsumexp, inside)
        else:
            value = _shaped(value, *draws, *x.shape)
            out, new_index, new_logsumexp = backend.log_prob(x, value, mask, logsumexp, index)
        return _shaped(out, *lead, *batch), new_index, new_logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, logsumexp, _, index, _, ctx.backend = inputs
        _, new_index, new_logsumexp = output
        index = index if new_index is None else new_index
        logsumexp = logsumexp if new_logsumexp is None else new_logsumexp
        _keep(ctx, (logits, mask, index, logsumexp), (new_index, new_logsumexp))

    @staticmethod
    def backward(ctx, grad, *_):
        logits, mask, index, logsumexp = ctx.saved_tensors
        dx = None
        if grad is not None:
            x, rows = _rows(logits), math.prod(logits.shape[:-1])
            draws = index.numel() // max(rows, 1)
            index, grad = _shaped(index, draws, rows), _shaped(grad, draws, rows)
            dx = _of_backward(ctx.backend).log_prob_grad(x, index, grad, _mask_rows(mask), logsumexp)
            dx = _shaped(dx, *logits.shape)
        return dx, None, None, None, None, None, None


def log_prob(
    logits: Tensor,
    mask: Tensor | None,
    logsumexp: Tensor | None,
    value: Tensor | None = None,
    index: Tensor | None = None,
    inside: bool = False,
) -> Tensor:
    """log softmax(logits) at the one-hot `value` or at `index`, differentiable in the logits.

    Args:
        logits: [*batch, columns].
        mask: of the logits' shape, or None.
        logsumexp: [2, rows], where the caller has it.
        value: [*draws, *batch, columns] of any float, integer or bool dtype; its first maximum counts.
        index: int64 [*draws, *batch], in place of `value`. Outside 0 .. columns - 1 the result is NaN. Beside a `value`
            it says where its ones may be, which a kernel looks at first.
        inside: True where every index is known to be inside.

    Returns:
        [*draws, *batch] in the compute dtype.
    """
    value = value.detach() if value is not None and value.requires_grad else value
    backend = backends.of(logits)
    if backend.records(logits):
        return _LogProb.forward(logits, mask, None, value, index, inside, backend)[0]
    return apply(_LogProb, logits, mask, logsumexp, value, index, inside, backend)[0]


class _Entropy(Function):
    """-sum p log p."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, mask, backend):
        out, logsumexp = backend.entropy(_rows(logits), _mask_rows(mask))
        return _shaped(out, *logits.shape[:-1]), logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, ctx.backend = inputs
        entropy, logsumexp = output
        _keep(ctx, (logits, mask, entropy, logsumexp), (logsumexp,))

    @staticmethod
    def backward(ctx, grad, *_):
        logits, mask, entropy, logsumexp = ctx.saved_tensors
        dx = None
        if grad is not None:
            x, rows = _rows(logits), math.prod(logits.shape[:-1])
            entropy, grad = _shaped(entropy, rows), _shaped(grad, rows)
            dx = _of_backward(ctx.backend).entropy_grad(x, grad, _mask_rows(mask), logsumexp, entropy)
            dx = _shaped(dx, *logits.shape)
        return dx, None, None


def entropy(logits: Tensor, mask: Tensor | None) -> Tensor:
    """-sum p log p of softmax(logits), [*batch] in the compute dtype, differentiable in the logits."""
    backend = backends.of(logits)
    if backend.records(logits):
        return _Entropy.forward(logits, mask, backend)[0]
    return apply(_Entropy, logits, mask, backend)[0]
