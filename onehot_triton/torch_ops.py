"""The kernels as torch operators, `torch.ops.onehot_triton.*`, for torch.compile, torch.export, vmap and profilers.

Each function below has the name of an operator and returns its launcher in `kernels/`. `_operator` gives it a schema,
and turns it into the function that `compute/triton.py` calls with the launcher's arguments.

An operator is a pure function of its arguments, the seed included. So it needs no tag for randomness, and activation
checkpointing can run it again. Its autograd is in `ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import rng
from .tensors import compute_dtype, is_plain

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_library = torch.library.Library("onehot_triton", "DEF")

# The kind of each argument and result, by its name. vmap needs it to find the dimension of rows.
_KINDS = {
    # [..., rows, columns]
    **dict.fromkeys(("logits", "value", "one_hot", "y", "grad", "grad_logits"), "rows"),
    # [..., rows]
    **dict.fromkeys(("index", "hint", "logsumexp", "sums", "score", "log_prob", "entropy"), "numbers"),
    **dict.fromkeys(("grad_log_prob", "grad_entropy", "temperature_tensor", "grad_temperature"), "numbers"),
    # bool [rows, columns], or [m, n, columns] for m n rows. False counts as a logit of -inf.
    "category_mask": "mask",
    # One int64 element on the device.
    "seed_tensor": "seed",
    # An argument without rows.
    **dict.fromkeys(("seed", "offset", "row_offset", "first_group", "c0", "row", "draw", "words"), "other"),
    **dict.fromkeys(("draws", "dtype", "samples", "temperature", "with_temperature", "shape", "noise"), "other"),
}

# The launcher takes a tensor or a number where the schema has two arguments, such as "Tensor? seed_tensor, int seed".
# The number counts where the tensor is None; beside a tensor it is this one.
_NUMBER_BESIDE_TENSOR = {"seed": 0, "temperature": 1.0}

_SEED = "Tensor? seed_tensor, int seed, int offset, int row_offset"
_TEMPERATURE = "Tensor? temperature_tensor, float temperature"
_MASK = "Tensor? category_mask"


def _operator(
    schema: str, fake: Callable[..., Any]
) -> Callable[[Callable[[], Callable[_Arguments, _Result]]], Callable[_Arguments, _Result]]:
    """Define an operator from a function that returns its launcher.

    The launcher is imported at the first call, because importing the library must need no Triton. Later calls find it
    in a cache, which takes less time than an import statement.

    Args:
        schema: its arguments and results. Their names stand in `_KINDS`.
        fake: returns empty results with the right shape, dtype and strides, for the schema's arguments.

    Returns:
        A decorator. Its result takes the launcher's arguments, by position. It calls the operator where something
        looks at operators, a compiler for example, and else the launcher, which saves the time of torch's dispatcher.
    """

    def define(find_launcher: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        name, launcher = find_launcher.__name__, cache(find_launcher)
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        operator = getattr(torch.ops.onehot_triton, name).default
        names = [argument.name for argument in operator._schema.arguments]
        pairs = tuple(
            (place, _NUMBER_BESIDE_TENSOR[number])
            for place, (tensor, number) in enumerate(pairwise(names))
            if tensor == f"{number}_tensor"
        )

        def implementation(*args: Any) -> Any:
            joined = list(args)
            for place, _ in reversed(pairs):
                del joined[place + 1 if joined[place] is not None else place]
            return launcher()(*joined)

        def call(*args: Any) -> Any:
            if is_plain(args[0]):
                return launcher()(*args)
            split = list(args)
            for place, number in pairs:
                given = split[place]
                split[place : place + 1] = (given, number) if isinstance(given, Tensor) else (None, given)
            return operator(*split)

        for device in ("CPU", "CUDA", "XPU"):
            _library.impl(name, implementation, device)
        torch.library.register_fake(f"onehot_triton::{name}", fake, lib=_library)
        torch.library.register_vmap(f"onehot_triton::{name}", _vmap_rule(operator), lib=_library)
        return call

    return define


def _vmap_rule(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """Return the rule by which vmap batches an operator: the rows of B maps are B x rows rows.

    A batch of seeds is a loop over the maps. So are one seed for all of them, and a batch of an argument without rows.
    """
    arguments = [_KINDS[argument.name] for argument in operator._schema.arguments]
    results = [_KINDS[result.name] for result in operator._schema.returns]
    # The dimension of maps is placed before that of the rows, counted from the end; in a mask, before all others.
    dimension = {"rows": -3, "numbers": -2}

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        batched = {kind for kind, in_dim in zip(arguments, in_dims, strict=True) if in_dim is not None}
        seeds_are_batched = "seed" in batched
        if "seed" in arguments and info.randomness == "error" and not seeds_are_batched:
            name = operator._schema.name.rpartition(":")[2]
            raise RuntimeError(f"vmap: {name} is random; call vmap with randomness='different' or 'same'")
        one_seed_for_all = "seed" in arguments and info.randomness == "same"
        if seeds_are_batched or one_seed_for_all or "other" in batched:
            each = []
            for b in range(size):
                picked = [a.select(d, b) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
                each.append(operator(*picked))
            if len(results) == 1:
                return torch.stack(each), 0
            return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(results)

        flat = []
        for argument, in_dim, kind in zip(args, in_dims, arguments, strict=True):
            if kind in ("rows", "numbers", "mask") and argument is not None:
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
            return of_maps(out, results[0], size)
        pairs = [of_maps(o, kind, size) for o, kind in zip(out, results, strict=True)]
        return tuple(o for o, _ in pairs), tuple(dim for _, dim in pairs)

    def of_maps(out: Tensor, kind: str, size: int) -> tuple[Tensor, int | None]:
        # A result that was not requested is an empty tensor without rows.
        if out.numel() == 0 and out.dim() == 1:
            return out, None
        dim = out.dim() + 1 + dimension[kind]
        return out.unflatten(dim, (size, -1)), dim

    return rule


# Fake results ---------------------------------------------------------------------------------------------------------


def _per_row(logits: Tensor, *lead: Any) -> Tensor:
    """Return an empty number per row, [*lead, rows], in the compute dtype."""
    return logits.new_empty((*lead, logits.shape[0]), dtype=compute_dtype(logits.dtype))


def _like(logits: Tensor, *_: Any) -> Tensor:
    """Return an empty gradient."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _lead(draws: Any) -> tuple[Any, ...]:
    """Return the dimension of draws; none where `draws` is None."""
    return () if draws is None else (draws,)


