"""Autograd, one Function an operation: forward, what is kept, backward. All arithmetic is the backend's.

The functions take `logits` [*batch, columns], unnormalised, and a `mask` of their shape or None. They give a backend
the `Rows` that it takes (`compute/base.py`).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import compute
from .compute.base import Eager, Rows, Sample, log_soft_grad, masked
from .estimators import ESTIMATORS, GivenDraw
from .grad_method import ReparamGradientStrategy
from .rng import Seed
from .tensors import batch_sizes, compute_dtype, in_transform, is_differentiated, loses_functions, scalar_tensor


def apply(function: type[Function], *args: Any) -> Any:
    """function.apply(*args), or its forward alone where no gradient is asked for: recording costs more than the work
    of a small batch."""
    # A tensor under vmap does not tell whether a transform outside of it wants a gradient.
    if in_transform() or torch.compiler.is_compiling():
        return function.apply(*args)
    if torch.is_grad_enabled() and _any_requires_grad(args):
        # The `apply` of torch 2.13 and older unwraps dead wrappers of transforms first, in Python.
        return super(Function, _combined(function)).apply(*args)  # pyright: ignore
    return function.forward(*args)  # pyright: ignore


@functools.cache
def _combined(function: type[Function]) -> type[Function]:
    """The same Function in torch's combined form, whose `forward` takes `ctx`.

    torch.func and vmap need the separate form, with a `setup_context`. For that form `apply` binds the arguments to the
    signature of `forward` at each call, to find defaults, which costs more than the rest of the recording
    (https://github.com/pytorch/pytorch/issues/189573).
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (Function,), members)


def _any_requires_grad(args: tuple[Any, ...]) -> bool:
    # A loop takes half the time of `any` and a generator.
    for arg in args:  # noqa: SIM110
        if isinstance(arg, Tensor) and arg.requires_grad:
            return True
    return False


def _keep(
    ctx: Any,
    logits: Tensor,
    mask: Tensor | None,
    others: tuple[Tensor | None, ...],
    by_products: tuple[Tensor | None, ...],
) -> None:
    """Save tensors for the backward. No gradient comes in for by-products, not even one of zeros."""
    # In a backward that torch.compile traces, no tensor has strides to be asked for.
    ctx.mask_sizes = None if mask is None else batch_sizes(mask)
    # A loop enters no other frame, which a comprehension does before Python 3.12.
    marked = []
    for tensor in by_products:
        if tensor is not None:
            marked.append(tensor)
    ctx.mark_non_differentiable(*marked)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, mask, *others)


def _of_backward(backend: Eager) -> Eager:
    """Choose what computes a gradient: under create_graph, and in a transform, one that can be differentiated again."""
    return compute.differentiable(backend) if torch.is_grad_enabled() else backend


def _shaped(tensor: Tensor, *shape: int) -> Tensor:
    """`tensor` in that shape; itself where it has it, since even a view is a call through the dispatcher."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def _rows(tensor: Tensor) -> Tensor:
    """[*batch, columns] -> [rows, columns]."""
    return tensor if tensor.dim() == 2 else tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _rows_of(
    logits: Tensor,
    mask: Tensor | None,
    backend: Eager,
    logsumexp: Tensor | None = None,
    entropy: Tensor | None = None,
    mask_sizes: list[int] | None = None,
) -> Rows:
    """Make the `Rows` of [*batch, columns]. `mask_sizes`: those of `batch_sizes(mask)`, where they are known."""
    x = logits if logits.dim() == 2 else _rows(logits)
    if mask is not None and mask.dim() != 2:
        sizes = batch_sizes(mask) if mask_sizes is None else mask_sizes
        # As rows it would be a copy, which a backend that reads masks does not need.
        as_it_is = len(sizes) == 2 and backend.reads_masks
        mask = mask.view(*sizes, mask.shape[-1]) if as_it_is else _rows(mask)
    return Rows(x, mask, logsumexp, entropy)


# Expanded batches -----------------------------------------------------------------------------------------------------
#
# A batch that was expanded, [B, 8, columns] by a stride of 0, is B rows: its draws are 8 more of each, and what is
# computed of a row is computed once. As rows it would be copied.


def repeated(logits: Tensor, mask: Tensor | None = None) -> tuple[int, ...]:
    """The dimensions of a batch in which logits and mask repeat themselves. None where autograd records: the gradient
    of an expanded tensor has a part for each repetition."""
    if 0 not in logits.stride() or is_differentiated(logits):
        return ()
    tensors = (logits,) if mask is None else (logits, mask)
    batch = logits.shape[:-1]
    return tuple(d for d in range(len(batch)) if batch[d] > 1 and all(t.stride(d) == 0 for t in tensors))


def once(tensor: Tensor, dims: tuple[int, ...], lead: int = 0) -> Tensor:
    """[*lead, *batch, ...] without the dimensions of the batch that repeat it."""
    for d in reversed(dims):
        tensor = tensor.select(lead + d, 0)
    return tensor


def again(tensor: Tensor, dims: tuple[int, ...], batch: torch.Size, lead: int = 0) -> Tensor:
    """The inverse of `once`, a view."""
    for d in dims:
        tensor = tensor.unsqueeze(lead + d)
    return tensor.expand(*tensor.shape[:lead], *batch, *tensor.shape[lead + len(batch) :])


def _sizes(batch: torch.Size, dims: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the dimensions that repeat the batch, and of the others."""
    return tuple(batch[d] for d in dims), tuple(size for d, size in enumerate(batch) if d not in dims)


