"""The kernels as torch operators, `torch.ops.onehot_triton.*`: what torch.compile, torch.export and vmap see of them.

An operator takes the arguments of its launcher in `kernels/`, which gives their shapes. It is a pure function of them,
the seed included, so it needs no tag for randomness and survives checkpointing. Its autograd is in `ops.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .rng import philox, seeded_exponential
from .tensors import compute_dtype, is_plain

operators = torch.ops.onehot_triton
_library = torch.library.Library("onehot_triton", "DEF")
_implementations: dict[str, Callable[..., Any]] = {}


def called(name: str) -> Callable[..., Any]:
    """The operator; where nothing is there to see one, its implementation, without the 5 us of the dispatcher."""
    operator, implementation = getattr(operators, name), _implementations[name]

    def call(tensor: Tensor, *args: Any) -> Any:
        if is_plain(tensor):
            return implementation(tensor, *args)
        return operator(tensor, *args)

    return call


def _define(schema: str, layout: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Defines an operator.

    Args:
        schema: its name, arguments and results.
        layout: for vmap, a letter for each argument, ">", and one for each result: "r" for a tensor of rows,
            [..., rows, columns], "m" for a mask of them, "n" for one of numbers, [..., rows], "s" for the seed tensor,
            "." for anything else.
        implementation: for every device.
        fake: gives empty results of the right shape and dtype.
    """
    name = schema[: schema.index("(")]
    _implementations[name] = implementation
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA", "XPU"):
        _library.impl(name, implementation, key)
    torch.library.register_fake(f"onehot_triton::{name}", fake, lib=_library)
    torch.library.register_vmap(f"onehot_triton::{name}", _vmap_rule(name, *layout.split(">")), lib=_library)