# Draws ----------------------------------------------------------------------------------------------------------------


@_operator(
    f"(Tensor logits, SymInt? draws, ScalarType? dtype, {_SEED}, {_MASK})"
    " -> (Tensor one_hot, Tensor index, Tensor logsumexp)",
    fake=lambda logits, draws, dtype, *_: (
        logits.new_empty(0) if dtype is None else logits.new_empty((*_lead(draws), *logits.shape), dtype=dtype),
        logits.new_empty((*_lead(draws), logits.shape[0]), dtype=torch.int64),
        _per_row(logits, 2),
    ),
)
def sample():
    from .kernels.sample import sample

    return sample


@_operator(
    f"(Tensor logits, SymInt draws, {_SEED}, int first_group) -> (Tensor index, Tensor score, Tensor sums)",
    fake=lambda logits, draws, *_: (
        logits.new_empty((draws, logits.shape[0]), dtype=torch.int64),
        logits.new_empty((draws, logits.shape[0]), dtype=torch.float32),
        _per_row(logits, 2),
    ),
)
def shard_race():
    from .kernels.sample import shard_race

    return shard_race


@_operator(
    f"(Tensor logits, {_TEMPERATURE}, SymInt draws, {_SEED}) -> (Tensor y)",
    fake=lambda logits, temperature_tensor, temperature, draws, *_: logits.new_empty((draws, *logits.shape)),
)
def relaxed():
    from .kernels.relaxed import relaxed

    return relaxed


# Gradients of draws ---------------------------------------------------------------------------------------------------


@_operator(f"(Tensor logits, Tensor logsumexp, Tensor grad, {_MASK}) -> (Tensor grad_logits)", fake=_like)
def softmax_grad():
    from .kernels.softmax_grad import softmax_grad

    return softmax_grad


@_operator(
    f"(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad, {_TEMPERATURE}, {_MASK}) -> (Tensor grad_logits)",
    fake=_like,
)
def reinmax_grad():
    from .kernels.straight_through import reinmax_grad

    return reinmax_grad


@_operator(
    f"(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad, {_TEMPERATURE}, {_MASK}) -> (Tensor grad_logits)",
    fake=_like,
)
def gapped_grad():
    from .kernels.straight_through import gapped_grad

    return gapped_grad


@_operator(
    f"(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad, {_TEMPERATURE}, {_SEED}, {_MASK}, "
    "bool with_temperature, SymInt samples) -> (Tensor grad_logits, Tensor grad_temperature)",
    fake=lambda logits, *others: (_like(logits), _per_row(logits) if others[-2] else _per_row(logits[:0])),
)
def relaxed_grad():
    from .kernels.relaxed import relaxed_grad

    return relaxed_grad