def _as_draws(tensor: Tensor, dims: tuple[int, ...], lead: int) -> Tensor:
    """[*lead, *batch, ...] with the dimensions that repeat the batch in front of its others."""
    return tensor.movedim([lead + d for d in dims], list(range(lead, lead + len(dims))))


def _as_batch(tensor: Tensor, dims: tuple[int, ...], batch: torch.Size, lead: tuple[int, ...], *tail: int) -> Tensor:
    """[draws, rows, *tail] of rows without repetition as [*lead, *batch, *tail]."""
    if not dims:
        return _shaped(tensor, *lead, *batch, *tail)
    repetitions, others = _sizes(batch, dims)
    tensor = tensor.reshape(*lead, *repetitions, *others, *tail)
    return tensor.movedim(list(range(len(lead), len(lead) + len(dims))), [len(lead) + d for d in dims])


def _of_rows(logsumexp: Tensor | None, dims: tuple[int, ...], batch: torch.Size) -> Tensor | None:
    """The logsumexp of every row of a batch, [2, rows], from that of its rows without repetition."""
    if logsumexp is None or not dims:
        return logsumexp
    return again(logsumexp.reshape(2, *_sizes(batch, dims)[1]), dims, batch, 1).reshape(2, -1)


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


def _drawn(backend: Eager, logits: Tensor, mask: Tensor | None, draw: Draw, seed: Seed, again: bool = False) -> Sample:
    """The backend's draw, in the shapes that a user asked for."""
    dims, draws = repeated(logits, mask), math.prod(draw.sample_shape)
    if not dims:
        drawn = backend.sample(_rows_of(logits, mask, backend), draws, draw.dtype, seed, again)
        return _in_shape(drawn, draw, logits)
    batch = logits.shape[:-1]
    rows = _rows_of(once(logits, dims), None if mask is None else once(mask, dims), backend)
    drawn = backend.sample(rows, draws * math.prod(_sizes(batch, dims)[0]), draw.dtype, seed, again)
    one_hot, place = drawn.one_hot, (dims, batch, draw.sample_shape)
    return drawn._replace(
        one_hot=None if one_hot is None else _as_batch(one_hot, *place, logits.shape[-1]),
        index=_as_batch(drawn.index, *place),
        logsumexp=_of_rows(drawn.logsumexp, dims, batch),
    )


def _in_shape(drawn: Sample, draw: Draw, logits: Tensor) -> Sample:
    """A backend's rows in the shapes that a user asked for."""
    shape = draw.sample_shape + logits.shape[:-1]
    if drawn.index.shape == shape:
        return drawn
    if drawn.index.shape == (1, *shape):
        # In half the time of two reshapes.
        one_hot = None if drawn.one_hot is None else drawn.one_hot.squeeze(0)
        return Sample(one_hot, drawn.index.squeeze(0), drawn.logsumexp, drawn.all_valid, drawn.seed, drawn.hints)
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
    backend = compute.of(logits)
    logits = logits.detach() if logits.requires_grad else logits
    seed = backend.new_seed(logits, draw.generator) if seed is None else seed
    return _drawn(backend, logits, mask, draw, seed)