def _vmap_rule(name: str, arguments: str, results: str) -> Callable[..., Any]:
    """Batches over rows, since B x rows are rows. A batch of seeds, or one seed for all, is a loop."""
    # Where a dimension of maps stands in front of the rows, counted from the end; of a mask in front of all.
    dimension = {"r": -3, "n": -2}

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        operator, size = getattr(operators, name), info.batch_size
        if "s" in arguments:
            seeds_are_batched = in_dims[arguments.index("s")] is not None
            if info.randomness == "error" and not seeds_are_batched:
                raise RuntimeError(f"vmap: {name} is random; call vmap with randomness='different' or 'same'")
            if seeds_are_batched or info.randomness == "same":
                each = []
                for b in range(size):
                    picked = [a.select(d, b) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
                    each.append(operator(*picked))
                if len(results) == 1:
                    return torch.stack(each), 0
                return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(results)

        flat = []
        for argument, in_dim, kind in zip(args, in_dims, arguments, strict=True):
            if kind in "rnm" and argument is not None:
                dim = dimension[kind] if kind in dimension else -argument.dim() - (in_dim is None)
                if in_dim is None:
                    argument = argument.unsqueeze(dim)
                    argument = argument.expand(*argument.shape[:dim], size, *argument.shape[dim + 1 :])
                else:
                    argument = argument.movedim(in_dim, dim)
                argument = argument.flatten(dim, dim + 1)
            flat.append(argument)
        out = operator(*flat)
        if len(results) == 1:
            return of_maps(out, results, size)
        pairs = [of_maps(o, kind, size) for o, kind in zip(out, results, strict=True)]
        return tuple(o for o, _ in pairs), tuple(dim for _, dim in pairs)

    def of_maps(out: Tensor, kind: str, size: int) -> tuple[Tensor, int | None]:
        # A result that was not asked for is an empty tensor without rows.
        if out.numel() == 0 and out.dim() == 1:
            return out, None
        dim = out.dim() + 1 + dimension[kind]
        return out.unflatten(dim, (size, -1)), dim

    return rule


def _launch(module: str, function: str) -> Callable[..., Any]:
    """The launcher, imported when it is first called: importing the library needs no Triton."""

    @cache
    def launcher() -> Callable[..., Any]:
        return getattr(importlib.import_module(f".kernels.{module}", __package__), function)

    return lambda *args: launcher()(*args)


def _launch_with_either(module: str, function: str, *places: int) -> Callable[..., Any]:
    """The launcher, of which some arguments are a tensor or a number. In the schema each of these is two: a tensor or
    None at that place, and the number after it, which counts where there is None."""
    launch = _launch(module, function)

    def launch_with_either(*args: Any) -> Any:
        chosen = list(args)
        for at in reversed(places):
            del chosen[at + 1 if chosen[at] is not None else at]
        return launch(*chosen)

    return launch_with_either


def _per_row(logits: Tensor, *lead: Any) -> Tensor:
    """An empty number per row, in the compute dtype."""
    return logits.new_empty((*lead, logits.shape[0]), dtype=compute_dtype(logits.dtype))


def _like(logits: Tensor, *_: Any) -> Tensor:
    """An empty gradient."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _lead(draws: Any) -> tuple[Any, ...]:
    """The dimension of draws, where there is one."""
    return () if draws is None else (draws,)


_launch_log_prob = _launch("log_prob", "log_prob")


def _log_prob(
    logits: Tensor, logsumexp: Tensor | None, value: Tensor, allowed: Tensor | None, hint: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    out, index, new = _launch_log_prob(logits, logsumexp, value, allowed, hint)
    # An operator must not return its argument.
    return out, index, new if logsumexp is None else new.new_empty(0)


_SEED = "Tensor? seed_tensor, int seed, int offset, int row_offset"
_TEMPERATURE = "Tensor? temperature_tensor, float temperature"
# A category mask, bool [rows, columns], or [m, n, columns] with m n rows: what is False is as a logit of -inf.
_ALLOWED = "Tensor? allowed"

_define(
    f"sample(Tensor logits, SymInt? draws, ScalarType? dtype, {_SEED}, {_ALLOWED}) -> (Tensor, Tensor, Tensor)",
    "r..s...m>rnn",
    _launch_with_either("sample", "sample", 3),
    lambda logits, draws, dtype, *_: (
        logits.new_empty(0) if dtype is None else logits.new_empty((*_lead(draws), *logits.shape), dtype=dtype),
        logits.new_empty((*_lead(draws), logits.shape[0]), dtype=torch.int64),
        _per_row(logits, 2),
    ),
)
_define(
    f"shard_race(Tensor logits, SymInt draws, {_SEED}, int first_group) -> (Tensor, Tensor, Tensor)",
    "r.s....>nnn",
    _launch_with_either("sample", "shard_race", 2),
    lambda logits, draws, *_: (
        logits.new_empty((draws, logits.shape[0]), dtype=torch.int64),
        logits.new_empty((draws, logits.shape[0]), dtype=torch.float32),
        _per_row(logits, 2),
    ),
)
_define(
    f"relaxed(Tensor logits, {_TEMPERATURE}, SymInt draws, {_SEED}) -> Tensor",
    "rn..s...>r",
    _launch_with_either("relaxed", "relaxed", 1, 4),
    lambda logits, _, __, draws, *___: logits.new_empty((draws, *logits.shape)),
)
_define(
    f"relaxed_grad(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad, {_TEMPERATURE}, {_SEED}, "
    f"{_ALLOWED}, bool with_temperature, SymInt samples) -> (Tensor, Tensor)",
    "rnnrn.s...m..>rn",
    _launch_with_either("relaxed", "relaxed_grad", 4, 6),
    lambda logits, *rest: (_like(logits), _per_row(logits) if rest[-2] else _per_row(logits[:0])),
)
_define(
    f"softmax_grad(Tensor logits, Tensor logsumexp, Tensor grad, {_ALLOWED}) -> Tensor",
    "rnrm>r",
    _launch("softmax_grad", "softmax_grad"),
    _like,
)
for _name in ("reinmax_grad", "gapped_grad"):
    _define(
        f"{_name}(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad, {_TEMPERATURE}, {_ALLOWED}) -> Tensor",
        "rnnrn.m>r",
        _launch_with_either("straight_through", _name, 4),
        _like,
    )
_define(
    f"soft_grad(Tensor y, Tensor grad, {_TEMPERATURE}, bool with_temperature) -> (Tensor, Tensor)",
    "rrn..>rn",
    _launch_with_either("soft_grad", "soft_grad", 2),
    lambda y, _, __, ___, with_temperature: (
        y.new_empty(y.shape[1:]),
        y.new_empty(y.shape[1] if with_temperature else 0, dtype=compute_dtype(y.dtype)),
    ),
)
_define(
    f"log_prob(Tensor logits, Tensor? logsumexp, Tensor value, {_ALLOWED}, Tensor? hint) -> (Tensor, Tensor, Tensor)",
    "rnrmn>nnn",
    _log_prob,
    lambda logits, logsumexp, value, *_: (
        _per_row(logits, *value.shape[:-2]),
        value.new_empty(value.shape[:-1], dtype=torch.int64),
        _per_row(logits, 2) if logsumexp is None else logits.new_empty(0, dtype=compute_dtype(logits.dtype)),
    ),
)
_define(
    f"log_prob_index(Tensor logits, Tensor logsumexp, Tensor index, {_ALLOWED}) -> Tensor",
    "rnnm>n",
    _launch("log_prob", "log_prob_index"),
    lambda logits, logsumexp, index, _: _per_row(logits, *index.shape[:-1]),
)
_define(
    f"log_prob_grad(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad, {_ALLOWED}) -> Tensor",
    "rnnnm>r",
    _launch("log_prob", "log_prob_grad"),
    _like,
)
_define(
    f"logsumexp(Tensor logits, {_ALLOWED}) -> Tensor",
    "rm>n",
    _launch("entropy", "logsumexp"),
    lambda logits, _: _per_row(logits, 2),
)
_define(
    f"entropy(Tensor logits, {_ALLOWED}) -> (Tensor, Tensor)",
    "rm>nn",
    _launch("entropy", "entropy"),
    lambda logits, _: (_per_row(logits), _per_row(logits, 2)),
)
_define(
    f"entropy_grad(Tensor logits, Tensor logsumexp, Tensor entropy, Tensor grad, {_ALLOWED}) -> Tensor",
    "rnnnm>r",
    _launch("entropy", "entropy_grad"),
    _like,
)
_define(
    f"log_prob_and_entropy(Tensor logits, Tensor index, {_ALLOWED}) -> (Tensor, Tensor, Tensor)",
    "rnm>nnn",
    _launch("log_prob_and_entropy", "log_prob_and_entropy"),
    lambda logits, index, _: (_per_row(logits, *index.shape[:-1]), _per_row(logits), _per_row(logits, 2)),
)
_define(
    "log_prob_and_entropy_grad(Tensor logits, Tensor logsumexp, Tensor entropy, Tensor index, Tensor grad_log_prob, "
    f"Tensor grad_entropy, {_ALLOWED}, Tensor? grad) -> Tensor",
    "rnnnnnmr>r",
    _launch("log_prob_and_entropy", "log_prob_and_entropy_grad"),
    _like,
)
# The eager noise that a backward draws again from its seed: opaque to a compiler because of the generator in it.
_define(
    "seeded_exponential(Tensor seed, SymInt[] shape) -> Tensor",
    "s.>r",
    seeded_exponential,
    lambda seed, shape: seed.new_empty(shape, dtype=torch.float64),
)
# The eager noise of a place.
_define(
    "philox(Tensor seed, Tensor c0, Tensor row, Tensor draw) -> Tensor",
    "s...>r",
    philox,
    lambda seed, *counter: seed.new_empty((4, *torch.broadcast_shapes(*(word.shape for word in counter)))),
)
