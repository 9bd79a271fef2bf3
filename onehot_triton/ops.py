"""One function per operation: its autograd, and the only choice of Triton or eager.

The functions take `logits` [*batch, columns], unnormalised, and reshape to the rows that both backends take: the
operators of `library.py`, and their eager twins in `reference.py`. `allowed`, bool of the same shape, is a category
mask that the kernels are to apply; where eager torch computes, it is None and the logits are masked already, see
`logits_of`.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import reference, rng
from .grad_method import ReparamGradientStrategy
from .library import operators as _kernels

# The choice of backend ------------------------------------------------------------------------------------------------

_BACKENDS = ("auto", "triton", "eager")
# A plain global, which torch.compile can read and guards on.
_backend = "auto"
_TRITON_IS_THERE = importlib.util.find_spec("triton") is not None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses what computes, within a `with` block and for the whole process: for tests, comparison and debugging.

    Args:
        name: "auto", the default: kernels for CUDA, ROCm and XPU tensors where Triton is there, eager torch for all
            others. "triton": kernels, or an error that says why not. "eager": torch operations everywhere.

    Raises:
        ValueError: `name` is none of these.

    Example:
        >>> import torch
        >>> from onehot_triton import OneHotCategorical, use_backend
        >>> with use_backend("eager"):
        ...     OneHotCategorical(torch.zeros(3)).entropy()
        tensor(1.0986)
    """
    if name not in _BACKENDS:
        raise ValueError(f"name: expected one of {', '.join(map(repr, _BACKENDS))}, found {name!r}")
    global _backend
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def uses_kernels(device: torch.device) -> bool:
    """Whether the kernels compute for tensors on `device`; raises RuntimeError where they must and cannot."""
    if _backend == "eager":
        return False
    if device.type in ("cuda", "xpu") and _TRITON_IS_THERE:
        return True
    if _backend == "auto":
        return False
    if not _TRITON_IS_THERE:
        raise RuntimeError('use_backend("triton"): Triton is not installed')
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return True
    hint = "; TRITON_INTERPRET=1, set before the start, interprets them there" if device.type == "cpu" else ""
    raise RuntimeError(f'use_backend("triton"): the kernels do not run on {device.type} tensors{hint}')


def _apply(function: type[Function], *args: Any) -> Any:
    """function.apply(*args), or its forward alone where no gradient is asked for: recording costs more than the work
    of a small batch."""
    # A tensor under vmap does not tell whether a transform outside of it wants a gradient.
    if reference.in_transform() or torch.compiler.is_compiling():
        return function.apply(*args)
    if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        # Function.apply itself first binds the arguments to the signature of `forward`, 13 us, to find defaults.
        return super(Function, function).apply(*args)  # pyright: ignore
    return function.forward(*args)  # pyright: ignore


def _records_forward(logits: Tensor) -> bool:
    """Whether autograd is to record the eager forward itself."""
    return reference.is_differentiated(logits) and (reference.is_small(logits) or reference.loses_functions())


def _differentiable_by_kernels(logits: Tensor) -> bool:
    """Whether kernels compute what has a gradient: where a Function would be lost, torch's operations do."""
    return uses_kernels(logits.device) and not (reference.is_differentiated(logits) and reference.loses_functions())


# Parameters -----------------------------------------------------------------------------------------------------------


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
    if not reference.loses_functions():
        return _apply(_Log, weights)
    off = weights == 0
    return weights.masked_fill(off, 1.0).log().masked_fill(off, -torch.inf)


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """`logits` with -inf where `allowed`, if there is such a mask, is False; without gradient there."""
    return logits if allowed is None else torch.where(allowed, logits, -torch.inf)