class _StraightThrough(Function):
    """Draw a one-hot, exactly 0 and 1, with the gradient of `estimator`; or take the columns of `index`, if given."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits, mask, temperature, index, seed_tensor, seed, offset, row_offset, backend, draw, estimator, samples
    ):
        if index is not None:
            # A Function must not return what it was given.
            return backend.one_hot(index, logits.shape[-1], draw.dtype), None, None, None
        seed = Seed(seed_tensor, seed, offset, draw.generator, row_offset)
        drawn = _drawn(backend, logits, mask, draw, seed, estimator.relaxed)
        return drawn.one_hot, drawn.index, drawn.logsumexp, drawn.seed

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, temperature, index, seed_tensor, ctx.seed, ctx.offset, ctx.row_offset, ctx.backend, *rest = inputs
        _, ctx.estimator, ctx.samples = rest
        # A tensor is kept by autograd, which sees where it is changed in place.
        tensor, ctx.temperature = (temperature, None) if isinstance(temperature, Tensor) else (None, temperature)
        _, new_index, logsumexp, seed_again = output
        index = index if new_index is None else new_index
        seed_tensor = seed_tensor if seed_again is None else seed_again
        _keep(ctx, logits, mask, (tensor, seed_tensor, index, logsumexp), (new_index, logsumexp, seed_again))

    @staticmethod
    def backward(ctx, grad, *_):
        logits, mask, temperature, seed_tensor, index, logsumexp = ctx.saved_tensors
        temperature = ctx.temperature if temperature is None else temperature
        dx = dt = None
        if grad is not None:
            # The noise of a relaxed sample is that of its draw, which another backend does not draw.
            backend = ctx.backend if ctx.estimator.relaxed else _of_backward(ctx.backend)
            rows = _rows_of(logits, mask, backend, logsumexp, None, ctx.mask_sizes)
            draws = math.prod(index.shape[: index.dim() - logits.dim() + 1])
            grad = _shaped(grad, draws, *rows.logits.shape)
            seed = Seed(seed_tensor, ctx.seed, ctx.offset, None, ctx.row_offset)
            draw = GivenDraw(_shaped(index, draws, rows.logits.shape[0]), temperature, seed, ctx.samples)
            dx, dt = ctx.estimator.grad(backend, rows, draw, grad, ctx.needs_input_grad[2])
            dx = _shaped(dx, *logits.shape)
        return dx, None, dt, None, None, None, None, None, None, None, None, None


def rsample(
    logits: Tensor,
    mask: Tensor | None,
    draw: Draw,
    method: ReparamGradientStrategy,
    temperature: Tensor | float,
    samples: int,
    seed: Seed | None = None,
) -> Sample:
    """`sample` in the logits' dtype, with the gradient of `method` in the logits.

    Args:
        logits: [*batch, columns].
        mask: of the logits' shape, or None.
        draw: what is wanted; its dtype is the logits'.
        method: the gradient.
        temperature: of all but PassThrough; a tensor broadcasts to the batch, and has a gradient of RelaxedOneHot.
        samples: of RelaxedOneHot, for each draw.
        seed: in place of a new one of the draw's generator.
    """
    backend, draws = compute.of(logits), math.prod(draw.sample_shape)
    estimator = ESTIMATORS[method]
    relaxed, has_temperature = estimator.relaxed, estimator.takes_temperature
    relaxes_first = relaxed and seed is None and samples == 1 and backend.relaxes_first(logits, draws)
    learned = relaxed and isinstance(temperature, Tensor) and is_differentiated(temperature)
    if not (learned or relaxes_first or is_differentiated(logits)):
        return sample(logits, mask, draw, seed)
    t = _temperature(temperature, logits) if has_temperature else 1.0
    is_given = seed is not None
    seed = backend.new_seed(logits, draw.generator) if seed is None else seed
    if relaxes_first or (not is_given and backend.records(logits, has_temperature)):
        args = draws, draw.dtype, seed, estimator, t, samples
        return _in_shape(backend.straight_through(_rows_of(logits, mask, backend), *args), draw, logits)
    args = None, seed.tensor, seed.seed, seed.offset, seed.row_offset, backend, draw, estimator, samples
    one_hot, index, logsumexp, _ = apply(_StraightThrough, logits, mask, t, *args)
    return Sample(one_hot, index, logsumexp, False, None)


def mode(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Find the first maximum per row of `logits` [*batch, columns]: int64 [*batch], -1 for an invalid row."""
    logits, dims = logits.detach(), repeated(logits, mask)
    if dims:
        return again(mode(once(logits, dims), None if mask is None else once(mask, dims)), dims, logits.shape[:-1])
    x = masked(logits, mask)
    index = compute.of(x).argmax(x)
    # NaN counts as the maximum: in an invalid row, it is not finite.
    return index.masked_fill(~x.gather(-1, index.unsqueeze(-1)).squeeze(-1).isfinite(), -1)