@_operator(
    f"(Tensor y, Tensor grad, {_TEMPERATURE}, bool with_temperature) -> (Tensor grad_logits, Tensor grad_temperature)",
    fake=lambda y, grad, temperature_tensor, temperature, with_temperature: (
        y.new_empty(y.shape[1:]),
        y.new_empty(y.shape[1] if with_temperature else 0, dtype=compute_dtype(y.dtype)),
    ),
)
def soft_grad():
    from .kernels.soft_grad import soft_grad

    return soft_grad


# Densities ------------------------------------------------------------------------------------------------------------


@_operator(
    f"(Tensor logits, Tensor? logsumexp, Tensor value, {_MASK}, Tensor? hint)"
    " -> (Tensor log_prob, Tensor index, Tensor logsumexp)",
    fake=lambda logits, logsumexp, value, *_: (
        _per_row(logits, *value.shape[:-2]),
        value.new_empty(value.shape[:-1], dtype=torch.int64),
        _per_row(logits, 2) if logsumexp is None else logits.new_empty(0, dtype=compute_dtype(logits.dtype)),
    ),
)
def log_prob():
    from .kernels.log_prob import log_prob

    def without_its_argument(
        logits: Tensor, logsumexp: Tensor | None, value: Tensor, category_mask: Tensor | None, hint: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, index, new = log_prob(logits, logsumexp, value, category_mask, hint)
        # An operator must not return its argument.
        return out, index, new if logsumexp is None else new.new_empty(0)

    return without_its_argument


@_operator(
    f"(Tensor logits, Tensor logsumexp, Tensor index, {_MASK}) -> (Tensor log_prob)",
    fake=lambda logits, logsumexp, index, category_mask: _per_row(logits, *index.shape[:-1]),
)
def log_prob_index():
    from .kernels.log_prob import log_prob_index

    return log_prob_index


@_operator(
    f"(Tensor logits, Tensor logsumexp, Tensor index, Tensor grad_log_prob, {_MASK}) -> (Tensor grad_logits)",
    fake=_like,
)
def log_prob_grad():
    from .kernels.log_prob import log_prob_grad

    return log_prob_grad


@_operator(f"(Tensor logits, {_MASK}) -> (Tensor logsumexp)", fake=lambda logits, category_mask: _per_row(logits, 2))
def logsumexp():
    from .kernels.entropy import logsumexp

    return logsumexp


@_operator(
    f"(Tensor logits, {_MASK}) -> (Tensor entropy, Tensor logsumexp)",
    fake=lambda logits, category_mask: (_per_row(logits), _per_row(logits, 2)),
)
def entropy():
    from .kernels.entropy import entropy

    return entropy


@_operator(
    f"(Tensor logits, Tensor logsumexp, Tensor entropy, Tensor grad_entropy, {_MASK}) -> (Tensor grad_logits)",
    fake=_like,
)
def entropy_grad():
    from .kernels.entropy import entropy_grad

    return entropy_grad


@_operator(
    f"(Tensor logits, Tensor index, {_MASK}) -> (Tensor log_prob, Tensor entropy, Tensor logsumexp)",
    fake=lambda logits, index, category_mask: (
        _per_row(logits, *index.shape[:-1]),
        _per_row(logits),
        _per_row(logits, 2),
    ),
)
def log_prob_and_entropy():
    from .kernels.log_prob_and_entropy import log_prob_and_entropy

    return log_prob_and_entropy


@_operator(
    "(Tensor logits, Tensor logsumexp, Tensor entropy, Tensor index, Tensor grad_log_prob, Tensor grad_entropy, "
    f"{_MASK}, Tensor? grad) -> (Tensor grad_logits)",
    fake=_like,
)
def log_prob_and_entropy_grad():
    from .kernels.log_prob_and_entropy import log_prob_and_entropy_grad

    return log_prob_and_entropy_grad


# Noise of the eager backends ------------------------------------------------------------------------------------------


# A compiler cannot trace the generator that a backward makes from its seed.
@_operator(
    "(Tensor seed_tensor, SymInt[] shape) -> (Tensor noise)",
    fake=lambda seed_tensor, shape: seed_tensor.new_empty(shape, dtype=torch.float64),
)
def seeded_exponential():
    return rng.seeded_exponential


# A compiler would take seconds to trace the rounds.
@_operator(
    "(Tensor seed_tensor, Tensor c0, Tensor row, Tensor draw) -> (Tensor words)",
    fake=lambda seed_tensor, *counter: seed_tensor.new_empty(
        (4, *torch.broadcast_shapes(*(word.shape for word in counter)))
    ),
)
def philox():
    return rng.philox