def logits_of(param: Tensor, is_probs: bool, unimix: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Unnormalised logits of softmax(param), or of param / sum(param), mixed with `unimix` of the uniform distribution.

    Args:
        param: [*batch, columns].
        is_probs: whether it is probabilities.
        unimix: the weight of the uniform distribution, over the categories that `mask` allows.
        mask: bool of param's shape; what is False is switched off, whatever the parameter is there.

    Returns:
        logits: the parameter itself where it is logits and nothing is to be done; else a new tensor, in float32 at
            least, because half precision has too few digits for the logarithm of a small probability.
        allowed: the mask where it is left to the kernels, which read it beside the logits; None where `logits` has it.
    """
    if not is_probs and unimix == 0:
        return (param, mask) if mask is None or uses_kernels(param.device) else (masked(param, mask), None)
    param = param.to(reference.compute_dtype(param.dtype))
    param = param if mask is None else torch.where(mask, param, 0.0 if is_probs else -torch.inf)
    logits = _log(param) if is_probs else param
    if unimix == 0:
        return logits, None
    # 0 / 0 where nothing is allowed: no distribution.
    uniform = 1 / logits.shape[-1] if mask is None else mask.to(logits.dtype) / mask.sum(-1, keepdim=True)
    return _log(reference.softmax(logits) * (1 - unimix) + unimix * uniform), None


# Sampling -------------------------------------------------------------------------------------------------------------


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


def _shaped(tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in that shape; itself where it has it, since even a view is a call through the dispatcher."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def _rows(tensor: Tensor) -> Tensor:
    """[*batch, columns] -> [rows, columns]."""
    return tensor if tensor.dim() == 2 else tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _rows_of(allowed: Tensor | None) -> Tensor | None:
    return None if allowed is None else _rows(allowed)


def _draw(
    logits: Tensor,
    allowed: Tensor | None,
    seed: rng.Seed | None,
    draw: Draw,
    noise: reference.Noise | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None, bool]:
    """The draw itself, and whether every row was found to be a distribution: by the kernel where `seed` is given, by
    the twin, with `noise` or the generator's, where not."""
    batch, columns = logits.shape[:-1], logits.shape[-1]
    shape = (*draw.sample_shape, *batch)
    x, draws = _rows(logits), math.prod(draw.sample_shape)
    if seed is not None:
        one_hot, index, logsumexp = _kernels.sample(x, draws, draw.dtype, *seed, 0, _rows_of(allowed))
        one_hot = None if draw.dtype is None else _shaped(one_hot, *shape, columns)
        return one_hot, _shaped(index, *shape), logsumexp, False
    choose = reference.race(noise) if noise else reference.choice(columns, x.device, draw.generator)
    group = reference.group_length(columns)
    # One search in place of two stages where calls are what costs, or second stages would look at more than a row has.
    if not noise and x.is_cpu and (reference.is_small(x) or draws * group >= columns):
        group = columns
    index, logsumexp, all_valid = reference.sample_index(x, draws, choose, group)
    index = _shaped(index, *shape)
    one_hot = None if draw.dtype is None else reference.one_hot(index, columns, draw.dtype, all_valid)
    return one_hot, index, logsumexp, all_valid


def sample(logits: Tensor, allowed: Tensor | None, draw: Draw) -> tuple[Tensor | None, Tensor, Tensor | None, bool]:
    """Draws from softmax(logits), without a gradient.

    Args:
        logits: [*batch, columns].
        allowed: the kernels' category mask.
        draw: what is wanted.

    Returns:
        one_hot: [*sample_shape, *batch, columns], or None. A row that is no distribution is all zero.
        index: int64 [*sample_shape, *batch]; -1 for such a row.
        logsumexp: [2, rows] in the compute dtype, NaN for such a row; None where it is no by-product. It stays inside
            of the library, so nobody gives it the batch's shape, which is an operator more.
        all_valid: True where every row was found to be a distribution.
    """
    seed = rng.next_seed(logits, draw.generator) if uses_kernels(logits.device) else None
    return _draw(logits.detach() if logits.requires_grad else logits, allowed, seed, draw)


def _noise_of(seed: Tensor) -> reference.Noise:
    """The twin's noise as a function of a seed on the device, one number further for each request."""
    requests = itertools.count(1)
    return lambda shape, winner: _kernels.seeded_exponential(seed + next(requests), shape)


_BATCHED = torch._C.DispatchKeySet(torch._C._parse_dispatch_key("VmapMode"))  # pyright: ignore[reportArgumentType]


def _noise_again(seed: Tensor) -> reference.Noise:
    """The twin's noise of a backward, the same at each pass; a compiler and a transform see an operator."""
    if reference.can_look_at(seed):
        noise = reference.noise_from(seed.device, torch.Generator(seed.device).manual_seed(int(seed.item())))

        def of_seed(shape: tuple[int, ...], winner: Tensor | None) -> Tensor:
            # A batch of gradients (is_grads_batched) refuses random operators; what the seed alone decides is not one.
            with torch._C._ExcludeDispatchKeyGuard(_BATCHED):
                return noise(shape, winner)

        return of_seed
    return lambda shape, winner: _kernels.seeded_exponential(seed, shape)


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


class _StraightThrough(Function):
    """A one-hot draw, exactly 0 and 1, with the gradient of PassThrough, or of RelaxedOneHot where a temperature is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, allowed, temperature, seed_tensor, key, offset, kernels, draw):
        if kernels:
            return *_draw(logits, allowed, rng.Seed(seed_tensor, key, offset), draw)[:3], None
        if temperature is None:
            return *_draw(logits, None, None, draw)[:3], None
        if torch.compiler.is_compiling():
            # A compiler would leave a seed that no output needs to the backward, which would draw anew at each pass.
            seed_tensor = rng.seed_tensor(logits.device, draw.generator)
            return *_draw(logits, None, None, draw, _noise_of(seed_tensor))[:3], seed_tensor
        # The seed of the backward's noise comes after the draw, which is therefore the draw of `sample`.
        return *_draw(logits, None, None, draw)[:3], rng.seed_tensor(logits.device, draw.generator)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, allowed, temperature, seed_tensor, ctx.key, ctx.offset, ctx.kernels, _ = inputs
        ctx.is_relaxed = temperature is not None
        temperature, ctx.temperature = _tensor_or_number(temperature)
        _, *by_products, backward_seed = output
        ctx.mark_non_differentiable(*(t for t in (*by_products, backward_seed) if t is not None))
        ctx.set_materialize_grads(False)
        seed_tensor = seed_tensor if backward_seed is None else backward_seed
        ctx.save_for_backward(logits, allowed, temperature, seed_tensor, *by_products)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 8
        logits, allowed, temperature, seed_tensor, index, logsumexp = ctx.saved_tensors
        dt = None
        x, allowed = _rows(logits), _rows_of(allowed)
        rows, columns = x.shape
        draws = math.prod(index.shape[: index.dim() - logits.dim() + 1])
        grad = _shaped(grad, draws, rows, columns)
        if not ctx.is_relaxed:
            grad = grad[0] if draws == 1 else grad.sum(0)
            # Under create_graph, the gradient is computed in differentiable torch operations.
            if ctx.kernels and not torch.is_grad_enabled():
                out = _kernels.softmax_grad(x, logsumexp, grad, allowed)
            else:
                out = reference.softmax_grad(masked(x, allowed), grad)
        elif ctx.kernels:
            index = _shaped(index, draws, rows)
            with torch.no_grad():
                noise = (seed_tensor, ctx.key, ctx.offset, 0)
                learned = ctx.needs_input_grad[2]
                t = (temperature, ctx.temperature)
                out, dt = _kernels.relaxed_grad(x, logsumexp, index, grad, *t, *noise, allowed, learned)
            if torch.is_grad_enabled():
                out, dt = (_NoSecondDerivative.apply(gradient, x, grad, temperature) for gradient in (out, dt))
            dt = dt if learned else None
        else:
            noise = _noise_again(seed_tensor)

            def block(g: Tensor, x: Tensor, k: Tensor, t: Tensor) -> Tensor:
                e = noise((draws, x.shape[0], columns + 1), None)
                noises = e[..., :-1], e[..., -1]
                return reference.relaxed_grad(x, k.t(), g.transpose(0, 1), t, *noises, ctx.needs_input_grad[2])

            index = _shaped(index, draws, rows)
            out = reference.by_rows(block, grad.transpose(0, 1), x, index.t(), temperature, scratch=4)
            if ctx.needs_input_grad[2]:
                out, dt = out[:, :-1].to(logits.dtype), out[:, -1]
        return _shaped(out, *logits.shape), None, dt, *(None,) * 5


def rsample(
    logits: Tensor,
    allowed: Tensor | None,
    draw: Draw,
    method: ReparamGradientStrategy,
    temperature: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """`sample` in the logits' dtype, with the gradient of `method` in the logits.

    Args:
        logits: [*batch, columns].
        allowed: the kernels' category mask.
        draw: what is wanted; its dtype is the logits'.
        method: the gradient.
        temperature: of RelaxedOneHot; a tensor broadcasts to the batch.
    """
    relaxed = method is ReparamGradientStrategy.RelaxedOneHot
    learned = relaxed and isinstance(temperature, Tensor) and reference.is_differentiated(temperature)
    if not (learned or reference.is_differentiated(logits)):
        one_hot, index, logsumexp, all_valid = sample(logits, allowed, draw)
        assert one_hot is not None
        return one_hot, index, logsumexp, all_valid
    plain = reference.loses_functions()
    kernels = uses_kernels(logits.device) and not plain
    if not kernels and allowed is not None:
        logits, allowed = masked(logits, allowed), None
    if not kernels and (plain or (not relaxed and reference.is_small(logits))):
        one_hot, index, logsumexp, all_valid = _draw(logits.detach(), None, None, draw)
        assert one_hot is not None
        if relaxed:
            probs = _relaxed_given(logits, index, _row_temperature(temperature, logits), draw).to(logits.dtype)
        else:
            probs = reference.nearly_softmax(logits).to(logits.dtype)
        smooth = probs - probs.detach()
        # p - p is 0 exactly, but NaN in a row that is no distribution.
        return one_hot + (smooth if all_valid else smooth.nan_to_num(0.0)), index, logsumexp, all_valid
    seed = rng.next_seed(logits, draw.generator) if kernels else rng.Seed(None, 0, 0)
    at = _temperature(temperature, logits, kernels) if relaxed else None
    one_hot, index, logsumexp, _ = _apply(_StraightThrough, logits, allowed, at, *seed, kernels, draw)
    return one_hot, index, logsumexp, False


def _relaxed_given(logits: Tensor, index: Tensor, temperature: Tensor, draw: Draw) -> Tensor:
    """The relaxed sample whose arg-max is `index`, [*sample_shape, *batch, columns], in differentiable operations."""
    x, columns = _rows(logits), logits.shape[-1]
    shape = math.prod(draw.sample_shape), x.shape[0]
    e = reference.exponential((*shape, columns + 1), x.device, draw.generator)
    y = reference.relaxed_given(x, _shaped(index, *shape), temperature, e[..., :-1], e[..., -1])
    return _shaped(y, *index.shape, columns)


def _tensor_or_number(temperature: Tensor | float | None) -> tuple[Tensor | None, float]:
    """The two arguments of an operator that takes either: the number counts where the tensor is None."""
    return (temperature, 1.0) if temperature is None or isinstance(temperature, Tensor) else (None, temperature)


def _temperature(temperature: Tensor | float, logits: Tensor, kernels: bool) -> Tensor | float:
    """`_row_temperature`, but a number as it is where kernels take one, which saves a launch. A compiled program is
    given a tensor, so that another number needs no other program."""
    if kernels and not isinstance(temperature, Tensor) and not torch.compiler.is_compiling():
        return temperature
    return _row_temperature(temperature, logits)


def _row_temperature(temperature: Tensor | float, logits: Tensor) -> Tensor:
    """The temperature of each row, [rows], in the compute dtype."""
    dtype = reference.compute_dtype(logits.dtype)
    if not isinstance(temperature, Tensor):
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
    def forward(logits, temperature, seed_tensor, key, offset, kernels, draw):
        x, draws = _rows(logits), math.prod(draw.sample_shape)
        if kernels:
            out = _kernels.relaxed(x, *_tensor_or_number(temperature), draws, seed_tensor, key, offset, 0)
        else:
            out = reference.relaxed(x, temperature, draws, reference.noise_from(x.device, draw.generator))
        return _shaped(out, *draw.sample_shape, *logits.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, temperature, *_ = inputs
        temperature, ctx.temperature = _tensor_or_number(temperature)
        ctx.save_for_backward(temperature, output)
        ctx.batch = logits.shape[:-1]

    @staticmethod
    def backward(ctx, grad):
        temperature, y = ctx.saved_tensors
        divisor = ctx.temperature if temperature is None else temperature.unsqueeze(-1)
        columns = y.shape[-1]
        rows = math.prod(ctx.batch)
        draws = math.prod(y.shape[: y.dim() - 1 - len(ctx.batch)])
        dtype = reference.compute_dtype(y.dtype)
        probs = _shaped(y, draws, rows, columns).to(dtype)
        dz = reference.softmax_backward(probs, _shaped(grad, draws, rows, columns).to(dtype))
        dx = dt = None
        if ctx.needs_input_grad[0]:
            dx = (dz.sum(0) / divisor).to(y.dtype).view(*ctx.batch, columns)
        if temperature is not None and ctx.needs_input_grad[1]:
            log_y = probs.clamp(min=torch.finfo(dtype).tiny).log()
            dt = -(dz * log_y).sum((0, 2)) / temperature
        return dx, dt, *(None,) * 5


def relaxed_sample(
    logits: Tensor, temperature: Tensor | float, sample_shape: torch.Size, generator: torch.Generator | None = None
) -> Tensor:
    """A point of the simplex, softmax((logits + Gumbel) / temperature), in the logits' dtype.

    Args:
        logits: [*batch, columns].
        temperature: broadcasts to the batch; or a number.
        sample_shape: leading dimensions of the draw.
        generator: None for the default one of the device.

    Returns:
        [*sample_shape, *batch, columns], with gradients in the logits and the temperature.
    """
    draw = Draw(sample_shape, None, generator)
    if reference.loses_functions():
        noise = reference.noise_from(logits.device, generator)
        y = reference.relaxed(_rows(logits), _row_temperature(temperature, logits), math.prod(sample_shape), noise)
        return _shaped(y, *sample_shape, *logits.shape)
    kernels = uses_kernels(logits.device)
    seed = rng.next_seed(logits, generator) if kernels else rng.Seed(None, 0, 0)
    return _apply(_Relaxed, logits, _temperature(temperature, logits, kernels), *seed, kernels, draw)


# Densities ------------------------------------------------------------------------------------------------------------


class _LogProb(Function):
    """log p_k of `value`, one-hot rows [draws, *batch, columns], or of `index` [draws, *batch], whichever is given.
    Beside a value, the index is a hint to the kernel."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, allowed, logsumexp, value, index, inside, kernels):
        x, allowed = _rows(logits), _rows_of(allowed)
        rows, columns = x.shape
        batch = logits.shape[:-1]
        hint, index = (index, None) if isinstance(value, Tensor) else (None, index)
        lead = value.shape[: value.dim() - logits.dim()] if index is None else index.shape[: index.dim() - len(batch)]
        draws = math.prod(lead)
        # What was given is not returned: an argument returned as it is could not be saved for the backward.
        new_index = new_logsumexp = None
        known = logsumexp
        if index is None and kernels:
            hint = None if hint is None else _shaped(hint, draws, rows)
            out, new_index, new = _kernels.log_prob(x, known, _shaped(value, draws, rows, columns), allowed, hint)
            new_logsumexp = new if known is None else None
        else:
            if known is None and (kernels or not (reference.is_short(x) or reference.is_differentiated(x))):
                known = new_logsumexp = _kernels.logsumexp(x, allowed) if kernels else reference.logsumexp(x)
            if index is None:
                at = new_index = reference.one_hot_index(value)
            else:
                at = index
            at = _shaped(at, draws, rows)
            if kernels:
                out = _kernels.log_prob_index(x, known, at, allowed)
            else:
                out = reference.log_prob(x, at, known, inside=inside or index is None)
        return _shaped(out, *lead, *batch), new_index, new_logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, allowed, logsumexp, _, index, _, ctx.kernels = inputs
        _, new_index, new_logsumexp = output
        ctx.mark_non_differentiable(*(new for new in (new_index, new_logsumexp) if new is not None))
        ctx.set_materialize_grads(False)
        index = index if new_index is None else new_index
        ctx.save_for_backward(logits, allowed, index, logsumexp if new_logsumexp is None else new_logsumexp)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        logits, allowed, index, logsumexp = ctx.saved_tensors
        x, allowed = _rows(logits), _rows_of(allowed)
        rows = x.shape[0]
        draws = index.numel() // max(rows, 1)
        index, grad = _shaped(index, draws, rows), _shaped(grad, draws, rows)
        if ctx.kernels and not torch.is_grad_enabled():
            out = _kernels.log_prob_grad(x, logsumexp, index, grad, allowed)
        else:
            out = reference.log_prob_grad(masked(x, allowed), index, grad)
            out = out if allowed is None else torch.where(allowed, out, 0.0)
        return _shaped(out, *logits.shape), *(None,) * 6


def log_prob(
    logits: Tensor,
    allowed: Tensor | None,
    logsumexp: Tensor | None,
    value: Tensor | None = None,
    index: Tensor | None = None,
    inside: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits) at the one-hot `value` or at `index`, differentiable in the logits.

    Args:
        logits: [*batch, columns].
        allowed: the kernels' category mask.
        logsumexp: [2, rows], where the caller has it.
        value: [*draws, *batch, columns] of any float, integer or bool dtype; its first maximum counts.
        index: int64 [*draws, *batch], in place of `value`. Outside 0 .. columns - 1 the result is NaN. Beside a `value`
            it says where its ones may be, see `kernels.log_prob.log_prob`.
        inside: True where every index is known to be inside.

    Returns:
        log_prob: [*draws, *batch] in the compute dtype.
        logsumexp: [2, rows] in the compute dtype, without gradient; None where it was neither given nor computed.
    """
    value = value.detach() if value is not None and value.requires_grad else value
    if not (kernels := _differentiable_by_kernels(logits)) and _records_forward(logits):
        return _LogProb.forward(masked(logits, allowed), None, None, value, index, inside, False)[0], logsumexp
    out, _, new = _apply(_LogProb, logits, allowed, logsumexp, value, index, inside, kernels)
    return out, new if logsumexp is None else logsumexp


class _Entropy(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logits, allowed, kernels):
        x = _rows(logits)
        out, logsumexp = _kernels.entropy(x, _rows_of(allowed)) if kernels else reference.entropy(x)
        return _shaped(out, *logits.shape[:-1]), logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, allowed, ctx.kernels = inputs
        entropy, logsumexp = output
        if logsumexp is not None:
            ctx.mark_non_differentiable(logsumexp)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, allowed, entropy, logsumexp)

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 3
        logits, allowed, entropy, logsumexp = ctx.saved_tensors
        x, allowed = _rows(logits), _rows_of(allowed)
        rows = x.shape[0]
        grad = _shaped(grad, rows)
        if ctx.kernels and not torch.is_grad_enabled():
            out = _kernels.entropy_grad(x, logsumexp, _shaped(entropy, rows), grad, allowed)
        else:
            out = reference.entropy_grad(masked(x, allowed), grad)
        return _shaped(out, *logits.shape), None, None


def entropy(logits: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The entropy of softmax(logits), differentiable in the logits, and its logsumexp [2, rows], without gradient, or
    None where it was not computed: both in the compute dtype."""
    if not (kernels := _differentiable_by_kernels(logits)) and _records_forward(logits):
        return _Entropy.forward(masked(logits, allowed), None, False)
    return _apply(_Entropy, logits, allowed, kernels)