def rmode(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Give the one-hot of `mode`, [*batch, columns] in the logits' dtype, with the gradient of PassThrough."""
    backend, index = compute.of(logits), mode(logits, mask)
    if backend.records(logits):
        y = backend.softmax(masked(logits, mask))
        one_hot = backend.with_gradient_of(Sample(None, index, None, False, None), y, logits.dtype).one_hot
        assert one_hot is not None
        return one_hot
    estimator = ESTIMATORS[ReparamGradientStrategy.PassThrough]
    args = index, None, 0, 0, 0, backend, Draw((), logits.dtype), estimator, 1
    return apply(_StraightThrough, logits, mask, 1.0, *args)[0]


def _temperature(temperature: Tensor | float, logits: Tensor) -> Tensor | float:
    """The temperature of each row, [rows], in the compute dtype; a number as it is, which saves a launch. A compiled
    program is given a tensor, so that another number needs no other program."""
    dtype = compute_dtype(logits.dtype)
    if not isinstance(temperature, Tensor):
        if not torch.compiler.is_compiling():
            return temperature
        temperature = scalar_tensor(temperature, logits)
    if temperature.numel() == 1:
        temperature = temperature.reshape(())
    batch = logits.shape[:-1]
    return temperature.to(dtype).expand(batch).reshape(math.prod(batch))


def constant_where_empty(temperature: Tensor | float, logits: Tensor) -> Tensor | float:
    """`temperature`, without a gradient in rows of `logits` [*batch, columns] that are all -inf: nothing is drawn from
    them, and what they would add to the gradient is NaN. A kernel that reads a mask leaves such rows out itself."""
    if not (isinstance(temperature, Tensor) and is_differentiated(temperature)):
        return temperature
    is_empty = (logits.detach() != -torch.inf).any(-1).logical_not()
    return torch.where(is_empty, temperature.detach(), temperature)


class _Relaxed(Function):
    """softmax((x + Gumbel) / t), or its logarithm. The backward needs the sample alone, not the noise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, temperature, seed_tensor, seed, offset, row_offset, backend, draw, log):
        seed = Seed(seed_tensor, seed, offset, draw.generator, row_offset)
        relaxed = backend.log_relaxed if log else backend.relaxed
        out = relaxed(_rows(logits), temperature, math.prod(draw.sample_shape), seed)
        return _shaped(out, *draw.sample_shape, *logits.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, temperature, *_, ctx.backend, _, ctx.log = inputs
        tensor, ctx.temperature = (temperature, None) if isinstance(temperature, Tensor) else (None, temperature)
        ctx.save_for_backward(tensor, output)
        ctx.batch, ctx.dtype = logits.shape[:-1], logits.dtype

    @staticmethod
    def backward(ctx, grad):
        temperature, y = ctx.saved_tensors
        temperature = ctx.temperature if temperature is None else temperature
        columns = y.shape[-1]
        shape = math.prod(y.shape[: y.dim() - 1 - len(ctx.batch)]), math.prod(ctx.batch), columns
        y, grad = _shaped(y, *shape), _shaped(grad, *shape)
        soft_grad = log_soft_grad if ctx.log else _of_backward(ctx.backend).soft_grad
        dx, dt = soft_grad(y, grad, temperature, ctx.needs_input_grad[1])
        return _shaped(dx, *ctx.batch, columns).to(ctx.dtype), dt, None, None, None, None, None, None, None


def relaxed_sample(
    logits: Tensor, temperature: Tensor | float, draw: Draw, seed: Seed | None = None, log: bool = False
) -> Tensor:
    """A point of the simplex, softmax((logits + Gumbel) / temperature), in the logits' dtype.

    Args:
        logits: [*batch, columns].
        temperature: a number, or a tensor that broadcasts to the batch.
        draw: what is wanted, but for a dtype.
        seed: in place of a new one of the draw's generator.
        log: gives the point's logarithm, in float32 at least. No kernel computes that, so the seed is eager torch's.

    Returns:
        [*sample_shape, *batch, columns], with gradients in the logits and the temperature.
    """
    backend = compute.EAGER if log else compute.of(logits)
    seed = backend.new_seed(logits, draw.generator) if seed is None else seed
    t = _temperature(constant_where_empty(temperature, logits), logits)
    args = t, seed.tensor, seed.seed, seed.offset, seed.row_offset, backend, draw, log
    return _Relaxed.forward(logits, *args) if backend.records(logits, True) else apply(_Relaxed, logits, *args)


# Densities ------------------------------------------------------------------------------------------------------------


class _LogProb(Function):
    """log p_k of `value`, one-hot rows [draws, *batch, columns], or of `index` [draws, *batch], whichever is given.
    Beside a value, the index says where its ones may be."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, mask, logsumexp, value, index, inside, backend):
        dims, batch = repeated(logits, mask), logits.shape[:-1]
        lead = index.shape[: index.dim() - len(batch)] if value is None else value.shape[: value.dim() - logits.dim()]
        if dims:
            n = len(lead)
            index, value = (t if t is None else _as_draws(t, dims, n) for t in (index, value))
            logits, mask = once(logits, dims), None if mask is None else once(mask, dims)
            logsumexp = None if logsumexp is None else once(logsumexp.reshape(2, *batch), dims, 1).reshape(2, -1)
            out, index, logsumexp = _LogProb.forward(logits, mask, logsumexp, value, index, inside, backend)
            index = None if index is None else _as_batch(index, dims, batch, lead)
            return _as_batch(out, dims, batch, lead), index, _of_rows(logsumexp, dims, batch)
        rows = _rows_of(logits, mask, backend, logsumexp)
        # Only an index that is computed here is returned: a Function must not return its own input.
        new_index = None
        # A tensor that needs another shape anyway gets the dimension of draws, which kernels want.
        draws = (math.prod(lead),) if lead or len(batch) != 1 else ()
        index = None if index is None else _shaped(index, *draws, rows.logits.shape[0])
        if value is None:
            out, new_logsumexp = backend.log_prob_index(rows, index, inside)
        else:
            value = _shaped(value, *draws, *rows.logits.shape)
            out, new_index, new_logsumexp = backend.log_prob(rows, value, index)
        return _shaped(out, *lead, *batch), new_index, new_logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, logsumexp, _, index, _, ctx.backend = inputs
        _, new_index, new_logsumexp = output
        index = index if new_index is None else new_index
        logsumexp = logsumexp if new_logsumexp is None else new_logsumexp
        _keep(ctx, logits, mask, (index, logsumexp), (new_index, new_logsumexp))

    @staticmethod
    def backward(ctx, grad, *_):
        logits, mask, index, logsumexp = ctx.saved_tensors
        dx = None
        if grad is not None:
            n = math.prod(logits.shape[:-1])
            draws = index.numel() // max(n, 1)
            backend = _of_backward(ctx.backend)
            rows = _rows_of(logits, mask, backend, logsumexp, None, ctx.mask_sizes)
            dx = backend.log_prob_grad(rows, _shaped(index, draws, n), _shaped(grad, draws, n))
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
    backend = compute.of(logits)
    if backend.records(logits):
        return _LogProb.forward(logits, mask, None, value, index, inside, backend)[0]
    return apply(_LogProb, logits, mask, logsumexp, value, index, inside, backend)[0]


class _Entropy(Function):
    """-sum p log p."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, mask, backend):
        dims, batch = repeated(logits, mask), logits.shape[:-1]
        if dims:
            logits, mask = once(logits, dims), None if mask is None else once(mask, dims)
        out, logsumexp = backend.entropy(_rows_of(logits, mask, backend))
        out = _shaped(out, *logits.shape[:-1])
        return again(out, dims, batch).contiguous() if dims else out, _of_rows(logsumexp, dims, batch)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, ctx.backend = inputs
        entropy, logsumexp = output
        _keep(ctx, logits, mask, (entropy, logsumexp), (logsumexp,))

    @staticmethod
    def backward(ctx, grad, *_):
        logits, mask, entropy, logsumexp = ctx.saved_tensors
        dx = None
        if grad is not None:
            n, backend = math.prod(logits.shape[:-1]), _of_backward(ctx.backend)
            rows = _rows_of(logits, mask, backend, logsumexp, _shaped(entropy, n), ctx.mask_sizes)
            dx = backend.entropy_grad(rows, _shaped(grad, n))
            dx = _shaped(dx, *logits.shape)
        return dx, None, None


def entropy(logits: Tensor, mask: Tensor | None) -> Tensor:
    """-sum p log p of softmax(logits), [*batch] in the compute dtype, differentiable in the logits."""
    backend = compute.of(logits)
    if backend.records(logits):
        return _Entropy.forward(logits, mask, backend)[0]
    return apply(_Entropy, logits, mask, backend)[0]


class _LogProbAndEntropy(Function):
    """log p_k and -sum p log p together, of `value` or of `index` as in `_LogProb`. Or, where there is a `draw`, of
    what is drawn here: the first result is its one-hot, and its PassThrough gradient a part of the one gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, mask, value, index, inside, seed_tensor, seed, offset, backend, draw):
        dims, batch = repeated(logits, mask), logits.shape[:-1]
        one_hot = drawn_at = None
        if draw is not None:
            drawn = _drawn(backend, logits, mask, draw, Seed(seed_tensor, seed, offset, draw.generator))
            one_hot, index, inside = drawn.one_hot, drawn.index, drawn.all_valid
            drawn_at = index
        lead = index.shape[: index.dim() - len(batch)] if value is None else value.shape[: value.dim() - logits.dim()]
        if dims:
            index, value = (t if t is None else _as_draws(t, dims, len(lead)) for t in (index, value))
            logits, mask = once(logits, dims), None if mask is None else once(mask, dims)
        rows = _rows_of(logits, mask, backend)
        draws = math.prod(lead) * math.prod(_sizes(batch, dims)[0])
        index = None if index is None else _shaped(index, draws, rows.logits.shape[0])
        if value is None:
            log_prob, entropy, logsumexp = backend.log_prob_and_entropy(rows, index, inside)
            new_index = drawn_at
        else:
            # The logits are read once here too: with a known logsumexp, a log-probability needs one number of them.
            entropy, logsumexp = backend.entropy(rows)
            rows = Rows(rows.logits, rows.mask, logsumexp)
            log_prob, index, new = backend.log_prob(rows, _shaped(value, draws, *rows.logits.shape), index)
            logsumexp = new if logsumexp is None else logsumexp
            new_index = _as_batch(index, dims, batch, lead)
        entropy = _shaped(entropy, *logits.shape[:-1])
        entropy = again(entropy, dims, batch).contiguous() if dims else entropy
        return one_hot, _as_batch(log_prob, dims, batch, lead), entropy, new_index, _of_rows(logsumexp, dims, batch)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, mask, _, index, *_, ctx.backend, _ = inputs
        _, _, entropy, new_index, logsumexp = output
        index = index if new_index is None else new_index
        _keep(ctx, logits, mask, (index, logsumexp, entropy), (new_index, logsumexp))

    @staticmethod
    def backward(ctx, grad, grad_log_prob, grad_entropy, *_):
        logits, mask, index, logsumexp, entropy = ctx.saved_tensors
        dx = None
        if not (grad is None and grad_log_prob is None and grad_entropy is None):
            n, backend = math.prod(logits.shape[:-1]), _of_backward(ctx.backend)
            draws = math.prod(index.shape[: index.dim() - logits.dim() + 1])
            entropy, index = _shaped(entropy, n), _shaped(index, draws, n)
            # A result that no loss takes has gradient 0: a number per row.
            grad_entropy = torch.zeros_like(entropy) if grad_entropy is None else _shaped(grad_entropy, n)
            if grad_log_prob is None:
                grad_log_prob = entropy.new_zeros((draws, n))
            grad_log_prob = _shaped(grad_log_prob, draws, n)
            rows = _rows_of(logits, mask, backend, logsumexp, entropy, ctx.mask_sizes)
            if grad is not None:
                grad = _shaped(grad, draws, *rows.logits.shape)
                grad = grad[0] if draws == 1 else grad.sum(0)
            dx = backend.log_prob_and_entropy_grad(rows, index, grad_log_prob, grad_entropy, grad)
            dx = _shaped(dx, *logits.shape)
        return dx, None, None, None, None, None, None, None, None, None


def log_prob_and_entropy(
    logits: Tensor,
    mask: Tensor | None,
    value: Tensor | None = None,
    index: Tensor | None = None,
    inside: bool = False,
) -> tuple[Tensor, Tensor]:
    """`log_prob` and `entropy` of the same arguments: of one reading of the logits, and with one gradient."""
    value = value.detach() if value is not None and value.requires_grad else value
    backend = compute.of(logits)
    args = logits, mask, value, index, inside, None, 0, 0, backend, None
    # Autograd may record the backend's formulas themselves: then the forward is called directly.
    out = _LogProbAndEntropy.forward(*args) if backend.records(logits) else apply(_LogProbAndEntropy, *args)
    return out[1], out[2]


def rsample_log_prob_and_entropy(logits: Tensor, mask: Tensor | None, draw: Draw) -> tuple[Sample, Tensor, Tensor]:
    """`rsample` with the gradient of PassThrough, the draw's log_prob and the entropy, as one node of the graph: its
    backward reads the logits and writes their gradient once, where three of them would each, and autograd add up."""
    backend = compute.of(logits)
    seed = backend.new_seed(logits, draw.generator)
    if backend.records(logits):
        args = _rows_of(logits, mask, backend), math.prod(draw.sample_shape), draw.dtype, seed
        drawn, log_prob, entropy = backend.rsample_log_prob_and_entropy(*args)
        drawn, batch = _in_shape(drawn, draw, logits), logits.shape[:-1]
        return drawn, _shaped(log_prob, *draw.sample_shape, *batch), _shaped(entropy, *batch)
    args = logits, mask, None, None, False, seed.tensor, seed.seed, seed.offset, backend, draw
    one_hot, log_prob, entropy, index, logsumexp = apply(_LogProbAndEntropy, *args)
    return Sample(one_hot, index, logsumexp, False, None), log_prob, entropy


class _LogOfValue(Function):
    """log y in `dtype`, -inf where y is 0. The derivative is 0 there, as where y is NaN, and elsewhere never infinite:
    y times it, which is the derivative in the scores, would be NaN where 1 / y overflows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value, dtype):
        return value.to(dtype).log()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        (value,) = ctx.saved_tensors
        largest = torch.finfo(value.dtype).max
        # Not in float16, where 1 / y ends at 65504.
        y = value.to(grad.dtype)
        return (grad / y.masked_fill((y > 0).logical_not(), torch.inf)).clamp(-largest, largest).to(value.dtype), None


def log_of_value(value: Tensor, dtype: torch.dtype) -> Tensor:
    """log y of relaxed values, in `dtype`."""
    if not loses_functions():
        return apply(_LogOfValue, value, dtype)
    zero = value == 0
    return value.to(dtype).masked_fill(zero, 1.0).log().masked_fill(zero, -torch.inf)


def relaxed_log_prob(logits: Tensor, temperature: Tensor | float, value: Tensor, of_log: bool = False) -> Tensor:
    """The log-density of relaxed values.

    Args:
        logits: [*batch, columns].
        temperature: a number, or a tensor that broadcasts to the batch.
        value: [..., columns], y; its leading dimensions broadcast against the batch.
        of_log: `value` is log y, and so is what the density is of.

    Returns:
        The broadcast leading dimensions, in the compute dtype.
    """
    dtype = compute_dtype(logits.dtype)
    t = temperature
    if isinstance(t, Tensor):
        t = t.to(dtype)
        t = t.reshape(()) if t.numel() == 1 else t
    log_y = value.to(dtype) if of_log else log_of_value(value, dtype)
    logits = logits.to(dtype)
    return compute.of(logits).relaxed_log_prob(logits, t, log_y, of_log)
